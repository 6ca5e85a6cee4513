"""From the text of a failed command to FirecREST's header (v1 FACTS §2). The order is the fact."""

from __future__ import annotations

import re

FORBIDDEN = re.compile(r"[<>|;\"'&\\()\x00-\x1f`]")

_DENIED = ("X-Permission-Denied", "User does not have permissions to access path")
TIMEOUT_TEXT = "Command has finished with timeout signal"
TIMEOUT_CODE = 124
"""Exit status of coreutils `timeout`."""

# A successful command whose output holds one of these is taken for a failed one ("poisoned").
POISON = ("No such file", "no read permission", "cannot open")


def invalid(text: str | None) -> str:
    """Why a parameter is refused before anything runs; empty if it is not."""
    if text is None:
        return "not specified"
    if text == "":
        return "is empty"
    if FORBIDDEN.search(text):
        return "has invalid char"
    return ""


def header_of(error: str, code: int) -> tuple[str, str]:
    """check_command_error (cscs_api_common.py:1018-1112), as far as it was observed."""
    if code == TIMEOUT_CODE:
        return "X-Timeout", TIMEOUT_TEXT
    if "cannot access" in error:
        return "X-Invalid-Path", "path is an invalid path"
    if "No such file" in error:
        if "cannot stat" in error:
            return "X-Not-Found", "sourcePath not found"
        if "cannot create" in error or "cannot move" in error:
            return "X-Invalid-Path", "sourcePath and/or targetPath are invalid paths"
        if "cannot remove" in error:
            return "X-Invalid-Path", "path is an invalid path."
        return "X-Invalid-Path", "path is an invalid path"
    if "Not a directory" in error:
        return "X-Not-A-Directory", "targetPath is not a directory"
    if any(
        words in error
        for words in ("cannot open", "Permission denied", "not permitted", "no read permission")
    ):
        return _DENIED
    # tar's "Cannot create symlink to ...: File exists" is not recognised (TAR.md: 502).
    if "exists" in error and ("cannot create" in error or "failed to create" in error):
        return "X-Exists", "targetPath already exists"
    if "invalid mode" in error:
        return "X-Invalid-Mode", "mode is an invalid mode"
    if "invalid group" in error:
        return "X-Invalid-Group", "group is an invalid group"
    if "directory" in error:
        return "X-A-Directory", "path is a directory, can't checksum directories"
    return "X-Error", error
