"""Changes of names on the cluster, with the servers' traps defused.

The server's rm is always recursive, its mv moves into existing directories, and a reply may be
lost after the command ran. So: look before (type, device), act once, and look afterwards; after a
lost reply look first and only then decide (SEMANTICS "Metadata").
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid

import msgspec
import trio
from cachetools import TTLCache

from f7tfs.api.port import Cluster, Phase, Route
from f7tfs.catalog import HIDDEN_PREFIX, Catalog, is_hidden
from f7tfs.content.journal import Journal, LitterRecord, RenameRecord
from f7tfs.errors import (
    CrossDevice,
    Exists,
    F7tfsError,
    IsADirectory,
    NameNotSupported,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    OutcomeUnknown,
    ServerError,
    Unsupported,
)
from f7tfs.faultpoints import reached
from f7tfs.model import (
    Attributes,
    Fingerprint,
    Identity,
    Kind,
    RemotePath,
    Stat,
    join,
    name_of,
    parent_of,
)
from f7tfs.transfers import late
from f7tfs.transfers.follow import follow, kind_of
from f7tfs.transfers.hardlinks import REFUSALS, HardLinks
from f7tfs.transfers.workplace import MARK, Workplace, archive_of, archive_of_links

log = logging.getLogger("f7tfs.namespace")
SAMPLE = 30.0  # seconds for which one new directory speaks for its siblings
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
        identity: Identity,
        *,
        stall_timeout: float,
    ) -> None:
        self._hard_links = HardLinks(identity)
        self._cluster = cluster
        self._catalog = catalog
        self._workplace = workplace
        self._journal = journal
        self._stall_timeout = stall_timeout
        self._devices: dict[RemotePath, int] = {}
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
                return self._note(path, await self._catalog.stat(path))
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
        return self._note(link, stat, target=target)

    async def _make_symlink(self, target: str, link: RemotePath) -> None:
        try:
            await self._cluster.symlink(target, link)
        except Unsupported:
            archive = archive_of(name_of(link), symlink=target)
            await self._workplace.extract(archive, parent_of(link))

    async def change_mode(self, path: RemotePath, permissions: int) -> None:
        await self.require_name(path)
        self._as_made_in.pop(path, None)  # its set-group-id bit decides what is made in it
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
            self._note(path, await self._catalog.stat(path))

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

    async def rename(
        self,
        source: RemotePath,
        target: RemotePath,
        *,
        replace: bool = True,
        buried: Fingerprint | None = None,
        followers: bool = False,
    ) -> Stat:
        """rename(2) on top of `mv --force`: never into a directory, never across devices. Returns
        what is at the target afterwards. `buried`: of the file there that is removed here already;
        it is no reason for Exists. `followers`: more has to change here then, until
        `rename_followed`; a daemon that ends in between leaves a RenameRecord."""
        await self.require_name(source)
        await self.require_name(target)
        moved = await self._catalog.stat(source)
        self._require_movable(source, target, moved)
        there = await self.find(target)
        if there is not None:
            is_buried = buried is not None and buried.agrees(there.fingerprint, ignore_ctime=True)
            if not replace and not is_buried:
                raise Exists(target)
            if (there.ino, there.dev) == (moved.ino, moved.dev):
                return there  # two links to one file: rename(2) does nothing
            await self._make_way(moved, there, target)
        if parent_of(source) != parent_of(target):
            device = there.dev if there is not None else await self._device(parent_of(target))
            if device != moved.dev:
                raise CrossDevice(f"{source} and {target} are on different devices")
        by_links = not self._cluster.capabilities.renames and moved.kind is not Kind.DIRECTORY
        if not followers and not by_links:
            return await self.rename_checked(source, target, moved, there)
        record = RenameRecord(
            id=source, source=source, target=target, ino=moved.ino, dev=moved.dev, since=time.time()
        )
        await self._journal.write(record)
        try:
            after = await self.rename_checked(source, target, moved, there)
        except F7tfsError as error:
            if not isinstance(error, OutcomeUnknown):
                await self.rename_followed(source)
            raise
        if not followers:
            await self.rename_followed(source)
        return after

    async def rename_followed(self, source: RemotePath) -> None:
        """What depended on a rename of this name has its own records now."""
        await self._journal.write(drop=((RenameRecord, source),))

    async def finish_rename(self, record: RenameRecord) -> Stat | None:
        """What became of a rename during which a daemon ended: the target if it went through, None
        if nothing happened. Of two links to one file, the old one is removed."""
        source, target = RemotePath(record.source), RemotePath(record.target)

        def is_moved(stat: Stat | None) -> bool:
            return stat is not None and (stat.ino, stat.dev) == (record.ino, record.dev)

        given = self._cluster.capabilities.command_timeout
        there = await late.found(self.find, target, is_moved, since=record.since, given=given)
        if there is None or not is_moved(there):
            return None
        left = await self.find(source)
        is_link = left is not None and (left.ino, left.dev) == (there.ino, there.dev)
        if is_link and there.kind is not Kind.DIRECTORY:
            with contextlib.suppress(NotFound):  # the dead daemon's call has just done it
                await self._workplace.remove_own(source)
            there = await self._catalog.stat(target)
        self._catalog.forget(source)
        self._note(target, there)
        return there

    def _require_movable(self, source: RemotePath, target: RemotePath, moved: Stat) -> None:
        """EINVAL before anything is sent, also where only a job could rename and its script would
        not carry the names (v2 FACTS §8)."""
        if self._cluster.capabilities.renames or (
            moved.kind is not Kind.DIRECTORY and self._hard_links.may(moved, source, target)
        ):
            return
        for path in (source, target):
            if not self._cluster.carries(path, Route.MOVE):
                raise NameNotSupported(f"the mv job does not carry the name {path!r} safely")

    async def rename_checked(
        self, source: RemotePath, target: RemotePath, moved: Stat, there: Stat | None
    ) -> Stat:
        """The rename itself, of the inode `moved`, onto what was seen `there` (no directory), and
        the look afterwards."""
        after: Stat | None = None
        try:
            after = await self._move(source, target, moved, there)
        except OutcomeUnknown as unknown:
            try:
                now = await self.find(target)
                is_moved = now is not None and now.ino == moved.ino
                left = None if is_moved else await self.find(source)
            except F7tfsError as error:
                raise unknown from error  # still
            if not is_moved:
                if left is None:
                    self._catalog.forget(target)
                    raise
                after = await self._move(source, target, moved, there)
        if after is None:
            after = await self._catalog.stat(target)
        self._as_made_in.pop(source, None)
        self._as_made_in.pop(target, None)
        self._catalog.rename(source, target, self._catalog.attributes_of(after))
        if after.ino != moved.ino and after.kind is Kind.DIRECTORY:
            # Somebody made a directory there in between, and mv moved into it.
            await self._cluster.rename(join(target, name_of(source)), source)
            self._catalog.forget(source)
            raise IsADirectory(target)
        if after.ino != moved.ino:
            log.warning("%s was replaced by somebody else right after the rename", target)
        return after

    async def _move(
        self, source: RemotePath, target: RemotePath, moved: Stat, there: Stat | None
    ) -> Stat | None:
        """The dialect's rename call; without one, a link and an unlink for what can be linked
        (TAR.md), and the scheduler's mv job for the rest. Returns what is at the target, if that
        was looked at after the change: a removed second name changes the ctime only."""
        renames = self._cluster.capabilities.renames
        onto_link = there is not None and there.kind is Kind.SYMLINK
        failed: F7tfsError | None = None
        if (onto_link or not renames) and moved.kind is not Kind.DIRECTORY:
            linked = await self._link(source, target, moved, there)
            if isinstance(linked, Stat):
                reached("rename.linked")
                await self._workplace.remove_own(source)
                return msgspec.structs.replace(linked, nlink=linked.nlink - 1, ctime=None)
            failed = linked
            if onto_link:  # mv would follow it into a directory
                await self._cluster.remove(target)
        if renames:
            await self._cluster.rename(source, target)
        else:
            await self._move_by_job(source, target)
        # It could be renamed, so nothing but the link was refused. v1's 502 has no words (FACTS
        # §2); where there is a rename call, little is lost by believing it.
        wordless = renames and isinstance(failed, OutcomeUnknown | ServerError)
        if wordless or isinstance(failed, (*REFUSALS, NotFound)):
            self._hard_links.refused(moved, source, target)
        return None

    def require_links(self, source: RemotePath, target: RemotePath) -> None:
        """NotPermitted where a hard link of this kind is known to be refused, without asking."""
        device = self._devices.get(parent_of(target))
        if device is not None and self._hard_links.is_refused(device, source, target):
            raise NotPermitted(f"no hard links on the device of {target}")

    async def link(self, source: RemotePath, target: RemotePath) -> Attributes:
        """link(2) of a regular file by a tar (TAR.md); NotPermitted where the file system refuses.
        The member would replace a file at the target, so look first: there is no NOREPLACE."""
        await self.require_name(source)
        await self.require_name(target)
        linked = await self._catalog.stat(source)
        if await self.find(target) is not None:
            raise Exists(target)
        if parent_of(source) != parent_of(target) and linked.dev != await self._device(
            parent_of(target)
        ):
            raise CrossDevice(f"{source} and {target} are on different devices")
        both = await self._link(source, target, linked, None)
        if not isinstance(both, Stat):
            if isinstance(both, REFUSALS):
                self._hard_links.refused(linked, source, target)
                self._devices.setdefault(parent_of(target), linked.dev)
            raise NotPermitted(f"the cluster makes no hard link {target}") from both
        self._note(source, both)
        return self._note(target, both)

    async def _link(
        self, source: RemotePath, target: RemotePath, moved: Stat, there: Stat | None
    ) -> Stat | F7tfsError:
        """Make `target` a hard link to `source`, replacing the file that is `there`. Returns what
        the file is then, or why the link could not be made; the cluster's words do not tell surely
        whether it was, so the inode does.

        tar unlinks the file that is to be replaced before it links, and does not bring it back
        when the link is refused. So, where nothing proves that such links can be made, a hidden
        name is linked first, and the target to that one: it is not touched if there is none."""
        if not self._hard_links.may(moved, source, target):
            return NotPermitted(f"no hard links on the device of {target}")
        trial = None
        if there is not None and not self._hard_links.is_proven(moved, source, target):
            trial = self._workplace.temporary_for(target)
        with self._workplace.using(trial) if trial is not None else contextlib.nullcontext():
            failed = await self._extract_links(source, target, trial)
            now = await self.find(target)
            if trial is not None:
                await self._workplace.remove_litter(trial)
        if now is not None and (now.ino, now.dev) == (moved.ino, moved.dev):
            self._hard_links.worked(moved, source, target)
            if trial is not None:
                return msgspec.structs.replace(now, nlink=now.nlink - 1, ctime=None)
            return now
        return failed or ServerError(f"{target} is not the link that was made")

    async def _extract_links(
        self, source: RemotePath, target: RemotePath, trial: RemotePath | None
    ) -> F7tfsError | None:
        """What kept the links from being made, as far as the server told."""
        directory = common_directory(source, target)
        skip = len(directory.rstrip("/")) + 1
        links = [(target[skip:], source[skip:])]
        if trial is not None:
            await self._journal.write(LitterRecord(id=trial))
            links = [(trial[skip:], source[skip:]), (target[skip:], trial[skip:])]
        try:
            await self._workplace.extract(archive_of_links(*links), directory)
        except F7tfsError as error:
            if error.transient and not isinstance(error, OutcomeUnknown):
                raise
            log.info("linking %s to %s: %s", target, source, error)
            return error
        return None

    async def _move_by_job(self, source: RemotePath, target: RemotePath) -> None:
        ticket = await self._cluster.move_by_job(source, target)
        progress = await follow(
            self._cluster,
            ticket,
            lambda now: now.phase in {Phase.DONE, Phase.FAILED, Phase.WITHDRAWN},
            stall_timeout=self._stall_timeout,
        )
        await self._workplace.remove_traces(ticket)
        if progress.phase is not Phase.DONE:
            words = progress.error or progress.raw
            raise kind_of(words)(f"moving {source}: {words}")

    async def _make_way(self, moved: Stat, there: Stat, target: RemotePath) -> None:
        if there.kind is Kind.DIRECTORY and moved.kind is not Kind.DIRECTORY:
            raise IsADirectory(target)
        if there.kind is not Kind.DIRECTORY and moved.kind is Kind.DIRECTORY:
            raise NotADirectory(target)
        if there.kind is Kind.DIRECTORY:
            await self.remove_directory(target)

    async def _device(self, directory: RemotePath) -> int:
        """A directory's device; it does not change while we are mounted."""
        if directory not in self._devices:
            self._devices[directory] = (await self._cluster.stat(directory, follow=True)).dev
        return self._devices[directory]

    def _note(self, path: RemotePath, stat: Stat, *, target: str | None = None) -> Attributes:
        attributes = self._catalog.attributes_of(stat, target=target)
        self._catalog.put(path, attributes)
        return attributes


def common_directory(one: RemotePath, other: RemotePath) -> RemotePath:
    """The deepest directory that holds both."""
    shared = []
    for left, right in zip(parent_of(one).split("/"), parent_of(other).split("/"), strict=False):
        if left != right:
            break
        shared.append(left)
    return RemotePath("/".join(shared) or "/")


def conflict_name(path: RemotePath, hostname: str) -> RemotePath:
    """Where the local version goes when both survive: NAME.conflict-HOST-YYYYmmdd-HHMMSS."""
    suffix = f".conflict-{hostname}-{time.strftime('%Y%m%d-%H%M%S')}"
    stem = name_of(path).encode(errors="surrogateescape")[: 255 - len(suffix)]
    return join(parent_of(path), stem.decode(errors="ignore") + suffix)
