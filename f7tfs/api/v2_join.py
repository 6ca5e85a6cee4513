"""Pieces of a file, put together on the cluster by a job of our own (docs/decisions/0009).

The job's name is the ticket's id: it is known, and journaled, before the job is submitted, and the
job is found again by it. Unlike FirecREST's own transfer jobs, this one fails where a command of
it fails, and it checks the sum before it says that it is done.
"""

from __future__ import annotations

import logging
import re
import shlex
import time
from collections.abc import Sequence

import msgspec

from f7tfs.api.names import require
from f7tfs.api.port import Phase, Progress, Ticket
from f7tfs.api.rounds import Rounds
from f7tfs.api.v2_calls import OPS, Calls
from f7tfs.api.v2_jobs import JOIN_PREFIX, Jobs, Row
from f7tfs.api.v2_names import carries_text
from f7tfs.api.v2_transfer import Transfers, told
from f7tfs.api.v2_wire import field
from f7tfs.errors import F7tfsError, InvalidArgument, NotFound
from f7tfs.model import JobState, RemotePath, name_of, parent_of

log = logging.getLogger("f7tfs.api")
UNSEEN = 30.0  # seconds in which a new job may be unknown to the scheduler's accounting
LOG_TAIL = 2000  # bytes of the job's output that are told

# In a script they stand bare, and behind "#SBATCH --output=" as well.
_PIECE_NAME = re.compile(r"\.f7tfs-[0-9a-f-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIRECTIVE = re.compile(r"#SBATCH [^\x00-\x1f]*")


class Plan(msgspec.Struct, frozen=True):
    """`Ticket.details`, as JSON. `since`: epoch seconds, our clock."""

    pieces: tuple[str, ...]
    sha256: str
    since: float

    @property
    def output(self) -> RemotePath:
        """What the job has to say; it removes this itself if it ends well."""
        return RemotePath(self.pieces[0] + "-log")


def script_of(plan: Plan, path: RemotePath, directives: Sequence[str]) -> bytes:
    """Writes `path` in place: inode, mode and links stay, and a private file stays private."""
    pieces = " ".join(name_of(RemotePath(piece)) for piece in plan.pieces)
    output = name_of(plan.output)
    lines = [
        "#!/bin/bash",
        *directives,
        f"#SBATCH --output={output}",
        "set -e",
        f"target={shlex.quote(path)}",
        f'cat -- {pieces} > "$target"',
        'sum=$(sha256sum < "$target")',
        f'[ "${{sum%% *}}" = {plan.sha256} ] || {{ echo "its checksum differs"; exit 1; }}',
        f"rm -f -- {pieces} {output}",
        "",
    ]
    return "\n".join(lines).encode()


class Joins:
    def __init__(self, calls: Calls, jobs: Jobs, transfers: Transfers) -> None:
        self._calls = calls
        self._jobs = jobs
        self._transfers = transfers
        self._ids: dict[str, str] = {}  # ticket → job, of those that this process submitted
        self._rounds: Rounds[Row] = Rounds(jobs.look)

    def plan(self, pieces: Sequence[RemotePath], path: RemotePath, sha256: str) -> Ticket:
        """All pieces lie in one directory. Pure: nothing is sent."""
        require(carries_text(path), path)
        directories = {parent_of(piece) for piece in pieces}
        names = [name_of(piece) for piece in pieces]
        if (
            len(directories) != 1
            or not all(_PIECE_NAME.fullmatch(name) for name in names)
            or not _SHA256.fullmatch(sha256)
        ):
            raise InvalidArgument(f"join {path}: these are no pieces of ours")
        plan = Plan(pieces=tuple(pieces), sha256=sha256, since=time.time())
        tag = JOIN_PREFIX + names[0].rpartition("-")[0].removeprefix(".f7tfs-")
        return Ticket(tag, path, msgspec.json.encode(plan).decode(), joins=True)

    async def start(self, ticket: Ticket) -> None:
        plan = _plan_of(ticket)
        system = self._transfers.system
        account = self._transfers.charge().get("account", "")
        directives = [
            line.replace("{account}", account)
            for line in (system.directives if system is not None else ())
            if _DIRECTIVE.fullmatch(line)
        ]
        script = script_of(plan, ticket.path, directives)
        directory = parent_of(RemotePath(plan.pieces[0]))
        job_id = await self._jobs.submit_own(script, ticket.task_id, account or None, directory)
        self._ids[ticket.task_id] = job_id

    async def progress(self, ticket: Ticket) -> Progress:
        """Raises NotFound where there is no such job."""
        plan = _plan_of(ticket)
        row = await self._find(ticket)
        if row is None:
            if ticket.task_id in self._ids and abs(time.time() - plan.since) < UNSEEN:
                return Progress(Phase.QUEUED, "unknown")
            raise NotFound(f"the scheduler knows no job {ticket.task_id}")
        text = row.job.state_text
        if not row.is_over:
            running = row.job.state is not JobState.PENDING
            return Progress(Phase.MOVING if running else Phase.QUEUED, text)
        if row.job.state is JobState.COMPLETED:
            self._ids.pop(ticket.task_id, None)
            return Progress(Phase.DONE, text)
        words = await self._words(plan)
        cancelled = row.job.state is JobState.CANCELLED
        return Progress(
            Phase.WITHDRAWN if cancelled else Phase.FAILED,
            text,
            error=f"job {row.job.id} {text}: {words or 'it left no word'}",
        )

    async def withdraw(self, ticket: Ticket) -> None:
        """Cancel the job, if it is not over. Never fails."""
        try:
            row = await self._find(ticket)
            if row is not None and not row.is_over:
                await self._jobs.cancel(row.job.id)
        except F7tfsError as error:
            log.info("job %s could not be cancelled: %s", ticket.task_id, error)

    def litter(self, ticket: Ticket) -> tuple[RemotePath, ...]:
        plan = _plan_of(ticket)
        return (*(RemotePath(piece) for piece in plan.pieces), plan.output)

    async def _find(self, ticket: Ticket) -> Row | None:
        """By its number where that is known, else by its name, which nobody else has."""
        number = self._ids.get(ticket.task_id)
        if number is not None:
            return await self._rounds.observe(number)
        return await self._jobs.named(ticket.task_id)

    async def _words(self, plan: Plan) -> str:
        query = {"path": plan.output, "bytes": str(LOG_TAIL)}
        try:
            answer = await self._calls.ask(OPS + "tail", query, f"tail {plan.output}")
        except F7tfsError:
            return ""
        return told(str(field(answer.get("output"), "content") or ""))


def _plan_of(ticket: Ticket) -> Plan:
    try:
        return msgspec.json.decode(ticket.details, type=Plan)
    except msgspec.DecodeError:
        raise NotFound(f"transfer {ticket.task_id}: not a ticket of this version") from None
