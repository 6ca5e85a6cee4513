"""What the cluster has under a dirty file's name after a crash or a lost reply: ours, or not."""

from __future__ import annotations

from f7tfs.content.disk import Disk, sha256_of
from f7tfs.content.spool import Spool, SpoolEntry
from f7tfs.model import Fingerprint, Kind, RemotePath, Stat
from f7tfs.transfers.namespace import Namespace
from f7tfs.transfers.workplace import Workplace

CHECKSUM_LIMIT = 256 << 20  # bytes; the server's sha256sum has 5 s


class Recognition:
    def __init__(
        self,
        namespace: Namespace,
        workplace: Workplace,
        spool: Spool,
        disk: Disk,
    ) -> None:
        self._namespace = namespace
        self._workplace = workplace
        self._spool = spool
        self._disk = disk

    async def recognise(self, entry: SpoolEntry) -> Stat | None:
        """Settle what a lost reply left open: if our rename or archive went through, what is there
        is the entry's base from now on, and is returned. The caller holds the turn."""
        expected = entry.expected
        if expected is None:
            return None
        if entry.in_place:
            await self._workplace.no_archive_left()
        there = await self._namespace.find(entry.path)
        if not _is(expected, there) and entry.temporary is not None:
            since = await self._how_late(entry, entry.temporary)
            await self._namespace.outwait(entry.path, lambda stat: _is(expected, stat), since=since)
            there = await self._namespace.find(entry.path)  # it may have come before that removal
        if there is None or not _is(expected, there):
            entry.expected = None
            if there is None:
                entry.in_place = False
            elif entry.base is None and await self.has_our_bytes(entry, there):
                entry.base = there.fingerprint  # a part of it
            return None
        if entry.temporary is not None:
            # On v2 a rename is a link and an unlink: the old name may still be there.
            await self._workplace.remove_litter(entry.temporary)
        entry.base, entry.expected, entry.in_place = there.fingerprint, None, False
        entry.temporary, entry.ticket, entry.form_sent = None, None, False
        await self._spool.save(entry)
        return there

    async def _how_late(self, entry: SpoolEntry, temporary: RemotePath) -> float:
        """The rename of a daemon that was killed may still wait its turn at the server: since when
        (epoch seconds). It needs the temporary: once that is gone, nothing is under way any more.
        A few bytes are sent again for that; what was staged is not."""
        if entry.ticket is None and await self._workplace.remove_litter(temporary):
            entry.temporary = None
            await self._spool.save(entry)
            return 0.0
        return entry.expected_since

    async def has_our_bytes(self, entry: SpoolEntry, there: Stat) -> bool:
        """The same bytes are no conflict, whoever brought them; nor is a part of ours, after an
        attempt in place or in an archive that was cut."""
        size = entry.size
        has_part = entry.in_place and there.size < size
        if there.kind is not Kind.FILE or there.size > CHECKSUM_LIMIT:
            return False
        if there.size != size and not has_part:
            return False
        theirs = await self._workplace.checksum(entry.path)
        return theirs == await self._disk.run(lambda: sha256_of(entry.fd, there.size))


def _is(expected: Fingerprint, there: Stat | None) -> bool:
    return there is not None and expected.agrees(there.fingerprint, ignore_ctime=True)
