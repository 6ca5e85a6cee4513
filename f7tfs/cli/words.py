"""How commands put numbers and names for people."""

from __future__ import annotations

import errno
import os
import time


def plural(number: int, what: str) -> str:
    """ "1 upload", "2 uploads"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def human(number: float) -> str:
    """Bytes for people: "3.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def lasting(seconds: float) -> str:
    """A length of time for people: "5 s", "12 min", "3 h", "9 d"."""
    seconds = max(0.0, seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(since: object) -> str:
    """Epoch seconds in local time; a text as it is."""
    if isinstance(since, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    return str(since or "")


_ERRORS = {os.strerror(number) for number in errno.errorcode}


def reason(error: str) -> str:
    """Why something failed, without the commands and paths that the server's words begin with. Of
    a log, whose lines are joined by " · ", the first line that names an error."""
    for line in error.split(" · "):
        last = line.rpartition(": ")[2].strip()
        if last in _ERRORS:
            return last
    return error


def shown(name: str) -> str:
    """A file name on a terminal: what is not printable is escaped, as `ls -b` does."""
    if name.isprintable():
        return name
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in name
    ).replace("\\udc", "\\x")
