"""The task board: many askers, few calls; a leader that goes away strands nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from loopback import Answer, Asked, Loopback, json_answer, loopback

from f7tfs.api.auth import Grant, TokenSource
from f7tfs.api.http import ApiClient
from f7tfs.api.tasks import Task, TaskBoard
from f7tfs.errors import NotFound, OutcomeUnknown, ServerError, Stalled, Unreachable


class Tasks:
    """A tasks service: `states` by id; every observation takes the next, the last one stays."""

    def __init__(self, **states: list[str]) -> None:
        self.states = states
        self.gate = threading.Event()
        self.gate.set()

    def record(self, task_id: str) -> dict[str, Any]:
        left = self.states[task_id]
        status = left.pop(0) if len(left) > 1 else left[0]
        return {"status": status, "data": f"data of {task_id}", "description": "d", "system": "c"}

    def __call__(self, asked: Asked) -> Answer:
        self.gate.wait(10)
        if asked.path == "/tasks":
            known = [name for name in asked.query["tasks"].split(",") if name in self.states]
            return json_answer({"tasks": {name: self.record(name) for name in known}})
        name = asked.path.rpartition("/")[2]
        if name not in self.states:
            return json_answer({"error": f"Task {name} does not exist"}, 404)
        return json_answer({"task": self.record(name)})


def run_board(
    behaviour: Callable[[Asked], Answer],
    body: Callable[[TaskBoard, Loopback], Awaitable[None]],
    **options: Any,
) -> Loopback:
    async def fetch() -> Grant:
        return Grant("t", 300)

    with loopback(behaviour) as server:

        async def main() -> None:
            chosen: dict[str, Any] = {"patience": 0.3, "jitter": lambda: 0.0} | options
            async with ApiClient(server.url, TokenSource(fetch), **chosen) as client:
                await body(TaskBoard(client), server)

        trio.run(main)
    return server


def test_one_asker_one_id() -> None:
    async def body(board: TaskBoard, server: Loopback) -> None:
        task = await board.observe("a1")
        assert task == Task("a1", "100", "d", "data of a1", "c")
        assert not task.is_over

    assert run_board(Tasks(a1=["100"]), body).paths() == ["GET /tasks/a1"]


def test_many_askers_one_call() -> None:
    async def body(board: TaskBoard, server: Loopback) -> None:
        got: list[str] = []

        async def ask(task_id: str) -> None:
            got.append((await board.observe(task_id)).id)

        async with trio.open_nursery() as nursery:
            for task_id in ["a1", "b2", "a1", "c3", "b2"]:
                nursery.start_soon(ask, task_id)
        assert sorted(got) == ["a1", "a1", "b2", "b2", "c3"]

    server = run_board(Tasks(a1=["100"], b2=["200"], c3=["111"]), body)
    assert server.paths() == ["GET /tasks"]
    assert sorted(server.asked[0].query["tasks"].split(",")) == ["a1", "b2", "c3"]


def test_who_comes_during_a_poll_shares_the_next() -> None:
    tasks = Tasks(a1=["100", "200"])

    async def body(board: TaskBoard, server: Loopback) -> None:
        got: list[str] = []

        async def ask() -> None:
            got.append((await board.observe("a1")).status)

        tasks.gate.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.to_thread.run_sync(server.arrived.wait, 10)
            for _ in range(5):
                nursery.start_soon(ask)
            await trio.sleep(0.1)
            assert len(server.asked) == 1
            tasks.gate.set()
        assert got == ["100"] + ["200"] * 5

    assert len(run_board(tasks, body).asked) == 2


@pytest.mark.parametrize("during_the_window", [True, False])
def test_a_cancelled_leader_hands_over(during_the_window: bool) -> None:
    tasks = Tasks(a1=["100"], b2=["200"])

    async def body(board: TaskBoard, server: Loopback) -> None:
        got: list[str] = []
        scope = trio.CancelScope()

        async def lead() -> None:
            with scope:
                await board.observe("a1")
                raise AssertionError

        async def ask() -> None:
            got.append((await board.observe("b2")).status)

        tasks.gate.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lead)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            if not during_the_window:
                await trio.to_thread.run_sync(server.arrived.wait, 10)
            scope.cancel()
            tasks.gate.set()
        assert got == ["200", "200"]

    server = run_board(tasks, body)
    # The id of the one who left is not asked for again.
    assert server.paths()[-1] == "GET /tasks/b2"
    assert len(server.asked) == (1 if during_the_window else 2)


def test_when_all_leave_the_next_asker_starts_afresh() -> None:
    async def body(board: TaskBoard, server: Loopback) -> None:
        for _ in range(3):
            with trio.move_on_after(0.02):
                await board.observe("a1")
        assert not server.asked
        with trio.fail_after(5):
            assert (await board.observe("b2")).status == "200"

    assert run_board(Tasks(a1=["100"], b2=["200"]), body).paths() == ["GET /tasks/b2"]


def test_unknown_ids() -> None:
    async def body(board: TaskBoard, server: Loopback) -> None:
        with pytest.raises(NotFound):
            await board.observe("zz")
        with pytest.raises(NotFound):
            await board.observe("a'b")
        assert server.paths() == ["GET /tasks/zz"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(board.observe, "a1")
            with pytest.raises(NotFound):
                await board.observe("zz")

    run_board(Tasks(a1=["100"]), body)


def test_a_foreign_task_is_unknown() -> None:
    no = json_answer({"description": "Operation not permitted. Invalid task owner."}, 403)

    async def body(board: TaskBoard, server: Loopback) -> None:
        with pytest.raises(NotFound):
            await board.observe("a1")

    run_board(lambda asked: no, body)


def test_a_failure_reaches_every_asker_once() -> None:
    async def body(board: TaskBoard, server: Loopback) -> None:
        failures = 0

        async def ask() -> None:
            nonlocal failures
            with pytest.raises(Unreachable):
                await board.observe("a1")
            failures += 1

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
        assert failures == 4

    server = run_board(lambda asked: Answer(503), body)
    assert len(server.asked) <= 3  # one round and its retries, not four


def test_replies_that_are_not_firecrests() -> None:
    async def body(board: TaskBoard, server: Loopback) -> None:
        with pytest.raises(Unreachable):
            await board.observe("a1")
        server.behaviour = lambda asked: Answer(500, b"<html>")
        with pytest.raises(ServerError):
            await board.observe("a1")

    run_board(lambda asked: Answer(200, b"<html>"), body)


def test_an_outcome() -> None:
    async def body(board: TaskBoard, server: Loopback) -> None:
        started = time.monotonic()
        task = await board.outcome("a1", timeout=10)
        assert task.succeeded
        assert 0.4 < time.monotonic() - started < 3
        refused = await board.outcome("b2", timeout=10)
        assert (refused.is_over, refused.succeeded) == (True, False)
        assert refused.text == "data of b2"

    server = run_board(Tasks(a1=["100", "200"], b2=["400"]), body)
    assert server.paths() == ["GET /tasks/a1"] * 2 + ["GET /tasks/b2"]


def test_an_outcome_that_does_not_come() -> None:
    """FACTS §5: a late 100 may overwrite a final state, so the polling is bounded."""

    async def body(board: TaskBoard, server: Loopback) -> None:
        with pytest.raises(Stalled):
            await board.outcome("a1", timeout=0.6)
        with pytest.raises(OutcomeUnknown):
            await board.outcome("a1", timeout=0.6, unfinished=OutcomeUnknown)
        with pytest.raises(ServerError):
            await board.outcome("zz", timeout=2)
        with pytest.raises(OutcomeUnknown):
            await board.outcome("zz", timeout=2, unfinished=OutcomeUnknown)

    run_board(Tasks(a1=["100"]), body)


def test_what_may_be_done_is_followed_through_an_outage() -> None:
    tasks = Tasks(a1=["200"])

    async def body(board: TaskBoard, server: Loopback) -> None:
        server.behaviour = lambda asked: Answer(503)
        with pytest.raises(Unreachable):
            await board.outcome("a1", timeout=10)
        async with trio.open_nursery() as nursery:

            async def heal() -> None:
                await trio.sleep(1.5)
                server.behaviour = tasks

            nursery.start_soon(heal)
            task = await board.outcome("a1", timeout=20, unfinished=OutcomeUnknown)
        assert task.succeeded

    run_board(tasks, body)
