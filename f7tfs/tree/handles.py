"""Open files of the remote wing: where their bytes come from and go to.

All handles of one node share a `Shared`: while nothing was written, reads come from the cache
(arriving as they are needed); the first write makes the file dirty, and from then on everybody
reads and writes the spool entry. A `Shared` outlives the name: after unlink or replacement it
keeps what it has.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable

import trio

from f7tfs.content.cache import Cache
from f7tfs.content.cachefile import CacheFile
from f7tfs.content.disk import Disk
from f7tfs.content.entry import AHEAD
from f7tfs.content.spool import RESERVE, Spool, SpoolEntry, State
from f7tfs.errors import Changed, NoLocalSpace, Unreachable
from f7tfs.model import Attributes, Fingerprint, RemotePath
from f7tfs.transfers.download import Downloads
from f7tfs.transfers.namespace import conflict_name
from f7tfs.transfers.readahead import ReadAhead
from f7tfs.transfers.upload import Uploads
from f7tfs.tree.waiting import Callers
from f7tfs.tree.wing import Caller


class Floors:
    """What open files stand on."""

    def __init__(
        self,
        spool: Spool,
        cache: Cache,
        downloads: Downloads,
        uploads: Uploads,
        disk: Disk,
        callers: Callers,
        hostname: str,
        *,
        fsync_waits: bool = False,
    ) -> None:
        self.spool = spool
        self.cache = cache
        self.downloads = downloads
        self.uploads = uploads
        self.disk = disk
        self.callers = callers
        self.hostname = hostname
        self.fsync_waits = fsync_waits  # fsync(2) means: on the cluster
        self.waits_in_open = False  # the kernel lets too few reads wait (FUSE.md)

    def reserve(self, size: int) -> None:
        """Room for `size` more dirty bytes; clean content gives way, dirty never. Raises
        NoLocalSpace."""
        try:
            self.spool.reserve(size)
        except NoLocalSpace:
            self.cache.give_way(size + RESERVE)
            self.spool.reserve(size)


class Shared:
    """The state that all handles of one node have in common. `path` is None once the name was
    unlinked or renamed over here; `is_replaced` says that the cluster has another file there now.
    `attributes` are those of the version that was opened."""

    def __init__(
        self, floors: Floors, path: RemotePath, attributes: Attributes | None, permissions: int
    ) -> None:
        self._floors = floors
        self.path: RemotePath | None = path
        self.attributes = attributes
        self.permissions = permissions
        self.entry: SpoolEntry | None = None
        self.content: CacheFile | None = None  # of which something was read, pinned
        self._held: CacheFile | None = None  # pinned as well, nothing of it was asked for yet
        self.handles = 0
        self.since = trio.current_time()
        self.is_replaced = False
        self._turn = trio.Lock()

    def attach(self, entry: SpoolEntry) -> None:
        """From now on reads and writes go to this dirty file."""
        if entry is not self.entry:
            self._detach_entry()
            self.entry = entry
            entry.openers += 1
            self._floors.spool.use(entry)

    def _detach_entry(self) -> None:
        if self.entry is not None:
            self.entry.openers -= 1
            self._floors.spool.leave(self.entry)
            self.entry = None

    def version(self) -> Fingerprint | None:
        """Of the cluster's file that reads come from; None while it is dirty."""
        if self.entry is not None:
            return self.entry.base if self.entry.is_gone else None
        return self.attributes.fingerprint if self.attributes is not None else None

    def show(self, attributes: Attributes) -> None:
        """The cluster has a newer version of this same file (it grew): later reads see it."""
        self._detach_entry()
        self._let_go()
        self.attributes = attributes
        self.hold()

    def show_mode(self, permissions: int) -> None:
        """chmod of the clean file: a write through an older handle must not bring the old mode
        back."""
        self.permissions = permissions
        if self.entry is not None:
            self.entry.permissions = permissions

    @property
    def is_empty_orphan(self) -> bool:
        """The name is gone or means another file, and what was opened had no bytes: nothing had to
        be fetched."""
        is_cut_off = self.path is None or self.is_replaced
        is_empty = self.attributes is not None and self.attributes.size == 0
        return is_cut_off and is_empty and self._has_nothing()

    def hold(self) -> None:
        """What the cache has of the version that was opened stays there while it is open, also if
        the kernel answers all reads from its pages: a write needs it, and the name may go."""
        if not self._has_nothing() or self.is_replaced:
            return
        if self.path is not None and self.attributes is not None:
            self._held = self._floors.cache.find(self.path, self.attributes.fingerprint)
            if self._held is not None:
                self._floors.cache.pin(self._held)

    def _let_go(self) -> None:
        for content in (self.content, self._held):
            if content is not None:
                self._floors.cache.unpin(content)
        self.content = self._held = None

    def use_content(self) -> CacheFile:
        """The version that was opened, arriving or complete; pinned until the last close."""
        if self.content is None:
            self.content, self._held = self._held, None
        content = self.content
        if content is not None and content.failure is not None:
            if content.held.total:  # bytes of it were seen: no others follow them
                raise content.failure.again()
            self._floors.cache.unpin(content)
            self.content = None
        if self.content is None:
            if self.path is None or self.is_replaced or self.attributes is None:
                raise Changed("the file that was opened is gone, and its content was not fetched")
            self.content = self._floors.downloads.content(self.path, self.attributes)
            self._floors.cache.pin(self.content)
        return self.content

    def being_written(self) -> SpoolEntry | None:
        """The dirty file, if one more write changes nothing but its bytes: it is open, and nobody
        counts on what it held before."""
        entry = self.entry
        if entry is None or self.is_replaced or entry.state is not State.OPEN or entry.is_owed:
            return None
        return entry

    async def dirty(self, keep: bool, caller_pid: int) -> SpoolEntry:
        """The spool entry to write to; made from the version that was opened, if `keep`. What was
        replaced on the cluster meanwhile goes beside it, as any conflict does."""
        spool = self._floors.spool
        if self.is_replaced and self.path is not None:
            if keep and self._has_nothing() and not self.is_empty_orphan:
                raise Changed("the file that was opened was replaced, and its content is not here")
            self.path = conflict_name(self.path, self._floors.hostname)
            self.is_replaced = False
            self.attributes = None  # nothing is there yet
        async with self._turn:
            if self.entry is not None and not (self.entry.is_gone and self.path is not None):
                return self._reopened(self.entry)
            if self.path is None:
                # The name is gone: bytes written from now on have nowhere to go but here.
                entry = spool.new(RemotePath("/"), base=None, permissions=self.permissions)
                await self._fill(entry, caller_pid, keep)
                self.attach(entry)
                spool.unlink(entry)
                return entry
            there = spool.at(self.path)
            if there is not None:
                self.attach(there)
                return self._reopened(there)
            base = self.attributes.fingerprint if self.attributes is not None else None
            if self.entry is not None:  # uploaded since, by this very mount
                base, self.permissions = self.entry.base, self.entry.permissions
            if base is not None and base.ino is None:
                with contextlib.suppress(Unreachable):  # writes queue; the listing's word is kept
                    base = await self._floors.downloads.certain(self.path, base)
            entry = spool.new(self.path, base=base, permissions=self.permissions)
            try:
                await self._fill(entry, caller_pid, keep)
            except BaseException:
                spool.unlink(entry)
                raise
            if self.path is None:
                self.attach(entry)
                spool.unlink(entry)
                return entry
            there = spool.at(self.path)
            if there is not None:  # somebody was faster while the base arrived
                spool.unlink(entry)
                entry = there
            else:
                entry.path = self.path
                spool.enter(entry)
            self.attach(entry)
            return self._reopened(entry)

    def _has_nothing(self) -> bool:
        return self.content is None and self._held is None and self.entry is None

    def _reopened(self, entry: SpoolEntry) -> SpoolEntry:
        if not entry.is_gone:
            self._floors.spool.move(entry, State.OPEN)
        return entry

    async def _fill(self, entry: SpoolEntry, pid: int, keep: bool) -> None:
        if not keep or self.is_empty_orphan or (self.attributes is None and self._has_nothing()):
            return
        if self.entry is not None:  # the clean, just uploaded file that this handle wrote before
            await self._floors.disk.copy(self.entry.fd, entry.fd, self.entry.size)
            return
        content = self.content if self.content is not None else self.use_content()
        async with contextlib.AsyncExitStack() as held:
            with self._floors.callers.interruptible(pid):
                fd = await held.enter_async_context(self._floors.downloads.all_of(content))
            self._floors.reserve(content.size)
            await self._floors.disk.copy(fd, entry.fd, content.size)

    def close(self) -> None:
        self._detach_entry()
        self._let_go()


class RemoteHandle:
    """One open(2) of a remote file."""

    is_direct = False

    def __init__(
        self,
        floors: Floors,
        shared: Shared,
        flags: int,
        pid: int,
        *,
        refresh: Callable[[Shared], Awaitable[None]],
        released: Callable[[Shared], None],
    ) -> None:
        self._floors = floors
        self.shared = shared
        self._appends = bool(flags & os.O_APPEND)
        self._writes = flags & os.O_ACCMODE != os.O_RDONLY
        self._pid = pid
        self._refresh = refresh
        self._released = released
        self._counted: SpoolEntry | None = None  # the entry that counts this handle as a writer
        self._window = ReadAhead()
        self._reads: CacheFile | None = None
        shared.handles += 1
        if not flags & os.O_TRUNC:
            shared.hold()
        if shared.entry is not None:
            self._count(shared.entry)

    async def read(self, offset: int, size: int) -> bytes:
        shared = self.shared
        if shared.entry is not None:
            return os.pread(shared.entry.fd, size, offset)
        if shared.is_empty_orphan:
            return b""
        content = shared.use_content()
        if offset + size > content.size > 0:  # at the end: has it grown?
            await self._refresh(shared)
            content = shared.use_content()
        if content is not self._reads:
            self._read_no_more()
            self._reads = content
        if not content.is_complete:
            await self._arrive(content, offset, size)
            if shared.entry is not None:  # written to while we waited
                return os.pread(shared.entry.fd, size, offset)
        told = shared.attributes.size if shared.attributes is not None else content.size
        if content.size > told:
            # The kernel knows the size that was listed: it would take the beginning for the file.
            raise Changed("the file was replaced by a longer one after it was listed")
        return content.read(offset, size)

    async def _arrive(self, content: CacheFile, offset: int, size: int) -> None:
        until = self._window.note(offset, size)
        if content.has(offset, size):
            self._floors.downloads.ahead(content, self, offset, size, until)
        else:
            with self._floors.callers.interruptible(self._pid):
                await self._floors.downloads.need(content, self, offset, size, until)

    def _read_no_more(self) -> None:
        if self._reads is not None:
            self._floors.downloads.leave(self._reads, self)
            self._reads = None

    async def write(self, offset: int, data: bytes) -> int:
        entry = self.shared.being_written()
        if entry is None or entry is not self._counted:
            entry = await self.dirty(keep=True)
        try:
            self._floors.reserve(len(data))
            done = entry.write(entry.size if self._appends else offset, data)
            if entry.unflushed >= AHEAD:
                self._floors.uploads.later(self._floors.spool.write_back, entry)
            return done
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise NoLocalSpace("the disk that holds the spool is full") from error
            raise

    async def truncate(self, size: int) -> None:
        entry = await self.dirty(keep=size > 0)
        if size > entry.size:
            self._floors.reserve(0)
        entry.truncate(size)

    async def dirty(self, *, keep: bool) -> SpoolEntry:
        entry = await self.shared.dirty(keep, self._pid)
        self._count(entry)
        return entry

    def _count(self, entry: SpoolEntry) -> None:
        if self._writes and entry is not self._counted:
            if self._counted is not None:
                self._counted.writers -= 1
            entry.writers += 1
            self._counted = entry

    async def flush(self, caller: Caller) -> None:
        """close() of one descriptor: what was written is durable when this returns."""
        await self._commit()

    async def _commit(self) -> None:
        entry = self.shared.entry
        if self._writes and entry is not None:
            await self._floors.spool.commit(entry)

    async def sync(self) -> None:
        """fsync(2): durable here, or on the cluster where the configuration wants that. A reader's
        descriptor will do, as it does for a local file. Raises Stuck."""
        await self._commit()
        entry = self.shared.entry
        if self._floors.fsync_waits and entry is not None:
            with self._floors.callers.interruptible(self._pid):
                await self._floors.uploads.bring(entry)

    async def release(self) -> None:
        """The last descriptor is gone: the upload becomes due."""
        entry, shared = self._counted, self.shared
        shared.handles -= 1
        self._read_no_more()
        try:
            if entry is not None:
                entry.writers -= 1
                await self._floors.uploads.released(entry)
        finally:
            if shared.handles == 0:
                self._released(shared)
                shared.close()


async def truncate_path(floors: Floors, shared: Shared, size: int) -> None:
    """truncate(2) by name of a file that others have open: committed and owed at once."""
    entry = await shared.dirty(size > 0, 0)
    entry.truncate(size)
    await floors.uploads.released(entry)
    await floors.spool.commit(entry)  # where others have it open
