"""Remote names as last seen.

One directory listing is one API call, and it answers every lookup, stat and readdir in it until
its TTL ends. Askers share a listing that is under way; a listing older than its TTL but younger
than `stale_max` is served while one refresh runs, and one of any age while the API is offline. What
this mount changes by itself is visible at once, also when a listing that began before the change
comes back after it.

A mount of a whole system has `anchors`: the file systems that the server announces. The directories
that lead to them are shown without asking: the cluster may not even let us.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping

import msgspec
import trio
from cachetools import LRUCache

from f7tfs.api.port import Cluster, Route
from f7tfs.errors import (
    F7tfsError,
    NotADirectory,
    NotFound,
    PermissionDenied,
    ServerError,
    Unreachable,
)
from f7tfs.model import (
    Attributes,
    Identity,
    Kind,
    Listed,
    RemotePath,
    Stat,
    is_within,
    join,
    name_of,
    parent_of,
)
from f7tfs.zone import ClusterZone

log = logging.getLogger("f7tfs.catalog")
DIRECTORIES = 20_000  # listings kept
LESSONS = 3  # stats that one listing may cost to learn the zone
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
HIDDEN_PREFIX = ".f7tfs-"  # names of our own making on the cluster
JOB_LOG = ".f7t_file_handling_job_"  # how v2's transfer jobs name their logs (v2 FACTS §7)


class Listing:
    """The entries of one directory, and when they were asked for (trio time)."""

    def __init__(self, entries: dict[str, Attributes], asked: float) -> None:
        self.entries = entries
        self.asked = asked
        self.raw: dict[str, int] = {}  # name → wall clock of its mtime, for learning the zone


class _Flight:
    """One listing call under way. `changes` are our own, made while it flew: they win."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: F7tfsError | None = None
        self.changes: dict[str, Attributes | None] = {}
        self.listing: Listing | None = None
        self.is_outdated = False  # something was forgotten meanwhile: good for waiters only


class Catalog:
    def __init__(
        self,
        cluster: Cluster,
        nursery: trio.Nursery,
        *,
        identity: Identity,
        zone: ClusterZone,
        ttl: float,
        stale_max: float,
        anchors: tuple[RemotePath, ...] = (),
    ) -> None:
        self._cluster = cluster
        self._nursery = nursery
        self._identity = identity
        self._zone = zone
        self._ttl = ttl
        self._stale_max = stale_max
        self._listings: LRUCache[RemotePath, Listing] = LRUCache(DIRECTORIES)
        self._single: LRUCache[RemotePath, tuple[Attributes, float]] = LRUCache(DIRECTORIES)
        self._literal: LRUCache[tuple[RemotePath, int, int], bool] = LRUCache(DIRECTORIES)
        self._flights: dict[RemotePath, _Flight] = {}
        self._anchors = frozenset(
            one for one in anchors if not any(one != a and is_within(one, a) for a in anchors)
        )
        self._on_the_way = _ways_to(self._anchors)
        self._born = int(time.time())

    @property
    def is_offline(self) -> bool:
        """Whether the API is known to be unreachable: what is shown then may be of any age."""
        return self._cluster.breaker.is_offline

    # Asking.

    async def listing(
        self, directory: RemotePath, *, fresh: bool = False
    ) -> Mapping[str, Attributes]:
        """Entries by name, without our own temporaries. `fresh`: nothing older than the TTL.
        Raises what `Cluster.list_directory` raises."""
        if directory in self._on_the_way:
            return await self._waypoints(directory)
        known = self._listings.get(directory)
        age = trio.current_time() - known.asked if known else float("inf")
        if known and age < self._ttl:
            return known.entries
        if known and not fresh and self.is_offline:
            self._cluster.breaker.nudge()
            return known.entries
        flight = self._flights.get(directory) or self._start(directory)
        if known and not fresh and age < self._stale_max:
            return known.entries
        await flight.done.wait()
        if flight.error is not None:
            if known and not fresh and isinstance(flight.error, Unreachable) and self.is_offline:
                return known.entries
            raise flight.error.again()
        assert flight.listing is not None
        return flight.listing.entries

    async def attributes(self, path: RemotePath, *, fresh: bool = False) -> Attributes:
        """What a name denotes, not following a symlink. Raises NotFound."""
        directory = parent_of(path)
        if directory in self._on_the_way:
            return await self._waypoint(path)
        single = self._single.get(path)
        if single is not None:
            if trio.current_time() - single[1] < self._ttl or (self.is_offline and not fresh):
                return single[0]
            if not self.is_offline:
                del self._single[path]
        try:
            entries = await self.listing(directory, fresh=fresh)
        except (PermissionDenied, NotADirectory):
            # A directory that may be searched but not read: ask for the one name.
            return self._remember_single(path, await self.stat(path))
        found = entries.get(name_of(path))
        if found is None:
            raise NotFound(path)
        return found

    async def root_attributes(self, path: RemotePath) -> Attributes:
        """The mount's root has no listing above it that we may ask for."""
        if path in self._on_the_way:
            return self._signpost()
        return await self._followed(path)

    async def _followed(self, path: RemotePath) -> Attributes:
        single = self._single.get(path)
        if single is not None and trio.current_time() - single[1] < self._ttl:
            return single[0]
        try:
            return self._remember_single(path, await self.stat(path, follow=True))
        except F7tfsError as error:
            if single is None or not error.transient:
                raise
            return single[0]  # the API is away; what we know goes on serving

    def seed(self, path: RemotePath, stat: Stat) -> None:
        """What somebody has just asked."""
        self._remember_single(path, stat)

    async def stat(self, path: RemotePath, *, follow: bool = False) -> Stat:
        """Ask the cluster now, and learn from the answer. Raises NotFound."""
        try:
            stat = await self._cluster.stat(path, follow=follow)
        except NotFound:
            if not follow:
                self.drop(path)
            raise
        if not follow:
            self._refine(path, stat)
        return stat

    # The way to the announced file systems.

    async def _waypoints(self, directory: RemotePath) -> dict[str, Attributes]:
        """The names that lead on. One that is announced and not there is left out; one whose file
        system does not answer is shown."""
        found: dict[str, Attributes] = {}

        async def look(path: RemotePath) -> None:
            try:
                found[name_of(path)] = await self._waypoint(path)
            except NotFound:
                log.info("%s is announced, but it is not there", path)
            except F7tfsError as error:
                log.info("%s is shown, but it does not answer: %s", path, error)
                found[name_of(path)] = self.peek(path) or self._signpost()

        async with trio.open_nursery() as nursery:
            for path in sorted(self._on_the_way | self._anchors):
                if path != "/" and parent_of(path) == directory:
                    nursery.start_soon(look, path)
        return found

    async def _waypoint(self, path: RemotePath) -> Attributes:
        if path in self._on_the_way:
            return self._signpost()
        if path in self._anchors:  # what it leads to, should it be a symlink
            return await self._followed(path)
        raise NotFound(path)

    def is_signpost(self, path: RemotePath) -> bool:
        """Whether a directory only leads to the file systems: nothing in it is ever changed, nor
        is it itself, whatever the remote user might do there."""
        return path in self._on_the_way

    def _signpost(self) -> Attributes:
        """A directory of nobody, where nobody may write."""
        return Attributes(
            kind=Kind.DIRECTORY, permissions=0o555, size=0, mtime=self._born, user="", group=""
        )

    async def read_link(self, path: RemotePath) -> str:
        return await self._cluster.read_link(path)

    def peek(self, path: RemotePath) -> Attributes | None:
        """What is known without asking, however old."""
        listing = self._listings.get(parent_of(path))
        found = listing.entries.get(name_of(path)) if listing else None
        if found is None and path in self._single:
            return self._single[path][0]
        return found

    def is_known_absent(self, path: RemotePath) -> bool:
        """Whether a listing within its TTL shows that the name is not there."""
        if parent_of(path) in self._on_the_way:
            return path not in self._on_the_way | self._anchors
        listing = self._listings.get(parent_of(path))
        return (
            listing is not None
            and name_of(path) not in listing.entries
            and trio.current_time() - listing.asked < self._ttl
        )

    def attributes_of(self, stat: Stat, *, target: str | None = None) -> Attributes:
        return Attributes(
            kind=stat.kind,
            permissions=stat.mode & 0o7777,
            size=stat.size,
            mtime=stat.mtime,
            uid=stat.uid,
            gid=stat.gid,
            target=target,
            ino=stat.ino,
            dev=stat.dev,
            nlink=stat.nlink,
            ctime=stat.ctime,
        )

    # Our own changes, visible at once.

    def put(self, path: RemotePath, attributes: Attributes) -> None:
        self._change(path, attributes)

    def drop(self, path: RemotePath) -> None:
        """The name is not there (any more), nor anything below it."""
        self._change(path, None)
        self.forget_tree(path)

    def forget(self, path: RemotePath) -> None:
        """What is known of a name may be wrong: its directory is asked again."""
        directory = parent_of(path)
        self._listings.pop(directory, None)
        self._single.pop(path, None)
        if flight := self._flights.get(directory):
            flight.is_outdated = True

    def forget_tree(self, directory: RemotePath) -> None:
        for path, flight in self._flights.items():
            flight.is_outdated |= is_within(path, directory)
        for table in (self._listings, self._single):
            for path in [path for path in table if is_within(path, directory)]:
                table.pop(path, None)

    def forget_all(self) -> None:
        self._listings.clear()
        self._single.clear()

    def rename(self, source: RemotePath, target: RemotePath) -> None:
        """The name moved on the cluster, with everything below it."""
        moved = self.peek(source)
        self.drop(source)
        self.forget_tree(target)
        if moved is not None:
            self._change(target, moved)
        else:
            self.forget(target)

    def _change(self, path: RemotePath, attributes: Attributes | None) -> None:
        directory, name = parent_of(path), name_of(path)
        self._single.pop(path, None)
        if flight := self._flights.get(directory):
            flight.changes[name] = attributes
        if listing := self._listings.get(directory):
            listing.raw.pop(name, None)
            if attributes is None:
                listing.entries.pop(name, None)
            else:
                listing.entries[name] = attributes
        elif attributes is not None:
            self._single[path] = (attributes, trio.current_time())

    # Listing.

    def _start(self, directory: RemotePath) -> _Flight:
        flight = self._flights[directory] = _Flight()
        self._nursery.start_soon(self._fly, directory, flight)
        return flight

    async def _fly(self, directory: RemotePath, flight: _Flight) -> None:
        asked = trio.current_time()
        try:
            listed = await self._cluster.list_directory(directory)
            await self._learn_zone(directory, listed)
            listing = Listing({}, asked)
            for shown in listed:
                one = await self._as_meant(directory, shown, listing.entries)
                if one.name in listing.entries:
                    # A literal backslash beside the escape that reads like it (v1 FACTS §4).
                    log.warning("two names in %s read as %r; one is hidden", directory, one.name)
                elif not is_hidden(one.name) and not _is_mark(one):
                    listing.entries[one.name] = self._attributes_of_listed(one)
                    listing.raw[one.name] = one.local_mtime
            for name, changed in flight.changes.items():
                listing.raw.pop(name, None)
                if changed is None:
                    listing.entries.pop(name, None)
                else:
                    listing.entries[name] = changed
            self._keep_details(directory, listing)
            flight.listing = listing
            if not flight.is_outdated:
                self._listings[directory] = listing
        except F7tfsError as error:
            flight.error = error
            if isinstance(error, NotFound | NotADirectory | PermissionDenied):
                self._listings.pop(directory, None)
            log.debug("listing %s failed: %s", directory, error)
        except Exception as error:
            flight.error = ServerError(f"listing {directory}: {error!r}")
            log.exception("listing %s", directory)
        finally:
            del self._flights[directory]
            flight.done.set()

    async def _as_meant(
        self, directory: RemotePath, one: Listed, known: Mapping[str, Attributes]
    ) -> Listed:
        """An escape, or a backslash that is in the name: a stat tells, where both can be asked for.
        Not of letters beyond ASCII, which a POSIX locale escapes by the dozen."""
        if not one.ambiguous or not _CONTROL.search(one.name):
            return one
        meant, literal = join(directory, one.name), join(directory, one.literal)
        if not all(self._cluster.carries(path, Route.COMMAND) for path in (meant, literal)):
            return one
        key = (meant, one.local_mtime, one.size)
        if one.name not in known and key not in self._literal:
            try:
                self._literal[key] = await self._is_literal(one, meant, literal)
            except F7tfsError as error:
                log.debug("%s may have another name: %s", meant, error)
        if one.name in known or self._literal.get(key):
            return msgspec.structs.replace(one, name=one.literal, ambiguous=False)
        return one

    async def _is_literal(self, one: Listed, meant: RemotePath, literal: RemotePath) -> bool:
        """Where both are there, two entries of the listing read alike; each has its own size."""
        found: list[Stat | None] = []
        for path in (meant, literal):
            try:
                stat = await self._cluster.stat(path)
            except NotFound:
                found.append(None)
                continue
            if (stat.kind, stat.size) == (one.kind, one.size):
                return path == literal
            found.append(stat)
        return found[0] is None and found[1] is not None

    async def _learn_zone(self, directory: RemotePath, listed: list[Listed]) -> None:
        """One stat of the entry that changed last settles what the listing's clock means, and one
        more where the zones that are possible then disagree about another entry."""
        usable = {
            one.local_mtime: join(directory, one.name)
            for one in listed
            if not one.ambiguous and self._cluster.carries(join(directory, one.name), Route.COMMAND)
        }
        wanted = max(usable, default=None) if not self._zone.is_known else None
        for _ in range(LESSONS):
            if wanted is None:
                wanted = self._zone.doubtful(usable)
            if wanted is None:
                return
            try:
                stat = await self._cluster.stat(usable.pop(wanted))
            except F7tfsError as error:
                log.debug("the zone is not learnt: %s", error)
                return
            if self._zone.observe(wanted, stat.mtime):
                self.forget_all()
            wanted = None

    def _keep_details(self, directory: RemotePath, listing: Listing) -> None:
        """What a stat told (inode, ctime, owner ids) stays true while size and time are equal."""
        before = self._listings.get(directory)
        if before is None:
            return
        for name, attributes in listing.entries.items():
            known = before.entries.get(name)
            if (
                known is not None
                and known.ino is not None
                and attributes.ino is None
                and (known.size, known.mtime, known.kind)
                == (attributes.size, attributes.mtime, attributes.kind)
                and attributes.permissions == known.permissions
            ):
                listing.entries[name] = msgspec.structs.replace(
                    known, has_acl=attributes.has_acl, target=attributes.target
                )

    def _refine(self, path: RemotePath, stat: Stat) -> None:
        listing = self._listings.get(parent_of(path))
        if listing is None:
            return
        name = name_of(path)
        wall_clock = listing.raw.get(name)
        known = listing.entries.get(name)
        if wall_clock is not None and known is not None and known.size == stat.size:
            shift = stat.mtime - known.mtime
            if shift and self._zone.observe(wall_clock, stat.mtime):
                self.forget_all()
                return
        attributes = self.attributes_of(stat)
        if known is not None:  # what only a listing tells
            attributes = msgspec.structs.replace(
                attributes, target=known.target, has_acl=known.has_acl
            )
        self._change(path, attributes)

    def _remember_single(self, path: RemotePath, stat: Stat) -> Attributes:
        attributes = self.attributes_of(stat)
        self._single[path] = (attributes, trio.current_time())
        return attributes

    def _attributes_of_listed(self, one: Listed) -> Attributes:
        return Attributes(
            kind=one.kind,
            permissions=one.permissions,
            size=one.size,
            mtime=self._zone.epoch(one.local_mtime),
            uid=_number(one.user, {self._identity.user: self._identity.uid}),
            gid=_number(one.group, self._identity.groups),
            user=one.user,
            group=one.group,
            target=one.target,
            has_acl=one.has_acl,
        )


def _ways_to(anchors: frozenset[RemotePath]) -> frozenset[RemotePath]:
    """The directories above, without the anchors themselves."""
    found: set[RemotePath] = set()
    for path in anchors:
        while path != "/":
            path = parent_of(path)
            found.add(path)
    return frozenset(found)


def _number(text: str, known: dict[str, int]) -> int | None:
    return int(text) if text.isdigit() else known.get(text)


def is_hidden(name: str) -> bool:
    """Names of our own making, and the logs that v2's transfer jobs leave in the home directory."""
    return name.startswith((HIDDEN_PREFIX, JOB_LOG))


def _is_mark(one: Listed) -> bool:
    """The symlink that stands where a directory was removed, until it is removed itself."""
    return one.target is not None and one.target.startswith(f"{HIDDEN_PREFIX}removed-")
