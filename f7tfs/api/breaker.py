"""Whether the API can be reached, so that a dead one costs its patience once and not every caller.

Offline begins when a call found no connection for its whole patience while nobody else was
answered, or when a look confirms what a lost reply or a gateway's error made likely. From then on
calls fail at once, and one look at a time, at growing intervals, finds out when it is back. Any
answer of the API is an answer, also a 401; what only one call or one system gets is not offline
(v2's 503 "unhealthy", v1's "Connection refused" to a login node, an endpoint that is slow).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import trio

from f7tfs.errors import Offline, Unreachable

log = logging.getLogger("f7tfs.api")
FIRST_LOOK, LAST_LOOK = 1.0, 30.0  # seconds between looks: doubled from the first to the last
LOOK_TIMEOUT = 5.0
WAKE = 3.0  # seconds after a look from which on somebody's call brings the next one
GRACE = 0.3  # seconds that this call waits for what the look tells


class Breaker:
    """Online until told otherwise; never offline unless somebody runs `watch`, which ends it.

    `since` is the epoch of the beginning, None while online; `reason` one sentence.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.since: float | None = None
        self.reason = ""
        self._look: Callable[[], Awaitable[bool]] | None = None
        self._is_watched = False
        self._answered = -float("inf")  # trio time of the last answer to anybody
        self._looked = -float("inf")
        self._work = trio.Event()  # for the watcher: offline, or a suspicion
        self._nudge = trio.Event()  # for the watcher: look now
        self._gone = trio.Event()
        self._suspicion = ""
        self._settled = trio.Event()  # the look that the next suspicion leads to is done
        self._back = trio.Event()
        self._back.set()

    @property
    def is_offline(self) -> bool:
        return self.since is not None

    def look_with(self, look: Callable[[], Awaitable[bool]]) -> None:
        """How to find out: one cheap call; whether it was answered."""
        self._look = look

    # What calls do.

    async def admit(self) -> None:
        """Raises Offline, well under a second after the question."""
        if not self.is_offline:
            return
        if self.nudge():
            with trio.move_on_after(GRACE):
                await self._back.wait()
        self._raise_if_offline()

    async def sleep(self, seconds: float) -> None:
        """Between two tries of a call. Raises Offline as soon as others found that out."""
        with trio.move_on_after(seconds):
            await self._gone.wait()
        self._raise_if_offline()

    def nudge(self) -> bool:
        """Somebody asks: look now, unless that was done just before. Whether it is done."""
        if not self.is_offline or trio.current_time() - self._looked < WAKE:
            return False
        self._nudge.set()
        return True

    async def back(self) -> None:
        """Wait until the API is online."""
        await self._back.wait()

    def answered(self) -> None:
        self._answered = trio.current_time()
        if self.is_offline:
            self._recover()

    def unconnected(self, began: float, reason: str) -> Unreachable:
        """A call found no connection since `began` (trio time), until its patience ended; its
        error."""
        if self._is_watched and not self.is_offline and self._answered < began:
            self._trip(reason)
        return Unreachable(reason)

    async def suspect(self, reason: str) -> Unreachable:
        """A reply was lost, or a gateway answered instead: one look tells whether that is all. The
        call's error, when that is known."""
        if self._is_watched and not self.is_offline:
            self._suspicion = reason
            self._work.set()
            await self._settled.wait()
        return Unreachable(reason)

    def _raise_if_offline(self) -> None:
        if self.since is not None:
            clock = time.strftime("%H:%M:%S", time.localtime(self.since))
            raise Offline(f"{self._url} is offline since {clock}: {self.reason}")

    # Changes.

    def _trip(self, reason: str) -> None:
        self.since, self.reason = time.time(), reason
        log.warning("offline: %s; cached names and contents are served, writes wait", reason)
        self._back = trio.Event()
        self._gone.set()
        self._work.set()
        self._settled.set()
        self._settled = trio.Event()

    def _recover(self) -> None:
        assert self.since is not None
        log.info("online again after %.0f s", time.time() - self.since)
        self.since, self.reason = None, ""
        self._gone = trio.Event()
        self._back.set()
        self._nudge.set()

    async def watch(self) -> None:
        """Look while offline or in doubt, for ever."""
        self._is_watched = True
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if not self.is_offline:
                began, settled = trio.current_time(), self._settled
                self._settled = trio.Event()  # for suspicions from now on
                try:
                    there = await self._answers() or self._answered >= began
                finally:
                    settled.set()
                if not there and not self.is_offline:
                    self._trip(self._suspicion or f"{self._url} does not answer")
            pause = FIRST_LOOK
            while self.is_offline:
                self._nudge = trio.Event()
                with trio.move_on_after(pause):
                    await self._nudge.wait()
                if self.is_offline and await self._answers():
                    self.answered()
                pause = min(2 * pause, LAST_LOOK)

    async def _answers(self) -> bool:
        self._looked = trio.current_time()
        found = False
        with trio.move_on_after(LOOK_TIMEOUT):
            found = self._look is not None and await self._look()
        self._looked = trio.current_time()
        return found
