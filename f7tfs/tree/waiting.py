"""Waits that a signal ends. pyfuse3 never sees FUSE_INTERRUPT, so the pending signals of callers
that wait are looked up in /proc (FUSE.md "Interruptible waits").

One watcher serves all: a wait costs a cancel scope and a dictionary entry, no task of its own.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

import trio

from f7tfs.errors import Interrupted

caller_pid: ContextVar[int] = ContextVar("caller_pid", default=0)
INTERVAL = 0.2  # seconds between looks
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT)
_MASK = sum(1 << (number - 1) for number in _ENDING)


def has_signal(pid: int) -> bool:
    """Whether a signal that would end `pid` (a thread id) waits for it. The opener of a file that
    is read may be gone: whoever reads now is not."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.split(":", 1) for line in status if ":" in line)
    except OSError:
        return False
    pending = int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)
    deaf = int(fields.get("SigIgn", "0"), 16) | int(fields.get("SigBlk", "0"), 16)
    return bool(pending & ~deaf & _MASK)


class Callers:
    """Who waits at the moment, and the watcher that ends their waits."""

    def __init__(self) -> None:
        self._waiting: dict[trio.CancelScope, int] = {}
        self._somebody = trio.Event()

    @contextlib.contextmanager
    def interruptible(self, pid: int | None = None) -> Iterator[None]:
        """Raises Interrupted out of the block once the caller has a signal pending. What the block
        waits for goes on without it. `pid`: the thread that waits, by default the one whose
        request this task answers; 0 (the kernel itself) is never interrupted."""
        if pid is None:
            pid = caller_pid.get()
        if pid <= 0:
            yield
            return
        with trio.CancelScope() as scope:
            self._waiting[scope] = pid
            self._somebody.set()
            try:
                yield
            finally:
                del self._waiting[scope]
        if scope.cancelled_caught:
            raise Interrupted("a signal ended the wait")

    @contextlib.asynccontextmanager
    async def turn(self, lock: trio.Lock) -> AsyncIterator[None]:
        """Hold a lock; only the wait for it can be interrupted, not what is done under it."""
        with self.interruptible():
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    async def watch(self) -> None:
        """Look for signals while somebody waits, for ever."""
        while True:
            await self._somebody.wait()
            # Whoever waits less than an interval costs no look.
            before = set(self._waiting)
            await trio.sleep(INTERVAL)
            for scope, pid in list(self._waiting.items()):
                if scope in before and has_signal(pid):
                    scope.cancel()
            if not self._waiting:
                self._somebody = trio.Event()
