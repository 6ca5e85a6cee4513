"""/storage/xfer-internal: copies and the like as jobs (v1 FACTS §8).

A failing command still ends COMPLETED: the script's last command is an echo.
"""

from __future__ import annotations

import os
import re

from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.classify import invalid
from f7tfs.sim.cluster import Cluster
from f7tfs.sim.compute import Compute
from f7tfs.sim.replies import refuse, reply
from f7tfs.sim.service import Call, Service
from f7tfs.sim.tasks import Task, TaskBook
from f7tfs.sim.utilities import extract_command

_TIME = re.compile(r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+|\d+-\d+:\d+|\d+-\d+:\d+:\d+")
_SCRIPT = """#! /bin/bash -l
#SBATCH --job-name='{name}'
#SBATCH --time={time}
#SBATCH --error=job-%j.err
#SBATCH --output=job-%j.out
#SBATCH --ntasks=1
#SBATCH --partition=xfer
#SBATCH --account='{account}'
{dependency}
echo Trace ID: 
echo -e "$SLURM_JOB_NAME started on $(date)"
srun -n $SLURM_NTASKS {command}
echo -e "$SLURM_JOB_NAME finished on $(date)"
"""  # noqa: W291 (the server's own blank)


class InternalTransfers:
    def __init__(
        self, cluster: Cluster, book: TaskBook, compute: Compute, service: Service
    ) -> None:
        self._cluster = cluster
        self._book = book
        self._compute = compute
        self._service = service

    def routes(self) -> list[Route]:
        return [
            self._service.route("/xfer-internal/{operation}", "POST", self.transfer),
        ]

    async def transfer(self, call: Call) -> Response:
        operation = str(call.request.path_params["operation"])
        system = call.system(self._cluster, "Failed operation")
        if operation not in {"cp", "mv", "rm", "rsync", "compress", "extract"}:
            raise refuse("Failed operation", "Invalid operation")
        description = f"Error on {operation} operation"
        target = call.checked("targetPath", description)
        source = "" if operation == "rm" else call.checked("sourcePath", description)
        for path in (target, *([source] if source else [])):
            if self._cluster.fenced(call.user, path, follows=False):
                denied = {"X-Permission-Denied": "User does not have permissions to access path"}
                raise refuse(description, headers=denied)
        command = command_of(operation, source, target)
        if command is None:
            raise refuse(description, f"Unsupported file format in {source}.")
        time = call.params.get("time", "02:00:00")
        if not _TIME.fullmatch(time):
            raise refuse(None, "Not supported time format")
        account = call.params.get("account", call.user)
        if reason := invalid(account):
            raise refuse("Invalid account", f"'account' {reason}")
        name = call.params.get("jobName", f"{operation}-job")
        if reason := invalid(name):
            raise refuse("Invalid jobName", f"'jobName' {reason}")
        before = call.params.get("stageOutJobId", "")
        script = _SCRIPT.format(
            name=name,
            time=time,
            account=account,
            command=command,
            dependency=f"#SBATCH --dependency=afterok:{before}\n" if before else "",
        )

        async def work(task: Task) -> dict[str, str]:
            path = self._compute.job_folder(task) + "/sbatch-job.sh"
            return await self._compute.write_and_submit(task, system, path, script.encode(), {})

        task = self._book.create(call.user, "compute", system.name)
        self._compute.begin(task, work)
        return reply({"success": "Task created", "task_id": task.id}, 201)


def command_of(operation: str, source: str, target: str) -> str | None:
    if operation == "extract":
        return extract_command(source, target, "auto")
    folder, name = os.path.split(os.path.normpath(source))
    return {
        "cp": f"cp --force -dR --preserve=all -- '{source}' '{target}'",
        "mv": f"mv --force -- '{source}' '{target}'",
        "rm": f"rm -r --interactive=never -- '{target}'",
        "rsync": f"rsync -av -- '{source}' '{target}'",
        "compress": f"tar -czf '{target}' -C '{folder or '.'}' -- '{name}'",
    }[operation]
