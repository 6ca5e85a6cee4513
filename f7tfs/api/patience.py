"""How long one call may go on being repeated, and what a server asks us to wait."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Awaitable, Callable, Mapping

import trio

BACKOFF_FIRST, BACKOFF_CAP = 0.25, 5.0


class Patience:
    """The time that one call may spend on being repeated. `sleep` is how it waits."""

    def __init__(
        self,
        seconds: float,
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = trio.sleep,
    ) -> None:
        self._sleep = sleep
        self._until = trio.current_time() + seconds
        self._jitter = jitter
        self._waits = 0

    @property
    def left(self) -> float:
        return self._until - trio.current_time()

    def next_backoff(self, first: float = BACKOFF_FIRST, cap: float = BACKOFF_CAP) -> float:
        wait = min(cap, first * 2.0**self._waits)
        self._waits += 1
        return wait * (0.5 + self._jitter() / 2)

    async def wait(self, seconds: float) -> bool:
        """Sleep; False, at once, where that is longer than what is left."""
        if seconds > self.left:
            return False
        await self._sleep(seconds)
        return True


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as told by Retry-After (seconds or a date), else by RateLimit-Reset; None
    where neither is told or readable."""
    for name in ("retry-after", "ratelimit-reset"):
        text = headers.get(name, "").strip()
        if not text:
            continue
        try:
            seconds = float(text)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
            except ValueError:
                continue
        if seconds > 1e8:  # an epoch, as some gateways send in RateLimit-Reset
            seconds -= time.time()
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
