"""Submissions: journaled before the call, sent at most once, behind the barrier.

    held ──► sending ──► submitted
               │ ├─────► refused    no job exists and none will be sent
               │ └─────► unknown    the reply was lost: reconciled by the tag, never sent again
               └───────► held       nothing was executed (API unreachable): sent later

The tag is the uploaded file's name. It shows in the job's script path, and as the job's name
where the script sets none (v1 FACTS §9). A match by anything less never links a job.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from pathlib import Path

import msgspec
import trio

from f7tfs.api.port import Cluster
from f7tfs.content.disk import Disk, sync_directory, write_all
from f7tfs.content.journal import Journal, SubmitRecord
from f7tfs.content.spool import Spool, SpoolEntry
from f7tfs.errors import (
    F7tfsError,
    NotFound,
    NotPermitted,
    OutcomeUnknown,
    RateLimited,
    Unreachable,
)
from f7tfs.faultpoints import reached
from f7tfs.model import Job, RemotePath
from f7tfs.transfers.upload import Uploads

log = logging.getLogger("f7tfs.submit")
Drop = SubmitRecord  # one drop as its readers see it
PATIENCE = 5.0  # seconds inside close()
RECONCILE_FOR = 3600.0


class Submissions:
    """All drops of one mount, by the name under which they show."""

    def __init__(
        self,
        cluster: Cluster,
        journal: Journal,
        spool: Spool,
        uploads: Uploads,
        disk: Disk,
        nursery: trio.Nursery,
        *,
        barrier: bool,
        account: str | None,
        directory: RemotePath,
    ) -> None:
        self._cluster = cluster
        self._journal = journal
        self._spool = spool
        self._uploads = uploads
        self._disk = disk
        self._nursery = nursery
        self._barrier = barrier
        self._account = account
        self._directory = directory
        self._records: dict[str, SubmitRecord] = {}  # by name; the newest drop of it
        self._ended: dict[str, trio.Event] = {}  # tag → its sending is settled
        self._refusals: dict[str, F7tfsError] = {}  # tag → why, until close() has told it
        for record in sorted(journal.load(SubmitRecord), key=lambda one: one.created):
            self._records[record.name] = record

    @staticmethod
    def files_of(journal: Journal) -> set[str]:
        """Names of spool files that submissions need."""
        return {f"{record.id}.script" for record in journal.load(SubmitRecord)}

    # Asking.

    def all(self) -> list[SubmitRecord]:
        return list(self._records.values())

    def named(self, name: str) -> SubmitRecord | None:
        return self._records.get(name)

    def of_job(self, job_id: str) -> SubmitRecord | None:
        return next((one for one in self._records.values() if one.job_id == job_id), None)

    def script(self, record: SubmitRecord) -> bytes:
        return self._file(record.id).read_bytes()

    def waits_for(self, record: SubmitRecord) -> list[SpoolEntry]:
        """The uploads that a held submission stands behind."""
        found = [self._spool.by_id(entry_id) for entry_id in record.uploads]
        return [entry for entry in found if entry is not None]

    def held_behind(self, entry: SpoolEntry) -> list[SubmitRecord]:
        """Submissions that wait for this upload."""
        return [one for one in self.all() if one.state == "held" and entry.id in one.uploads]

    # Dropping.

    async def drop(self, name: str, script: bytes) -> SubmitRecord:
        """A new drop: journaled, then sent once its inputs are on the cluster. Returns within
        `PATIENCE` seconds of waiting for them; raises the refusal if there is one by then."""
        record = SubmitRecord(
            id=new_tag(name),
            name=name,
            state="held",
            created=time.time(),
            uploads=self._owed() if self._barrier else (),
        )
        await self._disk.run(lambda: self._store(record.id, script))
        reached("submit.stored")
        await self._supersede(record)
        reached("submit.recorded")
        ended = self._ended[record.id] = trio.Event()
        self._nursery.start_soon(self._bring, record.id)
        with trio.move_on_after(PATIENCE):
            await ended.wait()
        now = self._by_tag(record.id) or record
        refusal = self._refusals.pop(record.id, None)
        if refusal is not None:
            raise refusal
        return now

    def _owed(self) -> tuple[str, ...]:
        return tuple(entry.id for entry in self._spool.owed())

    def _store(self, tag: str, script: bytes) -> None:
        fd = os.open(self._file(tag), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, script, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(self._spool.directory)

    def _file(self, tag: str) -> Path:
        return self._spool.directory / f"{tag}.script"

    def _remove_script(self, tag: str) -> None:
        file = self._file(tag)
        file.unlink(missing_ok=True)
        self._journal.forget_ended(file.name)

    async def _supersede(self, record: SubmitRecord) -> None:
        """The name means the newer drop from now on; the older job stays as its number. A held
        or unsettled older drop goes on under its tag."""
        old = self._records.get(record.name)
        drop: tuple[tuple[type[SubmitRecord], str], ...] = ()
        put = [record]
        if old is not None and old.state in {"submitted", "refused"}:
            drop = ((SubmitRecord, old.id),)
        elif old is not None:
            aside = msgspec.structs.replace(old, name=f"{old.name}.{old.id[-8:]}")
            self._records[aside.name] = aside
            put.append(aside)
        self._records[record.name] = record
        await self._journal.write(*put, drop=drop)
        if drop and old is not None:
            self._remove_script(old.id)

    # Sending.

    async def _bring(self, tag: str) -> None:
        """From held to an end, however long the API is away."""
        pause = 1.0
        try:
            while (record := self._by_tag(tag)) is not None and record.state == "held":
                await self._inputs_are_there(record)
                record = self._by_tag(tag)
                if record is None or record.state != "held":
                    return
                try:
                    await self._send(record)
                except (Unreachable, RateLimited) as error:
                    await self._move(tag, state="held", error=str(error))
                    if self._cluster.breaker.is_offline:
                        await self._cluster.breaker.back()
                        continue
                    log.warning("%s is not submitted yet: %s", record.name, error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, 60.0)
        except Exception:
            log.exception("submitting %s", tag)
            if (record := self._by_tag(tag)) is not None and record.state == "sending":
                await self._move(tag, state="unknown", error="an internal error, see the log")
        finally:
            if (event := self._ended.pop(tag, None)) is not None:
                event.set()

    async def _inputs_are_there(self, record: SubmitRecord) -> None:
        """A stuck upload holds the submission until somebody frees it."""
        while waiting := self.waits_for(record):
            self._uploads.hurry(waiting)
            stuck = await self._uploads.settled(waiting)
            if not stuck:
                return
            names = ", ".join(entry.path for entry in stuck)
            await self._move(record.id, error=f"waits for {names}, which is stuck")
            await self._spool.changed.wait()

    async def _send(self, record: SubmitRecord) -> None:
        script = self.script(record)
        await self._move(record.id, state="sending", error="")
        reached("submit.sending")
        try:
            done = await self._cluster.submit(script, record.id, self._account, self._directory)
            reached("submit.sent")
        except OutcomeUnknown as error:
            await self._move(record.id, state="unknown", error=str(error))
            log.error("it is not known whether %s was submitted: %s", record.name, error)
        except F7tfsError as error:
            if isinstance(error, Unreachable | RateLimited):
                raise
            await self._move(record.id, state="refused", error=str(error) or type(error).__name__)
            self._refusals[record.id] = error
            log.warning("%s was refused: %s", record.name, error)
        else:
            await self._move(
                record.id,
                state="submitted",
                error="",
                job_id=done.job_id,
                script_path=done.script_path,
                stdout_path=done.stdout_path,
                stderr_path=done.stderr_path,
            )
            reached("submit.settled")
            log.info("%s was submitted as job %s", record.name, done.job_id)

    # Looking after what is not known.

    async def resume(self) -> None:
        """What an earlier daemon left: held ones go on; those that were being sent are unknown."""
        for record in self.all():
            if record.state == "sending":
                await self._move(record.id, state="unknown", error="f7tfs ended during the call")
            elif record.state == "held":
                self._nursery.start_soon(self._bring, record.id)

    async def reconcile(self, jobs: list[Job]) -> None:
        """Link unknown submissions to jobs that carry their tag."""
        for record in self.all():
            if record.state != "unknown":
                continue
            for job in jobs:
                if record.id in {job.name, job.script_path.rsplit("/", 1)[-1]}:
                    await self._move(
                        record.id,
                        state="submitted",
                        error="",
                        job_id=job.id,
                        script_path=job.script_path,
                        stdout_path=job.stdout_path,
                        stderr_path=job.stderr_path,
                    )
                    log.info("%s turned out to be job %s", record.name, job.id)
                    break

    def has_unknown(self) -> bool:
        now = time.time()
        return any(
            one.state == "unknown" and now - one.created < RECONCILE_FOR for one in self.all()
        )

    # Removing.

    async def remove(self, name: str) -> str | None:
        """rm of a dropped name: cancels its job. Returns the job's id if one was cancelled."""
        record = self._records.get(name)
        if record is None:
            raise NotFound(name)
        if record.state in {"sending", "unknown"}:
            raise NotPermitted(
                f"it is not known yet which job {name} became ({record.error or record.state})"
            )
        if record.state == "submitted":
            await self._cluster.cancel(record.job_id)
        if self._records.get(name) is record:
            del self._records[name]  # before the first wait: a held one is not sent any more
        await self._journal.write(drop=((SubmitRecord, record.id),))
        self._remove_script(record.id)
        return record.job_id or None

    def _by_tag(self, tag: str) -> SubmitRecord | None:
        return next((one for one in self._records.values() if one.id == tag), None)

    async def _move(self, tag: str, **changes: str) -> None:
        record = self._by_tag(tag)
        if record is not None:
            changed = msgspec.structs.replace(record, **changes)
            self._records[record.name] = changed
            await self._journal.write(changed)


def new_tag(name: str) -> str:
    """A unique file name that the server keeps as it is: train.sh → train-1a2b3c4d.sh."""
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem:
        stem, suffix = name, "sh"
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:100] or "job"
    ending = re.sub(r"[^A-Za-z0-9]+", "", suffix)[:20] or "sh"
    return f"{plain}-{secrets.token_hex(4)}.{ending}"
