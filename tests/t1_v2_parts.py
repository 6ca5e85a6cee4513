"""Uploads in parts to presigned links: parallel, resumed by part, completed once, never trusted."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from loopback import Answer, Asked, Drop, Loopback, loopback

from f7tfs import errors
from f7tfs.api import objects
from f7tfs.api.http import StorageClient
from f7tfs.api.port import UploadParts
from f7tfs.api.staging import StagingArea
from f7tfs.errors import F7tfsError

PART = 1 << 20
SIZE = 4 * PART + 17
CONTENT = os.urandom(SIZE)
COMPLETED = b"<CompleteMultipartUploadResult/>"
ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>m</Message></Error>"


class Store:
    """An object store that keeps parts and joins them. `trouble` answers first, where it does."""

    def __init__(self, trouble: Callable[[Asked], Answer | None] = lambda asked: None) -> None:
        self.parts: dict[int, bytes] = {}
        self.object: bytes | None = None
        self.trouble = trouble
        self.most, self._now, self._lock = 0, 0, threading.Lock()

    def __call__(self, asked: Asked) -> Answer:
        assert "authorization" not in asked.headers
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(0.02)
            return self.trouble(asked) or self.answer(asked)
        finally:
            with self._lock:
                self._now -= 1

    def answer(self, asked: Asked) -> Answer:
        if asked.method == "PUT":
            if asked.headers["content-length"] != str(len(asked.body)):
                raise Drop  # the client went away in the middle
            self.parts[int(asked.query["partNumber"])] = asked.body
            return Answer(200, b"", {"ETag": tag(asked.body)})
        found = re.findall(
            r"<PartNumber>(\d+)</PartNumber><ETag>([^<]*)</ETag>", asked.body.decode()
        )
        assert [number for number, _ in found] == [str(n + 1) for n in range(len(found))]
        assert all(tag(self.parts[int(number)]) == etag for number, etag in found)
        self.object = b"".join(self.parts[int(number)] for number, _ in found)
        return Answer(200, COMPLETED)


def tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def send(
    store: Callable[[Asked], Answer],
    content: bytes = CONTENT,
    *,
    size: int | None = None,
    urls: int | None = None,
    part_size: int = PART,
    progress: list[int] | None = None,
    sent: dict[int, str] | None = None,
    told: dict[int, str] | None = None,
) -> Loopback:
    with loopback(store) as server, tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        size = len(content) if size is None else size
        count = -(-size // part_size) if urls is None else urls
        parts = UploadParts(
            tuple(
                f"{server.url}/k?uploadId=u&partNumber={n + 1}&X-Sig=a%2Fb" for n in range(count)
            ),
            part_size,
            f"{server.url}/k?uploadId=u&X-Sig=c",
        )

        async def keep(number: int, etag: str) -> None:
            if told is not None:
                told[number] = etag

        async def main() -> None:
            async with StorageClient(stall_timeout=2.0) as client:
                await StagingArea(client).send_parts(
                    parts,
                    file.fileno(),
                    size,
                    sent=sent,
                    on_part=keep,
                    on_progress=(lambda sent: None) if progress is None else progress.append,
                )

        trio.run(main)
    return server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRY_PAUSE", 0.01)


def failing(kind: type[F7tfsError], store: Store, *args: Any, **options: Any) -> F7tfsError:
    with pytest.raises(kind) as caught:
        send(store, *args, **options)
    assert type(caught.value) is kind
    assert "X-Sig" not in str(caught.value)
    return caught.value


def test_parts_arrive_and_are_joined() -> None:
    store, progress = Store(), []  # type: ignore[var-annotated]
    server = send(store, progress=progress)
    assert store.object == CONTENT
    assert progress[-1] == SIZE and sorted(progress) == progress
    assert 1 < store.most <= 3
    assert server.paths().count("PUT /k") == 5
    assert server.asked[-1].method == "POST"
    assert server.asked[0].query["X-Sig"] == "a/b"


@pytest.mark.parametrize("size", [1, PART - 1, PART, PART + 1, 2 * PART])
def test_edges(size: int) -> None:
    store = Store()
    send(store, CONTENT[:size])
    assert store.object == CONTENT[:size]


def test_a_file_that_grew_meanwhile() -> None:
    store = Store()
    send(store, size=PART + 5)
    assert store.object == CONTENT[: PART + 5]


def test_more_parts_than_needed() -> None:
    store = Store()
    send(store, CONTENT[:10], urls=3)
    assert store.object == CONTENT[:10]


def test_only_the_part_that_failed_is_sent_again() -> None:
    failures = [Answer(503, ERROR % b"SlowDown"), Drop]

    def trouble(asked: Asked) -> Answer | None:
        if asked.query.get("partNumber") == "2" and failures:
            failure = failures.pop(0)
            if isinstance(failure, Answer):
                return failure
            raise failure
        return None

    store = Store(trouble)
    server = send(store)
    assert store.object == CONTENT
    numbers = [asked.query["partNumber"] for asked in server.asked if asked.method == "PUT"]
    assert sorted(numbers) == ["1", "2", "2", "2", "3", "4", "5"]


def test_a_part_that_always_fails() -> None:
    store = Store(lambda asked: Answer(500) if asked.query.get("partNumber") == "3" else None)
    failing(errors.Unreachable, store)
    assert store.object is None


@pytest.mark.parametrize("status", [401, 403, 404])
def test_links_that_are_over(status: int) -> None:
    failing(errors.LinkExpired, Store(lambda asked: Answer(status, ERROR % b"AccessDenied")))


def test_a_completion_that_fails_with_200() -> None:
    """S3 answers before it knows how it ends."""
    late = Store(lambda a: Answer(200, ERROR % b"InvalidPart") if a.method == "POST" else None)
    assert "InvalidPart" in str(failing(errors.ServerError, late))
    troubles = [ERROR % b"InternalError"]
    healing = Store(
        lambda a: Answer(200, troubles.pop()) if a.method == "POST" and troubles else None
    )
    send(healing)
    assert healing.object == CONTENT


def test_a_completion_whose_reply_was_lost() -> None:
    posts: list[int] = []

    def trouble(asked: Asked) -> Answer | None:
        if asked.method != "POST":
            return None
        posts.append(1)
        if len(posts) == 1:
            store.answer(asked)
            raise Drop
        return Answer(404, ERROR % b"NoSuchUpload")

    store = Store(trouble)
    send(store)
    assert store.object == CONTENT and len(posts) == 2


def test_an_upload_that_is_gone() -> None:
    store = Store(lambda a: Answer(404, ERROR % b"NoSuchUpload") if a.method == "POST" else None)
    failing(errors.LinkExpired, store)


def test_parts_of_an_earlier_try_are_not_sent_again() -> None:
    """Issue 5: "resume … of missing multipart parts"; each new one is told when it is there."""
    store, told, progress = Store(), {}, []  # type: ignore[var-annotated]
    cut = [CONTENT[start : start + PART] for start in range(0, SIZE, PART)]
    store.parts = {1: cut[0], 3: cut[2], 9: b"of no part"}
    had = {number: tag(part) for number, part in store.parts.items()}
    server = send(store, sent=had, told=told, progress=progress)
    assert store.object == CONTENT
    assert told == {number: tag(cut[number - 1]) for number in (2, 4, 5)}
    assert server.paths().count("PUT /k") == 3
    assert progress[0] > 2 * PART and progress[-1] == SIZE


def test_all_parts_are_there_already() -> None:
    """Nothing is left but the completion; that it is not known any more means that it went
    through, for the parts were all there before it was asked for."""
    store = Store()
    cut = [CONTENT[start : start + PART] for start in range(0, SIZE, PART)]
    store.parts = dict(enumerate(cut, 1))
    had = {number: tag(part) for number, part in store.parts.items()}
    assert send(store, sent=had).paths() == ["POST /k"]
    assert store.object == CONTENT
    gone = Store(lambda asked: Answer(404, ERROR % b"NoSuchUpload"))
    assert send(gone, sent=had).paths() == ["POST /k"]


def test_parts_of_an_earlier_try_that_the_store_lost() -> None:
    """The upload must begin anew, with another ticket; it must not stay with these for ever."""
    lost = Store(lambda a: Answer(400, ERROR % b"InvalidPart") if a.method == "POST" else None)
    failing(errors.LinkExpired, lost, sent={1: '"stale"'})
    failing(errors.ServerError, lost)


def test_what_does_not_fit() -> None:
    assert failing(errors.ServerError, Store(), urls=4)
    assert failing(errors.Unsupported, Store(), b"", part_size=PART)
    assert failing(errors.Changed, Store(), CONTENT[:10], size=20)
    bare = Store(lambda asked: Answer(200) if asked.method == "PUT" else None)
    assert "ETag" in str(failing(errors.ServerError, bare))


def test_no_part_is_left_running() -> None:
    """The first failure ends the others, and nothing is completed."""
    store = Store(lambda asked: Answer(403) if asked.query.get("partNumber") == "1" else None)
    failing(errors.LinkExpired, store)
    assert store.object is None and len(store.parts) < 5


def test_the_links_are_in_no_log(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(0)
    failures = [1]

    def trouble(asked: Asked) -> Answer | None:
        return Answer(500) if failures and failures.pop() else None

    send(Store(trouble))
    assert caplog.records
    assert "X-Sig" not in caplog.text
