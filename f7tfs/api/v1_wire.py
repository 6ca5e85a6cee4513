"""v1 replies, decoded and normalised where they enter (v1 FACTS §4, §6, §7, §10)."""

from __future__ import annotations

import datetime
import functools
import logging
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from f7tfs.api.port import Capabilities, Phase, Progress, SystemStatus, UploadForm
from f7tfs.api.tasks import Task
from f7tfs.api.v1_names import decoded, is_sound
from f7tfs.errors import Unreachable
from f7tfs.model import Identity, Kind, Listed, Stat

log = logging.getLogger("f7tfs.api")

MiB = 1 << 20
DEFAULT_FILE_LIMIT_MB = 5
ENVELOPE = 64 * 1024  # bytes taken off the body limit for the multipart frame
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


class _Listing(msgspec.Struct):
    """Empty directories and devices leave bare strings between the entries."""

    output: list[Entry | str | None]


_listing_decoder = msgspec.json.Decoder(_Listing)


def document(body: bytes) -> dict[str, Any]:
    """The JSON object of a reply. Raises Unreachable for anything else: a portal, a proxy."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise Unreachable("the reply is not FirecREST's (no JSON object)")
    return found


def entries(body: bytes) -> list[Entry]:
    """The entries of an ls reply, without the bare strings."""
    try:
        output = _listing_decoder.decode(body).output
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unreachable("the listing is not FirecREST's") from None
    return [item for item in output if isinstance(item, Entry)]


def listed(entry: Entry, name: str) -> Listed | None:
    """One entry under its still escaped `name`; None, logged, for what cannot be a name."""
    kind = _KINDS.get(entry.type[:1])
    meant, ambiguous = decoded(name)
    if kind is None:
        return None
    if not is_sound(meant):
        _warn_of(name)
        return None
    permissions, has_acl = mode_of(entry.permissions or "")
    target = None
    if kind is Kind.SYMLINK:
        target = decoded(entry.link_target or "")[0]
    return Listed(
        name=meant,
        kind=kind,
        permissions=permissions,
        size=_integer(entry.size, 0),
        local_mtime=_wall_clock(entry.last_modified or ""),
        user=str(entry.user or ""),
        group=str(entry.group or ""),
        target=target,
        has_acl=has_acl,
        ambiguous=ambiguous,
    )


def tree(found: list[Entry], root: str) -> Iterator[tuple[str, Listed]]:
    """The entries of a recursive listing of `root`, each with its directory relative to it."""
    prefix = root.rstrip("/") + "/"
    for entry in found:
        directory, _, name = entry.name.removeprefix(prefix).rpartition("/")
        parts = [decoded(part)[0] for part in directory.split("/")] if directory else []
        if not all(is_sound(part) for part in parts):
            _warn_of(entry.name)
            continue
        if item := listed(entry, name):
            yield "/".join(parts), item


@functools.lru_cache(maxsize=1024)
def _warn_of(name: str) -> None:
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


def _integer(value: object, default: int) -> int:
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
    return str(item.get("name") or ""), _integer(item.get("id"), -1)


def systems_of(out: Any) -> list[SystemStatus]:
    rows = out if isinstance(out, list) else []
    return [
        SystemStatus(
            name=str(row["system"]),
            available=row.get("status") == "available",
            description=str(row.get("description") or ""),
        )
        for row in rows
        if isinstance(row, dict) and "system" in row
    ]


class Parameters(msgspec.Struct, frozen=True):
    """What /status/parameters tells; every part may be missing. `systems`: None where untold."""

    version: str = ""
    file_limit: int = DEFAULT_FILE_LIMIT_MB * MiB
    command_timeout: float = 5.0
    link_lifetime: float = 604800.0
    staged_limit: int | None = None
    systems: tuple[str, ...] | None = None


def parameters_of(out: Any) -> Parameters:
    values: dict[str, Any] = {}
    for group in out.values() if isinstance(out, dict) else ():
        for row in group if isinstance(group, list) else ():
            if isinstance(row, dict) and isinstance(row.get("name"), str):
                values[row["name"]] = row.get("value")
    staged = _number(values.get("STORAGE_MAX_FILE_SIZE"), 0)
    mounted = values.get("FILESYSTEMS")
    systems = None
    if isinstance(mounted, list):
        systems = tuple(str(row["system"]) for row in mounted if _names_system(row))
    limit = _number(values.get("UTILITIES_MAX_FILE_SIZE"), DEFAULT_FILE_LIMIT_MB)
    return Parameters(
        version=str(values.get("FIRECREST_VERSION") or ""),
        file_limit=int(limit * MiB),
        command_timeout=_number(values.get("UTILITIES_TIMEOUT"), 5),
        link_lifetime=_number(values.get("STORAGE_TEMPURL_EXP_TIME"), 604800),
        staged_limit=int(staged * MiB) or None,
        systems=systems or None,
    )


def _names_system(row: Any) -> bool:
    return isinstance(row, dict) and "system" in row


def _number(value: object, default: float) -> float:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return default
    return found if found > 0 else default


def capabilities_of(told: Parameters, parallel_calls: int) -> Capabilities:
    """download sends base64 that must stay below the limit (FACTS §4): 3,932,157 for 5 MiB."""
    return Capabilities(
        dialect="v1",
        version=told.version,
        direct_download_limit=3 * ((told.file_limit - 1) // 4),
        direct_upload_limit=max(0, told.file_limit - ENVELOPE),
        staged_upload_limit=told.staged_limit,
        command_timeout=told.command_timeout,
        link_lifetime=told.link_lifetime,
        parallel_calls=parallel_calls,
    )


_PHASES = {
    "111": Phase.READY,
    "112": Phase.MOVING,
    "113": Phase.MOVING,
    "114": Phase.DONE,
    "115": Phase.FALTERING,
    "117": Phase.READY,
    "118": Phase.FAILED,
    "200": Phase.DONE,
    "300": Phase.WITHDRAWN,
    "301": Phase.WITHDRAWN,
    "302": Phase.WITHDRAWN,
}


def progress_of(task: Task) -> Progress:
    """A transfer's state in the words of both dialects. READY without what makes it so is QUEUED
    (upload) or FAILED (download): the states come in that order."""
    data = task.data if isinstance(task.data, dict) else {}
    phase = _PHASES.get(task.status)
    if phase is None:
        phase = Phase.FAILED if task.status[:1] in {"4", "5"} else Phase.QUEUED
    path = data.get("target") or data.get("source")
    link, form, error = None, None, None
    if task.status == "117":
        url = task.data if isinstance(task.data, str) else data.get("url")
        if isinstance(url, str) and _is_url(url):
            link = url
        else:
            phase, error = Phase.FAILED, "the server gave no link"
    elif task.status == "111":
        form = upload_form(data.get("msg"))
        phase = phase if form else Phase.QUEUED
    if phase in {Phase.FAILED, Phase.FALTERING}:
        error = error or task.text
    return Progress(
        phase=phase,
        raw=task.status,
        link=link,
        form=form,
        error=error,
        path=path if isinstance(path, str) and path.startswith("/") else None,
    )


def upload_form(message: Any) -> UploadForm | None:
    """The form out of `msg.parameters` (S3 and Swift alike); its curl command is never looked at.
    `files` names the local file; Swift appends its basename to the object's name."""
    parameters = message.get("parameters") if isinstance(message, dict) else None
    if not isinstance(parameters, dict) or not _is_url(str(parameters.get("url", ""))):
        return None
    return UploadForm(
        method=str(parameters.get("method") or "POST"),
        url=str(parameters["url"]),
        fields=_pairs(parameters.get("data")),
        headers=_pairs(parameters.get("headers")),
        params=_pairs(parameters.get("params")),
        file_name=posixpath.basename(str(parameters.get("files") or "")) or "file",
    )


def _pairs(mapping: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(mapping, dict):
        return ()
    return tuple((str(name), str(value)) for name, value in mapping.items())


def _is_url(text: str) -> bool:
    return re.match(r"https?://", text, re.IGNORECASE) is not None
