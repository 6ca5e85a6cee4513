"""Content of remote files: one `Flight` per (path, fingerprint), however many readers wait.

Nothing is fetched at open. A read says what it needs and how far ahead the file may come; pieces
of it belong to the mount's nursery, readers only wait for them, and one who leaves does not stop
them. Small files are one call; of larger ones, staged once, the presigned link gives ranges:
single blocks through the daemon, bulk through the data process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator

import trio

from f7tfs.api.mover import Mover
from f7tfs.api.port import Cluster, Route
from f7tfs.api.staging import FetchResult, StagingArea
from f7tfs.catalog import Catalog
from f7tfs.content.cache import BLOCK, RACY, Cache, CacheFile, Snapshot
from f7tfs.errors import (
    Changed,
    F7tfsError,
    IsADirectory,
    LinkExpired,
    NameNotSupported,
    NoLocalSpace,
    NotFound,
    NotPermitted,
    ServerError,
    TooLarge,
    Unsupported,
)
from f7tfs.model import Attributes, Fingerprint, Kind, RemotePath
from f7tfs.transfers.flight import Flight, Goal, Piece
from f7tfs.transfers.links import LOSSES, RENEWALS, VERSIONS, Links
from f7tfs.transfers.workplace import Workplace
from f7tfs.zone import LARGEST_OFFSET, QUARTER

log = logging.getLogger("f7tfs.download")
TAIL = BLOCK  # bytes that a file may have grown by, for the new ones to come in one call
OVERLAP = 4096  # bytes of a file that grew which are compared with what is here


class Downloads:
    def __init__(
        self,
        cluster: Cluster,
        storage: StagingArea,
        mover: Mover,
        catalog: Catalog,
        cache: Cache,
        workplace: Workplace,
        links: Links,
        nursery: trio.Nursery,
        *,
        parallel: int,
        stage_limit: int | None = None,
    ) -> None:
        self._cluster = cluster
        self._storage = storage
        self._mover = mover
        self._catalog = catalog
        self._cache = cache
        self._workplace = workplace
        self._links = links
        self._nursery = nursery
        self._parallel = parallel
        self._stage_limit = stage_limit
        self._flights: dict[CacheFile, Flight] = {}

    @property
    def flights(self) -> list[Flight]:
        """What is under way, for status."""
        return list(self._flights.values())

    # What readers ask.

    def content(
        self, path: RemotePath, attributes: Attributes, *, unlimited: bool = False
    ) -> CacheFile:
        """The content of the version that `attributes` describe, as far as it is here; `need`
        brings more. Raises NotPermitted for what is no regular file (a FIFO would hang v1's
        storage service for everybody, FACTS §7), TooLarge above `stage_limit` unless
        `unlimited`."""
        if attributes.kind is Kind.DIRECTORY:
            raise IsADirectory(path)
        if attributes.kind is not Kind.FILE:
            raise NotPermitted(f"{path} is not a regular file")
        found = self._cache.find(path, attributes.fingerprint)
        if found is not None:
            return found
        grown = self._cache.shorter(path, attributes.fingerprint)
        if grown is not None:
            self._cache.grow(grown, attributes.fingerprint)
            return grown
        size = attributes.size
        limit = None if unlimited else self._stage_limit
        if self._is_staged(size) and limit is not None and size > limit:
            raise TooLarge(f"{path}: {size} bytes is above stage_limit; f7tfs fetch brings it")
        content = self._cache.create(path, attributes.fingerprint)
        if size == 0:
            self._cache.finish(content, racy=True)
        return content

    def ahead(
        self, content: CacheFile, reader: object, offset: int, length: int, until: int
    ) -> Flight | None:
        """`reader` (hashable, its own) reads here and goes on: let the file come. The flight that
        brings it, if anything is missing."""
        content.readers[reader] = offset
        flight = self._flights.get(content)
        if flight is None:
            start = offset // BLOCK * BLOCK
            if not content.held.gaps(start, min(max(offset + length, until), content.size)):
                return None
            flight = self._flights[content] = Flight(content)
            self._cache.pin(content)
        end = offset + length
        flight.goals[reader] = Goal(offset, end, max(end, until))
        self._pump(flight)
        self._land_if_idle(flight)
        return flight

    async def need(
        self, content: CacheFile, reader: object, offset: int, length: int, until: int = 0
    ) -> None:
        """Until `length` bytes at `offset` are here (or the file ends before). Raises what kept
        them from coming."""
        while True:
            if content.failure is not None:
                raise content.failure.again()
            flight = self.ahead(content, reader, offset, length, until)
            if content.has(offset, length):
                return
            grown = content.grown
            if flight is not None and flight.failure is None:
                await grown.wait()
            if flight is not None and flight.failure is not None:
                if content.has(offset, length):
                    return
                raise flight.failure.again()

    def leave(self, content: CacheFile, reader: object) -> None:
        """`reader` reads no more; what is under way arrives, nothing is begun for it."""
        content.readers.pop(reader, None)
        flight = self._flights.get(content)
        if flight is not None:
            flight.goals.pop(reader, None)

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
    async def complete(
        self, path: RemotePath, attributes: Attributes, *, unlimited: bool = False
    ) -> AsyncIterator[int]:
        """A descriptor of the complete content, for as long as the block runs."""
        content = self.content(path, attributes, unlimited=unlimited)
        self._cache.pin(content)
        try:
            await self.all_of(content)
            yield content.fd
        finally:
            self._cache.unpin(content)

    async def all_of(self, content: CacheFile) -> None:
        """Until the pinned content is complete. Raises NoLocalSpace for more than the cache may
        hold."""
        if content.size > self._cache.limit:
            raise NoLocalSpace(f"{content.path} is larger than cache_size")
        reader = object()
        content.complete_for.add(reader)
        try:
            while not content.is_complete:
                at = content.held.gaps(0, content.size)[0][0]
                await self.need(content, reader, at, BLOCK, content.size)
        finally:
            content.complete_for.discard(reader)
            self.leave(content, reader)

    def _is_staged(self, size: int) -> bool:
        return size > self._cluster.capabilities.direct_download_limit

    # Pieces.

    def _pump(self, flight: Flight) -> None:
        """Begin what should be under way."""
        while flight.failure is None:
            found = flight.next_piece(self._parallel)
            if found is None:
                return
            start, end, urgent = found
            if not self._is_staged(flight.content.size):
                start, end = 0, flight.content.size  # one call brings it whole
            try:
                piece = Piece(self._cache, flight.content, start, end)
            except NoLocalSpace as error:
                if urgent and end - start > BLOCK:
                    with contextlib.suppress(NoLocalSpace):
                        end = start // BLOCK * BLOCK + BLOCK
                        self._begin(flight, Piece(self._cache, flight.content, start, end))
                        continue
                if urgent:
                    self._fail(flight, error)
                return
            self._begin(flight, piece)

    def _begin(self, flight: Flight, piece: Piece) -> None:
        flight.pending.add(piece.start, piece.end)
        flight.active += 1
        self._nursery.start_soon(self._bring, flight, piece)

    async def _bring(self, flight: Flight, piece: Piece) -> None:
        content = flight.content
        try:
            await self._supply(flight, piece)
        except F7tfsError as error:
            log.warning("download of %s: %s", content.path, error)
            self._fail(flight, error)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                self._fail(flight, NoLocalSpace("the disk that holds the cache is full"))
            else:
                log.exception("download of %s", content.path)
                self._fail(flight, ServerError(f"download of {content.path}: {error!r}"))
        finally:
            flight.pending.discard(piece.start, piece.end)
            flight.active -= 1
            piece.end_now()
            self._pump(flight)
            content.wake()
            self._land_if_idle(flight)

    def _fail(self, flight: Flight, error: F7tfsError) -> None:
        """Whoever waits is told. Of a version that is gone, nothing will ever come."""
        flight.failure = flight.failure or error
        content = flight.content
        if isinstance(error, Changed):
            if self._cache.find(content.path, content.fingerprint) is content:
                self._cache.forget(content.path)
            content.fail(error)
        content.wake()

    def _land_if_idle(self, flight: Flight) -> None:
        content = flight.content
        if flight.active or self._flights.get(content) is not flight:
            return
        del self._flights[content]
        if content.is_complete and not content.is_dropped and content.failure is None:
            self._cache.retire(content)
            self._cache.finish(content, racy=_is_racy(content))
            self._nursery.start_soon(self._make_durable, content)
        else:
            self._nursery.start_soon(self._links.withdraw_retired)
        self._cache.unpin(content)

    async def _make_durable(self, content: CacheFile) -> None:
        self._cache.pin(content)
        try:
            if not content.is_racy:
                await self._cache.sync(content)
            await self._links.withdraw_retired()
        except OSError as error:
            log.warning("syncing %s: %s", content.file, error)
        finally:
            self._cache.unpin(content)

    # Where the bytes come from.

    async def _supply(self, flight: Flight, piece: Piece) -> None:
        content = flight.content
        async with flight.turn:
            if content.unproven is not None:
                await self._follow_growth(flight, piece)
            if content.held.holds(piece.start, min(piece.end, content.size)):
                return
            if not self._is_staged(content.size) and await self._download(flight, piece):
                return
            snapshot = self._links.kept(content)
            if snapshot is None or snapshot.size != content.size:
                self._mover.warm_up()
                snapshot = await self._links.stage(content, flight.note)
        flight.note("downloading")
        began = trio.current_time()
        await self._read(flight, piece, snapshot)
        flight.note_rate(piece.end - piece.start, trio.current_time() - began)

    async def _download(self, flight: Flight, piece: Piece) -> bool:
        """The whole by one call. A body of another length belongs to another version: the
        fingerprint is observed anew, *before* the next call. False if it is to be staged now."""
        content = flight.content
        flight.note("downloading")
        for _ in range(VERSIONS):
            async with self._workplace.reaching(content.path, Route.COMMAND) as path:
                body = await self._cluster.download(path)
            if len(body) == content.size:
                piece.write(0, body)
                return True
            stat = await self._catalog.stat(content.path)
            if stat.kind is not Kind.FILE or content.held.total:
                break
            log.info("%s changed while it was read", content.path)
            self._cache.restart(content, stat.fingerprint)
            if self._is_staged(content.size):
                return False
        raise Changed(f"{content.path} changes faster than it can be read")

    async def _follow_growth(self, flight: Flight, piece: Piece) -> None:
        """The file is longer than what is here: only the new bytes are asked for, with a few old
        ones to compare. Where the dialect cannot prove them exact, all of it is fetched anew."""
        content = flight.content
        first, last = list(content.unproven or ())[-1:][0] if content.unproven else (0, 0)
        start = max(first, last - OVERLAP)
        old = os.pread(content.fd, last - start, start)
        cut = next((i for i, byte in enumerate(old[:4]) if byte & 0xC0 != 0x80), 0)
        start, old = start + cut, old[cut:]  # the dialects speak of text: no half characters
        data = b""
        if old and content.size - start <= TAIL:
            flight.note("downloading")
            with contextlib.suppress(Unsupported, TooLarge, NotFound, NameNotSupported):
                data = (await self._cluster.tail(content.path, start))[: content.size - start]
        grew = len(data) == content.size - start and data.startswith(old) and bool(old)
        self._cache.prove(content, unchanged=grew)
        if grew:
            piece.write(last, data[len(old) :])

    async def _read(self, flight: Flight, piece: Piece, snapshot: Snapshot) -> None:
        """A range behind a link; goes on where a lost connection stopped."""
        content = flight.content
        end = min(piece.end, content.size)
        losses = renewals = 0
        while piece.at < end:
            before = piece.at
            try:
                found = await self._fetch(content, piece, snapshot, end)
                if found.total_size not in {None, content.size} or piece.at < end:
                    raise Changed(f"{content.path}: the staged object is another one")
            except LinkExpired:
                renewals = 1 if piece.at > before else renewals + 1
                if renewals > RENEWALS:
                    raise
                snapshot = await self._renew(flight, snapshot)
            except F7tfsError as error:
                losses = 1 if piece.at > before else losses + 1
                if not error.transient or losses > LOSSES:
                    raise
                log.info("%s: %s; going on at byte %d", content.path, error, piece.at)
                await trio.sleep(min(2.0 ** (losses - 1), 30.0))

    async def _renew(self, flight: Flight, old: Snapshot) -> Snapshot:
        """The link does not answer any more: the first to notice stages anew."""
        content = flight.content
        async with flight.turn:
            if content.snapshot is old or content.snapshot is None:
                log.info("%s: its link has ended; it is staged again", content.path)
                return await self._links.stage(content, flight.note)
            return content.snapshot

    async def _fetch(
        self, content: CacheFile, piece: Piece, snapshot: Snapshot, end: int
    ) -> FetchResult:
        """Single blocks through the daemon, bulk through the data process."""
        at = piece.at
        if end - at > BLOCK and self._mover.carries(snapshot.link):
            try:
                return await self._mover.fetch(snapshot.link, content.fd, at, end, piece.arrived)
            except Unsupported as error:
                log.info("%s: %s; the daemon reads it itself", content.path, error)
                at = piece.at
        return await self._storage.fetch(
            snapshot.link, lambda data: piece.write(piece.at, data), start=at, length=end - at
        )


def _is_racy(content: CacheFile) -> bool:
    seen = content.fingerprint.ctime or content.fingerprint.mtime
    return abs(time.time() - seen) < RACY + 1
