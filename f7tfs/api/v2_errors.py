"""What a v2 error reply means (v2 FACTS §1, §2).

The server guesses the status from words anywhere in a command's stderr, file names included, and
answers 500 to what it does not know. So the end of the text decides first, then the status.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from f7tfs.api.replies import Reply, Verdict
from f7tfs.api.strerror import kind_by_end, kind_by_phrase
from f7tfs.errors import (
    CommandTimeout,
    F7tfsError,
    InvalidArgument,
    NotFound,
    NotPermitted,
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

_REMOTE = re.compile(
    r"Remote process failed with exit status:(-?\d+) and error message:(.*)", re.DOTALL
)
_SLURM = re.compile(
    r"Unexpected (?:Slurm|PBS) command response\. exit_status:(-?\d+) std_err:(.*)", re.DOTALL
)
SCHEDULER_FAILED = "Error executing Slurm command."  # also for a login node that is down (§1)

# An exception that nobody caught, printed as a tuple: nothing is known of what had been done.
_UNHANDLED = re.compile(r"\(.*\)", re.DOTALL)
# The login node refused: no command ran.
_NOT_CONNECTED = re.compile(r"\((?:111|113|101|-2|-3), |Unable to open a new SSH channel")
# The connection ended, perhaps under a command.
_CUT_OFF = re.compile(r"\((?:32|103|104|110), ")
# The command was cut by its time, or was never read to its end (§2).
_TIMED_OUT = re.compile(
    r"Command execution timeout limit exceeded|\('Channel not open for sending',?\)"
)
_NO_KEY = re.compile(r"\('No SSH credentials found for user")
_OUTSIDE = re.compile(r"does not match any of the defined filesystem paths|not an absolute path")
_ACCOUNT = re.compile(r"Account parameter is required")
_NO_METHOD = re.compile(r"Requested transfer method is not available")
_DANGLING = re.compile(r"^chmod: cannot operate on dangling symlink ")

NO_ACCOUNT = "this system charges transfers to an account: set jobs.account"


def judge(reply: Reply) -> Verdict | None:
    """For `http`: v2 uses statuses of gateways for news of its own (§2)."""
    if reply.status not in {408, 424, 500, 503}:
        return None
    fields = fields_of(reply)
    if "errorType" not in fields:
        return None
    message = _text(fields)
    if reply.status == 503 or _NOT_CONNECTED.match(message):
        return Verdict.NOT_EXECUTED
    if reply.status == 424 or _CUT_OFF.match(message):
        return Verdict.PASSING
    return Verdict.FINAL


def error_of(reply: Reply, what: str, *, changes: bool) -> F7tfsError:
    """The exception for an error reply to `what` ("stat /a/b"). `changes`: the call changes
    something, so that a cut command leaves its outcome unknown."""
    fields = fields_of(reply)
    if not fields.get("errorType") and "f7t-appversion" not in reply.headers:
        return _of_stranger(reply, what, fields)
    message = _text(fields)
    if remote := _REMOTE.match(message):
        stderr = remote[2].strip()
        if remote[1] == "124":
            return _timed_out(f"{what}: {stderr or 'timed out'}", changes)
        if kind := kind_of(stderr):
            return kind(f"{what}: {stderr}")
    return _of_server(reply.status, message, what, changes)


def _of_server(status: int, message: str, what: str, changes: bool) -> F7tfsError:
    said = f"{what}: {message or f'status {status}'}"
    if status == 408 or _TIMED_OUT.match(message):
        return _timed_out(said, changes)
    if status == 503 or _NOT_CONNECTED.match(message):
        return Unreachable(said)
    if status == 424 or _CUT_OFF.match(message):
        return OutcomeUnknown(said) if changes else Unreachable(said)
    if status == 401 or _NO_KEY.match(message):
        return Unauthorized(said)
    if status == 404:
        if message == "System not found":
            return UnknownSystem(said)
        if message == "Not Found":
            return Unsupported(f"{what}: this server does not offer that call")
        return NotFound(said)
    if status == 403:
        return PermissionDenied(said)
    if status == 413:
        return TooLarge(said)
    if status == 400:
        return _of_400(message, said)
    if status in {405, 501}:
        return Unsupported(said)
    if status == 500 and _UNHANDLED.fullmatch(message):
        return OutcomeUnknown(said) if changes else ServerError(said)
    return ServerError(said)


def _of_400(message: str, said: str) -> F7tfsError:
    if _OUTSIDE.search(message):
        return NotPermitted(said)
    if _ACCOUNT.search(message):
        return InvalidArgument(NO_ACCOUNT)
    if _NO_METHOD.search(message):
        return Unsupported(said)
    return InvalidArgument(said)


def _of_stranger(reply: Reply, what: str, fields: dict[str, Any]) -> F7tfsError:
    """Somebody on the way answered: nothing is said of the cluster, least of all that a file is
    not there."""
    said = f"{what}: {_text(fields) or f'status {reply.status}'} (not FirecREST's words)"
    if reply.status in {401, 403}:
        return Unauthorized(said)
    if reply.status == 413:
        return TooLarge(said)
    return ServerError(said)


def kind_of(stderr: str) -> type[F7tfsError] | None:
    """The class of error that a command's stderr tells of: of the last line that is understood
    (tar's last ones only take leave)."""
    for line in reversed(stderr.splitlines()):
        line = line.strip()
        if _DANGLING.search(line):
            return NotFound
        if kind := kind_by_phrase(line) or kind_by_end(line):
            return kind
    return None


def stderr_of_scheduler(reply: Reply) -> str | None:
    """What sbatch, scancel or sacct wrote, where a reply holds it."""
    found = _SLURM.match(_text(fields_of(reply)))
    return found[2].strip() if found else None


def is_scheduler_failure(reply: Reply) -> bool:
    """The words for a list that cannot be parsed (a job's name holds "|"), and for a login node
    that is down (§1, §9)."""
    return reply.status == 500 and _text(fields_of(reply)) == SCHEDULER_FAILED


def fields_of(reply: Reply) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(fields: dict[str, Any]) -> str:
    message = fields.get("message")
    return message if isinstance(message, str) else ""


def _timed_out(said: str, changes: bool) -> F7tfsError:
    if changes:
        return CommandTimeout(said)
    return Stalled(f"{said} (the cluster took longer than the server allows)")
