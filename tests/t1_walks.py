"""Walks of whole trees: what is recognised, what is fetched ahead, what that costs, and that it is
true. The catalog without a kernel, over real HTTP; calls are counted where they arrive."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from sim_process import Simulator, running_simulator

from f7tfs import flights
from f7tfs.api.connect import open_cluster, token_source
from f7tfs.api.port import Cluster
from f7tfs.api.v1_wire import Entry, tree
from f7tfs.catalog import JOINING, Catalog
from f7tfs.errors import F7tfsError, NotFound, PermissionDenied, Unreachable
from f7tfs.listings import directories_of
from f7tfs.model import Attributes, Kind, Listed, RemotePath, join, remote_path
from f7tfs.walks import CHILDREN, PAUSE, REFUSED, Step, Walks
from f7tfs.zone import ClusterZone

TTL, STALE_MAX = 30.0, 300.0
DEADLINE = 60.0  # seconds of one test's clock, jumps apart
_guards: list[trio.CancelScope] = []


@pytest.fixture(scope="module", params=["v1", "v2"])
def either(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    with running_simulator(api=request.param, staging_interval=0.3) as simulator:
        simulator.dialect = request.param  # type: ignore[attr-defined]
        yield simulator


@pytest.fixture(scope="module")
def v1() -> Iterator[Simulator]:
    with running_simulator(command_limit=1) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def v2() -> Iterator[Simulator]:
    with running_simulator(api="v2") as simulator:
        yield simulator


def place_on(sim: Simulator, request: pytest.FixtureRequest) -> Path:
    sim.clear_faults()
    path = sim.home / re.sub(r"\W+", "-", request.node.name)
    path.mkdir()
    return path


@pytest.fixture
def home(request: pytest.FixtureRequest) -> Path:
    """A fresh directory on the cluster of the test's simulator."""
    for name in ("v1", "v2", "either"):
        if name in request.fixturenames:
            return place_on(request.getfixturevalue(name), request)
    raise AssertionError


class Asked:
    """The listings that reached a server, in order."""

    def __init__(self, sim: Simulator) -> None:
        log = [one for one in sim.log(10000) if one["path"].endswith("/ls")]
        self.recursive = [self._path(one) for one in log if "recursive" in one["params"]]
        self.single = [self._path(one) for one in log if "recursive" not in one["params"]]
        self.calls = sum(sim.calls()["calls"].values())

    def _path(self, one: dict[str, Any]) -> str:
        path = one["params"].get("targetPath") or one["params"]["path"]
        return str(path).rstrip("/")


Body = Callable[[Catalog, Cluster], Awaitable[Any]]


@asynccontextmanager
async def catalog_of(
    sim: Simulator, *, ttl: float = TTL, system: str | None = None, **options: Any
) -> AsyncIterator[tuple[Catalog, Cluster]]:
    source = token_source(
        token_url=sim.info["auth_token_url"],
        client_id=sim.info["client_id"],
        client_secret=sim.info["client_secret"],
    )
    chosen: dict[str, Any] = {"system": system or sim.system, "patience": 1.5} | options
    async with (
        open_cluster(url=sim.url, token_source=source, **chosen) as (cluster, _),
        trio.open_nursery() as nursery,
    ):
        catalog = Catalog(
            cluster,
            nursery,
            identity=await cluster.whoami(),
            zone=ClusterZone(),
            ttl=ttl,
            stale_max=STALE_MAX,
        )
        yield catalog, cluster
        nursery.cancel_scope.cancel()


def with_catalog(sim: Simulator, body: Body, **options: Any) -> Any:
    """`body` with a cold catalog and fresh counters, on a clock that can be jumped."""
    if os.getuid() == 0:
        owner = sim.home.stat()
        for directory, folders, files in os.walk(sim.home):
            for name in (*folders, *files):
                path = os.path.join(directory, name)
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    async def main() -> Any:
        async with catalog_of(sim, **options) as (catalog, cluster):
            sim.reset_calls()
            with trio.fail_after(DEADLINE) as guard:
                _guards.append(guard)
                return await body(catalog, cluster)

    return trio.run(main, clock=trio.testing.MockClock(rate=1.0))


def jump(seconds: float) -> None:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    _guards[-1].deadline += seconds
    clock.jump(seconds)


async def until(condition: Callable[[], Any], what: str) -> None:
    with trio.move_on_after(20):
        while not condition():  # noqa: ASYNC110, as the other process tells by being asked only
            await trio.sleep(0.01)
        return
    raise AssertionError(f"waited in vain for {what}")


Found = dict[str, tuple[Kind, int, int, int, int | None]]


async def walk(catalog: Catalog, root: RemotePath, found: Found | None = None) -> Found:
    """As `find` and `ls -R` do: a directory, then each of its children with all below it."""
    found = {} if found is None else found
    try:
        entries = dict(await catalog.listing(root))
    except PermissionDenied:
        return found
    for name, one in entries.items():
        found[join(root, name)] = told(one)
    for name, one in entries.items():
        if one.is_directory:
            await walk(catalog, join(root, name), found)
    return found


def told(one: Attributes) -> tuple[Kind, int, int, int, int | None]:
    return one.kind, one.size, one.mtime, one.permissions, one.uid


KINDS = {stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFREG: Kind.FILE, stat.S_IFLNK: Kind.SYMLINK}


def truth(home: Path) -> Found:
    found: Found = {}
    for directory, folders, files in os.walk(home):
        for name in (*folders, *files):
            path = os.path.join(directory, name)
            one = os.lstat(path)
            kind = KINDS[stat.S_IFMT(one.st_mode)]
            mode = stat.S_IMODE(one.st_mode)
            found[path] = (kind, one.st_size, int(one.st_mtime), mode, one.st_uid)
    return found


def grow(home: Path, directories: int, files: int) -> None:
    for number in range(directories):
        (home / f"d{number:03}").mkdir()
        for other in range(files):
            (home / f"d{number:03}" / f"f{other:02}").write_bytes(b"x" * (other % 5))


def of(path: Path) -> RemotePath:
    return remote_path(str(path))


def walked(sim: Simulator, home: Path, **options: Any) -> Asked:
    """What a cold walk asks; what it finds must be the truth."""

    async def body(catalog: Catalog, _: Cluster) -> None:
        assert await walk(catalog, of(home)) == truth(home)

    with_catalog(sim, body, **options)
    return Asked(sim)


# v1: recursive listings.


def test_a_wide_tree_costs_few_calls(v1: Simulator, home: Path) -> None:
    """Metadata: "A tree walk … on v1 is recognised and prefetched by a recursive listing"."""
    grow(home, 200, 50)
    asked = walked(v1, home)
    assert asked.recursive == [str(home)]
    assert len(asked.single) == 1 + CHILDREN
    assert asked.calls <= 10


def test_a_very_wide_tree(v1: Simulator, home: Path) -> None:
    grow(home, 1500, 2)
    assert walked(v1, home).calls <= 10


def test_a_deep_tree_costs_few_calls(v1: Simulator, home: Path) -> None:
    """A chain, and a tree in which no directory has more than two others in it."""
    chain = home / "chain"
    chain.mkdir()
    for number in range(40):
        chain = chain / f"n{number}"
        chain.mkdir()
        (chain / "file").touch()
    twos = [home / "twos"]
    for _ in range(7):
        for one in twos:
            one.mkdir()
        twos = [one / name for one in twos for name in ("a", "b")]
    assert len(truth(home)) > 190
    asked = walked(v1, home)
    assert str(home) not in asked.recursive
    assert asked.calls <= 14


def test_several_walkers_share_what_is_fetched(v1: Simulator, home: Path) -> None:
    """Metadata: "Concurrent askers share one call", be they threads of one walker."""
    grow(home, 60, 3)

    async def body(catalog: Catalog, _: Cluster) -> None:
        names = list(await catalog.listing(of(home)))
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(catalog.listing, of(home / name))

    with_catalog(v1, body)
    asked = Asked(v1)
    assert asked.recursive == [str(home)]
    assert len(asked.single) == 1 + CHILDREN


# By hand.


def test_looking_around_is_no_walk(v1: Simulator, home: Path) -> None:
    """A few siblings one after the other, be it by a script, and any number with pauses between:
    no recursive listing of what may be huge."""
    grow(home, 8, 2)

    async def quick(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        for name in ("d000", "d003", "d005"):
            await catalog.listing(of(home / name))

    with_catalog(v1, quick)
    assert Asked(v1).recursive == []

    async def slow(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        for name in sorted(os.listdir(home)):
            jump(PAUSE + 0.1)
            await catalog.listing(of(home / name))

    with_catalog(v1, slow)
    asked = Asked(v1)
    assert asked.recursive == []
    assert len(asked.single) == 9


def test_lookups_are_no_walk(v1: Simulator, home: Path) -> None:
    """Paths that are resolved list directories as well, and tell nothing of what comes next."""
    grow(home, 12, 1)

    async def body(catalog: Catalog, _: Cluster) -> None:
        for name in sorted(os.listdir(home)):
            await catalog.attributes(of(home / name / "f00"))

    with_catalog(v1, body)
    assert Asked(v1).recursive == []


def test_it_begins_with_what_is_walked(v1: Simulator, home: Path) -> None:
    """`du` of one directory in a home: nothing above it is listed recursively."""
    for name in ("wanted", "huge", "other"):
        (home / name).mkdir()
        grow(home / name, 10, 1)

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.attributes(of(home / "wanted"))
        assert len(await walk(catalog, of(home / "wanted"))) == 20

    with_catalog(v1, body)
    assert Asked(v1).recursive == [str(home / "wanted")]


def test_the_recogniser() -> None:
    """Steps of a walk: a child of what was read in it, at once; a re-read begins anew."""
    walks, now = Walks(), 100.0

    def read(path: str, cold: bool = True) -> Step:
        return walks.read(remote_path(path), cold=cold, now=now)

    assert read("/r") == Step(None, False)
    steps = [read(f"/r/{name}") for name in "abcd"]
    assert [step.siblings for step in steps] == [None, None, None, "/r"]
    assert [step.is_walk for step in steps] == [False, False, False, True]
    assert read("/q/a") == Step(None, False)  # nothing to do with it
    now += PAUSE + 0.1
    assert read("/r/e") == Step(None, False)
    read("/r")
    assert read("/r/f") == Step(None, False)
    # What is known already goes on, and counts for nothing.
    read("/w")
    assert [read(f"/w/{name}", cold=False) for name in "abcdef"] == [Step(None, False)] * 6
    # A slow answer is no pause.
    read("/s")
    for name in "abc":
        now += PAUSE * 2
        walks.answered(remote_path("/s"), now=now)
        read(f"/s/{name}")
    assert read("/s/d").siblings == "/s"
    assert read("/") == read("/") == Step(None, False)
    walks.refuse(remote_path("/a/b"), now=now)
    refused = [walks.is_refused(of(Path(p)), now=now) for p in ("/a", "/a/b", "/a/b/c", "/a/x")]
    assert refused == [True, True, False, False]
    assert not walks.is_refused(remote_path("/a"), now=now + REFUSED + 1)


# Refusals.


@pytest.mark.skipif(os.getuid() != 0, reason="the cluster's user is this one")
def test_one_unreadable_directory(v1: Simulator, home: Path) -> None:
    """Metadata: "falling back to single listings when the server refuses (one unreadable
    subdirectory fails the whole)"; it is not asked again and again."""
    grow(home, 20, 2)
    (home / "d010").chmod(0)

    async def body(catalog: Catalog, _: Cluster) -> None:
        expected = {path: one for path, one in truth(home).items() if "/d010/" not in path}
        assert await walk(catalog, of(home)) == expected
        assert await walk(catalog, of(home)) == expected
        catalog.forget_all()
        assert await walk(catalog, of(home)) == expected
        jump(REFUSED + 1)
        catalog.forget_all()
        v1.reset_calls()
        assert await walk(catalog, of(home)) == expected

    with_catalog(v1, body)
    asked = Asked(v1)
    assert asked.recursive.count(str(home)) == 1
    (home / "d010").chmod(0o755)


def test_a_refusal_is_remembered(v1: Simulator, home: Path) -> None:
    grow(home, 20, 2)
    (home / "d015" / "No such file").touch()  # poisons the recursive listing (v1 FACTS §2)

    async def body(catalog: Catalog, _: Cluster) -> None:
        for _ in range(3):
            catalog.forget_all()
            assert await walk(catalog, of(home)) == truth(home)

    with_catalog(v1, body)
    asked = Asked(v1)
    assert asked.recursive.count(str(home)) == 1
    assert len(asked.single) + len(asked.recursive) <= 3 * 21 + 2


@pytest.mark.parametrize(
    "answer",
    [
        {"headers": {"X-Timeout": "x"}, "text": "Command has finished with timeout signal"},
        {"headers": {}, "text": "Command output exceeded buffer limit (5242880)"},
    ],
    ids=["timeout", "size"],
)
def test_limits_of_the_server(v1: Simulator, home: Path, answer: dict[str, Any]) -> None:
    """v1 FACTS §4: more than 5 MiB of text, more than 5 s. The small subtrees come all the same."""
    for name in "abcdef":
        (home / name).mkdir()
        grow(home / name, 6, 1)
    body_text = json.dumps({"description": "Error on ls operation", "error": answer["text"]})
    v1.faults([
        {
            "match": "GET /utilities/ls",
            "where": f"targetPath={home}&showhidden=true&numericUid=true&recursive",
            "times": None,
            "action": {"status": 400, "headers": answer["headers"], "body": body_text},
        }
    ])  # fmt: skip
    asked = walked(v1, home)
    assert asked.recursive.count(str(home)) == 1
    assert asked.calls <= 20


def test_what_is_known_to_be_too_large_is_not_asked_for(
    v1: Simulator, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "TREE_ENTRIES", 200)
    grow(home, 50, 20)
    asked = walked(v1, home)
    assert str(home) not in asked.recursive
    assert len(asked.single) + len(asked.recursive) == 51


def test_a_slow_prefetch_holds_nobody_up(v1: Simulator, home: Path) -> None:
    """The asker that set it off waits a bounded time for it, and then asks singly."""
    grow(home, 12, 1)
    v1.faults([{"match": "GET /utilities/ls", "where": "recursive", "action": {"hang": True}}])

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        for number in range(CHILDREN):
            await catalog.listing(of(home / f"d{number:03}"))
        started = trio.current_time()
        assert set(await catalog.listing(of(home / "d007"))) == {"f00"}
        took = trio.current_time() - started
        assert JOINING - 0.1 < took < JOINING + 2
        # A lookup beside it, of what the prefetch does not cover, does not wait for it.
        started = trio.current_time()
        await catalog.attributes(of(home))
        assert trio.current_time() - started < JOINING

    with_catalog(v1, body)
    asked = Asked(v1)
    assert str(home / "d007") in asked.single


def test_a_prefetch_without_an_end_is_given_up(v1: Simulator, home: Path) -> None:
    grow(home, 6, 1)
    v1.faults([{"match": "GET /utilities/ls", "where": "recursive", "action": {"hang": True}}])

    async def body(catalog: Catalog, cluster: Cluster) -> None:
        found: Found = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(walk, catalog, of(home), found)
            await until(lambda: Asked(v1).recursive, "the recursive listing")
            jump(JOINING)
            await trio.sleep(0.1)
            jump(cluster.capabilities.command_timeout + flights.TREE_GRACE)
        assert found == truth(home)

    with_catalog(v1, body, request_timeout=3600.0)
    assert Asked(v1).recursive.count(str(home)) == 1


def test_an_unreachable_server_is_not_asked_twice(v1: Simulator, home: Path) -> None:
    """Those who wait for a recursive listing get its error when it is the network's."""
    grow(home, 8, 1)

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        for number in range(CHILDREN):
            await catalog.listing(of(home / f"d{number:03}"))
        v1.faults([{"match": "*", "times": None, "action": {"drop": "before"}}])
        with pytest.raises(Unreachable):
            await catalog.listing(of(home / "d005"))
        v1.clear_faults()
        v1.reset_calls()
        assert await walk(catalog, of(home)) == truth(home)

    with_catalog(v1, body, patience=0.3)
    assert Asked(v1).recursive == [str(home)]  # no refusal: it is asked again


# What comes ahead is as true as what is asked for.


def hold_the_prefetch(sim: Simulator) -> None:
    sim.faults(
        [{"match": "GET /utilities/ls", "where": "recursive", "action": {"delay": 0.5}, "times": 1}]
    )


def test_own_changes_while_two_listings_of_one_directory_fly(v1: Simulator, home: Path) -> None:
    """Metadata: "What this mount itself changes is visible at once". Found by the model: a listing
    that had not gone out yet when another took its place did not hear of a new file."""
    (home / "file").write_bytes(b"x")

    async def body(catalog: Catalog, _: Cluster) -> None:
        made = await catalog.attributes(of(home / "file"))
        catalog.forget_all()
        v1.faults([{"match": "GET /utilities/ls", "times": 2, "action": {"delay": 0.5}}])
        v1.reset_calls()
        flight = catalog._flights.toward(of(home))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catalog.anew, [of(home)])
            await until(lambda: len(Asked(v1).single) == 2, "both")
            catalog.put(of(home / "new"), made)
        await flight.done.wait()
        assert flight.listing is not None
        assert set(flight.listing.entries) == {"file", "new"}
        assert set(await catalog.listing(of(home))) == {"file", "new"}

    with_catalog(v1, body)


def test_own_changes_while_it_flies(v1: Simulator, home: Path) -> None:
    """Metadata: "What this mount itself changes is visible at once", also over what a recursive
    listing brings that was asked for before."""
    grow(home, 12, 2)

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        for number in range(CHILDREN):
            await catalog.listing(of(home / f"d{number:03}"))
        made = await catalog.attributes(of(home / "d000/f00"))
        hold_the_prefetch(v1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catalog.listing, of(home / "d005"))
            await until(lambda: Asked(v1).recursive, "the recursive listing")
            catalog.put(of(home / "d006/new"), made)
            catalog.drop(of(home / "d007/f00"))
            catalog.drop(of(home / "d008"))
            moved = catalog.peek(of(home / "d009"))
            assert moved is not None
            catalog.rename(of(home / "d009"), of(home / "moved"), moved)
            (home / "d010" / "f00").unlink()  # somebody says that this may be wrong
            catalog.forget(of(home / "d010/f00"))
        v1.reset_calls()
        assert set(await catalog.listing(of(home / "d005"))) == {"f00", "f01"}
        assert set(await catalog.listing(of(home / "d006"))) == {"f00", "f01", "new"}
        assert set(await catalog.listing(of(home / "d007"))) == {"f01"}
        assert catalog.peek(of(home / "d008/f00")) is None
        assert catalog.peek(of(home / "d009/f00")) is None
        names = set(await catalog.listing(of(home)))
        assert "d008" not in names and "d009" not in names and "moved" in names
        assert Asked(v1).calls == 0
        assert set(await catalog.listing(of(home / "d010"))) == {"f01"}
        assert Asked(v1).calls > 0

    with_catalog(v1, body)


def test_a_removed_tree_does_not_come_back(v1: Simulator, home: Path) -> None:
    """`rm -r` of a tree that is just being listed as a whole."""
    grow(home, 12, 1)

    async def body(catalog: Catalog, cluster: Cluster) -> None:
        for name in list(await catalog.listing(of(home))):
            for other in list(await catalog.listing(of(home / name))):
                await cluster.remove(of(home / name / other))
                catalog.drop(of(home / name / other))
            assert dict(await catalog.listing(of(home / name))) == {}
            await cluster.remove(of(home / name))
            catalog.drop(of(home / name))
        assert dict(await catalog.listing(of(home))) == {}

    with_catalog(v1, body)
    assert truth(home) == {}


def test_all_that_is_forgotten_is_asked_again(v1: Simulator, home: Path) -> None:
    """`refresh`: what is under way was asked for before, and is not kept."""
    grow(home, 12, 1)

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        for number in range(CHILDREN):
            await catalog.listing(of(home / f"d{number:03}"))
        hold_the_prefetch(v1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catalog.listing, of(home / "d005"))
            await until(lambda: Asked(v1).recursive, "the recursive listing")
            catalog.forget_all()
            (home / "d006" / "new").touch()
            assert "new" in await catalog.listing(of(home / "d006"))
        assert "new" in await catalog.listing(of(home / "d006"))
        assert catalog.peek(of(home / "d009/f00")) is None

    with_catalog(v1, body)


def test_our_own_names_stay_hidden(v1: Simulator, home: Path) -> None:
    grow(home, 8, 1)
    (home / "d006" / ".f7tfs-tmp-x").touch()
    (home / "d006" / "gone").symlink_to(".f7tfs-removed-1")
    (home / ".f7tfs-w").mkdir()
    (home / ".f7tfs-w" / "inner").touch()

    async def body(catalog: Catalog, _: Cluster) -> None:
        found = await walk(catalog, of(home))
        assert not [path for path in found if ".f7tfs" in path or path.endswith("gone")]
        assert catalog.peek(of(home / ".f7tfs-w/inner")) is None

    with_catalog(v1, body)
    assert Asked(v1).recursive == [str(home)]


def test_empty_directories_and_symlinks(v1: Simulator, home: Path) -> None:
    """v1 FACTS §4: "empty directories add bare "" items"; symlinks are not followed."""
    grow(home, 8, 1)
    for name in ("d004", "d007"):
        (home / name / "empty").mkdir()
    (home / "d006" / "to-directory").symlink_to("../d004")
    (home / "d006" / "out").symlink_to("/etc")

    async def body(catalog: Catalog, _: Cluster) -> None:
        assert await walk(catalog, of(home)) == truth(home)
        v1.reset_calls()
        assert dict(await catalog.listing(of(home / "d007/empty"))) == {}
        assert catalog.peek(of(home / "d006/out/passwd")) is None
        assert catalog.peek(of(home / "d006/to-directory/f00")) is None

    with_catalog(v1, body)
    assert Asked(v1).calls == 0


@pytest.mark.parametrize("other", [False, True], ids=["first system", "other locale"])
def test_names_and_times_are_read_alike(either: Simulator, home: Path, other: bool) -> None:
    """Names, Times: a UTF-8 cluster in UTC and a POSIX one on Zurich's clock, summer and winter;
    listings that were fetched ahead say the same as single ones and as the disk."""
    grow(home, 8, 2)
    odd = ["ünï☃", "emoji😀", "sp ace", " lead", "dash-", "#%$~"]
    for number, name in enumerate(odd):
        (home / "d006" / name).write_bytes(b"xy")
        time = 1_700_000_000 + number * 20_000_000
        os.utime(home / "d006" / name, (time, time))
        (home / name).mkdir()
        (home / name / name).write_bytes(b"z")
    names = ["ünï☃ n", "plain"]
    for name in names:
        (home / "ünï☃" / name).mkdir()
        (home / "ünï☃" / name / "in").write_bytes(b"123")
    alone: Found = {}
    is_v1 = either.dialect == "v1"  # type: ignore[attr-defined]
    system = ("cluster2" if is_v1 else "cluster-utf8") if other else either.system

    async def singly(catalog: Catalog, _: Cluster) -> None:
        for directory in (home, *(Path(p) for p in truth(home) if os.path.isdir(p))):
            jump(PAUSE + 0.1)
            for name, one in (await catalog.listing(of(directory))).items():
                alone[join(of(directory), name)] = told(one)

    with_catalog(either, singly, system=system)
    assert Asked(either).recursive == []
    assert alone == truth(home)
    asked = walked(either, home, system=system)
    assert asked.recursive.count(str(home)) == is_v1


def test_names_that_no_call_carries(v1: Simulator, home: Path) -> None:
    """A directory that cannot be listed singly is not shown as if it could, nor as empty."""
    grow(home, 8, 1)
    for name in ('dq"uote', "semi;colon", "two  sp", "new\nline", "back\\slash"):
        (home / name).mkdir()
        (home / name / "inner").touch()

    async def body(catalog: Catalog, _: Cluster) -> None:
        names = list(await catalog.listing(of(home)))
        for name in names:
            if re.match(r"d\d", name):
                await catalog.listing(of(home / name))
            else:
                with pytest.raises(F7tfsError):
                    await catalog.listing(of(home / name))
        assert len(names) == 13

    with_catalog(v1, body)
    assert Asked(v1).recursive == [str(home)]
    assert len(Asked(v1).single) <= 1 + CHILDREN


def listed(name: str, kind: Kind = Kind.FILE, **more: Any) -> Listed:
    return Listed(name, kind, 0o644, 1, 0, "1", "1", **more)


def taken_apart(found: Sequence[tuple[str, Listed]]) -> dict[str, list[str]]:
    directories = directories_of(remote_path("/r"), found)
    return {path: [one.name for one in inside] for path, inside in directories}


def test_taking_apart() -> None:
    directory = Kind.DIRECTORY
    assert taken_apart([]) == {"/r": []}
    assert taken_apart(
        [("", listed("a", directory)), ("", listed("e", directory)), ("a", listed("x"))]
    ) == {"/r": ["a", "e"], "/r/a": ["x"], "/r/e": []}
    # Nothing leads into a symlink or a file, whatever a server says.
    link = listed("l", Kind.SYMLINK, target="/etc")
    assert taken_apart([("", link), ("l", listed("passwd"))]) == {"/r": ["l"]}
    # Two directories that read alike: neither is believed, nor what is below.
    twice = [("", listed("ü", directory)), ("", listed("ü", directory, ambiguous=True))]
    assert "/r/ü" not in taken_apart([*twice, ("ü", listed("a")), ("ü", listed("b"))])
    # Entries under a spelling that nothing leads to: no directory is believed to be empty.
    strange = [("", listed('d"q', directory)), ("", listed("f", directory)), ("f", listed("y"))]
    assert taken_apart([*strange, ('d\\"q', listed("x"))]) == {"/r": ['d"q', "f"], "/r/f": ["y"]}


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd", "/etc/passwd", "a/../../b", "a//b", "./x", "a/.", "a/..", "..", ".", "",
        "a/", "a\0b", "a/b\0/c", "\\000/x", "..\\057x/../y", "//x",
    ],
)  # fmt: skip
def test_a_server_cannot_make_the_mount_escape(name: str) -> None:
    """Names: "after the dialect has split relative paths of recursive listings, a name that is
    empty, `.`, `..`, or holds `/` or NUL is dropped and logged"."""
    entries = [Entry(name=name, type="-", permissions="rw-r--r--", size="1")]
    for directory, one in tree(entries, "/r"):
        for part in [*directory.split("/"), one.name][0 if directory else 1 :]:
            assert part not in {"", ".", ".."} and "/" not in part and "\0" not in part
        for path in taken_apart([(directory, one)]):
            assert path == "/r"


def test_ambiguous_names_are_proven_before_use(v1: Simulator, home: Path) -> None:
    """Names: "verify an ambiguous one by `stat` before use": on a UTF-8 cluster a name that looks
    like an escape is just that, and no call can carry it."""
    (home / "\\303\\274").touch()
    (home / "plain").touch()

    async def literal(catalog: Catalog, _: Cluster) -> None:
        assert "ü" in await catalog.listing(of(home))
        with pytest.raises(NotFound):
            await catalog.attributes(of(home / "ü"), fresh=True)
        assert "ü" not in await catalog.listing(of(home))

    with_catalog(v1, literal)
    (home / "\\303\\274").unlink()
    (home / "ü").write_bytes(b"123")

    async def meant(catalog: Catalog, _: Cluster) -> None:
        for _ in range(3):
            assert (await catalog.attributes(of(home / "ü"), fresh=True)).size == 3
        catalog.forget(of(home / "x"))
        assert v1.calls()["calls"]["GET /utilities/stat"] <= 3  # two of them for the zone
        await catalog.attributes(of(home / "plain"), fresh=True)

    with_catalog(v1, meant, system="cluster2")


# v2: siblings.


def test_v2_never_lists_recursively(v2: Simulator, home: Path) -> None:
    """Metadata: "On v2 recursive listings are never used; sibling directories are prefetched within
    the concurrency limit": nothing is asked for twice."""
    grow(home, 40, 2)
    asked = walked(v2, home)
    assert asked.recursive == []
    assert sorted(asked.single) == sorted([str(home), *map(str, home.iterdir())])


def test_v2_siblings_come_ahead(v2: Simulator, home: Path) -> None:
    """Bounded ahead of who walks, on a part of the connections, so that somebody else is answered
    meanwhile as if nobody walked."""
    grow(home, 60, 1)
    (home / "else").mkdir()
    delay = 0.3

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        for number in range(CHILDREN):
            await catalog.listing(of(home / f"d{number:03}"))
        v2.faults([
            {
                "match": "GET /v2/filesystem" if "/v2" in v2.url else "GET /filesystem",
                "times": None,
                "action": {"delay": delay},
            }
        ])  # fmt: skip
        await catalog.listing(of(home / "d003"))
        started = trio.current_time()
        await catalog.listing(of(home / "else"))
        assert trio.current_time() - started < 2 * delay + 0.3
        ahead = {str(home / f"d{number:03}") for number in range(4, 4 + flights.AHEAD)}
        await until(lambda: all(catalog.peek(of(Path(path) / "f00")) for path in ahead), "siblings")
        assert set(Asked(v2).single) >= ahead
        assert len(Asked(v2).single) == 1 + CHILDREN + 2 + flights.AHEAD
        started = trio.current_time()
        await catalog.listing(of(home / "d004"))
        assert trio.current_time() - started < delay / 2

    with_catalog(v2, body)


@pytest.mark.skipif(os.getuid() != 0, reason="the cluster's user is this one")
def test_v2_what_cannot_be_listed_is_tried_once(v2: Simulator, home: Path) -> None:
    grow(home, 30, 1)
    (home / "d012").chmod(0)

    async def body(catalog: Catalog, _: Cluster) -> None:
        assert len(await walk(catalog, of(home))) == 59

    with_catalog(v2, body)
    (home / "d012").chmod(0o755)
    assert Asked(v2).single.count(str(home / "d012")) <= 2  # ahead, and by who walks


# TTL, negative answers, one call for all, old answers while a new one comes.


def test_one_listing_answers_until_its_ttl(either: Simulator, home: Path) -> None:
    """Metadata: "One directory listing is one API call, and it answers every lookup, stat, access
    and readdir in it until its TTL ends (default 30 s; negative answers too)"."""
    for name in ("a", "b"):
        (home / name).write_bytes(b"x")

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        either.reset_calls()
        for _ in range(3):
            for name in ("a", "b"):
                assert (await catalog.attributes(of(home / name))).size == 1
                assert (await catalog.attributes(of(home / name), fresh=True)).size == 1
            with pytest.raises(NotFound):
                await catalog.attributes(of(home / "c"))
            assert catalog.is_known_absent(of(home / "c"))
            jump(TTL / 3 - 1)
        assert Asked(either).calls == 0
        jump(TTL)
        assert not catalog.is_known_absent(of(home / "c"))

    with_catalog(either, body)


def test_many_askers_share_one_call(either: Simulator, home: Path) -> None:
    """Metadata: "Concurrent askers share one call"."""
    for number in range(20):
        (home / f"f{number}").touch()

    async def body(catalog: Catalog, _: Cluster) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(catalog.attributes, of(home / f"f{number}"))
            nursery.start_soon(catalog.listing, of(home))

    with_catalog(either, body)
    assert Asked(either).single == [str(home)]


def test_the_old_while_the_new_comes(either: Simulator, home: Path) -> None:
    """Metadata: "A directory whose listing has expired is answered from the old listing while one
    refresh runs in the background, up to `stale_max`; then it waits. open() never trusts a listing
    older than its TTL"."""
    (home / "old").touch()

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        (home / "new").touch()
        either.reset_calls()
        jump(TTL + 1)
        for _ in range(5):
            assert set(await catalog.listing(of(home))) == {"old"}
        with pytest.raises(NotFound):
            await catalog.attributes(of(home / "new"))
        await until(lambda: catalog.peek(of(home / "new")), "the refresh")
        assert set(await catalog.listing(of(home))) == {"old", "new"}
        assert Asked(either).single == [str(home)]
        # Too old: it waits.
        (home / "newer").touch()
        jump(STALE_MAX + 1)
        assert set(await catalog.listing(of(home))) == {"old", "new", "newer"}
        # For open(), nothing that is old.
        (home / "old").write_bytes(b"longer")
        jump(TTL + 1)
        assert (await catalog.attributes(of(home / "old"), fresh=True)).size == 6
        assert len(Asked(either).single) == 3

    with_catalog(either, body)


def test_a_second_walk_does_not_flood(v1: Simulator, home: Path) -> None:
    """Old listings of a whole tree: answered at once, and renewed by few calls."""
    grow(home, 150, 1)

    async def body(catalog: Catalog, _: Cluster) -> None:
        expected = await walk(catalog, of(home))
        jump(TTL + 1)
        (home / "d140" / "f00").write_bytes(b"other")
        v1.reset_calls()
        started = trio.current_time()
        assert await walk(catalog, of(home)) == expected
        assert trio.current_time() - started < 1

        def is_new() -> bool:
            one = catalog.peek(of(home / "d140/f00"))
            return one is not None and one.size == 5

        await until(is_new, "the new listing")

    with_catalog(v1, body)
    asked = Asked(v1)
    assert asked.recursive == [str(home)]
    assert asked.calls <= 10


def test_refreshes_leave_room(v2: Simulator, home: Path) -> None:
    """What nobody waits for is bounded, and does not hold up who waits."""
    grow(home, 150, 1)
    (home / "else").mkdir()

    async def body(catalog: Catalog, _: Cluster) -> None:
        await walk(catalog, of(home))
        jump(TTL + 1)
        v2.reset_calls()
        for number in range(150):
            await catalog.attributes(of(home / f"d{number:03}/f00"))
        started = trio.current_time()
        await catalog.attributes(of(home / "else"), fresh=True)
        assert trio.current_time() - started < 2
        assert len(Asked(v2).single) < flights.QUEUE / 2

    with_catalog(v2, body)


def test_own_changes_are_seen_at_once(either: Simulator, home: Path) -> None:
    """Metadata: "What this mount itself changes is visible at once", over a listing that was asked
    for before the change too."""
    for name in ("a", "b"):
        (home / name).touch()

    async def body(catalog: Catalog, _: Cluster) -> None:
        made = await catalog.attributes(of(home / "a"))
        either.reset_calls()
        catalog.put(of(home / "c"), made)
        catalog.drop(of(home / "b"))
        assert set(await catalog.listing(of(home))) == {"a", "c"}
        assert Asked(either).calls == 0
        catalog.forget_all()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catalog.listing, of(home))
            await trio.testing.wait_all_tasks_blocked()
            catalog.put(of(home / "d"), made)
            catalog.drop(of(home / "a"))
        assert set(await catalog.listing(of(home))) == {"b", "d"}

    with_catalog(either, body)


def test_while_a_call_fails(either: Simulator, home: Path) -> None:
    """Metadata: "answered from the old listing …, up to `stale_max`; then it waits"; "open() never
    trusts a listing older than its TTL". (While the API is known to be offline: t4_offline.)"""
    (home / "file").write_bytes(b"123")

    async def body(catalog: Catalog, _: Cluster) -> None:
        await catalog.listing(of(home))
        jump(TTL + 1)
        either.faults([{"match": "*", "times": None, "action": {"drop": "before"}}])
        assert (await catalog.attributes(of(home / "file"))).size == 3
        assert set(await catalog.listing(of(home))) == {"file"}
        for question in (catalog.attributes(of(home / "file"), fresh=True),
                         catalog.listing(of(home), fresh=True),
                         catalog.attributes(of(home / "file" / "never-seen"))):  # fmt: skip
            with pytest.raises(Unreachable):
                await question
        jump(STALE_MAX + 1)
        with pytest.raises(Unreachable):
            await catalog.listing(of(home))
        either.clear_faults()
        (home / "file").write_bytes(b"12345")
        assert (await catalog.attributes(of(home / "file"), fresh=True)).size == 5

    with_catalog(either, body, patience=0.3)
