"""What a dialect can do: the `Cluster` protocol that everything above api/ programs against.

All methods raise the errors of `f7tfs.errors`, already classified. None retries a call that
changes something; after a lost reply they raise `OutcomeUnknown`. None accepts a name that its
route does not carry: `NameNotSupported` is raised before anything is sent.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from f7tfs.api.breaker import Breaker
from f7tfs.clock import ServerClock
from f7tfs.model import Identity, Job, Listed, RemotePath, Stat, Submitted


class Route(enum.Enum):
    """The ways to the cluster; each has its own set of safe names."""

    COMMAND = "command"  # a shell command on the login node: ls, stat, rename, direct transfers
    STAGED_DOWNLOAD = "staged-download"
    STAGED_UPLOAD = "staged-upload"
    MOVE = "move"  # `rename`, or where there is none the script of `move_by_job`


class Capabilities(msgspec.Struct, frozen=True):
    """Limits of a dialect and of the server behind it. Sizes in bytes, times in seconds."""

    dialect: str
    version: str  # as the server tells it, "" where it does not
    direct_download_limit: int
    direct_upload_limit: int  # of content; the multipart envelope is already taken off
    staged_upload_limit: int | None
    command_timeout: float
    link_lifetime: float  # of presigned links and forms
    parallel_calls: int  # how many calls at once make sense
    joins: bool = False  # pieces of a file can be put together by a job of our own
    renames: bool = True  # there is a rename call; else a tar of one link, or `move_by_job`
    lists_trees: bool = True  # recursive listings make sense


class SystemStatus(msgspec.Struct, frozen=True):
    name: str
    available: bool
    description: str = ""


class FileSystem(msgspec.Struct, frozen=True):
    """One that the server announces for a system. `kind` is the site's own word ("SCRATCH",
    "users"), "" where there is none; `default_work_directory`: users' own directories in it are
    where they work unless they say otherwise."""

    path: RemotePath
    kind: str = ""
    default_work_directory: bool = False


class Ticket(msgspec.Struct, frozen=True):
    """What the API gave us to follow a transfer; goes into the journal, so it holds no secret
    beyond presigned links. `path` is the remote file that the transfer is about: task ids are
    re-used by a server that lost its data (v1 FACTS §5), so a resumed ticket is checked by it."""

    task_id: str
    path: RemotePath
    details: str = ""  # the dialect's own, opaque to everybody else
    joins: bool = False  # planned by `plan_join`


class Phase(enum.Enum):
    """Where a transfer stands, in words that fit both dialects (v1's states in brackets)."""

    QUEUED = "queued"  # 100, 110, 116 and anything before bytes can move
    READY = "ready"  # 111: the form or parts may be sent; 117: the link may be read
    MOVING = "moving"  # 112, 113: the server brings the object to the cluster
    DONE = "done"  # 114, 200
    FALTERING = "faltering"  # 115: failed, but the server goes on trying: not final
    FAILED = "failed"  # 118, 400: final
    WITHDRAWN = "withdrawn"  # 302; v2: somebody cancelled the job. Final


class UploadForm(msgspec.Struct, frozen=True):
    """How to bring the bytes to the object store: a multipart form whose last part, `file_field`,
    is the content. `fields` in the order in which the ticket gave them."""

    method: str
    url: str
    fields: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    params: tuple[tuple[str, str], ...]
    file_name: str
    file_field: str = "file"


class UploadParts(msgspec.Struct, frozen=True):
    """How to bring the bytes to the object store in parts: `urls[i]` takes, by PUT, the bytes from
    `i * part_size` on (the last part may be shorter); the ETags of the replies, quotes kept, then
    go to `complete_url` as a CompleteMultipartUpload document."""

    urls: tuple[str, ...]
    part_size: int
    complete_url: str


class Progress(msgspec.Struct, frozen=True):
    """One observation of a transfer. `path` is what the server says it is about, where it does."""

    phase: Phase
    raw: str  # the server's own state, for logs: "113"
    link: str | None = None  # READY downloads: a presigned GET
    link_lags: bool = False  # the link answers 404 until the object is there: ask the link itself
    form: UploadForm | None = None  # READY uploads: a form,
    parts: UploadParts | None = None  # or parts
    looked: bool = False  # the server has looked for the bytes, and sleeps if they were missing
    error: str | None = None  # with DONE: what to blame if the file is not there after all
    path: str | None = None


class Cluster(Protocol):
    """A FirecREST dialect bound to one system."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def system(self) -> str: ...

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each endpoint was asked since the start."""
        ...

    @property
    def breaker(self) -> Breaker:
        """Whether the API can be reached."""
        ...

    @property
    def clock(self) -> ServerClock:
        """The server's time."""
        ...

    def carries(self, path: RemotePath, route: Route) -> bool:
        """Whether `route` carries this path safely. Pure; costs nothing."""
        ...

    async def learn_carries(self, path: RemotePath, route: Route) -> bool:
        """The same; but where it hangs on what this site's server does with such names, and nobody
        asked yet, the server is asked once, by a `stat` of a name that cannot exist. Raises what
        keeps it from answering."""
        ...

    # Who and what is there.
    async def discover(self) -> Capabilities:
        """Ask the server for its version and limits, keep and return them. Raises UnknownSystem
        (with the known ones) if the server does not offer this system."""
        ...

    async def systems(self) -> list[SystemStatus]: ...
    async def file_systems(self) -> list[FileSystem]:
        """Those of this system that the server announces, in its order; whether one can be
        reached is another question."""
        ...

    async def whoami(self) -> Identity: ...

    # Names.
    async def list_directory(self, path: RemotePath) -> list[Listed]:
        """All entries of a directory, hidden ones too; a symlink to a directory is followed.
        Raises NotADirectory for anything else."""
        ...

    async def list_tree(self, path: RemotePath) -> list[tuple[str, Listed]]:
        """A recursive listing: (directory relative to `path`, entry). "" is `path` itself.
        All or nothing: one unreadable subdirectory fails the whole, as do a name that reads like
        an error, and more than the server's limits of size and time (v1 FACTS §2, §4). Symlinks
        are not followed. Every part of every path is a sound name; an ambiguous directory is
        marked where it is an entry. Unsupported unless `capabilities.lists_trees`."""
        ...

    async def stat(self, path: RemotePath, *, follow: bool = False) -> Stat: ...
    async def read_link(self, path: RemotePath) -> str: ...
    async def make_directory(self, path: RemotePath) -> None: ...
    async def rename(self, source: RemotePath, target: RemotePath) -> None:
        """The server's `mv --force`: moves INTO an existing directory. Callers check first."""
        ...

    async def move_by_job(self, source: RemotePath, target: RemotePath) -> Ticket:
        """`mv` by a job of the scheduler, for dialects without a rename call; follow it with
        `progress` (DONE only if its log says that the files were moved). Same trap as `rename`."""
        ...

    async def copy(self, source: RemotePath, target: RemotePath) -> None: ...
    async def remove(self, path: RemotePath) -> None:
        """The server's `rm -r`: removes whole trees. Callers check first."""
        ...

    async def change_mode(self, path: RemotePath, permissions: int) -> None: ...
    async def change_owner(self, path: RemotePath, user: str | None, group: str | None) -> None: ...
    async def symlink(self, target: str, link: RemotePath) -> None:
        """Raises Unsupported for a target that this route cannot carry: then a tar can."""
        ...

    async def checksum(self, path: RemotePath) -> str:
        """sha256 in hex, of the file that the name leads to. Unsupported where the dialect cannot
        hash a file of this name."""
        ...

    async def compress(self, source: RemotePath, archive: RemotePath) -> None: ...
    async def extract(self, archive: RemotePath, directory: RemotePath) -> None:
        """Extract a .tar or .tar.gz (told from the archive's name) into `directory`."""
        ...

    # Content, small: one call.
    async def download(self, path: RemotePath) -> bytes:
        """The whole file, byte-exact, at most `capabilities.direct_download_limit`."""
        ...

    async def head(self, path: RemotePath, count: int) -> bytes:
        """The first `count` bytes, where the dialect can prove them exact; raises Unsupported
        where the reply is lossy."""
        ...

    async def tail(self, path: RemotePath, offset: int) -> bytes:
        """From `offset` (0-based) to the end; Unsupported where the reply is lossy."""
        ...

    async def upload(self, path: RemotePath, content: bytes) -> None:
        """Write in place: truncates first, keeps inode and mode, follows symlinks, not atomic.
        Raises Unsupported for no content, where that cannot be sent: then a tar can."""
        ...

    # Content, staged.
    async def stage_download(self, path: RemotePath) -> Ticket: ...
    async def stage_upload(self, path: RemotePath, size: int) -> Ticket: ...
    async def progress(self, ticket: Ticket) -> Progress:
        """One observation; many askers share one call to the server."""
        ...

    async def withdraw(self, ticket: Ticket) -> None:
        """Invalidate a ticket: a courtesy to the server, no guarantee (v1 FACTS §6, §7)."""
        ...

    def litter(self, ticket: Ticket) -> tuple[RemotePath, ...]:
        """Files that following this ticket to its end leaves on the cluster (v2's job logs)."""
        ...

    # Content, in pieces.
    def plan_join(self, pieces: Sequence[RemotePath], path: RemotePath, sha256: str) -> Ticket:
        """A ticket for putting together `pieces`, names of our own making in one directory, to
        `path`, which is written in place. Nothing is sent yet: the ticket is journaled first."""
        ...

    async def join(self, ticket: Ticket) -> None:
        """Submit the job of a planned ticket, once. `progress` follows it: DONE means that `path`
        has that sha256 and the pieces are gone; NotFound that there is no such job."""
        ...

    # Jobs.
    async def submit(
        self, script: bytes, tag: str, account: str | None, directory: RemotePath
    ) -> Submitted:
        """Submit once. `tag` is unique and shows again: as the uploaded file's name and so in the
        job's script path (v1), as the job's name (v2). `directory`: where the job works, for
        dialects that ask for it. Raises Rejected with the scheduler's words; OutcomeUnknown if a
        job may exist all the same."""
        ...

    async def jobs(self, *, reasons: bool = False) -> list[Job]:
        """All jobs of the user that the scheduler tells of: queued, running, and over since
        yesterday; in one call, however many there are. `reasons`: also why queued ones wait, where
        that is another call. Raises QueueUnreadable where single jobs can still be asked for."""
        ...

    async def accounting(self, ids: Sequence[str]) -> list[Job]:
        """Those jobs (of an array its elements), however long ago; unknown ones are missing."""
        ...

    async def job_paths(self, job: Job) -> Submitted:
        """Where a job's script and output are; "" for what the scheduler does not tell any more.
        It costs a call for each job (v1: of one that is not over, three commands)."""
        ...

    async def submitted_as(self, tags: Collection[str]) -> dict[str, Submitted]:
        """The jobs that `submit` made of these tags; those that the server does not know are
        missing. Many are asked for by one call where the queue can be read as a whole; v2 is also
        asked for the paths of those found."""
        ...

    async def cancel(self, job_id: str) -> None:
        """Success also when the job is already over. An array's number means all its elements; one
        element alone is Unsupported where the dialect would take all. PermissionDenied for
        somebody else's."""
        ...
