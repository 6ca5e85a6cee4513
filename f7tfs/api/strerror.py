"""What the words of a remote command's stderr mean, in the C locale, on both wires.

The system's own words stand at the end of a line; a file name cannot stand there.
"""

from __future__ import annotations

import re

from f7tfs.errors import (
    CrossDevice,
    Exists,
    F7tfsError,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    PermissionDenied,
    QuotaExceeded,
    ReadOnly,
    TooLarge,
    TooManyLinks,
    Unsupported,
)

# What strerror(3) says of the file system; at the end of the text, after ": " or in parentheses.
_STRERROR: dict[str, type[F7tfsError]] = {
    "No such file or directory": NotFound,
    "Permission denied": PermissionDenied,
    "Operation not permitted": NotPermitted,
    "File exists": Exists,
    "Not a directory": NotADirectory,
    "Is a directory": IsADirectory,
    "Directory not empty": NotEmpty,
    "Too many levels of symbolic links": TooManyLinks,
    "File name too long": NameTooLong,
    "Read-only file system": ReadOnly,
    "No space left on device": QuotaExceeded,
    "Disk quota exceeded": QuotaExceeded,
    "Quota exceeded": QuotaExceeded,
    "Invalid cross-device link": CrossDevice,
    "File too large": TooLarge,
    "Invalid argument": InvalidArgument,
    "Operation not supported": Unsupported,
}
_KINDS = {words.lower(): kind for words, kind in _STRERROR.items()}
_AT_END = re.compile(
    r"(?:^|: |\()(" + "|".join(map(re.escape, _STRERROR)) + r")[).]?\s*$", re.IGNORECASE
)
# tar's farewells after the message that counts; on v1 the lines come glued together.
_FAREWELL = re.compile(
    r"(?:tar(?: \(child\))?: (?:Exiting with failure status due to previous errors"
    r"|Error is not recoverable: exiting now|Child returned status \d+)\s*)+$"
)

# Words of the tools themselves, at the beginning or the end.
_PHRASES: list[tuple[re.Pattern[str], type[F7tfsError]]] = [
    (re.compile(r"^mv: cannot overwrite non-directory "), NotADirectory),
    (re.compile(r"^(mv|cp): cannot overwrite directory "), IsADirectory),
    (re.compile(r"^mv: cannot move .* to a subdirectory of itself, "), InvalidArgument),
    (re.compile(r"^cp: cannot copy a directory, .* into itself, "), InvalidArgument),
    (re.compile(r" are the same file$"), InvalidArgument),
    (re.compile(r"^chmod: invalid mode: "), InvalidArgument),
    (re.compile(r"^chown: invalid (user|group|spec): "), InvalidArgument),
]


def without_farewell(text: str) -> str:
    return _FAREWELL.sub("", text.strip()).rstrip()


def kind_by_phrase(text: str) -> type[F7tfsError] | None:
    """From what mv, cp, chmod and chown say in words of their own."""
    return next((kind for pattern, kind in _PHRASES if pattern.search(text)), None)


def kind_by_end(text: str) -> type[F7tfsError] | None:
    """From the words of strerror(3) at the end of `text`."""
    found = _AT_END.search(text)
    return _KINDS[found[1].lower()] if found else None
