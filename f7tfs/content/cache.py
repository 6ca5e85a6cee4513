"""Clean content by (path, fingerprint): files on the local disk that survive restarts.

A `CacheFile` fills from its beginning (`filled` bytes are valid) and is read by whoever pinned it
while the rest arrives. Only complete files outlive the daemon; what happened within two seconds
of the observation of its fingerprint ("racy") is not trusted by later mounts, because the
cluster's times have whole seconds.

Losing the cache costs time, never data: nothing here is fsynced.
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

import msgspec
import trio

from f7tfs.content.disk import Disk, copy_bytes, free_space, write_all
from f7tfs.errors import F7tfsError, NoLocalSpace
from f7tfs.model import Fingerprint, RemotePath, is_within

log = logging.getLogger("f7tfs.cache")
RACY = 2.0  # seconds


class Label(msgspec.Struct, frozen=True):
    """What a cache file holds; kept beside it as JSON once the file is complete."""

    path: str
    fingerprint: Fingerprint
    used: float = 0.0


class CacheFile:
    """Bytes of one version of one remote file. Published before it is filled: readers wait on
    `grown`, an event that is replaced at every growth."""

    def __init__(self, file: Path, path: RemotePath, fingerprint: Fingerprint, fd: int) -> None:
        self.file = file
        self.path = path
        self.fingerprint = fingerprint
        self.fd = fd
        self.size = fingerprint.size
        self.filled = 0
        self.is_racy = False
        self.is_dropped = False
        self.pins = 0
        self.failure: F7tfsError | None = None
        self.grown = trio.Event()

    @property
    def is_complete(self) -> bool:
        return self.filled >= self.size

    def has(self, offset: int, length: int) -> bool:
        return min(offset + length, self.size) <= self.filled

    def append(self, data: bytes) -> None:
        """Add the next bytes. Raises NoLocalSpace or OSError (ENOSPC)."""
        write_all(self.fd, data, self.filled)
        self.filled += len(data)
        self._wake()

    def restart(self) -> None:
        """Throw away what arrived: it belonged to another version."""
        os.ftruncate(self.fd, 0)
        self.filled = 0

    def fail(self, error: F7tfsError) -> None:
        self.failure = error
        self._wake()

    def _wake(self) -> None:
        event, self.grown = self.grown, trio.Event()
        event.set()

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, max(0, min(length, self.filled - offset)), offset)


class Cache:
    """LRU by bytes over complete files; what is pinned is never evicted."""

    def __init__(self, directory: Path, disk: Disk, *, limit: int, min_free: int) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._disk = disk
        self._limit = limit
        self._min_free = min_free
        self._files: dict[RemotePath, CacheFile] = {}  # in LRU order, oldest first
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

    def create(self, path: RemotePath, fingerprint: Fingerprint) -> CacheFile:
        """An empty file to fill; takes the place of older versions. Raises NoLocalSpace."""
        self.make_room(fingerprint.size)
        self.forget(path)
        file = self._directory / uuid.uuid4().hex
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        created = CacheFile(file, path, fingerprint, fd)
        self._files[path] = created
        return created

    async def adopt(
        self, source: Path, fd: int, path: RemotePath, fingerprint: Fingerprint
    ) -> CacheFile | None:
        """Take over a verified spool file as the clean copy, without a download. None if there is
        no room; the source then stays where it is."""
        try:
            self.make_room(fingerprint.size if source.stat().st_dev != self._device else 0)
        except NoLocalSpace:
            return None
        self.forget(path)
        file = self._directory / uuid.uuid4().hex
        try:
            source.rename(file)
            own = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # another file system
            own = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            await self._disk.run(lambda: copy_bytes(fd, own, fingerprint.size))
            self.forget(path)
        adopted = CacheFile(file, path, fingerprint, own)
        adopted.filled = fingerprint.size
        self._files[path] = adopted
        self.finish(adopted, racy=False)
        return adopted

    def finish(self, content: CacheFile, *, racy: bool) -> None:
        """The file is complete: label it, so that later mounts find it."""
        content.is_racy = racy
        content._wake()
        if racy or content.is_dropped:
            return
        label = Label(content.path, content.fingerprint)
        try:
            _label_of(content.file).write_bytes(msgspec.json.encode(label))
        except (OSError, UnicodeEncodeError) as error:
            log.debug("%s will not outlive this mount: %s", content.path, error)

    # Using.

    def pin(self, content: CacheFile) -> None:
        content.pins += 1

    def unpin(self, content: CacheFile) -> None:
        content.pins -= 1
        assert content.pins >= 0
        if content.is_dropped and content.pins == 0:
            _close(content)

    def forget(self, path: RemotePath) -> None:
        """Drop what is here for `path`; whoever has it pinned goes on reading it."""
        content = self._files.pop(path, None)
        if content is not None:
            content.is_dropped = True
            _label_of(content.file).unlink(missing_ok=True)
            content.file.unlink(missing_ok=True)
            if content.pins == 0:
                _close(content)

    def rename(self, source: RemotePath, target: RemotePath) -> None:
        """The remote name changed; content of the file, or below the directory, goes with it."""
        self.forget(target)
        for path in [path for path in self._files if is_within(path, source)]:
            content = self._files.pop(path)
            content.path = RemotePath(target + path[len(source) :])
            self._files[content.path] = content
            if content.is_complete:
                self.finish(content, racy=content.is_racy)

    def touch(self, path: RemotePath, fingerprint: Fingerprint) -> None:
        """Our own chmod or rename changed the file's ctime, not its content."""
        content = self._files.get(path)
        if content is not None and content.fingerprint.agrees(fingerprint, ignore_ctime=True):
            content.fingerprint = fingerprint
            if content.is_complete:
                self.finish(content, racy=content.is_racy)

    def make_room(self, size: int) -> None:
        """Evict the least recently used until `size` more bytes fit. Raises NoLocalSpace."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # cleaners tidy caches away
        used = self.used
        for content in list(self._files.values()):
            if used + size <= self._limit and self._has_space(size):
                return
            if content.pins == 0:
                used -= content.size
                self.forget(content.path)
        if not self._has_space(size):
            raise NoLocalSpace(f"no room for {size} bytes in the cache")

    def give_way(self, size: int) -> None:
        """Evict clean content so that `size` bytes of dirty data find room on the same disk."""
        freed = 0
        for content in list(self._files.values()):
            if freed >= size:
                return
            if content.pins == 0:
                freed += content.filled
                self.forget(content.path)

    def _has_space(self, size: int) -> bool:
        return free_space(self._directory) >= self._min_free + size

    @property
    def _device(self) -> int:
        return self._directory.stat().st_dev

    @property
    def used(self) -> int:
        return sum(content.size for content in self._files.values())

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
            file = label_file.with_suffix("")
            try:
                label = msgspec.json.decode(label_file.read_bytes(), type=Label)
                fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            except (OSError, msgspec.DecodeError):
                continue
            status = os.fstat(fd)
            if status.st_size != label.fingerprint.size:
                os.close(fd)
                continue
            content = CacheFile(file, RemotePath(label.path), label.fingerprint, fd)
            content.filled = content.size
            found.append((status.st_atime, content))
            keep |= {file, label_file}
        for file in self._directory.iterdir():
            if file not in keep:
                file.unlink(missing_ok=True)
        for _, content in sorted(found, key=lambda item: item[0]):
            self._files[content.path] = content

    def close(self) -> None:
        for content in self._files.values():
            if content.fd >= 0:
                os.close(content.fd)
                content.fd = -1

    def check(self) -> None:
        for path, content in self._files.items():
            assert content.path == path
            assert not content.is_dropped
            assert content.fd >= 0
            assert 0 <= content.filled <= max(content.size, content.filled)


def _label_of(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _close(content: CacheFile) -> None:
    if content.fd >= 0:
        os.close(content.fd)
        content.fd = -1
