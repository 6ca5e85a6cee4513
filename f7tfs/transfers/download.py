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
from collections.abc import AsyncIterator

import trio

from f7tfs.api.port import Cluster, Route
from f7tfs.api.staging import StagingArea
from f7tfs.catalog import Catalog
from f7tfs.content.cache import BLOCK, Cache
from f7tfs.content.cachefile import CacheFile, Snapshot
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
    StagingFailed,
    Stalled,
    TooLarge,
    Unsupported,
)
from f7tfs.model import Attributes, Fingerprint, Kind, RemotePath
from f7tfs.transfers.flight import Flight, Goal, Piece
from f7tfs.transfers.links import LOSSES, RENEWALS, VERSIONS, Links, has_grown
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
        if grown is not None and not self.is_busy(grown):
            self._cache.grow(grown, attributes.fingerprint)
            return grown
        size = attributes.size
        limit = None if unlimited else self._stage_limit
        if self._is_staged(size) and limit is not None and size > limit:
            raise TooLarge(f"{path}: {size} bytes is above stage_limit; f7tfs fetch brings it")
        content = self._cache.create(path, attributes.fingerprint)
        if size == 0:
            self._cache.finish(content)
        return content

    def is_busy(self, content: CacheFile) -> bool:
        """Whether bytes of this very version are on their way or being used: it must not become
        another one now."""
        return content in self._flights or bool(content.complete_for)

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
            while not content.has(offset, length):
                error = flight.failure_in(offset, offset + length) if flight is not None else None
                if error is not None:
                    raise error.again()
                if content.failure is not None or self._flights.get(content) is not flight:
                    break
                await content.grown.wait()
            else:
                return
            await trio.lowlevel.checkpoint()  # the flight landed without it: once more

    def leave(self, content: CacheFile, reader: object) -> None:
        """`reader` reads no more; what is under way arrives, nothing is begun for it."""
        content.readers.pop(reader, None)
        flight = self._flights.get(content)
        if flight is not None:
            flight.goals.pop(reader, None)

    async def certain(self, path: RemotePath, listed: Fingerprint) -> Fingerprint | None:
        """The fingerprint that an edit starts from. None if nothing is there any more; `listed` if
        something else is. By stat, unless the listing tells enough: its times depend on the zone,
        and a file that was just changed may be changed again within the same second."""
        if self._catalog.tells_surely(path, listed):
            return listed
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
        async with self.all_of(self.content(path, attributes, unlimited=unlimited)) as fd:
            yield fd

    @contextlib.asynccontextmanager
    async def all_of(self, content: CacheFile) -> AsyncIterator[int]:
        """The descriptor of a content that is complete, and stays so while the block runs. Raises
        NoLocalSpace for more than the cache may hold."""
        reader = object()
        self._cache.pin(content)
        content.complete_for.add(reader)
        try:
            if content.size > self._cache.limit:
                raise NoLocalSpace(f"{content.path} is larger than cache_size")
            while not content.is_complete:
                at = content.held.gaps(0, content.size)[0][0]
                await self.need(content, reader, at, BLOCK, content.size)
            yield content.fd
        finally:
            content.complete_for.discard(reader)
            self.leave(content, reader)
            self._cache.unpin(content)

    def _is_staged(self, size: int) -> bool:
        return size > self._cluster.capabilities.direct_download_limit

    # Pieces.

    def _pump(self, flight: Flight) -> None:
        """Begin what should be under way."""
        content = flight.content
        while (found := flight.next_piece(self._parallel)) is not None:
            start, end, urgent = found
            try:
                self._begin(flight, self._admit(content, start, end, urgent=urgent))
            except (NoLocalSpace, OSError) as error:
                if not urgent:
                    return
                trouble = error if isinstance(error, F7tfsError) else ServerError(f"cache: {error}")
                self._fail(flight, start, end, trouble)

    def _admit(self, content: CacheFile, start: int, end: int, *, urgent: bool) -> Piece:
        """Room for a piece; for what somebody waits for, if need be, beyond the cache's limit: one
        block, or the whole of a file that one call brings. Raises NoLocalSpace, OSError."""
        if not self._is_staged(content.size):
            return Piece(self._cache, content, 0, content.size, must=urgent)
        try:
            return Piece(self._cache, content, start, end)
        except NoLocalSpace:
            if not urgent:
                raise
            end = min(end, start // BLOCK * BLOCK + BLOCK)
            return Piece(self._cache, content, start, end, must=True)

    def _begin(self, flight: Flight, piece: Piece) -> None:
        flight.pending.add(piece.start, piece.end)
        flight.active += 1
        self._nursery.start_soon(self._bring, flight, piece)

    async def _bring(self, flight: Flight, piece: Piece) -> None:
        content = flight.content
        error: F7tfsError | None = None
        try:
            await self._supply(flight, piece)
        except F7tfsError as trouble:
            level = logging.DEBUG if trouble.quiet else logging.WARNING
            log.log(level, "download of %s: %s", content.path, trouble)
            error = trouble
        except Exception as trouble:
            if isinstance(trouble, OSError) and trouble.errno in {errno.ENOSPC, errno.EDQUOT}:
                error = NoLocalSpace("the disk that holds the cache is full")
            else:
                log.exception("download of %s", content.path)
                error = ServerError(f"download of {content.path}: {trouble!r}")
        except BaseException:
            flight.is_ending = True
            raise
        finally:
            flight.pending.discard(piece.start, piece.end)
            flight.active -= 1
            piece.end_now()
            if error is not None:
                self._fail(flight, piece.start, piece.end, error)
            self._pump(flight)
            content.wake()
            self._land_if_idle(flight)

    def _fail(self, flight: Flight, start: int, end: int, error: F7tfsError) -> None:
        """Whoever waits for this range is told. Of a version that is gone, nothing will come."""
        flight.fail(start, end, error)
        content = flight.content
        if isinstance(error, Changed):
            flight.is_ending = True
            if not content.is_dropped:
                self._cache.forget(content.path)
            self._catalog.forget(content.path)
            content.fail(error)
        content.wake()

    def _land_if_idle(self, flight: Flight) -> None:
        content = flight.content
        if flight.active or self._flights.get(content) is not flight:
            return
        del self._flights[content]
        if content.is_complete and content.failure is None:
            self._cache.retire(content)
            self._cache.finish(content)
        self._nursery.start_soon(self._after_landing, content)

    async def _after_landing(self, content: CacheFile) -> None:
        """The flight's pin ends here."""
        try:
            if content.is_complete and not content.is_racy and not content.is_dropped:
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
            if content.is_dropped and not content.held.total and content.snapshot is None:
                raise Changed(f"{content.path} was replaced before it was read")
            if content.unproven is not None:
                await self._follow_growth(flight, piece)
            if content.held.holds(piece.start, min(piece.end, content.size)):
                return
            if not self._is_staged(content.size) and await self._download(flight, piece):
                return
            snapshot = self._links.kept(content)
            if snapshot is None or snapshot.size < content.size:
                self._storage.warm_up()
                snapshot = await self._stage(flight)
        flight.note("downloading")
        began = trio.current_time()
        await self._read(flight, piece, snapshot)
        flight.note_rate(piece.end - piece.start, trio.current_time() - began)

    async def _stage(self, flight: Flight) -> Snapshot:
        """Once more, if the name changed under the server's hands by our own rename."""
        content = flight.content
        while True:
            path = content.path
            try:
                return await self._links.stage(content, flight.note)
            except (NotFound, StagingFailed, Changed):
                if content.path == path:
                    raise
                log.info("%s became %s while it was staged", path, content.path)

    async def _download(self, flight: Flight, piece: Piece) -> bool:
        """The whole by one call. A body of another length belongs to another version, whose
        fingerprint is observed *before* the next call; a longer one of the same inode has grown,
        and what was listed is its beginning. False if it is to be staged now."""
        content = flight.content
        flight.note("downloading")
        for _ in range(VERSIONS):
            try:
                async with self._workplace.reaching(content.path, Route.COMMAND) as path:
                    body = await self._cluster.download(path)
            except TooLarge:
                body = None
            if body is not None and len(body) == content.size:
                piece.write(0, body)
                return True
            stat = await self._catalog.stat(content.path, follow=True)
            if body is not None and has_grown(content, stat, len(body)):
                piece.write(0, body[: content.size])
                return True
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
        ranges = [] if content.unproven is None else list(content.unproven)
        first, last = ranges[-1] if ranges else (0, 0)
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
        is_over = False
        while piece.at < end:
            before = piece.at
            try:
                if is_over:
                    snapshot, is_over = await self._renew(flight, snapshot), False
                found = await self._storage.fetch_into(
                    snapshot.link,
                    content.fd,
                    piece.at,
                    end,
                    piece.arrived,
                    lambda data: piece.write(piece.at, data),
                )
                if found.total_size not in {None, snapshot.size} or piece.at < end:
                    raise Changed(f"{content.path}: the staged object is another one")
            except LinkExpired:
                renewals = 1 if piece.at > before else renewals + 1
                if renewals > RENEWALS:
                    raise
                is_over = True
            except F7tfsError as error:
                losses = 1 if piece.at > before else losses + 1
                hopeless = not error.transient or isinstance(error, NoLocalSpace)
                stalled = isinstance(error, Stalled) and piece.at == before
                if hopeless or stalled or losses > LOSSES:
                    raise
                log.info("%s: %s; going on at byte %d", content.path, error, piece.at)
                await trio.sleep(min(2.0 ** (losses - 1), 30.0))

    async def _renew(self, flight: Flight, old: Snapshot) -> Snapshot:
        """The link does not answer any more: the first to notice stages anew."""
        content = flight.content
        async with flight.turn:
            if content.snapshot is old or content.snapshot is None:
                log.info("%s: its link has ended; it is staged again", content.path)
                return await self._stage(flight)
            return content.snapshot
