"""What is at a name: the spool, the tombstones and the aliases, laid over the catalog.

A dirty file hides what the cluster has; a tombstone hides it without anything in its place; an
alias shows it under another name. Nothing is changed here.
"""

from __future__ import annotations

import msgspec

from f7tfs.catalog import Catalog, is_hidden
from f7tfs.content.spool import Spool, SpoolEntry
from f7tfs.errors import NotFound
from f7tfs.model import Attributes, Identity, Kind, RemotePath, join, name_of, parent_of
from f7tfs.transfers.aliases import Aliases
from f7tfs.transfers.removal import Removals
from f7tfs.tree.looks import GHOST, Looks
from f7tfs.tree.temporaries import is_temporary
from f7tfs.tree.wing import Look


class Overlay:
    def __init__(
        self,
        catalog: Catalog,
        spool: Spool,
        removals: Removals,
        aliases: Aliases,
        looks: Looks,
        identity: Identity,
    ) -> None:
        self._catalog = catalog
        self._spool = spool
        self._removals = removals
        self._aliases = aliases
        self._looks = looks
        self._identity = identity

    def hides(self, path: RemotePath) -> bool:
        """Whether what the cluster has at this name is not shown there."""
        return self._removals.hides(path) or self._aliases.hides(path) or is_hidden(name_of(path))

    async def find(self, path: RemotePath, *, fresh: bool = False) -> Attributes:
        """What the cluster has, below the dirty file if there is one. Raises NotFound. A directory
        that is gone there, with dirty files in it, is shown."""
        try:
            return await self._known(path, fresh=fresh)
        except NotFound:
            if self.hides(path) or not self._spool.within(path):
                raise
            return GHOST

    async def remote(self, path: RemotePath) -> Attributes | None:
        """The same, without what is gone there."""
        try:
            return await self._known(path, fresh=False)
        except NotFound:
            return None

    async def _known(self, path: RemotePath, *, fresh: bool) -> Attributes:
        if self.hides(path):
            raise NotFound(path)
        if (alias := self._aliases.at(path)) is not None:
            return alias.attributes
        attributes = await self._catalog.attributes(path, fresh=fresh)
        if self.hides(path):  # removed or renamed while the listing arrived
            raise NotFound(path)
        return attributes

    async def look(self, path: RemotePath) -> Look:
        entry = self._spool.at(path)
        if entry is not None:
            return self._looks.of_entry(entry)
        found = await self.find(path)
        return self._looks.of(self._aliases.origin(path), found)

    async def entries(self, directory: RemotePath) -> list[tuple[str, Look]]:
        try:
            listed = await self._catalog.listing(directory)
        except NotFound:
            if not self._spool.within(directory):
                raise
            listed = {}
        looks = {
            name: self._looks.of(join(directory, name), attributes)
            for name, attributes in listed.items()
            if not self.hides(join(directory, name))
        }
        for alias, attributes in self._aliases.shown_in(directory):
            looks[name_of(alias)] = self._looks.of(self._aliases.origin(alias), attributes)
        for name, entry in self._spool.children(directory):
            looks[name] = self._looks.of_entry(entry)
        for path, _ in self._spool.names_within(directory):
            below = path[len(directory.rstrip("/")) + 1 :].split("/")[0]
            if below not in looks:
                looks[below] = self._looks.of(join(directory, below), GHOST)
        return list(looks.items())

    def is_temporary(self, path: RemotePath) -> bool:
        """Whether a file of ours stays local under this name."""
        directory = parent_of(path)

        def exists(name: str) -> bool:
            other = join(directory, name)
            return self._spool.at(other) is not None or (
                self._catalog.peek(other) is not None and not self._removals.hides(other)
            )

        return is_temporary(name_of(path), exists)

    def of_dirty(self, entry: SpoolEntry) -> Attributes:
        """Whose a dirty file is, and what may be done with it."""
        known = self._catalog.peek(entry.path) if entry.base is not None else None
        if known is not None and known.kind is Kind.FILE:
            return msgspec.structs.replace(known, permissions=entry.permissions)
        return Attributes(
            kind=Kind.FILE,
            permissions=entry.permissions,
            size=entry.size,
            mtime=0,
            uid=self._identity.uid,
        )
