"""multipart/form-data with one file at the end, parsed as it streams.

A staged upload may be gigabytes: only the fields are kept in memory, the file's bytes are handed
on as they come. S3 ignores everything after the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NAME = re.compile(rb'[;\s]name="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_BOUNDARY = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)
_HEAD_LIMIT = 65536


class Malformed(ValueError):
    """The body is not what the Content-Type promised."""


def boundary_of(content_type: str) -> bytes:
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/form-data") or found is None:
        raise Malformed("not multipart/form-data")
    return found[1].encode("latin-1")


class FormParser:
    """Feed it chunks; it calls `open_file(fields)` once and `write(data)` for the file's bytes."""

    def __init__(
        self,
        boundary: bytes,
        open_file: Callable[[dict[str, str]], None],
        write: Callable[[memoryview], None],
    ) -> None:
        self._mark = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # so that the first boundary looks like all others
        self._open_file = open_file
        self._write = write
        self._fields: dict[str, str] = {}
        self._step = self._preamble
        self._name = ""
        self.complete = False
        """Whether the file's closing boundary was seen."""

    def feed(self, chunk: bytes) -> None:
        self._buffer = self._buffer + chunk if self._buffer else chunk
        while not self.complete and self._step():
            pass
        if self.complete:
            self._buffer = b""

    def _preamble(self) -> bool:
        found = self._buffer.find(self._mark)
        if found < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise Malformed("no boundary")
            return False
        self._buffer = self._buffer[found + len(self._mark) :]
        self._step = self._head
        return True

    def _head(self) -> bool:
        if self._buffer.startswith(b"--"):
            raise Malformed("POST requires exactly one file upload per request.")
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise Malformed("part header too long")
            return False
        found = _NAME.search(self._buffer[:end])
        if found is None:
            raise Malformed("part without a name")
        self._name = found[1].decode()
        self._buffer = self._buffer[end + 4 :]
        if self._name == "file":
            self._open_file(self._fields)
            self._step = self._file
        else:
            self._step = self._field
        return True

    def _field(self) -> bool:
        found = self._buffer.find(self._mark)
        if found < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise Malformed("field too long")
            return False
        self._fields[self._name] = self._buffer[:found].decode()
        self._buffer = self._buffer[found + len(self._mark) :]
        self._step = self._head
        return True

    def _file(self) -> bool:
        found = self._buffer.find(self._mark)
        view = memoryview(self._buffer)
        if found >= 0:
            self._write(view[:found])
            self.complete = True
            return False
        keep = len(self._mark) - 1  # the boundary may be cut by the end of the chunk
        if len(view) > keep:
            self._write(view[:-keep])
            self._buffer = bytes(view[-keep:])
        return False
