"""The tree: wings under one root, and the requests of a file system on them.

Everything that the kernel door needs, by inode number and without a kernel: the same scenarios
drive this and a real mount. Two virtual names lie over the root: `jobs/`, which is listed, and
`.f7tfs/`, which is not, so that `cp -r`, `find` and file managers do not walk it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping

import msgspec
import trio

from f7tfs.errors import (
    Changed,
    F7tfsError,
    InvalidArgument,
    NotADirectory,
    NotFound,
    NotPermitted,
    PermissionDenied,
)
from f7tfs.model import Kind
from f7tfs.tree.nodes import ROOT_INODE, Node, NodeTable
from f7tfs.tree.readers import Readers
from f7tfs.tree.waiting import Callers, caller_pid
from f7tfs.tree.wing import Caller, Changes, Look, OpenFile, Wing, wants_writing

log = logging.getLogger("f7tfs.tree")
LISTED = "jobs"
TRASH = (".Trash", ".Trash-")


class Opened:
    """An open file: its node and the wing's handle."""

    __slots__ = ("is_resized", "keep_cache", "node", "source")

    def __init__(self, node: Node, source: OpenFile) -> None:
        self.node = node
        self.source = source
        self.keep_cache = False  # whether the kernel's pages are still of this version
        self.is_resized = False  # whether the kernel was told another size, and may go by that


class OpenedDirectory:
    """A snapshot of a directory, so that cookies stay stable while it is read."""

    __slots__ = ("entries", "node")

    def __init__(self, node: Node, entries: list[tuple[str, Look]]) -> None:
        self.node = node
        self.entries = entries


class Tree:
    def __init__(
        self, root: Wing, overlays: Mapping[str, Wing], callers: Callers, readers: Readers
    ) -> None:
        self._readers = readers
        self.nodes = NodeTable(root)
        self._overlays = dict(overlays)
        self.callers = callers
        self._files: dict[int, Opened] = {}
        self._directories: dict[int, OpenedDirectory] = {}
        self._next_handle = 1
        self._warned: set[str] = set()

    # Finding.

    def node(self, ino: int) -> Node:
        try:
            return self.nodes.get(ino)
        except KeyError:
            raise Changed(f"inode {ino} is not known any more") from None

    def _wing_of(self, parent: Node, name: str) -> Wing:
        if parent.is_root and name in self._overlays:
            return self._overlays[name]
        return parent.wing

    async def lookup(self, parent_ino: int, name: str) -> tuple[Node, Look]:
        """The node of a name, counted as looked up. Raises NotFound."""
        node, look = await self.peek(parent_ino, name)
        self.nodes.remember(node)
        return node, look

    async def peek(self, parent_ino: int, name: str) -> tuple[Node, Look]:
        parent = self.node(parent_ino)
        if parent.kind is not Kind.DIRECTORY:
            raise NotADirectory(name)
        if name in {".", ".."}:
            node = parent if name == "." or parent.parent is None else parent.parent
            return node, await self.look(node.ino)
        wing = self._wing_of(parent, name)
        if wing is not parent.wing:
            look = await wing.look(parent)
        else:
            try:
                look = await wing.lookup(parent, name)
            except NotFound:
                self.nodes.detach(parent, name)
                raise
        known = self.nodes.child(parent, name)
        if known is not None and known.others:
            if wing.is_same(known, parent, name):
                return known, await wing.look(known)  # one inode, one answer for all its names
            self.nodes.detach(parent, name)
            known = None
        replaced = known is not None and known.opened and await wing.let_go_if_replaced(known)
        if replaced and self.nodes.child(parent, name) is known:
            self.nodes.detach(parent, name)
        return self._node_for(parent, name, look, wing), look

    def _node_for(self, parent: Node, name: str, look: Look, wing: Wing) -> Node:
        return self.nodes.ensure(parent, name, look.kind, wing, look.first_name)

    async def look(self, ino: int) -> Look:
        node = self.node(ino)
        return await node.wing.look(node)

    def forget(self, ino: int, count: int) -> None:
        self.nodes.forget(ino, count)

    # Files.

    async def open(self, ino: int, flags: int, caller: Caller) -> int:
        node = self.node(ino)
        if not wants_writing(flags) and (name := self._readers.sniffer(caller.pid, flags)):
            caller = msgspec.structs.replace(caller, sniffs=name)
        self.nodes.opening(node)
        try:
            source = await node.wing.open(node, flags, caller)
        except BaseException:
            self.nodes.closing(node)
            raise
        opened = Opened(node, source)
        handle = self._register(opened)
        try:
            if flags & os.O_TRUNC and wants_writing(flags):
                # The kernel leaves it to us (docs/decisions): no setattr follows.
                await self.change(node.ino, Changes(size=0), handle)
            elif not source.is_direct:
                look = await node.wing.look(node)
                opened.keep_cache = node.version == look.version
                opened.is_resized = node.told_size != look.size
                node.version = look.version
            elif caller.sniffs:
                opened.keep_cache = True  # it goes past the kernel's pages
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.release(handle)
            raise
        return handle

    def _register(self, opened: Opened) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._files[handle] = opened
        return handle

    async def create(
        self, parent_ino: int, name: str, permissions: int, flags: int, caller: Caller
    ) -> tuple[Node, Look, int]:
        parent = self._changeable(parent_ino, name)
        look = await parent.wing.create(parent, name, permissions, flags, caller)
        node = self._node_for(parent, name, look, parent.wing)
        self.nodes.remember(node)
        try:
            handle = await self.open(node.ino, flags, caller)
        except BaseException:
            self.nodes.forget(node.ino, 1)
            raise
        return node, await node.wing.look(node), handle

    def opened(self, handle: int) -> Opened:
        try:
            return self._files[handle]
        except KeyError:
            raise OSError(errno.EBADF, "no such open file") from None

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return await self.opened(handle).source.read(offset, size)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        opened = self.opened(handle)
        opened.node.version = None
        return await opened.source.write(offset, data)

    async def flush(self, handle: int, caller: Caller) -> None:
        await self.opened(handle).source.flush(caller)

    async def sync(self, handle: int) -> None:
        await self.opened(handle).source.sync()

    async def release(self, handle: int) -> None:
        opened = self._files.pop(handle)
        try:
            await opened.source.release()
        finally:
            self.nodes.closing(opened.node)

    # Directories.

    async def open_directory(self, ino: int) -> int:
        self._readers.require_listing(caller_pid.get())
        node = self.node(ino)
        entries = await node.wing.entries(node)
        if node.is_root:
            entries = [(name, look) for name, look in entries if not self._is_shadowed(name)]
            overlay = self._overlays.get(LISTED)
            if overlay is not None:
                entries.append((LISTED, await overlay.look(node)))
        handle = self._next_handle
        self._next_handle += 1
        self._directories[handle] = OpenedDirectory(node, sorted(entries, key=lambda one: one[0]))
        return handle

    def _is_shadowed(self, name: str) -> bool:
        if name not in self._overlays:
            return False
        if name not in self._warned:
            self._warned.add(name)
            log.warning("%s on the cluster is hidden behind the mount's own %s", name, name)
        return True

    def directory(self, handle: int) -> OpenedDirectory:
        return self._directories[handle]

    def child_for_readdir(self, parent: Node, name: str, look: Look) -> Node:
        return self._node_for(parent, name, look, self._wing_of(parent, name))

    def release_directory(self, handle: int) -> None:
        del self._directories[handle]

    # Names.

    def _changeable(self, parent_ino: int, name: str) -> Node:
        parent = self.node(parent_ino)
        if self._wing_of(parent, name) is not parent.wing:
            raise NotPermitted(f"{name} is the mount's own")
        return parent

    async def mkdir(self, parent_ino: int, name: str, permissions: int) -> tuple[Node, Look]:
        parent = self._changeable(parent_ino, name)
        if (name == TRASH[0] or name.startswith(TRASH[1])) and (
            parent.is_root or parent.wing is self._overlays.get(LISTED)
        ):
            # A file manager that gets no trash offers to delete for good, which is what happens.
            raise PermissionDenied("there is no trash here")
        look = await parent.wing.mkdir(parent, name, permissions)
        node = self._node_for(parent, name, look, parent.wing)
        self.nodes.remember(node)
        return node, look

    async def symlink(self, parent_ino: int, name: str, target: str) -> tuple[Node, Look]:
        parent = self._changeable(parent_ino, name)
        look = await parent.wing.symlink(parent, name, target)
        node = self._node_for(parent, name, look, parent.wing)
        self.nodes.remember(node)
        return node, look

    async def link(self, ino: int, parent_ino: int, name: str) -> tuple[Node, Look]:
        """A second name of a file, with the same inode number while the kernel knows it."""
        parent = self._changeable(parent_ino, name)
        node = self.node(ino)
        if node.wing is not parent.wing:
            raise node.wing.refuse_leaving(parent.wing)
        look = await parent.wing.link(node, parent, name)
        self.nodes.link(node, parent, name)
        self.nodes.remember(node)
        return node, look

    async def readlink(self, ino: int) -> str:
        node = self.node(ino)
        return await node.wing.readlink(node)

    async def unlink(self, parent_ino: int, name: str, caller: Caller) -> None:
        parent = self._changeable(parent_ino, name)
        node = self.nodes.child(parent, name)
        await parent.wing.unlink(parent, name, node, caller)
        self.nodes.detach(parent, name)

    async def rmdir(self, parent_ino: int, name: str) -> None:
        parent = self._changeable(parent_ino, name)
        await parent.wing.rmdir(parent, name)
        self.nodes.detach(parent, name)

    async def rename(
        self, parent_ino: int, name: str, new_parent_ino: int, new_name: str, *, replace: bool
    ) -> None:
        parent = self._changeable(parent_ino, name)
        new_parent = self._changeable(new_parent_ino, new_name)
        if parent.wing is not new_parent.wing:
            raise parent.wing.refuse_leaving(new_parent.wing)
        await parent.wing.rename(parent, name, new_parent, new_name, replace=replace)
        self.nodes.move(parent, name, new_parent, new_name)

    # Attributes.

    async def change(self, ino: int, changes: Changes, handle: int | None) -> Look:
        node = self.node(ino)
        if changes.size is not None and changes.size < 0:
            raise InvalidArgument("a negative size")
        source = self._files[handle].source if handle is not None else None
        if changes.size is not None:
            node.version = None
        return await node.wing.change(node, changes, source)

    async def may(self, ino: int, mode: int) -> bool:
        node = self.node(ino)
        return mode == os.F_OK or await node.wing.may(node, mode)

    async def attribute(self, ino: int, name: str) -> bytes:
        node = self.node(ino)
        return await node.wing.attribute(node, name)

    async def attributes(self, ino: int) -> list[str]:
        node = self.node(ino)
        return sorted(await node.wing.attributes(node))

    async def set_attribute(self, ino: int, name: str, value: str) -> None:
        node = self.node(ino)
        await node.wing.set_attribute(node, name, value)

    # Ending.

    async def close(self) -> None:
        """The door is closed: whatever is still open is let go of, as release would."""
        for handle in list(self._files):
            try:
                await self.release(handle)
            except (F7tfsError, OSError) as error:
                log.error("closing: %s", error)
        self._directories.clear()

    def check(self) -> None:
        self.nodes.check()


__all__ = ["ROOT_INODE", "Tree"]
