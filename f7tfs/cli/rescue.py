"""Copies of files from the spool: never over anything, and only called good when read back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
from pathlib import Path

from f7tfs.cli.owed import Item

_CHUNK = 1 << 20


class Unsaved(Exception):
    """This file was not saved, and why."""


def target_of(folder: Path, name: str) -> Path:
    """Where a file of this name goes; never outside `folder`."""
    parts = [part for part in posixpath.normpath("/" + name).split("/") if part]
    return folder.joinpath(*parts)


def save(item: Item, folder: Path) -> Path:
    """Copy one file below `folder`, with its mode and time. What is there already stays: a copy of
    the same content is taken for this one, beside others it becomes NAME.1, NAME.2, … Returns where
    it is. Raises Unsaved."""
    assert item.file is not None
    try:
        source = os.open(item.file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unsaved("it is not in the spool any more") from None
    except OSError as error:
        raise Unsaved(error.strerror or str(error)) from None
    try:
        before = _state_of(source)
        place = _copy(source, item, target_of(folder, item.name))
        if _state_of(source) != before:
            raise Unsaved(f"it was written to while {place} was made; save it again")
        return place
    except OSError as error:
        raise Unsaved(f"{error.filename or folder}: {error.strerror}") from None
    finally:
        os.close(source)


def _state_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def _copy(source: int, item: Item, wanted: Path) -> Path:
    wanted.parent.mkdir(parents=True, exist_ok=True)
    size = os.fstat(source).st_size
    digest = ""
    for number in range(10_000):
        place = wanted.with_name(f"{wanted.name}.{number}") if number else wanted
        try:
            fd = os.open(
                place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except FileExistsError:
            if place.is_file() and not place.is_symlink() and place.stat().st_size == size:
                digest = digest or _digest_of(source)
                with open(place, "rb") as there:
                    if _digest_of(there.fileno()) == digest:
                        return place
            continue
        try:
            _fill(fd, source, item)
            return place
        except BaseException:  # half a copy must not look like one
            with contextlib.suppress(OSError):
                place.unlink()
            raise
        finally:
            os.close(fd)
    raise Unsaved(f"there is no free name like {wanted}")


def _fill(fd: int, source: int, item: Item) -> None:
    """Everything, on the disk, compared with what the disk gives back."""
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(source, _CHUNK, offset):
        digest.update(chunk)
        if chunk.count(0) != len(chunk):  # holes stay holes
            view = memoryview(chunk)
            done = 0
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)
        offset += len(chunk)
    os.ftruncate(fd, offset)
    os.fchmod(fd, item.permissions & 0o777)
    os.utime(fd, ns=(int(item.modified * 1e9), int(item.modified * 1e9)))
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what is read back comes from the disk
    if _digest_of(fd) != digest.hexdigest():
        raise Unsaved("the copy differs from what was written")


def _digest_of(fd: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(fd, _CHUNK, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()
