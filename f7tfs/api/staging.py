"""The staging area: presigned links read in ranges, objects made of a file. No bearer.

This is the one place that knows which way the bytes go: single blocks through the daemon's own
client, bulk through the data process, where that can carry it. The links and forms are secrets;
they are in no log line and no exception text.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TypeVar

import trio

from f7tfs.api import objects
from f7tfs.api.http import StorageClient, Streamed
from f7tfs.api.mover import Mover
from f7tfs.api.objects import OnPart
from f7tfs.api.port import UploadForm, UploadParts
from f7tfs.api.replies import Reply
from f7tfs.api.store import FetchResult, OnSent, Outgoing, refusal
from f7tfs.errors import Changed, ServerError, Unreachable, Unsupported

log = logging.getLogger("f7tfs.api")

CHUNK = 1 << 20  # bytes per read of the file that is sent
BULK = 1 << 20  # bytes; what is longer is worth the data process (docs/decisions/0010, 0012)

Sink = Callable[[bytes], Awaitable[None] | None]
"""Takes the next bytes, in order."""

T = TypeVar("T")

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_ACTUAL_SIZE = re.compile(r"<ActualObjectSize>(\d+)</ActualObjectSize>")


class StagingArea:
    """The object store, through one StorageClient and, for bulk, a Mover."""

    def __init__(self, client: StorageClient, mover: Mover | None = None) -> None:
        self._client = client
        self._mover = mover

    def carried_by(self, mover: Mover) -> StagingArea:
        """The same, its bulk moved by a data process."""
        return StagingArea(self._client, mover)

    def warm_up(self) -> None:
        """Bulk is about to move: it is not to wait for the start of a process."""
        if self._mover is not None:
            self._mover.warm_up()

    async def _in_bulk(
        self, link: str, length: int, move: Callable[[Mover], Awaitable[T]]
    ) -> T | None:
        """Let the data process do it. None where the daemon has to: for little, through a proxy,
        or because the process cannot run or does not understand the store."""
        mover = self._mover
        if mover is None or length <= BULK or not mover.carries(link):
            return None
        try:
            return await move(mover)
        except Unsupported as error:
            log.info("%s; the daemon does it itself", error)
            return None

    async def fetch_into(
        self,
        link: str,
        fd: int,
        start: int,
        end: int,
        on_arrival: Callable[[int, int], None],
        sink: Sink,
    ) -> FetchResult:
        """Bytes [start, end) of a presigned link: bulk into the same place of the file `fd`, and
        `on_arrival` is told of each stretch that is there; the rest into `sink`, in order. Raises
        what `fetch` raises, and NoLocalSpace."""
        at = start

        def arrived(first: int, last: int) -> None:
            nonlocal at
            on_arrival(first, last)
            at = last

        found = await self._in_bulk(
            link, end - start, lambda mover: mover.fetch(link, fd, start, end, arrived)
        )
        if found is not None:
            return found
        return await self.fetch(link, sink, start=at, length=end - at)

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

    async def send(self, request: Outgoing, fd: int, on_sent: OnSent) -> Reply:
        """One request with bytes of the open file `fd`, and the answer, whatever it says. Raises
        Unreachable, Stalled; Changed when the file is shorter than it should be."""
        found = await self._in_bulk(
            request.url, request.length, lambda mover: mover.send(request, fd, on_sent)
        )
        if found is not None:
            return found
        async with aclosing(_body(request, fd, on_sent)) as body:
            return await self._client.send(
                request.method,
                request.url,
                headers=dict(request.headers),
                length=request.size,
                content=body,
            )

    async def send_form(
        self, form: UploadForm, fd: int, size: int, *, on_progress: OnSent = lambda sent: None
    ) -> None:
        """See `objects.send_form`."""
        await objects.send_form(self.send, form, fd, size, on_progress=on_progress)

    async def send_parts(
        self,
        parts: UploadParts,
        fd: int,
        size: int,
        *,
        sent: Mapping[int, str] | None = None,
        on_part: OnPart = objects.no_record,
        on_progress: OnSent = lambda sent: None,
    ) -> None:
        """See `objects.send_parts`."""
        await objects.send_parts(
            self.send, parts, fd, size, sent=sent, on_part=on_part, on_progress=on_progress
        )


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


async def _body(request: Outgoing, fd: int, on_sent: OnSent) -> AsyncGenerator[bytes, None]:
    """The body of a request, for the daemon's own client."""
    if request.head:
        yield request.head
    sent, length = 0, request.length
    while sent < length:
        chunk = await trio.to_thread.run_sync(
            os.pread, fd, min(CHUNK, length - sent), request.start + sent
        )
        if not chunk:
            raise Changed(f"the file to be sent ends after {sent} of {length} bytes")
        yield chunk
        sent += len(chunk)
        on_sent(sent)
    if request.tail:
        yield request.tail
