"""The bulk data process: moves ranges of presigned links into files, at the speed of the link.

Run by `mover.Mover` as `python -m f7tfs.api.mover_worker FD`, with a socket of whole messages
(SOCK_SEQPACKET) as descriptor FD; its end is the end of the process. It has no state, no bearer and
no event loop: a thread per range moves what its socket gets into the file inside the kernel
(docs/decisions/0010 has the figures).

    → {"id": 1, "link": …, "start": 0, "end": 8388608, "timeout": 60}    with the file's descriptor
    → {"cancel": 1}
    ← {"id": 0}                                      it runs
    ← {"id": 1, "at": 1048576}                       bytes up to here are in the file
    ← {"id": 1, "done": true, "status": 206, …}      the last word of a range; see `_Outcome`
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import re
import select
import signal
import socket
import ssl
import sys
import threading
from typing import Any
from urllib.parse import urljoin, urlsplit

PIECE = 1 << 20  # bytes between two words about progress
CONNECT_TIMEOUT = 10.0
REDIRECTS = {301, 302, 303, 307, 308}
MOST_REDIRECTS = 5
ERROR_TEXT = 2000  # bytes of an error document: its code stands at the beginning
IDLE = 8  # warm connections kept per host
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class _Outcome(dict[str, Any]):
    """`status` and `text` of a refusal; or `error` with its kind: "lost", "stalled", "short",
    "range", "space"; else `total` bytes of the object (or null) and its `etag`."""


class _Refused(Exception):
    def __init__(self, kind: str, words: str = "") -> None:
        super().__init__(words)
        self.kind = kind


class _Connections:
    """Warm connections by (scheme, host, port)."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._turn = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def take(self, scheme: str, host: str, timeout: float) -> http.client.HTTPConnection:
        """A warm connection, else a new one, not connected yet (`sock` is None)."""
        with self._turn:
            idle = self._idle.get((scheme, host))
            while idle:
                connection = idle.pop()
                if connection.sock is not None:
                    connection.sock.settimeout(timeout)
                    return connection
        if scheme == "https":
            return http.client.HTTPSConnection(host, timeout=timeout, context=self._context())
        return http.client.HTTPConnection(host, timeout=timeout)

    def give_back(self, scheme: str, host: str, connection: http.client.HTTPConnection) -> None:
        with self._turn:
            idle = self._idle.setdefault((scheme, host), [])
            if len(idle) < IDLE:
                idle.append(connection)
                return
        connection.close()

    def _context(self) -> ssl.SSLContext:
        with self._turn:
            if self._tls is None:
                # As httpx does, so that both ways trust the same.
                if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
                    self._tls = ssl.create_default_context()
                else:
                    import certifi

                    self._tls = ssl.create_default_context(cafile=certifi.where())
            return self._tls


class _Range:
    """One range on its way."""

    def __init__(self, worker: _Worker, order: dict[str, Any], fd: int) -> None:
        self._worker = worker
        self.id: int = order["id"]
        self._link: str = order["link"]
        self._at: int = order["start"]
        self._end: int = order["end"]
        self._timeout: float = order["timeout"]
        self._fd = fd
        self.is_cancelled = False

    def run(self) -> None:
        try:
            outcome = self._fetch()
        except _Refused as error:
            outcome = _Outcome(error=error.kind, text=str(error))
        except TimeoutError:
            outcome = _Outcome(error="stalled")
        except (OSError, http.client.HTTPException) as error:
            is_full = getattr(error, "errno", 0) in {errno.ENOSPC, errno.EDQUOT}
            kind = "space" if is_full else "lost"
            outcome = _Outcome(error=kind, text=(str(error) or type(error).__name__)[:ERROR_TEXT])
        except Exception as error:  # a fault of ours must not leave the daemon waiting
            outcome = _Outcome(error="lost", text=repr(error)[:ERROR_TEXT])
        finally:
            os.close(self._fd)
        self._worker.say({"id": self.id, "done": True, **outcome})
        self._worker.forget(self.id)

    def _fetch(self) -> _Outcome:
        link = self._link
        for _ in range(MOST_REDIRECTS):
            scheme, host = urlsplit(link).scheme, urlsplit(link).netloc
            connection, reply = self._ask(link)
            clean = False
            try:
                if reply.status in REDIRECTS and reply.getheader("location"):
                    link = urljoin(link, reply.getheader("location", ""))
                    continue
                if reply.status not in {200, 206}:
                    text = reply.read(ERROR_TEXT).decode(errors="replace")
                    return _Outcome(status=reply.status, text=text)
                outcome = self._pour(connection, reply)
                clean = reply.isclosed() and not reply.will_close
                return outcome
            finally:
                if clean:
                    self._worker.connections.give_back(scheme, host, connection)
                else:
                    connection.close()
        raise _Refused("lost", "too many redirects")

    def _ask(self, link: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """GET the range. A warm connection that the other side closed meanwhile is replaced."""
        parts = urlsplit(link)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        headers = {
            "Accept-Encoding": "identity",
            "Range": f"bytes={self._at}-{self._end - 1}",
            "User-Agent": "f7tfs",
        }
        while True:
            connection = self._worker.connections.take(parts.scheme, parts.netloc, self._timeout)
            is_new = connection.sock is None
            try:
                if is_new:
                    connection.timeout = min(CONNECT_TIMEOUT, self._timeout)
                    connection.connect()
                    connection.sock.settimeout(self._timeout)
                connection.request("GET", target, headers=headers)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_new or isinstance(error, TimeoutError):
                    raise

    def _pour(
        self, connection: http.client.HTTPConnection, reply: http.client.HTTPResponse
    ) -> _Outcome:
        """The body into the file; a word now and then about how far it is."""
        total: int | None = reply.length
        if reply.status == 206:
            found = _CONTENT_RANGE.fullmatch((reply.getheader("content-range") or "").strip())
            if found is None or int(found[1]) != self._at:
                raise _Refused("range", "the object store sent another range than was asked")
            total = None if found[3] == "*" else int(found[3])
            last = int(found[2]) + 1
        elif self._at:
            raise _Refused("range", "the object store knows no ranges")
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
            raise _Refused("short", f"the object store's answer ended at byte {self._at}")
        return _Outcome(total=total, etag=reply.getheader("etag") or "")

    def _copy(self, reply: http.client.HTTPResponse, end: int) -> None:
        """Through memory: TLS, and bodies of unknown length."""
        with memoryview(bytearray(PIECE)) as buffer:
            while self._at < end and not self.is_cancelled:
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
            while self._at < end and not self.is_cancelled:
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
                    self._worker.say({"id": self.id, "at": said})
        finally:
            os.close(source)
            os.close(sink)

    def _keep(self, data: bytes | memoryview) -> None:
        while data:
            written = os.pwrite(self._fd, data, self._at)
            data = data[written:]
            self._at += written
        self._worker.say({"id": self.id, "at": self._at})


class _Worker:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.connections = _Connections()
        self._ranges: dict[int, _Range] = {}

    def run(self) -> None:
        self.say({"id": 0})  # it runs
        while True:
            message, fds, _, _ = socket.recv_fds(self._channel, 1 << 17, 1)
            if not message:
                return
            order = json.loads(message)
            if "cancel" in order:
                known = self._ranges.get(order["cancel"])
                if known is not None:
                    known.is_cancelled = True
                continue
            made = _Range(self, order, fds[0])
            self._ranges[made.id] = made
            threading.Thread(target=made.run, daemon=True).start()

    def say(self, words: dict[str, Any]) -> None:
        """Told or dead: a range whose last word is lost would be waited for for ever."""
        try:
            self._channel.send(json.dumps(words).encode())
        except OSError:
            os._exit(1)

    def forget(self, number: int) -> None:
        self._ranges.pop(number, None)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the daemon
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        _Worker(channel).run()
    os._exit(0)  # threads may hang in a socket


if __name__ == "__main__":
    main()
