"""Durable records of what f7tfs still owes: the promise behind every close() that returned 0.

SQLite in WAL mode with synchronous=FULL: a record is on the disk when `write` returns. One row a
record, its body a msgspec struct in JSON, so that a person can read a journal with `sqlite3`.

One daemon per journal, by a lock on a file beside it. A journal that cannot be read, or is another
one's, is set aside whole with its spool and reported; one record that cannot be read is set aside
with its bytes, and hides no other. A journal of a newer f7tfs is refused: that one can read it.
docs/decisions/0007 lists all of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import msgspec
import trio

from f7tfs.content.aside import Aside
from f7tfs.content.disk import sync_directory
from f7tfs.errors import Busy, JournalDamaged, NoLocalSpace, NotUsable
from f7tfs.model import Attributes, Fingerprint, Job

log = logging.getLogger("f7tfs.journal")
VERSION = 1  # one more whenever an older f7tfs would misread the records: it refuses then
FILES = ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm")
# What SQLite says of a file that is none of its own, or torn.
_TORN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_FILE_OF = {"upload": "{}", "submit": "{}.script"}  # kinds of records whose bytes lie in the spool


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
    `expected_since` is when the call for that was about to be made (epoch seconds);
    `expected_is_current` and `attempt_is_current` say that nothing was written since they were
    noted. `parts`: numbers and ETags of the parts of `ticket` that the object store has, of the
    bytes that the spool file held at `parts_mtime_ns`, its own time. `held`: the name is a
    temporary one. `size`: bytes at the last flush, -1 if not known. `links`: further names of the
    same file, which the cluster does not have yet.
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
    expected_since: float = 0.0
    attempt_is_current: bool = False
    in_place: bool = False
    size: int = -1
    parts: dict[int, str] = {}
    parts_mtime_ns: int = 0
    links: tuple[str, ...] = ()


class RemovalRecord(Record, frozen=True):
    """A tombstone: a remote name to remove once the uploads closed before it are verified."""

    kind = "removal"
    path: str
    is_directory: bool
    fingerprint: Fingerprint | None
    sequence: int
    uploads: tuple[str, ...] = ()
    since: float = 0.0  # when a call to remove it was about to be made (epoch seconds)


class RenameRecord(Record, frozen=True):
    """A rename on the cluster that dirty files have to follow, or that is more than one call:
    written before it begins (`since`, epoch seconds), ended with what it changes here. `ino` and
    `dev` of what is moved; `ticket` (JSON) of the job that does it, and `replaced` the id of the
    dirty file that it replaces, "" without one."""

    kind = "rename"
    source: str
    target: str
    ino: int
    dev: int
    since: float = 0.0
    ticket: str = ""
    replaced: str = ""


class AliasRecord(Record, frozen=True):
    """A clean file that was renamed to a backup name here, and not yet on the cluster. `id` is the
    new name, `source` the one that the cluster has it under; `since` is when a call to rename it
    was about to be made (epoch seconds), 0 if none was."""

    kind = "alias"
    source: str
    attributes: Attributes
    since: float = 0.0


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
    written before the call, so a crash during it is found as `unknown`.

    `named`: whether it still shows as jobs/NAME; a submitted one without a name remembers where its
    job writes. `withdrawn`: it was removed before its job was known, which is cancelled when it is
    found. `missing`: keys of the configuration that neither it nor the script set. `last` is the
    job when it was over.
    """

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
    job_name: str = ""
    account: str = ""
    directory: str = ""
    missing: tuple[str, ...] = ()
    named: bool = True
    withdrawn: bool = False
    last: Job | None = None


class DismissedRecord(Record, frozen=True):
    """A job whose directory the user removed: not shown any more. `id` is the job's, `since` in
    epoch seconds."""

    kind = "dismissed"
    since: float


ENDED = "ended"  # of a row whose id is the name of a spool file that nobody needs any more


class _Batch:
    """Rows of one task that wait for the end of its `together`."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.gone: list[tuple[str, str]] = []
        self.then: list[Callable[[], None]] = []


class Journal:
    """`load` is crash recovery, `write` is durability; nothing else touches the database."""

    def __init__(self, directory: Path, key: str) -> None:
        """Open or create. Raises Busy if another daemon holds it, NotUsable where it can be neither
        read nor set aside. One that is torn, or that belongs to another (URL, system, user, path),
        is set aside."""
        self._directory = directory
        self._path = directory / FILES[0]
        self.aside = Aside(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd = os.open(
                directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise NotUsable(
                f"the journal cannot be kept in {directory}: {error.strerror}"
            ) from None
        try:
            self._database = self._lock_and_open(key)
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._batches: dict[trio.lowlevel.Task, _Batch] = {}
        self._forgotten: list[tuple[str, str]] = []  # notes to end with the next transaction

    def _lock_and_open(self, key: str) -> sqlite3.Connection:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("another f7tfs daemon holds the journal of this remote path") from None
        try:
            try:
                database = self._open(key)
            except (sqlite3.DatabaseError, JournalDamaged) as error:
                if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF not in _TORN:
                    raise
                self._put_aside(error)
                database = self._open(key)
        except (OSError, sqlite3.Error) as error:
            raise NotUsable(f"the journal {self._path} cannot be used: {error}") from error
        try:
            self._put_bad_records_aside(database)
        except BaseException:
            database.close()
            raise
        return database

    def _open(self, key: str) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        database.text_factory = lambda text: text.decode(errors="surrogateescape")
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            found = database.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise JournalDamaged(" ".join(found.split()))
            database.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value)")
            database.execute(
                "CREATE TABLE IF NOT EXISTS records"
                " (kind TEXT, id TEXT, body TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID"
            )
            about = dict(database.execute("SELECT name, value FROM about").fetchall())
            database.execute("SELECT kind, id, body FROM records LIMIT 1")
            if not about and (files := self._spooled()):
                raise JournalDamaged(f"it is empty, but the spool holds {len(files)} files")
            if about.setdefault("key", key) != key:
                raise JournalDamaged(f"it belongs to {about['key']!r}")
            version = about.setdefault("version", VERSION)
            if isinstance(version, int) and version > VERSION:
                raise NotUsable(
                    f"the journal {self._path} was written by a newer f7tfs (version {version} of"
                    f" its records, this one knows {VERSION}): use that one, or move it away"
                )
            if version != VERSION:
                raise JournalDamaged(f"it has version {version!r}")
            database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", about.items())
        except BaseException:
            database.close()
            raise
        sync_directory(self._directory)
        return database

    def _spooled(self) -> list[Path]:
        spool = self._directory / "spool"
        return [file for file in spool.iterdir() if file.is_file()] if spool.is_dir() else []

    def _put_aside(self, error: Exception) -> None:
        names = (*FILES, "spool")
        place = self.aside.move(*(self._directory / name for name in names))
        self.aside.report(
            f"the journal cannot be used ({error}); it and its spool were moved to {place}"
        )

    def _put_bad_records_aside(self, database: sqlite3.Connection) -> None:
        """A record that cannot be read says nothing about the others. One of a kind that is not
        known stays: whoever wrote it knows more."""
        known = {each.kind: each for each in Record.__subclasses__()}
        rows = database.execute("SELECT kind, id, body FROM records ORDER BY kind, id").fetchall()
        strangers = {kind for kind, _, _ in rows} - set(known) - {ENDED}
        if strangers:
            kinds = ", ".join(sorted(str(kind) for kind in strangers))
            self.aside.report(f"the journal holds records of unknown kinds ({kinds}); they stay")
        self.has_strangers = bool(strangers)
        for kind, name, body in rows:
            if kind not in known:
                continue
            try:
                if msgspec.json.decode(body, type=known[kind]).id != name:
                    raise ValueError("it speaks of another id")
            except (msgspec.MsgspecError, TypeError, ValueError) as error:
                file = self._directory / "spool" / _FILE_OF.get(kind, "").format(name)
                plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[-100:]
                place = self.aside.write(f"{kind}-{plain}.json", _text_of(body))
                if kind in _FILE_OF:
                    self.aside.move(file, below="spool")
                database.execute("DELETE FROM records WHERE kind = ? AND id = ?", (kind, name))
                self.aside.report(
                    f"the {kind} record {_path_in(body) or name} cannot be read ({error}); it and"
                    f" its bytes were moved to {place}"
                )

    async def set_aside(self, record: Record, why: str) -> None:
        """Give a record up that cannot be served any more; its text is kept and reported."""
        plain = f"{record.kind}-{record.id}.json"
        place = self.aside.write(plain, msgspec.json.encode(record))
        await self.write(drop=((type(record), record.id),))
        self.aside.report(f"{why}; its record was moved to {place}")

    def load(self, record_type: type[R]) -> list[R]:
        rows = self._database.execute(
            "SELECT body FROM records WHERE kind = ? ORDER BY id", (record_type.kind,)
        )
        return [msgspec.json.decode(body, type=record_type) for (body,) in rows]

    def ended(self) -> set[str]:
        """Names of spool files whose records have ended: what the spool still has of them is not
        owed to anybody."""
        rows = self._database.execute("SELECT id FROM records WHERE kind = ?", (ENDED,))
        return {name for (name,) in rows}

    def forget_ended(self, *names: str) -> None:
        """The spool has these files no more: the notes end, too, with the next transaction."""
        self._forgotten += [(ENDED, name) for name in names]

    async def write(self, *put: Record, drop: tuple[tuple[type[Record], str], ...] = ()) -> None:
        """All of it or nothing, on the disk when this returns."""
        rows = [(record.kind, record.id, msgspec.json.encode(record).decode()) for record in put]
        gone = [(record_type.kind, name) for record_type, name in drop]
        rows += [
            (ENDED, _FILE_OF[kind].format(name), "") for kind, name in gone if kind in _FILE_OF
        ]
        batch = self._batches.get(trio.lowlevel.current_task())
        if batch is not None:
            ids = {(kind, name) for kind, name, _ in rows} | set(gone)
            batch.rows = [row for row in batch.rows if row[:2] not in ids] + rows
            batch.gone += gone
            return
        await self._write(rows, gone)

    @contextlib.asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """What the calling task writes in the block is on the disk at its end, all of it or
        nothing: nothing in the block may rely on it before."""
        task, batch = trio.lowlevel.current_task(), _Batch()
        assert task not in self._batches, "together in together"
        self._batches[task] = batch
        try:
            yield
        finally:
            # Also after an error: what was changed in memory must not come back.
            del self._batches[task]
            if batch.rows or batch.gone:
                await self._write(batch.rows, batch.gone)
            for callback in batch.then:
                callback()

    def once_durable(self, callback: Callable[[], None]) -> None:
        """Call it when all that the calling task has written is on the disk."""
        batch = self._batches.get(trio.lowlevel.current_task())
        if batch is None:
            callback()
        else:
            batch.then.append(callback)

    async def _write(self, rows: list[tuple[str, str, str]], gone: list[tuple[str, str]]) -> None:
        forgotten, self._forgotten = self._forgotten, []
        gone = [*gone, *forgotten]
        async with self._turn:
            with trio.CancelScope(shield=True):
                try:
                    await trio.to_thread.run_sync(self._commit, rows, gone, limiter=self._limiter)
                except sqlite3.Error as error:
                    self._forgotten += forgotten
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


def _text_of(body: Any) -> str | bytes:
    return body if isinstance(body, str | bytes) else repr(body)


def _path_in(body: Any) -> str:
    """The path that a record speaks of, as far as it can be made out."""
    try:
        return str(msgspec.json.decode(body)["path"])
    except (msgspec.MsgspecError, TypeError, ValueError, KeyError):
        return ""
