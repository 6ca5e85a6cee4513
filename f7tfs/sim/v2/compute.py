"""/compute/{system}/jobs (v2 FACTS §9)."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

import trio
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.sbatch import SbatchError
from f7tfs.sim.scheduler import ACTIVE, Job, Scheduler
from f7tfs.sim.v2.replies import ApiError, Unhandled, invalid, missing, no_content, reply
from f7tfs.sim.v2.rows import lags, row
from f7tfs.sim.v2.service import Call, Service, given
from f7tfs.sim.v2.shell import judged
from f7tfs.sim.v2.systems import ACCOUNT

_WINDOWS = {"1h": 3600, "8h": 28800, "24h": 86400, "3d": 259200, "7d": 604800}
_SLURM_FAILED = "Error executing Slurm command."
_TEXTS = {
    "name": "job-name",
    "account": "account",
    "partition": "partition",
    "standardOutput": "output",
    "standardError": "error",
    "constraints": "constraint",
}
"""Fields of a submission, and sbatch's options."""
_QUICK = 0.005
"""What a Slurm command holds its session for, at least."""


def slurm_error(status: int, stderr: str) -> ApiError:
    text = f"Unexpected Slurm command response. exit_status:{status} std_err:{stderr}"
    return ApiError(500, text)


class Compute:
    def __init__(self, service: Service, scheduler: Scheduler) -> None:
        self._service = service
        self._scheduler = scheduler
        self._cluster = service.cluster
        self._dialect = service.systems.dialect

    def routes(self) -> list[Route]:
        jobs, job = "/compute/{system}/jobs", "/compute/{system}/jobs/{ident}"

        def one(path: str, method: str, handler: Any) -> Route:
            return self._service.route(path, method, handler, service="scheduler")

        return [
            one(jobs, "POST", self.submit),
            one(jobs, "GET", self.list_jobs),
            one(job, "GET", self.get),
            one(job, "DELETE", self.cancel),
            one(f"{job}/metadata", "GET", self.metadata),
            one(f"{job}/attach", "PUT", self.attach),
        ]

    async def _slurm(self, call: Call, sessions: int = 1) -> None:
        """A Slurm command on the login node: its connection, its sessions."""
        try:
            async with self._service.shell.session(call.place, call.user, sessions):
                await trio.sleep(_QUICK)
        except Unhandled:
            raise ApiError(500, _SLURM_FAILED) from None

    # -- submission

    async def submit(self, call: Call) -> Response:
        wish = call.given("job")
        if not isinstance(wish, dict):
            raise missing("body", "job")
        if given(wish, "workingDirectory") is None:
            raise missing("body", "job", "workingDirectory")
        await self._slurm(call)
        options = {"chdir": str(given(wish, "workingDirectory"))}
        for name, option in _TEXTS.items():
            if given(wish, name) is not None:
                options[option] = str(given(wish, name))
        script = given(wish, "scriptPath")
        if script is not None:
            content = await self._script(call, str(script))
        else:
            content = str(given(wish, "script") or "").encode(errors="replace")
            options.setdefault("job-name", "sbatch")
            script = "sbatch"
        if not content:
            # sbatch reads its script from a stdin that is never closed
            async with self._service.shell.session(call.place, call.user):
                await trio.sleep(self._cluster.options.command_limit)
            raise ApiError(408, "Command execution timeout limit exceeded.")
        try:
            jobs = self._scheduler.submit(
                call.user,
                call.place.system,
                f"{options['chdir']}/{script}" if script == "sbatch" else str(script),
                content,
                environment_of(wish),
                options,
            )
        except SbatchError as error:
            raise slurm_error(1, error.stderr) from None
        number = jobs[0].id if jobs[0].array is None else jobs[0].array
        return reply({"jobId": self._dialect.job_id(str(number))}, 201)

    async def _script(self, call: Call, path: str) -> bytes:
        shell = self._service.shell
        try:
            template = f"timeout {self._cluster.options.command_limit:g} base64 --wrap=0 -- {{0}}"
            result = await shell.run(call.place, call.user, template, path, tool="base64")
        except ApiError:
            raise slurm_error(1, f"sbatch: error: Unable to open file {path}\n") from None
        return base64.b64decode(result.stdout)

    # -- looking

    def _ident(self, call: Call) -> str:
        ident = str(call.request.path_params["ident"])
        if not re.fullmatch(r"[a-zA-Z0-9]+", ident):
            pattern = "^[a-zA-Z0-9]+$"
            text = f"String should match pattern '{pattern}'"
            raise invalid("string_pattern_mismatch", ("path", "job_id"), text, ident)
        return ident

    def _rows(self, jobs: list[Job]) -> Response:
        """One name with a `|` in it, and the whole answer is lost (§9)."""
        lag = self._cluster.options.acct_lag
        if any("|" in job.name and not lags(job, lag) for job in jobs):
            raise ApiError(500, _SLURM_FAILED)
        account = self._cluster.account
        return reply({"jobs": [row(job, account, lag, self._dialect) for job in jobs]})

    def _shown(self, job: Job) -> bool:
        return time.time() - job.submitted >= self._cluster.options.job_hidden

    async def list_jobs(self, call: Call) -> Response:
        window = call.request.query_params.get("time_window", "24h")
        if window not in _WINDOWS:
            text = "Input should be '1h', '8h', '24h', '3d' or '7d'"
            raise invalid("enum", ("query", "time_window"), text, window)
        everybody = call.flag("allusers")
        await self._slurm(call, 2)
        name = call.request.query_params.get("name")
        account = call.request.query_params.get("account")
        edge = time.time() - _WINDOWS[window]
        jobs = [
            job
            for job in self._scheduler.all()
            if self._shown(job)
            and (everybody or job.user == call.user)
            and (name is None or job.name == name)
            and (account is None or (job.directives.account or ACCOUNT) == account)
            and (job.ended is None or job.ended > edge)
        ]
        return self._rows(jobs)

    async def get(self, call: Call) -> Response:
        ident = self._ident(call)
        await self._slurm(call, 2)
        if not ident.isdigit():
            text = f"sacct: fatal: Bad job/step specified: {ident}\n"
            cause = slurm_error(1, text).message
            raise ApiError(500, _SLURM_FAILED, caused_by=[cause])
        return self._rows(self._found(ident))

    def _found(self, ident: str) -> list[Job]:
        jobs = [job for job in self._scheduler.find(ident) if self._shown(job)]
        if not jobs:
            raise ApiError(404, "Job not found.")
        return jobs

    async def metadata(self, call: Call) -> Response:
        """What slurmctld remembers; paths end at their first space (§9)."""
        ident = self._ident(call)
        await self._slurm(call, 4)
        self._found(ident)
        jobs = self._scheduler.known(ident)
        if not jobs:
            raise ApiError(404, "Job not found.")
        return reply(
            {
                "jobs": [
                    {
                        "jobId": self._dialect.job_id(job.label),
                        "script": job.content.decode(errors="replace")
                        if job.user == call.user
                        else "",
                        "standardInput": "/dev/null",
                        "standardOutput": job.output.partition(" ")[0],
                        "standardError": job.error.partition(" ")[0],
                    }
                    for job in jobs
                ]
            }
        )

    # -- acting

    async def cancel(self, call: Call) -> Response:
        ident = self._ident(call)
        await self._slurm(call)
        if not ident.isdigit():
            raise slurm_error(1, f"scancel: error: Invalid job id {ident}\n")
        jobs = self._scheduler.known(ident)
        text = f"scancel: Terminating job {ident}\n"
        text += f"scancel: error: Kill job error on job id {ident}: "
        if not jobs:
            raise slurm_error(0, f"{text}Invalid job id specified\n")
        if jobs[0].user != call.user:
            raise slurm_error(210, f"{text}Access/permission denied\n")
        active = [job for job in jobs if job.state in ACTIVE]
        if not active:
            raise slurm_error(0, f"{text}Job/step already completing or completed\n")
        for job in active:
            self._scheduler.cancel(job)
        return no_content()

    async def attach(self, call: Call) -> Response:
        ident = self._ident(call)
        command = call.text("command")
        await self._slurm(call)
        running = [job for job in self._scheduler.find(ident) if job.state == "RUNNING"]
        if not running:
            raise slurm_error(
                1,
                f"srun: error: Slurm job {ident} has expired\nsrun: Check SLURM_JOB_ID "
                f"environment variable. Expired or invalid job {ident}\n",
            )
        limit = self._cluster.options.command_limit
        line = f"timeout {limit:g} {command}"
        judged(await self._service.shell.execute(call.place.system, call.user, line))
        return no_content()


def environment_of(wish: dict[str, Any]) -> dict[str, str]:
    """`--export=ALL,A=1,B=2`: a comma in a value ends it (§9)."""
    wanted = given(wish, "env")
    if wanted is None:
        return {"F7T_version": "v2.0.0"}
    pairs = wanted if isinstance(wanted, list) else [f"{k}={v}" for k, v in wanted.items()]
    words = ",".join(str(pair) for pair in pairs).split(",")
    split = (word.partition("=") for word in words)
    return {name: value for name, equals, value in split if equals}
