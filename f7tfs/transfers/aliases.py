"""Backup names: a file that an editor renames away before it writes a new one in its place.

vim renames `f` to `f~`, writes a new `f`, and removes `f~`. On the cluster that would be two calls
of mv, a removal, and seconds in which nothing is at `f`. So the rename is journaled and shown here,
and the cluster learns of it only when it matters (docs/decisions/0014):

- the new `f` is published: the old content is renamed first, then the new one takes its place;
- the backup is removed before that: nothing is left to do;
- somebody needs the name itself (opens the backup, renames a directory above), or no new file
  comes within `HOLD`: it is renamed as asked.

Until then the cluster has the old content under its old name, untouched.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator

import msgspec
import trio

from f7tfs.api.breaker import Breaker
from f7tfs.content.cache import Cache
from f7tfs.content.journal import AliasRecord, Journal
from f7tfs.content.spool import Spool, SpoolEntry
from f7tfs.content.times import Times
from f7tfs.errors import F7tfsError, Unreachable
from f7tfs.faultpoints import reached
from f7tfs.model import Attributes, Kind, RemotePath, Stat, is_within, name_of, parent_of
from f7tfs.transfers.namespace import Namespace, conflict_name
from f7tfs.transfers.renames import Renames
from f7tfs.transfers.unsettled import Unsettled

log = logging.getLogger("f7tfs.namespace")
HOLD = 10.0  # seconds in which a new file may take the place of the one that was renamed
_BACKUP = re.compile(r".+~|.+\.bak", re.DOTALL)


def is_plain(attributes: Attributes, uid: int) -> bool:
    """Our own file, with one name and no ACL: a rename of it is nothing but another name."""
    return (
        attributes.kind is Kind.FILE
        and not attributes.has_acl
        and attributes.uid in {None, uid}
        and (attributes.nlink or 1) == 1
    )


def is_backup(source: RemotePath, target: RemotePath) -> bool:
    """Whether `target` is what an editor calls the backup of `source`."""
    return (
        parent_of(source) == parent_of(target)
        and _BACKUP.fullmatch(name_of(target)) is not None
        and _BACKUP.fullmatch(name_of(source)) is None
    )


class Aliases:
    """By the backup's name, and by the name that the cluster still has. One at most for each."""

    def __init__(
        self,
        namespace: Namespace,
        renames: Renames,
        unsettled: Unsettled,
        spool: Spool,
        cache: Cache,
        times: Times,
        journal: Journal,
        breaker: Breaker,
        *,
        hostname: str,
    ) -> None:
        self._namespace = namespace
        self._renames = renames
        self._unsettled = unsettled
        self._spool = spool
        self._cache = cache
        self._times = times
        self._journal = journal
        self._breaker = breaker
        self._hostname = hostname
        self._turn = trio.Lock()  # after an entry's turn, never before it
        self._wake = trio.Event()
        self._due: dict[str, float] = {}  # trio time; at once for those of an earlier daemon
        self._by_alias: dict[RemotePath, AliasRecord] = {}
        self._by_source: dict[RemotePath, AliasRecord] = {}
        self._since: dict[str, float] = {}  # when a call to rename it was made (epoch seconds)
        for record in journal.load(AliasRecord):
            self._remember(record, 0.0)
            self._since[record.id] = record.since

    def __len__(self) -> int:
        return len(self._by_alias)

    # Asking.

    def at(self, path: RemotePath) -> AliasRecord | None:
        """The alias of this name."""
        return self._by_alias.get(path)

    def of(self, path: RemotePath) -> AliasRecord | None:
        """The alias that stands for what the cluster has at this name."""
        return self._by_source.get(path)

    def hides(self, path: RemotePath) -> bool:
        """Whether the name is gone here, unless a new file has taken its place."""
        return path in self._by_source

    def origin(self, path: RemotePath) -> RemotePath:
        """Where the cluster has what is shown at a name."""
        record = self._by_alias.get(path)
        return RemotePath(record.source) if record is not None else path

    def shown_in(self, directory: RemotePath) -> Iterator[tuple[RemotePath, Attributes]]:
        return (
            (path, record.attributes)
            for path, record in self._by_alias.items()
            if parent_of(path) == directory
        )

    # Changing.

    async def make(self, source: RemotePath, target: RemotePath, attributes: Attributes) -> None:
        """The rename of a clean file, for now only here. The caller has looked that nothing is at
        `target`."""
        record = AliasRecord(id=target, source=source, attributes=attributes)
        await self._journal.write(record)
        self._remember(record, trio.current_time() + HOLD)
        reached("alias.journaled")
        self._wake.set()

    def steady(self) -> trio.Lock:
        """Held while what an alias stands for changes: it is not carried out meanwhile."""
        return self._turn

    async def drop(self, record: AliasRecord) -> None:
        """The backup is not wanted any more. The caller holds `steady`."""
        await self._journal.write(drop=((AliasRecord, record.id),))
        self._forget(record)

    async def settle(self, directory: RemotePath) -> None:
        """Rename on the cluster what is renamed here at and below a name that is needed as it is.
        Raises what keeps it from being renamed."""
        for record in list(self._by_alias.values()):
            if is_within(record.id, directory) or is_within(record.source, directory):
                await self._settle(record)

    async def _settle(self, record: AliasRecord) -> None:
        await self._unsettled.settled(RemotePath(record.source), RemotePath(record.id))
        entry = self._spool.at(RemotePath(record.source))
        if entry is None:
            await self.carry_out(record)
            return
        async with entry.turn:  # not between its proof and its publishing
            await self.carry_out(record)

    async def carry_out(self, record: AliasRecord, there: Stat | None = None) -> None:
        """The rename itself. `there`: what is at the old name, by a look just now. The caller
        holds the turn of the new file, if there is one: it starts from nothing afterwards."""
        async with self._turn:
            if self._by_alias.get(RemotePath(record.id)) is not record:
                return
            source, target = RemotePath(record.source), RemotePath(record.id)

            def is_it(stat: Stat | None) -> bool:
                known = record.attributes.fingerprint
                return stat is not None and known.agrees(stat.fingerprint, ignore_ctime=True)

            if since := self._since.get(record.id):
                # A call that was made before, by a killed daemon perhaps, may still be carried out.
                # After another one it would move the new file to the backup's name.
                await self._namespace.outwait(target, is_it, since=since)
                there = None
            now = there if there is not None else await self._namespace.find(source)
            if now is None or not is_it(now):
                if not is_it(await self._namespace.find(target)):
                    log.warning("%s changed on the cluster before it became %s", source, target)
                    await self.drop(record)
                    return
                target_now = target  # a rename before this one went through
            else:
                target_now = await self._free(target)
                self._since[record.id] = since = time.time()
                await self._journal.write(msgspec.structs.replace(record, since=since))
                after = await self._renames.rename_checked(source, target_now, now, None)
                reached("alias.renamed")
                self._cache.rename(source, target_now)
                self._cache.touch(target_now, after.fingerprint)
            self._forget(record)
            entry = self._spool.at(source)
            gone = ((AliasRecord, record.id),)
            if entry is not None and self._starts_from(entry, record):
                entry.base = None
                await self._spool.save(entry, drop=gone)
            else:
                await self._journal.write(drop=gone)
            await self._times.rename(source, target_now)

    def _starts_from(self, entry: SpoolEntry, record: AliasRecord) -> bool:
        return entry.base is not None and entry.base.agrees(
            record.attributes.fingerprint, ignore_ctime=True
        )

    async def _free(self, target: RemotePath) -> RemotePath:
        """The backup's name; another where somebody took it meanwhile."""
        name = target
        while await self._namespace.find(name) is not None:
            name = RemotePath(conflict_name(target, self._hostname) + name[len(target) :])
            log.warning("%s is taken on the cluster; the backup is %s", target, name)
        return name

    # Running.

    async def run(self) -> None:
        """Carry out what no new file came for, for ever."""
        while True:
            await self._breaker.back()
            self._wake = trio.Event()
            now = trio.current_time()
            for record in list(self._by_alias.values()):
                if self._due[record.id] <= now:
                    if self._unsettled.is_settled(RemotePath(record.source)):
                        await self._try(record)
                    else:
                        self._due[record.id] = now + HOLD
            with trio.move_on_at(min(self._due.values(), default=float("inf"))):
                await self._wake.wait()

    async def _try(self, record: AliasRecord) -> None:
        try:
            await self._settle(record)
        except F7tfsError as error:
            if record.id not in self._due:
                return
            self._due[record.id] = trio.current_time() + HOLD
            if error.transient:
                if not (isinstance(error, Unreachable) and self._breaker.is_offline):
                    log.warning("%s is not renamed yet: %s", record.source, error)
            elif self._spool.at(RemotePath(record.source)) is None:
                log.error("%s cannot become %s: %s", record.source, record.id, error)
                async with self._turn:
                    if self._by_alias.get(RemotePath(record.id)) is record:
                        await self.drop(record)
            else:  # the new file waits for it, and tells
                log.info("%s cannot become %s: %s", record.source, record.id, error)

    def _remember(self, record: AliasRecord, due: float) -> None:
        self._by_alias[RemotePath(record.id)] = record
        self._by_source[RemotePath(record.source)] = record
        self._due[record.id] = due

    def _forget(self, record: AliasRecord) -> None:
        self._by_alias.pop(RemotePath(record.id), None)
        self._by_source.pop(RemotePath(record.source), None)
        self._due.pop(record.id, None)
        self._since.pop(record.id, None)
