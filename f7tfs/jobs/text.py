"""How jobs and drops read: lines for people, JSON for programs. One stable shape for both
dialects."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from f7tfs.model import Job
from f7tfs.transfers.drops import Drop


def fields(job: Job) -> dict[str, str]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state_text or job.state.value,
        "reason": job.reason,
        "elements": job.elements,
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
    return _lines((name, value) for name, value in fields(job).items() if value)


def status_json(job: Job) -> bytes:
    return _json(fields(job))


def drop_fields(drop: Drop, waits_for: Iterable[str], candidates: Iterable[Job]) -> dict[str, Any]:
    """A drop, for programs. `waits_for`: paths whose upload is not through; `candidates`: jobs that
    may be it, which only the user can tell."""
    return {
        "name": drop.name,
        "state": drop.state,
        "id": drop.job_id,
        "error": drop.error,
        "since": drop.created,
        "waits_for": list(waits_for),
        "candidates": [job.id for job in candidates],
    }


def drop_text(drop: Drop, waits_for: Iterable[str], candidates: Iterable[Job]) -> bytes:
    """Of a drop whose job is not known yet: what it waits for, or what became of it."""
    lines = [("name", drop.name), ("state", drop.state.upper())]
    if drop.error:
        lines.append(("reason", " ".join(drop.error.split())))
    lines += [("waits for", path) for path in waits_for]
    if drop.state == "unknown":
        lines.append(("tag", drop.id))
        lines += [
            ("candidate", f"{job.id} {job.name} {job.state_text or job.state.value} {job.started}")
            for job in candidates
        ]
        lines.append(("advice", f"it is not sent again; rm {drop.name} gives it up"))
    return _lines(lines)


def refusal_text(drop: Drop, script: bytes) -> bytes:
    """Why a drop was refused, and what was written: close() may have returned before, or nobody
    may have heard of it, and the script is nowhere else."""
    text = drop.error.encode(errors="surrogateescape") + b"\n"
    return text + b"\n--- what was refused:\n" + script


def board_json(jobs: Iterable[Job], drops: Iterable[dict[str, Any]]) -> bytes:
    return _json({"jobs": [fields(job) for job in jobs], "drops": list(drops)})


def _lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    text = "".join(f"{name}: {value.rstrip()}\n" for name, value in pairs)
    return text.encode(errors="surrogateescape")


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
