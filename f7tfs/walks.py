"""Recognises who reads a tree: `find`, `du`, `ls -R`, whatever their order and their threads.

A walk reads a directory, then its children, one after the other and at once; a person pauses, and
reads what they are interested in. So a read of a directory continues a walk if the directory above
was read as a part of it and the last read there is less than `PAUSE` ago. The first steps are
always single listings: only what goes on and on is worth more than that.

Pure state, no await; `now` is trio's time in seconds.
"""

from __future__ import annotations

from typing import NamedTuple

from cachetools import LRUCache, TTLCache

from f7tfs.model import RemotePath, is_within, parent_of

PAUSE = 1.5  # seconds between two steps; a person needs longer to read and to type
CHILDREN = 3  # children of one directory that are listed singly before all of them are wanted
STEPS = 4  # directories of one walk that are listed singly before whole subtrees are wanted
REFUSED = 300.0  # seconds for which a recursive listing that failed is not asked for again
VISITS = 8192  # directories remembered


class Step(NamedTuple):
    """What a read of a directory tells. `siblings`: the directory above, if its children are read
    one after the other; `is_walk`: the read belongs to something that goes on and on."""

    siblings: RemotePath | None
    is_walk: bool


class _Visit:
    """A directory that was read. `cold` counts reads that had to ask, in the walk that began here;
    `children` those of the directory's children."""

    def __init__(self, top: _Visit | None) -> None:
        self.top = top or self
        self.active = 0.0  # when something in or below it was last read
        self.cold = 0
        self.children = 0


class Walks:
    def __init__(self) -> None:
        self._visits: LRUCache[RemotePath, _Visit] = LRUCache(VISITS)
        self._now = 0.0
        self._refused: TTLCache[RemotePath, None] = TTLCache(256, REFUSED, timer=lambda: self._now)

    def read(self, directory: RemotePath, *, cold: bool, now: float) -> Step:
        """A directory is read. `cold`: its listing is not known well enough."""
        above = self._alive(parent_of(directory), now) if directory != "/" else None
        visit = self._visits[directory] = _Visit(above.top if above else None)
        step = Step(
            siblings=parent_of(directory) if above and above.children >= CHILDREN else None,
            is_walk=visit.top.cold >= STEPS,
        )
        if cold:
            visit.top.cold += 1
            if above:
                above.children += 1
        self._touch(directory, now)
        return step

    def answered(self, directory: RemotePath, *, now: float) -> None:
        """Whoever reads the directory had to wait until now."""
        self._touch(directory, now)

    def _alive(self, directory: RemotePath, now: float) -> _Visit | None:
        visit = self._visits.get(directory)
        return visit if visit is not None and now - visit.active <= PAUSE else None

    def _touch(self, directory: RemotePath, now: float) -> None:
        visit = self._visits.get(directory)
        top = visit.top if visit else None
        while visit is not None and visit.top is top:
            visit.active = now
            if visit is top:
                return
            directory = parent_of(directory)
            visit = self._visits.get(directory)

    # Recursive listings that failed.

    def refuse(self, root: RemotePath, *, now: float) -> None:
        """A recursive listing failed, or would: so will those of all directories above, be it for
        what it may not read or for its size (v1 FACTS §4)."""
        self._now = now
        self._refused[root] = None

    def is_refused(self, root: RemotePath, *, now: float) -> bool:
        self._now = now
        return any(is_within(refused, root) for refused in self._refused)
