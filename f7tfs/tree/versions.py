"""Whether a name still means the version of a file that is open: the same, grown, or another."""

from __future__ import annotations

import trio

from f7tfs.catalog import Catalog
from f7tfs.errors import NameNotSupported, NotFound, Unreachable
from f7tfs.model import Attributes, RemotePath
from f7tfs.tree.handles import Floors, Shared

FOLLOWED = 0.5  # seconds after which a file that is still open may be followed
GROWING = 60.0  # seconds since the last change within which a file may be a log that grows


class Versions:
    def __init__(self, catalog: Catalog, floors: Floors) -> None:
        self._catalog = catalog
        self._floors = floors

    async def with_inode_if_growing(self, path: RemotePath, attributes: Attributes) -> Attributes:
        """Of a file that is likely still being written, only the inode can prove later that it is
        the same one and grew. What this mount has just uploaded is most often read at once (git,
        make): its inode is asked for when somebody keeps it open (`learn_inode`)."""
        if not self._may_grow(attributes):
            return attributes
        content = self._floors.cache.find(path, attributes.fingerprint)
        if content is not None and content.is_ours:
            return attributes
        return await self._asked(path, attributes)

    async def learn_inode(self, shared: Shared) -> None:
        """Somebody looks at a file that is open; perhaps it is followed (tail -f)."""
        known, path = shared.attributes, shared.path
        if trio.current_time() - shared.since < FOLLOWED:
            return
        if known is None or path is None or shared.entry is not None or not self._may_grow(known):
            return
        now = await self._asked(path, known)
        if shared.attributes is known and known.fingerprint.agrees(now.fingerprint):
            shared.attributes = now

    def _may_grow(self, attributes: Attributes) -> bool:
        age = self._catalog.now() - attributes.mtime
        return attributes.ino is None and abs(age) <= GROWING

    async def _asked(self, path: RemotePath, attributes: Attributes) -> Attributes:
        try:
            return self._catalog.attributes_of(await self._catalog.stat(path))
        except (NameNotSupported, NotFound, Unreachable):
            return attributes

    async def is_other(self, shared: Shared, attributes: Attributes) -> bool:
        """Whether the cluster has another file under the name than the one that is open. A version
        of which nothing was read yet is exchanged; one that only grew is shown, if the inode
        proves that it is the same file."""
        opened = shared.version()
        if opened is None or opened.agrees(attributes.fingerprint, ignore_ctime=True):
            return False
        if shared.content is None and shared.entry is None:
            shared.show(attributes)
            return False
        if shared.path is not None and opened.ino and attributes.size >= opened.size:
            now = await self._catalog.stat(shared.path)
            if shared.version() != opened:  # written to, or shown another one, meanwhile
                return False
            if now.ino == opened.ino and now.size >= opened.size:
                if shared.content is None or not self._floors.downloads.is_busy(shared.content):
                    shared.show(self._catalog.attributes_of(now))
                return False
        return True
