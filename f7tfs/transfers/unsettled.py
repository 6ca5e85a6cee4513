"""Renames that are under way, or of which nobody knows whether the cluster carried them out.

Nothing that waits in the background is sent to such names, and once the outcome is lost, nothing
is made, removed or renamed there. Where something here has to change with a rename, or it takes
more than one call, its record is in the journal meanwhile (docs/decisions/0007).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import trio

from f7tfs.api.port import Ticket
from f7tfs.content.journal import Journal, RenameRecord
from f7tfs.model import RemotePath, is_within


class Unsettled:
    """By the name that is renamed."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._records = {RemotePath(one.source): one for one in journal.load(RenameRecord)}
        self._journaled = set(self._records)
        self._lost: set[RemotePath] = set()  # those that are not under way any more
        self._change = trio.Event()

    def __iter__(self) -> Iterator[RenameRecord]:
        return iter(list(self._records.values()))

    async def add(self, record: RenameRecord, *, is_journaled: bool) -> None:
        source = RemotePath(record.source)
        self._records[source] = record
        if is_journaled:
            self._journaled.add(source)
            try:
                await self._journal.write(record)
            except BaseException:
                self._forget(source)
                raise

    async def goes_by(self, source: RemotePath, ticket: str) -> None:
        """A job carries it out. (Of what is not a rename that the user asked for, nobody knows.)"""
        if source in self._records:
            record = msgspec.structs.replace(self._records[source], ticket=ticket)
            self._records[source] = record
            await self.keep(record)

    async def end(self, source: RemotePath) -> None:
        """It did not happen, or what depended on it has its own records now."""
        if source in self._journaled:
            await self._journal.write(drop=((RenameRecord, source),))
        self._journal.once_durable(lambda: self._forget(source))

    def _forget(self, source: RemotePath) -> None:
        self._records.pop(source, None)
        self._journaled.discard(source)
        self._lost.discard(source)
        event, self._change = self._change, trio.Event()
        event.set()

    def lose(self, source: RemotePath) -> RenameRecord:
        """It is not known what became of it, and from now on it is not under way here; its call may
        be, for as long as the server gives one."""
        record = msgspec.structs.replace(self._records[source], since=time.time())
        self._records[source] = record
        self._lost.add(source)
        return record

    async def keep(self, record: RenameRecord) -> None:
        if record.source in self._journaled:
            await self._journal.write(record)

    def is_settled(self, *paths: RemotePath) -> bool:
        """Whether none of them concerns these names, or what is above or below."""
        return not any(_concerns(one, path) for one in self._records.values() for path in paths)

    def is_lost(self, path: RemotePath) -> bool:
        """Whether it is not known what became of a rename that concerns this name."""
        return any(_concerns(self._records[one], path) for one in self._lost)

    @property
    def change(self) -> trio.Event:
        """Set when the next one is settled."""
        return self._change

    async def settled(self, *paths: RemotePath) -> None:
        while not self.is_settled(*paths):
            await self._change.wait()


def _concerns(record: RenameRecord, path: RemotePath) -> bool:
    return any(
        is_within(path, RemotePath(name)) or is_within(RemotePath(name), path)
        for name in (record.source, record.target)
    )


def job_of(record: RenameRecord) -> str:
    """The number of the job that carries it out, "" without one."""
    return msgspec.json.decode(record.ticket, type=Ticket).task_id if record.ticket else ""
