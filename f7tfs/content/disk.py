"""File work that must not run on the event loop: fsync, hashing, copying. Local disk only.

`os.pread` and `os.pwrite` up to 1 MiB stay inline: a thread hop costs three times as much
(measured; PERFORMANCE "Kernel ↔ pyfuse3").
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from f7tfs.errors import NoLocalSpace

T = TypeVar("T")
CHUNK = 1 << 20


class Disk:
    """Threads for blocking file work, with a limiter of their own."""

    def __init__(self, threads: int = 8) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread. A started fsync or commit is never abandoned half-way."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def sync(self, fd: int) -> None:
        await self.run(lambda: os.fsync(fd))

    async def copy(self, source: int, target: int, size: int) -> None:
        """Copy the first `size` bytes between descriptors; raises OSError (ENOSPC) as it comes."""
        await self.run(lambda: copy_bytes(source, target, size))


def sha256_of(fd: int, size: int | None = None) -> str:
    """In hex, of the first `size` bytes, or of all."""
    digest, offset = hashlib.sha256(), 0
    left = float("inf") if size is None else size
    while left > 0 and (chunk := os.pread(fd, int(min(CHUNK, left)), offset)):
        digest.update(chunk)
        offset += len(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def copy_bytes(source: int, target: int, size: int) -> None:
    offset = 0
    while offset < size:
        chunk = os.pread(source, min(CHUNK, size - offset), offset)
        if not chunk:
            break
        write_all(target, chunk, offset)
        offset += len(chunk)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> int:
    """pwrite everything; a short write of a regular file means that the disk is full."""
    view, done = memoryview(data), 0
    while done < len(view):
        written = os.pwrite(fd, view[done:], offset + done)
        if written == 0:
            raise NoLocalSpace("the local disk accepts no more bytes")
        done += written
    return done


_START = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)


def start_writeback(fd: int) -> None:
    """Let the disk begin to write what a file has in memory only; nothing is promised. It may
    wait for a busy disk. Raises OSError where the file system cannot."""
    if _libc().sync_file_range(fd, 0, 0, _START) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_KEEP_SIZE_AND_PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE of fallocate(2)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the disk back what a file holds in this range. Raises OSError where the file system
    cannot."""
    if _libc().fallocate(fd, _KEEP_SIZE_AND_PUNCH, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@functools.cache
def _libc() -> ctypes.CDLL:
    """For what the standard library does not have."""
    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.sync_file_range.argtypes = [
        ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint,
    ]  # fmt: skip
    return library


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_space(path: Path | int) -> int:
    """Bytes that the file system of a path, or of a descriptor, has left for us."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
