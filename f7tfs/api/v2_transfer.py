"""Transfers over v2: each is a job of the scheduler (v2 FACTS §7, §8).

A job's word proves little: COMPLETED comes also without a file, and a failed mv is COMPLETED too.
What was staged is proven by `stat`, what was moved by the job's log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import trio

from f7tfs.api.names import require
from f7tfs.api.port import Phase, Progress, Route, Ticket, UploadParts
from f7tfs.api.rounds import Rounds
from f7tfs.api.v2_calls import OPS, TRANSFER, Calls, answer_to
from f7tfs.api.v2_errors import NO_ACCOUNT, error_of
from f7tfs.api.v2_jobs import Jobs, Row
from f7tfs.api.v2_names import carries, carries_job, is_identifier, log_of_transfer
from f7tfs.api.v2_wire import S3, System, directives, field, is_url, transfer_job
from f7tfs.api.wire import integer
from f7tfs.errors import (
    F7tfsError,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    ServerError,
    Unsupported,
)
from f7tfs.model import JobState, RemotePath

log = logging.getLogger("f7tfs.api")

UNSEEN = 30.0  # seconds in which a new job may be unknown to the scheduler's accounting
LOG_GRACE = 10.0  # seconds that a log may take from a node to where we read it
LOG_TAIL = 2000  # bytes of a log that are told
MOVED = "Files were successfully"


class Details(msgspec.Struct, frozen=True, omit_defaults=True):
    """`Ticket.details`, as JSON. `since`: epoch seconds, our clock."""

    kind: Literal["upload", "download", "move"]
    since: float
    output_log: str = ""
    error_log: str = ""
    link: str = ""
    urls: tuple[str, ...] = ()
    part_size: int = 0
    complete_url: str = ""

    @property
    def logs(self) -> tuple[RemotePath, ...]:
        found = (log_of_transfer(text) for text in (self.output_log, self.error_log))
        return tuple(path for path in found if path is not None)


def details_of(ticket: Ticket) -> Details:
    """Raises NotFound for a ticket that is not v2's: whoever resumes it begins anew."""
    try:
        return msgspec.json.decode(ticket.details, type=Details)
    except msgspec.DecodeError:
        raise NotFound(f"transfer {ticket.task_id}: not a ticket of FirecREST v2") from None


class Transfers:
    """`account`: what transfers are charged to, if anything. `own_jobs` gets the ids of the jobs
    that are started here."""

    def __init__(self, calls: Calls, jobs: Jobs, own_jobs: set[str], account: str | None) -> None:
        self._calls = calls
        self._jobs = jobs
        self._own_jobs = own_jobs
        self._account = account
        self._rounds: Rounds[Row] = Rounds(self._look)
        self._fresh: set[str] = set()  # jobs of tickets that nobody has asked about yet
        self._silent: dict[str, float] = {}  # moves that are over without a word → since when
        # Each call stops the server for up to half a second (FACTS §7).
        self._turn = trio.Lock()
        self.system: System | None = None

    async def stage_upload(self, path: RemotePath, size: int) -> Ticket:
        require(carries(path, Route.STAGED_UPLOAD), path)
        if size <= 0:
            raise Unsupported(f"upload {path}: FirecREST v2 cannot stage an empty file")
        what = f"upload {path}"
        answer = await self._start("upload", what, path, {"fileSize": size})
        where = directives(answer)
        urls = field(where, "partsUploadUrls") or []
        complete = field(where, "completeUploadUrl", "completeMultipartUploadUrl")
        part_size = integer(field(where, "maxPartSize"), 0)
        if not isinstance(urls, list) or not all(map(is_url, [*urls, complete])) or not urls:
            raise ServerError(f"{what}: the server gave no links for the parts")
        return self._ticket(
            path,
            answer,
            what,
            kind="upload",
            urls=tuple(urls),
            part_size=part_size if part_size > 0 else size,
            complete_url=complete,
        )

    async def stage_download(self, path: RemotePath) -> Ticket:
        require(carries(path, Route.STAGED_DOWNLOAD), path)
        what = f"stage {path}"
        answer = await self._start("download", what, path, {})
        link = field(directives(answer), "downloadUrl")
        if not is_url(link):
            raise ServerError(f"{what}: the server gave no link")
        return self._ticket(path, answer, what, kind="download", link=link)

    async def move(self, source: RemotePath, target: RemotePath) -> Ticket:
        require(carries_job(source, target), source, target)
        what = f"mv {source} → {target}"
        body = {"path": source, "targetPath": target, **self.charge()}
        async with self._turn:
            answer = await self._calls.act("POST", TRANSFER + "mv", what, body=body)
        return self._ticket(target, answer, what, kind="move")

    async def progress(self, ticket: Ticket) -> Progress:
        details = details_of(ticket)
        if ticket.task_id in self._fresh:
            # The bytes of an upload must be there before the job looks, else it sleeps a minute.
            self._fresh.discard(ticket.task_id)
            return _ready(details, "new")
        row = await self._rounds.observe(ticket.task_id)
        if row is None:
            return self._unseen(ticket, details)
        if not row.is_over:
            if details.kind == "move":
                running = row.job.state is not JobState.PENDING
                return Progress(Phase.MOVING if running else Phase.QUEUED, row.job.state_text)
            looked = row.job.state is not JobState.PENDING
            return _ready(details, row.job.state_text, looked=looked)
        if row.job.state is not JobState.COMPLETED:
            return await self._unfinished(details, row)
        if details.kind == "upload":
            complaint = await self._complaint(details)
            return Progress(Phase.DONE, row.job.state_text, error=complaint)
        if details.kind == "download":
            return _ready(details, row.job.state_text, lags=False)
        return await self._moved(details, row)

    async def withdraw(self, ticket: Ticket) -> None:
        """Cancel the job where that does no harm, and remove its logs. Never fails."""
        self._fresh.discard(ticket.task_id)
        try:
            details = details_of(ticket)
            row = await self._rounds.observe(ticket.task_id)
            if row is not None and _may_be_cancelled(row, details):
                await self._jobs.cancel(ticket.task_id)
        except F7tfsError as error:
            log.info("transfer %s could not be withdrawn: %s", ticket.task_id, error)
        for path in self.litter(ticket):
            try:
                what = f"rm {path}"
                await self._calls.act("DELETE", OPS + "rm", what, query={"path": path})
            except F7tfsError as error:
                log.debug("the log of a transfer stays: %s", error)

    def litter(self, ticket: Ticket) -> tuple[RemotePath, ...]:
        try:
            return details_of(ticket).logs
        except NotFound:
            return ()

    async def _start(
        self, verb: str, what: str, path: RemotePath, extra: dict[str, Any]
    ) -> dict[str, Any]:
        """A transfer through the object store. Nothing on the cluster changes before bytes are
        there, so no outcome is unknown but that of a lost reply: a job that nobody feeds."""
        method = self.system.transfer_method if self.system is not None else None
        if method not in {S3, None}:
            by = f"by {method!r} only" if method else "no files between here and there"
            raise Unsupported(f"{what}: this system moves {by}, which f7tfs does not speak")
        body = {
            "path": path,
            "transferDirectives": {"transferMethod": S3, **extra},
            **self.charge(),
        }
        async with self._turn:
            reply = await self._calls.send("POST", TRANSFER + verb, body=body)
        if reply.status >= 300:
            raise error_of(reply, what, changes=False)
        return answer_to(reply, what)

    def charge(self) -> dict[str, str]:
        """The account in a request's body. Raises InvalidArgument where one is missing."""
        if self._account is None:
            if self.system is not None and self.system.wants_account:
                raise InvalidArgument(NO_ACCOUNT)
            return {}
        if not is_identifier(self._account):
            raise InvalidArgument(f"jobs.account is not an account: {self._account!r}")
        return {"account": self._account}

    def _ticket(
        self,
        path: RemotePath,
        answer: dict[str, Any],
        what: str,
        *,
        kind: Literal["upload", "download", "move"],
        link: str = "",
        urls: tuple[str, ...] = (),
        part_size: int = 0,
        complete_url: str = "",
    ) -> Ticket:
        job = transfer_job(answer)
        if job is None:
            raise OutcomeUnknown(f"{what}: the server named no job")
        details = Details(
            kind=kind,
            since=time.time(),
            output_log=job.output_log,
            error_log=job.error_log,
            link=link,
            urls=urls,
            part_size=part_size,
            complete_url=complete_url,
        )
        self._own_jobs.add(job.job_id)
        if kind != "move":
            self._fresh.add(job.job_id)
        return Ticket(job.job_id, path, msgspec.json.encode(details).decode())

    def _unseen(self, ticket: Ticket, details: Details) -> Progress:
        """The accounting learns of a new job late, and forgets old ones. A link speaks for itself;
        of the others nothing is known."""
        is_new = abs(time.time() - details.since) < UNSEEN
        if details.kind == "download":
            return _ready(details, "unknown", lags=is_new)
        if not is_new:
            raise NotFound(f"the scheduler knows no job {ticket.task_id}")
        if details.kind == "move":
            return Progress(Phase.QUEUED, "unknown")
        return _ready(details, "unknown")

    async def _moved(self, details: Details, row: Row) -> Progress:
        """Whether a completed mv has moved: its log says so, or the other one why not (§8)."""
        done, words = await self._words(details.output_log), ""
        if MOVED not in done:
            words = told(await self._words(details.error_log))
        now = trio.current_time()
        if not (MOVED in done or words) and now - self._silent.setdefault(row.job.id, now) < (
            LOG_GRACE
        ):
            return Progress(Phase.MOVING, row.job.state_text)
        self._silent.pop(row.job.id, None)
        if MOVED in done:
            return Progress(Phase.DONE, row.job.state_text)
        words = words or "its logs do not tell that it moved anything"
        return Progress(
            Phase.FAILED,
            row.job.state_text,
            error=f"job {row.job.id} {row.job.state_text}: {words}",
        )

    async def _unfinished(self, details: Details, row: Row) -> Progress:
        reason = f" ({row.job.reason})" if row.job.reason else ""
        state = f"job {row.job.id} {row.job.state_text}{reason}"
        try:
            words = told(await self._log(details.error_log))
            words = words or told(await self._log(details.output_log))
        except NotFound:
            words = "it left no log, so it never began"
        except F7tfsError as error:
            words = f"its log cannot be read: {error}"
        cancelled = row.job.state is JobState.CANCELLED
        return Progress(
            Phase.WITHDRAWN if cancelled else Phase.FAILED,
            row.job.state_text,
            error=f"{state}: {words or 'its logs are empty'}",
        )

    async def _log(self, path: str) -> str:
        """The end of a log. Raises NotFound where the job has written none."""
        known = log_of_transfer(path)
        if known is None:
            raise NotFound("the server named no log")
        query = {"path": known, "bytes": str(LOG_TAIL)}
        answer = await self._calls.ask(OPS + "tail", query, f"tail {known}")
        return str(field(answer.get("output"), "content") or "")

    async def _complaint(self, details: Details) -> str | None:
        """What a completed job has in its error log: the reason, if the file is not there."""
        try:
            return told(await self._log(details.error_log)) or None
        except F7tfsError:
            return None

    async def _words(self, path: str) -> str:
        try:
            return await self._log(path)
        except NotFound:
            return ""

    async def _look(self, ids: Sequence[str]) -> dict[str, Row]:
        return await self._jobs.look(ids)


def _ready(details: Details, raw: str, *, lags: bool = True, looked: bool = False) -> Progress:
    if details.kind == "download":
        return Progress(Phase.READY, raw, link=details.link, link_lags=lags)
    parts = UploadParts(details.urls, details.part_size, details.complete_url)
    return Progress(Phase.READY, raw, parts=parts, looked=looked)


def _may_be_cancelled(row: Row, details: Details) -> bool:
    """Numbers are given again by a scheduler that lost its records: only what is a transfer, or has
    no name yet. An upload that nobody feeds would sleep on its node until its time is over. What
    else has begun is left alone: half an mv, or a download's copy in the user's quota (§7)."""
    if row.is_over:
        return False
    if details.kind == "upload":
        return row.is_transfer or row.provisional
    return row.is_transfer and row.job.state is JobState.PENDING


def told(text: str) -> str:
    """A log on one line, without the scripts' own last words, which say less (§8)."""
    lines = [line.strip() for line in text.splitlines()]
    return " · ".join(line for line in lines if line and "Unable to " not in line)[-600:]
