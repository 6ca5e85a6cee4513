"""The least that a file system in Python can be: one local file, served by pread or from a mapping,
or made by pwrite and synced when it is closed.

`python -m bench.passthrough FILE MOUNTPOINT pread|mapping|pwrite`: the measure for what any daemon
behind pyfuse3 can reach on this machine. Serves until it is unmounted.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyfuse3
import trio
from waits import wait_until

READ_AHEAD = 1024  # KiB, as the mount sets it


def _attributes(inode: int, size: int, mode: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    is_root = inode == pyfuse3.ROOT_INODE
    entry.st_ino = cast(Any, inode)
    entry.st_mode = cast(Any, stat.S_IFDIR | 0o755 if is_root else stat.S_IFREG | mode)
    entry.st_size = 0 if is_root else size
    entry.st_blksize = 1 << 20  # as the mount's: so much does cp write at once
    entry.attr_timeout = entry.entry_timeout = 60
    return entry


class Passthrough(pyfuse3.Operations):
    def __init__(self, file: Path, how: str) -> None:
        super().__init__()
        self._fd = os.open(file, os.O_RDONLY)
        self._size = os.fstat(self._fd).st_size
        mapped = mmap.mmap(self._fd, self._size, prot=mmap.PROT_READ)
        self._view = memoryview(mapped) if how == "mapping" else None

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return _attributes(inode, self._size, 0o444)

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return await self.getattr(2)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=cast(Any, inode), keep_cache=False)

    async def read(self, fh: int, offset: int, size: int) -> Any:
        if self._view is not None:
            return self._view[offset : offset + size]
        return os.pread(self._fd, size, offset)


class WritablePassthrough(pyfuse3.Operations):
    """The file is made anew by each creation, under whatever name."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._fd: int | None = None

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        size = 0 if self._fd is None else os.fstat(self._fd).st_size
        return _attributes(inode, size, 0o644)

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        if self._fd is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(2)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        return pyfuse3.FileInfo(fh=cast(Any, 2)), await self.getattr(2)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        assert self._fd is not None
        return os.pwrite(self._fd, data, offset)

    async def flush(self, fh: int) -> None:
        assert self._fd is not None
        await trio.to_thread.run_sync(os.fdatasync, self._fd)

    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        assert self._fd is not None
        os.close(self._fd)
        self._fd = None
        self._file.unlink()


@contextlib.contextmanager
def passthrough(file: Path, how: str) -> Iterator[Path]:
    """The file as such a mount shows it."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([sys.executable, "-m", "bench.passthrough", file, folder, how])
        try:
            wait_until(lambda: os.path.ismount(folder), "the passthrough to be mounted")
            device = os.lstat(folder).st_dev
            ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
            with contextlib.suppress(OSError):  # as for the mount: root only
                ahead.write_text(str(READ_AHEAD))
            yield Path(folder) / "file"
        finally:
            subprocess.run(["fusermount3", "-uz", folder], timeout=10, check=False)
            process.wait(10)


async def _serve(file: str, mountpoint: str, how: str) -> None:
    made = WritablePassthrough(Path(file)) if how == "pwrite" else Passthrough(Path(file), how)
    pyfuse3.init(made, mountpoint, {*pyfuse3.default_options, "fsname=passthrough"})
    await pyfuse3.main()
    pyfuse3.close()


if __name__ == "__main__":
    trio.run(_serve, *sys.argv[1:4])
