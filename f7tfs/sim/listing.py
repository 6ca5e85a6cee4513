"""From the text of `ls` to the entries of /utilities/ls (v1 FACTS §4, utilities.py:172-298)."""

from __future__ import annotations

import re
import shlex
from typing import Any

_ENTRY = re.compile(
    r"(?P<type>[-dlps])(?P<permissions>[-rwxsStT]{9}[+@.]?) +\d+ +(?P<user>\S+) +(?P<group>\S+)"
    r" +(?P<size>\d+) +(?P<last_modified>\S+) (?P<name>\".*)"
)
_SECTION = re.compile(r'"(?P<path>.*)":')
_TOTAL = re.compile(r"total \d+")


def names(text: str) -> list[str]:
    """`unsorted` and `notListing` give C-quoted strings."""
    return [line for line in text.splitlines() if line]


def entries(text: str, *, recursive: bool) -> list[Any]:
    """Dicts of strings; in a recursive listing a bare "" stands for each empty directory."""
    lines = [line for line in text.split("\n") if line and not _TOTAL.fullmatch(line)]
    found: list[Any] = []
    root: str | None = None
    prefix = ""
    section_empty = False
    for line in lines:
        section = _SECTION.fullmatch(line)
        if section and recursive:
            if section_empty and root is not None:
                found.append("")
            path = section["path"]
            root = path if root is None else root
            prefix = path[len(root) :].lstrip("/")
            section_empty = True
            continue
        entry = _ENTRY.fullmatch(line)
        if entry is not None:
            section_empty = False
            found.append(_dict_of(entry, prefix))
    if section_empty:
        found.append("")
    if not any(isinstance(entry, dict) for entry in found) and not recursive:
        return lines  # nothing that the expression knows: devices come as raw text
    return found


def _dict_of(entry: re.Match[str], prefix: str) -> dict[str, str]:
    # shlex takes the quotes away but leaves C escapes such as \n and \303 as they are
    name, *target = shlex.split(entry["name"])
    result = entry.groupdict()
    result["name"] = f"{prefix}/{name}" if prefix else name
    result["link_target"] = target[1] if entry["type"] == "l" and len(target) == 2 else ""
    return result
