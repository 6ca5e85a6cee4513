"""A request with bytes of a file, to the object store (docs/decisions/0012 has the figures).

A store may answer before it has the whole body, to refuse it: whoever only sends would wait for
room, or lose the answer with the connection. So it is listened to all the while.
"""

from __future__ import annotations

import base64
import http.client
import io
import os
import select
import socket
import ssl
from typing import Any, NoReturn

from f7tfs.api.mover_order import ERROR_TEXT, PIECE, Order, Outcome, Refused, target_of

# Bytes that are read and sent at once, and how many the kernel may keep that it has not sent yet:
# they stay in the processor's cache.
CHUNK = 128 << 10
WORD = 4 << 20  # bytes between two words about progress


class Body(Order):
    """One request on its way."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        request = arguments[2]["send"]
        self._link: str = request["url"]
        self._method: str = request["method"]
        self._headers: list[tuple[str, str]] = request["headers"]
        self._head = base64.b64decode(request["head"])
        self._tail = base64.b64decode(request["tail"])
        self._start: int = request["start"]
        self._length: int = request["length"]
        self._heard = b""  # what the store said while it was still being sent to,
        self._is_answered = False  # and whether that is an answer
        self._buffer = memoryview(bytearray(CHUNK))
        self._unsent = self._buffer[:0]  # what the socket did not take yet

    def _carry(self) -> Outcome:
        connection, _ = self._connected(self._link)
        clean = False
        try:
            loss: OSError | None = None
            try:
                self._give(connection)
            except TimeoutError:
                raise
            except OSError as error:
                loss = error  # it stopped listening; perhaps it said why
            try:
                reply = self._answer(connection)
            except (OSError, http.client.HTTPException) as error:
                raise loss or error from None
            text = reply.read(ERROR_TEXT).decode(errors="replace")
            clean = reply.isclosed() and not reply.will_close and loss is None and not self._heard
            etag = reply.getheader("etag") or ""
            return Outcome(status=reply.status, text=text, etag=etag)
        finally:
            self._part(self._link, connection, clean=clean)

    def _give(self, connection: http.client.HTTPConnection) -> None:
        """The whole request, or as much of it as the store wants before it answers."""
        connection.putrequest(self._method, target_of(self._link), skip_accept_encoding=True)
        for name, value in self._headers:
            connection.putheader(name, value)
        length = len(self._head) + self._length + len(self._tail)
        connection.putheader("Content-Length", str(length))
        connection.putheader("Accept-Encoding", "identity")
        connection.putheader("User-Agent", "f7tfs")
        connection.endheaders(self._head or None)
        sock = connection.sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, CHUNK)
        sock.settimeout(0)
        self._pour(sock)
        sock.settimeout(self._timeout)
        if self._tail and not self._is_answered:
            sock.sendall(self._tail)

    def _pour(self, sock: socket.socket) -> None:
        """The file's bytes, until all are handed over or the store has begun to answer."""
        ready = select.poll()
        done = said = looked = 0
        while done < self._length:
            wanted = 0
            try:
                done += self._push(sock, self._start + done, min(CHUNK, self._length - done))
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except (BlockingIOError, ssl.SSLWantWriteError):
                wanted = select.POLLIN | select.POLLOUT
            if done - said >= WORD and done < self._length:
                said = done
                self._say({"id": self.id, "at": done})
            if not wanted and done - looked < PIECE:
                continue
            looked = done
            ready.register(sock, wanted or select.POLLIN)
            events = ready.poll(self._timeout * 1000 if wanted else 0)
            if wanted and not events:
                raise TimeoutError
            if any(event & ~select.POLLOUT for _, event in events) and self._listen(sock):
                return
        self._say({"id": self.id, "at": done})

    def _push(self, sock: socket.socket, offset: int, count: int) -> int:
        """Hand bytes of the file to the socket; how many it took. Not by sendfile(2): that is half
        the work here, but a store on the same machine then reads pages that no cache holds."""
        if not self._unsent:
            try:
                length = os.preadv(self._fd, [self._buffer[:count]], offset)
            except OSError:
                raise Refused("unreadable", "the file to be sent cannot be read") from None
            if length == 0:
                self._ended(offset)
            self._unsent = self._buffer[:length]
        sent = sock.send(self._unsent)  # TLS takes a record at a time
        self._unsent = self._unsent[sent:]
        return sent

    def _ended(self, offset: int) -> NoReturn:
        words = f"the file to be sent ends after {offset - self._start} of {self._length} bytes"
        raise Refused("changed", words)

    def _listen(self, sock: socket.socket) -> bool:
        """Hear what it says, and whether that is an answer: "100 Continue" and its like are none,
        nor is what TLS has to say for itself."""
        try:
            data = sock.recv(1 << 16)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        if not data:
            raise ConnectionResetError("the object store closed the connection")
        self._heard += data
        while self._heard[:7] == b"HTTP/1." and self._heard[9:10] == b"1":
            _, end, rest = self._heard.partition(b"\r\n\r\n")
            if not end:
                return False
            self._heard = rest
        self._is_answered = len(self._heard) >= 10
        return self._is_answered

    def _answer(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        connection.sock.settimeout(self._timeout)
        if self._heard:
            heard = self._heard

            def made(sock: socket.socket, *args: Any, **options: Any) -> http.client.HTTPResponse:
                return http.client.HTTPResponse(_Resumed(heard, sock), *args, **options)  # type: ignore[arg-type]

            connection.response_class = made  # type: ignore[assignment]
        return connection.getresponse()


class _Resumed(io.RawIOBase):
    """A socket to read from, some of whose bytes were read before; as far as http.client needs."""

    def __init__(self, heard: bytes, sock: socket.socket) -> None:
        self._heard = heard
        self._sock = sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._heard:
            return self._sock.recv_into(buffer)
        count = min(len(buffer), len(self._heard))
        buffer[:count], self._heard = self._heard[:count], self._heard[count:]
        return count
