"""`.f7tfs/`: the mount's own state to read, and its levers to write. Not listed at the root.

What writing to a lever does is in `levers`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from f7tfs.control.levers import Lever
from f7tfs.control.report import Report
from f7tfs.errors import IsADirectory, NotFound, NotPermitted
from f7tfs.model import Kind
from f7tfs.tree.nodes import Node
from f7tfs.tree.waiting import Callers
from f7tfs.tree.wing import (
    Caller,
    Changes,
    Look,
    OpenFile,
    PassiveHandle,
    ReadOnlyText,
    Wing,
    wants_writing,
)

OUTSIDE = "outside"  # where symlinks that leave the mount lead
NAME = ".f7tfs"


class ControlWing(Wing):
    def __init__(
        self,
        report: Report,
        callers: Callers,
        *,
        log: Callable[[], list[str]],
        levers: dict[str, Lever],
    ) -> None:
        self._texts: dict[str, Callable[[], str]] = {
            "status": report.text,
            "status.json": lambda: json.dumps(report.build()) + "\n",
            "transfers.json": lambda: json.dumps(report.transfers()) + "\n",
            "metrics": report.metrics,
            "log": lambda: "".join(f"{line}\n" for line in log()),
        }
        self._levers = levers
        self._sizes: dict[str, int] = {}
        self._callers = callers
        self._uid, self._gid = os.getuid(), os.getgid()

    async def look(self, node: Node) -> Look:
        parts = node.parts()
        return self._look_of(parts[1] if len(parts) > 1 else "")

    async def lookup(self, parent: Node, name: str) -> Look:
        parts = parent.parts()
        if len(parts) > 1:
            raise NotPermitted("this symlink leads out of the mount; on this machine it is nothing")
        return self._look_of(name)

    def _look_of(self, name: str) -> Look:
        if name in {"", OUTSIDE}:
            return self._shown(Kind.DIRECTORY, 0o555, 0)
        if name in self._texts:
            # Good enough: these files are read past the kernel's cache, until they end.
            size = self._sizes[name] if name in self._sizes else len(self._text(name))
            return self._shown(Kind.FILE, 0o444, size)
        if name in self._levers:
            return self._shown(Kind.FILE, 0o200, 0)
        raise NotFound(name)

    def _text(self, name: str) -> bytes:
        text = self._texts[name]().encode(errors="backslashreplace")
        self._sizes[name] = len(text)
        return text

    def _shown(self, kind: Kind, permissions: int, size: int) -> Look:
        return Look(kind, permissions, size, time.time_ns(), self._uid, self._gid, timeout=0.0)

    async def entries(self, node: Node) -> list[tuple[str, Look]]:
        if len(node.parts()) > 1:
            return []
        return [(name, self._look_of(name)) for name in (*self._texts, *self._levers)]

    async def open(self, node: Node, flags: int, caller: Caller) -> OpenFile:
        name = node.parts()[-1]
        if name in self._texts and not wants_writing(flags):
            return ReadOnlyText(self._text(name))
        if name in self._levers and wants_writing(flags):
            return _Lever(self._levers[name], self._callers, caller)
        if name == OUTSIDE:
            raise IsADirectory(name)
        raise NotPermitted(f"{name} cannot be opened so")

    async def change(self, node: Node, changes: Changes, handle: OpenFile | None) -> Look:
        """`echo > lever` truncates first; nothing to truncate."""
        if changes.size != 0 or node.parts()[-1] not in self._levers:
            raise NotPermitted("the mount's own files have fixed attributes")
        return await self.look(node)


class _Lever(PassiveHandle):
    """Each write pulls once, with the text that was written."""

    def __init__(self, pull: Lever, callers: Callers, caller: Caller) -> None:
        self._pull = pull
        self._callers = callers
        self._pid = caller.pid

    async def write(self, offset: int, data: bytes) -> int:
        text = os.fsdecode(data).removesuffix("\n")
        with self._callers.interruptible(self._pid):
            await self._pull(text)
        return len(data)
