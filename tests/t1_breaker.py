"""When the API counts as offline, what calls get then, and how it is found again."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from f7tfs.api.breaker import LAST_LOOK, LOOK_TIMEOUT, WAKE, Breaker
from f7tfs.errors import Offline, Unreachable


class Server:
    """Answers looks, or not; `looks` are the times at which it was looked for."""

    def __init__(self) -> None:
        self.is_up = False
        self.hangs = False
        self.looks: list[float] = []

    async def look(self) -> bool:
        self.looks.append(trio.current_time())
        if self.hangs:
            await trio.sleep_forever()
        return self.is_up


def run(body: Callable[[Breaker, Server], Awaitable[None]], *, watched: bool = True) -> Server:
    server = Server()

    async def main() -> None:
        breaker = Breaker("https://api")
        breaker.look_with(server.look)
        async with trio.open_nursery() as nursery:
            if watched:
                nursery.start_soon(breaker.watch)
                await trio.testing.wait_all_tasks_blocked()
            await body(breaker, server)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return server


def test_one_call_without_connection_is_enough() -> None:
    async def body(breaker: Breaker, server: Server) -> None:
        assert isinstance(breaker.unconnected(trio.current_time(), "refused"), Unreachable)
        assert breaker.is_offline and breaker.reason == "refused"
        began = trio.current_time()
        with pytest.raises(Offline, match="refused"):
            await breaker.admit()
        assert trio.current_time() - began < 1

    run(body)


def test_not_when_somebody_was_answered_meanwhile() -> None:
    async def body(breaker: Breaker, server: Server) -> None:
        began = trio.current_time()
        await trio.sleep(10)
        breaker.answered()
        breaker.unconnected(began, "refused")
        assert not breaker.is_offline
        await breaker.admit()

    run(body)


def test_not_where_nobody_would_find_out_that_it_is_back() -> None:
    async def body(breaker: Breaker, server: Server) -> None:
        breaker.unconnected(trio.current_time(), "refused")
        await breaker.suspect("silence")
        assert not breaker.is_offline

    assert run(body, watched=False).looks == []


@pytest.mark.parametrize(("up", "hangs"), [(True, False), (False, False), (True, True)])
def test_a_suspicion_is_confirmed_by_one_look(up: bool, hangs: bool) -> None:
    async def body(breaker: Breaker, server: Server) -> None:
        server.is_up, server.hangs = up, hangs
        began = trio.current_time()
        await breaker.suspect("silence")
        assert trio.current_time() - began <= LOOK_TIMEOUT
        assert len(server.looks) == 1
        assert breaker.is_offline is (hangs or not up)

    run(body)


def test_looks_grow_rare_and_end() -> None:
    async def body(breaker: Breaker, server: Server) -> None:
        breaker.unconnected(trio.current_time(), "refused")
        await trio.sleep(300)
        pauses = [later - earlier for earlier, later in itertools.pairwise(server.looks)]
        assert pauses == pytest.approx([2, 4, 8, 16, *[LAST_LOOK] * (len(pauses) - 4)])
        assert len(pauses) > 8
        server.is_up = True
        with trio.fail_after(LAST_LOOK + 1):
            await breaker.back()
        seen = len(server.looks)
        await trio.sleep(300)
        assert len(server.looks) <= seen + 1  # at most one, about what was asked before

    run(body)


def test_a_call_brings_the_next_look() -> None:
    async def body(breaker: Breaker, server: Server) -> None:
        breaker.unconnected(trio.current_time(), "refused")
        await trio.sleep(100)
        server.is_up = True
        await trio.sleep(WAKE)
        await breaker.admit()  # it waits a moment for what the look tells
        assert not breaker.is_offline

    run(body)


def test_many_calls_bring_few_looks() -> None:
    async def body(breaker: Breaker, server: Server) -> None:
        breaker.unconnected(trio.current_time(), "refused")
        for _ in range(1000):
            with pytest.raises(Offline):
                await breaker.admit()
            await trio.sleep(0.01)
        assert len(server.looks) <= trio.current_time() / WAKE + 4

    run(body)


def test_who_waits_for_a_second_try_hears_at_once() -> None:
    async def body(breaker: Breaker, server: Server) -> None:
        began = trio.current_time()

        async def trip() -> None:
            await trio.sleep(1)
            breaker.unconnected(began, "refused")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trip)
            with pytest.raises(Offline):
                await breaker.sleep(5)
        assert trio.current_time() - began == pytest.approx(1)

    run(body)


def test_nobody_waits_for_a_verdict_that_came_another_way() -> None:
    """A suspicion raised while the watcher already looks, and then the API is gone for good."""

    async def body(breaker: Breaker, server: Server) -> None:
        server.hangs = True
        with trio.fail_after(LOOK_TIMEOUT + 1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(breaker.suspect, "first")
                await trio.sleep(1)
                nursery.start_soon(breaker.suspect, "second")
        assert breaker.is_offline

    run(body)
