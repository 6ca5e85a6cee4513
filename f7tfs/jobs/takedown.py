"""`rm -r jobs/4711`: its files go first, and nothing has happened yet; then the directory does, and
that cancels the job."""

from __future__ import annotations

import time

FOR = 10.0  # seconds until files show again whose directory was not removed after all


class Takedowns:
    def __init__(self) -> None:
        self._hidden: dict[str, tuple[int, float, set[str]]] = {}  # job → process, until, names

    def hide(self, job_id: str, name: str, process: int) -> None:
        """A process removes a file of a job's directory."""
        _, _, names = self._present(job_id) or (0, 0.0, set())
        self._hidden[job_id] = (process, time.monotonic() + FOR, names | {name})

    def hidden(self, job_id: str) -> set[str]:
        """Names in a job's directory that are not there at the moment."""
        found = self._present(job_id)
        return found[2] if found else set()

    def is_by(self, job_id: str, process: int) -> bool:
        """Whether this process is taking the job's directory down."""
        found = self._present(job_id)
        return found is not None and found[0] == process

    def end(self, job_id: str) -> None:
        self._hidden.pop(job_id, None)

    def _present(self, job_id: str) -> tuple[int, float, set[str]] | None:
        found = self._hidden.get(job_id)
        if found is not None and found[1] < time.monotonic():
            del self._hidden[job_id]
            return None
        return found
