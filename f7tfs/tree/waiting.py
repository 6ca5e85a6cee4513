"""Waits that a signal ends. pyfuse3 never sees FUSE_INTERRUPT, so the caller's pending signals
are looked up in /proc while it waits (FUSE.md "Interruptible waits")."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import outcome
import trio

from f7tfs.errors import Interrupted

T = TypeVar("T")
INTERVAL = 0.2  # seconds between looks
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT)
_MASK = sum(1 << (number - 1) for number in _ENDING)


def has_signal(pid: int) -> bool:
    """Whether a signal that would end `pid` (a thread id) waits for it, or it is gone."""
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.split(":", 1) for line in status if ":" in line)
    except OSError:
        return True
    pending = int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)
    ignored = int(fields.get("SigIgn", "0"), 16)
    return bool(pending & ~ignored & _MASK)


async def interruptible(pid: int, work: Callable[[], Awaitable[T]]) -> T:
    """Await `work()`, but raise Interrupted once the caller has a signal pending. What `work`
    waits for goes on without it. No exception leaves the inner nursery, so none is wrapped."""
    result: outcome.Outcome[T] | None = None
    interrupted = False
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            nonlocal result
            result = await outcome.acapture(work)
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        while True:
            await trio.sleep(INTERVAL)
            if has_signal(pid):
                interrupted = True
                nursery.cancel_scope.cancel()
                break
    if interrupted or result is None:
        raise Interrupted("a signal ended the wait")
    return result.unwrap()
