"""The two log files that each transfer job leaves in the home, for ever (v2 FACTS §7)."""

from __future__ import annotations

import os
import time
from datetime import datetime
from zoneinfo import ZoneInfo

from f7tfs.sim.cluster import Account
from f7tfs.sim.scheduler import Job


class NoHome(Exception):
    """The logs cannot be opened: the job fails without a word."""


class JobLog:
    def __init__(self, job: Job, account: Account) -> None:
        self._zone = ZoneInfo(job.system.environment.get("TZ", "UTC"))
        self._output, self._error = job.output, job.error
        for path in (self._output, self._error):
            try:
                flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW
                descriptor = os.open(path, flags, 0o644)
            except OSError:
                raise NoHome from None
            with os.fdopen(descriptor, "wb"):
                if account.switch:
                    os.fchown(descriptor, account.uid, account.gid)

    def out(self, text: str) -> None:
        _append(self._output, f"{text}\n")

    def said(self, text: str) -> None:
        """As `echo "$(date) …"`."""
        self.out(f"{self.date()} {text}")

    def complain(self, text: str) -> None:
        """Raw, with the newlines it has."""
        _append(self._error, text)

    def date(self) -> str:
        now = datetime.fromtimestamp(time.time(), self._zone)
        return f"{now:%a %b} {now.day:2} {now:%H:%M:%S %Z %Y}"


def _append(path: str, text: str) -> None:
    try:
        with open(path, "ab") as file:
            file.write(text.encode(errors="surrogateescape"))
    except OSError:
        pass  # somebody has taken the log away: a job goes on writing into nothing
