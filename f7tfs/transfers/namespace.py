"""Changes of names on the cluster, with the servers' traps defused.

The server's rm is always recursive, its mv moves into existing directories, and a reply may be
lost after the command ran. So: look before (type, device), act once, and look afterwards; after a
lost reply look first and only then decide (SEMANTICS "Metadata").
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable

import msgspec
import trio
from cachetools import TTLCache

from f7tfs.api.port import Cluster, Route
from f7tfs.catalog import HIDDEN_PREFIX, Catalog, is_hidden
from f7tfs.content.journal import Journal, LitterRecord
from f7tfs.errors import (
    Exists,
    F7tfsError,
    IsADirectory,
    NameNotSupported,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    OutcomeUnknown,
    ServerError,
    Unsupported,
)
from f7tfs.faultpoints import reached
from f7tfs.model import (
    Attributes,
    Kind,
    RemotePath,
    Stat,
    join,
    name_of,
    parent_of,
)
from f7tfs.transfers.workplace import MARK, Workplace, archive_of

log = logging.getLogger("f7tfs.namespace")
SAMPLE = 30.0  # seconds for which one new directory speaks for its siblings
LOOK = 0.5  # seconds from one look for a late call to the next
NAME_MAX = 255  # bytes; the kernel lets longer names through to FUSE


class Namespace:
    """Synchronous operations on names that exist on the cluster. Every method leaves the catalog
    telling what is there now."""

    def __init__(
        self,
        cluster: Cluster,
        catalog: Catalog,
        workplace: Workplace,
        journal: Journal,
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._workplace = workplace
        self._journal = journal
        self._as_made_in: TTLCache[RemotePath, Attributes] = TTLCache(
            100, SAMPLE, trio.current_time
        )

    async def require_name(self, path: RemotePath) -> None:
        """EINVAL before anything is sent, for a name that could never be removed again."""
        if is_hidden(name_of(path)):
            raise NameNotSupported(f"{name_of(path)!r}: names that begin so are f7tfs' own")
        if len(os.fsencode(name_of(path))) > NAME_MAX:
            raise NameTooLong(f"{name_of(path)!r} has more than {NAME_MAX} bytes")
        if not await self._cluster.learn_carries(path, Route.COMMAND):
            raise NameNotSupported(f"no safe route to the cluster for the name {path!r}")

    async def find(self, path: RemotePath) -> Stat | None:
        """What is there now, None if nothing is."""
        try:
            return await self._catalog.stat(path)
        except NotFound:
            return None

    async def outwait(
        self, path: RemotePath, is_done: Callable[[Stat | None], bool], *, since: float
    ) -> None:
        """Return once a call that a daemon made at `since` (epoch seconds) before it was killed has
        done what it does at `path`, or had the server's time for a command. The server carries on
        with a call whose caller is gone; what it does then is nobody else's change."""
        given = self._cluster.capabilities.command_timeout
        while 0 <= time.time() - since < given:  # outside of it, it is over, or a clock was set
            if is_done(await self.find(path)):
                return
            await trio.sleep(LOOK)

    async def make_directory(self, path: RemotePath, permissions: int) -> Attributes:
        await self.require_name(path)
        asked = trio.current_time()
        try:
            await self._cluster.make_directory(path)
        except Exists:
            if not await self._workplace.clear(path):
                raise
            await self._cluster.make_directory(path)
        except OutcomeUnknown:
            found = await self.find(path)
            if found is not None and found.kind is Kind.DIRECTORY:
                # Ours, it seems; or somebody else's, with something in it.
                if found.mode & 0o777 != permissions & 0o777:
                    await self._cluster.change_mode(path, permissions | found.mode & 0o7000)
                return self._catalog.note(path, await self._catalog.stat(path))
            await self._cluster.make_directory(path)
        made = await self._as_made(path, permissions)
        self._catalog.made(path, made, asked)
        return made

    async def _as_made(self, path: RemotePath, permissions: int) -> Attributes:
        """A directory that was just made, with these permissions. What is made in one directory
        gets the same owner, group and mode (by umask, set-group-id bit, default ACL), so one stat
        tells it of all that is made there within a while."""
        made = self._as_made_in.get(parent_of(path))
        if made is None:
            made = self._catalog.attributes_of(await self._catalog.stat(path))
            made = msgspec.structs.replace(made, ino=None, ctime=None)
            self._as_made_in[parent_of(path)] = made
        wanted = permissions & 0o777 | made.permissions & 0o7000  # the parent's set-group-id bit
        if made.permissions != wanted:
            await self._cluster.change_mode(path, wanted)
        return msgspec.structs.replace(made, permissions=wanted, mtime=int(time.time()))

    def forget_sample(self, path: RemotePath) -> None:
        """Another directory may be at this name: what was made in the old one tells nothing."""
        self._as_made_in.pop(path, None)

    async def symlink(self, target: str, link: RemotePath) -> Attributes:
        """An existing directory as link path would take the link inside it (v1 FACTS §4)."""
        await self.require_name(link)
        if await self.find(link) is not None:
            raise Exists(link)
        try:
            await self._make_symlink(target, link)
        except OutcomeUnknown:
            if await self.find(link) is None:
                await self._make_symlink(target, link)
        stat = await self._catalog.stat(link)
        if stat.kind is not Kind.SYMLINK:
            raise Exists(link)
        return self._catalog.note(link, stat, target=target)

    async def _make_symlink(self, target: str, link: RemotePath) -> None:
        try:
            await self._cluster.symlink(target, link)
        except Unsupported:
            archive = archive_of(name_of(link), symlink=target)
            await self._workplace.extract(archive, parent_of(link))

    async def change_mode(self, path: RemotePath, permissions: int) -> None:
        await self.require_name(path)
        self.forget_sample(path)  # its set-group-id bit decides what is made in it
        try:
            await self._cluster.change_mode(path, permissions)
        except OutcomeUnknown:
            await self._cluster.change_mode(path, permissions)  # absolute mode: the same twice
        except (NotFound, ServerError):
            # v1 takes its own words for an error where the name speaks of one (FACTS §2).
            if (await self._catalog.stat(path)).mode & 0o7777 != permissions:
                raise
        known = self._catalog.peek(path)
        if known is not None and known.kind is Kind.DIRECTORY:  # its ctime is of no interest
            self._catalog.put(path, msgspec.structs.replace(known, permissions=permissions))
        else:
            self._catalog.note(path, await self._catalog.stat(path))

    async def remove_file(self, path: RemotePath, expected: Stat | None = None) -> None:
        """unlink(2) of anything but a directory. `expected`: what the user saw; something else at
        the name is left alone (Exists)."""
        await self.require_name(path)
        stat = expected or await self._catalog.stat(path)
        if stat.kind is Kind.DIRECTORY:
            raise IsADirectory(path)
        try:
            await self._cluster.remove(path)
        except OutcomeUnknown:
            found = await self.find(path)
            if found is not None and found.ino == stat.ino:
                await self._cluster.remove(path)
        self._catalog.drop(path)

    async def remove_directory(self, path: RemotePath) -> None:
        """rmdir(2), race-free: extracting a symlink of the directory's name makes the cluster's own
        rmdir(2) decide (TAR.md); the symlink is then removed."""
        await self.require_name(path)
        listed = await self._cluster.list_directory(path)
        for one in listed:
            if self._workplace.is_ours(join(path, one.name)) and one.kind is not Kind.DIRECTORY:
                await self._workplace.remove_litter(join(path, one.name))
            elif one.name.startswith(HIDDEN_PREFIX):
                log.warning("%s holds %s, the temporary of another mount", path, one.name)
                raise NotEmpty(path)
            else:
                raise NotEmpty(path)
        before = await self._catalog.stat(path)
        if before.kind is not Kind.DIRECTORY:
            raise NotADirectory(path)
        with self._workplace.using(path):
            await self._replace_by_mark(path, before)
        reached("rmdir.unmarked")
        self._catalog.drop(path)

    async def _replace_by_mark(self, path: RemotePath, before: Stat) -> None:
        marker = MARK + uuid.uuid4().hex[:12]
        await self._journal.write(LitterRecord(id=path, marker=marker))
        reached("rmdir.marker-journaled")
        archive = archive_of(name_of(path), symlink=marker)
        try:
            try:
                await self._workplace.extract(archive, parent_of(path))
            except OutcomeUnknown:
                found = await self.find(path)
                if found is not None and found.ino == before.ino:  # it did not happen
                    await self._workplace.extract(archive, parent_of(path))
        except F7tfsError as error:
            found = await self.find(path)
            if found is not None and found.kind is Kind.DIRECTORY:
                await self._workplace.forget_litter(path)
                if await self._cluster.list_directory(path):
                    raise NotEmpty(path) from error
                raise
        reached("rmdir.marked")
        if not await self._workplace.remove_litter(path, marker=marker):
            log.warning("%s is removed, but the mark in its place stays until later", path)


def conflict_name(path: RemotePath, hostname: str) -> RemotePath:
    """Where the local version goes when both survive: NAME.conflict-HOST-YYYYmmdd-HHMMSS."""
    suffix = f".conflict-{hostname}-{time.strftime('%Y%m%d-%H%M%S')}"
    stem = name_of(path).encode(errors="surrogateescape")[: 255 - len(suffix)]
    return join(parent_of(path), stem.decode(errors="ignore") + suffix)
