"""Values that both wires carry alike, decoded and normalised where they enter."""

from __future__ import annotations

import datetime
import functools
import logging
from typing import Any

import msgspec

from f7tfs.api.names import decoded, is_sound
from f7tfs.errors import Unreachable
from f7tfs.model import Identity, Kind, Listed, Stat

log = logging.getLogger("f7tfs.api")

_EPOCH = datetime.datetime(1970, 1, 1)
_SECOND = datetime.timedelta(seconds=1)

_KINDS = {kind.value: kind for kind in Kind}


class Entry(msgspec.Struct):
    """An item of ls. All strings, says FACTS; numbers and nulls are tolerated."""

    name: str = ""
    type: str = ""
    size: str | int | None = "0"
    permissions: str | None = ""
    last_modified: str | None = ""
    link_target: str | None = ""
    user: str | int | None = ""
    group: str | int | None = ""


def document(body: bytes) -> dict[str, Any]:
    """The JSON object of a reply. Raises Unreachable for anything else: a portal, a proxy."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise Unreachable("the reply is not FirecREST's (no JSON object)")
    return found


def listed(entry: Entry, name: str) -> Listed | None:
    """One entry under its still escaped `name`; None, logged, for what cannot be a name."""
    kind = _KINDS.get(entry.type[:1])
    meant, ambiguous = decoded(name)
    if kind is None:
        return None
    if not is_sound(meant):
        warn_of(name)
        return None
    permissions, has_acl = mode_of(entry.permissions or "")
    target = None
    if kind is Kind.SYMLINK:
        target = decoded(entry.link_target or "")[0]
    return Listed(
        name=meant,
        kind=kind,
        permissions=permissions,
        size=integer(entry.size, 0),
        local_mtime=_wall_clock(entry.last_modified or ""),
        user=str(entry.user or ""),
        group=str(entry.group or ""),
        target=target,
        has_acl=has_acl,
        ambiguous=ambiguous,
        literal=name if ambiguous else "",
    )


@functools.lru_cache(maxsize=1024)
def warn_of(name: str) -> None:
    """Once per name."""
    log.warning("the server lists %r, which cannot be a name: left out", name)


_EXECUTE = {"s": (1, 1), "S": (1, 0), "t": (1, 1), "T": (1, 0), "x": (0, 1)}


@functools.lru_cache(maxsize=256)
def mode_of(text: str) -> tuple[int, bool]:
    """The low 12 bits of st_mode from "rwxr-sr-t", and whether a "+" tells of an ACL."""
    bits = specials = 0
    for group in range(3):
        triplet = text[3 * group : 3 * group + 3].ljust(3, "-")
        special, execute = _EXECUTE.get(triplet[2], (0, 0))
        bits = bits << 3 | (triplet[0] == "r") << 2 | (triplet[1] == "w") << 1 | execute
        specials = specials << 1 | special
    return specials << 9 | bits, text[9:10] == "+"


@functools.lru_cache(maxsize=4096)
def _wall_clock(text: str) -> int:
    """Seconds of "2026-11-23T16:34:02", read as if it were UTC; 0 for what is no time."""
    try:
        return (datetime.datetime.fromisoformat(text).replace(tzinfo=None) - _EPOCH) // _SECOND
    except ValueError:
        return 0


def integer(value: object, default: int) -> int:
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError):
        return default


def stat_of(output: Any) -> Stat:
    try:
        return msgspec.convert(output, Stat, strict=False)
    except msgspec.ValidationError:
        raise Unreachable("the reply to stat is not FirecREST's") from None


def identity_of(output: Any) -> Identity:
    """From whoami?groups=true. A server that does not know `groups` gives the name alone; the ids
    are then -1."""
    if isinstance(output, str):
        return Identity(user=output, uid=-1, group="", gid=-1, groups={})
    if not isinstance(output, dict):
        raise Unreachable("the reply to whoami is not FirecREST's")
    user, uid = _named_id(output.get("user"))
    group, gid = _named_id(output.get("group"))
    others = output.get("groups")
    groups = dict(_named_id(item) for item in others) if isinstance(others, list) else {}
    return Identity(user=user, uid=uid, group=group, gid=gid, groups={group: gid} | groups)


def _named_id(item: Any) -> tuple[str, int]:
    if not isinstance(item, dict):
        return "", -1
    return str(item.get("name") or ""), integer(item.get("id"), -1)
