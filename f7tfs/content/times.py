"""The times overlay: what `utimens` set and when we wrote, for remote files that did not change.

Neither dialect can set a file's time. An entry holds while size and mtime on the cluster are
what they were when it was made; then the cluster's own time counts again.
"""

from __future__ import annotations

from f7tfs.content.journal import Journal, TimesRecord
from f7tfs.model import Fingerprint, RemotePath, is_within

ANY = Fingerprint(size=-1, mtime=-1)  # of a directory, which our own uploads change


class Times:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._records = {RemotePath(one.id): one for one in journal.load(TimesRecord)}

    def mtime_ns(self, path: RemotePath, remote: Fingerprint) -> int:
        """The mtime to show for a remote file, in nanoseconds."""
        record = self._records.get(path)
        if record is not None and (
            record.remote == ANY or record.remote.agrees(remote, ignore_ctime=True)
        ):
            return record.mtime_ns
        return remote.mtime * 1_000_000_000

    def note(self, path: RemotePath, remote: Fingerprint, mtime_ns: int) -> TimesRecord:
        """Remember at once; the caller writes the record that this returns."""
        kept = Fingerprint(size=remote.size, mtime=remote.mtime)
        record = TimesRecord(id=path, remote=kept, mtime_ns=mtime_ns)
        self._records[path] = record
        return record

    async def set(self, path: RemotePath, remote: Fingerprint, mtime_ns: int) -> None:
        await self._journal.write(self.note(path, remote, mtime_ns))

    async def set_directory(self, path: RemotePath, mtime_ns: int) -> None:
        """utimens on a directory: it holds until a name in it is changed here (`changed_in`), also
        while uploads bring files into it on the cluster (rsync and tar set it last)."""
        record = TimesRecord(id=path, remote=ANY, mtime_ns=mtime_ns)
        self._records[path] = record
        await self._journal.write(record)

    async def changed_in(self, directory: RemotePath) -> None:
        """A name was made, removed or changed in a directory: its time is the cluster's again."""
        record = self._records.get(directory)
        if record is not None and record.remote == ANY:
            del self._records[directory]
            await self._journal.write(drop=((TimesRecord, directory),))

    async def rename(self, source: RemotePath, target: RemotePath) -> None:
        moved = [path for path in self._records if is_within(path, source)]
        gone = [path for path in self._records if is_within(path, target)]
        old = {path: self._records.pop(path) for path in {*moved, *gone}}
        put = []
        for path in moved:
            record = old[path]
            new = RemotePath(target + path[len(source) :])
            self._records[new] = TimesRecord(id=new, remote=record.remote, mtime_ns=record.mtime_ns)
            put.append(self._records[new])
        drop = tuple((TimesRecord, path) for path in old if path not in self._records)
        if put or drop:
            await self._journal.write(*put, drop=drop)

    async def forget(self, path: RemotePath) -> None:
        gone = [each for each in self._records if is_within(each, path)]
        for each in gone:
            del self._records[each]
        if gone:
            await self._journal.write(drop=tuple((TimesRecord, each) for each in gone))
