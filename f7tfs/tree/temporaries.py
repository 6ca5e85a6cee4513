"""Names that editors and tools give to files on their way, and junk that never travels.

Only for regular files that this mount created (FUSE.md "What tools really do").
"""

from __future__ import annotations

import re
from collections.abc import Callable

_TEMPORARY = re.compile(
    r"""
      4913                    # vim asks whether it may create files here
    | \.goutputstream-.*      # GIO: gedit, Nautilus
    | \.\#.*                  # Emacs locks
    | \#.*\#                  # Emacs auto-save
    | sed[A-Za-z0-9]{6}       # sed -i
    | .*\.partial~            # GVfs
    | .*\.part                # Firefox, KDE
    | .*\.crdownload          # Chromium
    """,
    re.VERBOSE | re.DOTALL,
)
_RSYNC = re.compile(r"\.(?P<name>.+)\.[A-Za-z0-9]{6}", re.DOTALL)
_JUNK = re.compile(
    r"\..*\.sw[a-z]x?|\.~lock\..*#|\.nfs.*|\.fuse_hidden.*|\.DS_Store|\._.*|\.directory"
    r"|Thumbs\.db|desktop\.ini",
    re.DOTALL,
)


def is_junk(name: str) -> bool:
    """Swap files, desktop droppings: they stay in the spool for as long as they exist."""
    return _JUNK.fullmatch(name) is not None


def is_temporary(name: str, exists: Callable[[str], bool]) -> bool:
    """Whether a file of this name stays local until it is renamed to an ordinary one. rsync's
    `.NAME.XXXXXX` counts where `exists(NAME)`: in the same directory, or being written."""
    if is_junk(name) or _TEMPORARY.fullmatch(name) is not None:
        return True
    found = _RSYNC.fullmatch(name)
    return found is not None and exists(found["name"])
