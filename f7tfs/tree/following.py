"""What follows a rename on the cluster: everything here that is known by the old name.

Also where its outcome was lost: then it is found out, by the running daemon or by the next one,
and until then nothing new begins at these names (docs/decisions/0007).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

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
from f7tfs.transfers.unsettled import Unsettled
from f7tfs.transfers.workplace import Workplace
from f7tfs.tree.handles import Floors
from f7tfs.tree.openfiles import OpenFiles
from f7tfs.tree.overlay import Overlay
from f7tfs.tree.waiting import caller_pid

log = logging.getLogger("f7tfs.tree")
PATIENCE = 10.0  # seconds to wait until it is known what became of an earlier rename
LONGEST_PAUSE = 60.0  # seconds between two tries to find out
HOPELESS = (PermissionDenied, NotADirectory, NotPermitted)  # it does not pass by itself
TRIES = 10  # that fail so
TICK = 0.01  # seconds that the times of local files may lag behind the clock


class Following:
    def __init__(
        self,
        overlay: Overlay,
        renames: Renames,
        unsettled: Unsettled,
        removals: Removals,
        times: Times,
        floors: Floors,
        workplace: Workplace,
        journal: Journal,
        open_files: OpenFiles,
    ) -> None:
        self._overlay = overlay
        self._renames = renames
        self._unsettled = unsettled
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
        await self._in_time(lambda: not self._unsettled.is_lost(path), path)

    async def require_settled(self, source: RemotePath, target: RemotePath) -> None:
        """Before a rename: Busy also where another one of these names takes long."""
        await self._in_time(lambda: self._unsettled.is_settled(source, target), source)

    async def _in_time(self, is_known: Callable[[], bool], path: RemotePath) -> None:
        if is_known():
            return
        with self._floors.callers.interruptible(), trio.move_on_after(PATIENCE) as waited:
            while not is_known():
                await self._unsettled.change.wait()
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
        version = replaced.version if replaced is not None else 0
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
                await self._unsettled.end(source)
        finally:
            if has_begun and not self._unsettled.is_settled(source):
                record = self._unsettled.lose(source)
                log.warning("it is not known whether %s was renamed; it is found out", source)
                uploads.later(self._settle_later, record, version)
            uploads.hurry(())  # what became due meanwhile

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
                    new = RemotePath(target + name[len(source) :])
                    await self._put_aside(new)  # opened there since the outcome was lost
                    spool.retarget(entry, new, name)
            await self.renamed(entry, itself=entry.path == target)
        self._floors.cache.rename(source, target)
        self._floors.cache.touch(target, after.fingerprint)
        await self._times.rename(source, target)
        self._open.renamed(source, target)

    async def resume(self) -> None:
        """Renames during which an earlier daemon ended: what went through on the cluster goes
        through here. Before any upload. Raises what keeps the cluster from being asked: uploads
        and removals would go to names that may be others' by now."""
        for record in self._unsettled:
            try:
                await self._settle(record)
            except HOPELESS as error:
                log.warning("it is not known whether %s was renamed: %s", record.source, error)
                await self._unsettled.end(RemotePath(record.source))

    async def _settle_later(self, record: RenameRecord, version: int) -> None:
        """`version`: of the dirty file that was replaced."""
        caller_pid.set(0)  # whoever asked for it has its answer
        source, pause, tries = RemotePath(record.source), 1.0, 0
        while tries < TRIES:
            try:
                await self._unsettled.keep(record)
                await self._settle(record, version)
                break
            except HOPELESS as error:
                log.info("it is not known whether %s was renamed: %s", source, error)
                tries += 1
            except (F7tfsError, OSError) as error:
                log.info("it is not known yet whether %s was renamed: %s", source, error)
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            log.error("it cannot be found out whether %s was renamed", source)
            await self._unsettled.end(source)
        self._floors.uploads.hurry(())

    async def _settle(self, record: RenameRecord, version: int | None = None) -> None:
        """Find out what became of a rename, and follow it; again and again, until the journal has
        it. `version`: of the dirty file that it replaced, None where that is not known."""
        source, target = RemotePath(record.source), RemotePath(record.target)
        spool = self._floors.spool
        async with contextlib.AsyncExitStack() as turns:
            below = {*spool.within(source), *spool.within(target)}
            for entry in sorted(below, key=lambda one: one.path):
                await turns.enter_async_context(entry.turn)
            after = await self._renames.finish(record)
            async with self._journal.together():
                if after is not None:
                    log.info("%s was renamed to %s after all", source, target)
                    await self._follow(source, target, await self._replaced(record, version), after)
                    for entry in spool.within(target):  # which the journal did not take before
                        if entry.journaled:
                            await spool.commit(entry)
                await self._unsettled.end(source)

    async def _replaced(self, record: RenameRecord, version: int | None) -> SpoolEntry | None:
        """The dirty file that the rename replaced, as it was then. One that was written to since
        stays, beside its name."""
        target = RemotePath(record.target)
        entry = self._floors.spool.at(target)
        if entry is None or entry.id != record.replaced:
            return None
        if version is None:  # not its own time, which anybody can set
            is_written = os.fstat(entry.fd).st_mtime_ns > (record.since - TICK) * 1e9
        else:
            is_written = version != entry.version
        if not is_written:
            return entry
        await self._put_aside(target)
        return None

    async def _put_aside(self, path: RemotePath) -> None:
        """What is dirty at a name that belongs to another file now goes beside it."""
        entry = self._floors.spool.at(path)
        if entry is None:
            return
        beside = conflict_name(path, self._floors.hostname)
        log.warning("%s was written after it was replaced; that is %s", path, beside)
        self._floors.spool.retarget(entry, beside, path)
        entry.base = None
        await self.renamed(entry)
