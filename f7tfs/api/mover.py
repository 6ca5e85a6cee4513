"""Bulk data by a process of its own (PERFORMANCE "Both at once"): the daemon's interpreter only
serves the kernel, and the bytes move between files and the object store at the speed of the link.

Started on demand, started again when it died, ended with the daemon. It is given a presigned
link or a form, a range and a descriptor; it never sees the bearer token. See `mover_worker` for its
words.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
import trio

from f7tfs.api.replies import Reply
from f7tfs.api.store import FetchResult, OnSent, Outgoing, refusal
from f7tfs.errors import (
    Changed,
    F7tfsError,
    NoLocalSpace,
    ServerError,
    Stalled,
    Unreachable,
    Unsupported,
)

log = logging.getLogger("f7tfs.api")
MESSAGE = 1 << 17  # bytes; the longest words are a form with its fields, and an error document


class _Word(msgspec.Struct):
    """What the worker says of an order."""

    id: int
    at: int | None = None
    done: bool = False
    error: str | None = None
    status: int | None = None
    text: str = ""
    total: int | None = None
    etag: str = ""


class _Order:
    """A range or a body under way, as its asker sees it."""

    def __init__(self, start: int, on_progress: Callable[[int, int], None]) -> None:
        self.at = start
        self.on_progress = on_progress
        self.done = trio.Event()
        self.last: _Word | None = None  # None at the end: the worker died


class _Process:
    """One running worker."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # its end is awaited in `listen`
                [sys.executable, "-m", "f7tfs.api.mover_worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.channel = trio.socket.from_stdlib_socket(ours)
        self.orders: dict[int, _Order] = {}
        self.turn = trio.Lock()
        self.is_alive = True
        self.has_spoken = False

    @property
    def pid(self) -> int:
        return self._process.pid

    async def listen(self) -> None:
        """Hear its words until it ends, by itself or with us."""
        try:
            while message := await self.channel.recv(MESSAGE):
                self._hear(msgspec.json.decode(message, type=_Word))
        except (OSError, msgspec.DecodeError) as error:
            log.debug("the data process: %s", error)
        finally:
            self.is_alive = False
            self.channel.close()
            for order in self.orders.values():
                order.done.set()
            self._process.kill()
            with trio.CancelScope(shield=True):
                code = await trio.to_thread.run_sync(self._process.wait)
            log.debug("the data process ended with %d", code)

    def _hear(self, word: _Word) -> None:
        self.has_spoken = True
        order = self.orders.get(word.id)
        if order is None:
            return
        if word.at is not None:
            start, order.at = order.at, word.at
            order.on_progress(start, word.at)
        if word.done:
            order.last = word
            order.done.set()


class Mover:
    """`stall_timeout`: seconds without a byte after which a transfer is given up."""

    def __init__(self, nursery: trio.Nursery, *, stall_timeout: float) -> None:
        self._nursery = nursery
        self._stall_timeout = stall_timeout
        self._process: _Process | None = None
        self._numbers = 0

    @property
    def pid(self) -> int | None:
        """Of the data process, while it runs."""
        return self._process.pid if self._process and self._process.is_alive else None

    def carries(self, link: str) -> bool:
        """Whether it can use this link: a proxy is left to httpx."""
        parts = urlsplit(link)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            return False
        proxies = urllib.request.getproxies()
        if not ({parts.scheme, "all"} & proxies.keys()):
            return True
        return bool(urllib.request.proxy_bypass(parts.hostname))

    def warm_up(self) -> None:
        """Start the process, so that the first bytes do not wait for it."""
        with contextlib.suppress(Unsupported):
            self._running()

    def _running(self) -> _Process:
        if self._process is None or not self._process.is_alive:
            try:
                self._process = _Process()
            except OSError as error:
                raise Unsupported(f"no data process: {error}") from error
            self._nursery.start_soon(self._process.listen)
        return self._process

    async def fetch(
        self, link: str, fd: int, start: int, end: int, on_arrival: Callable[[int, int], None]
    ) -> FetchResult:
        """Bytes [start, end) of a presigned link into the same place of the file `fd`, which is at
        least as long. `on_arrival` is told of each stretch that is in the file.

        Raises LinkExpired, Unreachable (also when the process died: what arrived is right),
        Stalled, ServerError, NoLocalSpace; Unsupported where the store knows no ranges.
        """
        order = _Order(start, on_arrival)
        last = await self._carry(order, fd, {"link": link, "start": start, "end": end})
        if last.status is not None:
            raise refusal(last.status, last.text)
        reached = end if last.total is None else min(end, last.total)
        if order.at < reached:
            on_arrival(order.at, reached)
        return FetchResult(last.total, last.etag, max(0, reached - start))

    async def send(self, request: Outgoing, fd: int, on_sent: OnSent) -> Reply:
        """A request with bytes of the file `fd`; the answer, whatever it says, with its ETag and
        the beginning of its body.

        Raises Unreachable (also when the process died), Stalled, Changed when the file is shorter
        than it should be, OSError where it cannot be read.
        """
        order = _Order(0, lambda _, at: on_sent(at))
        last = await self._carry(order, fd, {"send": request})
        assert last.status is not None
        headers = {"etag": last.etag} if last.etag else {}
        return Reply(last.status, headers, last.text.encode())

    async def _carry(self, order: _Order, fd: int, words: dict[str, object]) -> _Word:
        """Give an order, and wait for its last word. Who leaves ends it."""
        process = self._running()
        self._numbers += 1
        number = self._numbers
        process.orders[number] = order
        try:
            with contextlib.suppress(Unreachable):  # it is dead: `done` says so
                await _say(process, {"id": number, "timeout": self._stall_timeout, **words}, fd)
            await order.done.wait()
        except trio.Cancelled:
            with trio.move_on_after(1, shield=True), contextlib.suppress(F7tfsError):
                await _say(process, {"cancel": number})
                # Its thread must not use the file after we are gone.
                await order.done.wait()
            raise
        finally:
            del process.orders[number]
        last = order.last
        if last is None and not process.has_spoken:
            raise Unsupported("the data process cannot run")
        if last is None:
            raise Unreachable("the data process ended")
        if last.error is not None:
            raise _failure(last)
        return last


async def _say(process: _Process, words: dict[str, object], fd: int | None = None) -> None:
    message = msgspec.json.encode(words)
    if len(message) > MESSAGE:
        raise Unsupported("a form that is too long for the data process")
    ancillary = []
    if fd is not None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]
    async with process.turn:
        try:
            await process.channel.sendmsg([message], ancillary)
        except OSError as error:
            raise Unreachable(f"the data process does not listen: {error}") from error


def _failure(word: _Word) -> F7tfsError | OSError:
    if word.error == "stalled":
        return Stalled("the object store: no byte moved for too long")
    if word.error == "space":
        return NoLocalSpace("the disk that holds the cache is full")
    if word.error == "range":
        return Unsupported(word.text)
    if word.error == "changed":
        return Changed(word.text)
    if word.error == "unreadable":
        return OSError(errno.EIO, word.text)
    if word.error in {"lost", "short"}:
        return Unreachable(f"the object store: {word.text}")
    return ServerError(f"the data process: {word.error} {word.text}")
