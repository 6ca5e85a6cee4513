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
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from f7tfs.content.cachefile import CacheFile, Label, Snapshot, is_racy
from f7tfs.content.disk import Disk, copy_bytes, free_space, punch_hole, write_all
from f7tfs.content.extents import Extents
from f7tfs.errors import NoLocalSpace
from f7tfs.model import Fingerprint, RemotePath, is_within

log = logging.getLogger("f7tfs.cache")
BLOCK = 1 << 20  # bytes; the smallest piece that is fetched
NEAR = ((BLOCK, 64 * BLOCK), (BLOCK, 2 * BLOCK))  # (behind, ahead) of a reader: kept, in two rounds
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Cache:
    """LRU by bytes; what is pinned is never dropped whole."""

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        *,
        limit: int,
        min_free: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._disk = disk
        self._limit = limit
        self._min_free = min_free
        self._now = now  # the server's time
        self._boot = _boot_id()
        self._files: dict[RemotePath, CacheFile] = {}  # in LRU order, oldest first
        self._dropped: set[CacheFile] = set()  # replaced or evicted while somebody reads them
        self._disk_of = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
        if not found.pins and not found.file.exists():  # somebody tidied it away
            self.forget(path)
            return None
        self._files[path] = self._files.pop(path)
        return found

    def shorter(self, path: RemotePath, fingerprint: Fingerprint) -> CacheFile | None:
        """What is here of a version of the same inode that `fingerprint` may have grown from."""
        found = self._files.get(path)
        if found is None or found.failure is not None:
            return None
        known = found.fingerprint
        same = known.ino is not None and known.ino == fingerprint.ino
        return found if same and 0 < known.size < fingerprint.size else None

    def create(self, path: RemotePath, fingerprint: Fingerprint) -> CacheFile:
        """An empty file to fill; takes the place of older versions. Room is made by `promise`."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # cleaners tidy caches away
        self.forget(path)
        created = self._new(path, fingerprint)
        _touch(created.file)
        os.truncate(created.file, fingerprint.size)
        self._files[path] = created
        return created

    def _new(self, path: RemotePath, fingerprint: Fingerprint) -> CacheFile:
        content = CacheFile(self._directory / uuid.uuid4().hex, path, fingerprint)
        content.is_racy = is_racy(fingerprint, self._now())
        return content

    async def adopt(
        self, source: Path, fd: int, path: RemotePath, fingerprint: Fingerprint
    ) -> CacheFile | None:
        """Take over a verified, synced spool file as the clean copy, without a download. None if
        there is no room; the source then stays where it is."""
        try:
            self.make_room(fingerprint.size, on_disk=source.stat().st_dev != self._device)
        except NoLocalSpace:
            return None
        adopted = self._new(path, fingerprint)
        try:
            source.rename(adopted.file)
        except OSError:  # another file system
            _touch(adopted.file)
            self.pin(adopted)
            await self._disk.run(lambda: copy_bytes(fd, adopted.fd, fingerprint.size))
            await self._disk.sync(adopted.fd)
            self.unpin(adopted)
        self.forget(path)
        self._files[path] = adopted
        self._used += adopted.held.add(0, fingerprint.size)
        adopted.is_racy = False  # nobody else wrote this version
        adopted.is_ours = True
        self.finish(adopted, synced=True)
        return adopted

    # Filling.

    def promise(self, content: CacheFile, size: int, *, must: bool = False) -> None:
        """`size` bytes will be fetched into the pinned file: make room now. What `must` be had is
        admitted beyond the limit, if the disk has room. Raises NoLocalSpace."""
        self.make_room(size, must=must)
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

    def finish(self, content: CacheFile, *, synced: bool = False) -> None:
        """The file is complete."""
        content.is_synced = synced
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
            content.is_ours,
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
        content.fingerprint, content.is_racy = fingerprint, is_racy(fingerprint, self._now())
        content.is_ours = False
        os.ftruncate(content.fd, fingerprint.size)

    def grow(self, content: CacheFile, fingerprint: Fingerprint) -> None:
        """The same inode is longer now. What is here counts again once `prove` says that it is
        still the file's beginning."""
        if content.held.total:
            unproven = content.unproven or Extents()
            for start, end in content.held:
                self._used += unproven.add(start, end) - (end - start)
            content.unproven, content.held = unproven, Extents()
        self._unlabel(content)
        content.fingerprint, content.is_racy = fingerprint, is_racy(fingerprint, self._now())
        content.is_ours = False
        os.truncate(content.file, fingerprint.size)

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
        """Keep it, with a descriptor, until `unpin`."""
        if content.fd < 0:
            content.fd = os.open(content.file, os.O_RDWR | os.O_CLOEXEC)
        content.pins += 1

    def unpin(self, content: CacheFile) -> None:
        content.pins -= 1
        assert content.pins >= 0
        if content.pins:
            return
        os.close(content.fd)
        content.fd = -1
        if content.is_dropped:
            self._end(content)
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
                self._end(content)

    def _end(self, content: CacheFile) -> None:
        self._dropped.discard(content)
        self._used -= content.takes
        self.retire(content)

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

    def make_room(self, size: int, *, on_disk: bool = True, must: bool = False) -> None:
        """Evict until `size` more bytes fit. Raises NoLocalSpace."""
        if self._fits(size, on_disk):
            return
        if size > self._limit and not must:
            raise NoLocalSpace(f"{size} bytes are more than the cache may hold")
        self._evict(lambda: self._fits(size, on_disk))
        if not self._has_space(size, on_disk):
            raise NoLocalSpace(f"no room for {size} bytes on the cache's disk")
        if not self._fits(size, on_disk) and not must:
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
        """Of a file in use, drop what is far from its readers, the beginning first: where it can be
        had again piece by piece, and nobody needs the whole."""
        if content.snapshot is None or content.complete_for:
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
        return not on_disk or free_space(self._disk_of) >= wanted

    @property
    def _device(self) -> int:
        return os.fstat(self._disk_of).st_dev

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
                found.append((content.file.stat().st_atime, content))
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
            there = file.stat().st_size
        except (OSError, msgspec.DecodeError):
            return None
        size = label.fingerprint.size
        if there != size or not (label.synced or label.boot == self._boot):
            return None
        content = CacheFile(file, RemotePath(label.path), label.fingerprint)
        content.held = Extents([(0, size)] if label.held is None else label.held)
        content.snapshot, content.is_synced = label.snapshot, label.synced
        content.is_ours = label.ours
        return content

    def close(self) -> None:
        for content in (*self._files.values(), *self._dropped):
            if content.fd >= 0:
                if content.pins and not content.is_complete:
                    self.label(content)
                os.close(content.fd)
                content.fd = -1
        if self._disk_of >= 0:
            os.close(self._disk_of)
            self._disk_of = -1

    def check(self) -> None:
        for path, content in self._files.items():
            assert content.path == path
            assert not content.is_dropped
            assert (content.fd >= 0) is (content.pins > 0)
            assert content.promised >= 0
            assert content.held.total <= content.size
        everything = (*self._files.values(), *self._dropped)
        assert self._used == sum(content.takes for content in everything)
        assert self._promised == sum(content.promised for content in everything)


def _touch(file: Path) -> None:
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _label_of(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _boot_id() -> str:
    """Names this run of the machine."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
