"""TokenSource: one token, refreshed ahead, by one for all, and never shown."""

from __future__ import annotations

import base64
import json
import logging
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from loopback import Answer, Asked, free_port, json_answer, loopback

from f7tfs.api import auth
from f7tfs.api.auth import Grant, TokenSource
from f7tfs.api.http import post_form
from f7tfs.errors import RateLimited, Unauthorized, Unreachable

SECRET = "s3cr3t-of-mine"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Numbered:
    """Gives token1, token2, … with one lifetime; waits for `gate` where there is one."""

    def __init__(self, lifetime: float | None) -> None:
        self.lifetime = lifetime
        self.given = 0
        self.gate: trio.Event | None = None
        self.failure: Exception | None = None

    async def __call__(self) -> Grant:
        self.given += 1
        mine = self.given
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return Grant(f"token{mine}", self.lifetime)


def jwt(claims: dict[str, float]) -> str:
    def part(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2ln"


@pytest.mark.parametrize(
    ("lifetime", "good_for"), [(300.0, 240.0), (120.0, 60.0), (100.0, 50.0), (None, 30.0)]
)
def test_refreshed_ahead_of_its_end(lifetime: float | None, good_for: float) -> None:
    clock, source = Clock(), Numbered(lifetime)
    tokens = TokenSource(source, clock=clock)

    async def main() -> None:
        assert await tokens.token() == "token1"
        clock.now += good_for - 1
        assert await tokens.token() == "token1"
        clock.now += 2
        assert await tokens.token() == "token2"

    trio.run(main)


def test_one_refresh_for_all_who_wait() -> None:
    source = Numbered(300)
    tokens = TokenSource(source)

    async def main() -> None:
        source.gate = trio.Event()
        got: list[str] = []

        async def ask() -> None:
            got.append(await tokens.token())

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            source.gate.set()
        assert got == ["token1"] * 10

    trio.run(main)
    assert source.given == 1


def test_a_cancelled_refresher_strands_nobody() -> None:
    source = Numbered(300)
    tokens = TokenSource(source)

    async def main() -> None:
        source.gate = trio.Event()
        got: list[str] = []

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                got.append(await tokens.token())

        async with trio.open_nursery() as nursery:
            leader = trio.CancelScope()
            nursery.start_soon(ask, leader)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                nursery.start_soon(ask, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            leader.cancel()
            await trio.testing.wait_all_tasks_blocked()
            source.gate.set()
        assert got == ["token2"] * 3

    trio.run(main)
    assert source.given == 2


def test_a_failure_is_shared_by_those_who_waited() -> None:
    source = Numbered(300)
    tokens = TokenSource(source)

    async def main() -> None:
        source.gate = trio.Event()
        source.failure = Unauthorized("no")
        failed = 0

        async def ask() -> None:
            nonlocal failed
            with pytest.raises(Unauthorized):
                await tokens.token()
            failed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            source.gate.set()
        assert failed == 5
        assert source.given == 1
        source.failure = None
        assert await tokens.token() == "token2"

    trio.run(main)


def test_a_valid_token_outlives_a_failed_refresh() -> None:
    clock, source = Clock(), Numbered(300)
    tokens = TokenSource(source, clock=clock)

    async def main() -> None:
        await tokens.token()
        source.failure = Unreachable("down")
        clock.now += 250
        assert await tokens.token() == "token1"
        clock.now += 51
        with pytest.raises(Unreachable):
            await tokens.token()

    trio.run(main)


def test_invalidate_only_the_token_that_was_refused() -> None:
    source = Numbered(300)
    tokens = TokenSource(source)

    async def main() -> None:
        old = await tokens.token()
        tokens.invalidate(old)
        assert await tokens.token() == "token2"
        tokens.invalidate(old)
        assert await tokens.token() == "token2"

    trio.run(main)


def credentials(url: str) -> TokenSource:
    return auth.client_credentials(url + "/token", "me", SECRET, post_form)


def test_client_credentials() -> None:
    def answer(asked: Asked) -> Answer:
        assert asked.form == {
            "grant_type": "client_credentials",
            "client_id": "me",
            "client_secret": SECRET,
        }
        assert "authorization" not in asked.headers
        return json_answer({"access_token": "abc", "expires_in": 300})

    with loopback(answer) as server:
        assert trio.run(credentials(server.url).token) == "abc"


def refused(behaviour: Answer, kind: type[Exception]) -> str:
    with loopback(lambda asked: behaviour) as server, pytest.raises(kind) as caught:
        trio.run(credentials(server.url).token)
    said = str(caught.value)
    assert SECRET not in said
    assert "\n" not in said
    return said


def test_a_wrong_secret_is_one_clear_sentence() -> None:
    """Recorded as auth-token-bad-secret."""
    answer = {"error": "unauthorized_client", "error_description": f"Invalid secret {SECRET}"}
    said = refused(json_answer(answer, 401), Unauthorized)
    assert "'me'" in said
    assert "Invalid secret …" in said


def test_other_answers_of_the_token_endpoint() -> None:
    refused(Answer(404, b"<html>"), Unreachable)
    refused(Answer(200, b"<html>"), Unreachable)
    refused(Answer(503), Unreachable)
    refused(json_answer({}, 429), RateLimited)
    refused(json_answer({"access_token": "two words"}), Unauthorized)


def test_no_token_endpoint() -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        trio.run(credentials(f"http://127.0.0.1:{free_port()}").token)


def test_secrets_are_in_no_repr_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with loopback(lambda asked: json_answer({"access_token": "top-secret-token"})) as server:
        tokens = credentials(server.url)
        trio.run(tokens.token)
    assert SECRET not in repr(tokens) + caplog.text
    assert "top-secret-token" not in repr(tokens) + repr(Grant("top-secret-token")) + caplog.text


def test_token_command() -> None:
    assert trio.run(auth.token_command("echo abc; echo noise >&2").token) == "abc"
    json_printed = auth.token_command("""echo '{"access_token": "xyz", "expires_in": 300}'""")
    assert trio.run(json_printed.token) == "xyz"
    with pytest.raises(Unauthorized, match=r"failed \(3\): please log in"):
        trio.run(auth.token_command("echo please log in >&2; echo more >&2; exit 3").token)
    with pytest.raises(Unauthorized, match="is empty"):
        trio.run(auth.token_command("true").token)
    started = time.monotonic()
    with pytest.raises(Unauthorized, match=r"within 0\.2 s"):
        trio.run(auth.token_command("exec sleep 20", deadline=0.2).token)
    assert time.monotonic() - started < 10


def test_token_file_is_read_again_when_its_token_ends(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "token"
    tokens = auth.token_file(path, clock=clock)

    async def main() -> None:
        with pytest.raises(Unauthorized, match="No such file"):
            await tokens.token()
        first, second = jwt({"exp": time.time() + 300}), jwt({"exp": time.time() + 900})
        path.write_text(first + "\n")
        assert await tokens.token() == first
        path.write_text(second)
        clock.now += 200
        assert await tokens.token() == first
        clock.now += 60
        assert await tokens.token() == second

    trio.run(main)
