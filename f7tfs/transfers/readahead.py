"""How far ahead of one reader the file is fetched. Pure.

A first look fetches the block that it falls into, so that sniffing and random reads cost little;
whoever goes on where it stopped gets a window that grows with the length of the run, as the
kernel's own read-ahead does.
"""

from __future__ import annotations

from f7tfs.content.cache import BLOCK

LARGEST = 64 * BLOCK
SLACK = BLOCK  # the kernel sends the requests of one reader out of order


class ReadAhead:
    def __init__(self) -> None:
        self._next = -1  # where the run goes on, if it does
        self._run = 0  # bytes read one after the other

    def note(self, offset: int, size: int) -> int:
        """A read took place: up to which offset should the file be on its way?"""
        end = offset + size
        if self._next >= 0 and -SLACK <= offset - self._next <= SLACK:
            self._run += max(0, end - self._next)
            self._next = max(self._next, end)
        else:
            self._next, self._run = end, 0
        block_end = -(-end // BLOCK) * BLOCK
        return block_end + min(LARGEST, 4 * self._run) // BLOCK * BLOCK
