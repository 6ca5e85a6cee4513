"""A job array as one job: what the scheduler tells of its elements, summed up.

Its elements come as "92_1", those that wait also together as "92_[2-5]" (v1 FACTS §9); the
submission knows only the number 92.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from f7tfs.model import Job, JobState

_ELEMENT = re.compile(r"(?P<number>\d+)_(?P<index>\d+|\[[^\]]*\]?)")
_UNSPLIT = "_4294967294"  # scontrol's index of an array that nothing of has started
# What an array is while its elements differ: the first of these that one of them is.
_ORDER = (
    JobState.RUNNING,
    JobState.COMPLETING,
    JobState.SUSPENDED,
    JobState.PENDING,
    JobState.OTHER,
    JobState.NODE_FAIL,
    JobState.OUT_OF_MEMORY,
    JobState.TIMEOUT,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.COMPLETED,
)


def array_of(job_id: str) -> str | None:
    """The number of the array that this is an element of; None for an ordinary job."""
    found = _ELEMENT.fullmatch(job_id)
    return None if found is None else found["number"]


def is_single(job_id: str) -> bool:
    """Whether it has a directory of its own: not several elements in one row."""
    return "[" not in job_id


def sums_of(jobs: Iterable[Job]) -> dict[str, Job]:
    """One job for each array of which there are elements, by its number."""
    elements: dict[str, list[Job]] = {}
    for job in jobs:
        number = array_of(job.id)
        if number is not None:
            elements.setdefault(number, []).append(job)
    return {number: _sum(number, found) for number, found in elements.items()}


def _sum(number: str, elements: Sequence[Job]) -> Job:
    state = next(one for one in _ORDER if any(job.state is one for job in elements))
    shown = next(job for job in elements if job.state is state)
    started = sorted(job.started for job in elements if job.started)
    ended = sorted(job.ended for job in elements if job.ended)
    is_over = all(job.state.is_over for job in elements)
    return msgspec.structs.replace(
        shown,
        id=number,
        reason=shown.reason if state is JobState.PENDING else "",
        started=started[0] if started else "",
        ended=ended[-1] if is_over and ended else "",
        elapsed="",
        exit_code=max((job.exit_code for job in elements), key=_weight) if is_over else "",
        elements=_counts(elements),
        stdout_path="",
        stderr_path="",
        is_transfer=any(job.is_transfer for job in elements),
    )


def _weight(exit_code: str) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", exit_code)
    return tuple(int(number) for number in numbers[:2])


def _counts(elements: Sequence[Job]) -> str:
    """ "2 RUNNING, 1 COMPLETED"; several in one row count as their indices say."""
    counts: Counter[str] = Counter()
    for job in elements:
        counts[job.state.value] += _width(job.id)
    order = [state.value for state in _ORDER]
    return ", ".join(f"{counts[word]} {word}" for word in sorted(counts, key=order.index))


def _width(job_id: str) -> int:
    """How many elements a row stands for: "92_[1-3,7%2]" for four."""
    inner = job_id.partition("[")[2].partition("]")[0].partition("%")[0]
    total = 0
    for part in inner.split(","):
        first, dash, rest = part.partition("-")
        last, _, step = rest.partition(":")
        if dash and first.isdigit() and last.isdigit():
            total += len(range(int(first), int(last) + 1, int(step) if step.isdigit() else 1))
        else:
            total += 1
    return max(1, total)


def element_path(path: str, job_id: str) -> str:
    """Where an element writes, from what the submission of its array was told: "" unless that is
    the array's pattern."""
    index = job_id.rpartition("_")[2]
    return path.replace(_UNSPLIT, f"_{index}") if _UNSPLIT in path and index.isdigit() else ""
