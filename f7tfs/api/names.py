"""Names as `ls --quoting-style=c` shows them, on both wires (v1 FACTS §4, v2 FACTS §3)."""

from __future__ import annotations

import re

from f7tfs.errors import NameNotSupported

_ESCAPE = re.compile(rb"\\([abfnrtv]|[0-3][0-7]{2})")
_QUOTED_ESCAPE = re.compile(rb"""\\([abfnrtv"\\]|[0-3][0-7]{2})""")
_LETTERS = {b"a": 7, b"b": 8, b"t": 9, b"n": 10, b"v": 11, b"f": 12, b"r": 13}


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


def require(carried: bool, *names: str) -> None:
    """Raises NameNotSupported unless the names are `carried`."""
    if not carried:
        shown = ", ".join(ascii(name) for name in names)
        raise NameNotSupported(f"FirecREST does not carry this name safely: {shown}")
