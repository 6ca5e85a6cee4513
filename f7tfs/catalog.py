"""Remote names as last seen.

One directory listing is one API call, and it answers every lookup, stat and readdir in it until
its TTL ends. Askers share a listing that is under way; a listing older than its TTL but younger
than `stale_max` is served while one refresh runs, and one of any age while the API is offline. What
this mount changes by itself is visible at once, also when a listing that began before the change
comes back after it. Who walks a tree is served ahead (`walks`, `flights`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec
import trio
from cachetools import LRUCache, TTLCache

from f7tfs.api.port import Cluster, Route
from f7tfs.errors import F7tfsError, NotADirectory, NotFound, PermissionDenied, Unreachable
from f7tfs.flights import Flights
from f7tfs.listings import HIDDEN_PREFIX as HIDDEN_PREFIX
from f7tfs.listings import Listing, attributes_of
from f7tfs.listings import is_hidden as is_hidden
from f7tfs.model import Attributes, Fingerprint, Identity, RemotePath, Stat, name_of, parent_of
from f7tfs.walks import Walks
from f7tfs.waypoints import Waypoints
from f7tfs.zone import ClusterZone

log = logging.getLogger("f7tfs.catalog")
# Exclusive creations in one directory: this many within so many seconds are a tool that copies.
FEW, SPAN = 4, 5.0
MADE = 30.0  # seconds for which a directory that this mount made holds only what it put there
SECOND = 1.0  # how old a listing may be then; a new file waits longer before others can see it
SMALL = 2000  # entries of a directory that is listed rather than asked for one name
AT_REST = 10.0  # seconds without a change when it was listed
JOINING = 2.0  # seconds that an asker waits for a recursive listing that will bring the answer


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
        self._zone = zone
        self._ttl = ttl
        self._stale_max = stale_max
        self._walks = Walks()
        self._flights = Flights(
            cluster, nursery, self._walks, identity=identity, zone=zone, ttl=ttl
        )
        self._listings = self._flights.listings
        self._singles = self._flights.singles
        self._way = Waypoints(anchors)
        self._exclusive: LRUCache[RemotePath, TTLCache[RemotePath, None]] = LRUCache(100)

    @property
    def is_offline(self) -> bool:
        """Whether the API is known to be unreachable: what is shown then may be of any age."""
        return self._cluster.breaker.is_offline

    def now(self) -> float:
        """The server's time, in epoch seconds."""
        return self._cluster.clock.now()

    # Asking.

    async def listing(
        self, directory: RemotePath, *, fresh: bool = False
    ) -> Mapping[str, Attributes]:
        """Entries by name, without our own temporaries; a step, perhaps, of a walk. `fresh`:
        nothing older than the TTL. Raises what `Cluster.list_directory` raises."""
        if directory not in self._way and not fresh:
            is_cold = not self._flights.is_fresh(directory)
            step = self._walks.read(directory, cold=is_cold, now=trio.current_time())
            self._flights.look_ahead(directory, step, beyond=self._way)
        try:
            return (await self._listing(directory, fresh=fresh)).entries
        finally:
            self._walks.answered(directory, now=trio.current_time())

    async def _listing(self, directory: RemotePath, *, fresh: bool = False) -> Listing:
        if directory in self._way:
            return Listing(await self._waypoints(directory), trio.current_time())
        known = self._listings.get(directory)
        age = trio.current_time() - known.asked if known else float("inf")
        if known and age < self._ttl:
            return known
        if known and not fresh and self.is_offline:
            self._cluster.breaker.nudge()
            return known
        if known and not fresh and age < self._stale_max:
            self._flights.refresh(directory)
            return known
        flight = self._flights.toward(directory)
        if flight.tree is not None:
            with trio.move_on_after(JOINING):
                await flight.done.wait()
        flight.hurry()
        await flight.done.wait()
        if flight.error is not None:
            if known and not fresh and isinstance(flight.error, Unreachable) and self.is_offline:
                return known
            raise flight.error.again()
        assert flight.listing is not None
        return flight.listing

    async def attributes(self, path: RemotePath, *, fresh: bool = False) -> Attributes:
        """What a name denotes, not following a symlink. `fresh`: nothing older than the TTL.
        Raises NotFound."""
        directory = parent_of(path)
        if directory in self._way:
            return await self._waypoint(path)
        single = self._singles.get(path)
        if single is not None:
            if trio.current_time() - single[1] < self._ttl or (self.is_offline and not fresh):
                return single[0]
            if not self.is_offline:
                del self._singles[path]
        try:
            listing = await self._listing(directory, fresh=fresh)
        except (PermissionDenied, NotADirectory):
            # A directory that may be searched but not read: ask for the one name.
            return self._remember_single(path, await self.stat(path))
        found = listing.entries.get(name_of(path))
        if found is None:
            raise NotFound(path)
        if fresh and name_of(path) in listing.unproven:
            return await self._proven(path, found)
        return found

    async def exclusive(self, path: RemotePath) -> Attributes | None:
        """What is at a name that is to be created with O_EXCL, None if nothing is: the cluster's
        word, by one call (docs/decisions/0011). Where many names are created in one directory, a
        listing of the last second tells of all of them; in one that this mount has just made, what
        is known of it does for a while."""
        directory = parent_of(path)
        known = self._listings.get(directory)
        burst = self._exclusive.setdefault(directory, TTLCache(FEW, SPAN, trio.current_time))
        is_burst = len(burst) == FEW
        burst[path] = None
        age = trio.current_time() - known.asked if known is not None else 0.0
        if known is not None and not (known.is_made_here and age < MADE):
            if not is_burst or len(known.entries) > SMALL:
                known = None
            elif age >= SECOND:
                known = await self._once_more(directory)
        if known is None or name_of(path) in known.unproven:
            try:
                return attributes_of(await self.stat(path))
            except NotFound:
                return None
        return known.entries.get(name_of(path))

    async def _once_more(self, directory: RemotePath) -> Listing | None:
        flight = self._flights.toward(directory)
        flight.hurry()
        await flight.done.wait()
        if isinstance(flight.error, Unreachable):
            raise flight.error.again()
        return flight.listing

    async def anew(
        self, directories: Sequence[RemotePath]
    ) -> dict[RemotePath, Mapping[str, Attributes]]:
        """What is in these directories now, asked after this call; without those that cannot be
        listed. Few calls where the dialect lists trees. Raises Unreachable and its like."""
        found = await self._flights.anew(directories)
        return {directory: listing.entries for directory, listing in found.items()}

    async def _proven(self, path: RemotePath, found: Attributes) -> Attributes:
        """An entry whose name may be read wrongly: only a stat of the name tells (v1 FACTS §4)."""
        if not self._cluster.carries(path, Route.COMMAND):
            return found
        known = attributes_of(await self.stat(path))
        return msgspec.structs.replace(known, target=found.target, has_acl=found.has_acl)

    async def root_attributes(self, path: RemotePath) -> Attributes:
        """The mount's root has no listing above it that we may ask for."""
        if path in self._way:
            return self._way.signpost()
        return await self._followed(path)

    async def _followed(self, path: RemotePath) -> Attributes:
        single = self._singles.get(path)
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
                found[name_of(path)] = self.peek(path) or self._way.signpost()

        async with trio.open_nursery() as nursery:
            for path in self._way.below(directory):
                nursery.start_soon(look, path)
        return found

    async def _waypoint(self, path: RemotePath) -> Attributes:
        if path in self._way:
            return self._way.signpost()
        if self._way.is_anchor(path):  # what it leads to, should it be a symlink
            return await self._followed(path)
        raise NotFound(path)

    def is_signpost(self, path: RemotePath) -> bool:
        """Whether a directory only leads to the file systems: nothing in it is ever changed, nor
        is it itself, whatever the remote user might do there."""
        return path in self._way

    async def read_link(self, path: RemotePath) -> str:
        return await self._cluster.read_link(path)

    def peek(self, path: RemotePath) -> Attributes | None:
        """What is known without asking, however old."""
        listing = self._listings.get(parent_of(path))
        found = listing.entries.get(name_of(path)) if listing else None
        if found is None and path in self._singles:
            return self._singles[path][0]
        return found

    def known_size(self, directory: RemotePath) -> int:
        """How many names a directory had when it was last listed; 0 where none is known."""
        listing = self._listings.get(directory)
        return len(listing.entries) if listing is not None else 0

    def is_known_absent(self, path: RemotePath) -> bool:
        """Whether a listing within its TTL shows that the name is not there."""
        if parent_of(path) in self._way:
            return path not in self._way and not self._way.is_anchor(path)
        listing = self._listings.get(parent_of(path))
        return (
            listing is not None
            and name_of(path) not in listing.entries
            and trio.current_time() - listing.asked < self._ttl
        )

    def tells_surely(self, path: RemotePath, listed: Fingerprint) -> bool:
        """Whether size and time that a listing told of a file are as good as a stat's: the clock
        is understood, and the file was at rest."""
        listing = self._listings.get(parent_of(path))
        wall_clock = listing.raw.get(name_of(path)) if listing is not None else None
        return (
            listing is not None
            and wall_clock is not None
            and self._zone.is_known
            and self._zone.doubtful([wall_clock]) is None
            and self._zone.epoch(wall_clock) == listed.mtime
            and self.now() - (trio.current_time() - listing.asked) - listed.mtime > AT_REST
        )

    def attributes_of(self, stat: Stat, *, target: str | None = None) -> Attributes:
        return attributes_of(stat, target=target)

    # Our own changes, visible at once.

    def put(self, path: RemotePath, attributes: Attributes) -> None:
        self._change(path, attributes)

    def note(self, path: RemotePath, stat: Stat, *, target: str | None = None) -> Attributes:
        """What a look just told of a name that we changed; `target`: of a symbolic link."""
        attributes = attributes_of(stat, target=target)
        self.put(path, attributes)
        return attributes

    def made(self, path: RemotePath, attributes: Attributes, asked: float) -> None:
        """This mount made a directory, with a call that began at `asked` (trio time)."""
        self.put(path, attributes)
        self._flights.made(path, asked)

    def drop(self, path: RemotePath) -> None:
        """The name is not there (any more), nor anything below it."""
        self._change(path, None)
        self.forget_tree(path)

    def forget(self, path: RemotePath) -> None:
        """What is known of a name may be wrong: its directory is asked again."""
        self._singles.pop(path, None)
        self._flights.forget(parent_of(path))

    def forget_tree(self, directory: RemotePath) -> None:
        self._flights.forget_tree(directory)

    def forget_all(self) -> None:
        self._flights.forget_tree(RemotePath("/"))

    def rename(self, source: RemotePath, target: RemotePath, now: Attributes) -> None:
        """The name moved on the cluster, with everything below it; `now` is at the target."""
        self.drop(source)
        self.forget_tree(target)
        self._change(target, now)

    def _change(self, path: RemotePath, attributes: Attributes | None) -> None:
        directory, name = parent_of(path), name_of(path)
        self._singles.pop(path, None)
        if not self._flights.change(directory, name, attributes) and attributes is not None:
            self._singles[path] = (attributes, trio.current_time())

    # Learning.

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
                self._flights.read_again()
                return
        attributes = attributes_of(stat)
        if known is not None:  # what only a listing tells
            attributes = msgspec.structs.replace(
                attributes, target=known.target, has_acl=known.has_acl
            )
        self._change(path, attributes)

    def _remember_single(self, path: RemotePath, stat: Stat) -> Attributes:
        attributes = attributes_of(stat)
        self._singles[path] = (attributes, trio.current_time())
        return attributes
