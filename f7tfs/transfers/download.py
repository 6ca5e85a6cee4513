"""Content of remote files: one `Flight` per (path, fingerprint), however many readers wait.

A flight belongs to the mount's nursery; readers only wait for it, and a reader who leaves does
not stop it. Small files are one call; larger ones are staged and then streamed from the
presigned link into the cache, read while they arrive. (Byte ranges are planned.)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator

import trio

from f7tfs.api.port import Cluster, Phase, Progress, Route, Ticket
from f7tfs.api.staging import StagingArea
from f7tfs.catalog import Catalog
from f7tfs.content.cache import RACY, Cache, CacheFile
from f7tfs.errors import (
    Changed,
    F7tfsError,
    IsADirectory,
    LinkExpired,
    NoLocalSpace,
    NotFound,
    NotPermitted,
    ServerError,
    TooLarge,
)
from f7tfs.model import Attributes, Fingerprint, Kind, RemotePath
from f7tfs.transfers.follow import follow, pause, staging_failed
from f7tfs.transfers.workplace import Workplace
from f7tfs.zone import LARGEST_OFFSET, QUARTER

log = logging.getLogger("f7tfs.download")
VERSIONS = 3  # how often a file may change under a download before the reader is told


class Flight:
    """One transfer under way, for status."""

    def __init__(self, content: CacheFile) -> None:
        self.content = content
        self.since = time.time()
        self.state = "waiting"


class Downloads:
    def __init__(
        self,
        cluster: Cluster,
        storage: StagingArea,
        catalog: Catalog,
        cache: Cache,
        workplace: Workplace,
        nursery: trio.Nursery,
        *,
        parallel: int,
        stall_timeout: float,
        stage_limit: int | None = None,
    ) -> None:
        self._cluster = cluster
        self._storage = storage
        self._catalog = catalog
        self._cache = cache
        self._workplace = workplace
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(parallel)
        self._stall_timeout = stall_timeout
        self._stage_limit = stage_limit
        self.flights: list[Flight] = []

    def content(self, path: RemotePath, attributes: Attributes) -> CacheFile:
        """The content of the version that `attributes` describe: cached, arriving, or on its way
        from now on. Wait with `wait`. Raises NotPermitted for what is no regular file (a FIFO
        would hang v1's storage service for everybody, FACTS §7), TooLarge, NoLocalSpace."""
        if attributes.kind is Kind.DIRECTORY:
            raise IsADirectory(path)
        if attributes.kind is not Kind.FILE:
            raise NotPermitted(f"{path} is not a regular file")
        found = self._cache.find(path, attributes.fingerprint)
        if found is not None:
            return found
        size = attributes.size
        if self._is_staged(size) and self._stage_limit is not None and size > self._stage_limit:
            raise TooLarge(f"{path}: {size} bytes is above stage_limit")
        content = self._cache.create(path, attributes.fingerprint)
        if size == 0:
            self._cache.finish(content, racy=True)
            return content
        flight = Flight(content)
        self.flights.append(flight)
        self._nursery.start_soon(self._fly, flight)
        return content

    async def wait(self, content: CacheFile, offset: int, length: int) -> None:
        """Until `length` bytes at `offset` are here (or the file ends before). Raises the flight's
        error."""
        while not content.has(offset, length):
            if content.failure is not None:
                raise content.failure.again()
            await content.grown.wait()

    async def certain(self, path: RemotePath, listed: Fingerprint) -> Fingerprint | None:
        """The fingerprint that an edit starts from, by stat: a listing has no inode, and its times
        depend on the zone. None if nothing is there any more; `listed` if something else is."""
        try:
            now = (await self._catalog.stat(path)).fingerprint
        except NotFound:
            return None
        shift = abs(now.mtime - listed.mtime)
        misread = now.size == listed.size and shift % QUARTER == 0 and shift <= LARGEST_OFFSET
        return now if now.agrees(listed) or misread else listed

    @contextlib.asynccontextmanager
    async def complete(self, path: RemotePath, attributes: Attributes) -> AsyncIterator[int]:
        """A descriptor of the complete content, for as long as the block runs."""
        content = await self.whole(path, attributes)
        try:
            yield content.fd
        finally:
            self._cache.unpin(content)

    async def whole(self, path: RemotePath, attributes: Attributes) -> CacheFile:
        """The complete content, pinned; the caller unpins."""
        content = self.content(path, attributes)
        self._cache.pin(content)
        try:
            await self.wait(content, 0, content.size)
        except BaseException:
            self._cache.unpin(content)
            raise
        return content

    def _is_staged(self, size: int) -> bool:
        return size > self._cluster.capabilities.direct_download_limit

    async def _fly(self, flight: Flight) -> None:
        content = flight.content
        self._cache.pin(content)
        try:
            async with self._limiter:
                await self._fetch(flight)
            self._cache.finish(content, racy=_is_racy(content))
        except Exception as error:
            if isinstance(error, F7tfsError):
                failure = error
                level = logging.DEBUG if error.quiet else logging.WARNING
                log.log(level, "download of %s: %s", content.path, error)
            elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
                failure = NoLocalSpace("the disk that holds the cache is full")
            else:
                failure = ServerError(f"download of {content.path}: {error!r}")
                log.exception("download of %s", content.path)
            content.fail(failure)
            if self._cache.find(content.path, content.fingerprint) in (content, None):
                self._cache.forget(content.path)
        finally:
            self._cache.unpin(content)
            self.flights.remove(flight)

    async def _fetch(self, flight: Flight) -> None:
        """Fetch one version whole. A body of another length belongs to another version: the
        fingerprint is observed anew, *before* the next transfer."""
        content = flight.content
        for _ in range(VERSIONS):
            if self._is_staged(content.size):
                arrived = await self._fetch_staged(flight)
            else:
                arrived = await self._fetch_direct(flight)
            if arrived:
                return
            stat = await self._catalog.stat(content.path)
            if stat.kind is not Kind.FILE:
                break
            log.info("%s changed while it was read", content.path)
            content.restart()
            content.fingerprint, content.size = stat.fingerprint, stat.size
        raise Changed(f"{content.path} changes faster than it can be read")

    async def _fetch_direct(self, flight: Flight) -> bool:
        content = flight.content
        flight.state = "downloading"
        async with self._workplace.reaching(content.path, Route.COMMAND) as path:
            body = await self._cluster.download(path)
        if len(body) != content.size:
            return False
        content.append(body)
        return True

    async def _fetch_staged(self, flight: Flight) -> bool:
        content = flight.content
        async with self._workplace.reaching(content.path, Route.STAGED_DOWNLOAD) as path:
            while True:
                flight.state = "staging"
                ticket = await self._cluster.stage_download(path)
                progress = await follow(
                    self._cluster,
                    ticket,
                    lambda seen: seen.phase in {Phase.READY, Phase.FAILED, Phase.WITHDRAWN},
                    stall_timeout=self._stall_timeout,
                )
                if progress.phase is not Phase.READY or progress.link is None:
                    raise staging_failed(content.path, progress)
                try:
                    size = await self._read_link(flight, ticket, progress)
                except LinkExpired:
                    if content.filled == 0 and flight.state == "renewed":
                        raise
                    flight.state = "renewed"
                    content.restart()  # a new task stages a new snapshot
                    continue
                break
        with contextlib.suppress(F7tfsError):  # a courtesy: nothing depends on it
            await self._cluster.withdraw(ticket)
        return size == content.size == content.filled

    async def _read_link(self, flight: Flight, ticket: Ticket, progress: Progress) -> int:
        """Stream what is behind the link. Where the link lags, it is asked itself until it answers
        (v2 FACTS §7), and the scheduler now and then whether the job has failed."""
        assert progress.link is not None
        began, looks = trio.current_time(), 0
        while True:
            try:
                size = await self._stream(flight.content, progress.link)
            except LinkExpired:
                late = trio.current_time() - began > self._stall_timeout
                if not progress.link_lags or flight.content.filled or late:
                    raise
                await trio.sleep(pause(looks))
                looks += 1
                if looks % 5 == 0:
                    now = await self._cluster.progress(ticket)
                    if now.phase in {Phase.FAILED, Phase.WITHDRAWN}:
                        raise staging_failed(flight.content.path, now) from None
            else:
                return size

    async def _stream(self, content: CacheFile, link: str) -> int:
        """Everything behind a link into the cache file; goes on where a lost connection stopped."""
        failures = 0
        while True:
            before = content.filled
            try:
                fetched = await self._storage.fetch(
                    link, lambda chunk: _append(content, chunk), start=content.filled
                )
                return content.filled if fetched.total_size is None else fetched.total_size
            except LinkExpired:
                raise
            except F7tfsError as error:
                failures = 1 if content.filled > before else failures + 1
                if not error.transient or failures > 5:
                    raise
                log.info("%s: %s; going on at byte %d", content.path, error, content.filled)
                await trio.sleep(min(2.0**failures, 30.0))


def _append(content: CacheFile, chunk: bytes) -> None:
    if content.filled + len(chunk) > content.size:
        raise Changed(f"{content.path}: more bytes than the file had")
    content.append(chunk)


def _is_racy(content: CacheFile) -> bool:
    seen = content.fingerprint.ctime or content.fingerprint.mtime
    return abs(time.time() - seen) < RACY + 1
