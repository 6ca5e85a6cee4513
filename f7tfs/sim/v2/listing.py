"""From the text of `ls -l --quoting-style=c` to entries (v2 FACTS §3)."""

from __future__ import annotations

import re
import shlex
from typing import Any

LS = "ls -l --quoting-style=c --time-style='+%Y-%m-%dT%H:%M:%S'"
_ENTRY = re.compile(
    r"(?P<type>\S)(?P<permissions>[-rwxsStT]{9}[+@.]?)\s+\d+\s+(?P<user>\S+)\s+(?P<group>\S+)"
    r"\s+(?P<size>\d+)\s+(?P<last>\S+)\s(?P<name>\".*)"
)
"""One number for the size: devices, and owners with a space, do not match and are dropped."""
_SECTION = re.compile(r'"(?P<path>.*)":')


def entries(text: str, *, recursive: bool = False) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    top: str | None = None
    prefix = ""
    for line in text.split("\n"):
        section = _SECTION.fullmatch(line) if recursive else None
        if section is not None:
            # a folder's name stays C-quoted here, a leaf's is half unquoted
            top = section["path"] if top is None else top
            prefix = section["path"][len(top) :].lstrip("/")
            continue
        entry = _entry(line)
        if entry is not None:
            if prefix:
                entry["name"] = f"{prefix}/{entry['name']}"
            found.append(entry)
    return found


def one(text: str) -> dict[str, Any] | None:
    """The entry that a mutation shows; None if there is none (§2)."""
    return next(iter(entries(text)), None)


def _entry(line: str) -> dict[str, Any] | None:
    match = _ENTRY.fullmatch(line)
    if match is None:
        return None
    try:
        # takes quotes, \" and \\ away, and leaves \n, \t, \303 as they are
        names = shlex.split(match["name"])
    except ValueError:
        return None
    if len(names) not in {1, 3}:
        return None
    return {
        "name": names[0],
        "type": match["type"],
        "linkTarget": names[2] if len(names) == 3 else None,
        "user": match["user"],
        "group": match["group"],
        "permissions": match["permissions"],
        "lastModified": match["last"],
        "size": match["size"],
    }
