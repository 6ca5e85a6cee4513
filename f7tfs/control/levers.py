"""What writing to the files in `.f7tfs/` does. Each takes paths below the mount; several stand
with a NUL between them, as `find -print0` gives them.

    flush     everything is on the cluster, or EIO: something is stuck
    sync      the same for what is at or below these paths
    refresh   what is known of these paths is forgotten
    retry     what is stuck there is tried again now, as is what waits for its next try
    discard   the local changes of these files are lost; the cluster's version is shown again
    fetch     these files are in the cache, whatever their size
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from f7tfs.catalog import Catalog
from f7tfs.content.spool import Spool, SpoolEntry, State
from f7tfs.errors import Busy, F7tfsError, InvalidArgument, IsADirectory, NotFound, Stuck
from f7tfs.model import RemotePath, join
from f7tfs.transfers.download import Downloads
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.submit import Submissions
from f7tfs.transfers.upload import Uploads
from f7tfs.tree.wing import ATTRIBUTE_TIMEOUT

log = logging.getLogger("f7tfs.control")
Lever = Callable[[str], Awaitable[None]]


class Levers:
    def __init__(
        self,
        root: RemotePath,
        spool: Spool,
        catalog: Catalog,
        uploads: Uploads,
        removals: Removals,
        downloads: Downloads,
        submissions: Submissions,
    ) -> None:
        self._root = root
        self._spool = spool
        self._catalog = catalog
        self._uploads = uploads
        self._removals = removals
        self._downloads = downloads
        self._submissions = submissions

    def by_name(self) -> dict[str, Lever]:
        return {
            "flush": self.flush,
            "sync": self.sync,
            "refresh": self.refresh,
            "retry": self.retry,
            "discard": self.discard,
            "fetch": self.fetch,
        }

    def _paths(self, text: str) -> list[RemotePath]:
        """What the user wrote, as remote paths; "" is the mount's root. Raises InvalidArgument."""
        found = []
        for name in text.split("\0"):
            parts = [part for part in name.split("/") if part not in {"", "."}]
            if ".." in parts:
                raise InvalidArgument(f"{name!r} is not a path below the mount")
            path = self._root
            for part in parts:
                path = join(path, part)
            found.append(path)
        return found

    # Waiting.

    async def flush(self, _: str) -> None:
        await self.sync("")

    async def sync(self, text: str) -> None:
        """Held temporaries are sent under the names that they have. Raises Stuck, naming all."""
        stuck: dict[str, SpoolEntry] = {}
        for path in self._paths(text):
            stuck |= {entry.id: entry for entry in await self._removals.drain(path)}
        if stuck:
            named = "; ".join(f"{entry.path}: {entry.error}" for entry in stuck.values())
            raise Stuck(f"stuck: {named}")

    async def fetch(self, text: str) -> None:
        for path in self._paths(text):
            if self._spool.at(path) is None:
                attributes = await self._catalog.attributes(path, fresh=True)
                async with self._downloads.complete(path, attributes, unlimited=True):
                    log.info("%s is in the cache", path)

    # At once.

    async def refresh(self, text: str) -> None:
        for path in self._paths(text):
            if path == self._root:
                self._catalog.forget_all()
            else:
                self._catalog.forget(path)
                self._catalog.forget_tree(path)

    async def retry(self, text: str) -> None:
        for path in self._paths(text):
            self._uploads.retry(self._spool.within(path))

    # Giving up.

    async def discard(self, text: str) -> None:
        """Every one that can be; then the first refusal is raised."""
        refusal: F7tfsError | None = None
        discarded = False
        for path in self._paths(text):
            try:
                await self._discard(path)
                discarded = True
            except F7tfsError as error:
                log.info("%s is not discarded: %s", path, error)
                refusal = refusal or error
        if discarded:
            # The kernel may show for so long what it was told of the discarded file. There is no
            # event for its forgetting: when this returns, everybody sees the cluster's version.
            await trio.sleep(ATTRIBUTE_TIMEOUT)
        if refusal is not None:
            raise refusal

    async def _discard(self, path: RemotePath) -> None:
        """The journal ends first, then the bytes go: a crash in between discards it or does not.
        An attempt under way publishes nothing once this holds the turn (one that writes in place
        is waited for). Raises NotFound, IsADirectory, or Busy while somebody needs the bytes."""
        entry = self._spool.at(path)
        if entry is None:
            if self._spool.within(path):
                raise IsADirectory(f"{path} is a directory; files are discarded one by one")
            raise NotFound(f"{path} has no local changes")
        async with entry.turn:
            self._require_unused(entry)
            size = entry.size
            try:
                await self._uploads.recognise(entry)  # a publishing whose reply was lost is no loss
            except F7tfsError as error:
                log.info("%s is discarded without asking the cluster: %s", path, error)
            self._require_unused(entry)
            with trio.CancelScope(shield=True):
                await self._uploads.discard(entry)
        self._catalog.forget(path)
        log.info("the local changes of %s (%d bytes) were discarded", path, size)

    def _require_unused(self, entry: SpoolEntry) -> None:
        if entry.is_gone:
            raise NotFound(f"{entry.path} has just reached the cluster, or was removed")
        if entry.openers or (entry.state is State.OPEN and not entry.is_unwritten):
            raise Busy(f"{entry.path} is open in another program")
        waiting = [drop.name for drop in self._submissions.held_behind(entry)]
        if waiting:
            raise Busy(f"{entry.path} is awaited by jobs/{', jobs/'.join(waiting)}")
