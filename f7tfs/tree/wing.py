"""What a part of the tree can do: the `Wing` protocol, and the values at its door.

The remote wing shows the cluster, the jobs wing the scheduler, the control wing the mount itself.
Methods that a wing does not offer raise NotPermitted by default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import msgspec

from f7tfs.errors import CrossDevice, NoSuchAttribute, NotPermitted, Unsupported
from f7tfs.model import Kind
from f7tfs.tree.nodes import Node

ATTRIBUTE_TIMEOUT = 1.0  # seconds for which the kernel may keep attributes and names


class Look(msgspec.Struct, frozen=True):
    """What stat(2) shows of a node. `version` tells one content from another: while it is the
    same, the kernel keeps its pages. `timeout` in seconds. `first_name`: of a file with several
    names, the path of one, from the mount's root."""

    kind: Kind
    permissions: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    nlink: int = 1
    timeout: float = ATTRIBUTE_TIMEOUT
    version: object = None
    first_name: str = ""


class Caller(msgspec.Struct, frozen=True):
    """Who asks: `pid` is the thread id in the mount's pid namespace, 0 for the kernel itself.
    `sniffs` names a process for which nothing may be fetched, "" for all others."""

    pid: int = 0
    umask: int = 0o022
    sniffs: str = ""


class Changes(msgspec.Struct, frozen=True):
    """What setattr asks for; None where it does not."""

    size: int | None = None
    permissions: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None


class OpenFile(Protocol):
    """One open handle. `is_direct`: its size is not known beforehand, the kernel must not cache."""

    is_direct: bool

    async def read(self, offset: int, size: int) -> bytes: ...
    async def write(self, offset: int, data: bytes) -> int: ...
    async def flush(self, caller: Caller) -> None: ...
    async def sync(self) -> None: ...
    async def release(self) -> None: ...


class Wing:
    """One kind of place in the tree. Nodes say where; values come back; nothing is cached here
    that the kernel door would have to know."""

    async def lookup(self, parent: Node, name: str) -> Look:
        """Raises NotFound."""
        raise NotImplementedError

    async def look(self, node: Node) -> Look:
        raise NotImplementedError

    async def entries(self, node: Node) -> list[tuple[str, Look]]:
        raise NotImplementedError

    async def open(self, node: Node, flags: int, caller: Caller) -> OpenFile:
        raise NotImplementedError

    async def let_go_if_replaced(self, node: Node) -> bool:
        """Whether the name now means another file than the one that is open as `node`. Then what
        is open keeps its inode and what it has, without a name."""
        return False

    def is_same(self, node: Node, parent: Node, name: str) -> bool:
        """Whether a second name, made by link(2), still means the file of `node`."""
        return True

    async def create(
        self, parent: Node, name: str, permissions: int, flags: int, caller: Caller
    ) -> Look:
        """Make an empty file; `open` follows. Raises Exists if there is one and `flags` hold
        O_EXCL."""
        raise NotPermitted(f"{name}: no files are created here")

    async def mkdir(self, parent: Node, name: str, permissions: int) -> Look:
        raise NotPermitted(f"{name}: no directories are made here")

    async def unlink(self, parent: Node, name: str, node: Node | None, caller: Caller) -> None:
        raise NotPermitted(f"{name} cannot be removed")

    async def rmdir(self, parent: Node, name: str) -> None:
        raise NotPermitted(f"{name} cannot be removed")

    async def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, *, replace: bool
    ) -> None:
        raise NotPermitted(f"{name} cannot be renamed")

    def refuse_leaving(self, other: Wing) -> Exception:
        """The error for a rename to another wing. EXDEV makes `mv` copy and then unlink."""
        return CrossDevice("the mount's own names and the cluster's are different devices")

    async def symlink(self, parent: Node, name: str, target: str) -> Look:
        raise NotPermitted(f"{name}: no symlinks are made here")

    async def link(self, node: Node, new_parent: Node, new_name: str) -> Look:
        raise NotPermitted(f"{new_name}: no hard links are made here")

    async def readlink(self, node: Node) -> str:
        raise NotPermitted("not a symlink")

    async def change(self, node: Node, changes: Changes, handle: OpenFile | None) -> Look:
        """chmod, chown, truncate, utimens."""
        raise NotPermitted("attributes cannot be changed here")

    async def may(self, node: Node, mode: int) -> bool:
        """access(2): `mode` is R_OK | W_OK | X_OK."""
        look = await self.look(node)
        return not mode & os.W_OK or bool(look.permissions & 0o222)

    async def attribute(self, node: Node, name: str) -> bytes:
        """getxattr(2)."""
        if name.startswith(("system.", "security.")):
            raise Unsupported(name)
        found = (await self.attributes(node)).get(name)
        if found is None:
            raise NoSuchAttribute(name)
        return found.encode(errors="surrogateescape")

    async def set_attribute(self, node: Node, name: str, value: str) -> None:
        """setxattr(2), and with "" removexattr(2)."""
        raise Unsupported(f"{name} cannot be stored on the cluster")

    async def attributes(self, node: Node) -> Mapping[str, str]:
        """The extended attributes that this node has, by full name."""
        return {}


class PassiveHandle:
    """An open handle with nothing to write back."""

    is_direct = True

    async def read(self, offset: int, size: int) -> bytes:
        raise NotPermitted("this file is written, not read")

    async def write(self, offset: int, data: bytes) -> int:
        raise NotPermitted("this file cannot be written")

    async def flush(self, caller: Caller) -> None:
        pass

    async def sync(self) -> None:
        pass

    async def release(self) -> None:
        pass


class ReadOnlyText(PassiveHandle):
    """An open handle on a text that was made at open."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


def wants_writing(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY
