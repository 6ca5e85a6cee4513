"""The inode table: which node the kernel means by a number, and for how long.

Pure: no await, no network, no disk. Lookup counts are kept here and nowhere else. A node lives
while the kernel counts lookups of it or somebody has it open. Inode numbers are derived from the
path where possible, so that they are the same after a remount (git's index keeps them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from f7tfs.model import Kind

if TYPE_CHECKING:
    from f7tfs.tree.wing import Wing

ROOT_INODE = 1


class Node:
    """One inode. `parent` is None for the root, and for nodes whose name is gone (unlinked or
    replaced) while somebody still has them open. `others` are further names of the same inode,
    made by link(2) in this mount: (parent, name)."""

    __slots__ = (
        "ino", "kind", "lookups", "name", "opened", "others", "parent", "told_size", "version",
        "wing",
    )  # fmt: skip

    def __init__(self, ino: int, parent: Node | None, name: str, kind: Kind, wing: Wing) -> None:
        self.ino = ino
        self.parent = parent
        self.name = name
        self.kind = kind
        self.wing = wing
        self.others: list[tuple[Node, str]] = []
        self.lookups = 0
        self.opened = 0
        self.version: object = None  # of the content that the kernel's page cache holds
        self.told_size = -1  # bytes, as the kernel was told last

    @property
    def is_root(self) -> bool:
        return self.ino == ROOT_INODE

    @property
    def is_detached(self) -> bool:
        """Whether the name is gone (the root has none either, but it stays)."""
        return self.parent is None and not self.is_root

    def parts(self) -> tuple[str, ...]:
        """Names from the mount's root down to this node."""
        names = []
        node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return tuple(reversed(names))

    def __repr__(self) -> str:
        return f"<Node {self.ino} {'/'.join(self.parts())!r} lookups={self.lookups}>"


class NodeTable:
    def __init__(self, root_wing: Wing) -> None:
        self.root = Node(ROOT_INODE, None, "", Kind.DIRECTORY, root_wing)
        self.root.lookups = 1
        self._by_ino: dict[int, Node] = {ROOT_INODE: self.root}
        self._by_name: dict[tuple[int, str], Node] = {}

    def __len__(self) -> int:
        return len(self._by_ino)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._by_ino.values()))

    def get(self, ino: int) -> Node:
        return self._by_ino[ino]

    def child(self, parent: Node, name: str) -> Node | None:
        return self._by_name.get((parent.ino, name))

    def ensure(self, parent: Node, name: str, kind: Kind, wing: Wing, first: str = "") -> Node:
        """The node of a name, made if need be. A name that denotes another kind of thing than
        before is another node. `first`: of several names of one file, the path of the first one,
        from the root: they are one inode."""
        node = self._by_name.get((parent.ino, name))
        if node is not None and node.kind is kind and node.wing is wing:
            return node
        if node is not None:
            self.detach(parent, name)
        path = first or "/".join((*parent.parts(), name))
        twin = self._by_ino.get(_number_of(path)) if first else None
        if (
            twin is not None
            and (twin.kind, twin.wing) == (kind, wing)
            and path == "/".join(twin.parts())
        ):
            self.link(twin, parent, name)
            return twin
        node = Node(self._free_number(path), parent, name, kind, wing)
        self._by_ino[node.ino] = node
        self._by_name[parent.ino, name] = node
        return node

    def _free_number(self, path: str) -> int:
        number = _number_of(path)
        while number in self._by_ino:
            number += 1
        return number

    def remember(self, node: Node) -> None:
        """The kernel counts one lookup more."""
        node.lookups += 1

    def forget(self, ino: int, count: int) -> None:
        node = self._by_ino.get(ino)
        if node is not None and not node.is_root:
            node.lookups -= count
            assert node.lookups >= 0, f"{node!r}: forgotten more often than looked up"
            self._drop_if_unused(node)

    def opening(self, node: Node) -> None:
        node.opened += 1

    def closing(self, node: Node) -> None:
        node.opened -= 1
        assert node.opened >= 0, f"{node!r}: closed more often than opened"
        self._drop_if_unused(node)

    def link(self, node: Node, parent: Node, name: str) -> None:
        """A second name of the same inode."""
        self.detach(parent, name)
        node.others.append((parent, name))
        self._by_name[parent.ino, name] = node

    def detach(self, parent: Node, name: str) -> None:
        """The name is gone or means something else; who has the node open keeps it."""
        node = self._by_name.pop((parent.ino, name), None)
        if node is None:
            return
        if (node.parent, node.name) != (parent, name):
            node.others.remove((parent, name))
        elif node.others:
            node.parent, node.name = node.others.pop(0)
        else:
            node.parent = None
            self._drop_if_unused(node)

    def move(self, parent: Node, name: str, new_parent: Node, new_name: str) -> None:
        """The name changed; whoever had the new one loses it."""
        node = self._by_name.get((parent.ino, name))
        if node is self._by_name.get((new_parent.ino, new_name)):
            return
        self.detach(new_parent, new_name)
        if node is None:
            return
        del self._by_name[parent.ino, name]
        if (node.parent, node.name) == (parent, name):
            node.parent, node.name = new_parent, new_name
        else:
            node.others[node.others.index((parent, name))] = (new_parent, new_name)
        self._by_name[new_parent.ino, new_name] = node

    def _drop_if_unused(self, node: Node) -> None:
        if node.lookups == 0 and node.opened == 0 and not node.is_root:
            self._by_ino.pop(node.ino, None)
            names = [*node.others, *([(node.parent, node.name)] if node.parent else [])]
            for parent, name in names:
                if self._by_name.get((parent.ino, name)) is node:
                    del self._by_name[parent.ino, name]

    def check(self) -> None:
        for ino, node in self._by_ino.items():
            assert node.ino == ino
            assert node.lookups >= 0
            assert node.opened >= 0
        for (parent, name), node in self._by_name.items():
            names = [*node.others, (node.parent, node.name)]
            assert any(
                each is not None and (each.ino, text) == (parent, name) for each, text in names
            )
            assert self._by_ino.get(node.ino) is node, f"{node!r} is named but not in the table"


def _number_of(path: str) -> int:
    digest = hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=7).digest()
    return int.from_bytes(digest) + ROOT_INODE + 1
