"""Many small new files in one archive: three calls instead of five for each (TAR.md).

An archive replaces whatever has a member's name, and its commands end after five seconds. So it
carries only names that a listing taken just before shows absent, no directories, and at most what
a few seconds are enough for; every member is proven by a listing afterwards. What an archive did
not bring goes by itself, and never stops the others.

Each member's record says before, what it will look like on the cluster (`expected`: size and time,
which an archive sets) and that bytes of it may be there (`in_place`). So, after a crash or a lost
reply, what arrived is recognised, and half a file is no conflict with ourselves.
"""

from __future__ import annotations

import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import trio

from f7tfs.api.port import Cluster, Route
from f7tfs.catalog import Catalog
from f7tfs.content.disk import Disk
from f7tfs.content.journal import Journal
from f7tfs.content.spool import Spool, SpoolEntry, State
from f7tfs.errors import F7tfsError, OutcomeUnknown
from f7tfs.faultpoints import reached
from f7tfs.model import Attributes, Fingerprint, Kind, RemotePath, name_of, parent_of
from f7tfs.transfers.attempt import Arrival, Attempts
from f7tfs.transfers.workplace import Workplace

log = logging.getLogger("f7tfs.bulk")
FILE_LIMIT = 1 << 20  # bytes; a larger file is worth its own calls
ARCHIVE_LIMIT = 4 << 20  # bytes
MEMBERS = 1000
FEWEST = 50  # members, however slow the cluster's file system is
FEW = 2  # files that are worth an archive
CROWD = 1000  # names listed twice, that cost as much as a file that goes by itself
ARCHIVES = 3  # whose outcome was not known, before a file goes by itself
QUICK = 0.5  # of the server's limit of time: an extraction that took longer makes the next smaller
BLOCK = tarfile.BLOCKSIZE
LATEST = 1 << 33  # what fits the eleven octal digits of a time

Listings = Mapping[RemotePath, Mapping[str, Attributes]]


class Member(NamedTuple):
    """One file as it was when the archive was made."""

    entry: SpoolEntry
    version: int
    size: int
    mtime: int
    blocks: bytes


class Bulk:
    def __init__(
        self,
        cluster: Cluster,
        catalog: Catalog,
        workplace: Workplace,
        attempts: Attempts,
        spool: Spool,
        journal: Journal,
        disk: Disk,
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._workplace = workplace
        self._attempts = attempts
        self._spool = spool
        self._journal = journal
        self._disk = disk
        self._most = MEMBERS

    # What may go, and when.

    def fits(self, entry: SpoolEntry) -> bool:
        """A small new file of which nothing is on its way. Of names with a backslash no listing
        tells whether they are there (v1 FACTS §4), and tar would undo it in its -C."""
        return (
            entry.base is None
            and not entry.links
            and not entry.is_alone
            and entry.temporary is None
            and entry.ticket is None
            and not entry.permissions & 0o7000
            and 0 <= entry.mtime_ns < LATEST * 10**9
            and not entry.turn.locked()
            and entry.size <= FILE_LIMIT
            and "\\" not in entry.path
            and self._cluster.carries(parent_of(entry.path), Route.COMMAND)
        )

    def cut(self, waiting: Sequence[SpoolEntry], *, now: float, longest: float) -> list[SpoolEntry]:
        """Of the files that fit, those that go now: a full archive, or all that wait, once no more
        have come for a while, somebody waits for one, or one has waited for `longest` seconds.
        What failed and has its next try later neither goes nor keeps others waiting."""
        queue = sorted((one for one in waiting if not _rests(one, now)), key=lambda one: one.due)
        limit = min(ARCHIVE_LIMIT, self._cluster.capabilities.direct_upload_limit)
        taken: list[SpoolEntry] = []
        size = 2 * BLOCK
        for entry in queue:
            size += _room(entry)
            if taken and (size > limit or len(taken) == self._most):
                return taken
            taken.append(entry)
        is_quiet = all(one.due <= now for one in taken)
        presses = any(_presses_at(one, longest) <= now for one in taken)
        return taken if is_quiet or presses else []

    def next_cut(self, waiting: Sequence[SpoolEntry], *, now: float, longest: float) -> float:
        """When `cut`, which takes nothing now, may take something if nothing happens (trio time):
        always later than now."""
        fresh = [one for one in waiting if not _rests(one, now)]
        rested = (one.due for one in waiting if _rests(one, now))
        quiet = max((one.due for one in fresh), default=float("inf"))
        return min(quiet, *rested, *(_presses_at(one, longest) for one in fresh), float("inf"))

    # Going.

    async def send(self, entries: Sequence[SpoolEntry]) -> None:
        """Bring what can be brought; settled entries are clean afterwards, of the others those that
        have to go by themselves are marked so (`is_alone`). Raises only what passes by itself."""
        taken = []
        try:
            for entry in entries:
                if not entry.turn.locked():  # else its name is changing: another time
                    entry.turn.acquire_nowait()
                    taken.append(entry)
            await self._send([one for one in taken if not one.is_gone])
        finally:
            for entry in taken:
                entry.turn.release()

    async def _send(self, entries: Sequence[SpoolEntry]) -> None:
        entries = self._without_crowded(entries)
        await self._workplace.no_archive_left()
        before = await self._catalog.anew(_directories(entries))
        there = [one for one in entries if _seen(one, before) is not None]
        await self._settle(there, {one: one.expected_version for one in there}, before)
        for entry in there:
            entry.is_alone = True  # unless it is clean by now
        absent = [
            one for one in entries if parent_of(one.path) in before and _seen(one, before) is None
        ]
        for entry in entries:
            entry.is_alone |= parent_of(entry.path) not in before
        read = await self._disk.run(lambda: [_member(one) for one in absent])
        for entry, member in zip(absent, read, strict=True):
            entry.is_alone |= member is None  # its own disk error stops nobody else
        members = [one for one in read if one is not None and _is_current(one)]
        if members:
            await self._bring(members)

    def _without_crowded(self, entries: Sequence[SpoolEntry]) -> list[SpoolEntry]:
        """Not a few files in a directory so large that listing it costs more than they do."""
        counts = Counter(parent_of(one.path) for one in entries)
        crowded = {
            directory
            for directory, count in counts.items()
            if self._catalog.known_size(directory) > CROWD * count
        }
        for entry in entries:
            entry.is_alone |= parent_of(entry.path) in crowded
        return [one for one in entries if parent_of(one.path) not in crowded]

    async def _bring(self, members: Sequence[Member]) -> None:
        for entry, version, size, mtime, _ in members:
            self._attempts.expect(entry, Fingerprint(size=size, mtime=mtime), version)
            entry.in_place = entry.is_adoptable = True
        await self._journal.write(*(one.entry.record() for one in members))
        reached("archive.expected")
        entries = [one.entry for one in members]
        root = RemotePath(os.path.commonpath([parent_of(one.path) for one in entries]))
        archive = _archive(members, root)
        began = trio.current_time()
        failed: F7tfsError | None = None
        try:
            await self._workplace.extract_once(
                archive,
                root,
                beside=parent_of(entries[0].path),
                private=any(one.permissions & 0o044 != 0o044 for one in entries),
            )
        except F7tfsError as error:
            if error.transient and not isinstance(error, OutcomeUnknown):
                raise
            failed = error
        reached("archive.removed")
        self._learn(trio.current_time() - began, len(members), failed)
        await self._workplace.no_archive_left()
        after = await self._catalog.anew(_directories(entries))
        await self._settle(entries, {one.entry: one.version for one in members}, after)
        left = 0
        for entry in entries:
            if entry.state is State.UPLOADING and entry.expected is not None:
                entry.archives += 1
                entry.is_alone = (
                    not isinstance(failed, OutcomeUnknown) or entry.archives == ARCHIVES
                )
                left += 1
        log.info("%d files went in one archive of %d bytes", len(members) - left, len(archive))
        if left:
            why = " ".join(str(failed or "not as they were sent").split())
            log.warning("%d files are not there: %s", left, why)

    def _learn(self, took: float, count: int, failed: F7tfsError | None) -> None:
        """How many members the cluster's file system takes in the time that there is."""
        if failed is not None or took > QUICK * self._cluster.capabilities.command_timeout:
            self._most = max(FEWEST, count // 2)
        elif count == self._most:
            self._most = min(MEMBERS, 2 * self._most)

    # Proof.

    async def _settle(
        self, entries: Sequence[SpoolEntry], versions: Mapping[SpoolEntry, int], now: Listings
    ) -> None:
        """Those that are on the cluster as they were to be."""
        arrivals = []

        def arrived(entry: SpoolEntry, found: Attributes) -> None:
            entry.sent = found.size
            self._catalog.put(entry.path, found)  # also for a listing that began before it came
            arrivals.append(Arrival(entry, found.fingerprint, versions[entry]))

        async def give_mode(entry: SpoolEntry, found: Attributes) -> None:
            try:
                await self._cluster.change_mode(entry.path, entry.permissions)
            except F7tfsError as error:
                log.info("%s: %s", entry.path, error)
                return
            arrived(entry, msgspec.structs.replace(found, permissions=entry.permissions))

        async with trio.open_nursery() as nursery:
            for entry in entries:
                found = _seen(entry, now)
                if found is None or not _is_expected(entry, found):
                    continue
                if found.permissions == entry.permissions:
                    arrived(entry, found)
                else:  # the cluster's umask took something away
                    nursery.start_soon(give_mode, entry, found)
        if arrivals:
            await self._attempts.settle(arrivals)


def _rests(entry: SpoolEntry, now: float) -> bool:
    return entry.attempts > 0 and entry.due > now


def _presses_at(entry: SpoolEntry, longest: float) -> float:
    """From when on others that are not due go along with it (trio time)."""
    if entry.is_hurried:
        return entry.due
    if entry.owed_since is None:
        return float("inf")
    return max(entry.due, entry.owed_since + longest)


def _directories(entries: Iterable[SpoolEntry]) -> list[RemotePath]:
    return sorted({parent_of(one.path) for one in entries})


def _seen(entry: SpoolEntry, listings: Listings) -> Attributes | None:
    return listings.get(parent_of(entry.path), {}).get(name_of(entry.path))


def _is_expected(entry: SpoolEntry, found: Attributes) -> bool:
    return (
        entry.expected is not None
        and found.kind is Kind.FILE
        and entry.expected.agrees(found.fingerprint, ignore_ctime=True)
    )


def _is_current(member: Member) -> bool:
    return member.entry.version == member.version and member.entry.state is State.UPLOADING


def _room(entry: SpoolEntry) -> int:
    """Bytes of an archive, about: a long name takes a few more."""
    return BLOCK + -(-entry.size // BLOCK) * BLOCK + 3 * BLOCK * (len(entry.path) > 90)


def _member(entry: SpoolEntry) -> Member | None:
    """In a thread: a file that changes meanwhile has another version afterwards. None if it cannot
    be read."""
    version, mtime_ns = entry.version, entry.mtime_ns
    try:
        content = os.pread(entry.fd, FILE_LIMIT + 1, 0)
    except OSError as error:
        log.warning("%s cannot be read in the spool: %s", entry.path, error)
        return None
    padding = b"\0" * (-len(content) % BLOCK)
    return Member(entry, version, len(content), mtime_ns // 10**9, content + padding)


def _archive(members: Sequence[Member], root: RemotePath) -> bytes:
    """A tar of regular files, relative to `root`."""
    skip = len(root.rstrip("/")) + 1
    pieces = []
    for entry, _, size, mtime, blocks in members:
        header = tarfile.TarInfo(entry.path[skip:])
        header.size, header.mtime, header.mode = size, mtime, entry.permissions
        pieces += [header.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"), blocks]
    return b"".join((*pieces, b"\0" * (2 * BLOCK)))
