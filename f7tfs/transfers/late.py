"""The server carries on with a call whose caller is gone. A daemon that starts looks within
milliseconds of the kill: what such a call does comes after that look, and is nobody else's."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio

from f7tfs.model import RemotePath, Stat

PAUSE = 0.5  # seconds from one look to the next


async def found(
    find: Callable[[RemotePath], Awaitable[Stat | None]],
    path: RemotePath,
    is_expected: Callable[[Stat | None], bool],
    *,
    since: float,
    given: float,
) -> Stat | None:
    """What is at `path`: as soon as it is as expected, else once a call that was made at `since`
    (epoch seconds) has had its time, `given` seconds."""
    while True:
        there = await find(path)
        if is_expected(there):
            return there
        if not 0 <= time.time() - since < given:  # over, or a clock was set
            return there
        await trio.sleep(PAUSE)
