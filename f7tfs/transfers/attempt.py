"""One attempt to bring one dirty file to the cluster: bytes → proof → publish → clean.

Both servers write in place, so the bytes go to a unique hidden temporary name first, are
verified there, get their mode, and are published by a rename over the target. Status words are
no proof: v1's 115 is not final and cannot be cancelled (v1 FACTS §6), so a late write of an
abandoned task must land on nobody's file.

In place instead, where a rename would change more than the content: a target of somebody else,
with other hard links, an ACL, a foreign group, or in a directory that we may not write.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import trio

from f7tfs.api.port import Cluster
from f7tfs.api.staging import StagingArea
from f7tfs.catalog import Catalog
from f7tfs.content.cache import Cache
from f7tfs.content.disk import Disk, sha256_of
from f7tfs.content.journal import Journal, LitterRecord, Record, UploadRecord
from f7tfs.content.spool import Spool, SpoolEntry, State
from f7tfs.content.times import Times
from f7tfs.errors import (
    IsADirectory,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    ServerError,
)
from f7tfs.faultpoints import reached
from f7tfs.model import Fingerprint, Identity, Kind, RemotePath, Stat, parent_of
from f7tfs.transfers.aliases import Aliases
from f7tfs.transfers.follow import kind_of
from f7tfs.transfers.linking import Linking
from f7tfs.transfers.namespace import Namespace
from f7tfs.transfers.recognition import CHECKSUM_LIMIT, Recognition
from f7tfs.transfers.renames import Renames
from f7tfs.transfers.routes import Routes, Spent
from f7tfs.transfers.workplace import Workplace

log = logging.getLogger("f7tfs.upload")


class Superseded(Exception):
    """The file was written to, renamed or unlinked during the attempt: begin again."""


class Arrival(NamedTuple):
    """A version of a dirty file that the cluster has, as `remote`. `adopt`: its spool file holds
    just that (after a restart its bytes may be newer than what was published)."""

    entry: SpoolEntry
    remote: Fingerprint
    version: int
    adopt: bool = True


class Attempts:
    def __init__(
        self,
        cluster: Cluster,
        storage: StagingArea,
        catalog: Catalog,
        namespace: Namespace,
        renames: Renames,
        aliases: Aliases,
        workplace: Workplace,
        spool: Spool,
        journal: Journal,
        cache: Cache,
        times: Times,
        disk: Disk,
        identity: Identity,
        *,
        stall_timeout: float,
        parallel: int,
        keep_both: bool,
        hostname: str,
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._namespace = namespace
        self._renames = renames
        self._aliases = aliases
        self._workplace = workplace
        self._spool = spool
        self._journal = journal
        self._cache = cache
        self._times = times
        self._disk = disk
        self._identity = identity
        self._routes = Routes(
            cluster, storage, workplace, spool, disk, stall_timeout=stall_timeout, parallel=parallel
        )
        self._recognition = Recognition(namespace, workplace, spool, disk)
        self._keep_both = keep_both
        self._linking = Linking(namespace, renames, spool, catalog, times, hostname)

    async def run(self, entry: SpoolEntry) -> None:
        """The whole way. Raises Superseded, or the error that stopped it."""
        version = entry.version
        if entry.expected is not None:
            async with entry.turn:
                self._require_current(entry, version)
                there = await self.recognise(entry)
                if there is not None and entry.expected_version == version:
                    there = await self._with_mode(entry, there)
                    await self._settle(entry, there, version, adopt=False)
                    return
        if await self._is_known_to_stay(entry):
            await self._write_in_place(entry, version)
            return
        try:
            proven = await self._bring(entry, version)
        except PermissionDenied:
            there = await self._namespace.find(entry.path) if entry.base is not None else None
            if there is None or there.kind is not Kind.FILE:
                raise
            await self._write_in_place(entry, version)  # the directory is not ours to write
            return
        async with entry.turn:
            self._require_current(entry, version)
            if await self._publish(entry, proven, version):
                return
        await self.abandon(entry)
        await self._write_in_place(entry, version)

    def names_in_use(self) -> frozenset[RemotePath]:
        """What attempts under way, or to be resumed, still need of our names on the cluster."""
        own = (one.temporary for one in self._spool)
        temporaries = frozenset(name for name in own if name is not None)
        return temporaries | self._routes.names_in_use()

    async def recognise(self, entry: SpoolEntry) -> Stat | None:
        """See `Recognition`. The caller holds the turn."""
        return await self._recognition.recognise(entry)

    async def abandon(self, entry: SpoolEntry) -> None:
        """Remove the temporary of an attempt that nobody wants any more. Once its form was sent,
        an abandoned v1 task can write it again until the form expires: it stays on the list."""
        temporary, entry.temporary = entry.temporary, None
        ticket, entry.ticket = entry.ticket, None
        sent, entry.form_sent = entry.form_sent, False
        until = 0.0
        if ticket is not None:
            if sent:
                until = time.time() + self._cluster.capabilities.link_lifetime
            await self._routes.withdraw(ticket)
        if temporary is None:
            return
        if await self._workplace.remove_litter(temporary) and until:
            await self._journal.write(LitterRecord(id=temporary, until=until))

    # Bytes.

    async def _bring(self, entry: SpoolEntry, version: int) -> Stat:
        """The content under a temporary name, proven. Returns the temporary's stat."""
        if entry.temporary is not None and (
            entry.attempt_version != version  # it was made for what the file held before
            # or for where it was before
            or (entry.ticket is None and parent_of(entry.temporary) != parent_of(entry.path))
            or not await self._routes.can_resume(entry, entry.temporary)
        ):
            await self.abandon(entry)
        self._require_current(entry, version)
        if entry.temporary is None:
            entry.temporary = self._workplace.temporary_for(entry.path)
            entry.ticket, entry.form_sent = None, False
            entry.attempt_version, entry.is_adoptable = version, True
            await self._spool.save(entry, LitterRecord(id=entry.temporary))
            reached("upload.journaled")
            self._require_current(entry, version)
        temporary = entry.temporary
        try:
            if entry.permissions & 0o044 != 0o044 and not entry.form_sent:
                await self._close_to_others(temporary, entry.permissions)
            return await self._transport(entry, temporary, version)
        except Superseded:
            await self.abandon(entry)
            raise
        except Spent as spent:
            # What was asked to write this name may still do so, and what it left fills a quota.
            await self.abandon(entry)
            await self._spool.save(entry)
            raise spent.error from spent

    async def _close_to_others(self, temporary: RemotePath, permissions: int) -> None:
        """A private file must not be readable while it travels: uploads in place keep the mode."""
        await self._routes.send_empty(temporary, permissions)
        await self._cluster.change_mode(temporary, permissions | 0o200)
        reached("upload.private")

    async def _transport(self, entry: SpoolEntry, target: RemotePath, version: int) -> Stat:
        """Bring the bytes, and prove that they are there. Raises Spent where the next attempt must
        begin with another ticket, and another temporary."""
        words = await self._routes.send(entry, target)
        reached("in-place.sent" if entry.in_place else "upload.sent")
        self._require_current(entry, version)
        try:
            return await self._prove(entry, target, version)
        except (NotFound, ServerError) as error:
            if entry.ticket is None:
                raise
            if words is None:
                raise Spent(error) from error
            # v2's job ends well also when nothing was written; its log tells why (FACTS §7).
            raise Spent(kind_of(words)(f"{entry.path}: {words}")) from error

    async def _prove(self, entry: SpoolEntry, target: RemotePath, version: int) -> Stat:
        stat = await self._cluster.stat(target)
        size = entry.size
        self._require_current(entry, version)
        if stat.size != size:
            raise ServerError(f"{entry.path}: {stat.size} of {size} bytes arrived")
        staged = size > self._cluster.capabilities.direct_upload_limit
        if staged and size <= CHECKSUM_LIMIT:
            theirs = await self._workplace.checksum(target)
            ours = await self._disk.run(lambda: sha256_of(entry.fd))
            self._require_current(entry, version)
            if theirs != ours:
                raise ServerError(f"{entry.path}: the checksum on the cluster differs")
        reached("in-place.proven" if entry.in_place else "upload.proven")
        return stat

    # Publishing.

    def expect(self, entry: SpoolEntry, expected: Fingerprint, version: int) -> None:
        """From now on the cluster may have this version of the file, looking like `expected`; the
        caller journals that. An older one in the cache may look just the same (a second is long):
        it must not be found by whoever comes after, in this mount or a later one."""
        self._cache.forget(entry.path)
        entry.expected, entry.expected_version = expected, version
        entry.expected_since = time.time()

    async def _publish(self, entry: SpoolEntry, proven: Stat, version: int) -> bool:
        """Under the entry's turn: check for a conflict one last time, rename, look. False if a
        rename would change more than the content of what is there."""
        temporary = entry.temporary
        assert temporary is not None
        target = entry.path
        there = await self._namespace.find(target)
        if there is not None and await self._must_go_beside(entry, there):
            await self._publish_beside(entry, proven)
            return True
        if (alias := self._aliases.of(target)) is not None:
            # The old content is at its backup's name before the new one takes its place.
            await self._aliases.carry_out(alias, there)
            self._require_current(entry, version)
            there = await self._namespace.find(target)
            if there is not None and await self._must_go_beside(entry, there):
                raise Superseded
        if there is not None and self._must_stay_in_place(entry, there):
            return False
        if proven.mode & 0o7777 != entry.permissions:
            await self._cluster.change_mode(temporary, entry.permissions)
            reached("upload.moded")
        self.expect(
            entry, Fingerprint(size=proven.size, mtime=proven.mtime, ino=proven.ino), version
        )
        await self._spool.save(entry)
        reached("upload.expected")
        self._require_current(entry, version)
        try:
            after = await self._renames.rename_checked(temporary, target, proven, there)
        except IsADirectory:
            raise OutcomeUnknown(f"{target} has just become a directory") from None
        reached("upload.renamed")
        await self._settle(entry, after, version)
        return True

    async def _publish_beside(self, entry: SpoolEntry, proven: Stat) -> None:
        """Both survive: the cluster's version under the name, ours beside it."""
        temporary = entry.temporary
        assert temporary is not None
        if (alias := self._aliases.of(entry.path)) is not None:
            log.warning("%s changed on the cluster; there is no %s", entry.path, alias.id)
            async with self._aliases.steady():
                if self._aliases.of(entry.path) is alias:
                    await self._aliases.drop(alias)
        beside = await self._linking.free_name(entry.path)
        log.warning("%s changed on the cluster; the local version is %s", entry.path, beside)
        original = entry.path
        self._spool.retarget(entry, beside)
        entry.base = None
        expected = Fingerprint(size=proven.size, mtime=proven.mtime, ino=proven.ino)
        self.expect(entry, expected, entry.version)
        await self._spool.save(entry)
        reached("conflict.expected")
        after = await self._renames.rename_checked(temporary, beside, proven, None)
        reached("conflict.renamed")
        self._cache.forget(original)
        self._catalog.forget(original)
        await self._settle(entry, after, entry.version)

    async def _must_go_beside(self, entry: SpoolEntry, there: Stat) -> bool:
        """Whether what is there is neither what the edit started from nor our own."""
        if there.kind is Kind.DIRECTORY:
            return True
        if entry.base is not None and entry.base.agrees(there.fingerprint, ignore_ctime=True):
            return False
        return self._keep_both and not await self._recognition.has_our_bytes(entry, there)

    # In place.

    async def _is_known_to_stay(self, entry: SpoolEntry) -> bool:
        """Whether the bytes need not travel to a temporary first. Many bytes are worth a look; a
        few are sent, and the look before publishing tells (docs/decisions/0014)."""
        if entry.base is None or self._aliases.of(entry.path) is not None:
            return False
        if entry.in_place:  # an attempt in place was cut: what is there may be half of it
            return True
        if entry.size > self._cluster.capabilities.direct_upload_limit:
            there = await self._namespace.find(entry.path)
            return there is not None and self._must_stay_in_place(entry, there)
        known, me = self._catalog.peek(entry.path), self._identity
        return (
            known is not None
            and known.kind is Kind.FILE
            and (
                known.uid not in {None, me.uid}
                or known.gid not in {None, me.gid}
                or (known.nlink or 1) > 1
                or known.has_acl
            )
        )

    def _must_stay_in_place(self, entry: SpoolEntry, there: Stat) -> bool:
        if there.kind is not Kind.FILE:
            return False
        known = self._catalog.peek(entry.path)
        me = self._identity
        return (
            there.uid != me.uid
            or there.gid != me.gid
            or there.nlink > 1
            or (known is not None and known.has_acl)
        )

    async def _write_in_place(self, entry: SpoolEntry, version: int) -> None:
        """The turn is held throughout: what is under way writes to this very name, so that it must
        mean the same file until the end. Who waits for the turn can be interrupted."""
        async with entry.turn:
            self._require_current(entry, version)
            if (alias := self._aliases.of(entry.path)) is not None:
                await self._aliases.carry_out(alias)
            there = await self._namespace.find(entry.path)
            if there is None:
                entry.base, entry.in_place = None, False
                raise Superseded  # removed on the cluster: the next attempt makes it anew
            if await self._must_go_beside(entry, there):
                log.info("%s changed on the cluster before it was written in place", entry.path)
                await self._bring_beside(entry, version)
                return
            if entry.attempt_version != version:
                entry.ticket, entry.form_sent = None, False
                entry.attempt_version, entry.is_adoptable = version, True
            elif not await self._routes.can_resume(entry, entry.path):
                await self.abandon(entry)
            entry.in_place = True
            self._cache.forget(entry.path)
            await self._spool.save(entry)
            reached("in-place.journaled")
            try:
                stat = await self._transport(entry, entry.path, version)
            except Spent as spent:
                await self.abandon(entry)
                await self._spool.save(entry)
                raise spent.error from spent
            except Superseded:
                # What is there now came from us: the next attempt starts from it.
                ours = await self._namespace.find(entry.path)
                entry.base = ours.fingerprint if ours is not None else None
                entry.in_place = False
                raise
            await self._settle(entry, await self._with_mode(entry, stat), version)

    async def _with_mode(self, entry: SpoolEntry, there: Stat) -> Stat:
        """What is there, with the mode that it was to have."""
        if there.mode & 0o7777 == entry.permissions or there.uid != self._identity.uid:
            return there
        await self._cluster.change_mode(entry.path, entry.permissions)
        return await self._cluster.stat(entry.path)

    async def _bring_beside(self, entry: SpoolEntry, version: int) -> None:
        entry.in_place = False
        proven = await self._bring(entry, version)
        await self._publish_beside(entry, proven)

    # Clean.

    async def _settle(
        self, entry: SpoolEntry, after: Stat, version: int, *, adopt: bool = True
    ) -> None:
        linked = await self._linking.make(entry, after)
        if linked is None:
            raise Superseded  # the entry is another file now
        after = linked
        if after.nlink > 1:
            self._catalog.forget_all()  # the other names show the new size and times as well
        self._catalog.note(entry.path, after)
        await self.settle([Arrival(entry, after.fingerprint, version, adopt)])

    async def settle(self, arrivals: Sequence[Arrival]) -> None:
        """The cluster has them: their journal records end, the spool files become the cached
        copies."""
        put: list[Record] = []
        drop: list[tuple[type[Record], str]] = []
        ended: set[SpoolEntry] = set()
        for one in arrivals:
            entry = one.entry
            if entry.temporary is not None:
                drop.append((LitterRecord, entry.temporary))
            entry.temporary, entry.ticket, entry.form_sent = None, None, False
            entry.expected, entry.in_place, entry.error = None, False, None
            entry.attempts = entry.cancels = 0
            entry.base = one.remote  # whoever still has it open writes on from here
            entry.published, entry.owed_since, entry.is_hurried = one.version, None, False
            put.append(self._times.note(entry.path, one.remote, entry.mtime_ns))
            if entry.version == one.version or entry.is_gone:
                drop.append((UploadRecord, entry.id))
                ended.add(entry)
            else:
                put.append(entry.record())
        await self._journal.write(*put, drop=tuple(drop))
        reached("upload.record-dropped")
        for one in arrivals:
            if one.entry in ended:
                await trio.lowlevel.checkpoint()  # there may be a thousand
                await self._clean(one)
            elif one.entry.is_gone:  # unlinked meanwhile
                await self._spool.drop_record(one.entry)

    async def _clean(self, one: Arrival) -> None:
        """Its record has ended."""
        entry = one.entry
        if one.adopt and self._is_clean(one) and entry.is_adoptable:
            file = self._spool.file_of(entry.id)
            try:
                await self._cache.adopt(file, entry.fd, entry.path, one.remote)
            except OSError as error:  # the cache is a convenience
                log.warning("%s is not kept in the cache: %s", entry.path, error)
            reached("upload.adopted")
            if not self._is_clean(one):  # written to while it was copied
                self._cache.forget(entry.path)
        if self._is_clean(one):
            self._spool.unlink(entry)
        elif not entry.is_gone:
            # Written again while the record ended: it is owed again, on the new base.
            entry.generation += 1
            await self._spool.commit(entry)

    def _is_clean(self, one: Arrival) -> bool:
        return one.entry.version == one.version and one.entry.state is State.UPLOADING

    def _require_current(self, entry: SpoolEntry, version: int) -> None:
        if entry.is_gone or entry.version != version:
            raise Superseded
