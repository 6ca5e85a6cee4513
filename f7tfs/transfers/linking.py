"""Names that link(2) gave a file before it was on the cluster (docs/decisions/0014).

One is published as any file; the others become hard links to it before its record ends. Where the
cluster makes none, each becomes a file of its own.
"""

from __future__ import annotations

import logging

import msgspec

from f7tfs.catalog import Catalog
from f7tfs.content.journal import LitterRecord
from f7tfs.content.spool import Spool, SpoolEntry
from f7tfs.content.times import Times
from f7tfs.errors import Exists, F7tfsError
from f7tfs.model import RemotePath, Stat
from f7tfs.transfers.namespace import Namespace, conflict_name
from f7tfs.transfers.renames import Renames

log = logging.getLogger("f7tfs.upload")


class Linking:
    def __init__(
        self,
        namespace: Namespace,
        renames: Renames,
        spool: Spool,
        catalog: Catalog,
        times: Times,
        hostname: str,
    ) -> None:
        self._namespace = namespace
        self._renames = renames
        self._spool = spool
        self._catalog = catalog
        self._times = times
        self._hostname = hostname

    async def free_name(self, path: RemotePath) -> RemotePath:
        """Where the local version goes when both survive."""
        beside = conflict_name(path, self._hostname)
        while await self._namespace.find(beside) is not None or self._spool.at(beside) is not None:
            beside = RemotePath(beside + "-2")
        return beside

    async def make(self, entry: SpoolEntry, after: Stat) -> Stat | None:
        """The further names of a file that was just published. Returns what the file is then; None
        where the cluster refuses: the content goes on to the next name. The caller holds the
        entry's turn."""
        while entry.links:
            name = entry.links[0]
            try:
                await self._renames.link(entry.path, name)
                after = msgspec.structs.replace(after, nlink=after.nlink + 1, ctime=None)
            except Exists:
                there = await self._namespace.find(name)
                if there is None or (there.ino, there.dev) != (after.ino, after.dev):
                    beside = await self.free_name(name)
                    log.warning("%s is taken on the cluster; the link is %s", name, beside)
                    self._spool.retarget(entry, beside, name)
                    await self._spool.save(entry)
                    continue
            except F7tfsError as error:
                if error.transient:
                    raise
                log.warning("%s goes as a file of its own: %s", name, error)
                await self._part(entry, after)
                return None
            times = self._times.note(name, after.fingerprint, entry.mtime_ns)
            self._spool.drop_name(entry, name)
            await self._spool.save(entry, times)
        return after

    async def _part(self, entry: SpoolEntry, after: Stat) -> None:
        """What was published under the first name is clean; the entry is another file from now on,
        with the same content, under the names that are left."""
        times = self._times.note(entry.path, after.fingerprint, entry.mtime_ns)
        self._catalog.note(entry.path, after)
        litter = ((LitterRecord, entry.temporary),) if entry.temporary is not None else ()
        entry.temporary, entry.ticket, entry.form_sent = None, None, False
        entry.base, entry.expected, entry.in_place = None, None, False
        entry.version += 1  # it is owed again, to whoever waits for it
        self._spool.drop_name(entry, entry.path)
        await self._spool.save(entry, times, drop=litter)
