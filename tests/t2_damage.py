"""What a start makes of a journal or a spool that was damaged: reported in one sentence, set aside
whole, nothing deleted, and nothing hides what is sound (docs/decisions/0007)."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from t2_content import PATH, Box, box

from f7tfs.content.journal import (
    Journal,
    LitterRecord,
    RemovalRecord,
    SubmitRecord,
    TimesRecord,
    UploadRecord,
)
from f7tfs.content.spool import State
from f7tfs.errors import NotUsable
from f7tfs.model import RemotePath

__all__ = ["box"]


def sql(box: Box, statement: str, *values: object) -> None:
    """With another program's eyes, while nobody has it open."""
    with contextlib.closing(sqlite3.connect(box.folder / "journal.sqlite")) as database:
        with database:
            database.execute(statement, values)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def closed(box: Box) -> str:
    """A file with its record in the spool of a daemon that has ended; its id."""
    entry = box.file()
    box.run(box.spool.commit, entry)
    box.close()
    sql(box, "PRAGMA user_version = 0")
    return str(entry.id)


def zero(box: Box) -> None:
    size = (box.folder / "journal.sqlite").stat().st_size
    (box.folder / "journal.sqlite").write_bytes(bytes(size))


def tear(box: Box) -> None:
    """The second half of each page is what it was before, say, nothing."""
    content = bytearray((box.folder / "journal.sqlite").read_bytes())
    for start in range(4096, len(content), 4096):
        content[start + 100 : start + 4096] = bytes(3996)
    (box.folder / "journal.sqlite").write_bytes(content)


WHOLE: dict[str, Callable[[Box], object]] = {
    "garbage": lambda box: (box.folder / "journal.sqlite").write_bytes(b"garbage" * 5000),
    "truncated": lambda box: os.truncate(box.folder / "journal.sqlite", 5000),
    "empty": lambda box: os.truncate(box.folder / "journal.sqlite", 0),
    "lost": lambda box: (box.folder / "journal.sqlite").unlink(),
    "zeroed": zero,
    "torn": tear,
    "another key": lambda box: sql(box, "UPDATE about SET value = 'x' WHERE name = 'key'"),
    "no version": lambda box: sql(box, "UPDATE about SET value = 'old' WHERE name = 'version'"),
    "no table": lambda box: sql(box, "DROP TABLE about"),
    "another table": lambda box: sql(box, "ALTER TABLE records RENAME COLUMN body TO words"),
}


@pytest.mark.parametrize("damage", WHOLE)
def test_a_journal_that_cannot_be_used(box: Box, damage: str) -> None:
    """Set aside whole with its spool, under a name that says so; a new one is begun."""
    name = closed(box)
    WHOLE[damage](box)
    file = box.folder / "journal.sqlite"
    bytes_before = file.read_bytes() if file.exists() else None
    box.open()
    assert list(box.spool) == []
    (place,) = box.spool.set_aside()
    assert place.name.startswith("journal.set-aside-")
    assert (place / "spool" / name).read_bytes() == b"content"
    if damage in {"garbage", "truncated", "zeroed", "torn"}:
        assert (place / "journal.sqlite").read_bytes() == bytes_before
    (sentence,) = box.journal.aside.sentences
    assert sentence.endswith(f"it and its spool were moved to {place}")
    assert "\n" not in sentence
    entry = box.file()
    box.run(box.spool.commit, entry)
    box.again()
    assert [one.id for one in box.spool] == [entry.id]
    assert box.journal.aside.sentences == []
    assert box.spool.set_aside() == [place]


def test_a_lost_write_ahead_log_takes_nothing_along(box: Box) -> None:
    """A file that no record speaks of is set aside; only one whose record has ended is removed."""
    box.close()
    sql(box, "PRAGMA user_version = 0")
    before = (box.folder / "journal.sqlite").read_bytes()
    box.open()
    entry = box.file()
    box.run(box.spool.commit, entry)
    copy = box.folder.parent / "spool"
    shutil.copytree(box.folder / "spool", copy)
    box.close()
    (box.folder / "journal.sqlite").write_bytes(before)
    for name in ("journal.sqlite-wal", "journal.sqlite-shm"):
        (box.folder / name).unlink(missing_ok=True)
    box.open()
    assert list(box.spool) == []
    assert (box.folder / "spool/unclosed" / entry.id).read_bytes() == b"content"
    assert box.spool.set_aside() == [box.folder / "spool/unclosed"]


def test_a_newer_journal_is_refused(box: Box) -> None:
    """It is whole, and a newer f7tfs can read it: nothing of it is touched."""
    name = closed(box)
    sql(box, "UPDATE about SET value = 2 WHERE name = 'version'")
    before = sorted(one.name for one in box.folder.rglob("*"))
    with pytest.raises(NotUsable, match=r"written by a newer f7tfs \(version 2 .* knows 1\)"):
        Journal(box.folder, "key")
    assert sorted(one.name for one in box.folder.rglob("*")) == before
    assert (box.folder / "spool" / name).read_bytes() == b"content"
    sql(box, "UPDATE about SET value = 1 WHERE name = 'version'")
    box.open()
    assert [one.id for one in box.spool] == [name]


RECORDS = [
    RemovalRecord(id="1", path="/r/gone", is_directory=False, fingerprint=None, sequence=1),
    LitterRecord(id="/r/.f7tfs-x"),
    SubmitRecord(id="tag.sh", name="job", state="held", created=0.0),
]


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", '{"id": 7}', '{"id": "other"}', None, b"\xff\xfe", 3.5, '{"base": {"size":'],
    ids=repr,
)
def test_one_bad_record_hides_no_other(box: Box, body: object) -> None:
    """Of every kind: it is set aside with its bytes, and the others are what they were."""
    bad, good = box.file(), box.file(RemotePath("/remote/good"))
    box.run(box.spool.commit, bad)
    box.run(box.spool.commit, good)
    box.run(box.journal.write, *RECORDS)
    box.close()
    sql(box, "UPDATE records SET body = ? WHERE kind = 'upload' AND id = ?", body, bad.id)
    for kind in ("removal", "litter", "submit", "times"):
        sql(box, "INSERT INTO records VALUES (?, 'a/b', ?)", kind, body)
    box.open()
    assert [one.id for one in box.spool] == [good.id]
    for record in RECORDS:
        assert box.journal.load(type(record)) == [record]
    assert box.journal.load(TimesRecord) == []
    assert len(box.journal.aside.sentences) == 5
    (place,) = box.spool.set_aside()
    assert (place / "spool" / bad.id).read_bytes() == b"content"
    names = {"litter-a_b", "removal-a_b", "submit-a_b", "times-a_b", f"upload-{bad.id}"}
    assert {one.name for one in place.glob("*.json")} == {f"{name}.json" for name in names}
    box.again()
    assert box.journal.aside.sentences == []


def test_a_bad_record_is_named_by_its_path(box: Box) -> None:
    name = closed(box)
    sql(box, "UPDATE records SET body = json_set(body, '$.base', 'new words') WHERE id = ?", name)
    box.open()
    (sentence,) = box.journal.aside.sentences
    assert sentence.startswith(f"the upload record {PATH} cannot be read (")


def test_records_of_unknown_kinds_stay(box: Box) -> None:
    """A newer f7tfs may know what to do with them, and with files that it keeps in the spool."""
    box.close()
    sql(box, "INSERT INTO records VALUES ('novel', 'x', '{}')")
    (box.folder / "spool" / "theirs").write_bytes(b"theirs")
    box.open()
    assert box.journal.aside.sentences == [
        "the journal holds records of unknown kinds (novel); they stay"
    ]
    assert (box.folder / "spool/unclosed/theirs").read_bytes() == b"theirs"
    box.close()
    with contextlib.closing(sqlite3.connect(box.folder / "journal.sqlite")) as database:
        assert database.execute("SELECT id FROM records").fetchall() == [("x",)]
    box.open()


def test_a_missing_spool_file(box: Box) -> None:
    """Reported once, and its record kept for whoever looks for the bytes."""
    name = closed(box)
    (box.folder / "spool" / name).unlink()
    box.open()
    box.run(box.spool.set_missing_aside)
    assert list(box.spool) == []
    (sentence,) = box.journal.aside.sentences
    assert sentence.startswith(f"{PATH} is not uploaded: its bytes are not in the spool (No such")
    (place,) = box.spool.set_aside()
    assert PATH in (place / f"upload-{name}.json").read_text()
    assert box.journal.load(UploadRecord) == []


def test_a_short_spool_file(box: Box) -> None:
    """It is stuck: only the user can tell whether the rest is worth anything."""
    name = closed(box)
    os.truncate(box.folder / "spool" / name, 3)
    words = "its file in the spool has 3 of 7 bytes; retry sends them, discard gives them up"
    for _ in range(2):
        box.open()
        (entry,) = box.spool
        assert (entry.state, entry.error) == (State.STUCK, words)
        assert box.journal.aside.sentences == [f"{PATH} is not uploaded: {words}"]
        box.close()
    box.open()


def test_a_file_that_was_truncated_here_is_not_damaged(box: Box) -> None:
    """As on any disk, a truncate(2) may survive a crash before its close."""
    entry = box.file()
    box.run(box.spool.commit, entry)
    entry.truncate(2)
    box.again()
    (back,) = box.spool
    assert (back.state, back.size) == (State.QUEUED, 2)
    back.truncate(1)
    box.run(box.spool.commit, back)
    assert not list(box.folder.rglob("*.cut"))
    box.again()
    (back,) = box.spool
    assert (back.state, back.size) == (State.QUEUED, 1)


@pytest.mark.parametrize("kind", ["directory", "file", "database"])
def test_a_place_that_cannot_be_written(box: Box, tmp_path: Path, kind: str) -> None:
    """One sentence, and nothing is set aside: what is there may be sound."""
    closed(box)
    folder = box.folder
    if kind == "file":
        folder = tmp_path / "file"
        folder.write_text("not a directory")
    elif kind == "directory":
        folder = tmp_path / "no" / "\0"
    else:
        (box.folder / "journal.sqlite").rename(tmp_path / "kept")
        (box.folder / "journal.sqlite").mkdir()
    with pytest.raises((NotUsable, ValueError)) as caught:
        Journal(folder, "key")
    if kind != "directory":
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    if kind == "database":
        (box.folder / "journal.sqlite").rmdir()
        (tmp_path / "kept").rename(box.folder / "journal.sqlite")
    assert not list(box.folder.glob("journal.set-aside-*"))
    box.open()
