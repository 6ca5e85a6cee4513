"""What there is to see in jobs/, by name, and what is in it.

jobs/NAME          a script dropped here; it stays readable, and rm cancels its job
jobs/NAME.status   while its job is not known: what it waits for, or what became of it
jobs/NAME.error    why the last drop of that name was refused
jobs/ID/           status, status.json, script, stdout, stderr of a job
jobs/.jobs.json    all of it in one file, not listed
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

from f7tfs.api.port import Cluster
from f7tfs.errors import F7tfsError, NotFound
from f7tfs.jobs import text
from f7tfs.jobs.arrays import array_of
from f7tfs.jobs.board import JobBoard
from f7tfs.jobs.follow import Output, Outputs
from f7tfs.jobs.takedown import Takedowns
from f7tfs.model import Job, Kind, remote_path
from f7tfs.transfers.drops import Drop
from f7tfs.transfers.submit import Submissions
from f7tfs.tree.wing import Look

log = logging.getLogger("f7tfs.jobs")
ERROR, STATUS, ALL = ".error", ".status", ".jobs.json"
STREAMS = ("stdout", "stderr")
UNSETTLED = {"held", "sending", "unknown"}


class Shelf:
    def __init__(
        self,
        cluster: Cluster,
        submissions: Submissions,
        board: JobBoard,
        outputs: Outputs,
        takedowns: Takedowns,
    ) -> None:
        self._cluster = cluster
        self._submissions = submissions
        self._drops = submissions.drops
        self._board = board
        self._outputs = outputs
        self._takedowns = takedowns
        self._started_ns = time.time_ns()
        self._uid, self._gid = os.getuid(), os.getgid()

    # Looks.

    def directory_look(self, permissions: int) -> Look:
        return Look(Kind.DIRECTORY, permissions, 0, self._started_ns, self._uid, self._gid, nlink=2)

    def file_look(self, size: int, mtime_ns: int, permissions: int) -> Look:
        return Look(Kind.FILE, permissions, size, mtime_ns, self._uid, self._gid, timeout=0.0)

    def _text_look(self, content: bytes) -> Look:
        return self.file_look(len(content), time.time_ns(), 0o444)

    async def look(self, parts: tuple[str, ...]) -> Look:
        """Of a name below jobs/. Raises NotFound."""
        if len(parts) == 1:
            return await self._look_at_name(parts[0])
        job = await self.job(parts[0], glance=parts[1:2] != ("status",))
        if len(parts) > 2 or parts[1] in self._takedowns.hidden(job.id):
            raise NotFound("/".join(parts))
        if parts[1] in STREAMS:
            output = await self.output(job, parts[1])
            await output.look(job)
            return self._output_look(output)
        return await self._look_at_job_file(job, parts[1])

    async def _look_at_name(self, name: str) -> Look:
        drop = self._drops.named(name)
        if drop is not None:
            return self.file_look(self._drops.script_size(drop), int(drop.created * 1e9), 0o644)
        if is_job_id(name):
            await self.job(name)
            return self.directory_look(0o555)
        return self._text_look(await self.text(name))

    async def _look_at_job_file(self, job: Job, name: str) -> Look:
        if name == "script":
            drop = self._drop_of(job)
            if drop is None and not (await self._board.with_paths(job)).script_path:
                raise NotFound(name)
            size = 0 if drop is None else self._drops.script_size(drop)
            return self.file_look(size, self._started_ns, 0o444)
        return self._text_look(self.job_text(job, name))

    def _output_look(self, output: Output | None) -> Look:
        if output is None:
            return self.file_look(0, self._started_ns, 0o444)
        return self.file_look(output.size, output.mtime_ns or self._started_ns, 0o444)

    # Lists.

    async def entries(self) -> list[tuple[str, Look]]:
        """Of jobs/ itself. Without the scheduler, what was dropped here is known all the same."""
        try:
            jobs = await self._board.jobs()
        except F7tfsError as error:
            log.warning("jobs/ shows only what this mount submitted: %s", error)
            jobs = self._board.known()
        found = []
        for drop in self._drops.shown():
            if drop.state != "refused":
                found.append(drop.name)
            if drop.state in UNSETTLED:
                found.append(f"{drop.name}{STATUS}")
            elif drop.state == "refused":
                found.append(f"{drop.name}{ERROR}")
        listed = [(name, await self._look_at_name(name)) for name in found]
        return listed + [(job_id, self.directory_look(0o555)) for job_id in jobs]

    async def files_of(self, job_id: str) -> list[tuple[str, Look]]:
        """Of a job's directory. Asks for no sizes: whoever wants them looks at each."""
        job = await self.job(job_id)
        hidden = self._takedowns.hidden(job.id)
        names = [name for name in ("status", "status.json") if name not in hidden]
        found = [(name, self._text_look(self.job_text(job, name))) for name in names]
        if self._drop_of(job) is not None or job.script_path:
            found.append(("script", await self._look_at_job_file(job, "script")))
        for name in STREAMS:
            path = path_of(job, name)
            if path:
                found.append((name, self._output_look(self._outputs.seen(remote_path(path)))))
            elif not self._board.knows_paths(job):
                found.append((name, self._output_look(None)))
        return [(name, look) for name, look in found if name not in hidden]

    # Contents.

    async def job(self, job_id: str, *, glance: bool = False) -> Job:
        """Raises NotFound. `glance`: by somebody who looks at something else."""
        jobs = self._board.glance() if glance else self._board.known()
        if not glance or job_id not in jobs:
            jobs = await self._board.jobs()
        if job_id not in jobs:
            raise NotFound(job_id)
        return jobs[job_id]

    def now(self, job: Job) -> Job:
        """What is known of it at the moment."""
        return self._board.glance().get(job.id, job)

    async def output(self, job: Job, stream: str) -> Output:
        job = await self._board.with_paths(job)
        path = path_of(job, stream)
        if not path:
            raise NotFound(stream)
        return self._outputs.of(remote_path(path))

    async def script(self, job: Job) -> bytes:
        drop = self._drop_of(job)
        if drop is not None:
            return self._drops.script(drop)
        job = await self._board.with_paths(job)
        if not job.script_path:
            raise NotFound("script")
        return await self._cluster.download(remote_path(job.script_path))

    def _drop_of(self, job: Job) -> Drop | None:
        return self._drops.of_job(array_of(job.id) or job.id)

    def job_text(self, job: Job, name: str) -> bytes:
        """Raises NotFound."""
        if name == "status":
            return text.status_text(job)
        if name == "status.json":
            return text.status_json(job)
        raise NotFound(name)

    async def text(self, name: str) -> bytes:
        """A text at the root of jobs/. Raises NotFound."""
        if name == ALL:
            jobs = await self._board.jobs()
            drops = [
                text.drop_fields(drop, self._waits_for(drop), self._candidates(drop))
                for drop in self._drops.shown()
            ]
            return text.board_json(jobs.values(), drops)
        if name.endswith(ERROR):
            refused = self._drops.refused(name.removesuffix(ERROR))
            if refused is not None:
                return text.refusal_text(refused, self._drops.script(refused))
        if name.endswith(STATUS):
            drop = self._drops.named(name.removesuffix(STATUS))
            if drop is not None and drop.state in UNSETTLED:
                if drop.state == "unknown":  # its candidates are looked for
                    with contextlib.suppress(F7tfsError):
                        await self._board.jobs()
                return text.drop_text(drop, self._waits_for(drop), self._candidates(drop))
        raise NotFound(name)

    def _waits_for(self, drop: Drop) -> list[str]:
        if drop.state != "held":
            return []
        return [str(entry.path) for entry in self._submissions.waits_for(drop)]

    def _candidates(self, drop: Drop) -> list[Job]:
        """Jobs of the name that an unknown drop's would have, newer than what was submitted before
        it, and nobody's: one of them may be it, which only the user can tell."""
        if drop.state != "unknown":
            return []
        earlier = [
            int(one.job_id)
            for one in self._drops.all()
            if one.job_id.isdigit() and one.created < drop.created
        ]
        newest = max(earlier, default=0)
        return [
            job
            for job in self._board.known().values()
            if job.name == (drop.job_name or drop.name)
            and self._drop_of(job) is None
            and job.id.isdigit()
            and int(job.id) > newest
        ]


def is_job_id(name: str) -> bool:
    """4711, or an element of an array, 92_1; such names are the scheduler's."""
    first, underscore, rest = name.partition("_")
    return first.isdecimal() and (not underscore or rest.isdecimal())


def path_of(job: Job, stream: str) -> str:
    return job.stdout_path if stream == "stdout" else job.stderr_path
