"""Uploads by the data process, against real little servers: bytes, errors, answers that come early,
silence, death, and no traces of links and forms."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import trio
from loopback import Answer, Asked, Drop, loopback

from f7tfs import errors
from f7tfs.api import objects
from f7tfs.api.http import StorageClient
from f7tfs.api.mover import Mover
from f7tfs.api.port import UploadForm, UploadParts
from f7tfs.api.staging import BULK, StagingArea
from f7tfs.api.store import Outgoing

SIZE = 9 * (1 << 20) + 12_345
CONTENT = os.urandom(SIZE)
TOO_LARGE = b"<Error><Code>EntityTooLarge</Code></Error>"
Body = Callable[[StagingArea, Mover, IO[bytes]], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRY_PAUSE", 0.01)


def run(body: Body, stall_timeout: float = 5.0) -> None:
    """With a staging area and its mover, and a file; afterwards the process is gone."""

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery, StorageClient() as client:
                mover = Mover(nursery, stall_timeout=stall_timeout)
                with tempfile.TemporaryFile() as file:
                    file.write(CONTENT)
                    file.flush()
                    await body(StagingArea(client).carried_by(mover), mover, file)
                pid = mover.pid
                nursery.cancel_scope.cancel()
            assert pid is None or not Path(f"/proc/{pid}").exists()

    trio.run(main)


def form_for(url: str) -> UploadForm:
    return UploadForm(
        method="POST",
        url=url,
        fields=(("key", "task/ünder"), ("x-amz-signature", "secret")),
        headers=(("X-Extra", "1"),),
        params=(("p", "1"),),
        file_name="content",
    )


def put(url: str, length: int = SIZE) -> Outgoing:
    return Outgoing("PUT", f"{url}/o?X-Sig=a%2Fb+c", (), length)


# Servers that answer as no library would.


class Peer:
    """Hands each connection to `serve`, in a thread of its own."""

    def __init__(self, url: str, counted: list[socket.socket]) -> None:
        self.url = url
        self.connections = counted


@contextlib.contextmanager
def peer(
    serve: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None
) -> Iterator[Peer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        scheme = "http" if tls is None else "https"
        made = Peer(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", [])
        threads: list[threading.Thread] = []

        def one(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                if tls is not None:
                    connection = tls.wrap_socket(connection, server_side=True)
                with connection:
                    serve(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                # As servers do: else an answer waits for an acknowledgement, and dies by the close.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.connections.append(connection)
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(5)
            for thread in threads:
                thread.join(5)


def head_of(connection: socket.socket) -> bytes:
    """The head of a request, and perhaps some of its body."""
    found = b""
    while b"\r\n\r\n" not in found:
        data = connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        found += data
    return found


def whole(connection: socket.socket) -> bytes:
    """The body of a request with a Content-Length."""
    head, _, body = head_of(connection).partition(b"\r\n\r\n")
    assert b"expect:" not in head.lower()
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        data = connection.recv(1 << 20)
        if not data:
            raise ConnectionResetError
        body += data
    return body


def answer(status: str, body: bytes = b"", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Of a server with a certificate that the data process is told to trust."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key),
            "-out", str(certificate), "-days", "2", "-subj", "/CN=127.0.0.1",
            "-addext", "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return context


# Bytes.


def test_a_form_arrives_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 5: "bulk bytes moved by the data process"; the links and forms are secrets."""
    caplog.set_level(0)
    monkeypatch.setattr(StorageClient, "send", None)  # nothing goes the other way
    progress: list[int] = []

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        await area.send_form(
            form_for(store.url + "/bucket?q=x%2Fy"),
            file.fileno(),
            SIZE,
            on_progress=progress.append,
        )
        assert mover.pid is not None
        for secret in (b"signature", b"bucket"):
            assert secret not in Path(f"/proc/{mover.pid}/cmdline").read_bytes()

    with loopback(lambda asked: Answer(204)) as store:
        run(body)
    (asked,) = store.asked
    assert (asked.method, asked.query) == ("POST", {"q": "x/y", "p": "1"})
    assert asked.headers["x-extra"] == "1"
    assert not {"authorization", "expect", "transfer-encoding"} & asked.headers.keys()
    assert int(asked.headers["content-length"]) == len(asked.body)
    boundary = asked.headers["content-type"].rpartition("boundary=")[2].encode()
    parts = asked.body.split(b"--" + boundary)
    assert parts[1].endswith("\r\n\r\ntask/ünder\r\n".encode())
    assert parts[3].partition(b"\r\n\r\n")[2] == CONTENT + b"\r\n"
    assert parts[4] == b"--\r\n"
    assert progress == sorted(progress) and progress[-1] == SIZE and len(progress) > 1
    assert "secret" not in caplog.text and "bucket" not in caplog.text


def test_parts_arrive_in_their_place() -> None:
    """v2 FACTS §7: parts by PUT, their ETags in the completion; each from its own place."""
    kept: dict[str, bytes] = {}
    part = 2 << 20

    def behaviour(asked: Asked) -> Answer:
        if asked.method == "PUT":
            assert asked.query["X-Sig"] == "a/b c"
            kept[asked.query["partNumber"]] = asked.body
            return Answer(200, b"", {"ETag": f'"{hashlib.md5(asked.body).hexdigest()}"'})
        return Answer(200, b"<CompleteMultipartUploadResult/>")

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        count = -(-SIZE // part)
        urls = [f"{store.url}/k?partNumber={n + 1}&X-Sig=a%2Fb+c" for n in range(count)]
        await area.send_parts(UploadParts(tuple(urls), part, store.url + "/k"), file.fileno(), SIZE)

    with loopback(behaviour) as store:
        run(body)
    assert b"".join(kept[str(n + 1)] for n in range(len(kept))) == CONTENT
    assert all(
        hashlib.md5(one).hexdigest().encode() in store.asked[-1].body for one in kept.values()
    )


def test_over_tls_and_over_a_warm_connection(tls: ssl.SSLContext) -> None:
    """Issue 5: "large chunks over TLS"."""
    bodies: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        while True:
            bodies.append(whole(connection))
            connection.sendall(answer("200 OK", extra='ETag: "e"\r\n'))

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        for _ in range(2):
            reply = await mover.send(put(store.url), file.fileno(), lambda sent: None)
            assert (reply.status, reply.headers["etag"]) == (200, '"e"')

    with peer(serve, tls) as store:
        run(body)
        assert len(store.connections) == 1
    assert bodies == [CONTENT, CONTENT]


def test_a_warm_connection_that_was_closed_is_replaced() -> None:
    """Servers close idle connections; nothing is lost on one."""

    closed = threading.Semaphore(0)

    def serve(connection: socket.socket) -> None:
        whole(connection)
        connection.sendall(answer("200 OK"))
        connection.close()
        closed.release()

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        for _ in range(3):
            reply = await mover.send(put(store.url), file.fileno(), lambda sent: None)
            assert reply.status == 200
            assert await trio.to_thread.run_sync(closed.acquire, True, 5)

    with peer(serve) as store:
        run(body)
        assert len(store.connections) == 3


# Answers.


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (Answer(403), errors.LinkExpired),
        (Answer(404, b"<Code>NoSuchUpload</Code>"), errors.LinkExpired),
        (Answer(400, TOO_LARGE), errors.TooLarge),
        (Answer(403, TOO_LARGE), errors.TooLarge),
        (Answer(413), errors.TooLarge),
        (Answer(400, b"<Code>MalformedPOSTRequest</Code>"), errors.ServerError),
        (Answer(307, b"", {"Location": "/again"}), errors.ServerError),
        (Answer(503, b"<Code>SlowDown</Code>"), errors.Unreachable),
        (Drop(), errors.Unreachable),
    ],
)
def test_refusals_have_their_names(given: Answer | Drop, kind: type[errors.F7tfsError]) -> None:
    """The same words as the daemon's own client would find for them."""

    def behaviour(asked: Asked) -> Answer:
        if isinstance(given, Drop):
            raise given
        return given

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        with pytest.raises(kind) as caught:
            await area.send_form(form_for(store.url + "/bucket"), file.fileno(), SIZE)
        assert type(caught.value) is kind
        assert "bucket" not in str(caught.value)

    with loopback(behaviour) as store:
        run(body)


@pytest.mark.parametrize("over", ["plain", "tls"])
@pytest.mark.parametrize("then", ["keeps it open", "closes it", "reads on"])
def test_an_early_answer_is_told(over: str, then: str, request: pytest.FixtureRequest) -> None:
    """A store that refuses does not wait for gigabytes, and who sends must not wait for it either,
    nor lose its words with the connection."""
    context = request.getfixturevalue("tls") if over == "tls" else None
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(answer("403 Forbidden", TOO_LARGE, "Connection: close\r\n"))
        if then == "keeps it open":
            done.wait(10)
        elif then == "reads on":
            while connection.recv(1 << 20):
                pass

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        file.truncate(4 << 30)  # a hole: whoever sends it all does not end in time
        with trio.fail_after(3), pytest.raises(errors.TooLarge):
            await area.send_form(form_for(store.url + "/bucket"), file.fileno(), 4 << 30)
        done.set()

    with peer(serve, context) as store:
        run(body)


def test_words_that_are_no_answer() -> None:
    """ "100 Continue" comes unasked from some stores: the body goes on, the answer is the last."""
    bodies: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        bodies.append(whole(connection))
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + answer("204 No Content"))

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        reply = await mover.send(put(store.url), file.fileno(), lambda sent: None)
        assert reply.status == 204

    with peer(serve) as store:
        run(body)
    assert bodies == [CONTENT]


# Silence, death, cancellation.


@pytest.mark.parametrize("when", ["before the body", "after it"])
def test_silence_is_a_stall(when: str) -> None:
    """Waits: ETIMEDOUT only without progress, of a store that takes no more and of one that has
    all and does not answer."""
    go = threading.Event()

    def serve(connection: socket.socket) -> None:
        if when == "after it":
            whole(connection)
        go.wait(10)

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        file.truncate(64 << 20)
        length = SIZE if when == "after it" else 64 << 20
        with pytest.raises(errors.Stalled):
            await mover.send(put(store.url, length), file.fileno(), lambda sent: None)
        go.set()

    with peer(serve) as store:
        run(body, stall_timeout=0.5)


def test_a_file_that_is_shorter() -> None:
    """Changed: nothing of it may become an object."""
    answered: list[str] = []

    def serve(connection: socket.socket) -> None:
        whole(connection)
        answered.append("whole")

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        with pytest.raises(errors.Changed):
            await area.send_form(form_for(store.url), file.fileno(), SIZE + 1)

    with peer(serve) as store:
        run(body)
    assert not answered


def test_a_file_that_cannot_be_read() -> None:
    """A bad disk is not the network: the upload is not tried for ever."""
    bad = os.open("/proc/self/mem", os.O_RDONLY)

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        with pytest.raises(OSError) as caught:
            await mover.send(put(store.url), bad, lambda sent: None)
        assert caught.value.errno == errno.EIO
        assert not isinstance(caught.value, errors.F7tfsError)

    with loopback(lambda asked: Answer(204)) as store:
        run(body)
    os.close(bad)


def test_its_death_is_a_lost_connection() -> None:
    """The process that dies in the middle: the upload is sent again, by another one."""
    arrived, go = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        arrived.set()
        go.wait(10)

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        async def kill() -> None:
            await trio.to_thread.run_sync(arrived.wait)
            assert mover.pid is not None
            os.kill(mover.pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(errors.Unreachable):
                await area.send_form(form_for(store.url), file.fileno(), SIZE)
        go.set()
        with loopback(lambda asked: Answer(204)) as other:
            await area.send_form(form_for(other.url), file.fileno(), SIZE)
            assert CONTENT in other.asked[0].body

    with peer(serve) as store:
        run(body)


@pytest.mark.parametrize("over", ["plain", "tls"])
def test_who_leaves_ends_it(over: str, request: pytest.FixtureRequest) -> None:
    """Nobody sends on for one who was cancelled, also where the store takes nothing."""
    context = request.getfixturevalue("tls") if over == "tls" else None
    arrived, left = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        arrived.set()
        left.wait(10)
        with contextlib.suppress(OSError):
            while connection.recv(1 << 20):
                pass
        ended.set()

    ended = threading.Event()

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        file.truncate(64 << 20)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await mover.send(put(store.url, 64 << 20), file.fileno(), lambda sent: None)

            nursery.start_soon(send)
            await trio.to_thread.run_sync(arrived.wait)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < 0.9, "its thread had to be waited for"
        left.set()
        assert await trio.to_thread.run_sync(ended.wait, 5)
        assert mover.pid is not None
        links = [os.readlink(one) for one in Path(f"/proc/{mover.pid}/fd").iterdir()]
        ours = os.readlink(f"/proc/self/fd/{file.fileno()}")
        assert ours not in links, "it still has the file"

    with peer(serve, context) as store:
        run(body)


# The other way.


def test_a_process_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As for downloads, the daemon then sends by itself."""
    caplog.set_level("INFO")
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        await area.send_form(form_for(store.url), file.fileno(), SIZE)

    with loopback(lambda asked: Answer(204)) as store:
        run(body)
    assert CONTENT in store.asked[0].body
    assert "the daemon does it itself" in caplog.text


def test_a_proxy_is_left_to_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxies are httpx's business."""

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        await area.send_form(form_for("http://store.example/b"), file.fileno(), SIZE)
        assert mover.pid is None

    with loopback(lambda asked: Answer(204)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        run(body)
    assert CONTENT in proxy.asked[0].body


def test_little_needs_no_process() -> None:
    """Completions, and what is not worth a process."""

    async def body(area: StagingArea, mover: Mover, file: IO[bytes]) -> None:
        await area.send_form(form_for(store.url), file.fileno(), BULK)
        assert mover.pid is None

    with loopback(lambda asked: Answer(204)) as store:
        run(body)
    assert len(store.asked[0].body) > BULK
