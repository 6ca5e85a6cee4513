"""jobs/: the scheduler as a directory.

jobs/NAME          a script dropped here; it stays readable, and rm cancels its job
jobs/NAME.error    why the last drop of that name was refused
jobs/ID/           status, status.json, script, stdout, stderr of a job
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import trio

from f7tfs.api.port import Cluster
from f7tfs.catalog import Catalog
from f7tfs.errors import (
    Exists,
    F7tfsError,
    IsADirectory,
    NotFound,
    NotPermitted,
)
from f7tfs.jobs import script as scripts
from f7tfs.jobs.board import JobBoard
from f7tfs.jobs.drafts import Draft, DraftHandle, walks
from f7tfs.jobs.follow import Output, OutputHandle
from f7tfs.jobs.text import status_json, status_text
from f7tfs.model import Job, Kind, remote_path
from f7tfs.transfers.download import Downloads
from f7tfs.transfers.submit import Drop, Submissions
from f7tfs.tree.nodes import Node
from f7tfs.tree.readers import Readers
from f7tfs.tree.sniffing import RefusingHandle
from f7tfs.tree.waiting import Callers
from f7tfs.tree.wing import Caller, Changes, Look, OpenFile, ReadOnlyText, Wing, wants_writing

log = logging.getLogger("f7tfs.jobs")
ERROR = ".error"
JOB_FILES = ("status", "status.json", "script", "stdout", "stderr")


class JobsWing(Wing):
    def __init__(
        self,
        cluster: Cluster,
        catalog: Catalog,
        downloads: Downloads,
        submissions: Submissions,
        board: JobBoard,
        callers: Callers,
        readers: Readers,
        *,
        mountpoint: Path,
        directory: str,
        partition: str | None,
        interval: float,
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._downloads = downloads
        self._submissions = submissions
        self._board = board
        self._callers = callers
        self._readers = readers
        self._path = mountpoint / "jobs"
        self._directory = directory
        self._partition = partition
        self._interval = interval
        self._drafts: dict[str, Draft] = {}
        self._outputs: dict[str, Output] = {}
        self._errors: dict[str, str] = {}  # refused before anything was journaled
        self._turns: dict[str, trio.Lock] = {}
        self._started_ns = time.time_ns()
        self._uid, self._gid = os.getuid(), os.getgid()

    # What is there.

    async def look(self, node: Node) -> Look:
        parts = node.parts()[1:] if node.parts()[:1] == ("jobs",) else ()
        if not parts:
            return self._directory_look(0o755)
        if node.is_detached:
            raise NotFound("the name is gone")
        return await self._look_of(parts)

    async def lookup(self, parent: Node, name: str) -> Look:
        return await self._look_of((*parent.parts()[1:], name))

    async def _look_of(self, parts: tuple[str, ...]) -> Look:
        if len(parts) == 1:
            return await self._look_at_root(parts[0])
        job = await self._job(parts[0])
        if len(parts) > 2 or parts[1] not in self._files_of(job):
            raise NotFound("/".join(parts))
        if parts[1] in {"stdout", "stderr"}:
            output = self._output(job, parts[1])
            await output.look()
            return self._text_look(output.size, output.mtime_ns or self._started_ns)
        if parts[1] == "script":
            drop = self._submissions.of_job(job.id)
            size = len(self._submissions.script(drop)) if drop is not None else 0
            return self._text_look(size, self._started_ns)
        return self._text_look(len(self._text(job, parts[1])), time.time_ns())

    async def _look_at_root(self, name: str) -> Look:
        draft = self._drafts.get(name)
        if draft is not None:
            return self._file_look(len(draft.content), draft.mtime_ns, draft.permissions)
        drop = self._submissions.named(name)
        if drop is not None and drop.state != "refused":
            size = len(self._submissions.script(drop))
            return self._file_look(size, int(drop.created * 1e9), 0o644)
        if name.endswith(ERROR) and (reason := self._reason(name.removesuffix(ERROR))):
            return self._text_look(len(reason.encode()) + 1, self._started_ns)
        if name.isdigit() or "_" in name:
            await self._job(name)
            return self._directory_look(0o555)
        raise NotFound(name)

    def _reason(self, name: str) -> str | None:
        """Why the last drop of a name was refused."""
        drop = self._submissions.named(name)
        if drop is not None and drop.state == "refused":
            return drop.error
        return self._errors.get(name)

    async def _job(self, job_id: str) -> Job:
        job = (await self._board.jobs()).get(job_id)
        if job is None:
            raise NotFound(job_id)
        return job

    def _files_of(self, job: Job) -> list[str]:
        missing = set()
        if not job.stdout_path:
            missing.add("stdout")
        if not job.stderr_path:
            missing.add("stderr")
        if not job.script_path and self._submissions.of_job(job.id) is None:
            missing.add("script")
        return [name for name in JOB_FILES if name not in missing]

    def _text(self, job: Job, name: str) -> bytes:
        return status_json(job) if name == "status.json" else status_text(job)

    def _directory_look(self, permissions: int) -> Look:
        return Look(Kind.DIRECTORY, permissions, 0, self._started_ns, self._uid, self._gid, nlink=2)

    def _file_look(self, size: int, mtime_ns: int, permissions: int) -> Look:
        return Look(Kind.FILE, permissions, size, mtime_ns, self._uid, self._gid, timeout=0.0)

    def _text_look(self, size: int, mtime_ns: int) -> Look:
        return self._file_look(size, mtime_ns, 0o444)

    async def entries(self, node: Node) -> list[tuple[str, Look]]:
        parts = node.parts()[1:]
        if len(parts) == 1:
            job = await self._job(parts[0])
            return [(name, await self._look_of((*parts, name))) for name in self._files_of(job)]
        names = [*self._drafts, *(f"{name}{ERROR}" for name in self._errors)]
        for drop in self._submissions.all():
            names.append(f"{drop.name}{ERROR}" if drop.state == "refused" else drop.name)
        found = [(name, await self._look_at_root(name)) for name in dict.fromkeys(names)]
        try:
            jobs = await self._board.jobs()
        except F7tfsError as error:  # the names that were dropped here are known all the same
            log.warning("jobs/ shows only what this mount submitted: %s", error)
            jobs = self._board.known()
        return found + [(job_id, self._directory_look(0o555)) for job_id in jobs]

    # Opening.

    async def open(self, node: Node, flags: int, caller: Caller) -> OpenFile:
        parts = node.parts()[1:]
        if not parts:
            raise IsADirectory("jobs")
        if len(parts) == 2:
            return await self._open_job_file(parts, flags, caller)
        name = parts[0]
        draft = self._drafts.get(name)
        if draft is None:
            if name.endswith(ERROR) and (reason := self._reason(name.removesuffix(ERROR))):
                return ReadOnlyText(reason.encode() + b"\n")
            drop = self._submissions.named(name)
            if drop is None:
                raise NotFound(name)
            if not wants_writing(flags):
                return ReadOnlyText(self._submissions.script(drop))
            draft = self._drafts[name] = Draft(name, self._submissions.script(drop), 0o644)
        return DraftHandle(draft, flags, path=self._path / name, ended=self._ended)

    async def _open_job_file(self, parts: tuple[str, ...], flags: int, caller: Caller) -> OpenFile:
        if wants_writing(flags):
            raise NotPermitted("what is in a job's directory is written by the scheduler")
        job = await self._job(parts[0])
        if parts[1] not in self._files_of(job):
            raise NotFound(parts[1])
        if caller.sniffs and not parts[1].startswith("status"):
            return RefusingHandle(self._readers, caller.sniffs)
        if parts[1] in {"stdout", "stderr"}:
            return OutputHandle(self._output(job, parts[1]), self._callers, caller)
        if parts[1] == "script":
            drop = self._submissions.of_job(job.id)
            if drop is not None:
                return ReadOnlyText(self._submissions.script(drop))
            return ReadOnlyText(await self._cluster.download(remote_path(job.script_path)))
        return ReadOnlyText(self._text(job, parts[1]))

    def _output(self, job: Job, stream: str) -> Output:
        path = remote_path(job.stdout_path if stream == "stdout" else job.stderr_path)
        if path not in self._outputs:
            self._outputs[path] = Output(
                self._cluster, self._catalog, self._downloads, path, interval=self._interval
            )
        return self._outputs[path]

    # Dropping.

    async def create(
        self, parent: Node, name: str, permissions: int, flags: int, caller: Caller
    ) -> Look:
        if len(parent.parts()) > 1:
            raise NotPermitted("no files are created in a job's directory")
        drop = self._submissions.named(name)
        is_there = drop is not None and drop.state != "refused"
        if (is_there or name in self._drafts) and flags & os.O_EXCL:
            raise Exists(name)
        if is_there:
            return await self._look_at_root(name)
        self._drafts.setdefault(name, Draft(name, b"", permissions & ~caller.umask))
        return await self._look_at_root(name)

    async def _ended(self, draft: Draft) -> None:
        """The last writer is through. Called from flush and from release; whoever comes first with
        something new submits it."""
        turn = self._turns.setdefault(draft.name, trio.Lock())
        async with turn:
            await self._submit_if_written(draft)

    async def _submit_if_written(self, draft: Draft) -> None:
        if draft.is_gone:
            return
        if not draft.is_dirty:
            if draft.writers == 0 and self._submissions.named(draft.name) is not None:
                self._drop_draft(draft)  # opened and closed without a change
            return
        if not draft.content or not scripts.is_ordinary(draft.name):
            return  # a touch, or a name that editors use on their way
        draft.is_dirty = False
        content = bytes(draft.content)
        self._errors.pop(draft.name, None)
        try:
            scripts.check(content)
            whole = scripts.with_defaults(
                content, directory=self._directory, partition=self._partition
            )
            await self._submissions.drop(draft.name, whole)
        except F7tfsError as error:
            if self._submissions.named(draft.name) is None:
                self._errors[draft.name] = str(error)
            raise
        finally:
            if not draft.is_dirty:
                self._drop_draft(draft)

    def _drop_draft(self, draft: Draft) -> None:
        draft.is_gone = True
        if self._drafts.get(draft.name) is draft:
            del self._drafts[draft.name]

    # Names.

    async def unlink(self, parent: Node, name: str, node: Node | None, caller: Caller) -> None:
        if len(parent.parts()) > 1:
            raise NotPermitted("what is in a job's directory is the scheduler's")
        draft = self._drafts.get(name)
        if draft is not None:
            self._drop_draft(draft)
            if self._submissions.named(name) is None:
                return
        if name.endswith(ERROR) and self._reason(name.removesuffix(ERROR)) is not None:
            dropped = name.removesuffix(ERROR)
            self._errors.pop(dropped, None)
            with contextlib.suppress(NotFound):
                await self._submissions.remove(dropped)
            return
        if self._submissions.named(name) is None:
            raise NotFound(name)
        if walks(caller.pid, self._path):
            raise NotPermitted(f"{name}: a walk through jobs/ cancels nothing; name the script")
        known = self._board.known()
        job_id = await self._submissions.remove(name)
        if job_id is not None:
            self._board.cancelled(known[job_id])

    async def rmdir(self, parent: Node, name: str) -> None:
        raise NotPermitted("a job is cancelled by removing the script that was dropped")

    async def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, *, replace: bool
    ) -> None:
        if len(parent.parts()) > 1 or len(new_parent.parts()) > 1:
            raise NotPermitted("job directories are the scheduler's")
        if not replace and (
            new_name in self._drafts or self._submissions.named(new_name) is not None
        ):
            raise Exists(new_name)
        draft = self._drafts.get(name)
        if draft is None:
            drop = self._submissions.named(name)
            if drop is None:
                await self._look_at_root(name)  # NotFound, or what is the scheduler's
                raise NotPermitted(f"{name} is the scheduler's")
            if scripts.is_ordinary(new_name):
                raise NotPermitted("the name of a dropped script is the name of its job here")
            # An editor's backup: a copy under the new name; the job stays what it is.
            self._drafts[new_name] = Draft(new_name, self._submissions.script(drop), 0o644)
            return
        del self._drafts[name]
        draft.name = new_name
        self._drafts[new_name] = draft
        if draft.writers == 0:
            draft.is_dirty = draft.is_dirty or bool(draft.content)
            await self._ended(draft)

    def refuse_leaving(self, other: Wing) -> Exception:
        """EXDEV would make mv copy and then unlink, and the unlink would cancel the job."""
        return NotPermitted("what is in jobs/ cannot be moved out of it")

    # Attributes.

    async def change(self, node: Node, changes: Changes, handle: OpenFile | None) -> Look:
        """chmod and utimens on a dropped name succeed: file managers do that after the copy."""
        parts = node.parts()[1:]
        if len(parts) != 1:
            raise NotPermitted("the scheduler's files have fixed attributes")
        draft = self._drafts.get(parts[0])
        if changes.size is not None:
            if isinstance(handle, DraftHandle):
                await handle.truncate(changes.size)
            elif draft is not None:
                draft.truncate(changes.size)
            else:
                raise NotPermitted("open the script to write it anew")
        if draft is not None and changes.permissions is not None:
            draft.permissions = changes.permissions
        return await self.look(node)

    async def attributes(self, node: Node) -> Mapping[str, str]:
        parts = node.parts()[1:]
        drop: Drop | None = self._submissions.named(parts[0]) if len(parts) == 1 else None
        if drop is None:
            return {}
        found: dict[str, str] = {"user.f7tfs.state": drop.state}
        if drop.job_id:
            found["user.f7tfs.job_id"] = drop.job_id
        if drop.error:
            found["user.f7tfs.error"] = drop.error
        return found

    def close(self) -> None:
        for output in self._outputs.values():
            output.close()
