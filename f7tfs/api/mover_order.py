"""What ranges and bodies have in common in the data process: a thread, a connection, an outcome."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

PIECE = 1 << 20  # bytes that are moved at once
CONNECT_TIMEOUT = 10.0
ERROR_TEXT = 2000  # bytes of an error document: its code stands at the beginning
IDLE = 8  # warm connections kept per host
_IN_TARGETS = "/%:@!$&'()*+,;=?-._~[]"  # what stays as it is; signatures depend on it


class Outcome(dict[str, Any]):
    """The last word of an order: `status`, `text` and `etag` of an answer, `total` bytes of the
    object that a range is of (or null); or `error` with its kind: "lost", "stalled", "short",
    "range", "space", "changed", "unreadable"."""


class Refused(Exception):
    def __init__(self, kind: str, words: str = "") -> None:
        super().__init__(words)
        self.kind = kind


class Connections:
    """Warm connections by (scheme, host)."""

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
                if connection.sock is not None and not _has_ended(connection.sock):
                    connection.sock.settimeout(timeout)
                    return connection
                connection.close()
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


def _has_ended(sock: socket.socket) -> bool:
    """Nothing is under way on it, so what can be read is its end."""
    readable = select.poll()
    readable.register(sock, select.POLLIN)
    return bool(readable.poll(0))


def target_of(link: str) -> str:
    """What stands in the request line. A faulty link must not end up in an exception's text."""
    parts = urlsplit(link)
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return quote(target, safe=_IN_TARGETS)


class Order:
    """One range or body on its way, in a thread of its own. `say` tells the daemon."""

    def __init__(
        self,
        say: Callable[[dict[str, Any]], None],
        connections: Connections,
        words: dict[str, Any],
        fd: int,
    ) -> None:
        self._say = say
        self._connections = connections
        self.id: int = words["id"]
        self._timeout: float = words["timeout"]
        self._fd = fd
        self._sock: socket.socket | None = None
        self._is_cancelled = False

    def run(self) -> None:
        try:
            outcome = self._carry()
        except Refused as error:
            outcome = Outcome(error=error.kind, text=str(error))
        except TimeoutError:
            outcome = Outcome(error="stalled")
        except (OSError, http.client.HTTPException) as error:
            is_full = getattr(error, "errno", 0) in {errno.ENOSPC, errno.EDQUOT}
            kind = "space" if is_full else "lost"
            outcome = Outcome(error=kind, text=(str(error) or type(error).__name__)[:ERROR_TEXT])
        except Exception as error:  # a fault of ours must not leave the daemon waiting
            outcome = Outcome(error="lost", text=f"the data process: {type(error).__name__}")
        finally:
            os.close(self._fd)
        self._say({"id": self.id, "done": True, **outcome})

    def cancel(self) -> None:
        """Nobody waits for it any more: end it, also where it waits for the other side."""
        self._is_cancelled = True
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                # Not TLS's own shutdown: that would go on in plain text.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _carry(self) -> Outcome:
        raise NotImplementedError

    def _connected(self, link: str) -> tuple[http.client.HTTPConnection, bool]:
        """A connection to the host of a link, and whether it is a new one."""
        parts = urlsplit(link)
        connection = self._connections.take(parts.scheme, parts.netloc, self._timeout)
        is_new = connection.sock is None
        try:
            if is_new:
                connection.timeout = min(CONNECT_TIMEOUT, self._timeout)
                connection.connect()
                connection.sock.settimeout(self._timeout)
            self._sock = connection.sock
            if self._is_cancelled:
                raise Refused("lost", "cancelled")
        except BaseException:
            connection.close()
            raise
        return connection, is_new

    def _part(self, link: str, connection: http.client.HTTPConnection, *, clean: bool) -> None:
        """Done with a connection; `clean`: it can carry another request."""
        self._sock = None
        if clean and not self._is_cancelled:
            parts = urlsplit(link)
            self._connections.give_back(parts.scheme, parts.netloc, connection)
        else:
            connection.close()
