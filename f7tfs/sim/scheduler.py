"""A little scheduler: real processes, a few slots, Slurm's states and forgetting (v1 FACTS §9)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from f7tfs.sim.cluster import Cluster, System, kill_session
from f7tfs.sim.sbatch import NODES, Directives, SbatchError, read

FIRST_ID = 101
NODE = "localhost"
ACTIVE = {"PENDING", "RUNNING"}
_FINE = {"afterok": {"COMPLETED"}, "afternotok": {"FAILED", "CANCELLED", "TIMEOUT"}}
# Opens the files as the cluster's user, then becomes the script's interpreter.
_LAUNCH = 'cd -- "$1" && exec >"$2" && exec 2>"$3" || exit 1; shift 3; exec "$@"'
_LAUNCH_ONE = 'cd -- "$1" && exec >"$2" 2>&1 || exit 1; shift 3; exec "$@"'
_LAUNCH_FAILED = 213
"""No program's status, so that a failed launch can be told apart and become 0:53 (v2 FACTS §9)."""
_SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n || $1 == -N ]] && shift; shift; done
program=$(type -P "$1"); shift
"$program" "$@"; code=$?
[[ $code == 0 ]] || echo "srun: error: localhost: task 0: Exited with exit code $code" >&2
exit $code
"""


@dataclass
class Job:
    id: int
    label: str
    """The id as Slurm shows it: "112", or "112_1" for an element of array 112."""
    array: int | None
    user: str
    system: System
    script: str
    """Where the user sees it."""
    folder: str
    directives: Directives
    environment: Mapping[str, str]
    name: str
    output: str
    error: str
    submitted: float
    state: str = "PENDING"
    reason: str = "None"
    started: float | None = None
    ended: float | None = None
    exit_code: str = "0:0"
    content: bytes = b""
    strict: bool = False
    """Whether a launch that failed shows as Slurm's 0:53, as v2 recorded it."""
    body: Callable[[Job], Awaitable[int]] | None = None
    """What it does instead of running its script; the result is its exit status."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Of the body."""
    process: trio.Process | None = None
    gone: trio.Event = field(default_factory=trio.Event)
    """Its processes have ended, or it never had any."""

    def elapsed(self) -> float:
        if self.started is None:
            return 0.0
        return (time.time() if self.ended is None else self.ended) - self.started

    @property
    def limit(self) -> float:
        return 86400.0 if self.directives.limit is None else self.directives.limit


class Scheduler:
    def __init__(self, cluster: Cluster, spool: Path, spawn: Callable[..., None]) -> None:
        """`spool` holds the copies of the scripts: a script changed later changes no job."""
        spool.mkdir(mode=0o711, exist_ok=True)
        self._cluster = cluster
        self._spool = spool
        self._spawn = spawn
        self._jobs: dict[int, Job] = {}
        self._next = FIRST_ID
        self._held = False
        self._tools = spool / "bin"
        self._tools.mkdir(mode=0o755, exist_ok=True)
        srun = self._tools / "srun"
        srun.write_text(_SRUN)
        srun.chmod(0o755)

    # -- what compute asks

    def submit(
        self,
        user: str,
        system: System,
        script: str,
        content: bytes,
        environment: Mapping[str, str],
        given: Mapping[str, str] | None = None,
        body: Callable[[Job], Awaitable[int]] | None = None,
    ) -> list[Job]:
        """One job, or the elements of an array. SbatchError in sbatch's words.

        `given` are sbatch's own options, which v2 uses (None: v1, which has none); `body` is done
        instead of the script.
        """
        directives = read(content, given)
        if directives.dependency is not None:
            self._check_dependency(directives.dependency)
        base = self._next
        indices = directives.array or (None,)
        self._next += len(indices)
        made = []
        for number, index in enumerate(indices, base):
            job = self._make(number, base, index, user, system, script, directives, environment)
            copy = self._spool / f"{job.id}"
            copy.write_bytes(content)
            copy.chmod(0o755)
            job.content, job.strict, job.body = content, given is not None, body
            self._jobs[job.id] = job
            job.reason = self._obstacle(job)
            made.append(job)
        self._spawn(self._schedule_soon)
        return made

    def _make(
        self,
        number: int,
        base: int,
        index: int | None,
        user: str,
        system: System,
        script: str,
        directives: Directives,
        environment: Mapping[str, str],
    ) -> Job:
        folder = os.path.join(os.path.dirname(script), directives.chdir or "")
        folder = folder.rstrip("/") or "/"
        name = directives.name or os.path.basename(script)

        def place(pattern: str) -> str:
            values = {
                "j": str(number),
                "A": str(base),
                "a": str(index),
                "x": name,
                "u": user,
                "N": NODE,
                "%": "%",
            }
            text = re.sub(r"%(.)", lambda found: values.get(found[1], found[0]), pattern)
            return os.path.join(folder, text)

        output = place(directives.output or f"slurm-{'%j' if index is None else '%A_%a'}.out")
        error = place(directives.error) if directives.error else output
        return Job(
            number,
            str(base) if index is None else f"{base}_{index}",
            None if index is None else base,
            user,
            system,
            script,
            folder,
            directives,
            dict(environment),
            name,
            output,
            error,
            time.time(),
        )

    def _check_dependency(self, text: str) -> None:
        numbers = re.findall(r":([^:,?]+)", text)
        if not numbers or not all(n.isdigit() and self.find(n) for n in numbers):
            raise SbatchError("sbatch: error: Batch job submission failed: Job dependency problem")

    def find(self, label: str) -> list[Job]:
        """The jobs that an id stands for: one, or the elements of an array."""
        return [
            job
            for job in self._jobs.values()
            if label in {job.label, str(job.id), "" if job.array is None else str(job.array)}
        ]

    def known(self, label: str) -> list[Job]:
        """Those of them that the controller has not forgotten yet (MinJobAge)."""
        edge = time.time() - self._cluster.options.min_job_age
        return [job for job in self.find(label) if job.ended is None or job.ended > edge]

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    def cancel(self, job: Job) -> None:
        """Slurm's state changes at once; the processes get SIGTERM, then SIGKILL."""
        running = job.state == "RUNNING"
        self._finish(job, "CANCELLED")
        if running and job.body is not None:
            job.scope.cancel()
        elif running and job.process is not None:
            self._farewell(job, "CANCELLED AT {} ***")
            self._spawn(self._terminate, job)
        else:
            job.gone.set()

    def hold(self, held: bool) -> None:
        """While it is held no job starts: for tests that want to be first."""
        self._held = held
        self._schedule()

    def kill_all(self) -> None:
        for job in self._jobs.values():
            if job.process is not None and not job.gone.is_set():
                kill_session(job.process.pid)

    # -- running

    async def _schedule_soon(self) -> None:
        await trio.sleep(self._cluster.options.job_delay)
        self._schedule()

    def _schedule(self) -> None:
        if self._held:
            return
        busy = sum(1 for job in self._jobs.values() if job.started and not job.gone.is_set())
        for job in self._jobs.values():
            waited = time.time() - job.submitted
            if job.state != "PENDING" or waited < self._cluster.options.job_delay * 0.99:
                continue
            job.reason = self._obstacle(job)
            if job.reason == "None" and busy < self._cluster.options.job_slots:
                busy += 1
                job.state, job.started = "RUNNING", time.time()
                self._spawn(self._run if job.body is None else self._run_body, job)
            elif job.reason == "None":
                job.reason = "Resources"

    def _obstacle(self, job: Job) -> str:
        if job.directives.hold:
            return "JobHeldUser"
        if job.directives.nodes > NODES:
            return "PartitionConfig"
        for kind, numbers in re.findall(r"(after\w+)((?::\d+)+)", job.directives.dependency or ""):
            for number in numbers.strip(":").split(":"):
                states = {other.state for other in self.find(number)}
                if states & ACTIVE:
                    return "Dependency"
                if kind in _FINE and not states <= _FINE[kind]:
                    return "DependencyNeverSatisfied"
        return "None"

    def _environment(self, job: Job) -> dict[str, str]:
        base = self._cluster.environment(job.system, job.user)
        slurm = {
            "SLURM_JOB_ID": str(job.id),
            "SLURM_JOBID": str(job.id),
            "SLURM_JOB_NAME": job.name,
            "SLURM_JOB_PARTITION": job.directives.partition,
            "SLURM_JOB_USER": job.user,
            "SLURM_JOB_NODELIST": NODE,
            "SLURM_NODELIST": NODE,
            "SLURM_JOB_NUM_NODES": str(job.directives.nodes),
            "SLURM_NNODES": str(job.directives.nodes),
            "SLURM_NTASKS": str(job.directives.ntasks),
            "SLURM_SUBMIT_DIR": os.path.dirname(job.script),
            "SLURM_CLUSTER_NAME": job.system.name,
        }
        if job.array is not None:
            slurm["SLURM_ARRAY_JOB_ID"] = str(job.array)
            slurm["SLURM_ARRAY_TASK_ID"] = job.label.partition("_")[2]
        base["PATH"] = f"{self._tools}:{base['PATH']}"
        # a login shell sets PATH anew; an exported function survives that
        srun = {"BASH_FUNC_srun%%": f'() {{ "{self._tools}/srun" "$@"; }}'}
        return base | slurm | srun | dict(job.environment)

    async def _run(self, job: Job) -> None:
        copy = str(self._spool / str(job.id))
        launch = _LAUNCH_ONE if job.error == job.output else _LAUNCH
        if job.strict:
            launch = launch.replace("exit 1", f"exit {_LAUNCH_FAILED}")
        argv = ["bash", "-c", launch, "slurmstepd", job.folder, job.output, job.error]
        try:
            job.process = process = await trio.lowlevel.open_process(
                [*argv, *job.directives.interpreter, copy],
                env=self._environment(job),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                **self._cluster.account.switch,
            )
            if job.state != "RUNNING":
                kill_session(process.pid)  # cancelled while it was being started
            with trio.move_on_after(job.limit) as watch:
                await process.wait()
            if watch.cancelled_caught:
                self._farewell(job, "CANCELLED AT {} DUE TO TIME LIMIT ***")
                self._finish(job, "TIMEOUT")
                await self._terminate(job)
            code = await process.wait()
            kill_session(process.pid)  # nothing of a job outlives it
            job.exit_code = f"{code}:0" if code >= 0 else f"0:{-code}"
            if job.strict and code == _LAUNCH_FAILED:
                job.exit_code = "0:53"
            self._finish(job, "COMPLETED" if code == 0 else "FAILED")
        finally:
            job.gone.set()
            if job.process is not None and job.process.returncode is None:
                kill_session(job.process.pid)
            with contextlib.suppress(OSError):
                os.unlink(copy)
        self._schedule()

    async def _run_body(self, job: Job) -> None:
        assert job.body is not None
        try:
            code = 1
            with trio.move_on_after(job.limit) as watch, job.scope:
                code = await job.body(job)
            if watch.cancelled_caught:
                self._finish(job, "TIMEOUT")
            job.exit_code = f"{code}:0" if code >= 0 else f"0:{-code}"
            self._finish(job, "COMPLETED" if code == 0 else "FAILED")
        finally:
            self._finish(job, "FAILED")
            job.gone.set()
            with contextlib.suppress(OSError):
                (self._spool / str(job.id)).unlink()
        self._schedule()

    def _finish(self, job: Job, state: str) -> None:
        """The first reason to end is the one that stays."""
        if job.state in ACTIVE:
            job.state, job.ended = state, time.time()
        if job.state in {"CANCELLED", "TIMEOUT"}:
            job.exit_code = "0:0"

    async def _terminate(self, job: Job) -> None:
        assert job.process is not None
        kill_session(job.process.pid, signal.SIGTERM)
        with trio.move_on_after(self._cluster.options.kill_wait):
            await job.process.wait()
        kill_session(job.process.pid)

    def _farewell(self, job: Job, words: str) -> None:
        """slurmstepd's last line, into whatever the job's stderr is."""
        assert job.process is not None
        text = words.format(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()))
        line = f"slurmstepd: error: *** JOB {job.id} ON {NODE} {text}\n"
        try:
            place = f"/proc/{job.process.pid}/fd/2"
            descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        except OSError:
            return  # it has just ended
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(line.encode())
