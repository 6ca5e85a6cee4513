"""One dirty file: its bytes, its names, and the states it goes through."""

from __future__ import annotations

import enum
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import trio

from f7tfs.content.disk import write_all
from f7tfs.content.journal import UploadRecord
from f7tfs.model import Fingerprint, RemotePath, name_of

AHEAD = 32 << 20  # bytes written after which the disk begins, ahead of the fsync of close()


class State(enum.Enum):
    OPEN = "open"  # somebody may write, or wrote and has not closed
    HELD = "held"  # closed under a temporary name that stays local
    QUEUED = "queued"  # closed and journaled; the upload is due at `due`
    UPLOADING = "uploading"
    STUCK = "stuck"  # needs a person; `error` says why
    GONE = "gone"  # verified on the cluster, or unlinked; only open handles still see the bytes


ALLOWED: dict[State, set[State]] = {
    State.OPEN: {State.QUEUED, State.HELD, State.GONE},
    State.HELD: {State.OPEN, State.QUEUED, State.GONE},
    State.QUEUED: {State.UPLOADING, State.OPEN, State.HELD, State.GONE, State.STUCK},
    State.UPLOADING: {State.QUEUED, State.OPEN, State.HELD, State.STUCK, State.GONE},
    State.STUCK: {State.QUEUED, State.OPEN, State.HELD, State.GONE},
    State.GONE: set(),
}


class SpoolEntry:
    """One dirty file. `generation` counts changes of content, name or attributes (what the
    journal must know), `version` those of content alone: a transfer that began at one version
    publishes nothing once the number has moved on."""

    def __init__(
        self,
        entry_id: str,
        path: RemotePath,
        fd: int,
        *,
        base: Fingerprint | None,
        permissions: int,
        mtime_ns: int,
        created: float,
        cut_mark: Path,
        is_junk_name: Callable[[str], bool],
    ) -> None:
        self._is_junk_name = is_junk_name
        self._cut_mark = cut_mark
        self.id = entry_id
        self.path = path
        self.links: list[RemotePath] = []  # further names, none of which the cluster has yet
        self.fd = fd
        self.base = base
        self.permissions = permissions
        self.mtime_ns = mtime_ns
        self.created = created
        self.state = State.OPEN
        self.generation = 1
        self.version = 1
        self.journaled = 0  # the generation that the journal knows
        self.flushed_size = -1  # bytes of the file that the journal knows
        self.writers = 0  # open handles that may write
        self.refused = 0  # errno with which the journal did not take it when it was closed
        self.openers = 0  # open files (one for all handles of an inode)
        self.unflushed = 0  # bytes written since the disk was last told to begin with them
        self.replaced: tuple[str, ...] = ()  # tombstones that end with this file's first record
        self.is_running = False  # an attempt is under way or waits for its place
        self.users = 0  # whoever needs the descriptor: handles and transfers
        self.hold = False  # its name is a temporary one: it stays here until it is renamed
        self.due = 0.0  # trio time
        self.owed_since: float | None = None  # trio time of the first close that was not sent yet
        self.is_hurried = False  # somebody waits: no delay at the next close either
        self.published = 0  # the newest version that the cluster has
        self.attempts = 0
        self.cancels = 0  # how many of them somebody else cancelled
        self.error: str | None = None
        self.errno = errno.EIO  # of `error`, for whoever waits for it
        self.sent = 0  # bytes of the current attempt, for progress
        # Of the attempt under way; they survive a restart through the journal.
        self.temporary: RemotePath | None = None
        self._ticket: str | None = None
        self.parts: dict[int, str] = {}  # of the ticket: ETags by number, of what the store has
        self.form_sent = False
        self.attempt_version = 0  # the version that `temporary` and `ticket` were made for
        self.is_adoptable = True  # the file's bytes are those of the attempt
        self.expected: Fingerprint | None = None
        self.expected_since = 0.0  # epoch seconds at which the call for it was about to be made
        self.expected_version = 0  # the version of the content that `expected` was published from
        self.in_place = False  # bytes of it may have been written to its very name
        self.archives = 0  # how many of them it was in without arriving
        self.is_alone = False  # it goes by itself, not in an archive with others
        # Held by whoever changes what the remote name means: publish, rename, unlink.
        self.turn = trio.Lock()

    @property
    def ticket(self) -> str | None:
        return self._ticket

    @ticket.setter
    def ticket(self, ticket: str | None) -> None:
        if ticket != self._ticket:
            self._ticket, self.parts = ticket, {}  # parts of another object

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    @property
    def names(self) -> list[RemotePath]:
        return [self.path, *self.links]

    @property
    def is_junk(self) -> bool:
        """It never travels: a swap file or a desktop's dropping."""
        return self.hold and self._is_junk_name(name_of(self.path))

    @property
    def is_owed(self) -> bool:
        if self.is_junk:
            return False
        if self.state is State.OPEN:
            return self.journaled == self.generation
        return self.state is not State.GONE

    @property
    def is_unwritten(self) -> bool:
        """The last writer is gone, and the journal did not take what it wrote (yet)."""
        if self.is_junk or self.writers or self.state is not State.OPEN:
            return False
        return self.journaled != self.generation

    @property
    def is_gone(self) -> bool:
        return self.state is State.GONE

    def __repr__(self) -> str:
        return f"<SpoolEntry {self.id[:8]} {self.path!r} {self.state.value}>"

    def record(self) -> UploadRecord:
        return UploadRecord(
            id=self.id,
            path=self.path,
            base=self.base,
            permissions=self.permissions,
            mtime_ns=self.mtime_ns,
            created=self.created,
            held=self.hold,
            stuck=self.error if self.state is State.STUCK else None,
            temporary=self.temporary,
            ticket=self.ticket,
            sent=self.form_sent,
            expected=self.expected,
            expected_since=self.expected_since,
            expected_is_current=self.expected_version == self.version,
            attempt_is_current=self.attempt_version == self.version,
            parts=dict(self.parts),
            parts_mtime_ns=os.fstat(self.fd).st_mtime_ns,
            in_place=self.in_place,
            size=self.flushed_size,
            links=tuple(self.links),
        )

    def write(self, offset: int, data: bytes) -> int:
        done = write_all(self.fd, data, offset)
        self.unflushed += done
        self._changed()
        return done

    def truncate(self, size: int) -> None:
        if size < self.flushed_size:  # a start must not take it for damage
            self._cut_mark.touch(mode=0o600)
        os.ftruncate(self.fd, size)
        self._changed()

    def flushed(self, size: int) -> None:
        """The journal knows that the file has `size` bytes."""
        self.flushed_size = size
        if size <= self.size:
            self._cut_mark.unlink(missing_ok=True)

    def _changed(self) -> None:
        self.mtime_ns = time.time_ns()
        self.generation += 1
        self.version += 1
