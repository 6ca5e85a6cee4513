"""Output files of jobs on the cluster, followed: `tail -f` without fetching them again and again.

What arrived is kept in an unnamed local file; a look at the size costs one stat per interval, and
growth is fetched from where we are. The dialect's tail is text and may be lossy (v1 FACTS §4); then
the whole file is fetched instead. Once a job is over and its last words had time to arrive, its
output is not asked for any more.
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable

import trio

from f7tfs.api.port import Cluster
from f7tfs.catalog import Catalog
from f7tfs.errors import NotFound, NotPermitted, TooLarge, Unsupported
from f7tfs.model import Job, JobState, Kind, RemotePath, Stat
from f7tfs.transfers.download import Downloads
from f7tfs.tree.waiting import Callers
from f7tfs.tree.wing import Caller, PassiveHandle

COPY = 1 << 20
OVERLAP = 256  # bytes of what is here that come along, to prove that the file only grew
QUIET = 60.0  # seconds without growth after which it is looked at more rarely,
SELDOM = 5  # by this factor
SETTLE = 5.0  # seconds after a job's end in which its last words may still appear
REOPENED = 30.0  # seconds after which a new open asks again for the output of a job that is over
IDLE_KEPT = 16  # outputs that nobody has open, kept with what they have


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
        self.opened = 0
        self._stat: Stat | None = None
        self._looked = self._grew = -float("inf")
        self._over_since: float | None = None
        self._settled = False
        self._turn = trio.Lock()
        self._file = tempfile.TemporaryFile(prefix="f7tfs-output-")  # noqa: SIM115
        self._have = 0

    async def look(self, job: Job, *, opening: bool = False) -> None:
        """Ask for the size, at most once per interval. A file that is not there yet is empty; that
        of a job that waits is not asked for, that of one that is over once more."""
        if job.state is JobState.PENDING:
            return
        async with self._turn:
            now = trio.current_time()
            if job.state.is_over and self._over_since is None:
                self._over_since = now
            if not self._is_due(now, opening):
                return
            try:
                stat = await self._cluster.stat(self.path, follow=True)
            except NotFound:
                stat = None
            self._looked = trio.current_time()
            if self._over_since is not None and now - self._over_since >= SETTLE:
                self._settled = True
            if stat is not None:
                self._see(stat)

    def _is_due(self, now: float, opening: bool) -> bool:
        if self._settled:
            return opening and now - self._looked >= REOPENED
        is_quiet = self._over_since is None and self._looked - self._grew > QUIET
        return now - self._looked >= self._interval * (SELDOM if is_quiet and not opening else 1)

    def _see(self, stat: Stat) -> None:
        if stat.kind is not Kind.FILE:
            raise NotPermitted(f"{self.path} is not a regular file")
        if self._stat is None or stat.ino != self._stat.ino or stat.size < self._have:
            self._have = 0  # another file, or truncated: begin again
        if stat.size != self.size or self._stat is None:
            self._grew = self._looked
        self.size = stat.size
        self.mtime_ns = stat.mtime * 1_000_000_000
        self._stat = stat

    async def read(self, job: Job, offset: int, size: int) -> bytes:
        await self.look(job)
        if offset + size > self._have and self._have < self.size:
            async with self._turn:
                if self._stat is not None and self._have < self.size:
                    await self._fetch(self._stat)
        return os.pread(self._file.fileno(), size, offset)

    async def _fetch(self, stat: Stat) -> None:
        limit = self._cluster.capabilities.direct_download_limit
        if self._have and stat.size - self._have <= limit and await self._fetch_tail():
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

    async def _fetch_tail(self) -> bool:
        """Whether the new lines are here. What comes along of the old ones must be what is here:
        a file that was written anew, and is longer, is fetched anew."""
        start = max(0, self._have - OVERLAP)
        old = os.pread(self._file.fileno(), self._have - start, start)
        while old and old[0] & 0xC0 == 0x80:  # not in the middle of a character
            old = old[1:]
        start = self._have - len(old)
        try:
            tail = await self._cluster.tail(self.path, start)
        except (Unsupported, TooLarge, NotFound):
            # NotFound: text that speaks of a missing file makes v1's reply an error (FACTS §2).
            return False
        if not tail.startswith(old):
            return False
        self._keep(tail, start)
        return True

    def _keep(self, data: bytes, offset: int) -> None:
        os.pwrite(self._file.fileno(), data, offset)
        self._have = offset + len(data)
        self.size = max(self.size, self._have)

    def close(self) -> None:
        self._file.close()


class Outputs:
    """The output files that somebody looked at, by path; those that nobody has open go in turn."""

    def __init__(
        self, cluster: Cluster, catalog: Catalog, downloads: Downloads, *, interval: float
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._downloads = downloads
        self._interval = interval
        self._outputs: OrderedDict[RemotePath, Output] = OrderedDict()

    def of(self, path: RemotePath) -> Output:
        output = self._outputs.get(path)
        if output is None:
            output = self._outputs[path] = Output(
                self._cluster, self._catalog, self._downloads, path, interval=self._interval
            )
            self._make_room()
        self._outputs.move_to_end(path)
        return output

    def seen(self, path: RemotePath) -> Output | None:
        return self._outputs.get(path)

    def _make_room(self) -> None:
        idle = [one for one in self._outputs.values() if not one.opened]
        for output in idle[: len(idle) - IDLE_KEPT]:
            del self._outputs[output.path]
            output.close()

    def close(self) -> None:
        for output in self._outputs.values():
            output.close()


class OutputHandle(PassiveHandle):
    """One open(2) of an output file."""

    def __init__(
        self, output: Output, job: Callable[[], Job], callers: Callers, caller: Caller
    ) -> None:
        self._output = output
        self._job = job  # as it is known now
        self._callers = callers
        self._pid = caller.pid
        output.opened += 1

    async def read(self, offset: int, size: int) -> bytes:
        with self._callers.interruptible(self._pid):
            return await self._output.read(self._job(), offset, size)

    async def release(self) -> None:
        self._output.opened -= 1
