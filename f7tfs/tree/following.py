"""What follows a rename on the cluster: everything here that is known by the old name.

Also where its outcome was lost: then it is found out, by the running daemon or by the next one,
and until then nothing new begins at these names (docs/decisions/0007).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping

import trio

from f7tfs.content.journal import Journal, RenameRecord
from f7tfs.content.spool import SpoolEntry, State
from f7tfs.content.times import Times
from f7tfs.errors import (
    Busy,
    F7tfsError,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotPermitted,
    PermissionDenied,
)
from f7tfs.faultpoints import reached
from f7tfs.model import Fingerprint, RemotePath, Stat, is_within
from f7tfs.transfers.namespace import conflict_name
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.renames import Renames
from f7tfs.transfers.workplace import Workplace
from f7tfs.tree.handles import Floors
from f7tfs.tree.openfiles import OpenFiles
from f7tfs.tree.overlay import Overlay
from f7tfs.tree.waiting import caller_pid

log = logging.getLogger("f7tfs.tree")
PATIENCE = 10.0  # seconds to wait until it is known what became of an earlier rename
LONGEST_PAUSE = 60.0  # seconds between two tries to find out
TRIES = 10  # that fail for a reason which does not pass by itself


class Following:
    def __init__(
        self,
        overlay: Overlay,
        renames: Renames,
        removals: Removals,
        times: Times,
        floors: Floors,
        workplace: Workplace,
        journal: Journal,
        open_files: OpenFiles,
    ) -> None:
        self._overlay = overlay
        self._renames = renames
        self._removals = removals
        self._times = times
        self._floors = floors
        self._workplace = workplace
        self._journal = journal
        self._open = open_files

    async def displace(self, entry: SpoolEntry, path: RemotePath) -> Fingerprint | None:
        """A name of a dirty file is gone, or another's from now on: the file lives on under its
        other names, or ends. Returns what the cluster was known to have under the name. The caller
        holds the entry's turn."""
        uploads, base = self._floors.uploads, None
        if path == entry.path:
            base, entry.base = entry.base, None
        if not entry.links:
            await uploads.discard(entry)
            return base
        self._floors.spool.drop_name(entry, path)
        await self.renamed(entry)
        return base

    async def renamed(self, entry: SpoolEntry, *, itself: bool = True, must: bool = False) -> None:
        """The names of a dirty file changed. It is held while all of them are temporary ones; an
        ordinary one is published first. `itself`: not only a directory above it."""
        spool = self._floors.spool
        if itself:
            ordinary = [name for name in entry.names if not self._overlay.is_temporary(name)]
            if entry.base is None and ordinary and entry.path not in ordinary:
                spool.lead(entry, ordinary[0])
            entry.hold = not ordinary
        if must or entry.state is not State.OPEN or entry.journaled or entry.replaced:
            await spool.commit(entry)
            self._journal.once_durable(lambda: reached("rename.recorded"))
        self._floors.uploads.renamed(entry)

    async def require_known(self, path: RemotePath) -> None:
        """Before something is made, removed or renamed at a name. Raises Busy where it is not known
        what became of an earlier rename that concerns it."""
        await self.in_time(lambda: not self._renames.is_lost(path), path)

    async def in_time(self, is_known: Callable[[], bool], path: RemotePath) -> None:
        if is_known():
            return
        with self._floors.callers.interruptible(), trio.move_on_after(PATIENCE) as waited:
            while not is_known():
                await self._renames.one_more_settled()
        if waited.cancelled_caught:
            raise Busy(f"it is not known yet what became of an earlier rename of {path}")

    async def rename(
        self,
        source: RemotePath,
        target: RemotePath,
        replaced: SpoolEntry | None,
        *,
        replace: bool,
    ) -> None:
        """The name exists on the cluster: it changes there, and dirty files below go along."""
        spool, uploads = self._floors.spool, self._floors.uploads
        known = await self._overlay.remote(source)
        is_directory = known is not None and known.is_directory
        if [name for name, _ in spool.names_within(target) if name != target]:
            raise NotEmpty(target) if is_directory else IsADirectory(target)
        if replaced is not None and is_directory:
            raise NotADirectory(target)
        below = spool.within(source)
        is_buried = self._removals.hides(target) or any(self._removals.within(source))
        followers = bool(below) or replaced is not None or is_buried
        held = {one: one.version for one in [*below, *([replaced] if replaced else [])]}
        for entry in held:
            entry.is_moving = True
        has_begun = False
        try:
            async with self._floors.callers.turn(self._removals.steady()):
                begun = await self._renames.begin(
                    source,
                    target,
                    replace=replace,
                    buried=self._removals.fingerprint(target),
                    followers=followers,
                    replaced=replaced.id if replaced is not None else "",
                )
            if begun is None:
                return
            has_begun = True
            after = await self._renames.carry_out(begun, self._floors.callers.interruptible)
            reached("rename.moved")
            async with self._journal.together():
                await self._follow(source, target, replaced, after)
                await self._renames.followed(source)
        finally:
            record = self._renames.lose(source) if has_begun else None
            if record is None:
                self._go_on(held)
            else:
                log.warning("it is not known whether %s was renamed; it is found out", source)
                uploads.later(self._settle_later, record, held)

    def _go_on(self, entries: Iterable[SpoolEntry]) -> None:
        for entry in entries:
            entry.is_moving = False
        self._floors.uploads.hurry(())  # what became due meanwhile

    async def _follow(
        self,
        source: RemotePath,
        target: RemotePath,
        replaced: SpoolEntry | None,
        after: Stat,
    ) -> None:
        """The cluster has renamed it: everything here that is known by the old name."""
        spool, uploads = self._floors.spool, self._floors.uploads
        await self._removals.exhume(target)  # what was buried there is replaced
        await self._removals.retarget(source, target)
        if replaced is not None:
            await self.displace(replaced, target)
        for entry in spool.within(source):
            if entry.temporary is not None and is_within(entry.temporary, source):
                # The temporary moved with its directory; what is under way goes to the old place.
                entry.version += 1
                old, entry.temporary = entry.temporary, None
                entry.ticket, entry.form_sent = None, False
                new = RemotePath(target + old[len(source) :])
                uploads.later(self._workplace.litter_moved, old, new)
            for name in entry.names:
                if is_within(name, source):
                    spool.retarget(entry, RemotePath(target + name[len(source) :]), name)
            await self.renamed(entry, itself=entry.path == target)
        self._floors.cache.rename(source, target)
        self._floors.cache.touch(target, after.fingerprint)
        await self._times.rename(source, target)
        self._open.renamed(source, target)

    async def resume(self) -> None:
        """Renames during which an earlier daemon ended: what went through on the cluster goes
        through here. Before any upload. Raises what keeps the cluster from being asked: uploads
        and removals would go to names that may be others' by now."""
        for record in self._renames.unsettled():
            try:
                await self._settle(record)
            except (PermissionDenied, NotADirectory, NotPermitted) as error:
                log.warning("it is not known whether %s was renamed: %s", record.source, error)
                await self._renames.followed(RemotePath(record.source))

    async def _settle_later(self, record: RenameRecord, held: dict[SpoolEntry, int]) -> None:
        caller_pid.set(0)  # whoever asked for it has its answer
        pause, tries = 1.0, 0
        while tries < TRIES:
            try:
                await self._settle(record, held)
                break
            except (F7tfsError, OSError) as error:
                log.info("it is not known yet whether %s was renamed: %s", record.source, error)
                tries += not isinstance(error, OSError) and not error.transient
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            log.error("it cannot be found out whether %s was renamed", record.source)
            await self._renames.followed(RemotePath(record.source))
        self._go_on(held)

    async def _settle(
        self, record: RenameRecord, held: Mapping[SpoolEntry, int] | None = None
    ) -> None:
        """Find out what became of a rename, and follow it; again and again, until the journal has
        it. `held`: what was dirty there when it began, and in which version."""
        source, target = RemotePath(record.source), RemotePath(record.target)
        spool = self._floors.spool
        async with contextlib.AsyncExitStack() as turns:
            below = {*spool.within(source), *spool.within(target), *(held or ())}
            for entry in sorted(below, key=lambda one: one.path):
                await turns.enter_async_context(entry.turn)
            after = await self._renames.finish(record)
            async with self._journal.together():
                if after is not None:
                    log.info("%s was renamed to %s after all", source, target)
                    replaced = await self._replaced(record, held)
                    await self._follow(source, target, replaced, after)
                    for entry in spool.within(target):  # which the journal did not take before
                        if entry.journaled:
                            await spool.commit(entry)
                await self._renames.followed(source)

    async def _replaced(
        self, record: RenameRecord, held: Mapping[SpoolEntry, int] | None
    ) -> SpoolEntry | None:
        """The dirty file that the rename replaced. What was written to the target since then stays,
        beside its name."""
        source, target = RemotePath(record.source), RemotePath(record.target)
        entry, moved = self._floors.spool.at(target), self._floors.spool.at(source)
        if entry is None:
            return None
        if entry.id == record.replaced:
            if held is not None:
                is_written = held.get(entry) != entry.version
            else:
                is_written = entry.mtime_ns > record.since * 1e9
            if not is_written:
                return entry
        elif moved is None:
            return None  # it is the one that moved, or was opened after it
        beside = conflict_name(target, self._floors.hostname)
        log.warning("%s was written after it was replaced; that is %s", target, beside)
        self._floors.spool.retarget(entry, beside, target)
        entry.base = None
        await self.renamed(entry)
        return None
