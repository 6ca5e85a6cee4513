"""A job's output file on the cluster, followed: `tail -f` without fetching it again and again.

What arrived is kept in an unnamed local file; a look at the size costs one stat per interval, and
growth is fetched from where we are. The dialect's tail is text and may be lossy (v1 FACTS §4); then
the whole file is fetched instead.
"""

from __future__ import annotations

import os
import tempfile

import trio

from f7tfs.api.port import Cluster
from f7tfs.catalog import Catalog
from f7tfs.errors import NotFound, NotPermitted, TooLarge, Unsupported
from f7tfs.model import Kind, RemotePath, Stat
from f7tfs.transfers.download import Downloads
from f7tfs.tree.waiting import Callers
from f7tfs.tree.wing import Caller, PassiveHandle

COPY = 1 << 20


class Output:
    """One output file. `size` and `mtime_ns` as last seen; 0 before the job has written."""

    def __init__(
        self,
        cluster: Cluster,
        catalog: Catalog,
        downloads: Downloads,
        path: RemotePath,
        *,
        interval: float,
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._downloads = downloads
        self._interval = interval
        self.path = path
        self.size = 0
        self.mtime_ns = 0
        self._stat: Stat | None = None
        self._looked = -float("inf")
        self._turn = trio.Lock()
        self._file = tempfile.TemporaryFile(prefix="f7tfs-output-")  # noqa: SIM115
        self._have = 0

    async def look(self) -> None:
        """Ask for the size, at most once per interval. A file that is not there yet is empty."""
        async with self._turn:
            if trio.current_time() - self._looked < self._interval:
                return
            try:
                stat = await self._cluster.stat(self.path, follow=True)
            except NotFound:
                self._looked = trio.current_time()
                return
            if stat.kind is not Kind.FILE:
                raise NotPermitted(f"{self.path} is not a regular file")
            if self._stat is None or stat.ino != self._stat.ino or stat.size < self._have:
                self._have = 0  # another file, or truncated: begin again
            self.size = stat.size
            self.mtime_ns = stat.mtime * 1_000_000_000
            self._looked = trio.current_time()
            self._stat = stat

    async def read(self, offset: int, size: int) -> bytes:
        await self.look()
        if offset + size > self._have and self._have < self.size:
            async with self._turn:
                if self._stat is not None and self._have < self.size:
                    await self._fetch(self._stat)
        return os.pread(self._file.fileno(), size, offset)

    async def _fetch(self, stat: Stat) -> None:
        limit = self._cluster.capabilities.direct_download_limit
        if self._have and stat.size - self._have <= limit:
            try:
                self._keep(await self._cluster.tail(self.path, self._have), self._have)
            except (Unsupported, TooLarge, NotFound):
                # NotFound: text that speaks of a missing file makes v1's reply an error (FACTS §2).
                pass
            else:
                return
        if stat.size <= limit:
            try:
                self._keep(await self._cluster.download(self.path), 0)
            except TooLarge:  # it grew past the limit meanwhile
                pass
            else:
                return
        attributes = self._catalog.attributes_of(stat)
        async with self._downloads.complete(self.path, attributes) as fd:
            offset = 0
            while chunk := os.pread(fd, COPY, offset):
                os.pwrite(self._file.fileno(), chunk, offset)
                offset += len(chunk)
                await trio.lowlevel.checkpoint()
            self._have = max(self._have, offset)

    def _keep(self, data: bytes, offset: int) -> None:
        os.pwrite(self._file.fileno(), data, offset)
        self._have = offset + len(data)
        self.size = max(self.size, self._have)

    def close(self) -> None:
        self._file.close()


class OutputHandle(PassiveHandle):
    """One open(2) of an output file."""

    def __init__(self, output: Output, callers: Callers, caller: Caller) -> None:
        self._output = output
        self._callers = callers
        self._pid = caller.pid

    async def read(self, offset: int, size: int) -> bytes:
        with self._callers.interruptible(self._pid):
            return await self._output.read(offset, size)
