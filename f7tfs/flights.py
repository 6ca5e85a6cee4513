"""Listings as last seen, and the calls under way that will bring more.

One mechanism, whether a listing was asked for, refreshed, or fetched ahead of somebody who walks a
tree: a `Flight`. Nobody needs what is fetched ahead, so it takes turns on a part of the connections
and nobody waits long for it; a flight that somebody waits for goes at once.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Container, Sequence

import trio
from cachetools import LRUCache, TTLCache

from f7tfs.api.port import Cluster, Route
from f7tfs.errors import (
    F7tfsError,
    NotADirectory,
    NotFound,
    PermissionDenied,
    RateLimited,
    ServerError,
    Stalled,
    Unauthorized,
    Unreachable,
)
from f7tfs.listings import Listing, directories_of, listing_of
from f7tfs.meanings import Meanings
from f7tfs.model import (
    Attributes,
    Identity,
    Listed,
    RemotePath,
    is_within,
    join,
    name_of,
    parent_of,
)
from f7tfs.walks import VISITS, Step, Walks
from f7tfs.zone import ClusterZone

log = logging.getLogger("f7tfs.catalog")
DIRECTORIES = 20_000  # listings kept
QUEUE = 64  # listings that nobody waits for, under way or waiting for their turn
AHEAD = 16  # siblings that are listed before they are asked for
WORTH = 5.0  # seconds; what is forgotten sooner is not worth fetching ahead
TREE_GRACE = 5.0  # seconds beyond the server's own limit for a command
TREE_ENTRIES = 60_000  # in a recursive listing; the server's limit is near 75,000 (v1 FACTS §4)
TREE_DIRECTORIES = DIRECTORIES // 2  # kept of one recursive listing
BESIDE = 2000  # names that nobody asked for, in a recursive listing instead of single ones
FEW = 3  # directories that are cheaper to list singly than recursively
SLICE = 1000  # entries taken in before other tasks have a turn

_AWAY = (Unreachable, RateLimited, Unauthorized)  # asking singly would fail in the same way


Changes = dict[str, Attributes | None]
"""Names in one directory; None is one that is gone."""


class Flight:
    """A listing call under way, of one directory or, `is_tree`, of everything below it too.

    Our own changes made while it flies win over what it brings; what was forgotten meanwhile is
    good for those who wait, and not kept. `hold` is what a flight that nobody waits for may wait
    for before it asks: a recursive listing that will bring the same (`tree`), or its turn.
    """

    def __init__(
        self, root: RemotePath, *, is_tree: bool = False, tree: Flight | None = None
    ) -> None:
        self.root = root
        self.is_tree = is_tree
        self.tree = tree
        self.asked = trio.current_time()
        self.hold = trio.CancelScope()
        self.done = trio.Event()
        self.error: F7tfsError | None = None
        self.listing: Listing | None = None
        self.changes: dict[RemotePath, Changes] = {}  # by directory
        self._outdated: set[RemotePath] = set()
        self._outdated_trees: set[RemotePath] = set()

    def covers(self, directory: RemotePath) -> bool:
        return is_within(directory, self.root) if self.is_tree else directory == self.root

    def begin(self) -> None:
        """The question goes out now: what was changed before is in the answer."""
        self.asked = trio.current_time()
        self.changes.clear()
        self._outdated.clear()
        self._outdated_trees.clear()

    def hurry(self) -> None:
        """Somebody waits."""
        self.hold.cancel()

    def change(self, directory: RemotePath, name: str, attributes: Attributes | None) -> None:
        self.changes.setdefault(directory, {})[name] = attributes

    def outdate(self, directory: RemotePath) -> None:
        if self.covers(directory):
            self._outdated.add(directory)

    def outdate_tree(self, directory: RemotePath) -> None:
        if self.covers(directory) or is_within(self.root, directory):
            self._outdated_trees.add(directory)

    def is_outdated(self, directory: RemotePath) -> bool:
        if directory in self._outdated:
            return True
        while directory not in self._outdated_trees:
            if directory == "/":
                return False
            directory = parent_of(directory)
        return True


class Flights:
    """`listings`: by directory. `singles`: names of which only a `stat` told, and when."""

    def __init__(
        self,
        cluster: Cluster,
        nursery: trio.Nursery,
        walks: Walks,
        *,
        identity: Identity,
        zone: ClusterZone,
        ttl: float,
    ) -> None:
        self._cluster = cluster
        self._nursery = nursery
        self._walks = walks
        self._identity = identity
        self._zone = zone
        self._ttl = ttl
        self._meanings = Meanings(cluster, zone)
        self.listings: LRUCache[RemotePath, Listing] = LRUCache(DIRECTORIES)
        self.singles: LRUCache[RemotePath, tuple[Attributes, float]] = LRUCache(DIRECTORIES)
        self._flights: dict[RemotePath, Flight] = {}
        self._trees: dict[RemotePath, Flight] = {}
        # All of them, also those whose place in `_flights` another has taken: somebody may wait for
        # one, and it has to hear of our own changes.
        self._under_way: set[Flight] = set()
        # Siblings fetched ahead lately: one that cannot be listed is not asked for at every step.
        self._tried: TTLCache[RemotePath, None] = TTLCache(VISITS, ttl, timer=trio.current_time)

    # What is known, and what is under way.

    def is_fresh(self, directory: RemotePath) -> bool:
        known = self.listings.get(directory)
        return known is not None and trio.current_time() - known.asked < self._ttl

    def toward(self, directory: RemotePath) -> Flight:
        """The flight to wait for, started if there is none that is worth it."""
        flight = self._flights.get(directory)
        if flight is None or flight.is_outdated(directory):
            flight = self._start(directory)
        return flight

    def refresh(self, directory: RemotePath) -> None:
        """List it again, sometime. While many others wait for their turn it does not queue."""
        if directory not in self._flights and len(self._flights) < QUEUE:
            self._start(directory)

    async def anew(self, directories: Sequence[RemotePath]) -> dict[RemotePath, Listing]:
        """Listings that were asked for after this call, of those directories that can be listed:
        by one recursive listing where that is one call for many. Raises what keeps every call from
        being answered."""
        began = trio.current_time()
        root = self._tree_worth(directories)
        if root is not None:
            self._trees[root] = tree = Flight(root, is_tree=True)
            await self._fly_tree(tree)
        found: dict[RemotePath, Listing] = {}
        flights = []
        for directory in directories:
            known = self.listings.get(directory)
            if root is not None and known is not None and known.asked >= began:
                found[directory] = known
                continue
            if (under_way := self._flights.get(directory)) is not None:
                under_way.outdate(directory)  # it asked earlier
            flight = self._start(directory)
            flight.tree = None  # one under way asked earlier as well
            flight.hurry()
            flights.append((directory, flight))
        for directory, flight in flights:
            await flight.done.wait()
            if isinstance(flight.error, _AWAY):
                raise flight.error.again()
            if flight.listing is not None:
                found[directory] = flight.listing
        return found

    def _tree_worth(self, directories: Sequence[RemotePath]) -> RemotePath | None:
        """What to list recursively for all of these, where they are most of what is below it."""
        if len(directories) < FEW or not self._cluster.capabilities.lists_trees:
            return None
        root = RemotePath(os.path.commonpath(directories))
        if not self._may_list_tree(root, again=True):
            return None
        wanted, pending, seen, beside = set(directories), [root], 0, 0
        while pending:
            directory = pending.pop()
            listing = self.listings.get(directory)
            seen += 1
            if listing is None or seen > 2 * len(directories):
                return None
            beside += 0 if directory in wanted else len(listing.entries)
            if beside > BESIDE:
                return None
            pending += [
                join(directory, name) for name, one in listing.entries.items() if one.is_directory
            ]
        return root

    def made(self, directory: RemotePath, asked: float) -> None:
        """This mount made a directory: it was empty when that was asked for."""
        self.forget_tree(directory)
        self.listings[directory] = listing = Listing({}, asked)
        listing.is_made_here = True

    def change(self, directory: RemotePath, name: str, attributes: Attributes | None) -> bool:
        """Our own change. False if no listing of the directory is known that could show it."""
        for flight in self._under_way:
            if flight.covers(directory):
                flight.change(directory, name, attributes)
        listing = self.listings.get(directory)
        if listing is not None:
            listing.change(name, attributes)
        return listing is not None

    def forget(self, directory: RemotePath) -> None:
        self.listings.pop(directory, None)
        for flight in self._under_way:
            flight.outdate(directory)

    def forget_tree(self, directory: RemotePath) -> None:
        for flight in self._under_way:
            flight.outdate_tree(directory)
        for table in (self.listings, self.singles):
            for path in [path for path in table if is_within(path, directory)]:
                table.pop(path, None)

    def read_again(self) -> None:
        """All times were read wrongly; what is still under way will be read rightly."""
        self.listings.clear()
        self.singles.clear()

    # Flying.

    @functools.cached_property
    def _turns(self) -> trio.CapacityLimiter:
        """For what nobody waits for; some calls stay free for those who wait."""
        return trio.CapacityLimiter(max(1, self._cluster.capabilities.parallel_calls - 2))

    def _start(self, directory: RemotePath) -> Flight:
        flight = self._flights[directory] = Flight(directory, tree=self._tree_over(directory))
        self._under_way.add(flight)
        self._nursery.start_soon(self._fly, flight)
        return flight

    def _tree_over(self, directory: RemotePath) -> Flight | None:
        for tree in self._trees.values():
            if tree.covers(directory) and not tree.is_outdated(directory):
                return tree
        return None

    async def _fly(self, flight: Flight) -> None:
        directory = flight.root
        has_turn = False
        try:
            with flight.hold:
                if flight.tree is not None:
                    await flight.tree.done.wait()
                else:
                    await self._turns.acquire_on_behalf_of(flight)
                    has_turn = True
            if (listing := self._brought(flight)) is not None:
                flight.listing = listing
                return
            flight.begin()
            listed = await self._cluster.list_directory(directory)
            listed = await self._meanings.as_meant(directory, listed)
            if await self._meanings.learn_zone([(directory, listed)]):
                self.read_again()
            flight.listing = self._take_in(flight, directory, listed)
        except F7tfsError as error:
            flight.error = error
            if isinstance(error, NotFound | NotADirectory | PermissionDenied):
                self.listings.pop(directory, None)
            log.debug("listing %s failed: %s", directory, error)
        except Exception as error:
            flight.error = ServerError(f"listing {directory}: {error!r}")
            log.exception("listing %s", directory)
        finally:
            if has_turn:
                self._turns.release_on_behalf_of(flight)
            if self._flights.get(directory) is flight:  # not if it was outdated
                del self._flights[directory]
            self._under_way.discard(flight)
            flight.done.set()

    def _brought(self, flight: Flight) -> Listing | None:
        """What came while a flight was held. Raises what will end the flight as it ended the
        recursive listing."""
        known = self.listings.get(flight.root)
        tree = flight.tree
        if tree is not None and tree.done.is_set():
            if isinstance(tree.error, _AWAY):
                raise tree.error.again()
            if known is not None and known.asked >= tree.asked:
                return known
        return known if known is not None and known.asked > flight.asked else None

    def _take_in(self, flight: Flight, directory: RemotePath, listed: Sequence[Listed]) -> Listing:
        """The listing of a directory that a flight brought, as it is now: with our own changes
        made meanwhile. Kept, unless something newer is known or it was outdated."""
        listing = listing_of(directory, listed, flight.asked, self._identity, self._zone)
        for name, changed in flight.changes.get(directory, {}).items():
            listing.change(name, changed)
        listing.is_of_tree = flight.is_tree
        before = self.listings.get(directory)
        if before is not None:
            listing.keep_details(before)
        if not flight.is_outdated(directory) and (before is None or before.asked <= flight.asked):
            self.listings[directory] = listing
        return listing

    # Ahead of those who walk.

    def look_ahead(
        self, directory: RemotePath, step: Step, *, beyond: Container[RemotePath]
    ) -> None:
        """Fetch what a walk that reads `directory` wants next; nothing of what is `beyond`."""
        if self._ttl < WORTH or not (step.siblings or step.is_walk):
            return
        if not self._cluster.capabilities.lists_trees:
            if step.siblings and step.siblings not in beyond:
                self._list_siblings(step.siblings, directory)
            return
        if self.is_fresh(directory) or self._tree_over(directory) is not None:
            return
        for root in (step.siblings, directory if step.is_walk else None):
            if root is not None and root not in beyond and self._may_list_tree(root):
                self._trees[root] = tree = Flight(root, is_tree=True)
                self._nursery.start_soon(self._fly_tree, tree)
                return

    def _may_list_tree(self, root: RemotePath, *, again: bool = False) -> bool:
        """`again`: also where that was done a moment ago."""
        now = trio.current_time()
        if root == "/" or root in self._trees or self._walks.is_refused(root, now=now):
            return False
        listing = self.listings.get(root)
        if not self._cluster.carries(root, Route.COMMAND):
            return False
        if not again and listing is not None and listing.is_of_tree and self.is_fresh(root):
            return False  # what is missing below was left out, and would be again
        if listing is not None:
            # What the children that were listed singly promise for the others.
            children = [
                join(root, name) for name, one in listing.entries.items() if one.is_directory
            ]
            known = [len(self.listings[path].entries) for path in children if path in self.listings]
            mean = sum(known) / len(known) if known else 0.0
            if len(listing.entries) + len(children) * mean > TREE_ENTRIES:
                log.info("%s is too large for a recursive listing", root)
                self._walks.refuse(root, now=now)
                return False
        return True

    async def _fly_tree(self, tree: Flight) -> None:
        root = tree.root
        self._under_way.add(tree)
        try:
            limit = self._cluster.capabilities.command_timeout + TREE_GRACE
            with trio.move_on_after(limit) as scope:
                found = await self._cluster.list_tree(root)
            if scope.cancelled_caught:
                raise Stalled(f"ls -R {root}: no answer within {limit:.0f} s")
            directories = [
                (directory, listed)
                for directory, listed in directories_of(root, found)
                if self._cluster.carries(directory, Route.COMMAND)
            ][:TREE_DIRECTORIES]
            directories = [
                (path, await self._meanings.as_meant(path, some)) for path, some in directories
            ]
            if await self._meanings.learn_zone(directories):
                self.read_again()
            taken = 0
            for directory, listed in directories:
                self._take_in(tree, directory, listed)
                taken += len(listed) + 1
                if taken > SLICE:
                    taken = 0
                    await trio.lowlevel.checkpoint()
            log.info("%s is walked: %d directories by one listing", root, len(directories))
        except F7tfsError as error:
            tree.error = error
            if not isinstance(error, _AWAY):
                self._walks.refuse(root, now=trio.current_time())
            log.info("%s is walked, and listed one by one: %s", root, error)
        except Exception as error:
            tree.error = ServerError(f"ls -R {root}: {error!r}")
            self._walks.refuse(root, now=trio.current_time())
            log.exception("listing the tree %s", root)
        finally:
            del self._trees[root]
            self._under_way.discard(tree)
            tree.done.set()

    def _list_siblings(self, above: RemotePath, directory: RemotePath) -> None:
        """Those that come next, as listings that nobody waits for yet."""
        listing = self.listings.get(above)
        if listing is None or self._cluster.capabilities.parallel_calls < 2:
            return
        names = [name for name, one in listing.entries.items() if one.is_directory]
        try:
            here = names.index(name_of(directory))
        except ValueError:
            return
        for name in names[here + 1 : here + 1 + AHEAD]:
            path = join(above, name)
            if path in self._flights or path in self._tried or self.is_fresh(path):
                continue
            if len(self._flights) < QUEUE and self._cluster.carries(path, Route.COMMAND):
                self._tried[path] = None
                self._start(path)
