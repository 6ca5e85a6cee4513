"""Presigned links of staged versions: staged once, kept, renewed, withdrawn.

A staged object is an immutable snapshot. Its link is kept with the cached content, over opens and
remounts, until it expires, or the file changes, or the content is complete or evicted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec
import trio

from f7tfs.api.port import Cluster, Phase, Progress, Route, Ticket
from f7tfs.api.staging import StagingArea
from f7tfs.catalog import Catalog
from f7tfs.content.cache import Cache
from f7tfs.content.cachefile import CacheFile, Snapshot
from f7tfs.errors import Changed, F7tfsError, LinkExpired
from f7tfs.model import Kind, Stat
from f7tfs.transfers.follow import follow, staging_failed, staging_pause
from f7tfs.transfers.workplace import Workplace

log = logging.getLogger("f7tfs.download")
VERSIONS = 3  # how often a file may change under a download before the reader is told
MARGIN = 60.0  # seconds before its end at which a link is not begun with any more
CHECK = 2.0  # seconds without an answer of a link that lags, until the job is looked at
LOSSES = 5  # lost connections in a row that gave no byte
RENEWALS = 3  # of one snapshot in a row that gave no byte


class Links:
    """One per mount; every method is single-flight per content only if its caller is."""

    def __init__(
        self,
        cluster: Cluster,
        storage: StagingArea,
        catalog: Catalog,
        cache: Cache,
        workplace: Workplace,
        *,
        stall_timeout: float,
    ) -> None:
        self._cluster = cluster
        self._storage = storage
        self._catalog = catalog
        self._cache = cache
        self._workplace = workplace
        self._stall_timeout = stall_timeout

    def kept(self, content: CacheFile) -> Snapshot | None:
        """A link that is still good, as far as its time tells."""
        snapshot = content.snapshot
        if snapshot is None:
            return None
        end = snapshot.since + self._cluster.capabilities.link_lifetime
        return snapshot if time.time() < end - MARGIN else None

    async def stage(self, content: CacheFile, state: Callable[[str], None]) -> Snapshot:
        """Stage the version that `content` is of. Raises Changed if another one is there and
        bytes of the old one were seen already; StagingFailed, Stalled and what the calls raise."""
        for _ in range(VERSIONS):
            was_read = content.held.total > 0 or content.snapshot is not None
            if was_read:
                await self._require_unchanged(content)
            snapshot = await self._stage_again(content, state)
            if was_read:  # and not replaced while it was copied
                await self._require_unchanged(content)
            if snapshot.size == content.size or (was_read and snapshot.size > content.size):
                return self._keep(content, snapshot)
            stat = await self._catalog.stat(content.path, follow=True)
            if has_grown(content, stat, snapshot.size):
                return self._keep(content, snapshot)
            await self._withdraw(snapshot)
            if content.held.total or stat.kind is not Kind.FILE:
                break
            log.info("%s changed while it was read", content.path)
            self._cache.restart(content, stat.fingerprint)
        raise Changed(f"{content.path} changes faster than it can be read")

    def _keep(self, content: CacheFile, snapshot: Snapshot) -> Snapshot:
        self._cache.retire(content)
        content.snapshot = snapshot
        self._cache.label(content)
        return snapshot

    async def _require_unchanged(self, content: CacheFile) -> None:
        """What is staged anew must be what the bytes that are here came from."""
        stat = await self._catalog.stat(content.path, follow=True)
        same = stat.fingerprint.agrees(content.fingerprint, ignore_ctime=True)
        if not same and not has_grown(content, stat, content.size):
            raise Changed(f"{content.path} is another file than the one that was opened")

    async def _stage_again(self, content: CacheFile, state: Callable[[str], None]) -> Snapshot:
        """A link that is refused at its first use is no link: another task may give a better."""
        for _ in range(RENEWALS - 1):
            try:
                return await self._stage_once(content, state)
            except LinkExpired as error:
                log.info("%s: %s; it is staged again", content.path, error)
        return await self._stage_once(content, state)

    async def _stage_once(self, content: CacheFile, state: Callable[[str], None]) -> Snapshot:
        state("staging")
        async with self._workplace.reaching(content.path, Route.STAGED_DOWNLOAD) as path:
            ticket = await self._cluster.stage_download(path)
            progress = await follow(
                self._cluster,
                ticket,
                lambda seen: seen.phase in {Phase.READY, Phase.FAILED, Phase.WITHDRAWN},
                stall_timeout=self._stall_timeout,
                is_awaited=True,
            )
            if progress.phase is not Phase.READY or progress.link is None:
                raise staging_failed(content.path, progress)
            size = await self._size_behind(content, ticket, progress)
        state("downloading")
        return Snapshot(progress.link, msgspec.json.encode(ticket).decode(), time.time(), size)

    async def _size_behind(self, content: CacheFile, ticket: Ticket, progress: Progress) -> int:
        """The object's size, by its first byte. Where the link lags, it is asked itself until it
        answers (v2 FACTS §7), and the scheduler now and then whether the job has failed."""
        assert progress.link is not None
        began = trio.current_time()
        check, failures = CHECK, 0
        while True:
            waited = trio.current_time() - began
            try:
                found = await self._storage.fetch(progress.link, lambda _: None, start=0, length=1)
                return content.size if found.total_size is None else found.total_size
            except LinkExpired:
                if not progress.link_lags or waited > self._stall_timeout:
                    raise
            except F7tfsError as error:
                failures += 1
                if not error.transient or failures > LOSSES:
                    raise
                log.info("%s: %s", content.path, error)
            await trio.sleep(staging_pause(waited))
            if progress.link_lags and waited > check:
                check = waited + min(waited, 30.0)
                now = await self._cluster.progress(ticket)
                if now.phase in {Phase.FAILED, Phase.WITHDRAWN}:
                    raise staging_failed(content.path, now)

    async def withdraw_retired(self) -> None:
        """A courtesy to the server: nothing depends on it."""
        for snapshot in self._cache.take_retired():
            await self._withdraw(snapshot)

    async def _withdraw(self, snapshot: Snapshot) -> None:
        try:
            await self._cluster.withdraw(msgspec.json.decode(snapshot.ticket, type=Ticket))
        except (F7tfsError, msgspec.DecodeError) as error:
            log.debug("a staged object stays until it expires: %s", error)


def has_grown(content: CacheFile, stat: Stat, size: int) -> bool:
    """Whether the file that `content` is of is the same inode still, and only longer than it was
    listed: then what was fetched of it, `size` bytes, begins with the listed version."""
    same = content.fingerprint.ino is not None and content.fingerprint.ino == stat.ino
    return same and content.size <= size <= stat.size
