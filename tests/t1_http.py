"""The two clients: what is repeated, what never is, and where the bearer goes."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import itertools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from loopback import (
    Answer,
    Asked,
    Drop,
    Loopback,
    Reset,
    free_port,
    json_answer,
    loopback,
)

from f7tfs.api.auth import Grant, TokenSource
from f7tfs.api.http import ApiClient, Reply, StorageClient, retry_after
from f7tfs.api.port import UploadForm
from f7tfs.api.staging import FetchResult, StagingArea
from f7tfs.errors import (
    Changed,
    F7tfsError,
    LinkExpired,
    OutcomeUnknown,
    RateLimited,
    ServerError,
    Stalled,
    TooLarge,
    Unauthorized,
    Unreachable,
)


def counting_tokens() -> TokenSource:
    numbers = itertools.count(1)

    async def fetch() -> Grant:
        return Grant(f"token{next(numbers)}", 300)

    return TokenSource(fetch)


def run_with(
    url: str, body: Callable[[ApiClient], Awaitable[Any]], **options: Any
) -> tuple[Any, ApiClient]:
    chosen: dict[str, Any] = {"patience": 1.0, "request_timeout": 5.0, "jitter": lambda: 0.0}
    chosen |= options

    async def main() -> tuple[Any, ApiClient]:
        async with ApiClient(url, counting_tokens(), **chosen) as client:
            return await body(client), client

    return trio.run(main)


async def get(client: ApiClient) -> Reply:
    return await client.request("GET", "/utilities/ls", query={"a": "x y"}, idempotent=True)


async def post(client: ApiClient) -> Reply:
    return await client.request("POST", "/utilities/mkdir", form={"p": "q"}, idempotent=False)


def scripted(*answers: Answer | type[Exception]) -> Callable[[Asked], Answer]:
    """The answers in turn; the last one for ever."""
    left = list(answers)

    def behaviour(asked: Asked) -> Answer:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Answer):
            return answer
        raise answer

    return behaviour


OK = json_answer({"output": "fine"})


def test_a_get() -> None:
    with loopback(scripted(OK)) as server:
        reply, client = run_with(server.url + "/", get)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    asked = server.asked[0]
    assert asked.query == {"a": "x y"}
    assert asked.headers["authorization"] == "Bearer token1"
    assert client.calls == {"GET /utilities/ls": 1}


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
def test_the_servers_clock(ahead: int) -> None:
    """The date of the last answer that has one; seconds are cut off, and it never runs ahead."""

    def dated(date: str) -> Answer:
        return json_answer({}, date=date)

    async def body(client: ApiClient) -> float:
        assert abs(client.clock.now() - time.time()) < 1
        for _ in range(3):
            await get(client)
        return client.clock.now() - time.time()

    there = email.utils.formatdate(time.time() + ahead, usegmt=True)
    with loopback(scripted(dated(there), OK, dated("yesterday"))) as server:
        told, _ = run_with(server.url, body)
    assert ahead - 5 < told <= ahead


def test_forms_and_files() -> None:
    """FACTS §1: DELETE carries a form as well; files travel with the form in one multipart."""

    async def body(client: ApiClient) -> None:
        await client.request("DELETE", "/rm", form={"targetPath": "/ü%20 +&=x"}, idempotent=False)
        await client.request(
            "POST",
            "/up",
            form={"t": "/d"},
            files={"file": ("ün☃.txt", b"\0\xff")},
            idempotent=False,
        )
        await client.request("POST", "/up", files={"file": ("a", b"")}, idempotent=False)

    with loopback(scripted(Answer(204))) as server:
        run_with(server.url, body)
    rm, up, empty = server.asked
    assert rm.form == {"targetPath": "/ü%20 +&=x"}
    assert up.headers["content-type"].startswith("multipart/form-data")
    assert 'name="file"; filename="ün☃.txt"'.encode() in up.body
    assert b"\r\n\r\n\0\xff\r\n" in up.body
    assert up.body.index(b'name="t"') < up.body.index(b'name="file"')
    assert b'filename="a"' in empty.body


@pytest.mark.parametrize(
    "trouble",
    [Drop, Reset, Answer(502), Answer(503), Answer(504), Answer(408), json_answer({}, 429)],
    ids=["drop", "reset", "502", "503", "504", "408", "429"],
)
def test_what_changes_nothing_is_repeated(trouble: Any) -> None:
    with loopback(scripted(trouble, OK)) as server:
        reply, client = run_with(server.url, get)
    assert reply.status == 200
    assert client.calls == {"GET /utilities/ls": 2}


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [(Drop, Unreachable), (Answer(503), Unreachable), (json_answer({}, 429), RateLimited)],
    ids=["drop", "503", "429"],
)
def test_patience_ends(trouble: Any, kind: type[F7tfsError]) -> None:
    started = time.monotonic()
    with loopback(scripted(trouble)) as server, pytest.raises(kind):
        run_with(server.url, get)
    assert len(server.asked) >= 2
    assert time.monotonic() - started < 3


def test_502_can_belong_to_the_request() -> None:
    """FACTS §2: a text that is not latin-1 kills the worker, every time."""
    with loopback(scripted(Answer(502))) as server, pytest.raises(ServerError):
        run_with(server.url, get, patience=60)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "trouble",
    [Drop, Reset, Answer(502), Answer(503), Answer(504), Answer(408)],
    ids=["drop", "reset", "502", "503", "504", "408"],
)
def test_what_changes_something_is_never_resent(trouble: Any) -> None:
    """SEMANTICS "Metadata": no call that changes something is ever resent blindly."""
    with loopback(scripted(trouble, OK)) as server, pytest.raises(OutcomeUnknown):
        run_with(server.url, post)
    assert len(server.asked) == 1


def test_a_lost_reply_by_time_is_unknown() -> None:
    release = threading.Event()

    def hang(asked: Asked) -> Answer:
        release.wait(10)
        return OK

    with loopback(hang) as server:
        with pytest.raises(OutcomeUnknown):
            run_with(server.url, post, request_timeout=0.3)
        with pytest.raises(Unreachable):
            run_with(server.url, get, request_timeout=0.3, patience=0.2)
        release.set()
    assert server.paths() == ["POST /utilities/mkdir", "GET /utilities/ls"]


def test_what_was_not_executed_is_sent_again() -> None:
    waits = json_answer({}, 429, Retry_After="0.2")
    busy = Answer(503, headers={"Retry-After": "0.1"})
    expired = json_answer({"message": "Unauthorized"}, 401)
    for trouble in (waits, busy, expired):
        with loopback(scripted(trouble, OK)) as server:
            reply, _ = run_with(server.url, post)
        assert reply.status == 200
        assert len(server.asked) == 2


def test_nothing_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for call in (get, post):
        started = time.monotonic()
        with pytest.raises(Unreachable, match=url):
            run_with(url, call, patience=0.5)
        assert time.monotonic() - started < 3


def test_a_server_that_comes_up_within_patience_gets_the_call_once() -> None:
    with loopback(scripted(OK)) as late:
        pass  # its port is free again
    port = int(late.url.rsplit(":", 1)[1])

    async def body(client: ApiClient) -> Reply:
        return await post(client)

    def start_later(started: threading.Event) -> None:
        time.sleep(0.4)
        with loopback(scripted(OK), port=port) as server:
            seen.append(server)
            started.wait(10)

    seen: list[Loopback] = []
    done = threading.Event()
    thread = threading.Thread(target=start_later, args=(done,))
    thread.start()
    try:
        reply, client = run_with(late.url, body, patience=10)
    finally:
        done.set()
        thread.join()
    assert reply.status == 200
    assert len(seen[0].asked) == 1
    assert client.calls["POST /utilities/mkdir"] > 1


def test_401_once_with_a_fresh_token() -> None:
    def picky(asked: Asked) -> Answer:
        if asked.headers["authorization"] == "Bearer token1":
            return json_answer({"description": "JWT token has expired"}, 401)
        return OK

    with loopback(picky) as server:
        reply, _ = run_with(server.url, post)
    assert reply.status == 200
    assert [asked.headers["authorization"] for asked in server.asked] == [
        "Bearer token1",
        "Bearer token2",
    ]


def test_401_for_good() -> None:
    no = json_answer({"description": "JWT token has invalid signature"}, 401)
    with loopback(scripted(no)) as server, pytest.raises(Unauthorized, match="invalid signature"):
        run_with(server.url, get)
    assert len(server.asked) == 2


def test_retry_after_is_obeyed_and_shared() -> None:
    """One 429 holds back the calls that have not been sent yet."""
    times: list[float] = []
    answers = scripted(json_answer({}, 429, Retry_After="0.5"), OK)

    def behaviour(asked: Asked) -> Answer:
        times.append(time.monotonic())
        return answers(asked)

    async def body(client: ApiClient) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, client)
            await trio.sleep(0.2)
            nursery.start_soon(get, client)

    with loopback(behaviour) as server:
        run_with(server.url, body, patience=3)
    assert len(server.asked) == 3
    assert times[1] - times[0] >= 0.45


def test_a_rate_limit_beyond_patience_is_told_at_once() -> None:
    started = time.monotonic()
    limited = scripted(json_answer({}, 429, Retry_After="60"))
    with loopback(limited) as server, pytest.raises(RateLimited) as caught:
        run_with(server.url, post)
    assert caught.value.retry_after == 60
    assert time.monotonic() - started < 1
    assert len(server.asked) == 1


def test_reading_retry_after() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"ratelimit-reset": "3", "retry-after": "soon"}) == 3
    assert retry_after({"retry-after": "-4"}) == 0
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after": "inf"}) is None
    assert retry_after({}) is None
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(30, abs=2)
    assert retry_after({"ratelimit-reset": str(time.time() + 9)}) == pytest.approx(9, abs=2)


def test_a_waiting_retry_can_be_cancelled() -> None:
    async def body(client: ApiClient) -> bool:
        with trio.move_on_after(0.3) as scope:
            await get(client)
        return scope.cancelled_caught

    started = time.monotonic()
    with loopback(scripted(json_answer({}, 429, Retry_After="20"))) as server:
        cancelled, _ = run_with(server.url, body, patience=60)
    assert cancelled
    assert time.monotonic() - started < 2


def test_parallel_calls_are_limited() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def behaviour(asked: Asked) -> Answer:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return OK

    async def body(client: ApiClient) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(get, client)

    with loopback(behaviour) as server:
        run_with(server.url, body, parallel_calls=3)
    assert most == 3


def test_redirects_are_not_followed_with_a_bearer() -> None:
    with loopback(scripted(OK)) as elsewhere:
        moved = Answer(302, headers={"Location": elsewhere.url + "/login"})
        with loopback(scripted(moved)) as server, pytest.raises(Unreachable, match="redirects"):
            run_with(server.url, get)
    assert not elsewhere.asked


def test_errors_are_for_the_dialect() -> None:
    for status in (400, 403, 404, 413, 500):
        with loopback(scripted(Answer(status, b"<html>"))) as server:
            reply, _ = run_with(server.url, post)
        assert reply.status == status


def test_nothing_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with loopback(scripted(OK)) as server:
        run_with(server.url, get)
        fetched(server.url + "/o?X-Amz-Signature=sig")
    assert "GET /utilities/ls → 200" in caplog.text
    for secret in ("token1", "Bearer", "x+y", "X-Amz-Signature"):
        assert secret not in caplog.text


# The object store.


def with_staging(body: Callable[[StagingArea], Awaitable[Any]], stall_timeout: float = 5.0) -> Any:
    async def main() -> Any:
        async with StorageClient(stall_timeout=stall_timeout) as client:
            return await body(StagingArea(client))

    return trio.run(main)


def fetched(link: str, **options: Any) -> tuple[bytes, FetchResult]:
    found = bytearray()

    async def body(area: StagingArea) -> FetchResult:
        return await area.fetch(link, found.extend, **options)

    result = with_staging(body)
    return bytes(found), result


CONTENT = bytes(range(256)) * 5000  # 1.28 MB


def store(asked: Asked) -> Answer:
    """Ranges as recorded in staging-GET-*."""
    assert "authorization" not in asked.headers
    headers = {"ETag": '"91d0"', "Accept-Ranges": "bytes"}
    wanted = asked.headers.get("range")
    if wanted is None:
        return Answer(200, CONTENT, headers)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), int(last) if last else len(CONTENT) - 1
    if start >= len(CONTENT):
        document = f"<Error><ActualObjectSize>{len(CONTENT)}</ActualObjectSize></Error>"
        return Answer(416, document.encode())
    part = CONTENT[start : end + 1]
    shown = f"bytes {start}-{start + len(part) - 1}/{len(CONTENT)}"
    return Answer(206, part, {**headers, "Content-Range": shown})


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (0, 10), (10, 10), (1_000_000, None), (1_279_999, 5), (2_000_000, 4), (7, 0)],
)
def test_ranges(start: int, length: int | None) -> None:
    with loopback(store) as server:
        found, result = fetched(server.url + "/o?sig=x", start=start, length=length)
    end = None if length is None else start + length
    assert found == CONTENT[start:end]
    assert result.received == len(found)
    if length != 0:
        assert result.total_size == len(CONTENT)


def test_a_store_that_ignores_ranges() -> None:
    with loopback(lambda asked: Answer(200, CONTENT)) as server:
        found, result = fetched(server.url + "/o", start=1000, length=50)
    assert found == CONTENT[1000:1050]
    assert result.total_size == len(CONTENT)


def test_an_empty_object() -> None:
    with loopback(lambda asked: Answer(200, b"")) as server:
        assert fetched(server.url + "/o")[0] == b""


def test_a_waited_for_sink_and_redirects_without_a_login() -> None:
    got: list[int] = []

    async def sink(chunk: bytes) -> None:
        await trio.lowlevel.checkpoint()
        got.append(len(chunk))

    with loopback(store) as server:
        moved = Answer(307, headers={"Location": server.url + "/o"})
        with loopback(lambda asked: moved) as first:
            with_staging(functools.partial(_fetch_into, first.url + "/o", sink))
    assert sum(got) == len(CONTENT)


async def _fetch_into(link: str, sink: Any, area: StagingArea) -> FetchResult:
    return await area.fetch(link, sink)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(403, b"<Error><Code>AccessDenied</Code></Error>"), LinkExpired),
        (Answer(404, b"<Error><Code>NoSuchKey</Code></Error>"), LinkExpired),
        (Answer(401), LinkExpired),
        (Answer(503, b"<Error><Code>SlowDown</Code></Error>"), Unreachable),
        (Answer(501), ServerError),
        (Answer(200, b"short", {"Content-Length": "10"}), Unreachable),
        (Answer(206, b"12345", {"Content-Range": "bytes 7-11/20"}), ServerError),
    ],
    ids=["403", "404", "401", "503", "501", "short", "other range"],
)
def test_what_a_link_may_answer(answer: Answer, kind: type[F7tfsError]) -> None:
    with loopback(lambda asked: answer) as server, pytest.raises(kind) as caught:
        fetched(server.url + "/bucket/o?X-Amz-Signature=secret")
    assert "secret" not in str(caught.value)


def test_a_range_cut_short() -> None:
    answer = Answer(206, b"12345", {"Content-Range": "bytes 0-9/20"})
    with loopback(lambda asked: answer) as server, pytest.raises(Unreachable, match="5 of 10"):
        fetched(server.url + "/o", length=10)


def test_a_stalled_store() -> None:
    release = threading.Event()

    def hang(asked: Asked) -> Answer:
        release.wait(10)
        return Answer(200)

    async def body(area: StagingArea) -> None:
        await area.fetch(server.url + "/o", lambda chunk: None)

    with loopback(hang) as server:
        with pytest.raises(Stalled):
            with_staging(body, stall_timeout=0.3)
        release.set()


def test_an_abandoned_fetch_leaves_nothing_behind() -> None:
    """A reader that has enough, or is cancelled, in the middle of a body."""

    async def body(area: StagingArea) -> None:
        def stop(chunk: bytes) -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            await area.fetch(server.url + "/o", stop)
        with trio.CancelScope() as scope:

            async def cancel(chunk: bytes) -> None:
                scope.cancel()
                await trio.sleep(1)

            await area.fetch(server.url + "/o", cancel)
        result = await area.fetch(server.url + "/o", lambda chunk: None)
        assert result.received == len(CONTENT)

    with loopback(store) as server:
        with_staging(body)


@contextlib.contextmanager
def file_of(content: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.fileno()


def form_for(url: str) -> UploadForm:
    return UploadForm(
        method="POST",
        url=url,
        fields=(("key", "task/ünder"), ("policy", "e30="), ("x-amz-signature", "s")),
        headers=(("X-Extra", "1"), ("Authorization", "never")),
        params=(("p", "1"),),
        file_name="content",
    )


def sent(content: bytes, behaviour: Callable[[Asked], Answer], size: int | None = None) -> Loopback:
    progress: list[int] = []

    async def body(area: StagingArea) -> None:
        await area.send_form(
            form_for(server.url + "/bucket"),
            fd,
            len(content) if size is None else size,
            on_progress=progress.append,
        )

    with loopback(behaviour) as server, file_of(content) as fd:
        with_staging(body)
    assert progress == sorted(progress)
    assert (progress or [0])[-1] == len(content)
    return server


@pytest.mark.parametrize("content", [b"", b"\r\n--x\0\xff", os.urandom(3 * 2**20 + 17)])
def test_a_form_keeps_its_order_and_the_file_is_last(content: bytes) -> None:
    asked = sent(content, lambda asked: Answer(204)).asked[0]
    assert asked.query == {"p": "1"}
    assert asked.headers["x-extra"] == "1"
    assert "authorization" not in asked.headers
    assert "transfer-encoding" not in asked.headers
    assert int(asked.headers["content-length"]) == len(asked.body)
    boundary = asked.headers["content-type"].rpartition("boundary=")[2].encode()
    parts = asked.body.split(b"--" + boundary)
    names = [part.split(b'name="')[1].split(b'"')[0] for part in parts[1:-1]]
    assert names == [b"key", b"policy", b"x-amz-signature", b"file"]
    assert parts[1].endswith("\r\n\r\ntask/ünder\r\n".encode())
    head, _, body = parts[4].partition(b"\r\n\r\n")
    assert b'filename="content"' in head
    assert body == content + b"\r\n"
    assert parts[-1] == b"--\r\n"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(403), LinkExpired),
        (Answer(400, b"<Error><Code>EntityTooLarge</Code></Error>"), TooLarge),
        (Answer(400, b"<Error><Code>MalformedPOSTRequest</Code></Error>"), ServerError),
        (Answer(503), Unreachable),
        (Drop, Unreachable),
        (Reset, Unreachable),
    ],
    ids=["403", "too large", "malformed", "503", "drop", "reset"],
)
def test_what_a_form_may_answer(answer: Any, kind: type[F7tfsError]) -> None:
    with pytest.raises(kind):
        sent(b"x" * 1000, scripted(answer))


def test_a_file_that_shrank_while_it_was_sent() -> None:
    with pytest.raises(Changed):
        sent(b"x" * 100, lambda asked: Answer(204), size=200)


def test_no_object_store() -> None:
    with pytest.raises(Unreachable):
        fetched(f"http://127.0.0.1:{free_port()}/o?sig=secret")
