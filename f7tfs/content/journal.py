"""Durable records of what f7tfs still owes: the promise behind every close() that returned 0.

SQLite in WAL mode with synchronous=FULL: a record is on the disk when `write` returns. One row a
record, its body a msgspec struct in JSON, so that a person can read a journal with `sqlite3`.

One daemon per journal, by a lock on a file beside it. A journal that cannot be read is set aside
whole under a new name and reported; nothing is dropped.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import msgspec
import trio

from f7tfs.content.disk import sync_directory
from f7tfs.errors import Busy, JournalDamaged, NoLocalSpace
from f7tfs.model import Fingerprint

log = logging.getLogger("f7tfs.journal")
VERSION = 1


class Record(msgspec.Struct, kw_only=True, frozen=True):
    """One thing owed. `id` is unique within its kind."""

    kind: ClassVar[str]
    id: str


R = TypeVar("R", bound=Record)


class UploadRecord(Record, frozen=True):
    """A dirty file whose bytes are in the spool under `id`.

    `base` is the remote file that the edit started from, None if there was none. `ticket`,
    `temporary` and `expected` describe an attempt under way; `expected` is what the target
    will be once our rename is through, so that a lost reply is no conflict with ourselves;
    `expected_is_current` and `attempt_is_current` say that nothing was written since they were
    noted. `held`: the name is a temporary one.
    """

    kind = "upload"
    path: str
    base: Fingerprint | None
    permissions: int
    mtime_ns: int
    created: float
    held: bool = False
    stuck: str | None = None
    temporary: str | None = None
    ticket: str | None = None
    sent: bool = False
    expected: Fingerprint | None = None
    expected_is_current: bool = False
    attempt_is_current: bool = False
    in_place: bool = False


class RemovalRecord(Record, frozen=True):
    """A tombstone: a remote name to remove once the uploads closed before it are verified."""

    kind = "removal"
    path: str
    is_directory: bool
    fingerprint: Fingerprint | None
    sequence: int
    uploads: tuple[str, ...] = ()


class LitterRecord(Record, frozen=True):
    """A name of our own making on the cluster, to be removed. `id` is the path. An abandoned v1
    upload can write again until its form expires (v1 FACTS §6), hence `until` (epoch seconds).
    `marker`: only a symlink with this target is ours (rmdir puts one in the directory's place)."""

    kind = "litter"
    until: float = 0.0
    marker: str | None = None


class TimesRecord(Record, frozen=True):
    """The overlay: local times of an unchanged remote file. `id` is the path."""

    kind = "times"
    remote: Fingerprint
    mtime_ns: int


class SubmitRecord(Record, frozen=True):
    """One drop into jobs/. `id` is the tag that the scheduler sees; the script is in the spool
    under it. It is `held` until its inputs are on the cluster and the API answers; `sending` is
    written before the call, so a crash during it is found as `unknown`."""

    kind = "submit"
    name: str
    state: Literal["held", "sending", "submitted", "unknown", "refused"]
    created: float
    uploads: tuple[str, ...] = ()
    job_id: str = ""
    script_path: str = ""
    stdout_path: str = ""
    stderr_path: str = ""
    error: str = ""


class Journal:
    """`load` is crash recovery, `write` is durability; nothing else touches the database."""

    def __init__(self, directory: Path, key: str) -> None:
        """Open or create. Raises Busy if another daemon holds it. One that cannot be read, or that
        belongs to another (URL, system, user, path), is set aside."""
        self._directory = directory
        self._path = directory / "journal.sqlite"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise Busy("another f7tfs daemon holds the journal of this remote path") from None
        self.set_aside: Path | None = None
        try:
            self._database = self._open(key)
        except (sqlite3.DatabaseError, JournalDamaged) as error:
            self.set_aside = self._put_aside(error)
            self._database = self._open(key)
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)

    def _open(self, key: str) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            found = database.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise JournalDamaged(f"quick_check: {found}")
            database.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value)")
            database.execute(
                "CREATE TABLE IF NOT EXISTS records"
                " (kind TEXT, id TEXT, body TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID"
            )
            about = dict(database.execute("SELECT name, value FROM about").fetchall())
            if about.setdefault("key", key) != key:
                raise JournalDamaged(f"the journal belongs to {about['key']}")
            if about.setdefault("version", VERSION) != VERSION:
                raise JournalDamaged(f"the journal has version {about['version']}")
            database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", about.items())
        except BaseException:
            database.close()
            raise
        sync_directory(self._directory)
        return database

    def _put_aside(self, error: Exception) -> Path:
        aside = self._directory / f"journal.set-aside-{time.strftime('%Y%m%d-%H%M%S')}"
        while aside.exists():
            aside = aside.with_name(aside.name + "-2")
        aside.mkdir()
        for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "spool"):
            if (self._directory / name).exists():
                (self._directory / name).rename(aside / name)
        sync_directory(self._directory)
        log.error(
            "the journal cannot be used (%s); it and its spool were moved to %s", error, aside
        )
        return aside

    def load(self, record_type: type[R]) -> list[R]:
        rows = self._database.execute(
            "SELECT body FROM records WHERE kind = ? ORDER BY id", (record_type.kind,)
        )
        return [msgspec.json.decode(body, type=record_type) for (body,) in rows]

    async def write(self, *put: Record, drop: tuple[tuple[type[Record], str], ...] = ()) -> None:
        """All of it or nothing, on the disk when this returns."""
        rows = [(record.kind, record.id, msgspec.json.encode(record).decode()) for record in put]
        gone = [(record_type.kind, name) for record_type, name in drop]
        async with self._turn:
            with trio.CancelScope(shield=True):
                try:
                    await trio.to_thread.run_sync(self._commit, rows, gone, limiter=self._limiter)
                except sqlite3.Error as error:
                    raise NoLocalSpace(f"the journal takes no more records: {error}") from error

    def _commit(self, rows: list[tuple[str, str, str]], gone: list[tuple[str, str]]) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("DELETE FROM records WHERE kind = ? AND id = ?", gone)
            database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", rows)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._database.close()
        os.close(self._lock_fd)
