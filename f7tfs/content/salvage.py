"""What a spool and its journal hold, read without opening them as a daemon does.

Nothing is changed: a journal that nobody holds is copied before SQLite looks at it (recovery of
its log would write); one that a daemon holds is read beside it. What cannot be read of a damaged
one is left out, and its files are shown without their names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from f7tfs.content.journal import Record, SubmitRecord, UploadRecord

R = TypeVar("R", bound=Record)
DATABASE = "journal.sqlite"
SET_ASIDE = "journal.set-aside-*"
UNCLOSED = "unclosed"


class Found(msgspec.Struct, frozen=True):
    """One spool, with what the journal beside it says. `key` is (URL, system, user, remote path);
    `nameless` are files that no record speaks of, `unclosed` those that were written and never
    closed."""

    directory: Path
    is_held: bool  # by a daemon
    key: tuple[str, str, str, str] | None = None
    uploads: tuple[UploadRecord, ...] = ()
    scripts: tuple[SubmitRecord, ...] = ()
    damage: str = ""
    nameless: tuple[Path, ...] = ()
    unclosed: tuple[Path, ...] = ()

    def file_of(self, record_id: str) -> Path:
        return self.directory / "spool" / record_id


def places(state_directory: Path) -> list[Path]:
    """Directories below a state directory that hold a journal or a spool, those set aside too."""
    found = []
    for directory in sorted(state_directory.glob("*/*")):
        if (directory / DATABASE).exists() or (directory / "spool").is_dir():
            found.append(directory)
        found += sorted(one for one in directory.glob(SET_ASIDE) if one.is_dir())
    return found


def read(directory: Path) -> Found:
    """Everything that is owed here. Raises OSError when the directory cannot be read."""
    is_held = _is_held(directory)
    key, damage = None, ""
    uploads: list[UploadRecord] = []
    scripts: list[SubmitRecord] = []
    try:
        with _opened(directory, is_held) as database:
            key = _key(database)
            uploads, harm = _records(database, UploadRecord)
            scripts, more = _records(database, SubmitRecord)
            damage = harm or more
    except FileNotFoundError:
        damage = "the journal is missing"
    except sqlite3.Error as error:
        damage = str(error)
    known = {one.id for one in uploads} | {f"{one.id}.script" for one in scripts}
    nameless, unclosed = _others(directory / "spool", known)
    # Without a record, a file of a sound journal is on the cluster, or its close() never returned.
    is_sound = not damage and not directory.match(SET_ASIDE)
    return Found(
        directory,
        is_held,
        key,
        tuple(uploads),
        tuple(one for one in scripts if one.state != "submitted"),
        damage,
        () if is_sound else nameless,
        unclosed,
    )


def _is_held(directory: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False


@contextlib.contextmanager
def _opened(directory: Path, is_held: bool) -> Iterator[sqlite3.Connection]:
    """A daemon that starts while a copy is made sees nothing of it; the copy is then older."""
    with contextlib.ExitStack() as stack:
        if not is_held:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="f7tfs-")))
            shutil.copyfile(directory / DATABASE, folder / DATABASE)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(directory / f"{DATABASE}-wal", folder / f"{DATABASE}-wal")
            directory = folder
        mode = "ro" if is_held else "rw"
        database = sqlite3.connect(f"{(directory / DATABASE).as_uri()}?mode={mode}", uri=True)
        stack.callback(database.close)
        yield database


def _key(database: sqlite3.Connection) -> tuple[str, str, str, str] | None:
    with contextlib.suppress(sqlite3.Error):
        row = database.execute("SELECT value FROM about WHERE name = 'key'").fetchone()
        parts = str(row[0]).split("\n", 3) if row else []
        if len(parts) == 4:
            return parts[0], parts[1], parts[2], parts[3]
    return None


def _records(database: sqlite3.Connection, record_type: type[R]) -> tuple[list[R], str]:
    """What can be read of one kind, and what went wrong ("" for nothing)."""
    found: list[R] = []
    damage = ""
    try:
        for (body,) in database.execute(
            "SELECT body FROM records WHERE kind = ?", (record_type.kind,)
        ):
            try:
                found.append(msgspec.json.decode(body, type=record_type))
            except (msgspec.DecodeError, TypeError) as error:
                damage = f"a record cannot be read: {error}"
    except sqlite3.Error as error:
        damage = str(error)
    return found, damage


def _others(spool: Path, known: set[str]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Files that no record speaks of: those that were closed once, and those that never were."""
    nameless: list[Path] = []
    unclosed: list[Path] = []
    if spool.is_dir():
        for file in sorted(spool.iterdir()):
            if not file.is_file() or file.name in known:
                continue
            if file.suffix == ".open":
                if file.stat().st_size:
                    unclosed.append(file)
            else:
                nameless.append(file)
        aside = spool / UNCLOSED
        if aside.is_dir():
            unclosed += sorted(file for file in aside.iterdir() if file.is_file())
    return tuple(nameless), tuple(unclosed)
