"""rename(2) and link(2) of names that exist on the cluster.

v1 has a call for renames, whose mv moves into existing directories; v2 has a scheduler's job, so
there a file is linked to its new name and loses its old one (TAR.md). What the kernel promises of
rename(2) is checked before and looked at afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import msgspec

from f7tfs.api.port import Cluster, Phase, Progress, Route, Ticket
from f7tfs.catalog import Catalog
from f7tfs.content.journal import Journal, LitterRecord, RenameRecord
from f7tfs.errors import (
    Busy,
    CommandTimeout,
    CrossDevice,
    Exists,
    F7tfsError,
    Interrupted,
    IsADirectory,
    JobUnknown,
    NameNotSupported,
    NotADirectory,
    NotFound,
    NotPermitted,
    OutcomeUnknown,
    ServerError,
    Stalled,
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
from f7tfs.transfers.follow import follow, kind_of
from f7tfs.transfers.hardlinks import REFUSALS, HardLinks
from f7tfs.transfers.namespace import Namespace
from f7tfs.transfers.unsettled import Unsettled
from f7tfs.transfers.workplace import Workplace, archive_of_links

log = logging.getLogger("f7tfs.namespace")
OVER = {Phase.DONE, Phase.FAILED, Phase.WITHDRAWN}
Waiting = Callable[[], AbstractContextManager[None]]


class Begun(msgspec.Struct, frozen=True):
    """A rename whose way is free. `there`: what it replaces."""

    source: RemotePath
    target: RemotePath
    moved: Stat
    there: Stat | None


class Renames:
    """Every method leaves the catalog telling what is there now.

    What `begin` began is unsettled until the caller has ended it there: where its outcome was
    lost, once `finish` has found out."""

    def __init__(
        self,
        cluster: Cluster,
        catalog: Catalog,
        namespace: Namespace,
        workplace: Workplace,
        journal: Journal,
        unsettled: Unsettled,
        identity: Identity,
        *,
        stall_timeout: float,
    ) -> None:
        self._hard_links = HardLinks(identity)
        self._cluster = cluster
        self._catalog = catalog
        self._namespace = namespace
        self._workplace = workplace
        self._journal = journal
        self._stall_timeout = stall_timeout
        self._devices: dict[RemotePath, int] = {}
        self._unsettled = unsettled

    async def begin(
        self,
        source: RemotePath,
        target: RemotePath,
        *,
        replace: bool = True,
        buried: Fingerprint | None = None,
        followers: bool = False,
        replaced: str = "",
    ) -> Begun | None:
        """Look before a rename(2), and make way for it; None where nothing is to be done. From now
        on it is unsettled. `buried`: of the file at the target that is removed here already; it is
        no reason for Exists. `followers`: what is here has to change with it, also if the daemon is
        killed; `replaced`: the id of the dirty file at the target. Raises Busy where another one of
        these names is unsettled."""
        await self.require_names(source, target)
        self._require_settled(source, target)
        moved = await self._catalog.stat(source)
        self._require_movable(source, target, moved)
        there = await self._namespace.find(target)
        if there is not None:
            is_buried = buried is not None and buried.agrees(there.fingerprint, ignore_ctime=True)
            if not replace and not is_buried:
                raise Exists(target)
            if (there.ino, there.dev) != (moved.ino, moved.dev):
                await self._make_way(moved, there, target)
            elif not is_buried:
                return None  # two links to one file: rename(2) does nothing
            else:
                await self._namespace.remove_file(target, there)
                there = None
        if parent_of(source) != parent_of(target):
            device = there.dev if there is not None else await self._device(parent_of(target))
            if device != moved.dev:
                raise CrossDevice(f"{source} and {target} are on different devices")
        record = RenameRecord(
            id=source,
            source=source,
            target=target,
            ino=moved.ino,
            dev=moved.dev,
            since=time.time(),
            replaced=replaced,
        )
        self._require_settled(source, target)
        is_journaled = followers or not self._cluster.capabilities.renames
        await self._unsettled.add(record, is_journaled=is_journaled)
        return Begun(source, target, moved, there)

    def _require_settled(self, source: RemotePath, target: RemotePath) -> None:
        if not self._unsettled.is_settled(source, target):
            raise Busy(f"{source} or {target} is just being renamed")

    async def carry_out(self, begun: Begun, waiting: Waiting) -> Stat:
        """The rename on top of `mv --force`: never into a directory, never across devices. Returns
        what is at the target afterwards. `waiting`: entered while only a job is waited for."""
        try:
            return await self.rename_checked(
                begun.source, begun.target, begun.moved, begun.there, waiting
            )
        except F7tfsError as error:
            is_known = not error.transient and not isinstance(error, Interrupted)
            if is_known and not await self._may_have(begun):
                await self._unsettled.end(begun.source)
            raise

    async def _may_have(self, begun: Begun) -> bool:
        """Whether it may have happened although it failed: a call or a job before the one that was
        refused, or the look afterwards."""
        try:
            there = await self._namespace.find(begun.target)
        except F7tfsError:
            return True
        return there is not None and (there.ino, there.dev) == (begun.moved.ino, begun.moved.dev)

    async def require_names(self, *paths: RemotePath) -> None:
        """EINVAL before anything is sent (`Namespace.require_name`)."""
        for path in paths:
            await self._namespace.require_name(path)

    async def finish(self, record: RenameRecord) -> Stat | None:
        """What became of a rename whose outcome was lost: the target if it went through, None if
        nothing happened. Of two links to one file, the old one is removed; a job that still waits
        is cancelled, one that runs is waited for."""
        source, target = RemotePath(record.source), RemotePath(record.target)

        def is_moved(stat: Stat | None) -> bool:
            return stat is not None and (stat.ino, stat.dev) == (record.ino, record.dev)

        if record.ticket:
            await self._end_job(msgspec.json.decode(record.ticket, type=Ticket))
        else:
            await self._namespace.outwait(target, is_moved, since=record.since)
        there = await self._namespace.find(target)
        if there is None or not is_moved(there):
            return None
        left = await self._namespace.find(source)
        is_link = left is not None and (left.ino, left.dev) == (there.ino, there.dev)
        if is_link and there.kind is not Kind.DIRECTORY:
            with contextlib.suppress(NotFound):  # the dead daemon's call has just done it
                await self._workplace.remove_own(source)
            there = await self._catalog.stat(target)
        self._catalog.forget(source)
        self._catalog.note(target, there)
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
        self,
        source: RemotePath,
        target: RemotePath,
        moved: Stat,
        there: Stat | None,
        waiting: Waiting = nullcontext,
    ) -> Stat:
        """The rename itself, of the inode `moved`, onto what was seen `there` (no directory), and
        the look afterwards."""
        after: Stat | None = None

        def is_it(stat: Stat | None) -> bool:
            return stat is not None and stat.ino == moved.ino

        try:
            after = await self._move(source, target, moved, there, waiting)
        except OutcomeUnknown as unknown:
            try:
                # A late call after the second one would move what is new at the source by then.
                since = 0.0 if isinstance(unknown, CommandTimeout) else time.time()
                await self._namespace.outwait(target, is_it, since=since)
                is_moved = is_it(await self._namespace.find(target))
                left = None if is_moved else await self._namespace.find(source)
            except F7tfsError as error:
                raise unknown from error  # still
            if not is_moved:
                if left is None or isinstance(unknown, JobUnknown):
                    self._catalog.forget(target)
                    raise
                after = await self._move(source, target, moved, there, waiting)
        if after is None:
            try:
                after = await self._catalog.stat(target)
            except F7tfsError as error:
                raise OutcomeUnknown(f"{source} was renamed, but {target}: {error}") from error
        self._namespace.forget_sample(source)
        self._namespace.forget_sample(target)
        self._catalog.rename(source, target, self._catalog.attributes_of(after))
        if after.ino != moved.ino and after.kind is Kind.DIRECTORY:
            # Somebody made a directory there in between, and mv moved into it.
            inside = join(target, name_of(source))
            if self._cluster.capabilities.renames:
                await self._cluster.rename(inside, source)
            else:
                await self._move_by_job(inside, source, waiting)
            self._catalog.forget(source)
            raise IsADirectory(target)
        if after.ino != moved.ino:
            log.warning("%s was replaced by somebody else right after the rename", target)
        return after

    async def _move(
        self,
        source: RemotePath,
        target: RemotePath,
        moved: Stat,
        there: Stat | None,
        waiting: Waiting,
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
                await self._unlink_source(source, target, there)
                return msgspec.structs.replace(linked, nlink=linked.nlink - 1, ctime=None)
            failed = linked
            if onto_link:  # mv would follow it into a directory
                await self._cluster.remove(target)
        if renames:
            await self._cluster.rename(source, target)
        else:
            await self._move_by_job(source, target, waiting)
        # It could be renamed, so nothing but the link was refused. v1's 502 has no words (FACTS
        # §2); where there is a rename call, little is lost by believing it.
        wordless = renames and isinstance(failed, OutcomeUnknown | ServerError)
        if wordless or isinstance(failed, (*REFUSALS, NotFound)):
            self._hard_links.refused(moved, source, target)
        return None

    async def _unlink_source(
        self, source: RemotePath, target: RemotePath, there: Stat | None
    ) -> None:
        """The second half of a rename by a link. Where it is refused, the first half is undone,
        unless that had replaced something."""
        try:
            await self._workplace.remove_own(source)
        except F7tfsError as error:
            if not error.transient and there is None:
                left, now = await self._namespace.find(source), await self._namespace.find(target)
                if left is not None and now is not None and left.ino == now.ino:
                    await self._workplace.remove_own(target)
            raise

    def require_links(self, source: RemotePath, target: RemotePath) -> None:
        """NotPermitted where a hard link of this kind is known to be refused, without asking."""
        device = self._devices.get(parent_of(target))
        if device is not None and self._hard_links.is_refused(device, source, target):
            raise NotPermitted(f"no hard links on the device of {target}")

    async def link(self, source: RemotePath, target: RemotePath) -> Attributes:
        """link(2) of a regular file by a tar (TAR.md); NotPermitted where the file system refuses.
        The member would replace a file at the target, so look first: there is no NOREPLACE."""
        await self.require_names(source, target)
        linked = await self._catalog.stat(source)
        if await self._namespace.find(target) is not None:
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
        self._catalog.note(source, both)
        return self._catalog.note(target, both)

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
            now = await self._namespace.find(target)
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

    async def _move_by_job(self, source: RemotePath, target: RemotePath, waiting: Waiting) -> None:
        try:
            ticket = await self._cluster.move_by_job(source, target)
        except OutcomeUnknown as error:
            raise JobUnknown(f"moving {source}: {error}") from error
        try:
            await self._unsettled.goes_by(source, msgspec.json.encode(ticket).decode())
            reached("rename.submitted")
            with waiting():
                progress = await self._follow(ticket)
        except F7tfsError as error:
            await self._cluster.withdraw(ticket)
            if isinstance(error, Interrupted | Stalled):
                raise
            raise JobUnknown(f"moving {source}: {error}") from error
        await self._workplace.remove_traces(ticket)
        if progress.phase is not Phase.DONE:
            words = progress.error or progress.raw
            raise kind_of(words)(f"moving {source}: {words}")

    async def _end_job(self, ticket: Ticket) -> None:
        with contextlib.suppress(NotFound):  # the scheduler has forgotten it
            if (await self._cluster.progress(ticket)).phase not in OVER:
                await self._cluster.withdraw(ticket)
                await self._follow(ticket)
        await self._workplace.remove_traces(ticket)

    async def _follow(self, ticket: Ticket) -> Progress:
        return await follow(
            self._cluster,
            ticket,
            lambda now: now.phase in OVER,
            stall_timeout=self._stall_timeout,
        )

    async def _make_way(self, moved: Stat, there: Stat, target: RemotePath) -> None:
        if there.kind is Kind.DIRECTORY and moved.kind is not Kind.DIRECTORY:
            raise IsADirectory(target)
        if there.kind is not Kind.DIRECTORY and moved.kind is Kind.DIRECTORY:
            raise NotADirectory(target)
        if there.kind is Kind.DIRECTORY:
            await self._namespace.remove_directory(target)

    async def _device(self, directory: RemotePath) -> int:
        """A directory's device; it does not change while we are mounted."""
        if directory not in self._devices:
            self._devices[directory] = (await self._cluster.stat(directory, follow=True)).dev
        return self._devices[directory]


def common_directory(one: RemotePath, other: RemotePath) -> RemotePath:
    """The deepest directory that holds both."""
    shared = []
    for left, right in zip(parent_of(one).split("/"), parent_of(other).split("/"), strict=False):
        if left != right:
            break
        shared.append(left)
    return RemotePath("/".join(shared) or "/")
