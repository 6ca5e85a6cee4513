"""Names on the v2 wire: what each route carries without running it (v2 FACTS §2, §5, §7, §8).

The server puts paths between single quotes without escaping, into job scripts even without quotes.
So this is the fence between a name and a shell: what is not known to be safe is refused.
"""

from __future__ import annotations

import re

from f7tfs.api.names import Lesson
from f7tfs.api.port import Route
from f7tfs.model import RemotePath, name_of, remote_path

# The name in a multipart header: clients and servers disagree on these (FACTS §5).
_FILE_NAME_FORBIDDEN = re.compile(r'["\\\x00-\x1f\x7f]')
# Stands in double quotes in a script, HTML-escaped before (FACTS §7).
_UPLOAD_FORBIDDEN = re.compile(r"""[&<>'"$`\\\x00-\x1f\x7f]""")
# Stands in single quotes in a script, HTML-escaped before (FACTS §8).
_JOB_FORBIDDEN = re.compile(r"""[&<>'"\x00-\x1f\x7f]""")
# Stands bare in a script, behind a "=". Letters beyond ASCII are safe as well.
_BARE = re.compile(r"[A-Za-z0-9_./,:@%+=~-]+")
# A shell expands a tilde that follows a colon in an assignment.
_TILDE_PREFIX = re.compile(r":~")

_IDENTIFIER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
_JOB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+=:,-]{0,199}")
_LOG_NAME = re.compile(r"\.f7t_file_handling_job_(?:error_)?[0-9A-Fa-f-]{8,64}\.log")


def lesson() -> Lesson:
    """Whether a server escapes what ends a single-quoted word. The servers of FACTS §2 do not: to
    their shell these quotes come in a pair, with nothing but a letter outside, so that it makes
    one word of it, without them. stat shows the name as its quoting style wants it."""
    return Lesson("a single quote", "'x'", ("'x'", "'\\''x'\\''"))


def carries_text(*texts: str, quotes: bool = False) -> bool:
    """Whether a command of the login node takes these parameters as they are meant. A `'` ends
    the word, unless the server is known to escape it (`quotes`); a NUL kills the user's shared ssh
    connection (FACTS §1)."""
    return all(
        text and "\0" not in text and (quotes or "'" not in text) and _is_utf8(text)
        for text in texts
    )


def carries(path: str, route: Route, *, quotes: bool = False) -> bool:
    """Whether `route` carries one path safely. A direct upload is a COMMAND that asks for
    `carries_file_name` as well. Scripts of jobs are another matter than commands: they never get a
    `'`."""
    if route is Route.MOVE:
        return carries_job(path)
    if not carries_text(path, quotes=quotes):
        return False
    if route is Route.STAGED_DOWNLOAD:
        plain = "".join(letter for letter in path if letter.isascii() or not letter.isalpha())
        return _BARE.fullmatch(plain) is not None and not _TILDE_PREFIX.search(path)
    if route is Route.STAGED_UPLOAD:
        return not _UPLOAD_FORBIDDEN.search(path)
    return True


def carries_file_name(path: RemotePath) -> bool:
    """Whether the last component travels unchanged in a multipart header."""
    name = name_of(path)
    return bool(name) and not _FILE_NAME_FORBIDDEN.search(name)


def carries_job(*paths: str) -> bool:
    """Whether the mv and cp jobs take these paths as they are meant."""
    return carries_text(*paths) and not any(_JOB_FORBIDDEN.search(path) for path in paths)


def carries_archive(directory: str) -> bool:
    """tar undoes backslash escapes in the argument of its -C, and would be in another directory."""
    return "\\" not in directory


def carries_checksum(path: str) -> bool:
    """The server splits sha256sum's answer at white space (FACTS §3)."""
    return not any(letter.isspace() for letter in path)


def is_identifier(text: str) -> bool:
    """A user, group or account that means nothing to a shell."""
    return _IDENTIFIER.fullmatch(text) is not None


def is_job_name(text: str) -> bool:
    """A name for a job that no shell, no sbatch and not the server's parser (`|`) stumbles over."""
    return _JOB_NAME.fullmatch(text) is not None


def log_of_transfer(text: object) -> RemotePath | None:
    """A path of a transfer's log as the server gave it, if it is one: it will be removed by a
    call that removes whole trees, so nothing else gets through."""
    if not isinstance(text, str) or not text.startswith("/"):
        return None
    if not carries_text(text):
        return None
    path = remote_path(text)
    return path if path == text and _LOG_NAME.fullmatch(name_of(path)) else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
