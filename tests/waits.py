"""The one way in which tests wait: for a condition, with a deadline, never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
STEP = 0.02  # seconds between two looks


def wait_until(condition: Callable[[], T], what: str, deadline: float = 15.0) -> T:
    """The first true value of `condition`. Fails with `what` and the last value after `deadline`
    seconds; errors of the file system count as not yet."""
    end = time.monotonic() + deadline
    last: object = None
    while True:
        try:
            value = condition()
        except OSError as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:.0f} s in vain for: {what} (last: {last!r})")
        time.sleep(STEP)
