"""The staging area: presigned links read in ranges, forms and parts filled from a file. No bearer.

The links and forms are secrets; they are in no log line and no exception text.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from xml.sax.saxutils import escape

import msgspec
import trio

from f7tfs.api.http import StorageClient, Streamed
from f7tfs.api.port import UploadForm, UploadParts
from f7tfs.errors import (
    Changed,
    F7tfsError,
    LinkExpired,
    ServerError,
    Stalled,
    TooLarge,
    Unreachable,
    Unsupported,
)

log = logging.getLogger("f7tfs.api")

CHUNK = 1 << 20  # bytes per read of the file that is sent
PARALLEL_PARTS = 3
TRIES = 4  # of one part, and of the completion
RETRY_PAUSE = 0.5  # seconds before the second try; doubles

Sink = Callable[[bytes], Awaitable[None] | None]
"""Takes the next bytes, in order."""

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_ACTUAL_SIZE = re.compile(r"<ActualObjectSize>(\d+)</ActualObjectSize>")
_EXPIRED_CODES = {"AccessDenied", "ExpiredToken", "RequestExpired", "NoSuchKey", "NoSuchBucket"}


class FetchResult(msgspec.Struct, frozen=True):
    """`total_size` of the whole object in bytes, None where not told; `received` of this fetch."""

    total_size: int | None
    etag: str
    received: int


class StagingArea:
    """The object store, through one StorageClient."""

    def __init__(self, client: StorageClient) -> None:
        self._client = client

    async def fetch(
        self, link: str, sink: Sink, *, start: int = 0, length: int | None = None
    ) -> FetchResult:
        """Read `length` bytes from `start` (None: to the end) of a presigned link into `sink`, in
        pieces of up to 1 MiB. A range that begins past the end gives no bytes; one that ends past
        it gives what there is.

        Raises LinkExpired for 401, 403, 404; Unreachable for a short body or a lost connection
        (what `sink` got until then is right); Stalled; ServerError.
        """
        headers = {}
        if start or length is not None:
            end = "" if length is None else str(start + length - 1)
            headers["Range"] = f"bytes={start}-{end}"
        if length == 0:
            return FetchResult(None, "", 0)
        async with self._client.get(link, headers) as reply:
            etag = reply.headers.get("etag", "")
            if reply.status == 416:
                return FetchResult(await _size_of_416(reply), etag, 0)
            if reply.status not in {200, 206}:
                raise refusal(reply.status, await reply.text())
            first, expected, total = _extent(reply, start)
            skip = start - first
            wanted = None if expected is None else expected - skip
            if length is not None:
                wanted = length if wanted is None else min(wanted, length)
            received = await _pour(reply, sink, skip, wanted)
        if wanted is not None and received < wanted:
            raise Unreachable(f"the object store sent {received} of {wanted} bytes")
        return FetchResult(total if total is not None else start + received, etag, received)

    async def send_form(
        self,
        form: UploadForm,
        fd: int,
        size: int,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Send the first `size` bytes of the open file `fd` with a form. `on_progress` gets the
        number of bytes of content handed over so far.

        Raises LinkExpired (401, 403, 404), TooLarge, Unreachable for a lost connection: the form
        can be sent again, the object is only ever replaced by the same bytes. Changed when the file
        is shorter than `size`.
        """
        boundary = secrets.token_hex(16)
        head, tail = _frame(form, boundary)
        async with aclosing(_body(head, fd, size, tail, on_progress)) as body:
            reply = await self._client.send(
                form.method,
                form.url,
                params=dict(form.params),
                headers={
                    **dict(_harmless(form.headers)),
                    "Content-Type": f"multipart/form-data; boundary={boundary}",
                },
                length=len(head) + size + len(tail),
                content=body,
            )
        if reply.status not in {200, 201, 204}:
            raise refusal(reply.status, reply.body.decode(errors="replace"))

    async def send_parts(
        self,
        parts: UploadParts,
        fd: int,
        size: int,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Send the first `size` bytes of the open file `fd` in parts, a few at once, and complete
        the object (v2 FACTS §7). `on_progress` gets the number of bytes handed over so far; it
        goes back where a part is sent again.

        Raises LinkExpired (401, 403, 404), TooLarge, Changed when the file is shorter than `size`,
        Unreachable or Stalled when a part still fails after some tries; the whole can be sent
        again. ServerError where the parts do not fit the file, or are refused.
        """
        if size <= 0 or parts.part_size <= 0:
            raise Unsupported("an empty file cannot be sent in parts")
        if len(parts.urls) * parts.part_size < size:
            raise ServerError(f"the server gave too few parts for {size} bytes")
        etags = await _Parts(self._client, parts, fd, size, on_progress).send()
        await self._complete(parts.complete_url, _completion(etags))

    async def _complete(self, url: str, document: bytes) -> None:
        """Completing twice makes the same object of the same parts."""
        for attempt in range(TRIES):
            try:
                reply = await self._client.send(
                    "POST",
                    url,
                    params={},
                    headers={"Content-Type": "application/xml"},
                    length=len(document),
                    content=_once(document),
                )
                text = reply.body.decode(errors="replace")
                # A store that needs long answers 200 before it knows how it ends.
                if reply.status in {200, 201, 204} and "<Error>" not in text:
                    return
                code = _CODE.search(text)
                if attempt and code and code[1] == "NoSuchUpload":
                    return  # an earlier try went through and its reply was lost
                if reply.status == 200 and code and code[1] in {"InternalError", "SlowDown"}:
                    raise Unreachable(f"the object store answered {code[1]} at the end")
                raise refusal(reply.status, text)
            except (Unreachable, Stalled) as error:
                if attempt == TRIES - 1:
                    raise
                log.info("completing an upload: %s; once more", error)
                await trio.sleep(RETRY_PAUSE * 2**attempt)


class _Parts:
    """One object on its way in parts, in one call of `send_parts`."""

    def __init__(
        self,
        client: StorageClient,
        parts: UploadParts,
        fd: int,
        size: int,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self._client = client
        self._urls = parts.urls
        self._fd = fd
        self._on_progress = on_progress
        part_size = parts.part_size
        self._extents = [
            (start, min(part_size, size - start)) for start in range(0, size, part_size)
        ]
        self._sent = [0] * len(self._extents)
        self._etags = [""] * len(self._extents)

    async def send(self) -> list[str]:
        """All parts, a few at once; their ETags in order. The first failure ends the others."""
        failures: list[F7tfsError] = []
        waiting = iter(range(len(self._extents)))

        async def work(nursery: trio.Nursery) -> None:
            try:
                for index in waiting:
                    await self._persist(index)
            except F7tfsError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL_PARTS, len(self._extents))):
                nursery.start_soon(work, nursery)
        if failures:
            raise failures[0]
        return self._etags

    async def _persist(self, index: int) -> None:
        """A part that fails is sent again; the others stay where they are."""
        for attempt in range(TRIES):
            try:
                self._etags[index] = await self._put(index)
            except (Unreachable, Stalled) as error:
                self._note(index, 0)
                if attempt == TRIES - 1:
                    raise
                log.info("part %d of an upload: %s; it is sent again", index + 1, error)
                await trio.sleep(RETRY_PAUSE * 2**attempt)
            else:
                return

    async def _put(self, index: int) -> str:
        start, length = self._extents[index]
        pieces = _pieces(self._fd, start, length, lambda sent: self._note(index, sent))
        async with aclosing(pieces) as content:
            reply = await self._client.send(
                "PUT", self._urls[index], params={}, headers={}, length=length, content=content
            )
        if reply.status not in {200, 201, 204}:
            raise refusal(reply.status, reply.body.decode(errors="replace"))
        etag = reply.headers.get("etag", "")
        if not etag:
            raise ServerError("the object store gave no ETag for a part")
        return etag

    def _note(self, index: int, sent: int) -> None:
        self._sent[index] = sent
        if self._on_progress is not None:
            self._on_progress(sum(self._sent))


def _completion(etags: list[str]) -> bytes:
    """The document that makes one object of the parts; the quotes of the ETags belong to it."""
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return (
        f'<CompleteMultipartUpload xmlns="{namespace}">{parts}</CompleteMultipartUpload>'
    ).encode()


async def _once(document: bytes) -> AsyncGenerator[bytes, None]:
    yield document


async def _pour(reply: Streamed, sink: Sink, skip: int, wanted: int | None) -> int:
    """Hand the body to `sink`, without its first `skip` bytes and at most `wanted`."""
    received = 0
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            if received == wanted:
                break  # more than was asked for
            if skip:
                dropped = min(skip, len(chunk))
                skip -= dropped
                chunk = chunk[dropped:]
            if wanted is not None:
                chunk = chunk[: wanted - received]
            if chunk:
                received += len(chunk)
                waiting = sink(chunk)
                if waiting is not None:
                    await waiting
    return received


def _extent(reply: Streamed, start: int) -> tuple[int, int | None, int | None]:
    """(offset of the first byte, bytes in the body, size of the object)."""
    announced = reply.headers.get("content-length", "")
    length = int(announced) if announced.isdigit() else None
    if reply.status == 200:  # the whole object, whatever was asked
        return 0, length, length
    found = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    if found is None or found[1] is None or int(found[1]) != start:
        raise ServerError("the object store sent another range than was asked")
    total = None if found[3] == "*" else int(found[3])
    return start, int(found[2]) - start + 1, total


async def _size_of_416(reply: Streamed) -> int | None:
    found = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    if found and found[3] != "*":
        return int(found[3])
    told = _ACTUAL_SIZE.search(await reply.text())
    return int(told[1]) if told else None


def refusal(status: int, text: str) -> F7tfsError:
    """What an answer of the object store that is no success means."""
    found = _CODE.search(text)
    code = found[1] if found else ""
    said = f"the object store answered {status} {code}".rstrip()
    if status in {401, 403, 404} or code in _EXPIRED_CODES:
        return LinkExpired(said)
    if status == 413 or code == "EntityTooLarge":
        return TooLarge(said)
    if status in {408, 429, 500, 502, 503, 504} or code in {"RequestTimeout", "SlowDown"}:
        return Unreachable(said)
    return ServerError(said)


def _harmless(headers: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """What a ticket may set: the frame of the message is ours, and it carries no login."""
    ours = {"content-type", "content-length", "transfer-encoding", "host", "authorization"}
    return [(name, value) for name, value in headers if name.lower() not in ours]


def _frame(form: UploadForm, boundary: str) -> tuple[bytes, bytes]:
    """What stands before and after the content: all fields in their order, the file last."""
    head = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n'
        f"{value}\r\n".encode()
        for name, value in form.fields
    )
    head += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(form.file_field)}"; '
        f'filename="{_quoted(form.file_name)}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    ).encode()
    return head, f"\r\n--{boundary}--\r\n".encode()


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


async def _body(
    head: bytes, fd: int, size: int, tail: bytes, on_progress: Callable[[int], None] | None
) -> AsyncGenerator[bytes, None]:
    yield head
    async with aclosing(_pieces(fd, 0, size, on_progress)) as pieces:
        async for piece in pieces:
            yield piece
    yield tail


async def _pieces(
    fd: int, start: int, length: int, on_progress: Callable[[int], None] | None
) -> AsyncGenerator[bytes, None]:
    """`length` bytes of the file from `start`; `on_progress` gets those handed over so far."""
    sent = 0
    while sent < length:
        chunk = await trio.to_thread.run_sync(os.pread, fd, min(CHUNK, length - sent), start + sent)
        if not chunk:
            raise Changed(f"the file to be sent ends after {sent} of {length} bytes")
        yield chunk
        sent += len(chunk)
        if on_progress is not None:
            on_progress(sent)
