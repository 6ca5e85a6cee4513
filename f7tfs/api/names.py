"""Names as `ls --quoting-style=c` shows them, on both wires (v1 FACTS §4, v2 FACTS §3)."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable

import trio

from f7tfs.errors import F7tfsError, NameNotSupported, Unauthorized
from f7tfs.model import RemotePath, join, parent_of

log = logging.getLogger("f7tfs.names")

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


class Lesson:
    """What only a site's server can tell about a kind of names. It is asked when the first of them
    is met, once, by a `stat` of one that cannot exist: whatever the server does with it, nothing
    changes (SEMANTICS "Names")."""

    def __init__(self, subject: str, characters: str, understood: tuple[str, ...]) -> None:
        """`subject`: for the log. `characters`: those in question. The error text of a server that
        leaves them alone holds one of `understood`."""
        self.is_known = False
        self.is_carried = False
        self._subject = subject
        self._characters = characters
        self._understood = understood
        self._turn = trio.Lock()

    async def learn(
        self,
        path: RemotePath,
        carries: Callable[[RemotePath], bool],
        stat: Callable[[RemotePath], Awaitable[object]],
    ) -> None:
        """Ask, beside the deepest directory on the way to `path` that is carried anyhow. Unclear
        answers count as a no; what keeps the server from answering is raised, and asked again."""
        async with self._turn:
            if self.is_known:
                return
            place = parent_of(path)
            while not carries(place):
                place = parent_of(place)
            head, tail = f".f7tfs-probe-{secrets.token_hex(6)}", secrets.token_hex(4)
            answer = ""
            try:
                await stat(join(place, f"{head}{self._characters}{tail}"))
            except F7tfsError as error:
                answer = str(error)
                if head not in answer and (error.transient or isinstance(error, Unauthorized)):
                    raise
            self.is_carried = any(f"{head}{one}{tail}" in answer for one in self._understood)
            self.is_known = True
            words = "carries" if self.is_carried else "does not carry"
            log.info("this server %s names with %s", words, self._subject)


def require(carried: bool, *names: str) -> None:
    """Raises NameNotSupported unless the names are `carried`."""
    if not carried:
        shown = ", ".join(ascii(name) for name in names)
        raise NameNotSupported(f"FirecREST does not carry this name safely: {shown}")
