"""RFC 9110 byte ranges: one range, as object stores serve it (v1 FACTS §7)."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


class Unsatisfiable(ValueError):
    """416."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and byte after the last; None if the whole is to be sent."""
    found = _RANGE.match(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        if int(last) == 0:
            raise Unsatisfiable
        start, end = max(0, size - int(last)), size
    else:
        start = int(first)
        end = min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise Unsatisfiable
    return start, end
