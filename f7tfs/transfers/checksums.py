"""Checksums as the cluster computes them, for whoever wants to compare."""

from __future__ import annotations

from cachetools import TTLCache

from f7tfs.model import Fingerprint, RemotePath
from f7tfs.transfers.workplace import Workplace

_KEPT = 5.0  # seconds: getxattr(2) comes twice, for the length and for the value


class Checksums:
    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._recent: TTLCache[tuple[RemotePath, Fingerprint], str] = TTLCache(64, _KEPT)

    async def of(self, path: RemotePath, fingerprint: Fingerprint) -> str:
        """sha256 in hex of what the cluster has at `path`, which looked so when it was listed.
        Raises CommandTimeout where hashing takes longer than the server's 5 s."""
        known = self._recent.get((path, fingerprint))
        if known is None:
            known = await self._workplace.checksum(path)
            self._recent[path, fingerprint] = known
        return known
