"""The numbered exit codes: a contract (docs/cli.md), never reused for something else."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from f7tfs import errors


class Exit(enum.IntEnum):
    """Exit codes; the text after each number is what docs/cli.md says of it."""

    meaning: str

    def __new__(cls, number: int, meaning: str) -> Exit:
        code = int.__new__(cls, number)
        code._value_ = number
        code.meaning = meaning
        return code

    OK = 0, "done; for `mount`: the mount serves"
    UNSPECIFIED = 1, "something failed; the sentence on stderr says what"
    USAGE = 2, "the command line is not understood"
    CONFIGURATION = 3, "the configuration is wrong or incomplete"
    CREDENTIALS = 4, "the credentials were refused"
    SYSTEM = 5, "the server does not know the system; those it knows are listed"
    UNREACHABLE = 6, "the URL cannot be reached, or no FirecREST answers there"
    REMOTE_PATH = 7, "the remote path is missing, not a directory, or not permitted"
    MOUNTPOINT = 8, "the mountpoint is missing, not a directory, or busy"
    NO_FUSE = 9, "there is no /dev/fuse, or it may not be opened"
    NO_FUSERMOUNT = 10, "fusermount3 is not installed"
    JOURNAL = 11, "another daemon holds the journal of this remote path, or it cannot be used"
    UPLOADS = 12, "uploads are left or stuck; nothing was unmounted"
    NOT_F7TFS = 13, "this is not an f7tfs mount"
    REFUSED = 20, "the scheduler, or f7tfs, refused the script"
    JOB_FAILED = 21, "`submit --wait`: the job ended, and not well"
    UNKNOWN = 22, "it is not known yet whether there is a job"
    INTERNAL = 70, "a fault of f7tfs itself; the log holds the details"
    INTERRUPTED = 130, "ended by Ctrl-C"


def by_number(number: object) -> Exit:
    """The exit code with this number. Raises ValueError when there is none."""
    for code in Exit:
        if code == number:
            return code
    raise ValueError(f"no exit code {number!r}")


class Failure(Exception):
    """A failure that the user sees as one sentence (on each line) and an exit code."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


_CODES: tuple[tuple[type[errors.F7tfsError], Exit], ...] = (
    (errors.Unauthorized, Exit.CREDENTIALS),
    (errors.UnknownSystem, Exit.SYSTEM),
    (errors.Unreachable, Exit.UNREACHABLE),
    (errors.RateLimited, Exit.UNREACHABLE),
    (errors.ServerError, Exit.UNREACHABLE),
    (errors.OutcomeUnknown, Exit.UNREACHABLE),
    (errors.NotFound, Exit.REMOTE_PATH),
    (errors.NotADirectory, Exit.REMOTE_PATH),
    (errors.PermissionDenied, Exit.REMOTE_PATH),
    (errors.NameNotSupported, Exit.REMOTE_PATH),
    (errors.TooManyLinks, Exit.REMOTE_PATH),
    (errors.Busy, Exit.JOURNAL),
    (errors.JournalDamaged, Exit.JOURNAL),
    (errors.NotUsable, Exit.JOURNAL),
    (errors.InvalidArgument, Exit.CONFIGURATION),
)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def cause_of(error: BaseException) -> BaseException:
    """The one exception to tell about: nurseries wrap theirs into groups."""
    leaves = list(_leaves(error))
    ours = [leaf for leaf in leaves if isinstance(leaf, errors.F7tfsError)]
    return (ours or leaves)[0]


def code_of(error: BaseException) -> Exit:
    """The exit code of a mount that could not start because of `error`."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if not isinstance(error, errors.F7tfsError):
        return Exit.INTERNAL
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.UNSPECIFIED)


def sentence_of(error: BaseException) -> str:
    """What to tell the user of `error`, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, errors.UnknownSystem) and error.known and "offers" not in text:
        return f"{text}; this server offers: {', '.join(error.known)}"
    if isinstance(error, errors.Busy):
        return f"{text} (see: f7tfs status)"
    if isinstance(error, errors.F7tfsError):
        return text or type(error).__name__
    return f"internal fault ({type(error).__name__}: {text})" if text else type(error).__name__
