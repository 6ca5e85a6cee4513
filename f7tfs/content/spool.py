"""Dirty files: their bytes on the local disk, their states, and who may move them.

A `SpoolEntry` is found by its remote path (at most one per path) until it is unlinked or clean.
It has further paths once link(2) made some: they become hard links when the file is published.
Reading and changing entries happens in plain functions: between two checkpoints nobody
interferes. Only `commit` waits (fsync, journal).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from f7tfs.content.aside import left_in, set_unclosed_aside
from f7tfs.content.disk import Disk, free_space, start_writeback, sync_directory
from f7tfs.content.entry import ALLOWED as ALLOWED
from f7tfs.content.entry import SpoolEntry as SpoolEntry
from f7tfs.content.entry import State as State
from f7tfs.content.journal import Journal, Record, RemovalRecord, UploadRecord
from f7tfs.errors import NoLocalSpace
from f7tfs.faultpoints import reached
from f7tfs.model import Fingerprint, RemotePath, is_within

log = logging.getLogger("f7tfs.spool")
RESERVE = 64 << 20  # bytes of the local disk that writing leaves free for journal and log


class Spool:
    """All dirty files of one journal."""

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        disk: Disk,
        *,
        is_junk_name: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._is_junk_name = is_junk_name
        self._directory = directory / "spool"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._journal = journal
        self._disk = disk
        self._granted = 0  # bytes that may be written before the disk is looked at again
        self._by_path: dict[RemotePath, SpoolEntry] = {}
        self._by_id: dict[str, SpoolEntry] = {}
        self._missing: list[tuple[UploadRecord, str]] = []  # records, and why they have no entry
        self.changed = trio.Event()  # replaced at every change of a state; wait for the present one

    # Finding.

    def at(self, path: RemotePath) -> SpoolEntry | None:
        return self._by_path.get(path)

    def by_id(self, entry_id: str) -> SpoolEntry | None:
        return self._by_id.get(entry_id)

    def within(self, directory: RemotePath) -> list[SpoolEntry]:
        """Entries with a name at or below `directory`."""
        return list({entry.id: entry for _, entry in self.names_within(directory)}.values())

    def names_within(self, directory: RemotePath) -> list[tuple[RemotePath, SpoolEntry]]:
        """Names of dirty files at or below `directory`."""
        return [(path, one) for path, one in self._by_path.items() if is_within(path, directory)]

    def children(self, directory: RemotePath) -> Iterator[tuple[str, SpoolEntry]]:
        prefix = directory.rstrip("/") + "/"
        for path, entry in self._by_path.items():
            name = path[len(prefix) :]
            if path.startswith(prefix) and "/" not in name:
                yield name, entry

    def __iter__(self) -> Iterator[SpoolEntry]:
        return iter(list(self._by_id.values()))

    def owed(self) -> list[SpoolEntry]:
        """Entries whose content was closed and is owed to the cluster; junk never is. The release
        of a closed file may still be on its way, hence the look at what is journaled."""
        return [one for one in self if one.is_owed]

    # Making and changing.

    def new(self, path: RemotePath, *, base: Fingerprint | None, permissions: int) -> SpoolEntry:
        """A new, empty dirty file that nobody finds until `enter`. Raises NoLocalSpace."""
        self.reserve(0)
        entry_id = uuid.uuid4().hex
        fd = os.open(self._unclosed(entry_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        reached("spool.created")
        return SpoolEntry(
            entry_id,
            path,
            fd,
            base=base,
            permissions=permissions,
            mtime_ns=time.time_ns(),
            created=time.time(),
            cut_mark=self._cut_mark(entry_id),
            is_junk_name=self._is_junk_name,
        )

    def enter(self, entry: SpoolEntry) -> None:
        """From now on the entry is what its path means; there must be no other."""
        assert entry.path not in self._by_path, f"{entry.path} is dirty already"
        self._by_path[entry.path] = entry
        self._by_id[entry.id] = entry

    def file_of(self, entry_id: str) -> Path:
        """Where the bytes of a journaled entry are. Before its first commit the file has another
        name, so that a start can tell what was never closed from what was just finished."""
        return self._directory / entry_id

    def _unclosed(self, entry_id: str) -> Path:
        return self._directory / f"{entry_id}.open"

    def _cut_mark(self, entry_id: str) -> Path:
        """Stands while a file is shorter than its record says, because it was truncated here."""
        return self._directory / f"{entry_id}.cut"

    @property
    def directory(self) -> Path:
        return self._directory

    def set_aside(self) -> list[Path]:
        """What could not be used at this start or an earlier one, and is the user's now."""
        return left_in(self._directory.parent)

    def reserve(self, size: int) -> None:
        """Refuse what the disk cannot hold. Raises NoLocalSpace. Others fill the disk as well, so
        it is looked at again after a quarter of what is left free, not before every write."""
        if 0 < size <= self._granted:
            self._granted -= size
            return
        self._granted = 0
        left = free_space(self._directory) - RESERVE - size
        if left < 0:
            raise NoLocalSpace("the disk that holds the spool is full")
        self._granted = min(left, RESERVE // 4)

    def move(self, entry: SpoolEntry, state: State) -> None:
        """The one gatekeeper of the states."""
        if entry.state is not state:
            if state not in ALLOWED[entry.state]:
                raise AssertionError(f"{entry!r} must not become {state.value}")
            entry.state = state
        event, self.changed = self.changed, trio.Event()
        event.set()

    def retarget(self, entry: SpoolEntry, path: RemotePath, name: RemotePath | None = None) -> None:
        """The name, or the one of its names that is told, changed; whoever was dirty at the new
        one has been dealt with by the caller."""
        assert self._by_path.get(path) in (None, entry), f"{path} is dirty already"
        old = entry.path if name is None else name
        if self._by_path.get(old) is entry:
            del self._by_path[old]
        if old == entry.path:
            entry.path = path
        else:
            entry.links[entry.links.index(old)] = path
        entry.generation += 1
        self._by_path[path] = entry

    def add_name(self, entry: SpoolEntry, path: RemotePath) -> None:
        """link(2): one more name of the same file."""
        assert path not in self._by_path, f"{path} is dirty already"
        entry.links.append(path)
        entry.generation += 1
        self._by_path[path] = entry

    def drop_name(self, entry: SpoolEntry, path: RemotePath) -> None:
        """One of several names is gone; the file lives on under the others."""
        if path == entry.path:
            entry.path = entry.links.pop(0)
        else:
            entry.links.remove(path)
        entry.generation += 1
        del self._by_path[path]

    def lead(self, entry: SpoolEntry, path: RemotePath) -> None:
        """The cluster has none of the names yet: this one is published first, as the file."""
        assert entry.base is None, f"{entry!r} is on the cluster under its first name"
        if path != entry.path:
            entry.links[entry.links.index(path)] = entry.path
            entry.path = path
            entry.generation += 1

    async def commit(self, entry: SpoolEntry) -> None:
        """Content and record on the disk: what close() and fsync() promise."""
        generation = entry.generation
        if entry.is_gone or entry.journaled == generation:
            return
        first, size = entry.journaled == 0, entry.size
        await self._disk.sync(entry.fd)
        reached("spool.synced")
        if first:
            await self._disk.run(lambda: self._name_for_good(entry.id))
            reached("spool.named")
        if entry.is_gone:
            return
        await self._save_flushed(entry, size)

        def is_known() -> None:
            entry.journaled = max(entry.journaled, generation)
            reached("spool.recorded")

        self._journal.once_durable(is_known)

    async def _save_flushed(self, entry: SpoolEntry, size: int) -> None:
        before, entry.flushed_size = entry.flushed_size, size
        try:
            await self.save(entry)
        except BaseException:
            entry.flushed_size = before
            raise
        if not entry.is_gone:
            entry.flushed(size)

    async def write_back(self, entry: SpoolEntry) -> None:
        """Let the disk begin: close() of a large file then waits for its end only (measured,
        docs/decisions/0012)."""
        entry.unflushed = 0
        if entry.fd < 0:
            return
        self.use(entry)
        try:
            await self._disk.run(lambda: start_writeback(entry.fd))
        except OSError as error:
            log.debug("%r: %s", entry, error)  # the fsync says what counts
        finally:
            self.leave(entry)

    def _name_for_good(self, entry_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # two flushes at once: one of them renames
            self._unclosed(entry_id).rename(self.file_of(entry_id))
        sync_directory(self._directory)

    async def save(
        self,
        entry: SpoolEntry,
        *others: Record,
        drop: tuple[tuple[type[Record], str], ...] = (),
    ) -> None:
        """Journal the attempt's present facts (temporary name, ticket, expected fingerprint), and
        `others` with them. The record of an entry that is gone must not come back."""
        ends = entry.replaced
        drop = (*drop, *((RemovalRecord, one) for one in ends))
        if entry.is_gone:
            await self._journal.write(*others, drop=drop)
        else:
            await self._journal.write(*others, entry.record(), drop=drop)
            if entry.is_gone:  # unlinked meanwhile
                await self._journal.write(drop=((UploadRecord, entry.id),))
        if entry.replaced == ends:
            entry.replaced = ()

    def unlink(self, entry: SpoolEntry) -> None:
        """Forget a dirty file; open handles keep its bytes. The caller drops the record."""
        for path in entry.names:
            if self._by_path.get(path) is entry:
                del self._by_path[path]
        self._by_id.pop(entry.id, None)
        if not entry.is_gone:
            self.move(entry, State.GONE)
        self._close_if_unused(entry)

    async def drop_record(self, entry: SpoolEntry) -> None:
        ends = tuple((RemovalRecord, one) for one in entry.replaced)
        await self._journal.write(drop=((UploadRecord, entry.id), *ends))

    def leave_when_durable(self, entry: SpoolEntry) -> None:
        """`leave`, once what was journaled of it is on the disk: a file outlives its record."""
        self._journal.once_durable(lambda: self.leave(entry))

    def use(self, entry: SpoolEntry) -> None:
        entry.users += 1

    def leave(self, entry: SpoolEntry) -> None:
        entry.users -= 1
        assert entry.users >= 0, f"{entry!r}: left more often than used"
        self._close_if_unused(entry)

    def _close_if_unused(self, entry: SpoolEntry) -> None:
        if entry.state is State.GONE and entry.users == 0 and entry.fd >= 0:
            os.close(entry.fd)
            entry.fd = -1
            self.file_of(entry.id).unlink(missing_ok=True)
            self._unclosed(entry.id).unlink(missing_ok=True)
            self._cut_mark(entry.id).unlink(missing_ok=True)
            self._journal.forget_ended(entry.id)

    # Starting and ending.

    def load(self, keep: set[str]) -> None:
        """Crash recovery: every record's file becomes an entry again. A file whose record has ended
        is removed; one that no record ever spoke of was not closed: it is set aside, not deleted.
        `keep`: names of files that other records (scripts on their way) speak of."""
        for record in self._journal.load(UploadRecord):
            keep = keep | {record.id, f"{record.id}.cut"}
            try:
                fd = os.open(self.file_of(record.id), os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                self._missing.append((record, f"its bytes are not in the spool ({error.strerror})"))
                continue
            entry = SpoolEntry(
                record.id,
                RemotePath(record.path),
                fd,
                base=record.base,
                permissions=record.permissions,
                mtime_ns=record.mtime_ns,
                created=record.created,
                cut_mark=self._cut_mark(record.id),
                is_junk_name=self._is_junk_name,
            )
            entry.temporary = RemotePath(record.temporary) if record.temporary else None
            entry.ticket, entry.form_sent = record.ticket, record.sent
            entry.expected, entry.in_place = record.expected, record.in_place
            entry.expected_since = record.expected_since
            entry.expected_version = entry.version if record.expected_is_current else 0
            entry.attempt_version = entry.version if record.attempt_is_current else 0
            entry.parts = record.parts
            if record.parts and record.parts_mtime_ns != os.fstat(fd).st_mtime_ns:
                entry.attempt_version = 0  # written to since: no part of it goes with new ones
            entry.is_adoptable = False  # it may hold bytes that were written but never flushed
            entry.hold = record.held
            entry.journaled = entry.generation
            entry.error = record.stuck
            entry.flushed_size = record.size
            if entry.size < record.size and not self._cut_mark(record.id).exists():
                # Only the user can tell whether the rest of it is worth anything.
                entry.error = (
                    f"its file in the spool has {entry.size} of {record.size} bytes; retry sends"
                    " them, discard gives them up"
                )
                self._journal.aside.report(f"{record.path} is not uploaded: {entry.error}")
                entry.flushed_size = entry.size
            entry.state = State.HELD if record.held else State.QUEUED
            entry.state = State.STUCK if entry.error else entry.state
            entry.links = [RemotePath(path) for path in record.links]
            if entry.path in self._by_path:  # no crash leaves this behind; neither may be lost
                self._journal.aside.report(f"two dirty files are {entry.path}; both are kept")
                entry.path = RemotePath(f"{entry.path}.recovered-{entry.id[:8]}")
            entry.links = [path for path in entry.links if path not in self._by_path]
            for path in entry.names:
                self._by_path[path] = entry
            self._by_id[entry.id] = entry

        ended = self._journal.ended()
        set_unclosed_aside(self._directory, keep, set() if self._journal.has_strangers else ended)
        self._journal.forget_ended(*ended)

    async def set_missing_aside(self) -> None:
        """Give up what `load` found no bytes of; each is reported once."""
        while self._missing:
            record, why = self._missing.pop()
            await self._journal.set_aside(record, f"{record.path} is not uploaded: {why}")

    def close(self) -> None:
        for entry in self._by_id.values():
            os.close(entry.fd)
            entry.fd = -1

    def check(self) -> None:
        """The invariants, for tests and the debug switch."""
        for path, entry in self._by_path.items():
            assert path in entry.names, f"{entry!r} is filed under {path}"
            assert all(self._by_path.get(one) is entry for one in entry.names)
            assert self._by_id.get(entry.id) is entry
            assert entry.state is not State.GONE, f"{entry!r} is gone but found"
            assert entry.fd >= 0
            if entry.state is not State.OPEN:
                assert entry.journaled > 0, f"{entry!r} is owed but not journaled"
