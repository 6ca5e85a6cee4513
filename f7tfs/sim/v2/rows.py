"""A job as v2 shows it: sacct's view, which lags, over squeue's (v2 FACTS §9)."""

from __future__ import annotations

import grp
import time
from typing import Any

from f7tfs.sim.cluster import Account
from f7tfs.sim.scheduler import NODE, Job
from f7tfs.sim.v2.systems import ACCOUNT, Dialect

_TOP_PRIORITY = 4294901760


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def lags(job: Job, lag: float) -> bool:
    """Whether sacct has only just heard of its start or its end."""
    now = time.time()
    return any(moment is not None and now - moment < lag for moment in (job.started, job.ended))


def row(job: Job, account: Account, lag: float, dialect: Dialect) -> dict[str, Any]:
    behind = lags(job, lag)
    pending = job.state == "PENDING"
    code, signal = (int(number) for number in job.exit_code.split(":"))
    state = f"CANCELLED by {account.uid}" if job.state == "CANCELLED" else job.state
    if behind and job.state == "RUNNING":
        state = "PENDING"  # the tasks know better
    started = job.started if job.started is not None else job.ended
    known = not behind
    return {
        "jobId": dialect.job_id(job.label),
        "name": job.name.replace('"', "`") if known else "allocation",
        "status": {
            "state": state,
            "stateReason": job.reason if pending else "None",
            "exitCode": None if pending else code,
            "interruptSignal": None if pending else signal,
        },
        "tasks": [] if job.started is None else [_batch(job, code, signal)],
        "time": {
            "elapsed": int(job.elapsed()),
            "start": _seconds(started),
            "end": _seconds(job.ended),
            "suspended": None if pending else 0,
            "limit": int(job.limit) if known else None,
        },
        "account": job.directives.account or ACCOUNT,
        "allocationNodes": 0 if behind and job.ended is None else job.directives.nodes,
        "cluster": "cluster",
        "group": group_name(account.gid) if known else "root",
        "nodes": "" if pending else NODE if job.started is not None else "None assigned",
        "partition": job.directives.partition if known else "",
        "killRequestUser": None,
        "user": job.user,
        "workingDirectory": job.folder if known else "",
        "priority": _TOP_PRIORITY - job.id if known and job.reason != "JobHeldUser" else 0,
    }


def _batch(job: Job, code: int, signal: int) -> dict[str, Any]:
    state = "CANCELLED" if job.state == "FAILED" and signal else job.state
    return {
        "id": f"{job.label}.batch",
        "name": "batch",
        "status": {
            "state": state,
            "stateReason": None,
            "exitCode": code,
            "interruptSignal": 15 if job.state == "CANCELLED" else signal,
        },
        "time": {
            "elapsed": int(job.elapsed()),
            "start": _seconds(job.started),
            "end": _seconds(job.ended),
            "suspended": 0,
            "limit": None,
        },
    }


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
