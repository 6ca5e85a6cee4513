"""What is known of hard links on the cluster's devices, learnt from their first real use.

A rename on v2 is a hard link and an unlink (TAR.md). Some file systems make no hard links, some
none across directories (BeeGFS, AFS): after one refusal nobody tries there again. A file of
somebody else says nothing about its device: `fs.protected_hardlinks` refuses those one by one.
"""

from __future__ import annotations

import logging

from f7tfs.errors import CrossDevice, NotPermitted, Unsupported
from f7tfs.model import Identity, Kind, RemotePath, Stat, parent_of

log = logging.getLogger("f7tfs.namespace")
# What link(2) says there: EPERM, EXDEV, EOPNOTSUPP.
REFUSALS = (NotPermitted, CrossDevice, Unsupported)


class HardLinks:
    """By device (stat's `dev`), and apart for links within a directory and across directories."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._works: dict[tuple[int, bool], bool] = {}  # (device, across directories) → it does

    def may(self, moved: Stat, source: RemotePath, target: RemotePath) -> bool:
        """False where links like this one were refused before."""
        return not self.is_refused(moved.dev, source, target)

    def is_refused(self, device: int, source: RemotePath, target: RemotePath) -> bool:
        within = self._works.get((device, False))
        across = self._works.get((device, True))
        if parent_of(source) == parent_of(target):
            return within is False
        return within is False or across is False

    def is_proven(self, moved: Stat, source: RemotePath, target: RemotePath) -> bool:
        """Whether such a link was made before, and nothing about this file forbids it."""
        across = parent_of(source) != parent_of(target)
        return self._is_plain(moved) and (
            self._works.get((moved.dev, True), False)
            or (not across and self._works.get((moved.dev, False), False))
        )

    def worked(self, moved: Stat, source: RemotePath, target: RemotePath) -> None:
        if self._is_plain(moved):
            self._works[moved.dev, parent_of(source) != parent_of(target)] = True

    def refused(self, moved: Stat, source: RemotePath, target: RemotePath) -> None:
        """A link was not made although everything else was right."""
        across = parent_of(source) != parent_of(target)
        if self._is_plain(moved) and (moved.dev, across) not in self._works:
            self._works[moved.dev, across] = False
            where = "across directories " if across else ""
            log.info("no hard links %son the device of %s", where, target)

    def _is_plain(self, moved: Stat) -> bool:
        """Ours (`fs.protected_hardlinks`), and with no other link (EMLINK)."""
        return (
            moved.uid == self._identity.uid
            and moved.nlink == 1
            and moved.kind is not Kind.DIRECTORY
        )
