"""jobs/: the scheduler as a directory. What there is to see is `shelf`'s; here scripts are dropped,
and names removed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from f7tfs.errors import (
    Exists,
    F7tfsError,
    IsADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    PermissionDenied,
    Rejected,
    Unsupported,
)
from f7tfs.jobs import script as scripts
from f7tfs.jobs.board import JobBoard
from f7tfs.jobs.drafts import Draft, DraftHandle
from f7tfs.jobs.follow import OutputHandle, Outputs
from f7tfs.jobs.process import Deletions, holds, process_of
from f7tfs.jobs.script import Wishes
from f7tfs.jobs.shelf import ALL, ERROR, STREAMS, Shelf, is_job_id
from f7tfs.jobs.takedown import Takedowns
from f7tfs.model import Job
from f7tfs.transfers.submit import Submissions
from f7tfs.tree.nodes import Node
from f7tfs.tree.readers import Readers
from f7tfs.tree.sniffing import RefusingHandle
from f7tfs.tree.waiting import Callers, caller_pid
from f7tfs.tree.wing import Caller, Changes, Look, OpenFile, ReadOnlyText, Wing, wants_writing

PREFIX = "user.f7tfs."


class JobsWing(Wing):
    """`defaults`: what drops are submitted with where nothing else says it."""

    def __init__(
        self,
        submissions: Submissions,
        board: JobBoard,
        outputs: Outputs,
        shelf: Shelf,
        takedowns: Takedowns,
        callers: Callers,
        readers: Readers,
        *,
        mountpoint: Path,
        defaults: Wishes,
    ) -> None:
        self._submissions = submissions
        self._drops = submissions.drops
        self._board = board
        self._outputs = outputs
        self._shelf = shelf
        self._takedowns = takedowns
        self._callers = callers
        self._readers = readers
        self._path = mountpoint / "jobs"
        self._deletions = Deletions(mountpoint, self._path)
        self._defaults = defaults
        self._wishes = Wishes()  # set on jobs/ itself, until the mount ends
        self._drafts: dict[str, Draft] = {}
        self._refused_cancels: dict[str, str] = {}  # name or number → the scheduler's words
        self._turns: dict[str, trio.Lock] = {}

    # What is there.

    async def look(self, node: Node) -> Look:
        parts = node.parts()[1:] if node.parts()[:1] == ("jobs",) else ()
        if not parts:
            return self._shelf.directory_look(0o755)
        if node.is_detached:
            raise NotFound("the name is gone")
        return await self._look_of(parts)

    async def lookup(self, parent: Node, name: str) -> Look:
        return await self._look_of((*parent.parts()[1:], name))

    async def _look_of(self, parts: tuple[str, ...]) -> Look:
        draft = self._drafts.get(parts[0]) if len(parts) == 1 else None
        if draft is not None:
            return self._shelf.file_look(len(draft.content), draft.mtime_ns, draft.permissions)
        return await self._shelf.look(parts)

    async def entries(self, node: Node) -> list[tuple[str, Look]]:
        parts = node.parts()[1:]
        if len(parts) == 1:
            return await self._shelf.files_of(parts[0])
        drafts = [(name, await self._look_of((name,))) for name in list(self._drafts)]
        others = await self._shelf.entries()
        return drafts + [(name, look) for name, look in others if name not in self._drafts]

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
            drop = self._drops.named(name)
            if drop is None:
                if wants_writing(flags):
                    raise NotPermitted(f"{name} is the mount's own")
                return ReadOnlyText(await self._shelf.text(name))
            if not wants_writing(flags):
                return ReadOnlyText(self._drops.script(drop))
            draft = self._drafts[name] = Draft(name, self._drops.script(drop), 0o644)
        return DraftHandle(draft, flags, path=self._path / name, ended=self._ended)

    async def _open_job_file(self, parts: tuple[str, ...], flags: int, caller: Caller) -> OpenFile:
        if wants_writing(flags):
            raise NotPermitted("what is in a job's directory is written by the scheduler")
        job = await self._shelf.job(parts[0], glance=parts[1] in STREAMS)
        if caller.sniffs and not parts[1].startswith("status"):
            return RefusingHandle(self._readers, caller.sniffs)
        if parts[1] in STREAMS:
            output = await self._shelf.output(job, parts[1])
            await output.look(job, opening=True)
            return OutputHandle(output, lambda: self._shelf.now(job), self._callers, caller)
        if parts[1] == "script":
            return ReadOnlyText(await self._shelf.script(job))
        return ReadOnlyText(self._shelf.job_text(job, parts[1]))

    # Dropping.

    async def create(
        self, parent: Node, name: str, permissions: int, flags: int, caller: Caller
    ) -> Look:
        if len(parent.parts()) > 1:
            raise NotPermitted("no files are created in a job's directory")
        self._require_free(name)
        is_there = self._drops.named(name) is not None
        if (is_there or name in self._drafts) and flags & os.O_EXCL:
            raise Exists(name)
        if not is_there:
            self._drafts.setdefault(name, Draft(name, b"", permissions & ~caller.umask))
        return await self._look_of((name,))

    def _require_free(self, name: str) -> None:
        """A script has a name that means nothing else here."""
        if is_job_id(name) or name == ALL:
            raise NotPermitted(f"{name}: such a name is the mount's own in jobs/")

    def _turn(self, name: str) -> trio.Lock:
        """One after the other: what is submitted under a name, and its removal."""
        return self._turns.setdefault(name, trio.Lock())

    async def _ended(self, draft: Draft, closing: bool) -> None:
        """The last writer is through. Called from flush and from release; whoever comes first with
        something new submits it."""
        async with self._turn(draft.name):
            await self._submit_if_written(draft, closing=closing)

    async def _submit_if_written(self, draft: Draft, *, closing: bool) -> None:
        if draft.is_gone or not scripts.is_ordinary(draft.name):
            return  # or a name that editors use on their way
        if not draft.is_dirty or not draft.content:
            if draft.writers == 0 and self._drops.named(draft.name) is not None:
                self._drop_draft(draft)  # opened and closed without a change, or only emptied
            return
        draft.is_dirty = False
        try:
            await self._submit(draft.name, bytes(draft.content), draft.wishes, closing=closing)
        except F7tfsError:
            if closing:
                raise  # in release nobody hears of it; the record tells
        finally:
            if not draft.is_dirty:
                self._drop_draft(draft)

    async def _submit(self, name: str, content: bytes, wishes: Wishes, *, closing: bool) -> None:
        try:
            scripts.check(content)
        except Rejected as error:
            await self._submissions.refuse(name, content, error)
            raise
        prepared = scripts.prepare(content, wishes.over(self._wishes).over(self._defaults))
        await self._submissions.drop(
            name,
            prepared.content,
            job_name=prepared.name,
            account=prepared.account,
            directory=prepared.directory,
            missing=prepared.missing,
            closing=closing,
        )

    def _drop_draft(self, draft: Draft) -> None:
        draft.is_gone = True
        if self._drafts.get(draft.name) is draft:
            del self._drafts[draft.name]

    # Removing (docs/decisions/0015).

    async def unlink(self, parent: Node, name: str, node: Node | None, caller: Caller) -> None:
        if len(parent.parts()) > 1:
            await self._take_down(parent.parts()[1], name, caller)
            return
        draft = self._drafts.get(name)
        if draft is not None:
            self._drop_draft(draft)
            if self._drops.named(name) is None:
                return
        elif self._drops.named(name) is None:
            await self._unlink_own(name, caller.pid)
            return
        self._require_named(name, caller.pid)
        async with self._callers.turn(self._turn(name)):
            await self._cancel_named(name)

    async def _unlink_own(self, name: str, pid: int) -> None:
        """A complaint goes when it is named: it may hold the only copy of the script. What tells of
        a drop's state goes with that."""
        refused = self._drops.refused(name.removesuffix(ERROR)) if name.endswith(ERROR) else None
        if refused is None:
            await self._shelf.text(name)  # NotFound
            raise NotPermitted(f"{name} is the mount's own")
        self._require_named(name, pid)
        await self._drops.forget(refused)

    def _require_named(self, name: str, pid: int) -> None:
        why = self._deletions.walks(pid)
        if why:
            raise NotPermitted(f"{name}: {why}; name it alone")

    async def _cancel_named(self, name: str) -> None:
        drop = self._drops.named(name)
        if drop is None:
            raise NotFound(name)
        known = self._board.known().get(drop.job_id)
        try:
            job_id = await self._submissions.remove(
                name, is_over=known is not None and known.state.is_over
            )
        except F7tfsError as error:
            raise self._refusal(name, error) from None
        self._refused_cancels.pop(name, None)
        if job_id is not None:
            self._board.cancelled(job_id)

    def _refusal(self, name: str, error: F7tfsError) -> F7tfsError:
        """The scheduler's words are kept for `user.f7tfs.error`."""
        if isinstance(error, PermissionDenied | Unsupported):
            self._refused_cancels[name] = str(error)
        return error

    async def _take_down(self, job_id: str, name: str, caller: Caller) -> None:
        """A file of a job's directory goes, if that is what somebody is removing as a whole."""
        self._require_named(f"{job_id}/{name}", caller.pid)
        if not holds(caller.pid, self._path / job_id):
            raise NotPermitted("what is in a job's directory is the scheduler's")
        await self._shelf.job(job_id)
        self._takedowns.hide(job_id, name, process_of(caller.pid))

    async def rmdir(self, parent: Node, name: str) -> None:
        job = await self._shelf.job(name)
        pid = caller_pid.get()
        self._require_named(name, pid)
        if not self._takedowns.is_by(name, process_of(pid)):
            raise NotEmpty(f"{name}: rm -r removes a job's directory, and cancels the job")
        try:
            await self._cancel(job)
        except F7tfsError as error:
            raise self._refusal(name, error) from None
        finally:
            self._takedowns.end(name)
        await self._drops.dismiss(name)

    async def _cancel(self, job: Job) -> None:
        if job.state.is_over:
            return
        await self._submissions.cancel(job.id)
        self._board.cancelled(job.id)

    # Renaming.

    async def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, *, replace: bool
    ) -> None:
        if len(parent.parts()) > 1 or len(new_parent.parts()) > 1:
            raise NotPermitted("job directories are the scheduler's")
        self._require_free(new_name)
        if not replace and (new_name in self._drafts or self._drops.named(new_name) is not None):
            raise Exists(new_name)
        draft = self._drafts.get(name)
        if draft is None:
            drop = self._drops.named(name)
            if drop is None:
                await self._look_of((name,))  # NotFound, or what is the scheduler's
                raise NotPermitted(f"{name} is the scheduler's")
            if scripts.is_ordinary(new_name):
                raise NotPermitted("the name of a dropped script is the name of its job here")
            # An editor's backup: a copy under the new name; the job stays what it is.
            self._drafts[new_name] = Draft(new_name, self._drops.script(drop), 0o644)
            return
        del self._drafts[name]
        draft.name = new_name
        self._drafts[new_name] = draft
        if draft.writers == 0:
            draft.is_dirty = draft.is_dirty or bool(draft.content)
            await self._ended(draft, True)

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
        parts = node.parts()[1:] if node.parts()[:1] == ("jobs",) else ()
        if not parts:
            return _shown(self._wishes.over(self._defaults))
        draft = self._drafts.get(parts[0]) if len(parts) == 1 else None
        if draft is not None:
            return _shown(draft.wishes)
        found: dict[str, str] = {}
        drop = self._drops.named(parts[0]) if len(parts) == 1 else None
        if drop is None and len(parts) == 1 and parts[0].endswith(ERROR):
            drop = self._drops.refused(parts[0].removesuffix(ERROR))
        if drop is not None:
            found[PREFIX + "state"] = drop.state
            if drop.job_id:
                found[PREFIX + "job_id"] = drop.job_id
            if drop.error:
                found[PREFIX + "error"] = drop.error
        if len(parts) == 1 and parts[0] in self._refused_cancels:
            found[PREFIX + "error"] = self._refused_cancels[parts[0]]
        return found

    async def set_attribute(self, node: Node, name: str, value: str) -> None:
        """What drops are submitted with: on jobs/ for all that come, on one that is being written
        for that one. "" takes it back."""
        parts = node.parts()[1:] if node.parts()[:1] == ("jobs",) else ()
        key = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or key not in scripts.OPTIONS:
            await super().set_attribute(node, name, value)
        draft = self._drafts.get(parts[0]) if len(parts) == 1 else None
        if not parts:
            self._wishes = self._wishes.with_one(key, value)
        elif draft is not None:
            draft.wishes = draft.wishes.with_one(key, value)
        else:
            raise NotPermitted(f"{'/'.join(parts)} is submitted, or no script")

    def close(self) -> None:
        self._outputs.close()


def _shown(wishes: Wishes) -> dict[str, str]:
    return {PREFIX + key: value for key, value in msgspec.structs.asdict(wishes).items() if value}
