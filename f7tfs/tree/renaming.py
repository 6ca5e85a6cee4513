"""Unlink, rmdir and rename where the spool lies over the cluster.

What exists only in the spool changes locally; what exists on the cluster changes there first.
The entry's turn is held while a name changes meaning, so that no upload publishes in between.
"""

from __future__ import annotations

import contextlib
import logging

from f7tfs.content.journal import Journal
from f7tfs.content.spool import SpoolEntry
from f7tfs.content.times import Times
from f7tfs.errors import (
    Exists,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from f7tfs.model import Identity, RemotePath, is_within
from f7tfs.transfers.aliases import Aliases, is_backup, is_plain
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.renames import Renames
from f7tfs.tree.following import Following
from f7tfs.tree.handles import Floors
from f7tfs.tree.openfiles import OpenFiles
from f7tfs.tree.overlay import Overlay

log = logging.getLogger("f7tfs.tree")


class Renaming:
    def __init__(
        self,
        overlay: Overlay,
        renames: Renames,
        removals: Removals,
        aliases: Aliases,
        times: Times,
        floors: Floors,
        journal: Journal,
        identity: Identity,
        open_files: OpenFiles,
        following: Following,
    ) -> None:
        self._identity = identity
        self._following = following
        self._open = open_files
        self._overlay = overlay
        self._renames = renames
        self._removals = removals
        self._aliases = aliases
        self._times = times
        self._floors = floors
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
            await self._following.displace(entry, path)
        await self._forget(path)

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
            await self._following.renamed(entry)
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
        await self._following.require_settled(source, target)
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
                await self._following.rename(source, target, replaced, replace=replace)

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
            await self._following.renamed(entry)
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
            base = await self._following.displace(replaced, target)
        moved.base = base
        self._floors.spool.retarget(moved, target)
        self._floors.cache.forget(target)
        await self._following.renamed(moved, must=replaced is not None)

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
            base = await self._following.displace(replaced, target)
        if base is not None:
            with contextlib.suppress(NotFound):
                await self._removals.remove_file(target, besides=moved)
        self._floors.spool.retarget(moved, target, source)
        self._floors.cache.forget(target)
        await self._following.renamed(moved)
