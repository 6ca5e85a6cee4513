"""Listings that v1 sends as an error, because a name in them reads like one (FACTS §2).

A file called "No such file" makes its whole directory a 400. Its `error` is the stdout of ls with
the newlines taken out; the names stand in it as ls quoted them, so nothing is lost.
"""

from __future__ import annotations

import re

import msgspec

from f7tfs.api.names import c_unquoted, is_sound
from f7tfs.api.wire import Entry, listed
from f7tfs.model import Listed

_TOTAL = re.compile(r"total \d+")
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(
    r"([-dlpscb])([-rwxsStT]{9}[+.@]?) +\d+ (\S+) +(\S+) +(\d+|\d+, *\d+) (\S+) "
    + _QUOTED
    + rf"(?: -> {_QUOTED})?"
)


def entries_in(text: str) -> list[Listed] | None:
    """The entries in the `error` of a refused listing; None unless every character is understood.
    No name is ambiguous: this is ls's own quoting. Devices are left out, as in good listings."""
    total = _TOTAL.match(text)
    if total is None:
        return None
    at, found = total.end(), []
    while at < len(text):
        line = _LINE.match(text, at)
        if line is None:
            return None
        at = line.end()
        if line[1] in "bc":
            continue
        name = c_unquoted(line[7])
        entry = Entry(
            type=line[1],
            permissions=line[2],
            user=line[3],
            group=line[4],
            size=line[5],
            last_modified=line[6],
        )
        # "x" stands in for the name, which is known better here than an Entry can say.
        if is_sound(name) and (item := listed(entry, "x")):
            target = None if line[8] is None else c_unquoted(line[8])
            found.append(msgspec.structs.replace(item, name=name, target=target))
    return found
