"""Submissions: journaled before the call, sent at most once, behind the barrier.

    held ──► sending ──► submitted
               │ ├─────► refused    no job exists and none will be sent
               │ └─────► unknown    the reply was lost: reconciled by the tag, never sent again
               └───────► held       nothing was executed (API unreachable): sent later

The tag is the uploaded file's name on v1, which shows in the job's script path and in what the
server remembers of the submission, and the job's name on v2 (FACTS §9). A match by anything less
never links a job.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Collection

import trio

from f7tfs.api.port import Cluster
from f7tfs.content.spool import Spool, SpoolEntry
from f7tfs.errors import (
    F7tfsError,
    NoLocalSpace,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    Rejected,
    Unreachable,
)
from f7tfs.faultpoints import reached
from f7tfs.model import Job, Submitted, remote_path
from f7tfs.transfers.drops import Drop, Drops
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.upload import Uploads

log = logging.getLogger("f7tfs.submit")
PATIENCE = 5.0  # seconds inside close()
RECONCILE_FOR = 3600.0  # seconds for which a job of an unknown submission is looked for
FIRST_LOOK = 1.0  # seconds from one look to the next, at first
SLOWEST_TRY = 60.0
SLOWEST_LOOK = 300.0  # v1's look lists all tasks of the user, v2's the jobs of a day
CANCEL_TRIES = 3

# The scheduler's words → the option that may be missing.
_HINTS = {"account": "account", "reservation": "reservation", "partition": "partition"}


class Submissions:
    """All drops of one mount on their way to the scheduler."""

    def __init__(
        self,
        cluster: Cluster,
        drops: Drops,
        spool: Spool,
        uploads: Uploads,
        removals: Removals,
        nursery: trio.Nursery,
        *,
        barrier: bool,
    ) -> None:
        self._cluster = cluster
        self._drops = drops
        self._spool = spool
        self._uploads = uploads
        self._removals = removals
        self._nursery = nursery
        self._barrier = barrier
        self._ended: dict[str, trio.Event] = {}  # tag → its sending is settled
        self._awaited: set[str] = set()  # tags whose refusal close() will tell
        self._refusals: dict[str, F7tfsError] = {}  # tag → why, until it has
        self._searched: set[str] = set()  # tags of unknown submissions whose jobs are looked for
        self._another = trio.Event()  # there is one more

    @property
    def drops(self) -> Drops:
        return self._drops

    def waits_for(self, drop: Drop) -> list[SpoolEntry]:
        """The uploads that a held submission stands behind."""
        found = [self._spool.by_id(entry_id) for entry_id in drop.uploads]
        return [entry for entry in found if entry is not None]

    def held_behind(self, entry: SpoolEntry) -> list[Drop]:
        """Submissions that wait for this upload."""
        drops = self._drops.all()
        return [one for one in drops if one.state == "held" and entry.id in one.uploads]

    # Dropping.

    async def drop(
        self,
        name: str,
        script: bytes,
        *,
        job_name: str,
        account: str,
        directory: str,
        missing: tuple[str, ...],
        closing: bool,
    ) -> None:
        """A new drop: journaled, then sent once its inputs are on the cluster. `closing`: close()
        waits, for `PATIENCE` seconds; the refusal is raised if there is one by then."""
        drop = Drop(
            id=new_tag(name, job_name),
            name=name,
            state="held",
            created=time.time(),
            uploads=tuple(entry.id for entry in self._spool.owed()) if self._barrier else (),
            job_name=job_name,
            account=account,
            directory=directory,
            missing=missing,
        )
        await self._drops.add(drop, script)
        ended = self._ended[drop.id] = trio.Event()
        self._nursery.start_soon(self._bring, drop.id)
        if not closing:
            return
        self._awaited.add(drop.id)
        with trio.move_on_after(PATIENCE):
            await ended.wait()
        self._awaited.discard(drop.id)
        if drop.id in self._refusals:
            await ended.wait()  # until the record is closed
            raise self._refusals.pop(drop.id)

    async def refuse(self, name: str, script: bytes, error: F7tfsError) -> None:
        """A drop that is not even sent: its reason, and what was written, are kept."""
        refused = Drop(
            id=new_tag(name), name=name, state="refused", created=time.time(), error=words_of(error)
        )
        await self._drops.add(refused, script)

    # Sending.

    async def _bring(self, tag: str) -> None:
        """From held to an end, however long the API is away."""
        pause = 1.0
        try:
            while (drop := self._drops.tagged(tag)) is not None and drop.state == "held":
                try:
                    if self._barrier:
                        await self._inputs_are_there(drop)
                    await self._send(tag)
                except F7tfsError as error:  # nothing was sent
                    await self._settle(tag, state="held", error=str(error))
                    if self._cluster.breaker.is_offline:
                        await self._cluster.breaker.back()
                        continue
                    log.warning("%s is not submitted yet: %s", drop.name, error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, SLOWEST_TRY)
        except Exception:
            log.exception("submitting %s", tag)
            if (drop := self._drops.tagged(tag)) is not None and drop.state == "sending":
                await self._is_unknown(tag, "an internal error, see the log")
        finally:
            if (event := self._ended.pop(tag, None)) is not None:
                event.set()

    async def _inputs_are_there(self, drop: Drop) -> None:
        """A stuck upload holds the submission until somebody frees it. Raises what keeps a removal
        that was asked for earlier from being carried out."""
        while waiting := self.waits_for(drop):
            self._uploads.hurry(waiting)
            stuck = await self._uploads.settled(waiting)
            if not stuck:
                break
            named = ", ".join(f"{entry.path} ({entry.error})" for entry in stuck)
            words = f"waits for {named}: stuck"
            if (now := self._drops.tagged(drop.id)) is None or now.state != "held":
                return
            if now.error != words:
                log.warning("%s %s", drop.name, words)
                await self._drops.change(drop.id, error=words)
            await self._spool.changed.wait()
        await self._removals.names_are_there()

    async def _send(self, tag: str) -> None:
        drop = self._drops.tagged(tag)
        if drop is None or drop.state != "held":
            return  # removed while it waited
        script = self._drops.script(drop)
        drop = await self._drops.change(tag, state="sending", error="")
        if drop is None:
            return
        reached("submit.sending")
        try:
            done = await self._cluster.submit(
                script, tag, drop.account or None, remote_path(drop.directory)
            )
            reached("submit.sent")
        except OutcomeUnknown as error:
            await self._is_unknown(tag, str(error))
            log.error("it is not known whether %s was submitted: %s", drop.name, error)
        except F7tfsError as error:
            if isinstance(error, Unreachable | RateLimited):
                raise
            await self._is_refused(drop, error)
        else:
            await self._link(tag, done)
            reached("submit.settled")
            log.info("%s was submitted as job %s", drop.name, done.job_id)

    async def _is_refused(self, drop: Drop, error: F7tfsError) -> None:
        words = explained(words_of(error), drop.missing)
        log.warning("%s was refused: %s", drop.name, words)
        if isinstance(error, Rejected):
            error = Rejected(words)
        if drop.id in self._awaited:
            self._refusals[drop.id] = error
        await self._settle(drop.id, state="refused", error=words)

    async def _link(self, tag: str, done: Submitted) -> None:
        """The drop is this job. If it was removed meanwhile, so is the job."""
        drop = await self._settle(
            tag,
            state="submitted",
            error="",
            job_id=done.job_id,
            script_path=done.script_path,
            stdout_path=done.stdout_path,
            stderr_path=done.stderr_path,
        )
        if drop is not None and drop.withdrawn:
            self._nursery.start_soon(self._cancel_withdrawn, tag)

    async def _settle(self, tag: str, **changes: object) -> Drop | None:
        """What a call brought is written down, whatever else happens: only a crash may lose it."""
        with trio.CancelScope(shield=True):
            while True:
                try:
                    drop = await self._drops.change(tag, **changes)
                    break
                except NoLocalSpace as error:
                    log.error("%s cannot be written down, trying again: %s", tag, error)
                    await trio.sleep(1.0)
        return drop

    # Looking after what is not known.

    async def resume(self) -> None:
        """What an earlier daemon left: held ones go on; those that were being sent are unknown."""
        for drop in self._drops.all():
            if drop.state == "sending":
                await self._is_unknown(drop.id, "f7tfs ended during the call")
            elif drop.state == "held":
                self._nursery.start_soon(self._bring, drop.id)
            elif drop.state == "unknown":
                self._search_for(drop.id)
            elif drop.withdrawn:
                self._nursery.start_soon(self._cancel_withdrawn, drop.id)

    async def _is_unknown(self, tag: str, words: str) -> None:
        await self._settle(tag, state="unknown", error=words)
        self._search_for(tag)

    def _search_for(self, tag: str) -> None:
        self._searched.add(tag)
        self._another.set()

    async def search(self) -> None:
        """Look for the jobs of unknown submissions, for all by one call, ever more rarely, for an
        hour and at least once. What is sent once is not sent again: if there is no job, the user
        drops anew."""
        pause = FIRST_LOOK
        while True:
            if not self._searched:
                await self._another.wait()
            await self._cluster.breaker.back()
            if self._another.is_set():
                self._another, pause = trio.Event(), FIRST_LOOK
            self._searched = {tag for tag in self._searched if self._state(tag) == "unknown"}
            if not self._searched:
                continue
            wanted = frozenset(self._searched)
            if await self._look_for(wanted):
                for tag in wanted:
                    await self._give_up_old(tag)
            await trio.sleep(FIRST_LOOK)
            with trio.move_on_after(pause - FIRST_LOOK):
                await self._another.wait()
            pause = min(2 * pause, SLOWEST_LOOK)

    async def _give_up_old(self, tag: str) -> None:
        drop = self._drops.tagged(tag)
        if drop is None or drop.state != "unknown" or drop.created > time.time() - RECONCILE_FOR:
            return
        self._searched.discard(tag)
        log.warning("%s: no job of the tag %s was found", drop.name, tag)
        if drop.withdrawn:
            await self._drops.forget(drop)

    async def _look_for(self, tags: Collection[str]) -> bool:
        """Whether the server could be asked."""
        try:
            found = await self._cluster.submitted_as(tags)
        except F7tfsError as error:
            log.info("looking for the jobs of %s: %s", ", ".join(tags), error)
            return False
        for tag, submitted in found.items():
            await self._found(tag, submitted)
        return True

    async def _found(self, tag: str, found: Submitted) -> None:
        drop = self._drops.tagged(tag)
        if drop is not None and drop.state == "unknown":
            log.info("%s turned out to be job %s", drop.name, found.job_id)
            await self._link(tag, found)

    async def reconcile(self, jobs: list[Job]) -> None:
        """Link unknown submissions to jobs of a list that carry their tag."""
        for drop in self._drops.all():
            if drop.state != "unknown":
                continue
            for job in jobs:
                if drop.id in {job.name, job.script_path.rsplit("/", 1)[-1]}:
                    found = Submitted(job.id, job.script_path, job.stdout_path, job.stderr_path)
                    await self._found(drop.id, found)
                    break

    async def remember(self, job: Job) -> None:
        """The job of a drop is over: its end outlasts the scheduler's memory."""
        drop = self._drops.of_job(job.id)
        if drop is not None and drop.last != job:
            await self._drops.change(drop.id, last=job)

    # Removing.

    async def remove(self, name: str, *, is_over: bool = False) -> str | None:
        """rm of a dropped name: cancels its job, unless it is over. Returns the job's id if it was
        told to end. Of one whose job is not known, the name goes and the wish stays: the job is
        cancelled when it is found."""
        drop = self._drops.named(name)
        if drop is None:
            raise NotFound(name)
        tag = drop.id
        if drop.state == "sending" and (event := self._ended.get(tag)) is not None:
            with trio.move_on_after(PATIENCE):
                await event.wait()
        if self._state(tag) == "unknown":
            with trio.move_on_after(PATIENCE):
                await self._look_for([tag])
        drop = self._drops.tagged(tag)
        if drop is not None and drop.state == "submitted":
            is_over = is_over or drop.last is not None
            if not is_over:
                await self.cancel(drop.job_id)
            await self._drops.change(tag, named=False)
            return None if is_over else drop.job_id
        if drop is not None and drop.state == "held" and await self._drops.forget(drop):
            return None
        now = await self._drops.change(tag, named=False, withdrawn=True)
        if now is not None:
            log.warning("%s is removed; its job is cancelled if one turns up", name)
            if now.state == "submitted":  # it turned up just now
                await self._cancel_withdrawn(tag)
        return None

    def _state(self, tag: str) -> str:
        drop = self._drops.tagged(tag)
        return "" if drop is None else drop.state

    async def _cancel_withdrawn(self, tag: str) -> None:
        pause = 1.0
        while (drop := self._drops.tagged(tag)) is not None and drop.withdrawn:
            try:
                await self.cancel(drop.job_id)
            except F7tfsError as error:
                log.warning("job %s of %s, which was removed: %s", drop.job_id, drop.name, error)
                if not error.transient:
                    break
                await trio.sleep(pause)
                pause = min(2 * pause, SLOWEST_TRY)
            else:
                log.info("job %s of %s, which was removed, is cancelled", drop.job_id, drop.name)
                break
        await self._settle(tag, withdrawn=False)

    async def cancel(self, job_id: str) -> None:
        """Ends a job; already over is success. A job's number is never used again, so after a lost
        reply the call may be repeated where a look does not show that it is over."""
        for left in reversed(range(CANCEL_TRIES)):
            try:
                await self._cluster.cancel(job_id)
            except OutcomeUnknown as error:
                with contextlib.suppress(F7tfsError):
                    jobs = await self._cluster.accounting([job_id])
                    if jobs and all(job.state.is_over for job in jobs):
                        return
                if not left:
                    raise
                log.info("cancelling job %s once more: %s", job_id, error)
            else:
                return


def words_of(error: F7tfsError) -> str:
    return str(error) or type(error).__name__


def explained(words: str, missing: tuple[str, ...]) -> str:
    """A refusal, with the key that may help where the scheduler complains of what nobody set."""
    for needle, key in _HINTS.items():
        if needle in words.lower() and key in missing and f"jobs.{key}" not in words:
            return f"{words.rstrip()}\n(set jobs.{key}, or #SBATCH --{key} in the script)"
    return words


def new_tag(name: str, job_name: str = "") -> str:
    """A unique name that servers and shells keep as it is: train.sh → train-1a2b3c4d.sh, or what
    the script wants its job to be called, with the same digits."""
    stem, dot, suffix = name.rpartition(".")
    if job_name or not dot or not stem:
        stem, suffix = job_name or name, ""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:100] or "job"
    ending = re.sub(r"[^A-Za-z0-9]+", "", suffix)[:20]
    return f"{plain}-{secrets.token_hex(4)}" + (f".{ending}" if ending else "")
