"""Removals that queue behind uploads: `cp a b; rm a` must never end with neither.

A removal that is asked for while earlier writes are still on their way becomes a journaled
tombstone: the name is gone at once here, and on the cluster once those writes are verified there
(or stuck: their content is safe in the spool then, and room may be what they wait for).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator

import msgspec
import trio

from f7tfs.api.breaker import Breaker
from f7tfs.catalog import Catalog
from f7tfs.content.journal import Journal, RemovalRecord
from f7tfs.content.spool import Spool, SpoolEntry, State
from f7tfs.errors import F7tfsError, NoLocalSpace, NotEmpty, NotFound, Unreachable
from f7tfs.faultpoints import reached
from f7tfs.model import Fingerprint, Kind, RemotePath, is_within, name_of, parent_of
from f7tfs.transfers.aliases import Aliases
from f7tfs.transfers.namespace import Namespace
from f7tfs.transfers.unsettled import Unsettled
from f7tfs.transfers.upload import Uploads, may_pass

log = logging.getLogger("f7tfs.removal")


class Removals:
    def __init__(
        self,
        namespace: Namespace,
        unsettled: Unsettled,
        aliases: Aliases,
        catalog: Catalog,
        spool: Spool,
        uploads: Uploads,
        journal: Journal,
        breaker: Breaker,
    ) -> None:
        self._breaker = breaker
        self._namespace = namespace
        self._unsettled = unsettled
        self._aliases = aliases
        self._catalog = catalog
        self._spool = spool
        self._uploads = uploads
        self._journal = journal
        self._turn = trio.Lock()  # tombstones are executed one after the other, in their order
        self._wake = trio.Event()
        self._ended = trio.Event()  # replaced whenever a tombstone ends
        self._tries: dict[str, int] = {}
        self._under_way: RemotePath | None = None  # what is being removed on the cluster
        self._records: dict[RemotePath, RemovalRecord] = {}
        self._older: dict[RemotePath, list[str]] = {}  # of names that were buried twice
        for one in sorted(journal.load(RemovalRecord), key=lambda one: one.sequence):
            path = RemotePath(one.path)
            if path in self._records:
                self._older.setdefault(path, []).append(self._records[path].id)
            self._records[path] = one
        for path in list(self._records):
            entry = spool.at(path)
            if entry is not None:  # a crash during the unlink of a dirty file: it is still there
                self.replace(path, entry)

    def __len__(self) -> int:
        return len(self._records)

    def hides(self, path: RemotePath) -> bool:
        """Whether a tombstone stands at this very name."""
        return path in self._records

    def is_directory(self, path: RemotePath) -> bool:
        """Whether a directory is buried at this very name."""
        record = self._records.get(path)
        return record is not None and record.is_directory

    def fingerprint(self, path: RemotePath) -> Fingerprint | None:
        """Of the file that is buried at this very name."""
        record = self._records.get(path)
        return None if record is None else record.fingerprint

    def names_in(self, directory: RemotePath) -> set[str]:
        return {name_of(path) for path in self._records if parent_of(path) == directory}

    def within(self, directory: RemotePath) -> Iterator[RemovalRecord]:
        return (one for path, one in list(self._records.items()) if is_within(path, directory))

    async def remove_file(self, path: RemotePath, *, besides: SpoolEntry | None = None) -> None:
        """unlink(2) of something that exists on the cluster: now, or behind what is owed
        (`besides` the dirty file of this very name)."""
        owed = tuple(
            entry.id
            for entry in self._spool.owed()
            # A held temporary was made here: the removed file is not its source.
            if entry is not besides and entry.state not in {State.STUCK, State.HELD}
        )
        if not owed and not self._records:
            await self._namespace.remove_file(path)
            return
        await self._namespace.require_name(path)
        stat = await self._catalog.stat(path)
        await self._bury(path, stat.fingerprint, owed, is_directory=False)

    async def remove_directory(self, path: RemotePath) -> None:
        """rmdir(2): behind the tombstones below it, else now."""
        below = [one for one in self.within(path) if one.path != path]
        if not below:
            await self._namespace.remove_directory(path)
            return
        await self._namespace.require_name(path)
        gone = self.names_in(path)
        if set(await self._catalog.listing(path, fresh=True)) - gone:
            raise NotEmpty(path)
        await self._bury(path, None, (), is_directory=True)

    async def bury_behind(
        self, path: RemotePath, fingerprint: Fingerprint, entry: SpoolEntry
    ) -> None:
        """The removal of a name whose dirty file is going to another one: behind its upload."""
        await self._bury(path, fingerprint, (entry.id,), is_directory=False, moved=entry)

    async def _bury(
        self,
        path: RemotePath,
        fingerprint: Fingerprint | None,
        owed: tuple[str, ...],
        *,
        is_directory: bool,
        moved: SpoolEntry | None = None,
    ) -> None:
        record = RemovalRecord(
            id=uuid.uuid4().hex,
            path=path,
            is_directory=is_directory,
            fingerprint=fingerprint,
            sequence=1 + max((one.sequence for one in self._records.values()), default=0),
            uploads=owed,
        )
        if moved is not None and moved.journaled:
            await self._spool.save(moved, record)
        else:
            await self._journal.write(record)
        reached("removal.buried")
        self._records[path] = record
        self._wake.set()

    async def exhume(self, path: RemotePath) -> Fingerprint | None:
        """A new file takes the place of a buried one: it replaces the old content by itself, so
        the tombstone ends, and what it stood for becomes the new file's base."""
        record = self._records.get(path)
        if record is None or record.is_directory:
            return None
        await self._end(record)
        return record.fingerprint

    async def settled(self, path: RemotePath) -> None:
        """Wait while the cluster is just removing this very name."""
        while self._under_way == path:
            async with self._turn:
                pass

    def replace(self, path: RemotePath, entry: SpoolEntry) -> Fingerprint | None:
        """As `exhume`, for a file that the journal may not know yet: until it does, the tombstone
        stays there. Else a crash would bring back what was removed."""
        record = self._records.get(path)
        if record is None or record.is_directory:
            return None
        del self._records[path]
        self._tries.pop(record.id, None)
        entry.replaced = (*entry.replaced, record.id, *self._older.pop(path, ()))
        self._catalog.forget(path)
        reached("removal.exhumed")
        return record.fingerprint

    async def resume(self) -> None:
        """Before anything is written: the call of an earlier daemon that may still be carried out
        would remove what is made anew at its name."""
        for record in self._journal.load(RemovalRecord):
            await self._namespace.outwait(
                RemotePath(record.path), lambda there: there is None, since=record.since
            )

    async def execute_now(self, directory: RemotePath) -> None:
        """Carry out the tombstones at and below a name that is needed again as something else.
        Waits for the uploads they stand behind."""
        while any(True for _ in self.within(directory)):
            for record in sorted(self.within(directory), key=lambda one: one.sequence):
                self._uploads.hurry(self._waits_for(record))
                await self._execute(record)

    async def names_are_there(self) -> None:
        """Wait until the cluster has lost and renamed what was removed and renamed only here so
        far. Raises what keeps it from that."""
        await self._aliases.settle(RemotePath("/"))
        await self.execute_now(RemotePath("/"))

    async def drain(self, directory: RemotePath) -> list[SpoolEntry]:
        """Wait until everything at and below `directory` is as it is here, uploads and removals;
        returns the uploads that are stuck."""
        while True:
            stuck = await self._uploads.drain(directory)
            await self._aliases.settle(directory)
            if not any(True for _ in self.within(directory)):
                return stuck
            ended = self._ended
            try:
                await self.execute_now(directory)
            except F7tfsError as error:
                log.debug("a removal waits for its next try: %s", error)
                await ended.wait()  # `run` tries again

    def steady(self) -> trio.Lock:
        """Held until a rename is known to be unsettled: no tombstone is carried out meanwhile, and
        none at its names from then on."""
        return self._turn

    async def retarget(self, source: RemotePath, target: RemotePath) -> None:
        """A directory was renamed on the cluster: what is buried below it went along. The caller
        has it unsettled, and may ask again where the journal did not take it."""
        for old in list(self.within(source)):
            del self._records[RemotePath(old.path)]
            new = msgspec.structs.replace(old, path=target + old.path[len(source) :])
            self._records[RemotePath(new.path)] = new
        if moved := list(self.within(target)):
            await self._journal.write(*moved)

    async def run(self) -> None:
        """Carry out tombstones in their order, for ever."""
        pause = 1.0
        while True:
            await self._breaker.back()
            self._wake, change = trio.Event(), self._unsettled.change
            pending = sorted(self._records.values(), key=lambda one: one.sequence)
            settled = [one for one in pending if self._unsettled.is_settled(RemotePath(one.path))]
            failed = False
            for record in settled:
                try:
                    await self._execute(record)
                except F7tfsError as error:
                    failed = not (isinstance(error, Unreachable) and self._breaker.is_offline)
                    if failed:
                        log.warning("removing %s: %s", record.path, error)
                    break
            if failed:
                await trio.sleep(pause)
                pause = min(2 * pause, 60.0)
            else:
                pause = 1.0
                if not settled and self._records:
                    await _either(self._wake, change)  # of them, or one more tombstone
                elif not self._records:
                    await self._wake.wait()

    async def _execute(self, record: RemovalRecord) -> None:
        await self._uploads.settled(self._waits_for(record))
        async with self._turn:
            now = next((one for one in self._records.values() if one.id == record.id), None)
            if now is None:
                return
            path = RemotePath(now.path)
            if self._unsettled.is_settled(path):
                await self._carry_out(now, path)
                return
        await self._unsettled.settled(path)
        await self._execute(now)

    async def _carry_out(self, now: RemovalRecord, path: RemotePath) -> None:
        self._under_way = path
        try:
            await self._journal.write(msgspec.structs.replace(now, since=time.time()))
            if now.is_directory:
                await self._namespace.remove_directory(path)
            else:
                await self._remove_if_unchanged(path, now)
            reached("removal.removed")
        except (NotFound, NotEmpty) as error:
            log.info("removing %s: %s; left as it is", path, error)
        except NoLocalSpace:
            raise  # of the journal: nothing was sent
        except F7tfsError as error:
            self._tries[now.id] = self._tries.get(now.id, 0) + 1
            if may_pass(error, self._tries[now.id]):
                raise
            log.error("removing %s failed for good: %s; the name is shown again", path, error)
        finally:
            self._under_way = None
        await self._end(now)
        reached("removal.ended")

    def _waits_for(self, record: RemovalRecord) -> list[SpoolEntry]:
        """Not for what is being written again: nobody knows when it is closed, and its content is
        in the spool."""
        found = [one for name in record.uploads if (one := self._spool.by_id(name)) is not None]
        return [one for one in found if one.state is not State.OPEN or one.is_owed]

    async def _remove_if_unchanged(self, path: RemotePath, record: RemovalRecord) -> None:
        stat = await self._namespace.find(path)
        if stat is None:
            return
        if stat.kind is Kind.DIRECTORY or (
            record.fingerprint is not None
            and not record.fingerprint.agrees(stat.fingerprint, ignore_ctime=True)
        ):
            log.warning("%s changed on the cluster after it was removed here; it is kept", path)
            return
        await self._namespace.remove_file(path, stat)

    async def _end(self, record: RemovalRecord) -> None:
        older = self._older.pop(RemotePath(record.path), ())
        drop = tuple((RemovalRecord, one) for one in (record.id, *older))
        await self._journal.write(drop=drop)
        self._tries.pop(record.id, None)
        if self._records.get(RemotePath(record.path)) is record:
            del self._records[RemotePath(record.path)]
        self._catalog.forget(RemotePath(record.path))
        event, self._ended = self._ended, trio.Event()
        event.set()


async def _either(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def end_with(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(end_with, event)
