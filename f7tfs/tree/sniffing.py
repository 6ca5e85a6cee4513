"""Open files of readers that must not cause work on the cluster: they see what is here.

Such handles are direct: the kernel then asks for what the reader wants, without read-ahead, and
its pages of the file stay as they are.
"""

from __future__ import annotations

import os

from f7tfs.content.cachefile import CacheFile
from f7tfs.errors import F7tfsError, Interrupted
from f7tfs.transfers.heads import Heads
from f7tfs.tree.handles import RemoteHandle
from f7tfs.tree.readers import Readers
from f7tfs.tree.wing import PassiveHandle


class Sniffing:
    """What a sniffer may get instead of a transfer."""

    def __init__(self, readers: Readers, heads: Heads) -> None:
        self.readers = readers
        self.heads = heads


class SniffingHandle(RemoteHandle):
    """One open(2) of a remote file by the sniffer `name`."""

    is_direct = True
    sniffing: Sniffing
    name: str

    async def read(self, offset: int, size: int) -> bytes:
        """What is dirty, cached, or in a `head` that costs little; else raises WouldBlock."""
        shared = self.shared
        if shared.entry is not None:
            return os.pread(shared.entry.fd, size, offset)
        content = self._cached()
        if content is not None and content.has(offset, size):
            self._floors.cache.pin(content)
            try:
                return content.read(offset, size)
            finally:
                self._floors.cache.unpin(content)
        attributes, path = shared.attributes, shared.path
        if attributes is not None and offset >= attributes.size:
            return b""
        if attributes is not None and path is not None and not shared.is_replaced:
            try:
                with self._floors.callers.interruptible(self._pid):
                    head = await self.sniffing.heads.first(path, attributes)
            except Interrupted:
                raise
            except F7tfsError:
                head = None
            if head is not None and min(offset + size, attributes.size) <= len(head):
                return head[offset : offset + size]
        raise self.sniffing.readers.refused(self.name)

    def _cached(self) -> CacheFile | None:
        shared = self.shared
        content = shared.content
        if content is None and shared.path is not None and shared.attributes is not None:
            content = self._floors.cache.find(shared.path, shared.attributes.fingerprint)
        return content if content is not None and content.failure is None else None


class RefusingHandle(PassiveHandle):
    """An open file of which nothing is here."""

    def __init__(self, readers: Readers, name: str) -> None:
        self._readers = readers
        self._name = name

    async def read(self, offset: int, size: int) -> bytes:
        raise self._readers.refused(self._name)
