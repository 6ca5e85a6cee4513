"""What is under way for one version of one remote file, and for whom."""

from __future__ import annotations

import time

import msgspec
import trio

from f7tfs.content.cache import BLOCK, Cache
from f7tfs.content.cachefile import CacheFile
from f7tfs.content.extents import Extents
from f7tfs.errors import F7tfsError

PIECE = 32 * BLOCK  # bytes; the largest range of one request
QUICK = 200e6  # bytes per second, of one range, at which more at once only compete for the CPU


class Goal(msgspec.Struct, frozen=True):
    """What one reader waits for, [start, end), and up to where the file may come ahead of it."""

    start: int
    end: int
    until: int


class Flight:
    """One per content while anything of it is on its way. Goals come from readers; pieces are
    begun for them in `transfers/download.py`."""

    def __init__(self, content: CacheFile) -> None:
        self.content = content
        self.since = time.time()
        self.state = "waiting"  # for status
        self.goals: dict[object, Goal] = {}
        self.pending = Extents()
        self.active = 0  # pieces under way
        self._is_quick = False
        self.is_ending = False  # nothing is begun any more
        self._failures: list[tuple[int, int, F7tfsError]] = []
        self.turn = trio.Lock()  # who stages, or proves, or downloads the whole

    def note(self, state: str) -> None:
        self.state = state

    def note_rate(self, size: int, seconds: float) -> None:
        """A range took so long. Many small ranges at once help over latency; over a quick link few
        large ones do (docs/decisions/0010)."""
        if size >= 4 * BLOCK:
            self._is_quick = size > QUICK * seconds

    def fail(self, start: int, end: int, error: F7tfsError) -> None:
        """This range does not come, as long as the flight lasts."""
        self._failures.append((start, end, error))

    def failure_in(self, start: int, end: int) -> F7tfsError | None:
        """What kept a range from coming."""
        for first, last, error in self._failures:
            if first < end and start < last:
                return error
        return None

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """Neither here, nor on its way, nor failed."""
        found = self.content.held.gaps(start, end)
        failed = Extents((first, last) for first, last, _ in self._failures)
        for others in (self.pending, failed):
            found = [gap for range_ in found for gap in others.gaps(*range_)]
        return found

    def next_piece(self, parallel: int) -> tuple[int, int, bool] | None:
        """(start, end, urgent) of what should be begun now. What somebody waits for is begun
        whatever else is under way; the rest, `parallel` pieces at a time."""
        if self.is_ending:
            return None
        size = self.content.size
        parallel, largest = (2, PIECE) if self._is_quick else (parallel, PIECE // 4)
        later: tuple[int, int, bool] | None = None
        for goal in self.goals.values():
            start, until = goal.start // BLOCK * BLOCK, min(goal.until, size)
            for first, last in self.missing(start, until):
                piece = first, min(last, first + largest)
                if first < goal.end:
                    return (*piece, True)
                # The window moves on with every read: large ranges are worth waiting for.
                worthwhile = last < until or until == size or last - first >= largest
                if self.active < parallel and (worthwhile or 2 * (last - first) > until - start):
                    later = later or (*piece, False)
                break
        return later


class Piece:
    """One range on its way, and the room that was promised for what has not arrived of it."""

    def __init__(
        self, cache: Cache, content: CacheFile, start: int, end: int, *, must: bool = False
    ) -> None:
        """Raises NoLocalSpace."""
        self._cache = cache
        self._content = content
        self.start, self.end = start, end
        self.at = start  # what arrived, in order
        cache.promise(content, end - start, must=must)
        self._left = end - start

    def write(self, offset: int, data: bytes) -> None:
        """Raises OSError (ENOSPC), NoLocalSpace."""
        self._expect(len(data))
        self._cache.write(self._content, offset, data)
        self._left -= len(data)
        self.at = offset + len(data)

    def arrived(self, start: int, end: int) -> None:
        """Somebody else has put bytes into the file."""
        self._expect(end - start)
        self._cache.arrived(self._content, start, end)
        self._left -= end - start
        self.at = end

    def _expect(self, size: int) -> None:
        if size > self._left:  # another version, and longer
            self._cache.promise(self._content, size - self._left)
            self._left = size

    def end_now(self) -> None:
        self._cache.release(self._content, self._left)
        self._left = 0
