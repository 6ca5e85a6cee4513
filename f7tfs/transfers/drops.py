"""The drops of one mount: their records in memory and in the journal, their scripts in the spool.

Every change is on the disk before it is in memory, one after the other, so that whoever looks at a
record sees what a crash would leave.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import trio

from f7tfs.content.disk import Disk, sync_directory, write_all
from f7tfs.content.journal import DismissedRecord, Journal, Record, SubmitRecord
from f7tfs.errors import NotFound
from f7tfs.faultpoints import reached

Drop = SubmitRecord
KEEP = 2 * 86400.0  # seconds that a job without a name is remembered after the scheduler forgot it


class Drops:
    def __init__(self, journal: Journal, directory: Path, disk: Disk) -> None:
        self._journal = journal
        self._directory = directory
        self._disk = disk
        self._turn = trio.Lock()
        self._by_tag: dict[str, Drop] = {}
        self._tags_of: dict[str, list[str]] = {}  # name → tags, the newest last
        self._tag_of_job: dict[str, str] = {}
        self.version = 0  # counts changes; `changed` is replaced at each, wait for the present one
        self.changed = trio.Event()
        self._dismissed = {one.id: one for one in journal.load(DismissedRecord)}
        for record in sorted(journal.load(SubmitRecord), key=lambda one: one.created):
            self._put(record)

    @staticmethod
    def files_of(journal: Journal) -> set[str]:
        """Names of spool files that drops need."""
        return {f"{record.id}.script" for record in journal.load(SubmitRecord)}

    # Asking.

    def all(self) -> list[Drop]:
        return list(self._by_tag.values())

    def shown(self) -> list[Drop]:
        """Those that their names mean now, and the refused ones."""
        return [
            one
            for one in self._by_tag.values()
            if one is self.named(one.name) or one is self.refused(one.name)
        ]

    def tagged(self, tag: str) -> Drop | None:
        return self._by_tag.get(tag)

    def named(self, name: str) -> Drop | None:
        """What a name means: its newest drop that was not refused."""
        return self._newest(name, refused=False)

    def refused(self, name: str) -> Drop | None:
        """The newest drop of a name, if that was refused."""
        return self._newest(name, refused=True)

    def _newest(self, name: str, *, refused: bool) -> Drop | None:
        for tag in reversed(self._tags_of.get(name, ())):
            drop = self._by_tag[tag]
            if drop.named and (drop.state == "refused") is refused:
                return drop
        return None

    def of_job(self, job_id: str) -> Drop | None:
        return self._by_tag.get(self._tag_of_job.get(job_id, ""))

    def script(self, drop: Drop) -> bytes:
        """Raises NotFound if the spool has lost it."""
        try:
            return self._file(drop.id).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"the script of {drop.name} is missing in the spool") from None

    def script_size(self, drop: Drop) -> int:
        try:
            return self._file(drop.id).stat().st_size
        except FileNotFoundError:
            return 0

    def is_dismissed(self, job_id: str) -> bool:
        return job_id in self._dismissed

    # Changing.

    async def add(self, drop: Drop, script: bytes) -> None:
        """A new drop, durable when this returns. Older ones of its name that are not settled go on
        under their tags; the complaint about a refused one ends."""
        async with self._turn:
            await self._disk.run(lambda: self._store(drop.id, script))
            reached("submit.stored")
            put: list[Drop] = [drop]
            gone: list[Drop] = []
            for tag in self._tags_of.get(drop.name, ()):
                old = self._by_tag[tag]
                if old.state == "refused":
                    gone.append(old)
                elif old.state != "submitted" and old.named:
                    put.append(msgspec.structs.replace(old, name=old.id))
            await self._write(put, gone)
            reached("submit.recorded")

    async def change(self, tag: str, **changes: Any) -> Drop | None:
        """The record after the change; None if there is none any more."""
        async with self._turn:
            drop = self._by_tag.get(tag)
            if drop is None:
                return None
            changed = msgspec.structs.replace(drop, **changes)
            put = [changed]
            if changed.state == "submitted" and drop.state != "submitted" and changed.named:
                put += self._older(changed)
            await self._write(put, ())
            return changed

    def _older(self, drop: Drop) -> list[Drop]:
        """The name means the newer job from now on, the older stays as its number."""
        others = (self._by_tag[tag] for tag in self._tags_of[drop.name] if tag != drop.id)
        return [
            msgspec.structs.replace(one, named=False)
            for one in others
            if one.state == "submitted" and one.named and one.created <= drop.created
        ]

    async def forget(self, drop: Drop) -> bool:
        """End a record, if it is still in that state."""
        async with self._turn:
            now = self._by_tag.get(drop.id)
            if now is None or now.state != drop.state:
                return now is None
            await self._write((), (now,))
            return True

    async def dismiss(self, job_id: str) -> None:
        """The job's directory is not shown any more."""
        record = DismissedRecord(id=job_id, since=time.time())
        await self._journal.write(record)
        self._dismissed[job_id] = record
        self._has_changed()

    async def prune(self, told: Iterable[str]) -> None:
        """Forget what was only kept for jobs that the scheduler does not tell of any more."""
        known, edge = set(told), time.time() - KEEP
        old = [
            one
            for one in self._by_tag.values()
            if not one.named
            and not one.withdrawn
            and one.state == "submitted"
            and one.created < edge
            and one.job_id not in known
        ]
        for drop in old:
            await self.forget(drop)
        gone = [
            name for name, one in self._dismissed.items() if name not in known and one.since < edge
        ]
        if gone:
            await self._journal.write(drop=tuple((DismissedRecord, name) for name in gone))
            for name in gone:
                self._dismissed.pop(name, None)
            self._has_changed()

    async def _write(self, put: Iterable[Drop], gone: Iterable[Drop]) -> None:
        ended: tuple[tuple[type[Record], str], ...] = tuple((SubmitRecord, one.id) for one in gone)
        await self._journal.write(*put, drop=ended)
        for one in gone:
            self._pop(one)
            file = self._file(one.id)
            file.unlink(missing_ok=True)
            self._journal.forget_ended(file.name)
        for one in put:
            self._put(one)
        self._has_changed()

    def _has_changed(self) -> None:
        self.version += 1
        event, self.changed = self.changed, trio.Event()
        event.set()

    def _put(self, drop: Drop) -> None:
        old = self._by_tag.get(drop.id)
        if old is not None and old.name != drop.name:
            self._tags_of[old.name].remove(drop.id)
        self._by_tag[drop.id] = drop
        tags = self._tags_of.setdefault(drop.name, [])
        if drop.id not in tags:
            tags.append(drop.id)
        if drop.job_id:
            self._tag_of_job[drop.job_id] = drop.id

    def _pop(self, drop: Drop) -> None:
        del self._by_tag[drop.id]
        self._tags_of[drop.name].remove(drop.id)
        if not self._tags_of[drop.name]:
            del self._tags_of[drop.name]
        if self._tag_of_job.get(drop.job_id) == drop.id:
            del self._tag_of_job[drop.job_id]

    def _store(self, tag: str, script: bytes) -> None:
        fd = os.open(self._file(tag), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, script, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(self._directory)

    def _file(self, tag: str) -> Path:
        return self._directory / f"{tag}.script"
