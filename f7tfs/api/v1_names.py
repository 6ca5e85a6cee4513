"""Names on the v1 wire: which paths it carries, and what its listings mean (v1 FACTS §3, §4)."""

from __future__ import annotations

import re

from f7tfs.api.port import Route

# FORBIDDEN_INPUT_CHARS of the server, and the control characters it refuses as well.
FORBIDDEN = re.compile(r"""[<>|;"'&\\()`\x00-\x1f]""")

# In bytes. The command travels base64-coded in a request line of 4094 bytes: 2833 were seen to
# work with ls; the longest command and two paths need a margin.
COMMAND_BUDGET = 2700
# The server adds a form, or a link, of its own to the command.
STAGED_DOWNLOAD_BUDGET = 1000
STAGED_UPLOAD_BUDGET = 2000

# The source of a staged download stands unquoted in a shell command and in curl's -F: what was
# seen to work, and every character beyond ASCII.
_UNQUOTED_SAFE = re.compile(r"[A-Za-z0-9_./#*+=%!~\u0080-\U0010ffff-]+")

_ESCAPE = re.compile(rb"\\([abfnrtv]|[0-3][0-7]{2})")
_QUOTED_ESCAPE = re.compile(rb"""\\([abfnrtv"\\]|[0-3][0-7]{2})""")
_LETTERS = {b"a": 7, b"b": 8, b"t": 9, b"n": 10, b"v": 11, b"f": 12, b"r": 13}


def carries_text(*texts: str, budget: int = COMMAND_BUDGET) -> bool:
    """Whether a shell command with these parameters arrives as meant. Two consecutive spaces
    collapse to one on the way, and bytes that are not UTF-8 cannot be sent at all."""
    length = 0
    for text in texts:
        if not text or "  " in text or FORBIDDEN.search(text):
            return False
        try:
            length += len(text.encode())
        except UnicodeEncodeError:
            return False
    return length <= budget


def carries(path: str, route: Route) -> bool:
    """Whether `route` carries one path safely."""
    if route is Route.COMMAND:
        return carries_text(path)
    if route is Route.STAGED_UPLOAD:
        return carries_text(path, budget=STAGED_UPLOAD_BUDGET)
    return (
        carries_text(path, budget=STAGED_DOWNLOAD_BUDGET)
        and _UNQUOTED_SAFE.fullmatch(path) is not None
    )


def decoded(listed: str) -> tuple[str, bool]:
    """The name that a listing shows, and whether that reading is ambiguous.

    ls escapes what it cannot print, as C does; the server undoes the escapes of quote and backslash
    only. So what looks like an escape may be a literal backslash in the name. What ls would never
    have escaped that way (\\101, \\s) is literal for certain.
    """
    if "\\" not in listed:
        return listed, False
    raw = listed.encode("utf-8", "surrogateescape")
    meant = _ESCAPE.sub(_byte_of_escape, raw)
    return meant.decode("utf-8", "surrogateescape"), meant != raw


def _byte_of_escape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code in _LETTERS:
        return bytes([_LETTERS[code]])
    value = int(code, 8)
    if value == 0 or 7 <= value <= 13 or 0o40 <= value < 0o177:
        return match[0]
    return bytes([value])


def c_unquoted(quoted: str) -> str:
    """The name between the quotes of ls --quoting-style=c, whole and certain."""
    raw = quoted.encode("utf-8", "surrogateescape")
    meant = _QUOTED_ESCAPE.sub(
        lambda match: match[1] if match[1] in b'"\\' else _byte_of_escape(match), raw
    )
    return meant.decode("utf-8", "surrogateescape")


def is_sound(name: str) -> bool:
    """Whether a listed name can be one: not empty, not "." or "..", without "/" and NUL."""
    return name not in {"", ".", ".."} and "/" not in name and "\0" not in name
