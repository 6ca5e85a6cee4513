"""What time it is at the server: the times of the cluster's files are not this machine's."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping


class ServerClock:
    """Follows the `Date` of the server's answers; this machine's own time until there was one.

    A date has whole seconds and is older than its arrival: `now` is at most the server's time, by
    little more than a second. So nothing seems older than it is.
    """

    def __init__(self) -> None:
        self._ahead = 0.0  # seconds to add to this machine's time

    def hear(self, headers: Mapping[str, str]) -> None:
        """An answer has just come, with these headers (lower case). One without a date, or with
        none that can be read, teaches nothing."""
        try:
            told = email.utils.parsedate_to_datetime(headers["date"]).timestamp()
        except (KeyError, ValueError, OverflowError):
            return
        self._ahead = told - time.time()

    def now(self) -> float:
        """Epoch seconds."""
        return time.time() + self._ahead
