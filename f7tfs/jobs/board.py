"""The job board: what the scheduler tells of the user's jobs, in one question for all of them.

It is asked when somebody looks and the last answer is older than the poll interval; while nobody
does, ever more rarely, and only while a job that was dropped here is not over. What it tells is
smoothed: the accounting lags behind the queue (FACTS §9), and no job is shown going backwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

import msgspec
import trio

from f7tfs.api.port import Cluster
from f7tfs.errors import F7tfsError, QueueUnreadable
from f7tfs.jobs.arrays import array_of, element_path, is_single, sums_of
from f7tfs.model import Job, JobState, Submitted
from f7tfs.transfers.drops import Drop
from f7tfs.transfers.submit import Submissions

log = logging.getLogger("f7tfs.jobs")
STALE = 5  # poll intervals after which a look waits for the refresh,
PATIENCE = 3.0  # for so many seconds, if there is an older board to show
BELIEVE = 30.0  # seconds for which a job that goes backwards is taken for the accounting's lag
REASONS = 30.0  # seconds between two questions why jobs wait
UNHEARD = 60.0  # seconds between two questions for a job that the list leaves out
AT_ONCE = 20  # of those in one refresh
ONE_BY_ONE = 10  # jobs asked for singly where the list cannot be had


class JobBoard:
    """`interval`: seconds between questions while somebody looks; `idle`: at most, else.
    `transfers`: show FirecREST's own jobs as well."""

    def __init__(
        self,
        cluster: Cluster,
        submissions: Submissions,
        nursery: trio.Nursery,
        *,
        interval: float,
        idle: float,
        transfers: bool,
    ) -> None:
        self._cluster = cluster
        self._submissions = submissions
        self._drops = submissions.drops
        self._nursery = nursery
        self._interval = interval
        self._idle = max(idle, interval)
        self._transfers = transfers
        self._jobs: dict[str, Job] = {}  # as told last, smoothed
        self._paths: dict[str, Submitted] = {}  # of jobs that were not dropped here
        self._doubted: dict[str, float] = {}  # id → since when it is told to have gone backwards
        self._unheard: dict[str, float] = {}  # id → when it was asked for singly
        self._seen = self._tried = self._reasons = -float("inf")
        self._refreshing: trio.Event | None = None
        self._error: F7tfsError | None = None
        self._version = 0
        self._known: tuple[object, dict[str, Job]] = (None, {})

    # Looking.

    async def jobs(self) -> Mapping[str, Job]:
        """All jobs of the user that the scheduler tells of and those dropped here, by id, arrays
        also as a whole. Raises what the first look raises; later faults leave the last board."""
        now = trio.current_time()
        if now - self._tried > self._interval:
            done = self._refresh_soon()
            if now - self._seen > STALE * self._interval:
                is_first = self._seen == -float("inf")
                with trio.move_on_after(float("inf") if is_first else PATIENCE):
                    await done.wait()
        if self._seen == -float("inf") and self._error is not None:
            raise self._error.again()
        return self.known()

    def glance(self) -> Mapping[str, Job]:
        """The same for somebody who looks at something else: never waits, and asks seldom."""
        if trio.current_time() - self._tried > STALE * self._interval:
            self._refresh_soon()
        return self.known()

    def known(self) -> Mapping[str, Job]:
        """What was told, and what was dropped here."""
        version = (self._version, self._drops.version)
        if self._known[0] != version:
            self._known = (version, self._whole())
        return self._known[1]

    def _whole(self) -> dict[str, Job]:
        told = [job for job in self._jobs.values() if self._transfers or not job.is_transfer]
        found = {job.id: self._with_paths(job) for job in told if is_single(job.id)}
        found |= sums_of(told)
        for drop in self._drops.all():
            if drop.job_id:
                job = found.get(drop.job_id) or drop.last or self._untold(drop)
                found[drop.job_id] = as_dropped(job, drop)
        return {name: job for name, job in found.items() if not self._is_dismissed(name)}

    def _is_dismissed(self, job_id: str) -> bool:
        """With an array go its elements, also those that are told of only later."""
        array = array_of(job_id)
        return self._drops.is_dismissed(job_id) or (
            array is not None and self._drops.is_dismissed(array)
        )

    def _untold(self, drop: Drop) -> Job:
        """A job that the scheduler does not speak of: too new, or too old."""
        if drop.job_id in self._unheard and time.time() - drop.created > BELIEVE:
            return Job(id=drop.job_id, state=JobState.OTHER, state_text="UNKNOWN")
        return Job(id=drop.job_id, state_text="PENDING")

    def _with_paths(self, job: Job) -> Job:
        paths = self._paths.get(job.id)
        number = array_of(job.id)
        drop = None if number is None else self._drops.of_job(number)
        if drop is not None:
            job = msgspec.structs.replace(
                job,
                name=drop.job_name or drop.name,
                script_path=drop.script_path,
                stdout_path=job.stdout_path or element_path(drop.stdout_path, job.id),
                stderr_path=job.stderr_path or element_path(drop.stderr_path, job.id),
            )
        if paths is None:
            return job
        return msgspec.structs.replace(
            job,
            script_path=job.script_path or paths.script_path,
            stdout_path=job.stdout_path or paths.stdout_path,
            stderr_path=job.stderr_path or paths.stderr_path,
        )

    def knows_paths(self, job: Job) -> bool:
        """Whether the scheduler was asked where it writes, or need not be."""
        return bool(job.stdout_path) or job.id in self._paths or bool(job.elements)

    async def with_paths(self, job: Job) -> Job:
        """The same job, and where it writes: asked once in its life."""
        if not self.knows_paths(job):
            try:
                self._paths[job.id] = await self._cluster.job_paths(job)
            except F7tfsError as error:
                log.info("job %s: where it writes is not known: %s", job.id, error)
                return job
            self._version += 1
        return self.known().get(job.id, job)

    # Asking.

    def _refresh_soon(self) -> trio.Event:
        """One refresh at a time, shared by all who want it."""
        if self._refreshing is None:
            self._refreshing = trio.Event()
            self._nursery.start_soon(self._refresh, self._refreshing)
        return self._refreshing

    async def _refresh(self, event: trio.Event) -> None:
        self._tried = trio.current_time()
        try:
            await self._ask()
            self._error = None
        except F7tfsError as error:
            self._error = error
            log.info("the scheduler could not be asked: %s", error)
        except Exception:
            log.exception("refreshing the job board")
        finally:
            self._tried = trio.current_time()
            self._refreshing = None
            event.set()

    async def _ask(self) -> None:
        now = trio.current_time()
        reasons = now - self._reasons > REASONS
        try:
            told = await self._cluster.jobs(reasons=reasons)
        except QueueUnreadable as error:
            log.info("%s; jobs are asked for one by one", error)
            told = await self._cluster.accounting(self._unfinished()[:ONE_BY_ONE])
            found = dict(self._jobs)
        else:
            found = {}
            if reasons:
                self._reasons = now
        found |= {job.id: self._forward(job) for job in told}
        left_out = self._left_out(found, now)
        if left_out:
            self._unheard |= dict.fromkeys(left_out, now)
            for job in await self._cluster.accounting(left_out):
                found[job.id] = self._forward(job)
                told.append(job)
        self._jobs = found
        self._seen = trio.current_time()
        self._version += 1
        self._unheard = {name: at for name, at in self._unheard.items() if name not in found}
        self._paths = {name: one for name, one in self._paths.items() if name in found}
        await self._submissions.reconcile(told)
        await self._remember(told)
        await self._drops.prune(self.known())

    def _unfinished(self) -> list[str]:
        """Jobs that were dropped here and are not known to be over, the newest first."""
        mine = [one for one in self._drops.all() if one.job_id and one.last is None]
        return [one.job_id for one in sorted(mine, key=lambda one: -one.created)]

    def _left_out(self, found: Mapping[str, Job], now: float) -> list[str]:
        """Of those, what the list does not tell of: older than its window, or too new."""
        told = set(found) | {array_of(job_id) for job_id in found}
        return [
            name
            for name in self._unfinished()
            if name not in told and now - self._unheard.get(name, -UNHEARD) >= UNHEARD
        ][:AT_ONCE]

    def _forward(self, job: Job) -> Job:
        """A job as it is told, with what was known before; never from over to running, or from
        running to waiting, unless that is told for longer than the accounting lags."""
        before = self._jobs.get(job.id)
        if before is None:
            return job
        job = msgspec.structs.replace(
            job,
            name=job.name or before.name,
            user=job.user or before.user,
            partition=job.partition or before.partition,
            reason=job.reason or (before.reason if job.state is before.state else ""),
        )
        if _rank(job.state) >= _rank(before.state):
            self._doubted.pop(job.id, None)
            return job
        now = trio.current_time()
        if now - self._doubted.setdefault(job.id, now) > BELIEVE:  # it was requeued
            del self._doubted[job.id]
            return job
        return before

    async def _remember(self, told: Iterable[Job]) -> None:
        """What is over outlasts the scheduler's memory."""
        over = {job.id: job for job in told if job.state.is_over}
        sums = sums_of(told)
        over |= {number: job for number, job in sums.items() if job.state.is_over}
        for job_id, job in over.items():
            drop = self._drops.of_job(job_id)
            if drop is not None and job_id not in sums.keys() - over.keys():
                await self._submissions.remember(as_dropped(job, drop))

    def cancelled(self, job_id: str) -> None:
        """Our own cancel went through: shown at once, until the scheduler agrees."""
        told = {job_id: Job(id=job_id)} | self._jobs
        for name, job in told.items():
            if job_id in {name, array_of(name)} and not job.state.is_over:
                self._jobs[name] = msgspec.structs.replace(
                    job, state=JobState.CANCELLED, state_text="CANCELLED", reason=""
                )
        self._version += 1

    async def watch(self) -> None:
        """Look by ourselves while a job that was dropped here is not over: at the interval of a
        looker at first, then ever more rarely."""
        while True:
            changed = self._drops.changed
            if not self._unfinished():
                await changed.wait()
                continue
            pause = self._interval
            while self._unfinished():
                await trio.sleep(pause)
                quiet = trio.current_time() - self._tried
                if quiet >= pause:
                    await self._refresh_soon().wait()
                    pause = min(2 * pause, self._idle)
                else:
                    pause = self._interval  # somebody looked meanwhile


def as_dropped(job: Job, drop: Drop) -> Job:
    """A job that was dropped here: under the name that the user gave it, not under its tag, and
    with what the submission told."""
    is_array = bool(job.elements)
    return msgspec.structs.replace(
        job,
        id=drop.job_id,
        name=drop.job_name or drop.name,
        script_path=job.script_path or drop.script_path,
        stdout_path="" if is_array else job.stdout_path or drop.stdout_path,
        stderr_path="" if is_array else job.stderr_path or drop.stderr_path,
    )


def _rank(state: JobState) -> int:
    return 2 if state.is_over else 0 if state is JobState.PENDING else 1
