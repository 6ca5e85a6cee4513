"""One cache file: which bytes of which version of a remote file are in it, and its label."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import trio

from f7tfs.content.extents import Extents
from f7tfs.errors import F7tfsError
from f7tfs.model import Fingerprint, RemotePath

RACY = 2.0  # seconds


class Snapshot(msgspec.Struct, frozen=True):
    """The staged copy of one version: where it can be read from, and what made it. `link` is a
    presigned GET: a secret. `since` in epoch seconds; `size` in bytes."""

    link: str
    ticket: str
    since: float
    size: int


class Label(msgspec.Struct, frozen=True):
    """What a cache file holds; kept beside it as JSON. `held` is None for all of it. `boot` names
    the run of the machine that wrote the label; a `synced` one holds beyond it. `ours`: uploaded
    from here, not fetched."""

    path: str
    fingerprint: Fingerprint
    held: list[tuple[int, int]] | None = None
    snapshot: Snapshot | None = None
    boot: str = ""
    synced: bool = False
    ours: bool = False


class CacheFile:
    """Bytes of one version of one remote file. Published before it is filled: readers wait on
    `grown`, an event that is replaced at every growth. Changed only by its `Cache`."""

    def __init__(self, file: Path, path: RemotePath, fingerprint: Fingerprint) -> None:
        self.file = file
        self.path = path
        self.fingerprint = fingerprint
        self.fd = -1  # while it is pinned
        self.held = Extents()
        self.unproven: Extents | None = None  # of the shorter version that the file grew from
        self.promised = 0  # bytes that are being fetched: room is made, they are not here yet
        self.snapshot: Snapshot | None = None
        self.readers: dict[object, int] = {}  # who reads at which offset
        self.complete_for: set[object] = set()  # who needs all of it at once
        self.is_racy = False
        self.is_synced = False
        self.is_dropped = False
        self.is_ours = False  # uploaded by this mount, not fetched
        self.pins = 0
        self.failure: F7tfsError | None = None
        self.grown = trio.Event()

    @property
    def size(self) -> int:
        return self.fingerprint.size

    @property
    def is_complete(self) -> bool:
        return self.held.total >= self.size

    def has(self, offset: int, length: int) -> bool:
        return self.held.holds(offset, min(offset + length, self.size))

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, max(0, min(length, self.size - offset)), offset)

    def fail(self, error: F7tfsError) -> None:
        self.failure = error
        self.wake()

    def wake(self) -> None:
        event, self.grown = self.grown, trio.Event()
        event.set()

    @property
    def takes(self) -> int:
        """Bytes of the cache's limit that it uses."""
        return self.held.total + (self.unproven.total if self.unproven else 0) + self.promised


def is_racy(fingerprint: Fingerprint, now: float) -> bool:
    """Whether the file changed so shortly before it is fetched (`now`, the server's time) that it
    may change once more without another fingerprint. That time is known to a second."""
    return now - (fingerprint.ctime or fingerprint.mtime) < RACY + 1
