"""Who reads: people and their programs, or sniffers and crawlers that walk over everything.

A decision by the flags of an open and by the names of the process and its parents, counted and
logged once per name and hour. Nothing here knows of files.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import time
from collections.abc import Callable, Sequence

import msgspec
from cachetools import LRUCache

from f7tfs.errors import Unwelcome, WouldBlock

log = logging.getLogger("f7tfs.readers")
PARENTS = 3  # looked at as well: a thumbnailer may be a script that runs other programs
AGAIN = 3600.0  # seconds between two log lines about one name
NAMES = 100  # counted one by one; more are "others"
PROCESSES = 1000  # whose names are remembered
# Their first argument names what runs: a script, a plugin.
_LAUNCHERS = ("python*", "perl*", "bash", "dash", "sh", "env", "kioworker*", "kioslave*")


class Tally(msgspec.Struct):
    """What processes of one name did and were refused."""

    opens: int = 0
    reads_refused: int = 0
    listings_refused: int = 0


class Readers:
    """`crawlers` cause no transfer, `indexers` may not even list, whoever opens with O_NOATIME
    causes no transfer unless it is one of `noatime`: all globs of process names."""

    def __init__(
        self,
        *,
        crawlers: Sequence[str],
        indexers: Sequence[str],
        noatime: Sequence[str],
        line_of: Callable[[int], Sequence[Sequence[str]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._crawlers = tuple(crawlers)
        self._indexers = tuple(indexers)
        self._noatime = tuple(noatime)
        self._line_of = line_of if line_of is not None else Processes().line
        self._clock = clock
        self._told: dict[str, float] = {}
        self.tallies: dict[str, Tally] = {}

    def sniffer(self, pid: int, flags: int) -> str:
        """The name of a reader that must not cause a transfer; "" for all others. Counts it."""
        if pid <= 0:
            return ""
        line = self._line_of(pid)
        name = _match(line, (*self._crawlers, *self._indexers))
        if not name and flags & os.O_NOATIME and not _match(line, self._noatime):
            name = line[0][0] if line else "?"
        if name:
            self._tally(name).opens += 1
        return name

    def require_listing(self, pid: int) -> None:
        """Raises Unwelcome to an indexer."""
        name = _match(self._line_of(pid), self._indexers) if pid > 0 else ""
        if name:
            self._tally(name).listings_refused += 1
            self._tell(name, "may not list directories here (readers.indexers)")
            raise Unwelcome(f"{name} indexes; that is not done on this mount")

    def refused(self, name: str) -> WouldBlock:
        """The error for a read that would have caused a transfer. Counts it."""
        self._tally(name).reads_refused += 1
        self._tell(name, "is given what is cached, and nothing is fetched for it (readers.*)")
        return WouldBlock(f"nothing is fetched for {name}")

    def _tally(self, name: str) -> Tally:
        if name not in self.tallies and len(self.tallies) >= NAMES:
            name = "others"
        return self.tallies.setdefault(name, Tally())

    def _tell(self, name: str, words: str) -> None:
        now = self._clock()
        if now - self._told.get(name, -AGAIN) >= AGAIN:
            if len(self._told) >= NAMES:
                self._told.clear()
            self._told[name] = now
            log.info("%s %s", name, words)


def _match(line: Sequence[Sequence[str]], globs: Sequence[str]) -> str:
    """The first name of a process, then of its parents, that one of the globs matches."""
    for names in line:
        for name in names:
            if any(fnmatch.fnmatchcase(name, glob) for glob in globs):
                return name
    return ""


class Processes:
    """Names of processes, from /proc: what a launcher launches, the file that runs, the first word
    of the command line, and the thread's `comm` (cut at 15 characters)."""

    def __init__(self) -> None:
        self._known: LRUCache[tuple[str, str, str], tuple[str, ...]] = LRUCache(PROCESSES)

    def line(self, pid: int) -> list[tuple[str, ...]]:
        """The names of a thread and of its parents, nearest first; [] for what is gone."""
        found: list[tuple[str, ...]] = []
        while pid > 1 and len(found) <= PARENTS:
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                    text = stat.read()
            except OSError:
                break
            comm, _, rest = text.partition("(")[2].rpartition(")")
            fields = rest.split()  # state, ppid, … ; the 20th is the start time
            key = (str(pid), fields[19], comm)  # an exec changes comm
            names = self._known.get(key)
            if names is None:
                files = (name for name in _files_of(pid) if name)
                names = self._known[key] = tuple(dict.fromkeys((*files, comm)))
            found.append(names)
            pid = int(fields[1])
        return found


def _files_of(pid: int) -> list[str]:
    """Base names of the program and of what its command line says it is; the most telling first."""
    found = []
    try:
        found.append(os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)"))
    except OSError:
        pass  # somebody else's
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read(4096)).split("\0")
    except OSError:
        return found
    found.append(os.path.basename(words[0]))
    if any(fnmatch.fnmatchcase(name, glob) for name in found for glob in _LAUNCHERS):
        found[:0] = [os.path.basename(word) for word in words[1:2] if not word.startswith("-")]
    return found
