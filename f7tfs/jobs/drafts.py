"""Scripts on their way into jobs/: written locally, submitted at the last close, once.

Only written, non-empty content under an ordinary name counts: touch, chmod and an unmodified open
never submit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from f7tfs.errors import TooLarge
from f7tfs.jobs.process import is_open
from f7tfs.jobs.script import LIMIT, Wishes
from f7tfs.tree.wing import Caller, wants_writing


class Draft:
    """A local file in jobs/, in memory. `is_dirty`: written since it was last submitted."""

    def __init__(self, name: str, content: bytes, permissions: int) -> None:
        self.name = name
        self.content = bytearray(content)
        self.permissions = permissions
        self.mtime_ns = time.time_ns()
        self.wishes = Wishes()  # set by setxattr on the way
        self.writers = 0
        self.is_dirty = False
        self.is_gone = False

    def write(self, offset: int, data: bytes) -> int:
        end = offset + len(data)
        if end > LIMIT:
            raise TooLarge(f"a script has at most {LIMIT} bytes")
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset:end] = data
        self._changed()
        return len(data)

    def truncate(self, size: int) -> None:
        if size > LIMIT:
            raise TooLarge(f"a script has at most {LIMIT} bytes")
        if size < len(self.content):
            del self.content[size:]
        else:
            self.content.extend(bytes(size - len(self.content)))
        self._changed()

    def _changed(self) -> None:
        self.mtime_ns = time.time_ns()
        self.is_dirty = True


class DraftHandle:
    """One open(2) of a draft. `ended` is told when the last writer is through, and whether close()
    waits for the answer: it does in the flush of the only descriptor, where a refusal still reaches
    it, and not in release."""

    is_direct = True

    def __init__(
        self,
        draft: Draft,
        flags: int,
        *,
        path: Path,
        ended: Callable[[Draft, bool], Awaitable[None]],
    ) -> None:
        self.draft = draft
        self._path = path
        self._ended = ended
        self._appends = bool(flags & os.O_APPEND)
        self._writes = wants_writing(flags)
        if self._writes:
            draft.writers += 1

    async def read(self, offset: int, size: int) -> bytes:
        return bytes(self.draft.content[offset : offset + size])

    async def write(self, offset: int, data: bytes) -> int:
        return self.draft.write(len(self.draft.content) if self._appends else offset, data)

    async def truncate(self, size: int) -> None:
        self.draft.truncate(size)

    async def flush(self, caller: Caller) -> None:
        draft = self.draft
        if self._writes and draft.is_dirty and draft.writers == 1 and not is_open(self._path):
            await self._ended(draft, True)

    async def sync(self) -> None:
        pass

    async def release(self) -> None:
        if self._writes:
            self.draft.writers -= 1
            if self.draft.writers == 0:
                await self._ended(self.draft, False)
