"""The scheduler behind a simulator as it is, in either dialect, without f7tfs."""

from __future__ import annotations

import json
import re
from typing import Any

from mounting import Mount
from sim_process import Simulator

POSTS = {"v1": "POST /compute/jobs/upload", "v2": "POST /compute/{}/jobs"}
CANCELS = {"v1": "DELETE /compute/jobs", "v2": "DELETE /compute/{}/jobs"}


class Queue:
    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.dialect = "v2" if simulator.v2_url else "v1"

    @property
    def post(self) -> str:
        """How a submission is called in faults."""
        return POSTS[self.dialect].format(self.simulator.system)

    @property
    def look(self) -> dict[str, Any]:
        """What a rule for faults needs to hit the question for the job of a tag."""
        if self.dialect == "v1":
            return {"match": "GET /tasks", "where": "/tasks?"}
        return {"match": f"GET /compute/{self.simulator.system}/jobs", "where": "name="}

    def jobs(self) -> dict[str, str]:
        """Every job that the scheduler ever had: id → first word of its state."""
        if self.dialect == "v2":
            path = f"/compute/{self.simulator.system}/jobs"
            _, _, body = self.simulator.v2("GET", path, {"time_window": "7d"})
            return {one["jobId"]: one["status"]["state"].split()[0] for one in body["jobs"]}
        _, _, body = self.simulator.api("GET", "/compute/acct")
        rows = self.simulator.wait_task(body["task_id"], "200", "400")["data"]
        rows = rows if isinstance(rows, list) else []
        return {row["jobid"]: row["state"].split()[0] for row in rows}

    def count(self) -> int:
        return len(self.jobs())

    def submit(self, script: str, number: int = 1) -> list[str]:
        """By somebody else's hand."""
        made = []
        for _ in range(number):
            if self.dialect == "v2":
                job = {"workingDirectory": str(self.simulator.scratch), "script": script}
                path = f"/compute/{self.simulator.system}/jobs"
                _, _, body = self.simulator.v2("POST", path, body={"job": job})
                made.append(str(body["jobId"]))
            else:
                made.append(self._submit_v1(script))
        return made

    def _submit_v1(self, script: str) -> str:
        boundary = "x-x-x"
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="theirs.sh"'
            f"\r\n\r\n{script}\r\n--{boundary}--\r\n"
        ).encode()
        headers = {
            "Authorization": f"Bearer {self.simulator.token()}",
            "X-Machine-Name": self.simulator.system,
            "Content-Type": f"multipart/form-data; boundary={boundary}",
        }
        _, _, answer = self.simulator.request(
            "POST", "/compute/jobs/upload", body=body, headers=headers
        )
        task = self.simulator.wait_task(json.loads(answer)["task_id"], "200")
        return str(task["data"]["jobid"])

    def cancel(self, job_id: str) -> None:
        """By somebody else's hand."""
        if self.dialect == "v2":
            self.simulator.v2("DELETE", f"/compute/{self.simulator.system}/jobs/{job_id}")
        else:
            self.simulator.api("DELETE", f"/compute/jobs/{job_id}")

    def posts(self) -> int:
        """Submissions that arrived at the server, since the counters were reset."""
        return self._calls(self.post)

    def cancels(self) -> int:
        return self._calls(CANCELS[self.dialect].format(self.simulator.system))

    def _calls(self, name: str) -> int:
        method, _, place = name.partition(" ")
        pattern = re.compile(
            re.escape(f"{method} ") + re.escape(place).replace(self.simulator.system, "[^/]+")
            + r"(/[^/]+)?$"
        )  # fmt: skip
        calls = self.simulator.calls()["calls"]
        return sum(int(count) for call, count in calls.items() if pattern.match(call))


def drops(mount: Mount) -> dict[str, dict[str, Any]]:
    """The drops of a mount by name, without a look at jobs/."""
    return {one["name"]: one for one in mount.status()["jobs"]["dropped"]}
