"""Names on the v1 wire: which paths it carries (v1 FACTS §3, §4)."""

from __future__ import annotations

import re

from f7tfs.api.names import Lesson
from f7tfs.api.names import decoded as decoded
from f7tfs.api.names import is_sound as is_sound
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


def lesson() -> Lesson:
    """What a site does with spaces: its shell wrapper folds runs of them, others have none (§3)."""
    return Lesson("consecutive spaces", "  ", ("  ",))


def carries_text(*texts: str, budget: int = COMMAND_BUDGET, spaces: bool = False) -> bool:
    """Whether a shell command with these parameters arrives as meant. Two consecutive spaces
    collapse to one on the way, unless the server is known to keep them (`spaces`), and bytes that
    are not UTF-8 cannot be sent at all."""
    length = 0
    for text in texts:
        if not text or ("  " in text and not spaces) or FORBIDDEN.search(text):
            return False
        try:
            length += len(text.encode())
        except UnicodeEncodeError:
            return False
    return length <= budget


def carries(path: str, route: Route, *, spaces: bool = False) -> bool:
    """Whether `route` carries one path safely."""
    if route in {Route.COMMAND, Route.MOVE}:
        return carries_text(path, spaces=spaces)
    if route is Route.STAGED_UPLOAD:
        return carries_text(path, budget=STAGED_UPLOAD_BUDGET, spaces=spaces)
    return (
        carries_text(path, budget=STAGED_DOWNLOAD_BUDGET)
        and _UNQUOTED_SAFE.fullmatch(path) is not None
    )
