"""Our hidden working directory on the cluster, and the small archives that it takes.

A tar is a list of instructions: extracting one gives what no call of the API offers — a symlink
of any name and target, a hard link, a race-free rmdir (TAR.md). The archive needs a place: one
directory per mount below the mount's root, or, where that cannot be made, the directory that is
being worked on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import tarfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import trio

from f7tfs.api.port import Cluster, Route, Ticket
from f7tfs.catalog import HIDDEN_PREFIX, Catalog, is_hidden
from f7tfs.content.journal import Journal, LitterRecord
from f7tfs.errors import (
    CommandTimeout,
    Exists,
    F7tfsError,
    NameNotSupported,
    NotFound,
    NotPermitted,
    OutcomeUnknown,
    PermissionDenied,
    QuotaExceeded,
    ReadOnly,
    Unreachable,
    Unsupported,
)
from f7tfs.faultpoints import reached
from f7tfs.model import Kind, RemotePath, is_within, join, name_of, parent_of

log = logging.getLogger("f7tfs.workplace")
SWEEP_INTERVAL = 60.0
_WORKING_DIRECTORY = re.compile(re.escape(HIDDEN_PREFIX) + "[0-9a-f]{8}")
ARCHIVE = ".tar"  # how archives that are extracted once end
MARK = f"{HIDDEN_PREFIX}removed-"  # where the symlinks of a removed directory lead


def archive_of(
    name: str,
    *,
    symlink: str | None = None,
    content: bytes = b"",
    permissions: int = 0o644,
    mtime: int | None = None,
) -> bytes:
    """A tar of one member: a symlink to any target, or a regular file."""
    member = tarfile.TarInfo(name)
    member.mtime = int(time.time()) if mtime is None else mtime
    if symlink is not None:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, symlink, 0o777
    else:
        member.size, member.mode = len(content), permissions
    return _tar((member, content))


def archive_of_links(*links: tuple[str, str]) -> bytes:
    """A tar of hard links (name, existing file), relative to the extraction directory."""
    members = []
    for name, existing in links:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.mode = tarfile.LNKTYPE, existing, 0o644
        member.mtime = int(time.time())
        members.append((member, b""))
    return _tar(*members)


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def relocated(archive: bytes, prefix: str) -> bytes:
    """The same archive, to be extracted `prefix` ("a/b") above."""
    members = []
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as opened:
        for member in opened:
            file = opened.extractfile(member) if member.isreg() else None
            content = file.read() if file is not None else b""
            member.name = f"{prefix}/{member.name}"
            if member.islnk():
                member.linkname = f"{prefix}/{member.linkname}"
            members.append((member, content))
    return _tar(*members)


class Workplace:
    """Owns every name of our own making on the cluster; removes only those."""

    def __init__(
        self, cluster: Cluster, catalog: Catalog, journal: Journal, *, root: RemotePath, key: str
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._journal = journal
        self._mark = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
        self._root = root
        self._directory = join(root, f"{HIDDEN_PREFIX}{self._mark}")
        self._archive = f"{HIDDEN_PREFIX}{self._mark}.tar"  # of small ones
        self._usable: bool | None = None  # None: not tried yet
        self._is_closed = False  # our directory, to others
        # Archives that may still be extracted, and (trio time) when their extraction has ended.
        self._left: dict[RemotePath, float] = {
            RemotePath(one.id): float("inf")
            for one in journal.load(LitterRecord)
            if one.id.endswith(ARCHIVE) and self.is_ours(RemotePath(one.id))
        }
        self._gone: list[RemotePath] = []  # removed ones, of which the journal still knows
        self._in_use: set[RemotePath] = set()  # no sweep takes these away
        self._quiet_from = 0.0
        self._swept: set[RemotePath] = set()  # looked at once; they may heal until their time
        self._turn = trio.Lock()  # the archive's name is used by one at a time

    def temporary_for(self, path: RemotePath) -> RemotePath:
        """A unique hidden name beside `path`, short whatever the name's length."""
        return join(parent_of(path), f"{HIDDEN_PREFIX}{self._mark}-{uuid.uuid4().hex[:12]}")

    async def extract(self, archive: bytes, directory: RemotePath) -> None:
        """Bring a small archive and extract it into `directory`. A failure says nothing certain
        about what was extracted (v1 FACTS §2: 502 for a refused member): callers look."""
        base = directory
        while "\\" in base:  # tar reads an escape in the name of its working directory
            base = parent_of(base)
        if base != directory:
            archive = relocated(archive, directory[len(base.rstrip("/")) + 1 :])
            directory = base
        async with self._turn:
            place = join(await self._place(directory), self._archive)
            with self.using(place):
                if parent_of(place) != self._directory:
                    await self._journal.write(LitterRecord(id=place))
                try:
                    await self._cluster.upload(place, archive)
                except (OutcomeUnknown, NotFound):
                    # Our own name, in place: harmless twice. NotFound: somebody tidied it away.
                    self._usable = None
                    place = join(await self._place(directory), name_of(place))
                    await self._cluster.upload(place, archive)
                try:
                    await self._cluster.extract(place, directory)
                finally:
                    if parent_of(place) != self._directory:
                        with trio.CancelScope(shield=True):
                            await self.remove_litter(place)

    async def extract_once(
        self, archive: bytes, directory: RemotePath, *, beside: RemotePath, private: bool
    ) -> None:
        """Bring a large archive, extract it into `directory` and remove it. It lies in our own
        directory, else in `beside`. `private`: others must not read it; NotPermitted where that
        cannot be had. A failure says nothing certain about what was extracted: callers look, once
        `no_archive_left` has returned."""
        try:
            name = await self._bring(archive, beside, private)
        except NotFound:  # somebody tidied our directory away
            self._usable = None
            name = await self._bring(archive, beside, private)
        reached("archive.brought")
        until = float("inf")  # it may run, or only begin to
        try:
            await self._cluster.extract(name, directory)
            reached("archive.extracted")
            until = trio.current_time()
        except F7tfsError as error:
            if isinstance(error, CommandTimeout) or not isinstance(error, OutcomeUnknown):
                until = trio.current_time()  # the command was killed, or it ended
            raise
        finally:
            self._left[name] = until
            self._in_use.discard(name)
            with trio.CancelScope(shield=True), contextlib.suppress(F7tfsError):
                await self.no_archive_left(wait=False)

    async def _bring(self, archive: bytes, beside: RemotePath, private: bool) -> RemotePath:
        place = await self._place(beside)
        if private:
            await self._close_to_others(place)
        name = join(place, f"{HIDDEN_PREFIX}{self._mark}-{uuid.uuid4().hex[:12]}{ARCHIVE}")
        self._in_use.add(name)
        try:
            await self._journal.write(LitterRecord(id=name))
            try:
                await self._cluster.upload(name, archive)
            except OutcomeUnknown:
                await self._cluster.upload(name, archive)  # our own name, the same bytes
        except BaseException as error:
            self._in_use.discard(name)
            if isinstance(error, F7tfsError):
                await self.remove_litter(name)
            if isinstance(error, OutcomeUnknown):  # of no interest: nothing was extracted
                raise Unreachable(str(error)) from error
            raise
        return name

    async def no_archive_left(self, *, wait: bool = True) -> None:
        """From now on no archive of ours is extracted whose extraction is not known to have ended:
        it is removed, and what had begun by then is given the time that the server allows. The
        journal knows the archive until then: a daemon that starts meanwhile has to wait as well."""
        for name in list(self._left):
            is_gone = True
            try:
                await self.remove_own(name)
            except NotFound:
                pass
            except F7tfsError as error:
                if error.transient:
                    raise
                log.warning("the archive %s stays: %s", name, error)  # and must not stop others
                is_gone = False
            until = self._left.pop(name, None)
            if until is None:
                continue  # somebody else was here
            if until == float("inf"):
                until = trio.current_time() + self._cluster.capabilities.command_timeout
            self._quiet_from = max(self._quiet_from, until)
            if is_gone:
                self._gone.append(name)
        if wait:
            await trio.sleep_until(self._quiet_from)
        if trio.current_time() >= self._quiet_from and self._gone:
            gone, self._gone = self._gone, []
            await self._journal.write(drop=tuple((LitterRecord, name) for name in gone))

    async def _close_to_others(self, place: RemotePath) -> None:
        if place != self._directory:
            raise NotPermitted(f"{place}: an archive of private files does not lie here")
        if not self._is_closed:
            await self._cluster.change_mode(place, 0o700)
            self._is_closed = True

    async def _place(self, directory: RemotePath) -> RemotePath:
        """Where the archive lies: our own directory if it can be made, else `directory`."""
        if self._usable is None:
            self._is_closed = False
            await self._journal.write(LitterRecord(id=self._directory))
            try:
                await self._cluster.make_directory(self._directory)
            except Exists:
                self._usable = True
            except (
                PermissionDenied,
                NotPermitted,
                ReadOnly,
                QuotaExceeded,
                NameNotSupported,
                NotFound,
            ) as error:
                log.info("no working directory at %s: %s", self._directory, error)
                self._usable = False
                await self.forget_litter(self._directory)
            else:
                self._usable = True
        return self._directory if self._usable else directory

    @contextlib.contextmanager
    def using(self, name: RemotePath) -> Iterator[None]:
        """No sweep that begins meanwhile removes `name`, or forgets that it may have to be."""
        self._in_use.add(name)
        try:
            yield
        finally:
            self._in_use.discard(name)

    @contextlib.asynccontextmanager
    async def reaching(self, path: RemotePath, route: Route) -> AsyncIterator[RemotePath]:
        """`path` itself if `route` carries it, else a symlink with a safe name that leads there
        (TAR.md), removed afterwards."""
        if await self._cluster.learn_carries(path, route):
            yield path
        else:
            async with self.alias(path) as alias:
                yield alias

    async def checksum(self, path: RemotePath) -> str:
        """sha256 in hex, by the cluster, through a symlink where the name needs one."""
        async with self.reaching(path, Route.COMMAND) as reachable:
            try:
                return await self._cluster.checksum(reachable)
            except Unsupported:
                pass
        async with self.alias(path) as alias:
            return await self._cluster.checksum(alias)

    @contextlib.asynccontextmanager
    async def alias(self, path: RemotePath) -> AsyncIterator[RemotePath]:
        """A symlink with a safe name that leads to `path`, removed afterwards."""
        place = await self._place(parent_of(path))
        alias = join(place, f"{HIDDEN_PREFIX}{self._mark}-{uuid.uuid4().hex[:12]}")
        with self.using(alias):  # for as long as a job waits in its queue
            await self._journal.write(LitterRecord(id=alias))
            if await self._cluster.learn_carries(path, Route.COMMAND):
                await self._cluster.symlink(path, alias)
            else:
                await self.extract(archive_of(name_of(alias), symlink=path), place)
            try:
                yield alias
            finally:
                with trio.CancelScope(shield=True):
                    await self.remove_litter(alias)

    async def place_pieces(self, path: RemotePath, count: int) -> list[RemotePath]:
        """Unique hidden names for the pieces of a file, in one directory; journaled."""
        mark = f"{HIDDEN_PREFIX}{self._mark}-{uuid.uuid4().hex[:12]}"
        place = await self._place(parent_of(path))
        names = [join(place, f"{mark}-{number}") for number in range(count)]
        # What a job that puts them together has to say, if it fails.
        records = [LitterRecord(id=name) for name in (*names, f"{names[0]}-log")]
        await self._journal.write(*records)
        return names

    async def remove_litter(self, path: RemotePath, *, marker: str | None = None) -> bool:
        """Remove a regular file or symlink of our own making; True once it is certainly gone. Its
        record stays in the journal until then. With `marker`: only a symlink that leads there."""
        try:
            if marker is None and not is_hidden(name_of(path)):
                log.error("%s is no name of ours; it is left alone", path)
                await self.forget_litter(path)
                return True
            stat = await self._cluster.stat(path)
            ours = stat.kind in {Kind.FILE, Kind.SYMLINK}
            if marker is not None:
                ours = stat.kind is Kind.SYMLINK and await self._cluster.read_link(path) == marker
            if ours:
                await self.remove_own(path)
            else:
                log.warning("%s is not what we made there; it is left alone", path)
        except NotFound:
            pass
        except F7tfsError as error:
            log.info("%s is removed later: %s", path, error)
            return False
        await self.forget_litter(path)
        return True

    async def remove_own(self, path: RemotePath) -> None:
        """Remove a name that the caller has just looked at: once, and again after a lost reply,
        because what it removes has another name by now."""
        try:
            await self._cluster.remove(path)
        except OutcomeUnknown:
            with contextlib.suppress(NotFound):
                await self._cluster.remove(path)

    async def remove_traces(self, ticket: Ticket) -> None:
        """The logs that a transfer left on the cluster."""
        for path in self._cluster.litter(ticket):
            await self._journal.write(LitterRecord(id=path))
            await self.remove_litter(path)

    async def litter_moved(self, old: RemotePath, new: RemotePath) -> None:
        """A temporary went along with its renamed directory. The old name stays on the list: what
        is under way may still write there."""
        await self._journal.write(LitterRecord(id=new))
        await self.remove_litter(new)
        log.debug("%s became %s and was removed", old, new)

    async def forget_litter(self, path: RemotePath) -> None:
        await self._journal.write(drop=((LitterRecord, path),))

    async def clear(self, path: RemotePath) -> bool:
        """Remove the mark that an rmdir left at this name, if there is one."""
        for record in self._journal.load(LitterRecord):
            if record.id == path and record.marker is not None:
                return await self.remove_litter(path, marker=record.marker)
        return False

    async def tidy(self, busy: Callable[[], frozenset[RemotePath]]) -> None:
        """Sweep at the start, and again while something due is left."""
        while True:
            await self.sweep(busy)
            await trio.sleep(SWEEP_INTERVAL)

    async def sweep(self, busy: Callable[[], frozenset[RemotePath]] = frozenset) -> None:
        """Remove what an earlier daemon or an abandoned attempt left. An abandoned v1 upload
        heals and makes its file again until the form expires (v1 FACTS §6): such records stay."""
        for record in self._journal.load(LitterRecord):
            path = RemotePath(record.id)
            if path == self._directory:
                continue  # until `close`
            if _WORKING_DIRECTORY.fullmatch(name_of(path)):
                await self._remove_working_directory(path)  # of another host name's
                continue
            if path in self._in_use or path in self._left or path in self._gone:
                continue  # as to archives, see below
            if path in busy() or (record.until > time.time() and path in self._swept):
                continue
            self._swept.add(path)
            # The name of small archives is used again and again, under its turn.
            is_archive = name_of(path) == self._archive
            async with self._turn if is_archive else contextlib.nullcontext():
                gone = await self.remove_litter(path, marker=record.marker)
            if gone and record.until > time.time():
                await self._journal.write(record)
        try:
            await self.no_archive_left()
        except F7tfsError as error:
            log.info("archives are removed later: %s", error)

    async def close(self) -> None:
        """At unmount: remove the working directory, also one that only a daemon before us used,
        which had no time to (kill -9). The journal knows whether there is one."""
        if any(record.id == self._directory for record in self._journal.load(LitterRecord)):
            await self._remove_working_directory(self._directory)

    async def _remove_working_directory(self, directory: RemotePath) -> None:
        """If it holds nothing but files and symlinks of ours: by its name, nobody else makes any
        there. Its record stays until it is gone."""
        mark = name_of(directory)
        try:
            left = 0
            for one in await self._cluster.list_directory(directory):
                if one.name.startswith(mark) and one.kind in {Kind.FILE, Kind.SYMLINK}:
                    await self._cluster.remove(join(directory, one.name))
                else:
                    log.warning("%s in %s is not ours; both stay", one.name, directory)
                    left += 1
            if not left:
                await self._cluster.remove(directory)
        except NotFound:
            pass  # somebody tidied it away
        except F7tfsError as error:
            log.info("the working directory %s stays: %s", directory, error)
            return
        await self.forget_litter(directory)

    def is_ours(self, path: RemotePath) -> bool:
        return name_of(path).startswith(f"{HIDDEN_PREFIX}{self._mark}") or is_within(
            path, self._directory
        )
