"""Answers of the API as values, and what a dialect may know of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """A whole answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Reply({self.status}, {len(self.body)} bytes)"


class Verdict(enum.Enum):
    """What a dialect knows of an answer that its status alone does not tell."""

    FINAL = "final"  # an answer like any other, whatever gateways mean by this status
    PASSING = "passing"  # it may have been executed: repeated if that changes nothing
    NOT_EXECUTED = "not executed"  # for certain: repeated, also what changes something


Judge = Callable[[Reply], Verdict | None]
"""None: no opinion."""


def words_of(reply: Reply) -> str:
    """The sentence in an error reply, else its status."""
    try:
        found: Any = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    if isinstance(found, dict):
        for field in ("error", "description", "message"):
            if isinstance(found.get(field), str) and found[field]:
                return str(found[field])
    return f"status {reply.status}"
