"""How the bytes of one attempt travel: in one call, through the staging area, or in pieces.

The routes write to the name that they are given and prove nothing; proof and publishing are
`attempt`'s.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable

import msgspec
import trio

from f7tfs.api.port import Cluster, Phase, Progress, Ticket
from f7tfs.api.staging import StagingArea
from f7tfs.content.disk import Disk
from f7tfs.content.journal import LitterRecord
from f7tfs.content.spool import Spool, SpoolEntry
from f7tfs.errors import (
    Cancelled,
    F7tfsError,
    InvalidArgument,
    LinkExpired,
    NameNotSupported,
    NotFound,
    NotPermitted,
    OutcomeUnknown,
    PermissionDenied,
    QuotaExceeded,
    Rejected,
    StagingFailed,
    Unsupported,
)
from f7tfs.faultpoints import reached
from f7tfs.model import RemotePath, name_of, parent_of
from f7tfs.transfers.follow import follow, upload_failed
from f7tfs.transfers.pieces import Pieces, Race, ticket_of
from f7tfs.transfers.workplace import Workplace, archive_of

log = logging.getLogger("f7tfs.upload")
# Why pieces, or a job for them, are not taken here.
REFUSALS = (
    InvalidArgument,
    NameNotSupported,
    NotPermitted,
    PermissionDenied,
    Rejected,
    Unsupported,
)


class Spent(Exception):
    """The ticket of this attempt leads nowhere any more, because of `error`. What it was asked to
    write may still be written: the next attempt takes another ticket and another temporary."""

    def __init__(self, error: F7tfsError) -> None:
        super().__init__(str(error))
        self.error = error


class Routes:
    def __init__(
        self,
        cluster: Cluster,
        storage: StagingArea,
        workplace: Workplace,
        spool: Spool,
        disk: Disk,
        *,
        stall_timeout: float,
        parallel: int,
    ) -> None:
        self._cluster = cluster
        self._storage = storage
        self._workplace = workplace
        self._spool = spool
        self._pieces = Pieces(cluster, workplace, spool, disk)
        self._race = Race()
        self._limiter = trio.CapacityLimiter(parallel)
        self._stall_timeout = stall_timeout

    async def send(self, entry: SpoolEntry, target: RemotePath) -> str | None:
        """Bring the content to `target`. Returns what the server had to say at the end of a staged
        upload, where it said anything; `entry.ticket` is set if and only if it was no direct one.
        Raises Spent, and whatever the calls raise."""
        size, ticket = entry.size, ticket_of(entry)
        if ticket is None and size <= self._cluster.capabilities.direct_upload_limit:
            async with self._limiter:
                await self._send_at_once(entry, target)
            return None
        in_place = target != entry.temporary
        if ticket is not None and ticket.joins:
            await self._follow_join(entry, ticket)
            return None
        if (
            ticket is None
            and self._pieces.fits(entry, size)
            and (in_place or self._race.is_lost(size))
        ):
            try:
                async with self._limiter:
                    ticket = await self._pieces.send(entry, target, size)
            except REFUSALS as error:
                log.info("%s does not go in pieces: %s", entry.path, error)
                self._pieces.give_up()
            else:
                await self._follow_join(entry, ticket)
                return None
        return await self._send_staged(entry, target)

    def names_in_use(self) -> frozenset[RemotePath]:
        """Names of pieces that are under way, or to be put together."""
        return self._pieces.names_in_use()

    # In pieces.

    async def _follow_join(self, entry: SpoolEntry, ticket: Ticket) -> None:
        try:
            await self._follow(entry, ticket, {Phase.DONE})
        except Spent as spent:
            if isinstance(spent.error, QuotaExceeded | Cancelled):
                raise
            # Whatever such jobs lack on this system, the staged way may have it.
            self._pieces.give_up()
            raise Spent(StagingFailed(str(spent.error))) from spent
        await self._pieces.forget(ticket)

    # Direct.

    async def _send_at_once(self, entry: SpoolEntry, target: RemotePath) -> None:
        content = os.pread(entry.fd, entry.size, 0)
        if not content:
            await self.send_empty(target, entry.permissions)
            return
        try:
            await self._cluster.upload(target, content)
        except OutcomeUnknown:
            # Our own name and the same bytes: sending them again changes nothing else.
            await self._cluster.upload(target, content)
        entry.sent = len(content)

    async def send_empty(self, target: RemotePath, permissions: int) -> None:
        try:
            await self._cluster.upload(target, b"")
        except Unsupported:
            archive = archive_of(name_of(target), permissions=permissions)
            await self._workplace.extract(archive, parent_of(target))

    # Staged.

    async def _send_staged(self, entry: SpoolEntry, target: RemotePath) -> str | None:
        size, ticket = entry.size, ticket_of(entry)
        first: Callable[[Progress], None] | None = None
        if ticket is None:
            self._storage.warm_up()
            ticket = await self._cluster.stage_upload(target, size)
            reached("upload.ticket-given")
            entry.ticket, entry.form_sent = msgspec.json.encode(ticket).decode(), False
            if target == entry.temporary:  # in place it is the user's file, and no litter
                until = time.time() + self._cluster.capabilities.link_lifetime
                await self._spool.save(entry, LitterRecord(id=target, until=until))
            else:
                await self._spool.save(entry)
            reached("upload.ticket-recorded")
        if not entry.form_sent:
            progress = await self._follow(entry, ticket, {Phase.READY, Phase.DONE})
            if progress.phase is Phase.READY:
                if target != entry.temporary and progress.parts is not None:
                    await self._spare_siblings(target, len(progress.parts.urls))
                try:
                    async with self._limiter:  # around bytes only: waiting for the server is free
                        await self._send_bytes(entry, progress, size)
                except LinkExpired as error:
                    raise Spent(error) from error
                entry.form_sent = True
                await self._spool.save(entry)
                reached("upload.sending-recorded")

                def note(now: Progress) -> None:
                    self._race.note(size, late=now.looked)

                first = note

        done = await self._follow(entry, ticket, {Phase.DONE}, first)
        await self._workplace.remove_traces(ticket)
        return done.error

    async def _spare_siblings(self, target: RemotePath, parts: int) -> None:
        """v2's job takes `target.1`, `target.2`, … for itself (v2 FACTS §7): beside a temporary
        they are nobody's, beside a user's file they may be a user's. Raises Spent."""
        for number in range(1, parts + 1):
            sibling = RemotePath(f"{target}.{number}")
            try:
                await self._cluster.stat(sibling)
            except NotFound:
                continue
            raise Spent(NotPermitted(f"{target}: writing it in place would destroy {sibling}"))

    async def _send_bytes(self, entry: SpoolEntry, progress: Progress, size: int) -> None:
        def note(sent: int) -> None:
            entry.sent = sent

        if progress.form is not None:
            await self._storage.send_form(progress.form, entry.fd, size, on_progress=note)
            reached("upload.form-sent")
        elif progress.parts is not None:

            async def keep(number: int, etag: str) -> None:
                entry.parts[number] = etag
                await self._spool.save(entry)
                reached("upload.part-recorded")

            await self._storage.send_parts(
                progress.parts, entry.fd, size, sent=entry.parts, on_part=keep, on_progress=note
            )
            reached("upload.parts-sent")
        else:
            raise StagingFailed(f"{entry.path}: the server gave neither form nor parts")

    async def can_resume(self, entry: SpoolEntry, target: RemotePath) -> bool:
        """Whether the next attempt may go on where a restart or a fault interrupted the last one:
        there is no ticket yet, or the server still means the same by it. Task ids are re-used
        (v1 FACTS §5)."""
        ticket = ticket_of(entry)
        if ticket is None:
            return True
        if ticket.path != target:
            return False
        try:
            progress = await self._cluster.progress(ticket)
        except NotFound:
            return False
        if progress.phase in {Phase.FAILED, Phase.WITHDRAWN}:
            return False
        return progress.path in {None, str(target)}

    async def withdraw(self, ticket: str) -> None:
        """Tell the server that nobody wants this any more: a courtesy, which never fails."""
        decoded = msgspec.json.decode(ticket, type=Ticket)
        with contextlib.suppress(F7tfsError):
            await self._cluster.withdraw(decoded)
        if decoded.joins:
            await self._pieces.remove(self._cluster.litter(decoded))

    async def _follow(
        self,
        entry: SpoolEntry,
        ticket: Ticket,
        wanted: set[Phase],
        first: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Until a phase of `wanted`; `first` gets the first observation."""

        def seen(progress: Progress) -> None:
            nonlocal first
            if first is not None:
                first(progress)
                first = None
            if progress.phase is Phase.FALTERING:
                # v1 FACTS §6: the causes of a 115, which comes without a word.
                entry.error = (
                    f"the server could not write it ({progress.raw}: quota or disk full, or its "
                    "place gone or not writable) and tries again"
                )

        over = wanted | {Phase.FAILED, Phase.WITHDRAWN}

        async def reach(phases: set[Phase]) -> Progress:
            return await follow(
                self._cluster,
                ticket,
                lambda now: now.phase in phases,
                stall_timeout=self._stall_timeout,
                seen=seen,
            )

        progress = await reach(over | {Phase.FALTERING})
        if progress.phase is Phase.FALTERING:
            # No error text comes with 115. A directory that is gone will not come back by itself;
            # anything else may heal at a later sweep, for as long as we are patient.
            await self._cluster.stat(parent_of(ticket.path), follow=True)
            progress = await reach(over)
        if progress.phase not in wanted:
            raise Spent(upload_failed(entry.path, progress))
        entry.error = None
        return progress
