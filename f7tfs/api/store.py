"""What is said to the object store, and what its answers mean. No bearer.

Links and forms are secrets; they are in no log line, no exception text and no repr.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec

from f7tfs.api.replies import Reply
from f7tfs.errors import F7tfsError, LinkExpired, ServerError, TooLarge, Unreachable

_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_EXPIRED_CODES = {"AccessDenied", "ExpiredToken", "RequestExpired", "NoSuchKey", "NoSuchBucket"}


class FetchResult(msgspec.Struct, frozen=True):
    """`total_size` of the whole object in bytes, None where not told; `received` of this fetch."""

    total_size: int | None
    etag: str
    received: int


class Outgoing(msgspec.Struct, frozen=True):
    """A request whose body is `head`, `length` bytes of a file from `start` on, and `tail`."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    length: int
    start: int = 0
    head: bytes = b""
    tail: bytes = b""

    @property
    def size(self) -> int:
        """Of the whole body, in bytes."""
        return len(self.head) + self.length + len(self.tail)

    def __repr__(self) -> str:
        return f"Outgoing({self.method}, {self.size} bytes)"


OnSent = Callable[[int], None]
"""Gets the number of bytes of the file that were handed over so far."""

Sender = Callable[[Outgoing, int, OnSent], Awaitable[Reply]]
"""Sends a request with bytes of an open file, and gives the answer, whatever it says. Raises
Unreachable, Stalled; Changed when the file is shorter than it should be."""


def is_success(status: int) -> bool:
    return status in {200, 201, 204}


def code_of(text: str) -> str:
    """The word for what went wrong in an error document, "" where there is none."""
    found = _CODE.search(text)
    return found[1] if found else ""


def refusal(status: int, text: str) -> F7tfsError:
    """What an answer of the object store that is no success means."""
    code = code_of(text)
    said = f"the object store answered {status} {code}".rstrip()
    # Before the status: a store may answer 403 to a body that is longer than its form allows.
    if status == 413 or code == "EntityTooLarge":
        return TooLarge(said)
    if status in {401, 403, 404} or code in _EXPIRED_CODES:
        return LinkExpired(said)
    if status in {408, 429, 500, 502, 503, 504} or code in {"RequestTimeout", "SlowDown"}:
        return Unreachable(said)
    return ServerError(said)
