"""A range of a presigned link, into a file: inside the kernel where that can be
(docs/decisions/0010 has the figures)."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import re
import select
import socket
from typing import Any
from urllib.parse import urljoin

from f7tfs.api.mover_order import ERROR_TEXT, PIECE, Order, Outcome, Refused, target_of

REDIRECTS = {301, 302, 303, 307, 308}
MOST_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Range(Order):
    """One range on its way."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        words = arguments[2]
        self._link: str = words["link"]
        self._at: int = words["start"]
        self._end: int = words["end"]

    def _carry(self) -> Outcome:
        link = self._link
        for _ in range(MOST_REDIRECTS):
            connection, reply = self._ask(link)
            asked, clean = link, False
            try:
                if reply.status in REDIRECTS and reply.getheader("location"):
                    link = urljoin(link, reply.getheader("location", ""))
                    continue
                if reply.status not in {200, 206}:
                    text = reply.read(ERROR_TEXT).decode(errors="replace")
                    return Outcome(status=reply.status, text=text)
                outcome = self._pour(connection, reply)
                clean = reply.isclosed() and not reply.will_close
                return outcome
            finally:
                self._part(asked, connection, clean=clean)
        raise Refused("lost", "too many redirects")

    def _ask(self, link: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """GET the range. A warm connection that the other side closed meanwhile is replaced."""
        headers = {
            "Accept-Encoding": "identity",
            "Range": f"bytes={self._at}-{self._end - 1}",
            "User-Agent": "f7tfs",
        }
        while True:
            connection, is_new = self._connected(link)
            try:
                connection.request("GET", target_of(link), headers=headers)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_new or isinstance(error, TimeoutError) or self._is_cancelled:
                    raise

    def _pour(
        self, connection: http.client.HTTPConnection, reply: http.client.HTTPResponse
    ) -> Outcome:
        """The body into the file; a word now and then about how far it is."""
        total: int | None = reply.length
        if reply.status == 206:
            found = _CONTENT_RANGE.fullmatch((reply.getheader("content-range") or "").strip())
            if found is None or int(found[1]) != self._at:
                raise Refused("range", "the object store sent another range than was asked")
            total = None if found[3] == "*" else int(found[3])
            last = int(found[2]) + 1
        elif self._at:
            raise Refused("range", "the object store knows no ranges")
        else:
            last = self._end if total is None else total
        end = min(self._end, last)
        plain = reply.length is not None and not reply.chunked
        if plain and type(connection.sock) is socket.socket:
            self._splice(reply, connection.sock, end)
            if self._at == end == last:
                reply.length = 0  # nothing is left of the body: the connection stays usable
                reply.read()
        else:
            self._copy(reply, end)
        if self._at < end:
            raise Refused("short", f"the object store's answer ended at byte {self._at}")
        return Outcome(total=total, etag=reply.getheader("etag") or "")

    def _copy(self, reply: http.client.HTTPResponse, end: int) -> None:
        """Through memory: TLS, and bodies of unknown length."""
        with memoryview(bytearray(PIECE)) as buffer:
            while self._at < end and not self._is_cancelled:
                count = reply.readinto(buffer[: min(PIECE, end - self._at)])
                if count == 0:
                    return
                self._keep(buffer[:count])

    def _splice(self, reply: http.client.HTTPResponse, sock: socket.socket, end: int) -> None:
        """From the socket to the file inside the kernel: a third of the work of copying, and no
        page is mapped that a full disk could turn into SIGBUS."""
        buffered = len(reply.fp.peek(1))  # what came with the head
        self._keep(reply.fp.read(min(buffered, end - self._at)))
        timeout = sock.gettimeout() or 0.0
        readable = select.poll()
        readable.register(sock, select.POLLIN)
        source, sink = os.pipe2(os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # more than the user's limit of pipe memory
                fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, PIECE)
            said = self._at
            while self._at < end and not self._is_cancelled:
                try:
                    count = os.splice(sock.fileno(), sink, min(PIECE, end - self._at))
                except BlockingIOError:
                    if not readable.poll(timeout * 1000):
                        raise TimeoutError from None
                    continue
                if count == 0:
                    return
                while count:
                    moved = os.splice(source, self._fd, count, offset_dst=self._at)
                    count -= moved
                    self._at += moved
                if self._at - said >= PIECE and self._at < end:
                    said = self._at
                    self._say({"id": self.id, "at": said})
        finally:
            os.close(source)
            os.close(sink)

    def _keep(self, data: bytes | memoryview) -> None:
        while data:
            written = os.pwrite(self._fd, data, self._at)
            data = data[written:]
            self._at += written
        self._say({"id": self.id, "at": self._at})
