"""The bulk data process, against a real little server: bytes, errors, death, and no traces."""

from __future__ import annotations

import itertools
import os
import re
import signal
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import trio
from loopback import Answer, Asked, Drop, Loopback, loopback

from f7tfs import errors
from f7tfs.api.mover import Mover

SIZE = 5 * (1 << 20) + 12_345
CONTENT = os.urandom(SIZE)
Body = Callable[[Mover, IO[bytes]], Awaitable[None]]


def ranged(asked: Asked) -> Answer:
    """What an object store answers to a range."""
    assert "authorization" not in asked.headers
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers["range"])
    assert found is not None
    start, last = int(found[1]), min(int(found[2]), SIZE - 1)
    headers = {"Content-Range": f"bytes {start}-{last}/{SIZE}", "ETag": '"tag-3"'}
    return Answer(206, CONTENT[start : last + 1], headers)


@pytest.fixture
def store() -> Iterator[Loopback]:
    with loopback(ranged) as server:
        yield server


def run(body: Body, stall_timeout: float = 5.0) -> None:
    """With a mover and a sparse file; afterwards its process is gone."""

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                mover = Mover(nursery, stall_timeout=stall_timeout)
                with tempfile.TemporaryFile() as file:
                    file.truncate(SIZE)
                    await body(mover, file)
                pid = mover.pid
                nursery.cancel_scope.cancel()
            assert pid is None or not Path(f"/proc/{pid}").exists()

    trio.run(main)


def test_ranges_land_in_their_place(store: Loopback) -> None:
    """Issue 4: "given a presigned link, a range list and a file descriptor, reports filled
    blocks"; several at once, over connections that stay warm."""

    async def body(mover: Mover, file: IO[bytes]) -> None:
        told: list[tuple[int, int]] = []

        async def fetch(start: int, end: int) -> None:
            found = await mover.fetch(
                f"{store.url}/object?sig=1", file.fileno(), start, end,
                lambda first, last: told.append((first, last)),
            )  # fmt: skip
            assert (found.total_size, found.etag) == (SIZE, '"tag-3"')

        cuts = [0, 1, 70_001, 3 << 20, SIZE]
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for start, end in itertools.pairwise(cuts):
                    nursery.start_soon(fetch, start, end)
        assert os.pread(file.fileno(), SIZE + 1, 0) == CONTENT
        assert sum(last - first for first, last in told) == 2 * SIZE

    run(body)


def test_a_range_beyond_the_end_gives_what_there_is(store: Loopback) -> None:
    """A server may send less than was asked when the object ends."""

    async def body(mover: Mover, file: IO[bytes]) -> None:
        found = await mover.fetch(
            store.url + "/x", file.fileno(), SIZE - 10, SIZE + 10, lambda *_: None
        )
        assert found.received == 10
        assert os.pread(file.fileno(), 20, SIZE - 10) == CONTENT[-10:]

    run(body)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(403, b"<Code>AccessDenied</Code>"), errors.LinkExpired),
        (Answer(404, b"<Code>NoSuchKey</Code>"), errors.LinkExpired),
        (Answer(503, b"<Code>SlowDown</Code>"), errors.Unreachable),
        (Answer(400, b"<Code>Strange</Code>"), errors.ServerError),
        (Answer(500, os.urandom(64 << 10)), errors.Unreachable),
        (Answer(400, "ошибка ".encode() * 6000), errors.ServerError),
        (Answer(200, CONTENT), errors.Unsupported),
        (Answer(206, b"x", {"Content-Range": f"bytes 7-7/{SIZE}"}), errors.Unsupported),
        (Answer(302, b"", {"Location": "/again"}), errors.Unreachable),
        (Drop(), errors.Unreachable),
    ],
)
def test_refusals_have_their_names(
    store: Loopback, answer: Answer | Drop, error: type[Exception]
) -> None:
    """What the object store says is what the daemon's own client would make of it."""

    def behaviour(asked: Asked) -> Answer:
        if isinstance(answer, Drop):
            raise answer
        return answer

    store.behaviour = behaviour

    async def body(mover: Mover, file: IO[bytes]) -> None:
        with pytest.raises(error) as caught:
            await mover.fetch(
                f"{store.url}/o?signature=secret", file.fileno(), 10, 20, lambda *_: None
            )
        assert "secret" not in str(caught.value)

    run(body)


def test_redirects_are_followed(store: Loopback) -> None:
    """Some stores send to another host."""

    def behaviour(asked: Asked) -> Answer:
        if asked.path == "/first":
            return Answer(307, b"", {"Location": f"{store.url}/second"})
        return ranged(asked)

    store.behaviour = behaviour

    async def body(mover: Mover, file: IO[bytes]) -> None:
        await mover.fetch(store.url + "/first", file.fileno(), 0, 99, lambda *_: None)
        assert os.pread(file.fileno(), 99, 0) == CONTENT[:99]

    run(body)


def test_silence_is_a_stall(store: Loopback) -> None:
    """Waits: ETIMEDOUT only without progress."""
    go = threading.Event()

    def behaviour(asked: Asked) -> Answer:
        go.wait(10)
        raise Drop

    store.behaviour = behaviour

    async def body(mover: Mover, file: IO[bytes]) -> None:
        with pytest.raises(errors.Stalled):
            await mover.fetch(store.url + "/x", file.fileno(), 0, 10, lambda *_: None)
        go.set()

    run(body, stall_timeout=0.3)


def test_a_full_disk_is_told(store: Loopback) -> None:
    """Space: a full disk is ENOSPC for who reads, and the process lives on."""

    async def body(mover: Mover, file: IO[bytes]) -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(errors.NoLocalSpace):
            await mover.fetch(store.url + "/x", full, 0, 10, lambda *_: None)
        os.close(full)
        pid = mover.pid
        await mover.fetch(store.url + "/x", file.fileno(), 0, 10, lambda *_: None)
        assert mover.pid == pid

    run(body)


def test_its_death_is_a_lost_connection(store: Loopback) -> None:
    """Issue 4: "restarted when it dies": what was told to have arrived is right, the rest is asked
    for again, from a new process."""
    arrived = threading.Event()
    go = threading.Event()

    def behaviour(asked: Asked) -> Answer:
        arrived.set()
        go.wait(10)
        return ranged(asked)

    store.behaviour = behaviour

    async def body(mover: Mover, file: IO[bytes]) -> None:
        async def kill() -> None:
            await trio.to_thread.run_sync(arrived.wait)
            assert mover.pid is not None
            os.kill(mover.pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(errors.Unreachable):
                await mover.fetch(store.url + "/x", file.fileno(), 0, 10, lambda *_: None)
        go.set()
        await mover.fetch(store.url + "/x", file.fileno(), 0, SIZE, lambda *_: None)
        assert os.pread(file.fileno(), SIZE, 0) == CONTENT

    run(body)


def test_who_leaves_ends_the_range(store: Loopback) -> None:
    """A cancelled fetch leaves no thread behind that writes."""
    go = threading.Event()

    def behaviour(asked: Asked) -> Answer:
        go.wait(10)
        return ranged(asked)

    store.behaviour = behaviour

    async def body(mover: Mover, file: IO[bytes]) -> None:
        with trio.move_on_after(0.2) as scope:
            await mover.fetch(store.url + "/x", file.fileno(), 0, SIZE, lambda *_: None)
        assert scope.cancelled_caught
        go.set()
        store.behaviour = ranged
        await mover.fetch(store.url + "/x", file.fileno(), 0, 10, lambda *_: None)

    run(body)


def test_a_proxy_is_left_to_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxies are httpx's business."""

    async def body(mover: Mover, file: IO[bytes]) -> None:
        assert mover.carries("http://store.example/x?y")
        assert not mover.carries("ftp://store.example/x")
        monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
        assert not mover.carries("http://store.example/x")
        monkeypatch.setenv("no_proxy", "store.example")
        assert mover.carries("http://store.example/x")

    run(body)
