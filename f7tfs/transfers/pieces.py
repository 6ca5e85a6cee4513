"""Files of a middle size in pieces: direct uploads, put together by a job of our own.

A staged upload on v2 is a race against the start of its job: who comes too late waits a minute
more, and asks the scheduler all the while (docs/decisions/0009 has the numbers). Pieces cannot come
too late, but the queue's wait begins only after them, and each is a call. So the mount takes them
once it has seen a staged upload of that size lose, and tries the staged way again now and then.

Pieces are not resumed: what a crash or a fault leaves of them is swept, and they are sent anew. The
job is: its name is in the journal before it is submitted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec
import trio

from f7tfs.api.port import Cluster, Ticket
from f7tfs.content.disk import Disk, sha256_of
from f7tfs.content.spool import Spool, SpoolEntry
from f7tfs.errors import F7tfsError, OutcomeUnknown
from f7tfs.faultpoints import reached
from f7tfs.model import RemotePath
from f7tfs.transfers.workplace import Workplace

LIMIT = 64 << 20  # bytes; more would be too many calls
PARALLEL = 3
MEMORY = 600.0  # seconds after which a lost race is tried again


class Race:
    """Which sizes come too late when they are staged, as far as this mount has seen."""

    def __init__(self) -> None:
        self._lost: int | None = None
        self._since = 0.0

    def note(self, size: int, *, late: bool) -> None:
        if late:
            self._lost = size if not self._expects_loss() else min(size, self._lost or size)
            self._since = trio.current_time()
        elif self._lost is not None and size >= self._lost:
            self._lost = None

    def is_lost(self, size: int) -> bool:
        return self._expects_loss() and size >= (self._lost or 0)

    def _expects_loss(self) -> bool:
        return self._lost is not None and trio.current_time() - self._since < MEMORY


class Pieces:
    def __init__(self, cluster: Cluster, workplace: Workplace, spool: Spool, disk: Disk) -> None:
        self._cluster = cluster
        self._workplace = workplace
        self._spool = spool
        self._disk = disk
        self._busy: set[RemotePath] = set()
        self._refused = False

    def give_up(self) -> None:
        """This system does not put pieces together: no more of them in this mount."""
        self._refused = True

    def fits(self, entry: SpoolEntry, size: int) -> bool:
        """Not for private files: pieces are readable by others until they are put together."""
        is_public = entry.permissions & 0o044 == 0o044
        offered = self._cluster.capabilities.joins and not self._refused
        return offered and is_public and size <= LIMIT

    def names_in_use(self) -> frozenset[RemotePath]:
        """What is being sent, or waits for a job: no sweep must take it."""
        found = set(self._busy)
        for entry in self._spool:
            ticket = ticket_of(entry)
            if ticket is not None and ticket.joins:
                found.update(self._cluster.litter(ticket))
        return frozenset(found)

    async def send(self, entry: SpoolEntry, target: RemotePath, size: int) -> Ticket:
        """Send the pieces and submit the job; returns its ticket, which is journaled. Where none
        was submitted for certain, `entry` has no ticket afterwards and no piece is left."""
        length = self._cluster.capabilities.direct_upload_limit
        starts = range(0, size, length)
        names = await self._workplace.place_pieces(target, len(starts))
        self._busy.update(names)
        reached("pieces.named")
        try:
            await self._send_all(entry, list(zip(starts, names, strict=True)), size)
            reached("pieces.sent")
            digest = await self._disk.run(lambda: sha256_of(entry.fd, size))
            ticket = self._cluster.plan_join(names, target, digest)
            entry.ticket, entry.form_sent = msgspec.json.encode(ticket).decode(), True
            await self._spool.save(entry)
            reached("pieces.join-recorded")
            await self._cluster.join(ticket)
            reached("pieces.joined")
        except F7tfsError as error:
            if not isinstance(error, OutcomeUnknown):
                entry.ticket, entry.form_sent = None, False
                await self._spool.save(entry)
            if entry.ticket is None:
                await self.remove(names)
            raise
        finally:
            self._busy.difference_update(names)
        return ticket

    async def _send_all(
        self, entry: SpoolEntry, waiting: list[tuple[int, RemotePath]], size: int
    ) -> None:
        failures: list[F7tfsError] = []
        entry.sent = 0
        pieces = iter(waiting)
        length = self._cluster.capabilities.direct_upload_limit

        async def work(nursery: trio.Nursery) -> None:
            try:
                for start, name in pieces:
                    content = os.pread(entry.fd, min(length, size - start), start)
                    try:
                        await self._cluster.upload(name, content)
                    except OutcomeUnknown:
                        await self._cluster.upload(name, content)  # our own name, the same bytes
                    entry.sent += len(content)
            except F7tfsError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL, len(waiting))):
                nursery.start_soon(work, nursery)
        if failures:
            raise failures[0]

    async def remove(self, names: Iterable[RemotePath]) -> None:
        for name in names:
            await self._workplace.remove_litter(name)

    async def forget(self, ticket: Ticket) -> None:
        """The job says that it has removed them."""
        for name in self._cluster.litter(ticket):
            await self._workplace.forget_litter(name)
        reached("pieces.forgotten")


def ticket_of(entry: SpoolEntry) -> Ticket | None:
    return None if entry.ticket is None else msgspec.json.decode(entry.ticket, type=Ticket)
