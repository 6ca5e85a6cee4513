"""Who asks, out of /proc: whether a script is still open somewhere, and whether a deletion in jobs/
was named or is part of a walk (docs/decisions/0015).

A readlink of /proc never asks the mount. Processes of others are passed over: they reach the mount
only through allow_other.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

from f7tfs.model import is_within
from f7tfs.tree.readers import Processes

ANCESTORS = 3  # of a process that may be the one that walks: find -exec, xargs
# They remove by path what they have listed before, with no directory open meanwhile.
MIRRORS = ("rclone*", "unison*", "syncthing*", "lsyncd*", "freefilesync*", "osync*", "bsync*")


def is_open(path: Path) -> bool:
    """Whether any process has a descriptor on this file of the mount. A descriptor that is being
    closed is not in its table any more; a duplicate is."""
    wanted = str(path)
    return any(
        target == wanted
        for process in Path("/proc").iterdir()
        if process.name.isdigit()
        for target in _descriptors(int(process.name))
    )


def holds(pid: int, directory: Path) -> bool:
    """Whether a process has this directory open."""
    return str(directory) in set(_descriptors(pid))


def process_of(thread: int) -> int:
    """The process that a thread belongs to; the thread itself if it is gone."""
    return int(_status(thread).get("Tgid", thread))


class Deletions:
    """Tells named deletions in `directory` from walks through it. `mountpoint` is above it."""

    def __init__(self, mountpoint: Path, directory: Path) -> None:
        self._mountpoint = mountpoint
        self._directory = directory
        self._processes = Processes()

    def walks(self, pid: int) -> str:
        """Why a deletion by this thread names nothing, in words; "" if it does name something.

        Who walks has the directory open while it removes what it found there (rm -r, find -delete,
        rsync --delete), or its parent has (find -exec); a mirror is known by its name; and a
        command line that also names files of the mount outside of jobs/ sweeps (rm -rf mnt/*/*).
        """
        above = {str(self._directory), str(self._mountpoint)}
        for process in _line(pid):
            if not above.isdisjoint(_descriptors(process)):
                return "a walk through jobs/ cancels nothing"
        for names in self._processes.line(pid):
            if any(fnmatch.fnmatchcase(name, glob) for name in names for glob in MIRRORS):
                return f"{names[0]} mirrors directories, and that cancels nothing"
        if self._sweeps(pid):
            return "a command line that names other files as well cancels nothing"
        return ""

    def _sweeps(self, pid: int) -> bool:
        named = list(_named_by(pid))
        inside = str(self._directory) + "/"
        outside = str(self._mountpoint) + "/"
        return any(path.startswith(inside) for path in named) and any(
            is_within(path, outside) and not is_within(path, str(self._directory)) for path in named
        )


def _line(pid: int) -> Iterator[int]:
    """A thread and the processes above it."""
    for _ in range(1 + ANCESTORS):
        if pid <= 1:
            return
        yield pid
        pid = int(_status(pid).get("PPid", "0"))


def _descriptors(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except OSError:
        return
    for number in numbers:
        try:
            yield os.readlink(f"{folder}/{number}")
        except OSError:
            continue


def _named_by(pid: int) -> Iterator[str]:
    """Absolute paths of what stands on a command line, by its looks alone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:]
        here = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return
    for word in words:
        if word and not word.startswith(b"-"):
            yield os.path.normpath(os.path.join(here, os.fsdecode(word)))


def _status(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}
