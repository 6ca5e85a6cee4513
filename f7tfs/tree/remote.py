"""The remote wing: the cluster's files, with the spool laid over the catalog.

Attributes are computed: the dirty file if there is one, else the catalog. So a finished upload
never has to tell anybody upstairs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from f7tfs.catalog import Catalog
from f7tfs.content.journal import Journal
from f7tfs.content.spool import SpoolEntry, State
from f7tfs.content.times import Times
from f7tfs.errors import (
    Exists,
    NoSuchAttribute,
    NotFound,
    NotPermitted,
    PermissionDenied,
    Unreachable,
)
from f7tfs.model import Attributes, Identity, Kind, RemotePath, join
from f7tfs.transfers.aliases import Aliases
from f7tfs.transfers.checksums import Checksums
from f7tfs.transfers.namespace import Namespace
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.renames import Renames
from f7tfs.transfers.unsettled import Unsettled
from f7tfs.transfers.workplace import Workplace
from f7tfs.tree.following import Following
from f7tfs.tree.handles import Floors, RemoteHandle, Shared, truncate_path
from f7tfs.tree.looks import Looks, shown_target
from f7tfs.tree.nodes import Node
from f7tfs.tree.openfiles import OpenFiles
from f7tfs.tree.overlay import Overlay
from f7tfs.tree.permissions import (
    SEARCH,
    WRITE,
    permits,
    require,
    require_owner,
    require_removable,
)
from f7tfs.tree.renaming import Renaming
from f7tfs.tree.sniffing import Sniffing
from f7tfs.tree.wing import Caller, Changes, Look, OpenFile, Wing
from f7tfs.tree.xattrs import SHA256, attributes_of_clean, attributes_of_entry

log = logging.getLogger("f7tfs.tree")


class RemoteWing(Wing):
    def __init__(
        self,
        catalog: Catalog,
        namespace: Namespace,
        renames: Renames,
        unsettled: Unsettled,
        removals: Removals,
        aliases: Aliases,
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
        self._catalog = catalog
        self._namespace = namespace
        self._renames = renames
        self._removals = removals
        self._aliases = aliases
        self._times = times
        self._floors = floors
        self._identity = identity
        self._root = root
        self._looks = Looks(identity, times, root)
        self._overlay = Overlay(catalog, floors.spool, removals, aliases, self._looks, identity)
        self._open = OpenFiles(
            catalog,
            namespace,
            aliases,
            self._overlay,
            floors,
            identity,
            sniffing,
            path=self.path,
        )
        self._following = Following(
            self._overlay,
            renames,
            unsettled,
            removals,
            times,
            floors,
            workplace,
            journal,
            self._open,
        )
        self._renaming = Renaming(
            self._overlay,
            renames,
            removals,
            aliases,
            times,
            floors,
            journal,
            identity,
            self._open,
            self._following,
        )

    async def resume(self) -> None:
        """What an earlier daemon began and could not end; before anything is sent."""
        await self._following.resume()

    # Where and what.

    def path(self, node: Node) -> RemotePath:
        if node.is_detached:
            raise NotFound("the name is gone")
        path = self._root
        for part in node.parts():
            path = join(path, part)
        return path

    async def lookup(self, parent: Node, name: str) -> Look:
        return await self._overlay.look(join(self.path(parent), name))

    async def look(self, node: Node) -> Look:
        shared = self._open.find(node)
        if node.is_detached:
            if shared is None:
                raise NotFound("the name is gone")
            return self._look_of_shared(shared)
        path = self.path(node)
        if node.is_root:
            return self._looks.of(path, await self._catalog.root_attributes(path))
        if shared is not None:
            await self._open.learn_inode(shared)
        return await self._overlay.look(path)

    async def entries(self, node: Node) -> list[tuple[str, Look]]:
        return await self._overlay.entries(self.path(node))

    def _look_of_shared(self, shared: Shared) -> Look:
        if shared.entry is not None:
            return self._looks.of_entry(shared.entry)
        assert shared.attributes is not None
        return self._looks.of(shared.path or RemotePath("/"), shared.attributes)

    # Opening.

    async def open(self, node: Node, flags: int, caller: Caller) -> OpenFile:
        return await self._open.open(node, flags, caller)

    async def let_go_if_replaced(self, node: Node) -> bool:
        return await self._open.let_go_if_replaced(node)

    async def create(
        self, parent: Node, name: str, permissions: int, flags: int, caller: Caller
    ) -> Look:
        path = join(self.path(parent), name)
        await self._namespace.require_name(path)
        await self._require_writable(parent, path)
        existing: Attributes | SpoolEntry | None = self._floors.spool.at(path)
        if existing is None and not self._overlay.hides(path):
            existing = await self._existing(path, flags)
        if existing is not None and flags & os.O_EXCL:
            raise Exists(path)
        if isinstance(existing, Attributes):
            return self._looks.of(path, existing)
        if not self._removals.hides(path) or self._removals.is_directory(path):
            await self._clear(path, of_aliases=False)  # a new file may take the place of such
        await self._removals.settled(path)
        entry = self._floors.spool.at(path)
        if entry is None:
            entry = self._floors.spool.new(
                path, base=None, permissions=permissions & ~caller.umask & 0o7777
            )
            entry.base = self._removals.replace(path, entry)
            if (alias := self._aliases.of(path)) is not None:
                entry.base = alias.attributes.fingerprint
            entry.hold = self._overlay.is_temporary(path)
            self._floors.spool.enter(entry)
        return self._looks.of_entry(entry)

    async def _existing(self, path: RemotePath, flags: int) -> Attributes | SpoolEntry | None:
        """What is already at a name that is to be created. O_EXCL wants the cluster's word, unless
        the name is a temporary that stays here."""
        if flags & os.O_EXCL and not self._overlay.is_temporary(path):
            try:
                return await self._catalog.exclusive(path)
            except Unreachable:  # writes queue; a name that is taken becomes a conflict copy
                log.info("%s is created without asking the cluster", path)
        try:
            return await self._overlay.find(path)
        except NotFound:
            return None

    async def _clear(self, path: RemotePath, *, of_aliases: bool = True) -> None:
        """Carry out what is buried, or renamed only here, at a name that is needed again."""
        with self._floors.callers.interruptible():
            await self._removals.execute_now(path)
            if of_aliases:
                await self._aliases.settle(path)

    async def _require_writable(self, directory: Node, name: RemotePath) -> Attributes:
        """Before `name` in a directory is made, removed or changed."""
        await self._following.require_known(name)
        path = self.path(directory)
        if self._catalog.is_signpost(path):  # also to root
            raise PermissionDenied(f"{path} only leads to the file systems of the cluster")
        attributes = await self._attributes_of(directory)
        require(self._identity, attributes, WRITE | SEARCH, path)
        await self._times.changed_in(path)
        return attributes

    async def _require_removable(self, directory: Node, path: RemotePath) -> None:
        attributes = await self._require_writable(directory, path)
        entry = self._floors.spool.at(path)
        if entry is None or entry.base is not None:
            there = self._catalog.peek(path)
            require_removable(self._identity, attributes, there, path)

    # Names.

    async def mkdir(self, parent: Node, name: str, permissions: int) -> Look:
        path = join(self.path(parent), name)
        if self._floors.spool.at(path) is not None:
            raise Exists(path)
        await self._require_writable(parent, path)
        await self._clear(path)
        return self._looks.of(path, await self._namespace.make_directory(path, permissions))

    async def symlink(self, parent: Node, name: str, target: str) -> Look:
        path = join(self.path(parent), name)
        if self._floors.spool.at(path) is not None:
            raise Exists(path)
        await self._require_writable(parent, path)
        await self._clear(path)
        return self._looks.of(path, await self._namespace.symlink(target, path))

    async def link(self, node: Node, new_parent: Node, new_name: str) -> Look:
        source, target = self.path(node), join(self.path(new_parent), new_name)
        if node.kind is not Kind.FILE:
            raise NotPermitted("only regular files can have hard links")
        if self._floors.spool.at(target) is not None:
            raise Exists(target)
        await self._require_writable(new_parent, target)
        await self._clear(target)
        await self._aliases.settle(source)
        entry = await self._renaming.link(source, target)
        if entry is not None:
            return self._looks.of_entry(entry)
        return self._looks.of(target, await self._renames.link(source, target))

    def is_same(self, node: Node, parent: Node, name: str) -> bool:
        spool = self._floors.spool
        return spool.at(join(self.path(parent), name)) is spool.at(self.path(node))

    async def readlink(self, node: Node) -> str:
        path = self.path(node)
        target = (await self._overlay.find(path)).target
        if target is None:
            target = await self._catalog.read_link(path)
        return shown_target(target, path, self._root)

    async def unlink(self, parent: Node, name: str, node: Node | None, caller: Caller) -> None:
        path = join(self.path(parent), name)
        await self._require_removable(parent, path)
        await self._renaming.unlink(path)
        shared = self._open.find(node) if node is not None else None
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
        await self._require_removable(parent, path)
        await self._renaming.rmdir(path)

    async def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, *, replace: bool
    ) -> None:
        source = join(self.path(parent), name)
        target = join(self.path(new_parent), new_name)
        await self._require_removable(parent, source)
        await self._require_removable(new_parent, target)
        if new_parent is not parent:
            moved = self._catalog.peek(source)
            if moved is not None and moved.is_directory:  # its ".." changes
                require(self._identity, moved, WRITE, source)
        await self._renaming.rename(source, target, replace=replace)

    # Attributes.

    async def change(self, node: Node, changes: Changes, handle: OpenFile | None) -> Look:
        if (changes.uid is not None and changes.uid != self._looks.uid) or (
            changes.gid is not None and changes.gid != self._looks.gid
        ):
            look = await self.look(node)
            if changes.uid not in (None, look.uid) or changes.gid not in (None, look.gid):
                raise NotPermitted("files on the cluster cannot be given to others")
        if not node.is_detached and self._aliases.at(self.path(node)) is not None:
            await self._aliases.settle(self.path(node))
        if changes.size is not None:
            await self._truncate(node, changes.size, handle)
        if changes.permissions is not None or changes.mtime_ns is not None:
            await self._change_attributes(node, changes)
        return await self.look(node)

    async def _truncate(self, node: Node, size: int, handle: OpenFile | None) -> None:
        if isinstance(handle, RemoteHandle):
            await handle.truncate(size)
            return
        shared = self._open.find(node)
        if shared is not None:
            entry = shared.entry
            known = self._overlay.of_dirty(entry) if entry is not None else shared.attributes
            if known is not None:
                require(self._identity, known, WRITE, shared.path or "the file")
            await truncate_path(self._floors, shared, size)
            return
        opened = await self.open(node, os.O_WRONLY, Caller())
        assert isinstance(opened, RemoteHandle)
        try:
            await opened.truncate(size)
        finally:
            await opened.release()

    async def _change_attributes(self, node: Node, changes: Changes) -> None:
        shared = self._open.find(node)
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
        attributes = await self._attributes_of(node)
        if changes.permissions is not None:
            require_owner(self._identity, attributes, path)
            await self._namespace.change_mode(path, changes.permissions & 0o7777)
            if shared is not None:
                shared.show_mode(changes.permissions & 0o7777)
            attributes = await self._attributes_of(node)
            self._floors.cache.touch(path, attributes.fingerprint)
        elif not permits(self._identity, attributes, WRITE):
            require_owner(self._identity, attributes, path)
        if changes.mtime_ns is not None:
            await self._namespace.require_name(path)
            if attributes.is_directory:
                await self._times.set_directory(path, changes.mtime_ns)
            else:
                await self._times.set(path, attributes.fingerprint, changes.mtime_ns)

    async def _attributes_of(self, node: Node) -> Attributes:
        path = self.path(node)
        if node.is_root:
            return await self._catalog.root_attributes(path)
        return await self._overlay.find(path)

    async def may(self, node: Node, mode: int) -> bool:
        path = self.path(node)
        entry = self._floors.spool.at(path)
        if entry is not None:
            return permits(self._identity, self._overlay.of_dirty(entry), mode & 7)
        if self._catalog.is_signpost(path) and mode & WRITE:
            return False
        attributes = await self._attributes_of(node)
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
        known = await self._overlay.find(path, fresh=True)
        origin = self._aliases.origin(path)
        return (await self._checksums.of(origin, known.fingerprint)).encode()

    async def attributes(self, node: Node) -> Mapping[str, str]:
        path = self._aliases.origin(self.path(node))
        entry = self._floors.spool.at(self.path(node))
        if entry is not None:
            return attributes_of_entry(path, entry)
        if node.kind is not Kind.FILE:
            return attributes_of_clean(path, None, self._catalog.is_offline)
        known = await self._overlay.find(self.path(node))
        content = self._floors.cache.find(path, known.fingerprint)
        cached = content is not None and content.is_complete
        return attributes_of_clean(path, cached, self._catalog.is_offline)
