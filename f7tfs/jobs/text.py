"""How a job reads: lines for people, JSON for programs. One stable shape for both dialects."""

from __future__ import annotations

import json

from f7tfs.model import Job


def fields(job: Job) -> dict[str, str]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state_text or job.state.value,
        "reason": job.reason,
        "exit_code": job.exit_code,
        "user": job.user,
        "partition": job.partition,
        "nodes": job.nodes,
        "node_list": job.node_list,
        "started": job.started,
        "ended": job.ended,
        "elapsed": job.elapsed,
        "script": job.script_path,
        "stdout": job.stdout_path,
        "stderr": job.stderr_path,
    }


def status_text(job: Job) -> bytes:
    """`key: value` lines; what the scheduler did not tell is left out."""
    lines = [f"{name}: {value}\n" for name, value in fields(job).items() if value]
    return "".join(lines).encode(errors="surrogateescape")


def status_json(job: Job) -> bytes:
    return (json.dumps(fields(job), indent=2) + "\n").encode()
