"""Clean content by (path, fingerprint): sparse files on the local disk that survive restarts.

A `CacheFile` fills in any order; what of it is here (`held`) is read by whoever pinned it while
the rest arrives. Room is made *before* bytes are asked for: least recently used files go first,
then, of files that are open, what lies far from where they are being read. Nobody ever waits for
room, so readers cannot stop each other.

A label beside the file says what it holds. It is trusted by later mounts: not if the file changed
within two seconds of the observation of its fingerprint ("racy": the cluster's times have whole
seconds), and not after the machine started anew, unless the bytes were synced before the label
said so.

Losing the cache costs time, never data.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from f7tfs.content.disk import Disk, copy_bytes, free_space, punch_hole, write_all
from f7tfs.content.extents import Extents
from f7tfs.errors import F7tfsError, NoLocalSpace
from f7tfs.model import Fingerprint, RemotePath, is_within

log = logging.getLogger("f7tfs.cache")
RACY = 2.0  # seconds
BLOCK = 1 << 20  # bytes; the smallest piece that is fetched, and always admitted
NEAR = ((BLOCK, 64 * BLOCK), (BLOCK, 2 * BLOCK))  # (behind, ahead) of a reader: kept, in two rounds
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Snapshot(msgspec.Struct, frozen=True):
    """The staged copy of one version: where it can be read from, and what made it. `link` is a
    presigned GET: a secret. `since` in epoch seconds; `size` in bytes."""

    link: str
    ticket: str
    since: float
    size: int


class Label(msgspec.Struct, frozen=True):
    """What a cache file holds; kept beside it as JSON. `held` is None for all of it. `boot` names
    the run of the machine that wrote the label; a `synced` one holds beyond it."""

    path: str
    fingerprint: Fingerprint
    held: list[tuple[int, int]] | None = None
    snapshot: Snapshot | None = None
    boot: str = ""
    synced: bool = False


class CacheFile:
    """Bytes of one version of one remote file. Published before it is filled: readers wait on
    `grown`, an event that is replaced at every growth. Changed only by its `Cache`."""

    def __init__(self, file: Path, path: RemotePath, fingerprint: Fingerprint, fd: int) -> None:
        self.file = file
        self.path = path
        self.fingerprint = fingerprint
        self.fd = fd
        self.held = Extents()
        self.unproven: Extents | None = None  # of the shorter version that the file grew from
        self.promised = 0  # bytes that are being fetched: room is made, they are not here yet
        self.snapshot: Snapshot | None = None
        self.readers: dict[object, int] = {}  # who reads at which offset
        self.complete_for: set[object] = set()  # who needs all of it at once
        self.is_racy = False
        self.is_synced = False
        self.is_dropped = False
        self.pins = 0
        self.failure: F7tfsError | None = None
        self.grown = trio.Event()

    @property
    def size(self) -> int:
        return self.fingerprint.size

    @property
    def is_complete(self) -> bool:
        return self.held.total >= self.size

    def has(self, offset: int, length: int) -> bool:
        return self.held.holds(offset, min(offset + length, self.size))

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, max(0, min(length, self.size - offset)), offset)

    def fail(self, error: F7tfsError) -> None:
        self.failure = error
        self.wake()

    def wake(self) -> None:
        event, self.grown = self.grown, trio.Event()
        event.set()

    @property
    def takes(self) -> int:
        """Bytes of the cache's limit that it uses."""
        return self.held.total + (self.unproven.total if self.unproven else 0) + self.promised


class Cache:
    """LRU by bytes; what is pinned is never dropped whole."""

    def __init__(self, directory: Path, disk: Disk, *, limit: int, min_free: int) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._disk = disk
        self._limit = limit
        self._min_free = min_free
        self._boot = _boot_id()
        self._files: dict[RemotePath, CacheFile] = {}  # in LRU order, oldest first
        self._dropped: set[CacheFile] = set()  # replaced or evicted while somebody reads them
        self._used = 0  # bytes, with what is promised
        self._promised = 0
        self._retired: list[Snapshot] = []
        self._load()

    # Finding and making.

    def find(self, path: RemotePath, fingerprint: Fingerprint) -> CacheFile | None:
        """The file's content if it is here under the same fingerprint, complete or arriving."""
        found = self._files.get(path)
        if found is None or found.failure is not None:
            return None
        if not found.fingerprint.agrees(fingerprint):
            return None
        self._files[path] = self._files.pop(path)
        return found

    def shorter(self, path: RemotePath, fingerprint: Fingerprint) -> CacheFile | None:
        """What is here of a version of the same inode that `fingerprint` may have grown from."""
        found = self._files.get(path)
        if found is None or found.failure is not None or found.is_dropped:
            return None
        known = found.fingerprint
        same = known.ino is not None and known.ino == fingerprint.ino
        return found if same and 0 < known.size < fingerprint.size else None

    def create(self, path: RemotePath, fingerprint: Fingerprint) -> CacheFile:
        """An empty file to fill; takes the place of older versions. Room is made by `promise`."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # cleaners tidy caches away
        self.forget(path)
        created = self._make(path, fingerprint)
        os.ftruncate(created.fd, fingerprint.size)
        self._files[path] = created
        return created

    def _make(self, path: RemotePath, fingerprint: Fingerprint) -> CacheFile:
        file = self._directory / uuid.uuid4().hex
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return CacheFile(file, path, fingerprint, fd)

    async def adopt(
        self, source: Path, fd: int, path: RemotePath, fingerprint: Fingerprint
    ) -> CacheFile | None:
        """Take over a verified, synced spool file as the clean copy, without a download. None if
        there is no room; the source then stays where it is."""
        try:
            self.make_room(fingerprint.size, on_disk=source.stat().st_dev != self._device)
        except NoLocalSpace:
            return None
        adopted = self._make(path, fingerprint)
        try:
            source.rename(adopted.file)
            os.close(adopted.fd)
            adopted.fd = os.open(adopted.file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # another file system
            await self._disk.run(lambda: copy_bytes(fd, adopted.fd, fingerprint.size))
            await self._disk.sync(adopted.fd)
        self.forget(path)
        self._files[path] = adopted
        self._used += adopted.held.add(0, fingerprint.size)
        self.finish(adopted, racy=False, synced=True)
        return adopted

    # Filling.

    def promise(self, content: CacheFile, size: int) -> None:
        """`size` bytes will be fetched into the pinned file: make room now. Raises
        NoLocalSpace."""
        self.make_room(size)
        content.promised += size
        self._promised += size
        self._used += size

    def release(self, content: CacheFile, size: int) -> None:
        """Of what was promised, `size` bytes are not fetched after all (or have `arrived`)."""
        content.promised -= size
        self._promised -= size
        self._used -= size

    def write(self, content: CacheFile, offset: int, data: bytes) -> None:
        """Bytes of a promised range. Raises OSError (ENOSPC)."""
        write_all(content.fd, data, offset)
        self.arrived(content, offset, offset + len(data))

    def arrived(self, content: CacheFile, start: int, end: int) -> None:
        """Somebody has put bytes of a promised range into the file."""
        self.release(content, end - start)
        self._used += content.held.add(start, end)
        content.wake()

    def finish(self, content: CacheFile, *, racy: bool, synced: bool = False) -> None:
        """The file is complete."""
        content.is_racy, content.is_synced = racy, synced
        content.wake()
        self.label(content)

    async def sync(self, content: CacheFile) -> None:
        """From now on its label holds also when the machine stops without a word."""
        before = content.fingerprint
        await self._disk.sync(content.fd)
        if content.is_complete and content.fingerprint == before and not content.is_synced:
            content.is_synced = True
            self.label(content)

    def label(self, content: CacheFile) -> None:
        """Say what is here, so that later mounts find it."""
        if content.is_racy or content.is_dropped or content.unproven is not None:
            return
        if not content.held.total and content.snapshot is None:
            return
        label = Label(
            content.path,
            content.fingerprint,
            None if content.is_complete else list(content.held),
            content.snapshot,
            self._boot,
            content.is_synced,
        )
        target = _label_of(content.file)
        aside = target.with_suffix(".new")
        try:
            aside.write_bytes(msgspec.json.encode(label))
            aside.chmod(0o600)
            aside.replace(target)
        except (OSError, UnicodeEncodeError) as error:
            log.debug("%s will not outlive this mount: %s", content.path, error)

    def _unlabel(self, content: CacheFile) -> None:
        content.is_synced = False
        _label_of(content.file).unlink(missing_ok=True)

    # New versions of the same file.

    def restart(self, content: CacheFile, fingerprint: Fingerprint) -> None:
        """Another version is there, and nobody has seen a byte of the old one."""
        self._empty(content)
        content.fingerprint = fingerprint
        os.ftruncate(content.fd, fingerprint.size)

    def grow(self, content: CacheFile, fingerprint: Fingerprint) -> None:
        """The same inode is longer now. What is here counts again once `prove` says that it is
        still the file's beginning."""
        if content.unproven is None:
            content.unproven, content.held = content.held, Extents()
        self._unlabel(content)
        content.fingerprint = fingerprint
        os.ftruncate(content.fd, fingerprint.size)

    def prove(self, content: CacheFile, *, unchanged: bool) -> None:
        """Whether the beginning of a file that grew is what it was."""
        before, content.unproven = content.unproven, None
        for start, end in before or ():
            if unchanged:
                self._used += content.held.add(start, end) - (end - start)
            else:
                self._punch(content, start, end)
                self._used -= end - start
        if not unchanged:
            self.retire(content)

    def retire(self, content: CacheFile) -> None:
        """The staged snapshot is not of use any more."""
        if content.snapshot is not None:
            self._retired.append(content.snapshot)
            content.snapshot = None

    def take_retired(self) -> list[Snapshot]:
        """Snapshots that nobody needs: to be withdrawn."""
        taken, self._retired = self._retired, []
        return taken

    # Using.

    def pin(self, content: CacheFile) -> None:
        content.pins += 1

    def unpin(self, content: CacheFile) -> None:
        content.pins -= 1
        assert content.pins >= 0
        if content.pins:
            return
        if content.is_dropped:
            self._close(content)
        elif not content.is_complete:
            self.label(content)

    def forget(self, path: RemotePath) -> None:
        """Drop what is here for `path`; whoever has it pinned goes on reading it."""
        content = self._files.pop(path, None)
        if content is not None:
            content.is_dropped = True
            self._unlabel(content)
            content.file.unlink(missing_ok=True)
            self._dropped.add(content)
            if content.pins == 0:
                self._close(content)

    def _close(self, content: CacheFile) -> None:
        self._dropped.discard(content)
        self._used -= content.takes
        self.retire(content)
        if content.fd >= 0:
            os.close(content.fd)
            content.fd = -1

    def rename(self, source: RemotePath, target: RemotePath) -> None:
        """The remote name changed; content of the file, or below the directory, goes with it."""
        self.forget(target)
        for path in [path for path in self._files if is_within(path, source)]:
            content = self._files.pop(path)
            content.path = RemotePath(target + path[len(source) :])
            self._files[content.path] = content
            self.label(content)

    def touch(self, path: RemotePath, fingerprint: Fingerprint) -> None:
        """Our own chmod or rename changed the file's ctime, not its content."""
        content = self._files.get(path)
        if content is not None and content.fingerprint.agrees(fingerprint, ignore_ctime=True):
            content.fingerprint = fingerprint
            self.label(content)

    # Room.

    def make_room(self, size: int, *, on_disk: bool = True) -> None:
        """Evict until `size` more bytes fit. A single block is admitted beyond the limit, if the
        disk has room for it. Raises NoLocalSpace."""
        if self._fits(size, on_disk):
            return
        self._evict(lambda: self._fits(size, on_disk))
        if not self._has_space(size, on_disk):
            raise NoLocalSpace(f"no room for {size} bytes on the cache's disk")
        if not self._fits(size, on_disk) and size > BLOCK:
            raise NoLocalSpace(f"no room for {size} bytes within the cache's limit")

    def give_way(self, size: int) -> None:
        """Evict clean content so that `size` bytes of dirty data find room on the same disk."""
        before = self._used
        self._evict(lambda: before - self._used >= size)

    def _evict(self, enough: Callable[[], bool]) -> None:
        for content in list(self._files.values()):
            if enough():
                return
            if content.pins == 0:
                self.forget(content.path)
        for behind, ahead in NEAR:
            for content in list(self._files.values()):
                if enough():
                    return
                self._thin(content, behind, ahead, enough)

    def _thin(
        self, content: CacheFile, behind: int, ahead: int, enough: Callable[[], bool]
    ) -> None:
        """Of a file in use, drop what is far from its readers, the beginning first. Unless it can
        be had again piece by piece, or somebody needs the whole."""
        if content.is_dropped or content.snapshot is None or content.complete_for:
            return
        near = Extents((max(0, at - behind), at + ahead) for at in content.readers.values())
        for start, end in content.held:
            for first, last in near.gaps(start, end):
                for at in range(first, last, 16 * BLOCK):
                    if enough():
                        return
                    until = min(last, at + 16 * BLOCK)
                    if not self._punch(content, at, until):
                        return
                    self._used -= content.held.discard(at, until)

    def _punch(self, content: CacheFile, start: int, end: int) -> bool:
        self._unlabel(content)
        try:
            punch_hole(content.fd, start, end - start)
        except OSError as error:
            log.debug("no holes in %s: %s", content.file, error)
            return False
        return True

    def _empty(self, content: CacheFile) -> None:
        self._unlabel(content)
        self.retire(content)
        self._used -= content.takes - content.promised
        content.held, content.unproven = Extents(), None
        os.ftruncate(content.fd, 0)

    def _fits(self, size: int, on_disk: bool) -> bool:
        return self._used + size <= self._limit and self._has_space(size, on_disk)

    def _has_space(self, size: int, on_disk: bool) -> bool:
        """What was promised is not on the disk yet."""
        wanted = self._min_free + self._promised + size
        return not on_disk or free_space(self._directory) >= wanted

    @property
    def _device(self) -> int:
        return self._directory.stat().st_dev

    @property
    def used(self) -> int:
        """Bytes, with what is promised."""
        return self._used

    @property
    def limit(self) -> int:
        return self._limit

    def __len__(self) -> int:
        return len(self._files)

    # Starting and ending.

    def _load(self) -> None:
        """Take over what an earlier daemon left; remove what has no label."""
        found: list[tuple[float, CacheFile]] = []
        keep: set[Path] = set()
        for label_file in self._directory.glob("*.json"):
            content = self._load_one(label_file)
            if content is not None:
                found.append((os.fstat(content.fd).st_atime, content))
                keep |= {content.file, label_file}
        for file in self._directory.iterdir():
            if file not in keep:
                file.unlink(missing_ok=True)
        for _, content in sorted(found, key=lambda item: item[0]):
            self.forget(content.path)
            self._files[content.path] = content
            self._used += content.takes
        if self._used > self._limit:
            self._evict(lambda: self._used <= self._limit)

    def _load_one(self, label_file: Path) -> CacheFile | None:
        file = label_file.with_suffix("")
        try:
            label = msgspec.json.decode(label_file.read_bytes(), type=Label)
            fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except (OSError, msgspec.DecodeError):
            return None
        size = label.fingerprint.size
        if os.fstat(fd).st_size != size or not (label.synced or label.boot == self._boot):
            os.close(fd)
            return None
        content = CacheFile(file, RemotePath(label.path), label.fingerprint, fd)
        content.held = Extents([(0, size)] if label.held is None else label.held)
        content.snapshot, content.is_synced = label.snapshot, label.synced
        return content

    def close(self) -> None:
        for content in (*self._files.values(), *self._dropped):
            if content.fd >= 0:
                if content.pins and not content.is_complete:
                    self.label(content)
                os.close(content.fd)
                content.fd = -1

    def check(self) -> None:
        for path, content in self._files.items():
            assert content.path == path
            assert not content.is_dropped
            assert content.fd >= 0
            assert content.promised >= 0
            assert content.held.total <= content.size
        everything = (*self._files.values(), *self._dropped)
        assert self._used == sum(content.takes for content in everything)
        assert self._promised == sum(content.promised for content in everything)


def _label_of(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _boot_id() -> str:
    """Names this run of the machine."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
