"""The first bytes of small files, for readers that only want to know what a file is.

A `head` is a command on the cluster, so there are few: none for what would have to be staged, one
at a time, a limited number a minute; what was learnt, also that the reply was lossy, is kept.
"""

from __future__ import annotations

import trio
from cachetools import LRUCache

from f7tfs.api.port import Cluster
from f7tfs.errors import NameNotSupported, Unsupported
from f7tfs.model import Attributes, Fingerprint, Kind, RemotePath

SNIFF = 16 * 1024  # bytes; no desktop looks further for a file's type (FUSE.md)
KEPT = 500
MINUTE = 60.0


class Heads:
    """`per_minute`: how many calls may be made; 0 for none."""

    def __init__(self, cluster: Cluster, *, per_minute: int) -> None:
        self._cluster = cluster
        self._per_minute = per_minute
        self._known: LRUCache[tuple[RemotePath, Fingerprint], bytes | None] = LRUCache(KEPT)
        self._asked: list[float] = []  # trio times within the last minute
        self._turn = trio.Lock()

    async def first(self, path: RemotePath, attributes: Attributes) -> bytes | None:
        """The first SNIFF bytes (all of a shorter file) of the version that `attributes` describe;
        None where no cheap or no exact answer is to be had. Raises what `Cluster.head` raises."""
        key = (path, attributes.fingerprint)
        if key in self._known:
            return self._known[key]
        if attributes.kind is not Kind.FILE:
            return None
        if attributes.size > self._cluster.capabilities.direct_download_limit:
            return None
        async with self._turn:
            if key in self._known:
                return self._known[key]
            if not self._may_ask():
                return None
            count = min(attributes.size, SNIFF)
            content: bytes | None
            try:
                content = await self._cluster.head(path, count)
            except (Unsupported, NameNotSupported):
                content = None
            if content is not None and len(content) != count:
                return None  # another version than the listing's
            self._known[key] = content
            return content

    def _may_ask(self) -> bool:
        now = trio.current_time()
        self._asked = [one for one in self._asked if now - one < MINUTE]
        if len(self._asked) >= self._per_minute:
            return False
        self._asked.append(now)
        return True
