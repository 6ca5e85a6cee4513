"""Many askers, few calls.

A round collects the ids of all who ask within a short window, or while an earlier round is on its
way, and observes them together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

from f7tfs.errors import F7tfsError

WINDOW = 0.05  # seconds in which askers gather

T = TypeVar("T")


class _Round(Generic[T]):
    """Askers who share one poll. `found` and `failure` are set together, once."""

    def __init__(self) -> None:
        self.askers: Counter[str] = Counter()
        self.over = False
        self.found: dict[str, T] = {}
        self.failure: F7tfsError | None = None


class Rounds(Generic[T]):
    """Asks `poll` for whole rounds of ids; what it does not find is missing in its answer.

    Whoever holds the lock polls for its whole round; the others of the round queue for the lock and
    then find the answer. Joining a round and queueing happen without a checkpoint between, so the
    queue is in the order of the rounds, and when a poller is cancelled the next one of its round
    takes over.
    """

    def __init__(
        self,
        poll: Callable[[Sequence[str]], Awaitable[dict[str, T]]],
        *,
        window: float = WINDOW,
    ) -> None:
        self._poll = poll
        self._window = window
        self._lock = trio.Lock()
        self._gathering: _Round[T] | None = None

    async def observe(self, wanted: str) -> T | None:
        """One observation; None for what the poll did not find. Raises what the poll raises."""
        if self._gathering is None:
            self._gathering = _Round()
        mine = self._gathering
        mine.askers[wanted] += 1
        try:
            async with self._lock:
                if not mine.over:
                    await self._lead(mine)
        finally:
            mine.askers[wanted] -= 1
            if not +mine.askers and self._gathering is mine:
                self._gathering = None
        if mine.failure is not None:
            raise mine.failure.again()
        return mine.found.get(wanted)

    async def _lead(self, mine: _Round[T]) -> None:
        """Poll for a round and publish; on cancellation the round stays open for another leader."""
        if self._gathering is mine:
            await trio.sleep(self._window)
            self._gathering = None
        # Those who left meanwhile are not asked for.
        found: dict[str, T] = {}
        failure = None
        try:
            found = await self._poll(list(+mine.askers))
        except F7tfsError as error:
            failure = error
        mine.found, mine.failure, mine.over = found, failure, True
