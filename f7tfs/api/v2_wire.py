"""v2 replies, decoded and normalised where they enter (v2 FACTS §1, §3, §4, §12).

Spellings drifted from 2.1 to 2.6: snake and camel, keys at the top level or below, numbers and
strings. They end here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from f7tfs.api.port import Capabilities, SystemStatus
from f7tfs.api.wire import Entry, document, identity_of, integer
from f7tfs.errors import Unreachable, Unsupported
from f7tfs.model import Identity

DEFAULT_FILE_LIMIT = 5 << 20
MOST_CALLS = 6  # sshd's MaxSessions is 10 per user, and some calls take several (§2)
S3 = "s3"


class _CamelEntry(Entry, rename="camel"):
    link_target: str | None = ""
    last_modified: str | None = ""


class _Listing(msgspec.Struct):
    output: list[_CamelEntry] | None = None


_listing_decoder = msgspec.json.Decoder(_Listing)


def entries(body: bytes) -> list[_CamelEntry]:
    """The entries of an ls reply: {"output": [{"name", "type", "size": "12", …}]}."""
    try:
        found = _listing_decoder.decode(body).output
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    if found is None:
        raise Unreachable("the listing is not FirecREST's")
    return found


def field(record: Any, *names: str) -> Any:
    """The first of `names` that a mapping holds, in camelCase as given or in snake_case; None."""
    if isinstance(record, dict):
        for name in names:
            for spelling in (name, _snake(name)):
                if record.get(spelling) is not None:
                    return record[spelling]
    return None


def _snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)


def exact(answer: dict[str, Any], what: str) -> bytes:
    """The content in a reply to head or tail. The server replaces what is not UTF-8 (§4), so one
    U+FFFD makes it a guess: Unsupported."""
    content = field(answer.get("output"), "content")
    if content is None:
        content = ""  # of an empty file, in some versions
    if not isinstance(content, str):
        raise Unreachable(f"{what}: the reply is not FirecREST's")
    if "\ufffd" in content:
        raise Unsupported(f"{what}: not text")
    return content.encode("utf-8", "surrogatepass")


def user_of(answer: dict[str, Any]) -> Identity:
    """From userinfo; 2.6 drops the primary `group` and marks it among `groups` (§11)."""
    groups = answer.get("groups")
    groups = [row for row in groups if isinstance(row, dict)] if isinstance(groups, list) else []
    group = answer.get("group")
    if not isinstance(group, dict):
        chosen = [row for row in groups if row.get("default") is True] or groups
        group = chosen[0] if chosen else {}
    if not isinstance(answer.get("user"), dict):
        raise Unreachable("the reply to userinfo is not FirecREST's")
    return identity_of({"user": answer["user"], "group": group, "groups": groups})


class System(msgspec.Struct, frozen=True):
    """What /status/systems tells of one system. `transfer_method`: "s3", "streamer", "wormhole",
    "" where there is none, None where the version does not tell. `file_systems`: their paths, the
    one with the default working directory first. `wants_account`: transfers are charged."""

    name: str
    healthy: bool = True
    troubles: tuple[str, ...] = ()
    file_limit: int = DEFAULT_FILE_LIMIT
    command_timeout: float = 5.0
    link_lifetime: float = 604800.0
    transfer_method: str | None = None
    wants_account: bool = False
    directives: tuple[str, ...] = ()  # lines of #SBATCH for jobs that move bytes
    file_systems: tuple[str, ...] = ()


def systems_of(body: bytes) -> list[System]:
    """From {"systems": […]}. Raises Unreachable for anything else."""
    rows = document(body).get("systems")
    if not isinstance(rows, list):
        raise Unreachable("the reply is not FirecREST v2's (no systems)")
    return [_system(row) for row in rows if isinstance(row, dict) and row.get("name")]


def _system(row: dict[str, Any]) -> System:
    operation = field(row, "dataOperation")
    told = operation if isinstance(operation, dict) else row
    transfer = field(told, "dataTransfer")
    method = None
    if isinstance(operation, dict):
        method = str(field(transfer, "serviceType", "transferMethod") or "").lower()
    directives = field(told, "datatransferJobsDirectives") or []
    lines = tuple(map(str, directives)) if isinstance(directives, list) else ()
    timeouts = field(row.get("ssh"), "timeout")
    troubles = tuple(_troubles(row))
    return System(
        name=str(row["name"]),
        healthy=not any(name in {"ssh", "scheduler", "filesystem"} for name, _ in troubles),
        troubles=tuple(text for _, text in troubles),
        file_limit=_positive(field(told, "maxOpsFileSize"), DEFAULT_FILE_LIMIT),
        command_timeout=float(_positive(field(timeouts, "commandExecution"), 5)),
        link_lifetime=float(_positive(field(transfer, "ttl"), 604800)),
        transfer_method=method,
        wants_account=any("{account}" in line for line in lines),
        directives=lines,
        file_systems=tuple(_file_systems(row)),
    )


def _troubles(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind of service, sentence) of what the prober found ill; old and new names of the kinds."""
    services = field(row, "servicesHealth")
    for service in services if isinstance(services, list) else ():
        if not isinstance(service, dict) or service.get("healthy") is not False:
            continue
        kind = str(field(service, "serviceType") or "service").lower()
        kind = {"filesystems": "filesystem", "external_storage": S3}.get(kind, kind)
        place = f" {service['path']}" if service.get("path") else ""
        message = str(service.get("message") or "unhealthy").splitlines()[0]
        yield kind, f"{kind}{place}: {message}"


def _file_systems(row: dict[str, Any]) -> list[str]:
    rows = field(row, "fileSystems")
    rows = [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []
    rows.sort(key=lambda one: field(one, "defaultWorkDir") is not True)
    return [str(one["path"]) for one in rows if one.get("path")]


def _positive(value: object, default: int) -> int:
    found = integer(value, default)
    return found if found > 0 else default


def status_of(system: System) -> SystemStatus:
    """For people: the file systems, and what is ill."""
    parts = [", ".join(system.file_systems), *system.troubles]
    return SystemStatus(system.name, system.healthy, "; ".join(part for part in parts if part))


def capabilities_of(system: System, version: str, parallel_calls: int) -> Capabilities:
    """The answer to a download is base64 that must stay below the limit, an upload may reach it
    (§2): 3,932,157 and 5,242,880 bytes for 5 MiB."""
    return Capabilities(
        dialect="v2",
        version=version,
        direct_download_limit=3 * ((system.file_limit - 1) // 4),
        direct_upload_limit=system.file_limit,
        staged_upload_limit=None,
        command_timeout=system.command_timeout,
        link_lifetime=system.link_lifetime,
        parallel_calls=min(parallel_calls, MOST_CALLS),
        renames=False,
        joins=True,
        lists_trees=False,
    )


class TransferJob(msgspec.Struct, frozen=True):
    """What every transfer call starts."""

    job_id: str
    output_log: str = ""
    error_log: str = ""


def transfer_job(answer: dict[str, Any]) -> TransferJob | None:
    """The job that a transfer call started; None where the answer names none. Ids are numbers
    before 2.5 (§12)."""
    job = field(answer, "transferJob")
    job_id = field(job, "jobId")
    if isinstance(job_id, bool) or not isinstance(job_id, int | str) or not str(job_id).isalnum():
        return None
    logs = field(job, "logs")
    return TransferJob(
        job_id=str(job_id),
        output_log=str(field(logs, "outputLog") or ""),
        error_log=str(field(logs, "errorLog") or ""),
    )


def directives(answer: dict[str, Any]) -> dict[str, Any]:
    """Where a transfer's links stand: below a key since 2.4, at the top level before (§12)."""
    found = field(answer, "transferDirectives")
    return found if isinstance(found, dict) else answer


def is_url(value: object) -> bool:
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))
