"""What a v1 error reply means (v1 FACTS §2).

Most failures are a 400 whose header was guessed by the server from words anywhere in the remote
command's stderr, file names included. So the text decides first, by where it ends or begins: the
system's own words stand there, and a file name cannot. Then the header, then the status.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from f7tfs.api.replies import Reply
from f7tfs.api.strerror import kind_by_end, kind_by_phrase, without_farewell
from f7tfs.errors import (
    CommandTimeout,
    Exists,
    F7tfsError,
    InvalidArgument,
    IsADirectory,
    NameNotSupported,
    NotADirectory,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    ServerError,
    Stalled,
    TooLarge,
    Unauthorized,
    UnknownSystem,
    Unreachable,
    Unsupported,
)


class PoisonedListing(ServerError):
    """`text` is a listing in which the server saw an error message (v1_poisoned)."""

    def __init__(self, what: str, text: str) -> None:
        super().__init__(f"{what}: the server takes a name in the listing for an error")
        self.text = text


class SpeaksV2(ServerError):
    """The reply is in the words of FirecREST v2 (v2 FACTS §1)."""


# Words of the server itself, at the beginning or the end.
_PHRASES: list[tuple[re.Pattern[str], type[F7tfsError]]] = [
    (re.compile(r"^regular file, no read permission$"), PermissionDenied),
    (re.compile(r"^pattern not found$"), NotFound),
    (re.compile(r"^Machine does not exists?$"), UnknownSystem),
    (re.compile(r"^(.* )?[Hh]as invalid char$"), NameNotSupported),
    (re.compile(r"^Unsupported file format"), Unsupported),
    (re.compile(r"^'utf-8' codec can't decode"), Unsupported),
    (re.compile(r"^Command output exceeded buffer limit"), TooLarge),
]

_TIMED_OUT = re.compile(r"^Command has finished with timeout signal")
# Nothing ran: the login node was not reached.
_NO_CONNECTION = re.compile(
    r"^(\[Errno [^]]*\] )?(Connection refused|No route to host|Network is unreachable"
    r"|Unable to connect to port|Name or service not known|Temporary failure in name resolution"
    r"|Machine (is )?not available|timed out$|Error reading SSH protocol banner)",
    re.IGNORECASE,
)
# It may have run: the connection ended under it.
_CUT_CONNECTION = re.compile(
    r"^(\[Errno [^]]*\] )?(Connection reset by peer|Broken pipe|Socket is closed"
    r"|SSH session not active|Channel closed|Connection timed out|EOF)",
    re.IGNORECASE,
)
_LOGIN_FAILED = re.compile(r"^Authentication failed")
# The stdout of ls, refused for the names in it: "total 0-rw-r--r-- 1 …".
_POISONED_LISTING = re.compile(r'^(?:"[^"]*":)?total \d+[-dlpscb]')

_HEADERS: dict[str, type[F7tfsError]] = {
    "x-permission-denied": PermissionDenied,
    "x-not-found": NotFound,
    "x-exists": Exists,
    "x-not-a-directory": NotADirectory,
    "x-a-directory": IsADirectory,
    "x-invalid-path": NotFound,
    "x-size-limit": TooLarge,
    "x-invalid-mode": InvalidArgument,
    "x-invalid-owner": InvalidArgument,
    "x-invalid-group": InvalidArgument,
    "x-machine-does-not-exist": UnknownSystem,
    "x-machine-does-not-exists": UnknownSystem,
    "x-machine-not-available": Unreachable,
}
_STATUSES: dict[int, type[F7tfsError]] = {
    401: Unauthorized,
    403: Unauthorized,
    413: TooLarge,
}


def error_of(reply: Reply, what: str, *, changes: bool) -> F7tfsError:
    """The exception for an error reply to `what` ("stat /a/b"). `changes`: the call changes
    something, so that a cut connection leaves its outcome unknown."""
    fields = _fields(reply)
    error, description = _text(fields, "error"), _text(fields, "description", "message")
    header = reply.headers.get("x-error", "")
    for text in (error, "" if header == "None" else header):
        if text and (found := error_of_text(text, what, changes=changes)):
            return found
    said = f"{what}: {error or description or f'status {reply.status}'}"
    if "errorType" in fields or "f7t-appversion" in reply.headers:
        return SpeaksV2(said)
    if "x-timeout" in reply.headers:
        return _timed_out(said, changes)
    for name, kind in _HEADERS.items():
        if name in reply.headers:
            return kind(said)
    if kind_of_status := _STATUSES.get(reply.status):
        return kind_of_status(said)
    if reply.status == 400 and not error and description.startswith("Failed to "):
        # compute's only words for an unreachable cluster (FACTS §1); every other refusal has more.
        return Unreachable(f"{said} (the service did not reach the cluster)")
    return ServerError(said)


def error_of_text(text: str, what: str, *, changes: bool) -> F7tfsError | None:
    """The exception for the stderr of a remote command, None where the text tells nothing."""
    text = without_farewell(text)
    said = f"{what}: {text}"
    if _POISONED_LISTING.match(text):
        return PoisonedListing(what, text)
    if _TIMED_OUT.match(text):
        return _timed_out(said, changes)
    if _NO_CONNECTION.match(text):
        return Unreachable(said)
    if _CUT_CONNECTION.match(text):
        return OutcomeUnknown(said) if changes else Unreachable(said)
    if _LOGIN_FAILED.match(text):
        # The user is unknown there, or the login node had too many logins at once: may heal.
        refused = Unauthorized(f"{said} (is the user known on the cluster?)")
        refused.transient = True
        return refused
    for pattern, kind in _PHRASES:
        if pattern.search(text):
            return kind(said)
    if found := kind_by_phrase(text) or kind_by_end(text):
        return found(said)
    return None


def _timed_out(said: str, changes: bool) -> F7tfsError:
    if changes:
        return CommandTimeout(said)
    return Stalled(f"{said} (the cluster took longer than the server allows)")


def _fields(reply: Reply) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(fields: dict[str, Any], *names: str) -> str:
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and value:
            return value
    return ""
