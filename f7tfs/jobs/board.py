"""The job board: what the scheduler tells of the user's jobs, asked for only while somebody looks.

One call tells of all queued and running jobs; the accounting is asked for jobs that left the
queue. A board older than the poll interval is shown while one refresh runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
import trio

from f7tfs.api.port import Cluster
from f7tfs.errors import F7tfsError
from f7tfs.model import Job, JobState
from f7tfs.transfers.submit import Drop, Submissions

log = logging.getLogger("f7tfs.jobs")
STALE = 5  # poll intervals after which a look waits for the refresh


class JobBoard:
    def __init__(
        self,
        cluster: Cluster,
        submissions: Submissions,
        nursery: trio.Nursery,
        *,
        interval: float,
    ) -> None:
        self._cluster = cluster
        self._submissions = submissions
        self._nursery = nursery
        self._interval = interval
        self._jobs: dict[str, Job] = {}
        self._seen = -float("inf")
        self._refreshing: trio.Event | None = None
        self._error: F7tfsError | None = None

    async def jobs(self) -> Mapping[str, Job]:
        """All jobs of the user that the scheduler tells of, by id. Raises what the first look
        raises; later faults leave the last board standing."""
        age = trio.current_time() - self._seen
        if age > self._interval:
            done = self._refreshing if self._refreshing is not None else self._start()
            if age > STALE * self._interval:
                await done.wait()
                if self._seen == -float("inf") and self._error is not None:
                    raise self._error.again()
        return self.known()

    def known(self) -> Mapping[str, Job]:
        """What was seen, and what we submitted since."""
        known = dict(self._jobs)
        for record in self._submissions.all():
            if record.job_id and record.job_id not in known:
                known[record.job_id] = Job(id=record.job_id, name=record.name, state_text="PENDING")
            if record.job_id:
                known[record.job_id] = _with_paths(known[record.job_id], record)
        return known

    def _start(self) -> trio.Event:
        self._refreshing = trio.Event()
        self._nursery.start_soon(self._refresh)
        return self._refreshing

    async def _refresh(self) -> None:
        event = self._refreshing
        assert event is not None
        try:
            active = await self._cluster.jobs()
            found = {job.id: job for job in active}
            if self._needs_accounting(found):
                for job in await self._cluster.accounting():
                    if job.id not in found:
                        found[job.id] = _merged(self._jobs.get(job.id), job)
            for job_id, job in self._jobs.items():
                if job_id not in found:
                    found[job_id] = job
            self._jobs = found
            self._seen = trio.current_time()
            self._error = None
            if self._submissions.has_unknown():
                await self._submissions.reconcile(list(found.values()))
        except F7tfsError as error:
            self._error = error
            log.info("the scheduler could not be asked: %s", error)
        except Exception:
            log.exception("refreshing the job board")
        finally:
            self._refreshing = None
            event.set()

    def _needs_accounting(self, active: Mapping[str, Job]) -> bool:
        """At the first look, while a submission is unknown, and when a job has left the queue."""
        if self._seen == -float("inf") or self._submissions.has_unknown():
            return True
        mine = {one.job_id for one in self._submissions.all() if one.job_id}
        ended = {job.id for job in self._jobs.values() if job.state.is_over}
        return bool((set(self._jobs) | mine) - set(active) - ended)

    def cancelled(self, job: Job) -> None:
        """Our own cancel went through: shown at once, until the scheduler agrees."""
        if not job.state.is_over:
            self._jobs[job.id] = msgspec.structs.replace(
                job, state=JobState.CANCELLED, state_text="CANCELLED"
            )


def _merged(before: Job | None, job: Job) -> Job:
    """The accounting's row with what only the queue told; it lags, and may name no partition."""
    if before is None:
        return job
    return msgspec.structs.replace(
        job,
        name=job.name or before.name,
        partition=job.partition or before.partition,
        script_path=before.script_path,
        stdout_path=before.stdout_path,
        stderr_path=before.stderr_path,
    )


def _with_paths(job: Job, record: Drop) -> Job:
    return msgspec.structs.replace(
        job,
        script_path=job.script_path or record.script_path,
        stdout_path=job.stdout_path or record.stdout_path,
        stderr_path=job.stderr_path or record.stderr_path,
    )
