"""The rows of squeue and sacct as FirecREST passes them on (v1 FACTS §9)."""

from __future__ import annotations

import re
import time

from f7tfs.sim.scheduler import NODE, Job
from f7tfs.sim.tasks import timestamp


def day(text: str | None) -> float | None:
    """Only YYYY-MM-DD counts; other formats are dropped without a word (slurm.py:171-175)."""
    if text is None or not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return None
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%d")) - time.timezone
    except ValueError:
        return None


def queue_row(job: Job) -> dict[str, str]:
    """`start_time` and `time` are swapped by the server (slurm.py:139-156)."""
    return {
        "jobid": job.label,
        "name": job.name,
        "partition": job.directives.partition,
        "user": job.user,
        "state": job.state,
        "nodes": str(job.directives.nodes),
        "nodelist": NODE if job.state == "RUNNING" else f"({job.reason})",
        "start_time": short_span(job.elapsed()),
        "time": "N/A" if job.started is None else timestamp(job.started),
        "time_left": short_span(max(0.0, job.limit - job.elapsed())),
    }


def acct_row(job: Job, uid: int, lag: float) -> dict[str, str]:
    now = time.time()
    behind = any(t is not None and now - t < lag for t in (job.started, job.ended))
    elapsed = long_span(job.elapsed())
    end = "Unknown" if job.ended is None else timestamp(job.ended)
    return {
        "jobid": job.label,
        "name": "allocation" if behind else job.name,
        "partition": "" if behind else job.directives.partition,
        "user": "root" if behind else job.user,
        "state": f"CANCELLED by {uid}" if job.state == "CANCELLED" else job.state,
        "nodes": str(job.directives.nodes),
        "nodelist": "None assigned" if job.started is None else NODE,
        "exit_code": job.exit_code,
        "start_time": "Unknown" if job.started is None else timestamp(job.started),
        "elapsed_time": elapsed,
        "cpu_time": elapsed,
        "time": elapsed,
        "termination_time": end,
        "time_left": end,
    }


def short_span(seconds: float) -> str:
    """squeue's: 0:01, 1:02:03, 1-00:00:00."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def long_span(seconds: float) -> str:
    """sacct's: 00:00:11, 1-00:00:00."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hour:02}:{minute:02}:{second:02}"
