"""What cannot be used any more is set aside, whole and reported; nothing of it is deleted.

One directory a start, `journal.set-aside-YYYYmmdd-HHMMSS` beside the journal, made when it is
needed. It is the user's from then on.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from f7tfs.content.disk import sync_directory

log = logging.getLogger("f7tfs.journal")
PREFIX = "journal.set-aside-"


class Aside:
    """`sentences`: what was set aside at this start, one sentence each, for the user."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._place: Path | None = None
        self.sentences: list[str] = []

    def move(self, *files: Path, below: str = "") -> Path:
        """Move what there is of `files` into the place, below a folder of it. Returns the place."""
        place = self._make()
        target = place / below
        target.mkdir(mode=0o700, exist_ok=True)
        for file in files:
            if file.exists():
                file.rename(target / file.name)
                sync_directory(file.parent)
        sync_directory(target)
        return place

    def write(self, name: str, text: str | bytes) -> Path:
        """A file in the place, on the disk when this returns. Returns the place."""
        place = self._make()
        file = place / name
        file.write_bytes(text.encode(errors="surrogateescape") if isinstance(text, str) else text)
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        sync_directory(place)
        return place

    def report(self, sentence: str) -> None:
        log.error("%s", sentence)
        self.sentences.append(sentence)

    def _make(self) -> Path:
        if self._place is None:
            place = self._directory / f"{PREFIX}{time.strftime('%Y%m%d-%H%M%S')}"
            while place.exists():
                place = place.with_name(f"{place.name}-2")
            place.mkdir(mode=0o700)
            sync_directory(self._directory)
            self._place = place
        return self._place


def left_in(directory: Path) -> list[Path]:
    """Everything that was ever set aside beside a journal and is still there."""
    places = sorted(directory.glob(f"{PREFIX}*"))
    unclosed = directory / "spool" / "unclosed"
    if unclosed.is_dir() and any(unclosed.iterdir()):
        places.append(unclosed)
    return places


def set_unclosed_aside(spool: Path, keep: set[str], ended: set[str]) -> None:
    """Of the spool's files, without those to `keep`: what has `ended` is removed, and what is
    empty; the rest was never closed, and is kept apart."""
    for file in spool.iterdir():
        if file.is_dir() or file.name in keep:
            continue
        is_empty = file.suffix in {".open", ".cut"} and file.stat().st_size == 0
        if file.name in ended or is_empty:
            file.unlink()
            continue
        aside = spool / "unclosed"
        aside.mkdir(mode=0o700, exist_ok=True)
        file.rename(aside / file.name)
        log.warning("a file that was never closed was set aside as %s", aside / file.name)
