"""Unlink, rmdir and rename where the spool lies over the cluster.

What exists only in the spool changes locally; what exists on the cluster changes there first.
The entry's turn is held while a name changes meaning, so that no upload publishes in between.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from f7tfs.catalog import Catalog, is_hidden
from f7tfs.content.journal import Journal, RenameRecord
from f7tfs.content.spool import SpoolEntry, State
from f7tfs.content.times import Times
from f7tfs.errors import (
    Exists,
    F7tfsError,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from f7tfs.faultpoints import reached
from f7tfs.model import Attributes, RemotePath, Stat, is_within, name_of
from f7tfs.transfers.namespace import Namespace
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.workplace import Workplace
from f7tfs.tree.handles import Floors

log = logging.getLogger("f7tfs.tree")


class Renaming:
    def __init__(
        self,
        catalog: Catalog,
        namespace: Namespace,
        removals: Removals,
        times: Times,
        floors: Floors,
        workplace: Workplace,
        journal: Journal,
        is_temporary: Callable[[RemotePath], bool],
    ) -> None:
        self._catalog = catalog
        self._namespace = namespace
        self._removals = removals
        self._times = times
        self._floors = floors
        self._workplace = workplace
        self._journal = journal
        self._is_temporary = is_temporary

    async def unlink(self, path: RemotePath) -> None:
        entry = self._floors.spool.at(path)
        if entry is None:
            await self._unlink_remote(path)
            return
        async with self._floors.callers.turn(entry.turn):
            if entry.is_gone:  # published while we waited
                await self._unlink_remote(path)
                return
            await self._floors.uploads.recognise(entry)
            if entry.base is not None:
                with contextlib.suppress(NotFound):  # already gone on the cluster
                    await self._removals.remove_file(path, besides=entry)
            await self._floors.uploads.discard(entry)
        await self._forget(path)

    async def _unlink_remote(self, path: RemotePath) -> None:
        attributes = await self._remote(path)
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
        attributes = await self._remote(path)
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
        await self._namespace.require_name(source)
        await self._namespace.require_name(target)
        spool = self._floors.spool
        if spool.at(source) is None and self._removals.hides(source):
            raise NotFound(source)
        if self._removals.is_directory(target):
            # Never while turns are held: a tombstone waits for uploads, and these for their turn.
            with self._floors.callers.interruptible():
                await self._removals.execute_now(target)
        async with contextlib.AsyncExitStack() as turns:
            below = {*spool.within(source), *spool.within(target)}
            for entry in sorted(below, key=lambda one: one.path):
                await turns.enter_async_context(self._floors.callers.turn(entry.turn))
            moved, replaced = spool.at(source), spool.at(target)
            for dirty in (moved, replaced):
                if dirty is not None:
                    await self._floors.uploads.recognise(dirty)
            if replaced is not None and not replace:
                raise Exists(target)
            if moved is not None and moved.base is None:
                async with self._journal.together():
                    await self._rename_local(moved, target, replaced, replace=replace)
            else:
                await self._rename_remote(source, target, replaced, replace=replace)

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
        there = await self._remote(target) if replaced is None else None
        if there is not None and there.is_directory:
            raise IsADirectory(target)
        if there is not None and not replace:
            raise Exists(target)
        await self._removals.settled(target)
        buried = self._removals.replace(target, moved)
        base = there.fingerprint if there is not None else buried
        if replaced is not None:
            base = replaced.base
            await self._floors.uploads.discard(replaced)
        moved.base = base
        self._floors.spool.retarget(moved, target)
        moved.hold = self._is_temporary(target)
        self._floors.cache.forget(target)
        if moved.state is not State.OPEN or moved.journaled or replaced is not None:
            await self._floors.spool.commit(moved)
            self._journal.once_durable(lambda: reached("rename.recorded"))
        self._floors.uploads.renamed(moved)

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
        known = await self._remote(source)
        is_directory = known is not None and known.is_directory
        if [one for one in spool.within(target) if one.path != target]:
            raise NotEmpty(target) if is_directory else IsADirectory(target)
        if replaced is not None and is_directory:
            raise NotADirectory(target)
        below = spool.within(source)
        followers = bool(below) or replaced is not None
        for entry in below:
            entry.is_moving = True
        try:
            async with self._removals.steady():
                after = await self._namespace.rename(
                    source, target, replace=replace, followers=followers
                )
                reached("rename.moved")
                async with self._journal.together():
                    await self._follow(source, target, replaced, after)
                    if followers:
                        await self._namespace.rename_followed(source)
        finally:
            for entry in below:
                entry.is_moving = False
            uploads.hurry(())  # what became due meanwhile

    async def _follow(
        self, source: RemotePath, target: RemotePath, replaced: SpoolEntry | None, after: Stat
    ) -> None:
        """The cluster has renamed it: everything here that is known by the old name."""
        spool, uploads = self._floors.spool, self._floors.uploads
        await self._removals.exhume(target)  # what was buried there has been replaced
        await self._removals.retarget(source, target)
        if replaced is not None:
            await uploads.discard(replaced)
        for entry in spool.within(source):
            if entry.temporary is not None and is_within(entry.temporary, source):
                # The temporary moved with its directory; what is under way goes to the old place.
                entry.version += 1
                old, entry.temporary = entry.temporary, None
                entry.ticket, entry.form_sent = None, False
                new = RemotePath(target + old[len(source) :])
                uploads.later(self._workplace.litter_moved, old, new)
            spool.retarget(entry, RemotePath(target + entry.path[len(source) :]))
            if entry.path == target:
                entry.hold = self._is_temporary(target)
            if entry.journaled or entry.replaced:
                await spool.commit(entry)
                self._journal.once_durable(lambda: reached("rename.recorded"))
            uploads.renamed(entry)
        self._floors.cache.rename(source, target)
        self._floors.cache.touch(target, after.fingerprint)
        await self._times.rename(source, target)

    async def resume(self) -> None:
        """Renames during which an earlier daemon ended: what went through on the cluster goes
        through here. Before any upload."""
        for record in self._journal.load(RenameRecord):
            source, target = RemotePath(record.source), RemotePath(record.target)
            try:
                after = await self._namespace.finish_rename(record)
            except F7tfsError as error:
                log.warning("it is not known whether %s was renamed: %s", source, error)
                continue
            async with self._journal.together():
                if after is not None:
                    log.info("%s was renamed to %s when a daemon ended", source, target)
                    await self._follow(source, target, self._floors.spool.at(target), after)
                await self._namespace.rename_followed(source)

    async def _remote(self, path: RemotePath) -> Attributes | None:
        if self._removals.hides(path) or is_hidden(name_of(path)):
            return None
        try:
            return await self._catalog.attributes(path)
        except NotFound:
            return None
