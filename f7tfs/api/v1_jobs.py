"""Jobs over v1: every call is a task to be followed (v1 FACTS §9)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from f7tfs.api.names import require
from f7tfs.api.scheduler import MAY_BE_SUBMITTED, NOT_SUBMITTED, OVER, base_of, said
from f7tfs.api.tasks import Task, TaskBoard
from f7tfs.api.v1_calls import Calls, task_id_of
from f7tfs.api.v1_errors import error_of_text
from f7tfs.api.v1_names import carries_text
from f7tfs.errors import (
    F7tfsError,
    InvalidArgument,
    OutcomeUnknown,
    PermissionDenied,
    QuotaExceeded,
    Rejected,
    ServerError,
    Stalled,
    Unauthorized,
    Unreachable,
)
from f7tfs.model import Job, JobState, Submitted

log = logging.getLogger("f7tfs.api")
DAY = 86400.0  # seconds
ACCOUNTING, QUEUE = "ask the accounting", "ask the queue"
_CANCELLABLE = re.compile(r"\d+(_\d+)?")
_SENTENCES = re.compile(r"(?<=\S)(?=sbatch: )")


class Jobs:
    """`task_timeout`: seconds within which the task of a job call must be over."""

    def __init__(self, calls: Calls, tasks: TaskBoard, *, task_timeout: float = 60.0) -> None:
        self._calls = calls
        self._tasks = tasks
        self._task_timeout = task_timeout

    async def submit(self, script: bytes, file_name: str, account: str | None) -> Submitted:
        what = f"submit {file_name}"
        require(carries_text(file_name) and "/" not in file_name, file_name)
        form = None
        if account is not None:
            if not carries_text(account):
                raise InvalidArgument(f"not an account: {account!r}")
            form = {"account": account}
        try:
            answer = await self._calls.act(
                "POST",
                "/compute/jobs/upload",
                what,
                form=form,
                files={"file": (file_name, script)},
            )
        except ServerError as error:
            # A worker that dies answers 500 for it, whatever it had done by then.
            raise OutcomeUnknown(str(error)) from error
        task = await self._finished(answer, what, changes=True)
        if not task.succeeded:
            raise refusal_of(task, what)
        data = task.data if isinstance(task.data, dict) else {}
        if not said(data.get("jobid")):
            raise OutcomeUnknown(f"{what}: the server named no job")
        return submitted_of(data)

    async def all(self, *, reasons: bool) -> list[Job]:
        """One question to the accounting, which costs two commands however many jobs there are;
        the queue costs three for each (§9). Why jobs wait only the queue tells: everybody's, which
        is one command. Where there is no accounting, the user's queue has to do."""
        yesterday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - DAY))
        try:
            found = await self._rows_of("/compute/acct", {"starttime": yesterday}, ACCOUNTING)
        except ServerError as error:
            log.info("jobs are taken from the queue alone: %s", error)
            return active_jobs(await self._rows_of("/compute/jobs", {}, QUEUE))
        jobs = accounted_jobs(found)
        if reasons and any(job.state is JobState.PENDING for job in jobs):
            queue = await self._rows_of("/compute/jobs", {"userJobs": "false"}, QUEUE)
            waiting = {job.id: job for job in active_jobs(queue)}
            jobs = [_with_reason(job, waiting.get(job.id)) for job in jobs]
        return jobs

    async def accounted(self, ids: Sequence[str]) -> list[Job]:
        if not ids:
            return []
        wanted = {"jobs": ",".join(dict.fromkeys(base_of(job_id) for job_id in ids))}
        return accounted_jobs(await self._rows_of("/compute/acct", wanted, ACCOUNTING))

    async def paths(self, job: Job) -> Submitted:
        """The queue tells only of what is queued or running."""
        if job.state.is_over:
            return Submitted(job.id)
        rows = await self._rows_of("/compute/jobs", {"jobs": base_of(job.id)}, QUEUE)
        told = {one.id: one for one in active_jobs(rows)}.get(job.id, job)
        return Submitted(job.id, told.script_path, told.stdout_path, told.stderr_path)

    async def submitted_as(self, tags: Collection[str]) -> dict[str, Submitted]:
        """Out of the user's tasks, which hold what each submission answered, for a day; it costs
        no command of the login node."""
        found = {}
        for data in await self._tasks.results_of("compute"):
            tag = said(data.get("job_file")).rpartition("/")[2]
            if tag in tags and said(data.get("jobid")):
                found[tag] = submitted_of(data)
        return found

    async def _rows_of(self, path: str, query: dict[str, str], what: str) -> Any:
        answer = await self._calls.ask(path, query, what)
        task = await self._finished(answer, what, changes=False)
        if task.succeeded:
            return task.data
        if OVER.search(task.text):  # it knows none of these ids
            return {}
        raise _failure(task, what)

    async def cancel(self, job_id: str) -> None:
        what = f"cancel job {job_id}"
        if not _CANCELLABLE.fullmatch(job_id):
            raise InvalidArgument(f"{what}: only a job, an array, or one of its elements")
        answer = await self._calls.act(
            "DELETE", f"/compute/jobs/{job_id}", what, endpoint="/compute/jobs/{id}"
        )
        task = await self._finished(answer, what, changes=True)
        if task.succeeded or OVER.search(task.text):
            return
        if "permission" in task.text.lower():
            raise PermissionDenied(f"{what}: {task.text}")
        raise _failure(task, what, changes=True)

    async def _finished(self, answer: dict[str, Any], what: str, *, changes: bool) -> Task:
        return await self._tasks.outcome(
            task_id_of(answer, what),
            timeout=self._task_timeout,
            unfinished=OutcomeUnknown if changes else Stalled,
        )


def refusal_of(task: Task, what: str) -> F7tfsError:
    """Why a submission failed: Rejected with the scheduler's words, unless the text says that it
    never came that far, or that a job may exist all the same."""
    text = task.text
    if MAY_BE_SUBMITTED.search(text):
        return OutcomeUnknown(f"{what}: {text}")
    if NOT_SUBMITTED.search(text):
        return Unreachable(f"{what}: {text}")
    found = error_of_text(text, what, changes=True)
    if isinstance(found, (OutcomeUnknown, Unreachable, Unauthorized, QuotaExceeded)):
        return found
    return Rejected(_SENTENCES.sub("\n", text))


def _failure(task: Task, what: str, *, changes: bool = False) -> F7tfsError:
    found = error_of_text(task.text, what, changes=changes)
    return found or ServerError(f"{what}: {task.text}")


def submitted_of(data: dict[str, Any]) -> Submitted:
    """From the data of a submission's task."""
    return Submitted(
        job_id=said(data.get("jobid")),
        script_path=said(data.get("job_file")),
        stdout_path=said(data.get("job_file_out")),
        stderr_path=said(data.get("job_file_err")),
    )


def _with_reason(job: Job, waiting: Job | None) -> Job:
    """The queue is ahead of the accounting, and tells why a job waits."""
    if waiting is None or job.state is not JobState.PENDING:
        return job
    return msgspec.structs.replace(
        job,
        state=waiting.state,
        state_text=waiting.state_text,
        reason=waiting.reason,
        partition=job.partition or waiting.partition,
        started=job.started or waiting.started,
        node_list=job.node_list or waiting.node_list,
    )


def active_jobs(data: Any) -> list[Job]:
    """From the data of GET /compute/jobs: {"0": {…}, "1": {…}}."""
    return [
        Job(
            id=said(row.get("jobid")),
            name=said(row.get("name")),
            state=JobState.parse(said(row.get("state"))),
            state_text=said(row.get("state")),
            reason=_reason_in(said(row.get("nodelist"))),
            user=said(row.get("user")),
            partition=said(row.get("partition")),
            nodes=said(row.get("nodes")),
            node_list="" if _reason_in(row.get("nodelist")) else said(row.get("nodelist")),
            started=_timestamp(row.get("time"), row.get("start_time")),
            elapsed=_duration(row.get("start_time"), row.get("time")),
            script_path=said(row.get("job_file")),
            stdout_path=said(row.get("job_file_out")),
            stderr_path=said(row.get("job_file_err")),
        )
        for row in _rows(data)
    ]


def accounted_jobs(data: Any) -> list[Job]:
    """From the data of GET /compute/acct: a list, or {}. A row that slurmdbd has not completed yet
    ("allocation" of root without a partition) keeps what is right in it."""
    found = []
    for row in _rows(data):
        provisional = row.get("name") == "allocation" and not row.get("partition")
        found.append(
            Job(
                id=said(row.get("jobid")),
                name="" if provisional else said(row.get("name")),
                state=JobState.parse(said(row.get("state"))),
                state_text=said(row.get("state")),
                user="" if provisional else said(row.get("user")),
                partition=said(row.get("partition")),
                nodes=said(row.get("nodes")),
                node_list=said(row.get("nodelist")),
                exit_code=said(row.get("exit_code")),
                started=said(row.get("start_time")),
                ended=said(row.get("termination_time") or row.get("time_left")),
                elapsed=said(row.get("elapsed_time")),
            )
        )
    return found


def _rows(data: Any) -> Iterable[dict[str, Any]]:
    rows = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return [row for row in rows if isinstance(row, dict) and row.get("jobid")]


def _reason_in(node_list: object) -> str:
    """A pending job has its reason, in parentheses, where the nodes would be."""
    text = said(node_list)
    return text[1:-1] if text.startswith("(") and text.endswith(")") else ""


def _timestamp(*candidates: object) -> str:
    """1.16 has the start in `time` and the elapsed time in `start_time`; told by their looks, so
    that a server that mends it is understood too."""
    return next((text for text in map(said, candidates) if "T" in text), "")


def _duration(*candidates: object) -> str:
    return next((text for text in map(said, candidates) if ":" in text and "T" not in text), "")
