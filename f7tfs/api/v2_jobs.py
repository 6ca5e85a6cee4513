"""Jobs over v2 (v2 FACTS §9)."""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
import trio

from f7tfs.api.names import require
from f7tfs.api.replies import Reply
from f7tfs.api.scheduler import MAY_BE_SUBMITTED, NOT_SUBMITTED, OVER, base_of, said
from f7tfs.api.strerror import kind_by_end
from f7tfs.api.v2_calls import JOB, JOBS, METADATA, Calls, answer_to
from f7tfs.api.v2_errors import error_of, is_scheduler_failure, stderr_of_scheduler
from f7tfs.api.v2_names import carries_text, is_identifier, is_job_name
from f7tfs.api.v2_wire import field
from f7tfs.api.wire import document, integer
from f7tfs.errors import (
    F7tfsError,
    InvalidArgument,
    OutcomeUnknown,
    PermissionDenied,
    QueueUnreadable,
    QuotaExceeded,
    Rejected,
    ServerError,
    Unreachable,
    Unsupported,
)
from f7tfs.model import Job, JobState, RemotePath, Submitted

log = logging.getLogger("f7tfs.api")

METADATA_PATIENCE = 5.0  # seconds that a submission waits for the paths of its output
ONE_BY_ONE = 3  # up to so many ids are asked for singly: a list holds a day of jobs
NARROWEST_WINDOW = "1h"

# FirecREST's own jobs, which are nobody's work (§8, §9).
TRANSFER_NAMES = frozenset(
    {
        "IngressFileTransfer",
        "OutgressFileTransfer",
        "MoveFiles",
        "CopyFiles",
        "DeleteFiles",
        "CompressFiles",
        "ExtractFiles",
    }
)


# Ours, which put pieces together; what follows is the mark of an attempt.
JOIN_PREFIX = "f7tfs-join-"
_JOIN_NAME = re.compile(re.escape(JOIN_PREFIX) + r"[0-9a-f-]+")


def is_join(name: str) -> bool:
    return _JOIN_NAME.fullmatch(name) is not None


class Row(msgspec.Struct, frozen=True):
    """One job as the scheduler tells it now. `provisional`: the accounting has only begun to know
    it; its name and place are not told yet (§9)."""

    job: Job
    provisional: bool
    ended: bool

    @property
    def is_over(self) -> bool:
        """Also for states that are no words of ours, if the job has an end."""
        return self.job.state.is_over or (self.job.state is JobState.OTHER and self.ended)

    @property
    def is_transfer(self) -> bool:
        return self.job.name in TRANSFER_NAMES or is_join(self.job.name)


class Jobs:
    """`own_transfers`: ids of transfer jobs that this process started; kept by who starts them."""

    def __init__(self, calls: Calls, own_transfers: set[str]) -> None:
        self._calls = calls
        self._own_transfers = own_transfers

    async def submit(
        self, script: bytes, tag: str, account: str | None, directory: RemotePath
    ) -> Submitted:
        job_id = await self._post(script, tag, account, directory)
        stdout, stderr = "", ""
        with trio.move_on_after(METADATA_PATIENCE):
            stdout, stderr = await self._outputs_of(job_id)
        if " " in directory:  # the server cuts them at a space
            stdout, stderr = (
                "" if directory.startswith(path) else path for path in (stdout, stderr)
            )
        return Submitted(job_id=job_id, stdout_path=stdout, stderr_path=stderr)

    async def submit_own(
        self, script: bytes, tag: str, account: str | None, directory: RemotePath
    ) -> str:
        """A job that moves bytes for us: nobody sees it among the user's. Returns its id."""
        job_id = await self._post(script, tag, account, directory)
        self._own_transfers.add(job_id)
        return job_id

    async def named(self, tag: str) -> Row | None:
        """The job of a name that was given once. Versions before 2.5.7 answer with all jobs."""
        reply = await self._calls.reply_to(JOBS, {"name": tag})
        if is_scheduler_failure(reply):
            raise Unreachable(f"job {tag}: the server could not ask the scheduler")
        if reply.status >= 300:
            raise error_of(reply, f"job {tag}", changes=False)
        return next((row for row in rows_of(reply.body) if row.job.name == tag), None)

    async def _post(
        self, script: bytes, tag: str, account: str | None, directory: RemotePath
    ) -> str:
        what = f"submit {tag}"
        require(is_job_name(tag), tag)
        require(carries_text(directory), directory)
        job = {"name": tag, "workingDirectory": directory, "script": _text_of(script)}
        if account is not None:
            if not is_identifier(account):
                raise InvalidArgument(f"not an account: {account!r}")
            job["account"] = account
        reply = await self._calls.send("POST", JOBS, body={"job": job})
        if reply.status >= 300:
            raise refusal_of(reply, what)
        job_id = said(field(answer_to(reply, what), "jobId"))
        if not job_id:
            raise OutcomeUnknown(f"{what}: the server named no job")
        return job_id

    async def all(self) -> list[Job]:
        """Of a day, the queue included."""
        reply, _ = await self._list()
        return [self._job_of(row) for row in rows_of(reply.body)]

    async def accounted(self, ids: Sequence[str]) -> list[Job]:
        return [self._job_of(row) for row in await self._rows(ids)]

    async def paths(self, job_id: str) -> Submitted:
        """As long as the scheduler remembers the job (§9)."""
        stdout, stderr = await self._outputs_of(job_id)
        return Submitted(job_id, stdout_path=stdout, stderr_path=stderr)

    async def submitted_as(self, tags: Collection[str]) -> dict[str, Submitted]:
        rows = await self._named_any(tags)
        found = {row.job.name: base_of(row.job.id) for row in rows if row.job.name in tags}
        return {tag: await self.paths(job_id) for tag, job_id in found.items()}

    async def _named_any(self, tags: Collection[str]) -> list[Row]:
        found: list[Row] = []
        if len(tags) > ONE_BY_ONE:
            try:
                reply, is_whole = await self._list()
            except QueueUnreadable as error:
                log.info("jobs are looked for one by one: %s", error)
            else:
                found = rows_of(reply.body)
                if is_whole:
                    return found
        known = {row.job.name for row in found}
        singly = [await self.named(tag) for tag in tags if tag not in known]
        return found + [row for row in singly if row is not None]

    async def cancel(self, job_id: str) -> None:
        what = f"cancel job {job_id}"
        number = base_of(job_id)
        if number != job_id:
            raise Unsupported(f"{what}: FirecREST v2 cancels only the whole array {number}")
        reply = await self._calls.send("DELETE", JOB, job=number)
        if reply.status < 300:
            return
        text = stderr_of_scheduler(reply)
        if text is not None and OVER.search(text):
            return
        if text is not None and "permission denied" in text.lower():
            raise PermissionDenied(f"{what}: {text}")
        raise error_of(reply, what, changes=True)

    async def look(self, ids: Sequence[str]) -> dict[str, Row]:
        """The jobs of `ids`, for who follows transfers; unknown ones are missing."""
        return {row.job.id: row for row in await self._rows(ids)}

    async def _rows(self, ids: Sequence[str]) -> list[Row]:
        """Those jobs, and the elements of those that are arrays."""
        wanted = list(dict.fromkeys(base_of(job_id) for job_id in ids))
        found: dict[str, list[Row]] = {}
        if len(wanted) > ONE_BY_ONE:
            reply = await self._calls.reply_to(JOBS, {})
            if reply.status == 200:
                for row in rows_of(reply.body):
                    found.setdefault(base_of(row.job.id), []).append(row)
        failure = None
        for number in wanted:
            if number not in found:
                try:
                    found[number] = await self._one(number)
                except Unreachable as error:  # a "|" in the name of this one, or no cluster
                    failure = error
        if failure is not None and not found:
            raise failure
        return [row for number in wanted for row in found.get(number, ())]

    async def _list(self) -> tuple[Reply, bool]:
        """The list of a day, and whether it is that. One job with "|" in its name spoils it while
        it is in the window (§9): then the list of an hour."""
        what, is_whole = "list jobs", True
        reply = await self._calls.reply_to(JOBS, {})
        if is_scheduler_failure(reply):
            is_whole = False
            reply = await self._calls.reply_to(JOBS, {"time_window": NARROWEST_WINDOW})
            if is_scheduler_failure(reply):
                raise QueueUnreadable(
                    f"{what}: the server cannot ask the scheduler, or cannot read its answer "
                    '(a job whose name holds "|" spoils the list)'
                )
        if reply.status >= 300:
            raise error_of(reply, what, changes=False)
        return reply, is_whole

    async def _one(self, number: str) -> list[Row]:
        reply = await self._calls.reply_to(JOB, {}, job=number)
        if reply.status == 404 and b"Job not found" in reply.body:
            return []
        if is_scheduler_failure(reply):
            raise Unreachable(f"job {number}: the server could not ask the scheduler")
        if reply.status >= 300:
            raise error_of(reply, f"job {number}", changes=False)
        return rows_of(reply.body)

    def _job_of(self, row: Row) -> Job:
        is_transfer = row.is_transfer or row.job.id in self._own_transfers
        return msgspec.structs.replace(row.job, is_transfer=is_transfer)

    async def _outputs_of(self, job_id: str) -> tuple[str, str]:
        """Where a job writes. Never fails: the scheduler soon forgets it (§9)."""
        number = base_of(job_id)
        told = "", ""
        try:
            reply = await self._calls.reply_to(METADATA, {}, job=number)
            if reply.status == 200:
                told = outputs_of(reply.body, job_id)
        except F7tfsError as error:
            log.info("job %s: where it writes is not known: %s", job_id, error)
        return told


def _text_of(script: bytes) -> str:
    """A script as JSON can carry it. An empty one would make sbatch wait for its input (§9)."""
    if not script.strip():
        raise Rejected("the script is empty")
    try:
        text = script.decode()
    except UnicodeDecodeError:
        raise Rejected("the script is not UTF-8 text, which FirecREST v2 cannot submit") from None
    if "\0" in text:
        raise Rejected("the script holds a NUL")
    return text


def refusal_of(reply: Reply, what: str) -> F7tfsError:
    """Why a submission failed: Rejected with the scheduler's words, unless they say that it never
    came that far, or that a job may exist all the same."""
    text = stderr_of_scheduler(reply)
    if text is None:
        found = error_of(reply, what, changes=True)
        if type(found) is ServerError:
            return OutcomeUnknown(str(found))
        return Rejected(str(found)) if isinstance(found, PermissionDenied) else found
    if MAY_BE_SUBMITTED.search(text):
        return OutcomeUnknown(f"{what}: {text}")
    if NOT_SUBMITTED.search(text):
        return Unreachable(f"{what}: {text}")
    if kind_by_end(text) is QuotaExceeded:
        return QuotaExceeded(f"{what}: {text}")
    return Rejected(text)


def outputs_of(body: bytes, job_id: str) -> tuple[str, str]:
    """(stdout, stderr) out of a metadata reply: {"jobs": [{"jobId", "standardOutput", …}]}."""
    for row in _records(body):
        if said(field(row, "jobId")) in {job_id, ""}:
            paths = (str(field(row, name) or "") for name in ("standardOutput", "standardError"))
            stdout, stderr = (
                path if path.startswith("/") and path != "/dev/null" else "" for path in paths
            )
            return stdout, stderr
    return "", ""


def rows_of(body: bytes) -> list[Row]:
    """From {"jobs": […]}; a missing or strange row is left out."""
    return [_row(record) for record in _records(body) if said(field(record, "jobId"))]


def _records(body: bytes) -> Iterable[dict[str, Any]]:
    rows = document(body).get("jobs")
    if not isinstance(rows, list):
        raise Unreachable("the reply about jobs is not FirecREST's")
    return [row for row in rows if isinstance(row, dict)]


def _row(record: dict[str, Any]) -> Row:
    status, times = field(record, "status"), field(record, "time")
    partition = said(field(record, "partition"))
    provisional = field(record, "name") == "allocation" and not partition
    text = said(field(status, "state"))
    state = JobState.parse(text)
    elapsed = integer(field(times, "elapsed"), 0)
    if state is JobState.PENDING and _has_begun(record):
        # The accounting wins over the queue and lags behind it (§9).
        state, text = JobState.RUNNING, "RUNNING"
    ended = field(times, "end")
    return Row(
        job=Job(
            id=said(field(record, "jobId")),
            name="" if provisional else said(field(record, "name")),
            state=state,
            state_text=text,
            reason=said(field(status, "stateReason")),
            user=said(field(record, "user")),
            partition=partition,
            nodes=said(field(record, "allocationNodes")),
            node_list=said(field(record, "nodes")),
            exit_code=_exit_code(status),
            started=_timestamp(field(times, "start")),
            ended=_timestamp(ended),
            elapsed=_duration(elapsed),
        ),
        provisional=provisional,
        ended=bool(integer(ended, 0)),
    )


def _has_begun(record: dict[str, Any]) -> bool:
    tasks = field(record, "tasks")
    return isinstance(tasks, list) and any(
        said(field(field(task, "status"), "state")) == "RUNNING" for task in tasks
    )


def _exit_code(status: Any) -> str:
    """As Slurm writes it: "3:0" for exit(3), "0:9" for a kill."""
    code = field(status, "exitCode")
    if not isinstance(code, int):
        return ""
    return f"{code}:{integer(field(status, 'interruptSignal'), 0)}"


def _timestamp(epoch: object) -> str:
    seconds = integer(epoch, 0)
    if seconds <= 0:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _duration(seconds: int) -> str:
    """Slurm's way: "1-02:03:04"."""
    if seconds <= 0:
        return ""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-" * bool(days) + f"{hour:02}:{minute:02}:{second:02}"
