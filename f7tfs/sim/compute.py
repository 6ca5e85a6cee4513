"""/compute: submit, list, account, cancel; each request leaves a task (v1 FACTS §9)."""

from __future__ import annotations

import json
import math
import os
import re
import time
import unicodedata
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.cluster import Cluster, Outcome, System, is_regular
from f7tfs.sim.replies import refuse, reply
from f7tfs.sim.rows import acct_row, day, queue_row
from f7tfs.sim.sbatch import PARTITIONS, SbatchError
from f7tfs.sim.scheduler import ACTIVE, NODE, Job, Scheduler
from f7tfs.sim.service import Call, Service
from f7tfs.sim.storage import path_refusal
from f7tfs.sim.tasks import Task, TaskBook
from f7tfs.sim.tokens import Tokens

_TAIL = 1000
"""Bytes of job_data_out and job_data_err, of which the last is cut."""
_LEAK = "http://tasks.internal.example:5003"
"""The data of a jobs/path task at 100 (compute.py:530)."""


class Trouble(Exception):
    """What a task at 400 says."""


class Compute:
    def __init__(
        self,
        cluster: Cluster,
        tokens: Tokens,
        book: TaskBook,
        scheduler: Scheduler,
        spawn: Callable[..., None],
    ) -> None:
        self._cluster = cluster
        self._book = book
        self._scheduler = scheduler
        self._spawn = spawn
        self._service = Service("/compute", tokens, cluster.options.latency)

    def routes(self) -> list[Route]:
        route = self._service.route
        return [
            route("/jobs/upload", "POST", self.submit_upload),
            route("/jobs/path", "POST", self.submit_path),
            route("/jobs", "GET", self.list_jobs),
            route("/jobs/{ident}", "GET", self.get_job),
            route("/jobs/{ident}", "DELETE", self.cancel),
            route("/acct", "GET", self.acct),
            route("/nodes", "GET", self.nodes),
            route("/partitions", "GET", self.partitions),
            route("/reservations", "GET", self.reservations),
            route("/status", "GET", self.status),
        ]

    # -- what all have in common

    def _reach(self, call: Call, description: str) -> System:
        """The server runs `true` on the cluster first; if that fails it does not say why."""
        system = call.system(self._cluster, description)
        if not system.reachable or call.user not in self._cluster.users:
            raise refuse(description)
        return system

    def _task(
        self,
        call: Call,
        system: System,
        work: Callable[[Task], Awaitable[Any]],
        status: int = 200,
        queued: str = "Queued",
    ) -> Response:
        task = self._book.create(call.user, "compute", system.name, queued)
        self.begin(task, work)
        body = {"success": "Task created", "task_id": task.id, "task_url": f"/tasks/{task.id}"}
        return reply(body, status)

    def begin(self, task: Task, work: Callable[[Task], Awaitable[Any]]) -> None:
        self._spawn(self._carry_out, task, work)

    async def _carry_out(self, task: Task, work: Callable[[Task], Awaitable[Any]]) -> None:
        await trio.sleep(0.005)  # the task is at 100 for a moment
        try:
            data = await work(task)
        except (Trouble, SbatchError) as trouble:
            self._book.update(task, "400", str(trouble))
        else:
            self._book.update(task, "200", data)

    # -- submission

    async def submit_upload(self, call: Call) -> Response:
        description = "Failed to submit job file"
        system = self._reach(call, description)
        if call.too_large:
            raise refuse("Failed to upload batch script. The file is over 5 MB", status=413)
        if "file" not in call.files:
            raise refuse(description, "No batch file part")
        name, content = call.files["file"]
        if not content:
            raise refuse(description, "Batch file is empty")
        environment = environment_of(call, description)

        async def work(task: Task) -> dict[str, str]:
            script = self.job_folder(task) + "/" + secure_filename(name)
            return await self.write_and_submit(task, system, script, content, environment)

        return self._task(call, system, work, 201)

    def job_folder(self, task: Task) -> str:
        return f"{self._cluster.home(task.user)}/firecrest/{task.id}"

    async def write_and_submit(
        self,
        task: Task,
        system: System,
        script: str,
        content: bytes,
        environment: Mapping[str, str],
    ) -> dict[str, str]:
        command = f"mkdir -p -- '{os.path.dirname(script)}' && cat > '{script}'"
        written = await self._cluster.run(system, task.user, command, stdin=content)
        if written.failed:
            raise Trouble(written.error or "")
        return self._submit(task, system, script, content, environment)

    async def submit_path(self, call: Call) -> Response:
        description = "Failed to submit job"
        system = self._reach(call, description)
        path = call.checked("targetPath", description)
        if self._cluster.fenced(call.user, path, follows=True):
            raise path_refusal(description, path, Outcome(error="Permission denied", code=1))
        tested = await self._cluster.run(system, call.user, f"head -c 1 -- '{path}' > /dev/null")
        if tested.failed:
            raise path_refusal(description, path, tested)
        environment = environment_of(call, description)

        async def work(task: Task) -> dict[str, str]:
            command = f"cat -- '{path}'"
            outcome, content = await self._cluster.run_bytes(system, task.user, command)
            if outcome.failed and not content:
                raise Trouble(outcome.error or "")
            script = self._cluster.absolute(task.user, path)
            return self._submit(task, system, script, content, environment)

        return self._task(call, system, work, 201, _LEAK)

    def _submit(
        self,
        task: Task,
        system: System,
        script: str,
        content: bytes,
        environment: Mapping[str, str],
    ) -> dict[str, str]:
        jobs = self._scheduler.submit(task.user, system, script, content, environment)
        job = jobs[0]
        out, err = job.output, job.error
        if job.array is not None:  # as scontrol shows an array before it is split
            out = err = f"{job.folder}/slurm-{job.array}_4294967294.out"
        return {
            "jobid": str(job.id if job.array is None else job.array),
            "result": "Job submitted",
            "job_file": script,
            "job_file_out": out,
            "job_file_err": err,
            "job_data_out": "",
            "job_data_err": "",
            "job_info_extra": "Job info returned successfully",
        }

    # -- the queue

    async def list_jobs(self, call: Call) -> Response:
        description = "Failed to retrieve job information"
        system = self._reach(call, "Failed to retrieve jobs information")
        wanted = job_list(call, description)
        mine = call.params.get("userJobs", "true").lower() not in {"false", "no", "0"}

        async def work(task: Task) -> dict[str, Any]:
            rows = self._queue(task.user if mine else None, wanted)
            rows = paged(call, rows)
            return {str(number): row for number, row in enumerate(rows)}

        return self._task(call, system, work)

    def _queue(self, user: str | None, wanted: list[str] | None) -> list[dict[str, str]]:
        jobs = self._scheduler.all()
        if wanted is not None:
            if not all(self._scheduler.known(label) for label in wanted):
                raise Trouble("slurm_load_jobs error: Invalid job id specified")
            chosen = [job for label in wanted for job in self._scheduler.known(label)]
            jobs = [job for job in jobs if job in chosen]
        jobs = [job for job in jobs if job.state in ACTIVE and (user is None or job.user == user)]
        jobs.sort(key=lambda job: (job.state != "PENDING", job.id))
        rows: list[dict[str, str]] = []
        arrays: set[int] = set()
        for job in jobs:
            if job.array is not None and job.state == "PENDING":
                if job.array not in arrays:
                    arrays.add(job.array)
                    rows.append(self._array_row(job, jobs))
            else:
                rows.append(queue_row(job) | self._files(job, user is not None))
        return rows

    def _array_row(self, job: Job, jobs: list[Job]) -> dict[str, str]:
        """The waiting elements in one line, about which scontrol fails (compute.py:231-247)."""
        waiting = [
            other.label.partition("_")[2]
            for other in jobs
            if other.array == job.array and other.state == "PENDING"
        ]
        span = waiting[0] if len(waiting) == 1 else f"{waiting[0]}-{waiting[-1]}"
        return queue_row(job) | {
            "jobid": f"{job.array}_[{span}]",
            "job_file_out": "Not available",
            "job_file_err": "Not available",
            "job_info_extra": "scontrol_print_job error: Invalid job id specified",
        }

    def _files(self, job: Job, mine: bool) -> dict[str, str]:
        if not mine:
            names = ("job_file", "job_file_out", "job_file_err", "job_data_out", "job_data_err")
            extra = "Job files information is not available when `userJobs` is False"
            return dict.fromkeys(names, "") | {"job_info_extra": extra}
        return {
            "job_file": job.script,
            "job_file_out": job.output,
            "job_file_err": job.error,
            "job_data_out": self._end_of(job, job.output),
            "job_data_err": self._end_of(job, job.error),
            "job_info_extra": "Job info returned successfully",
        }

    def _end_of(self, job: Job, path: str) -> str:
        if self._cluster.fenced(job.user, path, follows=True) or not is_regular(path):
            return ""
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                return file.read(_TAIL).decode(errors="replace")[:-1]
        except OSError:
            return ""

    async def get_job(self, call: Call) -> Response:
        """Never finishes in this version: a TypeError in the thread (compute.py:796-797)."""
        description = "Failed to retrieve job information"
        system = self._reach(call, "Failed to retrieve jobs information")
        check_ids([str(call.request.path_params["ident"])], description)

        async def work(task: Task) -> None:
            await trio.sleep_forever()

        return self._task(call, system, work)

    async def cancel(self, call: Call) -> Response:
        system = self._reach(call, "Failed to delete job")
        label = str(call.request.path_params["ident"])

        async def work(task: Task) -> str:
            if not re.fullmatch(r"\d+(_\d+)?", label):
                raise Trouble(f"scancel: error: Invalid job id {label}")
            jobs = self._scheduler.known(label)
            text = f"scancel: Terminating job {label}"
            failed = f"{text}scancel: error: Kill job error on job id {label}: "
            if not jobs:
                raise Trouble(f"{failed}Invalid job id specified")
            if jobs[0].user != task.user:
                raise Trouble("User does not have permission to cancel job")
            active = [job for job in jobs if job.state in ACTIVE]
            if not active:
                raise Trouble(f"{failed}Job/step already completing or completed")
            for job in active:
                self._scheduler.cancel(job)
            return text

        return self._task(call, system, work)

    # -- accounting

    async def acct(self, call: Call) -> Response:
        description = "Failed to retrieve account information"
        system = self._reach(call, description)
        wanted = job_list(call, description)
        start, end = day(call.params.get("starttime")), day(call.params.get("endtime"))

        async def work(task: Task) -> Any:
            jobs = self._scheduler.all()
            if wanted is not None:
                chosen = [job for label in wanted for job in self._scheduler.find(label)]
                jobs = [job for job in jobs if job in chosen]
            else:
                since = day(time.strftime("%Y-%m-%d", time.gmtime())) if start is None else start
                jobs = [
                    job
                    for job in jobs
                    if job.user == task.user
                    and (job.ended is None or since is None or job.ended >= since)
                    and (end is None or job.submitted < end)
                ]
            lag = self._cluster.options.acct_lag
            uid = self._cluster.account.uid
            return paged(call, [acct_row(job, uid, lag) for job in jobs]) or {}

        return self._task(call, system, work)

    # -- the cluster itself

    async def _fixed(self, call: Call, description: str, data: list[dict[str, Any]]) -> Response:
        system = self._reach(call, description)

        async def work(task: Task) -> list[dict[str, Any]]:
            return data

        return self._task(call, system, work)

    async def nodes(self, call: Call) -> Response:
        node = {
            "NodeName": NODE,
            "ActiveFeatures": ["f7t"],
            "Partitions": list(PARTITIONS),
            "State": ["IDLE"],
        }
        return await self._fixed(call, "Failed to retrieve nodes information", [node])

    async def partitions(self, call: Call) -> Response:
        rows: list[dict[str, Any]] = [
            {
                "PartitionName": name,
                "Default": "YES" if name == PARTITIONS[0] else "NO",
                "State": "UP",
                "TotalCPUs": "16",
                "TotalNodes": "1",
            }
            for name in PARTITIONS
        ]
        return await self._fixed(call, "Failed to retrieve partitions information", rows)

    async def reservations(self, call: Call) -> Response:
        return await self._fixed(call, "Failed to retrieve reservations information", [])

    async def status(self, call: Call) -> Response:
        return reply({"success": "ack"})


def environment_of(call: Call, description: str) -> dict[str, str]:
    if "env" not in call.params:
        return {}
    try:
        found = json.loads(call.params["env"])
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, AttributeError):
        text = "Invalid JSON environment provided"
        raise refuse(description, text, status=404) from None


def secure_filename(name: str) -> str:
    """werkzeug's."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = "_".join(plain.replace("/", " ").split())
    return re.sub(r"[^A-Za-z0-9_.-]", "", plain).strip("._")


def job_list(call: Call, description: str) -> list[str] | None:
    if "jobs" not in call.params:
        return None
    labels = call.params["jobs"].split(",")
    if "" in labels:
        raise refuse(description, "Jobs list wrong format")
    check_ids(labels, description)
    return labels


def check_ids(labels: list[str], description: str) -> None:
    for label in labels:
        if not re.fullmatch(r"\d+(_\d+)?", label):
            raise refuse(description, f"{label} is not a valid job ID")


def paged(call: Call, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Pages count from 0 here; a page beyond the end fails."""
    try:
        size, number = int(call.params["pageSize"]), int(call.params.get("pageNumber", "0"))
    except (KeyError, ValueError):
        return rows
    if size <= 0:
        return rows
    pages = math.ceil(len(rows) / size)
    if number > pages:
        raise Trouble(f"pageNumber ({number}) is greater than total pages ({pages})")
    return rows[number * size : (number + 1) * size]
