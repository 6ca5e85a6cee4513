"""Byte ranges of one file: which of them are here, which are on their way. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Extents:
    """A set of bytes as sorted ranges [start, end) that neither overlap nor touch."""

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0  # bytes
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> int:
        """Returns how many bytes are new."""
        if start >= end:
            return 0
        low = bisect_left(self._ends, start)  # the first range that reaches `start`
        high = bisect_right(self._starts, end)  # the first one beyond `end`
        before = self.total
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
            self.total -= sum(self._ends[low:high]) - sum(self._starts[low:high])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]
        self.total += end - start
        return self.total - before

    def discard(self, start: int, end: int) -> int:
        """Returns how many bytes went."""
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end)
        if start >= end or low >= high:
            return 0
        left = [
            (first, last)
            for first, last in ((self._starts[low], start), (end, self._ends[high - 1]))
            if first < last
        ]
        before = self.total
        self.total -= sum(self._ends[low:high]) - sum(self._starts[low:high])
        self._starts[low:high] = [first for first, _ in left]
        self._ends[low:high] = [last for _, last in left]
        self.total += sum(last - first for first, last in left)
        return before - self.total

    def holds(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is in the set; an empty range always is."""
        index = bisect_right(self._starts, start) - 1
        return start >= end or (index >= 0 and self._ends[index] >= end)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is not in the set."""
        found = []
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            first, last = self._starts[index], self._ends[index]
            if first >= end:
                break
            if start < first:
                found.append((start, first))
            start = last
        if start < end:
            found.append((start, end))
        return found

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is in the set."""
        found = []
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            first, last = max(start, self._starts[index]), min(end, self._ends[index])
            if first >= end:
                break
            found.append((first, last))
        return found
