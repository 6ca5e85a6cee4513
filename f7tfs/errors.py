"""Errors named for what happened, and the one table that turns them into errno.

Lower layers raise these; only the kernel door (`operations`) asks `errno_of`. Whether a fault may
pass by itself (`transient`) is decided where the reply is understood, by the dialect.
"""

from __future__ import annotations

import errno


class F7tfsError(Exception):
    """Base of everything that f7tfs raises on purpose.

    `errno` is what an application sees; `transient` says that trying later may help; what is
    `quiet` was logged where it was found, once for many.
    """

    errno: int = errno.EIO
    transient: bool = False
    quiet: bool = False

    def again(self) -> F7tfsError:
        """The same error, to be raised for one more waiter: tracebacks must not be shared."""
        copy = self.__class__.__new__(self.__class__)
        copy.__dict__.update(self.__dict__)
        copy.args = self.args
        return copy


# What the cluster's file system says.


class NotFound(F7tfsError):
    errno = errno.ENOENT


class PermissionDenied(F7tfsError):
    errno = errno.EACCES


class Unwelcome(PermissionDenied):
    """Refused to a process that would walk the whole cluster (indexers)."""

    quiet = True


class NotPermitted(F7tfsError):
    """Not offered at this place (mknod, chown to somebody else, mkdir in jobs/)."""

    errno = errno.EPERM


class Exists(F7tfsError):
    errno = errno.EEXIST


class NotADirectory(F7tfsError):
    errno = errno.ENOTDIR


class IsADirectory(F7tfsError):
    errno = errno.EISDIR


class NotEmpty(F7tfsError):
    errno = errno.ENOTEMPTY


class TooManyLinks(F7tfsError):
    """A loop of symbolic links."""

    errno = errno.ELOOP


class NameTooLong(F7tfsError):
    errno = errno.ENAMETOOLONG


class ReadOnly(F7tfsError):
    errno = errno.EROFS


class QuotaExceeded(F7tfsError):
    """The cluster's quota or disk is full. Retrying helps only after somebody made room."""

    errno = errno.EDQUOT


class CrossDevice(F7tfsError):
    """Source and target lie on different devices; tools then copy."""

    errno = errno.EXDEV


class Changed(F7tfsError):
    """The file that was opened is not the file that is there now, and its bytes are gone."""

    errno = errno.ESTALE


# What f7tfs refuses before it sends anything.


class NameNotSupported(F7tfsError):
    """No route to the cluster carries this name safely (SEMANTICS "Names")."""

    errno = errno.EINVAL


class InvalidArgument(F7tfsError):
    errno = errno.EINVAL


class TooLarge(F7tfsError):
    errno = errno.EFBIG


class Unsupported(F7tfsError):
    errno = errno.ENOTSUP


class NoSuchAttribute(F7tfsError):
    errno = errno.ENODATA


class WouldBlock(F7tfsError):
    """Refused to a reader that must not cause work on the cluster (sniffers)."""

    errno = errno.EAGAIN
    quiet = True


# What the way to the cluster says.


class Unauthorized(F7tfsError):
    """The credentials were refused. EACCES, because the user can mend it by logging in."""

    errno = errno.EACCES


class UnknownSystem(F7tfsError):
    """The server does not know the system. `known` lists those that it offers, where it told."""

    errno = errno.ENODEV

    def __init__(self, message: str, known: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.known = known


class Unreachable(F7tfsError):
    """Nothing was executed: no connection, refused, name not resolved, gateway or cluster down."""

    errno = errno.EHOSTUNREACH
    transient = True


class Offline(Unreachable):
    """The API is known to be unreachable at the moment: nothing was even tried."""

    quiet = True


class QueueUnreadable(Unreachable):
    """The server cannot read the scheduler's list as a whole (one job's name spoils it, v2 FACTS
    §9); single jobs can be asked for."""


class RateLimited(F7tfsError):
    """429 for longer than our patience. `retry_after` is in seconds, None where not told."""

    errno = errno.EAGAIN
    transient = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutcomeUnknown(F7tfsError):
    """A call that changes something was sent and its reply was lost, or it was cut by a time limit.

    It may or may not have been executed. Never resend: look first (SEMANTICS "Metadata").
    """

    errno = errno.EIO
    transient = True


class CommandTimeout(OutcomeUnknown):
    """The server's own limit of 5 s killed the remote command; side effects may be partial."""

    errno = errno.ETIMEDOUT


class JobUnknown(OutcomeUnknown):
    """What was to happen was left to a job of ours, and that may still wait: no look tells."""


class ServerError(F7tfsError):
    """A failure that the dialect could not classify. Uploads stop trying after 10 of them."""

    errno = errno.EIO


class StagingFailed(F7tfsError):
    """The transfer through the staging area failed for good (v1: 118)."""

    errno = errno.EIO


class Cancelled(StagingFailed):
    """Somebody took a transfer away: scancel of its job, v1's invalidate. Uploads take it for an
    accident twice, and for a wish the third time."""


class LinkExpired(F7tfsError):
    """A presigned link or form is not accepted any more (403/404); a new task gives a new one."""

    errno = errno.EIO
    transient = True


class Rejected(F7tfsError):
    """The scheduler refused the script. The message holds the scheduler's own words."""

    errno = errno.EINVAL


# What happens on this machine.


class Stalled(F7tfsError):
    """No progress for `stall_timeout`."""

    errno = errno.ETIMEDOUT
    transient = True


class Interrupted(F7tfsError):
    """The waiting caller has a signal pending."""

    errno = errno.EINTR


class NoLocalSpace(F7tfsError):
    errno = errno.ENOSPC
    transient = True


class Busy(F7tfsError):
    """Another daemon holds what this one needs (the journal of a remote path), or what became of
    an earlier rename of the name is not known yet."""

    errno = errno.EBUSY


class Stuck(F7tfsError):
    """An upload that needs a person. Its errno is that of what stopped it, where that is known."""

    def __init__(self, message: str, number: int = errno.EIO) -> None:
        super().__init__(message)
        self.errno = number


class JournalDamaged(F7tfsError):
    """The journal cannot be read; it was set aside whole."""

    errno = errno.EIO


class NotUsable(F7tfsError):
    """The journal can be neither used nor set aside here: a read-only or full disk, or a newer
    f7tfs wrote it. Nothing of it was touched."""

    errno = errno.EIO


def errno_of(error: BaseException) -> int:
    """The errno that an application sees for `error`; EIO for what nobody foresaw."""
    if isinstance(error, F7tfsError):
        return error.errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO
