"""v1 replies, decoded and normalised where they enter (v1 FACTS §4, §6, §7, §10)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from f7tfs.api.names import decoded, is_sound
from f7tfs.api.port import Capabilities, Phase, Progress, SystemStatus, UploadForm
from f7tfs.api.tasks import Task
from f7tfs.api.wire import Entry as Entry
from f7tfs.api.wire import document as document
from f7tfs.api.wire import identity_of as identity_of
from f7tfs.api.wire import listed as listed
from f7tfs.api.wire import mode_of as mode_of
from f7tfs.api.wire import stat_of as stat_of
from f7tfs.api.wire import warn_of
from f7tfs.errors import Unreachable
from f7tfs.model import Listed

MiB = 1 << 20
DEFAULT_FILE_LIMIT_MB = 5
ENVELOPE = 64 * 1024  # bytes taken off the body limit for the multipart frame


class _Listing(msgspec.Struct):
    """Empty directories and devices leave bare strings between the entries."""

    output: list[Entry | str | None]


_listing_decoder = msgspec.json.Decoder(_Listing)


def entries(body: bytes) -> list[Entry]:
    """The entries of an ls reply, without the bare strings."""
    try:
        output = _listing_decoder.decode(body).output
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unreachable("the listing is not FirecREST's") from None
    return [item for item in output if isinstance(item, Entry)]


def tree(found: list[Entry], root: str) -> Iterator[tuple[str, Listed]]:
    """The entries of a recursive listing of `root`, each with its directory relative to it."""
    prefix = root.rstrip("/") + "/"
    for entry in found:
        directory, _, name = entry.name.removeprefix(prefix).rpartition("/")
        parts = [decoded(part)[0] for part in directory.split("/")] if directory else []
        if not all(is_sound(part) for part in parts):
            warn_of(entry.name)
            continue
        if item := listed(entry, name):
            yield "/".join(parts), item


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
