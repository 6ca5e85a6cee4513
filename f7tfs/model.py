"""Frozen values that every floor shares. No behaviour beyond comparing and joining names.

Names and paths are `str` decoded with `surrogateescape` (as `os.fsdecode` does), so that every
byte string that a cluster can hold survives. Remote paths are absolute, normalised, without a
trailing slash (except "/" itself).
"""

from __future__ import annotations

import enum
import posixpath
import stat as stat_module
from typing import NewType

import msgspec

RemotePath = NewType("RemotePath", str)


def remote_path(text: str) -> RemotePath:
    """Normalise an absolute remote path. Raises ValueError if it is not absolute or holds NUL."""
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"not an absolute remote path: {text!r}")
    return RemotePath("/" + posixpath.normpath(text).lstrip("/"))


def join(directory: RemotePath, name: str) -> RemotePath:
    return RemotePath(f"{directory}/{name}" if directory != "/" else f"/{name}")


def parent_of(path: RemotePath) -> RemotePath:
    return RemotePath(posixpath.dirname(path))


def name_of(path: RemotePath) -> str:
    return posixpath.basename(path)


def is_within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


class Kind(enum.Enum):
    """What a name denotes; the values are the letters of `ls -l`."""

    FILE = "-"
    DIRECTORY = "d"
    SYMLINK = "l"
    FIFO = "p"
    SOCKET = "s"
    CHARACTER = "c"
    BLOCK = "b"

    @property
    def format_bits(self) -> int:
        return _FORMAT_BITS[self]

    @classmethod
    def of_mode(cls, st_mode: int) -> Kind:
        return _KIND_OF_FORMAT[stat_module.S_IFMT(st_mode)]


_FORMAT_BITS = {
    Kind.FILE: stat_module.S_IFREG,
    Kind.DIRECTORY: stat_module.S_IFDIR,
    Kind.SYMLINK: stat_module.S_IFLNK,
    Kind.FIFO: stat_module.S_IFIFO,
    Kind.SOCKET: stat_module.S_IFSOCK,
    Kind.CHARACTER: stat_module.S_IFCHR,
    Kind.BLOCK: stat_module.S_IFBLK,
}
_KIND_OF_FORMAT = {bits: kind for kind, bits in _FORMAT_BITS.items()}


class Listed(msgspec.Struct, frozen=True):
    """One entry of a listing, as a dialect understood it.

    `name` is decoded from C escapes; `ambiguous` says that the escape may also have been a literal
    backslash in the name, so that only a `stat` can tell (v1 FACTS §4); the name is `literal` then.
    `local_mtime` is the
    cluster's wall clock read as if it were UTC, in seconds: the listing carries no zone.
    """

    name: str
    kind: Kind
    permissions: int  # the low 12 bits of st_mode
    size: int
    local_mtime: int
    user: str
    group: str
    target: str | None = None  # of a symlink
    has_acl: bool = False
    ambiguous: bool = False
    literal: str = ""


class Stat(msgspec.Struct, frozen=True):
    """What the cluster's stat(2) says; times are epoch seconds, UTC. `ctime` is None where a change
    of ours moved it since."""

    mode: int  # st_mode with the type
    ino: int
    dev: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime: int
    mtime: int
    ctime: int | None

    @property
    def kind(self) -> Kind:
        return Kind.of_mode(self.mode)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(size=self.size, mtime=self.mtime, ino=self.ino, ctime=self.ctime)


class Fingerprint(msgspec.Struct, frozen=True):
    """What tells one version of a remote file from another; times are epoch seconds."""

    size: int
    mtime: int
    ino: int | None = None
    ctime: int | None = None

    def agrees(self, other: Fingerprint, *, ignore_ctime: bool = False) -> bool:
        """Equal on the fields that both sides have. A change of ctime alone is not a change of
        content (chmod), so conflict checks ignore it."""
        if (self.size, self.mtime) != (other.size, other.mtime):
            return False
        if None not in (self.ino, other.ino) and self.ino != other.ino:
            return False
        return ignore_ctime or None in (self.ctime, other.ctime) or self.ctime == other.ctime


class Attributes(msgspec.Struct, frozen=True):
    """What the mount shows of a name; `mtime` is epoch seconds, UTC. Fields that only a `stat`
    gives (`ino`, `dev`, `nlink`, `ctime`) are None when the source was a listing; `user` and
    `group` are None when it was a stat, `uid` and `gid` when it was a listing."""

    kind: Kind
    permissions: int
    size: int
    mtime: int
    user: str | None = None
    group: str | None = None
    uid: int | None = None
    gid: int | None = None
    target: str | None = None
    ino: int | None = None
    dev: int | None = None
    nlink: int | None = None
    ctime: int | None = None
    has_acl: bool = False

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(size=self.size, mtime=self.mtime, ino=self.ino, ctime=self.ctime)

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY


class Entry(msgspec.Struct, frozen=True):
    """A name in a directory and what it denotes."""

    name: str
    attributes: Attributes


class Identity(msgspec.Struct, frozen=True):
    """The remote user: numeric ids and the names that listings show."""

    user: str
    uid: int
    group: str
    gid: int
    groups: dict[str, int]  # name → gid, the primary one included


class JobState(enum.Enum):
    """The scheduler's state, in the words of Slurm's long form; OTHER keeps new ones readable."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETING = "COMPLETING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    OTHER = "OTHER"

    @classmethod
    def parse(cls, text: str) -> JobState:
        """From the scheduler's text, e.g. "CANCELLED by 1503" → CANCELLED."""
        word = text.split()[0].rstrip("+") if text.split() else ""
        if word == "CONFIGURING":
            return cls.PENDING
        return cls.__members__.get(word, cls.OTHER)

    @property
    def is_over(self) -> bool:
        return self in _OVER


_OVER = {
    JobState.COMPLETED,
    JobState.CANCELLED,
    JobState.FAILED,
    JobState.TIMEOUT,
    JobState.NODE_FAIL,
    JobState.OUT_OF_MEMORY,
}


class Job(msgspec.Struct, frozen=True):
    """One job, in one shape for both dialects. Empty strings where the scheduler said nothing;
    times are the scheduler's own text (cluster-local, no zone)."""

    id: str
    name: str = ""
    state: JobState = JobState.PENDING
    state_text: str = ""
    reason: str = ""
    user: str = ""
    partition: str = ""
    nodes: str = ""
    node_list: str = ""
    exit_code: str = ""
    started: str = ""
    ended: str = ""
    elapsed: str = ""
    script_path: str = ""
    stdout_path: str = ""
    stderr_path: str = ""
    elements: str = ""  # of an array: how many of its elements are in which state
    is_transfer: bool = False  # FirecREST's own, or ours: it moves bytes, it is nobody's work


class Submitted(msgspec.Struct, frozen=True):
    """What a successful submission tells."""

    job_id: str
    script_path: str = ""
    stdout_path: str = ""
    stderr_path: str = ""
