"""What a listing means: names whose escapes read in two ways, wall clocks without a zone.

Only a `stat` of a single name settles either; both are asked as rarely as can be.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import msgspec
import trio
from cachetools import LRUCache

from f7tfs.api.port import Cluster, Route
from f7tfs.errors import F7tfsError, NotFound
from f7tfs.model import Listed, RemotePath, Stat, join
from f7tfs.zone import ClusterZone

log = logging.getLogger("f7tfs.catalog")
KEPT = 20_000  # names that were settled
LESSONS = 3  # stats that one listing may cost to learn the zone

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Meanings:
    def __init__(self, cluster: Cluster, zone: ClusterZone) -> None:
        self._cluster = cluster
        self._zone = zone
        self._literal: LRUCache[tuple[RemotePath, int, int], bool] = LRUCache(KEPT)
        self._lesson = trio.Lock()

    async def as_meant(self, directory: RemotePath, listed: Sequence[Listed]) -> list[Listed]:
        """With names read rightly whose escapes may be literal backslashes, as far as can be
        asked. Two entries that read alike are one of each."""
        known: set[str] = set()
        found = []
        for shown in listed:
            one = shown
            if shown.ambiguous and _CONTROL.search(shown.name):
                one = await self._name_meant(directory, shown, is_second=shown.name in known)
            known.add(one.name)
            found.append(one)
        return found

    async def _name_meant(self, directory: RemotePath, one: Listed, *, is_second: bool) -> Listed:
        """An escape, or a backslash that is in the name: a stat tells, where both can be asked for.
        Not of letters beyond ASCII, which a POSIX locale escapes by the dozen."""
        meant, literal = join(directory, one.name), join(directory, one.literal)
        if not all(self._cluster.carries(path, Route.COMMAND) for path in (meant, literal)):
            return one
        key = (meant, one.local_mtime, one.size)
        if not is_second and key not in self._literal:
            try:
                self._literal[key] = await self._is_literal(one, meant, literal)
            except F7tfsError as error:
                log.debug("%s may have another name: %s", meant, error)
        if is_second or self._literal.get(key):
            return msgspec.structs.replace(one, name=one.literal, ambiguous=False)
        return one

    async def _is_literal(self, one: Listed, meant: RemotePath, literal: RemotePath) -> bool:
        """Where both are there, two entries of the listing read alike; each has its own size."""
        found: list[Stat | None] = []
        for path in (meant, literal):
            try:
                stat = await self._cluster.stat(path)
            except NotFound:
                found.append(None)
                continue
            if (stat.kind, stat.size) == (one.kind, one.size):
                return path == literal
            found.append(stat)
        return found[0] is None and found[1] is not None

    async def learn_zone(self, directories: Sequence[tuple[RemotePath, Sequence[Listed]]]) -> bool:
        """One stat of the entry that changed last settles what the listing's clock means, and one
        more where the zones that are possible then disagree about another entry. Of listings that
        arrive together one learns, and the others find it known. True if all times that were read
        before were read wrongly."""
        usable = {
            one.local_mtime: join(directory, one.name)
            for directory, listed in directories
            for one in listed
            if not one.ambiguous
        }
        wrong = False
        async with self._lesson:
            latest = not self._zone.is_known
            for _ in range(LESSONS):
                wanted = self._next_lesson(usable, latest=latest)
                if wanted is None:
                    break
                try:
                    stat = await self._cluster.stat(usable.pop(wanted))
                except F7tfsError as error:
                    log.debug("the zone is not learnt: %s", error)
                    break
                wrong |= self._zone.observe(wanted, stat.mtime)
                latest = False
        return wrong

    def _next_lesson(self, usable: dict[int, RemotePath], *, latest: bool) -> int | None:
        """Of what may be asked for; the rest is taken out."""
        while True:
            wanted = max(usable, default=None) if latest else self._zone.doubtful(usable)
            if wanted is None or self._cluster.carries(usable[wanted], Route.COMMAND):
                return wanted
            del usable[wanted]
