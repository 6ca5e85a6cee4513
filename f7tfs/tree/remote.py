"""The remote wing: the cluster's files, with the spool laid over the catalog.

Attributes are computed: the dirty file if there is one, else the catalog. So a finished upload
never has to tell anybody upstairs.
"""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Mapping

import trio

from f7tfs.catalog import Catalog, is_hidden
from f7tfs.content.journal import Journal
from f7tfs.content.spool import SpoolEntry, State
from f7tfs.content.times import Times
from f7tfs.errors import (
    Changed,
    Exists,
    NoSuchAttribute,
    NotFound,
    NotPermitted,
    Offline,
    PermissionDenied,
    Unreachable,
)
from f7tfs.model import Attributes, Identity, Kind, RemotePath, is_within, join, name_of, parent_of
from f7tfs.transfers.checksums import Checksums
from f7tfs.transfers.namespace import Namespace
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.workplace import Workplace
from f7tfs.tree.handles import Floors, RemoteHandle, Shared, truncate_path
from f7tfs.tree.looks import GHOST, Looks
from f7tfs.tree.nodes import Node
from f7tfs.tree.permissions import SEARCH, WRITE, permits, require, require_openable
from f7tfs.tree.renaming import Renaming
from f7tfs.tree.sniffing import Sniffing, SniffingHandle
from f7tfs.tree.temporaries import is_temporary
from f7tfs.tree.versions import Versions
from f7tfs.tree.wing import Caller, Changes, Look, OpenFile, Wing, wants_writing
from f7tfs.tree.xattrs import SHA256, attributes_of_clean, attributes_of_entry

log = logging.getLogger("f7tfs.tree")
OUTSIDE = ".f7tfs/outside"  # where symlinks that leave the mount lead: nothing can be opened there


class RemoteWing(Wing):
    def __init__(
        self,
        catalog: Catalog,
        namespace: Namespace,
        removals: Removals,
        workplace: Workplace,
        times: Times,
        floors: Floors,
        identity: Identity,
        sniffing: Sniffing,
        checksums: Checksums,
        journal: Journal,
        *,
        root: RemotePath,
    ) -> None:
        self._checksums = checksums
        self._sniffing = sniffing
        self._catalog = catalog
        self._namespace = namespace
        self._removals = removals
        self._times = times
        self._floors = floors
        self._identity = identity
        self._root = root
        self._looks = Looks(identity, times)
        self._versions = Versions(catalog, floors)
        self._open: dict[int, Shared] = {}  # by inode number
        self._renaming = Renaming(
            catalog, namespace, removals, times, floors, workplace, journal, self.is_temporary
        )

    async def resume(self) -> None:
        """What an earlier daemon began and could not end; before anything is sent."""
        await self._renaming.resume()

    # Where and what.

    def path(self, node: Node) -> RemotePath:
        if node.is_detached:
            raise NotFound("the name is gone")
        path = self._root
        for part in node.parts():
            path = join(path, part)
        return path

    def is_temporary(self, path: RemotePath) -> bool:
        """Whether a file of ours stays local under this name."""
        directory = parent_of(path)

        def exists(name: str) -> bool:
            other = join(directory, name)
            return self._floors.spool.at(other) is not None or (
                self._catalog.peek(other) is not None and not self._removals.hides(other)
            )

        return is_temporary(name_of(path), exists)

    async def lookup(self, parent: Node, name: str) -> Look:
        return await self._look_at(join(self.path(parent), name))

    async def look(self, node: Node) -> Look:
        shared = self._open.get(node.ino)
        if node.is_detached:
            if shared is None:
                raise NotFound("the name is gone")
            return self._look_of_shared(shared)
        path = self.path(node)
        if node.is_root:
            return self._looks.of(path, await self._catalog.root_attributes(path))
        return await self._look_at(path)

    async def _look_at(self, path: RemotePath) -> Look:
        entry = self._floors.spool.at(path)
        if entry is not None:
            return self._looks.of_entry(entry)
        return self._looks.of(path, await self._find(path))

    async def _find(self, path: RemotePath, *, fresh: bool = False) -> Attributes:
        """What the cluster has at a name that is not hidden from the user."""
        if self._removals.hides(path) or is_hidden(name_of(path)):
            raise NotFound(path)
        try:
            attributes = await self._catalog.attributes(path, fresh=fresh)
        except NotFound:
            if not self._floors.spool.within(path):
                raise
            attributes = GHOST
        if self._removals.hides(path):  # removed while the listing arrived
            raise NotFound(path)
        return attributes

    async def entries(self, node: Node) -> list[tuple[str, Look]]:
        path = self.path(node)
        try:
            listed = await self._catalog.listing(path)
        except NotFound:
            if not self._floors.spool.within(path):
                raise
            listed = {}
        hidden = self._removals.names_in(path)
        looks = {
            name: self._looks.of(join(path, name), attributes)
            for name, attributes in listed.items()
            if name not in hidden
        }
        for name, entry in self._floors.spool.children(path):
            looks[name] = self._looks.of_entry(entry)
        for entry in self._floors.spool.within(path):
            below = entry.path[len(path.rstrip("/")) + 1 :].split("/")[0]
            if below not in looks:
                looks[below] = self._looks.of(join(path, below), GHOST)
        return list(looks.items())

    def _look_of_shared(self, shared: Shared) -> Look:
        if shared.entry is not None:
            return self._looks.of_entry(shared.entry)
        assert shared.attributes is not None
        return self._looks.of(shared.path or RemotePath("/"), shared.attributes)

    # Opening.

    async def open(self, node: Node, flags: int, caller: Caller) -> OpenFile:
        shared = self._open.get(node.ino)
        if shared is None or not node.is_detached:
            path = self.path(node)
            entry = self._floors.spool.at(path)
            if entry is None:
                attributes = await self._find_to_open(path, caller)
                require_openable(self._identity, attributes, flags, path)
                if wants_writing(flags):
                    await self._namespace.require_name(path)
                if self._catalog.is_offline and not wants_writing(flags):
                    self._require_here(node, path, attributes)
                if not caller.sniffs:
                    attributes = await self._versions.with_inode_if_growing(path, attributes)
                entry = self._floors.spool.at(path)
            else:
                attributes = None
            shared = self._open.get(node.ino)
            if shared is None:
                shared = Shared(
                    self._floors,
                    path,
                    attributes,
                    entry.permissions if entry else (attributes.permissions if attributes else 0),
                )
                self._open[node.ino] = shared
            if entry is not None:
                shared.attach(entry)
            elif attributes is not None and await self._versions.is_other(shared, attributes):
                # The kernel looks the name up again and finds the new inode.
                self._catalog.put(path, attributes)
                raise Changed(f"{path} was replaced on the cluster")
        handle = self._handle(node, shared, flags, caller)
        if self._floors.waits_in_open and not caller.sniffs and flags & os.O_ACCMODE == os.O_RDONLY:
            try:
                await handle.read(0, 1)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await handle.release()
                raise
        return handle

    async def _find_to_open(self, path: RemotePath, caller: Caller) -> Attributes:
        """Never what an old listing tells, unless the API is offline or a sniffer asks."""
        try:
            return await self._find(path, fresh=not caller.sniffs)
        except Unreachable:
            if not self._catalog.is_offline:
                raise
            return await self._find(path)

    def _require_here(self, node: Node, path: RemotePath, attributes: Attributes) -> None:
        """Offline, what is cached can be opened, and what is open already."""
        content = self._floors.cache.find(path, attributes.fingerprint)
        if content is None and node.ino not in self._open and attributes.size > 0:
            raise Offline(f"{path} is not in the cache, and the cluster cannot be reached")

    async def let_go_if_replaced(self, node: Node, look: Look) -> bool:
        shared = self._open.get(node.ino)
        if shared is None or shared.path is None or shared.version() is None:
            return False
        attributes = self._catalog.peek(shared.path)
        if attributes is None or not await self._versions.is_other(shared, attributes):
            return False
        shared.is_replaced = True
        return True

    def _handle(self, node: Node, shared: Shared, flags: int, caller: Caller) -> RemoteHandle:
        async def refresh(which: Shared) -> None:
            if which.path is not None and not which.is_replaced:
                known = self._catalog.peek(which.path)
                if known is not None and known.kind is Kind.FILE:
                    await self._versions.is_other(which, known)

        def released(which: Shared) -> None:
            if self._open.get(node.ino) is which:
                del self._open[node.ino]

        made = SniffingHandle if caller.sniffs else RemoteHandle
        handle = made(
            self._floors,
            shared,
            flags,
            caller.pid,
            refresh=refresh,
            released=released,
        )
        if isinstance(handle, SniffingHandle):
            handle.sniffing, handle.name = self._sniffing, caller.sniffs
        return handle

    async def create(
        self, parent: Node, name: str, permissions: int, flags: int, caller: Caller
    ) -> Look:
        path = join(self.path(parent), name)
        await self._namespace.require_name(path)
        await self._require_writable(parent)
        existing: Attributes | SpoolEntry | None = self._floors.spool.at(path)
        if existing is None and not self._removals.hides(path):
            existing = await self._existing(path, flags)
        if existing is not None and flags & os.O_EXCL:
            raise Exists(path)
        if isinstance(existing, Attributes):
            return self._looks.of(path, existing)
        if not self._removals.hides(path) or self._removals.is_directory(path):
            await self._clear(path)
        await self._removals.settled(path)
        entry = self._floors.spool.at(path)
        if entry is None:
            entry = self._floors.spool.new(
                path, base=None, permissions=permissions & ~caller.umask & 0o7777
            )
            entry.base = self._removals.replace(path, entry)
            entry.hold = self.is_temporary(path)
            self._floors.spool.enter(entry)
        return self._looks.of_entry(entry)

    async def _existing(self, path: RemotePath, flags: int) -> Attributes | SpoolEntry | None:
        """What is already at a name that is to be created. O_EXCL wants the cluster's word, unless
        the name is a temporary that stays here."""
        if flags & os.O_EXCL and not self.is_temporary(path):
            try:
                return await self._catalog.exclusive(path)
            except Unreachable:  # writes queue; a name that is taken becomes a conflict copy
                log.info("%s is created without asking the cluster", path)
        try:
            return await self._find(path)
        except NotFound:
            return None

    async def _clear(self, path: RemotePath) -> None:
        """Carry out what is buried at a name that is needed again."""
        with self._floors.callers.interruptible():
            await self._removals.execute_now(path)

    async def _require_writable(self, directory: Node) -> None:
        path = self.path(directory)
        if self._catalog.is_signpost(path):  # also to root
            raise PermissionDenied(f"{path} only leads to the file systems of the cluster")
        attributes = (
            await self._catalog.root_attributes(path)
            if directory.is_root
            else await self._find(path)
        )
        require(self._identity, attributes, WRITE | SEARCH, path)
        await self._times.changed_in(path)

    # Names.

    async def mkdir(self, parent: Node, name: str, permissions: int) -> Look:
        path = join(self.path(parent), name)
        if self._floors.spool.at(path) is not None:
            raise Exists(path)
        await self._require_writable(parent)
        await self._clear(path)
        return self._looks.of(path, await self._namespace.make_directory(path, permissions))

    async def symlink(self, parent: Node, name: str, target: str) -> Look:
        path = join(self.path(parent), name)
        if self._floors.spool.at(path) is not None:
            raise Exists(path)
        await self._require_writable(parent)
        await self._clear(path)
        return self._looks.of(path, await self._namespace.symlink(target, path))

    async def link(self, node: Node, new_parent: Node, new_name: str) -> Look:
        source, target = self.path(node), join(self.path(new_parent), new_name)
        spool = self._floors.spool
        if spool.at(source) is not None or node.kind is not Kind.FILE:
            raise NotPermitted("only files that are on the cluster can have hard links")
        if spool.at(target) is not None:
            raise Exists(target)
        await self._require_writable(new_parent)
        await self._clear(target)
        return self._looks.of(target, await self._namespace.link(source, target))

    async def readlink(self, node: Node) -> str:
        path = self.path(node)
        target = (await self._find(path)).target
        if target is None:
            target = await self._catalog.read_link(path)
        here = posixpath.dirname(path)
        whole = posixpath.normpath(posixpath.join(here, target))
        if is_within(whole, self._root):
            return posixpath.relpath(whole, here) if target.startswith("/") else target
        # On this machine the name would mean a local file. It is shown, and leads nowhere.
        return posixpath.relpath(f"{self._root}/{OUTSIDE}{whole}", here)

    async def unlink(self, parent: Node, name: str, node: Node | None, caller: Caller) -> None:
        path = join(self.path(parent), name)
        await self._require_writable(parent)
        await self._renaming.unlink(path)
        shared = self._open.get(node.ino) if node is not None else None
        if shared is not None and node is not None and shared.path == path:
            shared.path = self._other_path(node, path)

    def _other_path(self, node: Node, path: RemotePath) -> RemotePath | None:
        """Another name of the inode, now that `path` is none any more."""
        names = [join(self.path(parent), name) for parent, name in node.others]
        if node.parent is not None:
            names.append(self.path(node))
        return next((each for each in names if each != path), None)

    async def rmdir(self, parent: Node, name: str) -> None:
        path = join(self.path(parent), name)
        await self._require_writable(parent)
        await self._renaming.rmdir(path)

    async def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, *, replace: bool
    ) -> None:
        source = join(self.path(parent), name)
        target = join(self.path(new_parent), new_name)
        await self._require_writable(parent)
        if new_parent is not parent:
            await self._require_writable(new_parent)
        await self._renaming.rename(source, target, replace=replace)
        for shared in self._open.values():
            if shared.path is not None and is_within(shared.path, target):
                shared.path = None  # what was there has been replaced
                # (a second name of it is found again at the next open)
            elif shared.path is not None and is_within(shared.path, source):
                shared.path = RemotePath(target + shared.path[len(source) :])

    # Attributes.

    async def change(self, node: Node, changes: Changes, handle: OpenFile | None) -> Look:
        if (changes.uid is not None and changes.uid != self._looks.uid) or (
            changes.gid is not None and changes.gid != self._looks.gid
        ):
            look = await self.look(node)
            if changes.uid not in (None, look.uid) or changes.gid not in (None, look.gid):
                raise NotPermitted("files on the cluster cannot be given to others")
        if changes.size is not None:
            await self._truncate(node, changes.size, handle)
        if changes.permissions is not None or changes.mtime_ns is not None:
            await self._change_attributes(node, changes)
        return await self.look(node)

    async def _truncate(self, node: Node, size: int, handle: OpenFile | None) -> None:
        if isinstance(handle, RemoteHandle):
            await handle.truncate(size)
            return
        shared = self._open.get(node.ino)
        if shared is not None:
            await truncate_path(self._floors, shared, size)
            return
        opened = await self.open(node, os.O_WRONLY, Caller())
        assert isinstance(opened, RemoteHandle)
        try:
            await opened.truncate(size)
        finally:
            await opened.release()

    async def _change_attributes(self, node: Node, changes: Changes) -> None:
        shared = self._open.get(node.ino)
        entry = shared.entry if shared is not None else None
        if entry is None or entry.is_gone:
            entry = None if node.is_detached else self._floors.spool.at(self.path(node))
        if entry is not None:
            async with self._floors.callers.turn(entry.turn):  # not between proof and publishing
                if not entry.is_gone:
                    if changes.permissions is not None:
                        entry.permissions = changes.permissions & 0o7777
                    if changes.mtime_ns is not None:
                        entry.mtime_ns = changes.mtime_ns
                    entry.generation += 1
                    if entry.state is not State.OPEN:
                        await self._floors.spool.commit(entry)
                    return
        if node.is_detached:
            return
        path = self.path(node)
        if self._catalog.is_signpost(path):  # as to anybody but the owner: chmod(2), utimensat(2)
            raise NotPermitted(f"{path} only leads to the file systems of the cluster")
        if changes.permissions is not None:
            await self._namespace.change_mode(path, changes.permissions & 0o7777)
            if shared is not None:
                shared.show_mode(changes.permissions & 0o7777)
        attributes = (
            await self._catalog.root_attributes(path) if node.is_root else await self._find(path)
        )
        if changes.permissions is not None:
            self._floors.cache.touch(path, attributes.fingerprint)
        if changes.mtime_ns is not None:
            await self._namespace.require_name(path)
            if attributes.is_directory:
                await self._times.set_directory(path, changes.mtime_ns)
            else:
                await self._times.set(path, attributes.fingerprint, changes.mtime_ns)

    async def may(self, node: Node, mode: int) -> bool:
        path = self.path(node)
        if self._floors.spool.at(path) is not None:
            return True
        if self._catalog.is_signpost(path) and mode & WRITE:
            return False
        attributes = (
            await self._catalog.root_attributes(path) if node.is_root else await self._find(path)
        )
        if attributes.kind is Kind.SYMLINK:
            return True
        return permits(self._identity, attributes, mode & 7)

    async def attribute(self, node: Node, name: str) -> bytes:
        """The checksum is not listed: `cp -a` and `rsync -X` read all that is."""
        if name != SHA256:
            return await super().attribute(node, name)
        path = self.path(node)
        if self._floors.spool.at(path) is not None or node.kind is not Kind.FILE:
            raise NoSuchAttribute(name)  # what the cluster has is not what the name means
        known = await self._find(path, fresh=True)
        return (await self._checksums.of(path, known.fingerprint)).encode()

    async def attributes(self, node: Node) -> Mapping[str, str]:
        path = self.path(node)
        entry = self._floors.spool.at(path)
        if entry is not None:
            return attributes_of_entry(path, entry)
        if node.kind is not Kind.FILE:
            return attributes_of_clean(path, None, False)
        known = await self._find(path)
        content = self._floors.cache.find(path, known.fingerprint)
        cached = content is not None and content.is_complete
        return attributes_of_clean(path, cached, self._catalog.is_offline)
