"""Files that are open, by inode: one `Shared` for all handles of a file, whatever its name is."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from f7tfs.catalog import Catalog
from f7tfs.errors import Changed, Offline, Unreachable
from f7tfs.model import Attributes, Identity, Kind, RemotePath, is_within
from f7tfs.transfers.aliases import Aliases
from f7tfs.transfers.namespace import Namespace
from f7tfs.tree.handles import Floors, RemoteHandle, Shared
from f7tfs.tree.nodes import Node
from f7tfs.tree.overlay import Overlay
from f7tfs.tree.permissions import require_openable
from f7tfs.tree.sniffing import Sniffing, SniffingHandle
from f7tfs.tree.versions import Versions
from f7tfs.tree.wing import Caller, wants_writing


class OpenFiles:
    def __init__(
        self,
        catalog: Catalog,
        namespace: Namespace,
        aliases: Aliases,
        overlay: Overlay,
        floors: Floors,
        identity: Identity,
        sniffing: Sniffing,
        *,
        path: Callable[[Node], RemotePath],
    ) -> None:
        """`path`: where the cluster has a node; raises NotFound for a name that is gone."""
        self._catalog = catalog
        self._namespace = namespace
        self._aliases = aliases
        self._overlay = overlay
        self._floors = floors
        self._identity = identity
        self._sniffing = sniffing
        self._path = path
        self._versions = Versions(catalog, floors)
        self._open: dict[int, Shared] = {}  # by inode number

    def find(self, node: Node) -> Shared | None:
        return self._open.get(node.ino)

    def has(self, path: RemotePath) -> bool:
        return any(shared.path == path for shared in self._open.values())

    async def learn_inode(self, shared: Shared) -> None:
        await self._versions.learn_inode(shared)

    def renamed(self, source: RemotePath, target: RemotePath) -> None:
        for shared in self._open.values():
            if shared.path is not None and is_within(shared.path, target):
                shared.path = None  # what was there has been replaced
                # (a second name of it is found again at the next open)
            elif shared.path is not None and is_within(shared.path, source):
                shared.path = RemotePath(target + shared.path[len(source) :])

    async def open(self, node: Node, flags: int, caller: Caller) -> RemoteHandle:
        shared = self.find(node)
        if shared is None or not node.is_detached:
            path = self._path(node)
            if self._aliases.at(path) is not None:
                await self._aliases.settle(path)
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
                if not flags & os.O_CREAT:  # who has just made it may write to it once
                    require_openable(self._identity, self._overlay.of_dirty(entry), flags, path)
            shared = self.find(node)
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
            return await self._overlay.find(path, fresh=not caller.sniffs)
        except Unreachable:
            if not self._catalog.is_offline:
                raise
            return await self._overlay.find(path)

    def _require_here(self, node: Node, path: RemotePath, attributes: Attributes) -> None:
        """Offline, what is cached can be opened, and what is open already."""
        content = self._floors.cache.find(path, attributes.fingerprint)
        if content is None and node.ino not in self._open and attributes.size > 0:
            raise Offline(f"{path} is not in the cache, and the cluster cannot be reached")

    async def let_go_if_replaced(self, node: Node) -> bool:
        shared = self.find(node)
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
            if self.find(node) is which:
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
