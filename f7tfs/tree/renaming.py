"""Unlink, rmdir and rename where the spool lies over the cluster.

What exists only in the spool changes locally; what exists on the cluster changes there first.
The entry's turn is held while a name changes meaning, so that no upload publishes in between.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Iterable, Mapping

import trio

from f7tfs.content.journal import Journal, RenameRecord
from f7tfs.content.spool import SpoolEntry, State
from f7tfs.content.times import Times
from f7tfs.errors import (
    Busy,
    Exists,
    F7tfsError,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    PermissionDenied,
)
from f7tfs.faultpoints import reached
from f7tfs.model import Fingerprint, Identity, RemotePath, Stat, is_within
from f7tfs.transfers.aliases import Aliases, is_backup, is_plain
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


class Renaming:
    def __init__(
        self,
        overlay: Overlay,
        renames: Renames,
        removals: Removals,
        aliases: Aliases,
        times: Times,
        floors: Floors,
        workplace: Workplace,
        journal: Journal,
        identity: Identity,
        open_files: OpenFiles,
    ) -> None:
        self._identity = identity
        self._open = open_files
        self._overlay = overlay
        self._renames = renames
        self._removals = removals
        self._aliases = aliases
        self._times = times
        self._floors = floors
        self._workplace = workplace
        self._journal = journal

    async def unlink(self, path: RemotePath) -> None:
        entry = self._floors.spool.at(path)
        if entry is None and self._aliases.at(path) is not None:
            await self._unlink_alias(path)
            return
        if entry is None:
            await self._unlink_remote(path)
            return
        async with self._floors.callers.turn(entry.turn):
            if entry.is_gone:  # published while we waited
                await self._unlink_remote(path)
                return
            await self._floors.uploads.recognise(entry)
            if (
                entry.base is not None
                and path == entry.path
                and not self._aliases.hides(path)  # else what is there is the backup's content
            ):
                with contextlib.suppress(NotFound):  # already gone on the cluster
                    await self._removals.remove_file(path, besides=entry)
            await self._displace(entry, path)
        await self._forget(path)

    async def _displace(self, entry: SpoolEntry, path: RemotePath) -> Fingerprint | None:
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
        await self._renamed(entry)
        return base

    async def _renamed(self, entry: SpoolEntry, *, itself: bool = True, must: bool = False) -> None:
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

    async def link(self, source: RemotePath, target: RemotePath) -> SpoolEntry | None:
        """link(2) of a dirty file: local until it is published (docs/decisions/0014). None if it
        is a clean one. Raises Exists, and NotPermitted where links are known to be refused."""
        spool = self._floors.spool
        entry = spool.at(source)
        if entry is None:
            return None
        await self._renames.require_names(target)
        async with self._floors.callers.turn(entry.turn):
            if spool.at(source) is not entry:
                return None  # published while we waited
            if spool.at(target) is not None or await self._overlay.remote(target) is not None:
                raise Exists(target)
            await self._floors.uploads.recognise(entry)
            if spool.at(source) is not entry or spool.at(target) is not None:
                raise Exists(target)
            self._renames.require_links(source, target)
            spool.add_name(entry, target)
            await self._renamed(entry)
            return entry

    async def _unlink_alias(self, path: RemotePath) -> None:
        """A backup that the cluster never saw. Without a new file in its place, it is the file
        itself that is removed."""
        alias = self._aliases.at(path)
        if alias is None:  # carried out meanwhile
            await self._unlink_remote(path)
            return
        source = RemotePath(alias.source)
        entry = self._floors.spool.at(source)
        async with contextlib.AsyncExitStack() as turns:
            if entry is not None:
                await turns.enter_async_context(self._floors.callers.turn(entry.turn))
            await turns.enter_async_context(self._floors.callers.turn(self._aliases.steady()))
            if self._aliases.at(path) is alias and self._floors.spool.at(source) is entry:
                if entry is None:
                    with contextlib.suppress(NotFound):
                        await self._removals.remove_file(source)
                    await self._forget(source)
                await self._aliases.drop(alias)
                return
        await self._unlink_alias(path)

    async def _unlink_remote(self, path: RemotePath) -> None:
        attributes = await self._overlay.remote(path)
        if attributes is None:
            raise NotFound(path)
        if attributes.is_directory:
            raise IsADirectory(path)
        await self._removals.remove_file(path)
        await self._forget(path)

    async def _forget(self, path: RemotePath) -> None:
        self._floors.cache.forget(path)
        await self._times.forget(path)

    async def rmdir(self, path: RemotePath) -> None:
        if self._floors.spool.at(path) is not None:
            raise NotADirectory(path)
        attributes = await self._overlay.remote(path)
        if attributes is None:
            raise NotFound(path)
        if not attributes.is_directory:
            raise NotADirectory(path)
        if self._floors.spool.within(path):
            raise NotEmpty(path)
        await self._removals.remove_directory(path)
        await self._times.forget(path)

    async def rename(self, source: RemotePath, target: RemotePath, *, replace: bool) -> None:
        if source == target:
            return
        if is_within(target, source):
            raise InvalidArgument(f"{source} cannot become a part of itself")
        await self._renames.require_names(source, target)
        await self._in_time(self._renames.settled(source, target), source)
        spool = self._floors.spool
        if spool.at(source) is None and (
            self._removals.hides(source) or self._aliases.hides(source)
        ):
            raise NotFound(source)
        if await self._rename_to_backup(source, target):
            self._open.renamed(source, target)
            return
        moved = spool.at(source)
        with self._floors.callers.interruptible():
            await self._aliases.settle(source)
            if moved is None or moved.base is not None or self._aliases.at(target) is not None:
                await self._aliases.settle(target)  # else the new file starts from what is there
        known = await self._overlay.remote(source) if moved is None else None
        is_directory = known is not None and known.is_directory
        if self._removals.is_directory(target) or (
            is_directory and any(self._removals.within(target))
        ):
            # A file replaces the file that is buried there; a directory replaces an empty one only.
            # Never while turns are held: a tombstone waits for uploads, and these for their turn.
            with self._floors.callers.interruptible():
                await self._removals.execute_now(target)
        async with contextlib.AsyncExitStack() as turns:
            below = {*spool.within(source), *spool.within(target)}
            for entry in sorted(below, key=lambda one: one.path):
                await turns.enter_async_context(self._floors.callers.turn(entry.turn))
            moved, replaced = spool.at(source), spool.at(target)
            if moved is not None and moved is replaced:
                return  # two names of one file: rename(2) does nothing
            for dirty in (moved, replaced):
                if dirty is not None:
                    await self._floors.uploads.recognise(dirty)
            if replaced is not None and not replace:
                raise Exists(target)
            if moved is not None and moved.base is None:
                spool.lead(moved, source)
                async with self._journal.together():
                    await self._rename_local(moved, target, replaced, replace=replace)
                self._open.renamed(source, target)
            elif moved is not None and source != moved.path:
                await self._rename_link(moved, source, target, replaced, replace=replace)
                self._open.renamed(source, target)
            else:
                await self._rename_remote(source, target, replaced, replace=replace)

    async def require_known(self, path: RemotePath) -> None:
        """Before something is made, removed or renamed at a name. Raises Busy where it is not known
        what became of an earlier rename that concerns it."""
        await self._in_time(self._renames.not_lost(path), path)

    async def _in_time(self, wait: Awaitable[None], path: RemotePath) -> None:
        with self._floors.callers.interruptible(), trio.move_on_after(PATIENCE) as waited:
            await wait
        if waited.cancelled_caught:
            raise Busy(f"it is not known yet what became of an earlier rename of {path}")

    async def _rename_to_backup(self, source: RemotePath, target: RemotePath) -> bool:
        """Of a file that the cluster has, to a backup name: only here, for as long as a new file
        may take its place. False where it is a rename like any other."""
        spool = self._floors.spool
        entry = spool.at(source)
        if (
            not is_backup(source, target)
            or self._open.has(source)
            or spool.at(target) is not None
            or self._removals.hides(target)
            or any(self._aliases.hides(path) for path in (source, target))
            or self._aliases.at(target) is not None
            or (entry is not None and (entry.base is None or entry.links))
        ):
            return False
        attributes = await self._overlay.remote(source)
        if attributes is None or not is_plain(attributes, self._identity.uid):
            return False
        if await self._overlay.remote(target) is not None or spool.at(source) is not entry:
            return False
        if entry is None:
            await self._aliases.make(source, target, attributes)
            return True
        async with self._floors.callers.turn(entry.turn):
            await self._floors.uploads.recognise(entry)
            if spool.at(source) is not entry or entry.base is None or spool.at(target) is not None:
                return False
            # What is written here goes to the backup; what the cluster has is replaced by the new
            # file, or removed once the backup is there.
            base, entry.base = entry.base, None
            spool.retarget(entry, target)
            await self._removals.bury_behind(source, base, entry)
            await self._renamed(entry)
        return True

    async def _rename_local(
        self,
        moved: SpoolEntry,
        target: RemotePath,
        replaced: SpoolEntry | None,
        *,
        replace: bool,
    ) -> None:
        """The file never was on the cluster: only the upload's target changes. What is replaced
        there becomes the base that it was made from."""
        there = await self._overlay.remote(target) if replaced is None else None
        if there is not None and there.is_directory:
            raise IsADirectory(target)
        if there is not None and not replace:
            raise Exists(target)
        await self._removals.settled(target)
        buried = self._removals.replace(target, moved)
        base = there.fingerprint if there is not None else buried
        if replaced is None and (alias := self._aliases.of(target)) is not None:
            base = alias.attributes.fingerprint
        if replaced is not None:
            base = await self._displace(replaced, target)
        moved.base = base
        self._floors.spool.retarget(moved, target)
        self._floors.cache.forget(target)
        await self._renamed(moved, must=replaced is not None)

    async def _rename_link(
        self,
        moved: SpoolEntry,
        source: RemotePath,
        target: RemotePath,
        replaced: SpoolEntry | None,
        *,
        replace: bool,
    ) -> None:
        """The file is on the cluster, but not under this name of it. What is at the target goes
        first: a link replaces nothing."""
        there = await self._overlay.remote(target) if replaced is None else None
        if there is not None and there.is_directory:
            raise IsADirectory(target)
        if there is not None and not replace:
            raise Exists(target)
        base = there.fingerprint if there is not None else None
        if replaced is not None:
            base = await self._displace(replaced, target)
        if base is not None:
            with contextlib.suppress(NotFound):
                await self._removals.remove_file(target, besides=moved)
        self._floors.spool.retarget(moved, target, source)
        self._floors.cache.forget(target)
        await self._renamed(moved)

    async def _rename_remote(
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
            await self._displace(replaced, target)
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
            await self._renamed(entry, itself=entry.path == target)
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
        pause = 1.0
        while True:
            try:
                await self._settle(record, held)
            except (F7tfsError, OSError) as error:
                log.info("it is not known yet whether %s was renamed: %s", record.source, error)
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._go_on(held)
                return

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
        """The dirty file that the rename replaced. What was written to it since then stays, beside
        its name."""
        target = RemotePath(record.target)
        entry = self._floors.spool.at(target)
        if entry is None or entry.id != record.replaced:
            return None
        if held is not None:
            is_written = held.get(entry) != entry.version
        else:
            is_written = entry.mtime_ns > record.since * 1e9
        if not is_written:
            return entry
        beside = conflict_name(target, self._floors.hostname)
        log.warning("%s was written after it was replaced; that is %s", target, beside)
        self._floors.spool.retarget(entry, beside, target)
        entry.base = None
        await self._renamed(entry)
        return None
