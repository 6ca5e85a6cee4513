"""What a site's server really does with double spaces (v1) and quotes (v2), asked once and
harmlessly (Names): against servers that do the one and the other."""

from __future__ import annotations

import os
import subprocess
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import trio
from sim_process import Simulator, running_simulator

from f7tfs.api.connect import open_cluster, token_source
from f7tfs.api.port import Cluster, Route
from f7tfs.errors import NameNotSupported, Unreachable
from f7tfs.model import RemotePath

CANARY = "'; touch canary; '"


class Site(NamedTuple):
    simulator: Simulator
    odd: str  # the name that it is about
    near: str  # what a server that does not carry it would make of it
    carries: bool


SITES: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "v1 with a wrapper": ({}, "two  sp", "two sp", False),
    "v1 without": ({"no_wrapper": True}, "two  sp", "two sp", True),
    "v2 raw": ({"api": "v2"}, "it's 'so'", "its so", False),
    "v2 escaping": ({"api": "v2", "escape_quotes": True}, "it's 'so'", "its so", True),
}


@pytest.fixture(scope="module", params=SITES)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    options, odd, near, carries = SITES[request.param]
    with running_simulator(start_delay=0, **options) as simulator:
        yield Site(simulator, odd, near, carries)


@pytest.fixture(autouse=True)
def fresh(site: Site) -> None:
    site.simulator.clear_faults()


@asynccontextmanager
async def cluster_of(site: Site) -> AsyncIterator[Cluster]:
    info = site.simulator.info
    source = token_source(
        token_url=info["auth_token_url"],
        client_id=info["client_id"],
        client_secret=info["client_secret"],
    )
    async with open_cluster(
        url=site.simulator.url, token_source=source, system=site.simulator.system, patience=0.5
    ) as (cluster, _):
        site.simulator.reset_calls()
        yield cluster


def on(site: Site, body: Callable[[Cluster], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        with trio.fail_after(60):
            async with cluster_of(site) as cluster:
                return await body(cluster)

    return trio.run(main)


def sent(site: Site) -> list[str]:
    return [
        f"{one['method']} {one['path'].rpartition('/')[2]} "
        f"{one['params'].get('targetPath') or one['params'].get('path') or ''}"
        for one in site.simulator.log()
    ]


def path_of(site: Site, name: str) -> RemotePath:
    return RemotePath(f"{site.simulator.scratch}/{name}")


def test_it_is_learnt_from_one_stat(site: Site) -> None:
    """Names: "probed once per mount, harmlessly, with a `stat` of a name that cannot exist"; not
    before such a name is met, and once for all who ask at the same time."""

    async def body(cluster: Cluster) -> None:
        assert await cluster.learn_carries(path_of(site, "plain"), Route.COMMAND)
        assert not await cluster.learn_carries(path_of(site, "nul\0  '"), Route.COMMAND)
        assert sent(site) == []
        assert not cluster.carries(path_of(site, site.odd), Route.COMMAND)
        found = []

        async def ask(name: str) -> None:
            found.append(await cluster.learn_carries(path_of(site, name), Route.COMMAND))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(ask, f"{site.odd}{number}/{site.odd}")
        assert found == [site.carries] * 5
        assert cluster.carries(path_of(site, site.odd), Route.COMMAND) is site.carries
        asked = sent(site)
        assert len(asked) == 1 and asked[0].startswith("GET stat "), asked
        assert f"{site.simulator.scratch}/.f7tfs-probe-" in asked[0]

    before = sorted(site.simulator.scratch.iterdir())
    on(site, body)
    assert sorted(site.simulator.scratch.iterdir()) == before
    if site.simulator.v2_url:
        assert site.simulator.injections() == []


def test_every_call_learns_by_itself(site: Site) -> None:
    """A call that comes first asks as well, and then acts on the right name or on none."""
    odd, near = path_of(site, site.odd), path_of(site, site.near)
    far = [site.simulator.scratch / site.odd, site.simulator.scratch / site.near]
    for place in far:
        place.write_bytes(place.name.encode())
        owner = site.simulator.scratch.stat()
        os.chown(place, owner.st_uid, owner.st_gid)

    async def body(cluster: Cluster) -> None:
        if not site.carries:
            with pytest.raises(NameNotSupported):
                await cluster.remove(odd)
            with pytest.raises(NameNotSupported):
                await cluster.symlink("x" if site.near == "two sp" else near, odd)
            assert len(sent(site)) == 1
            return
        assert (await cluster.stat(odd)).ino == far[0].stat().st_ino
        assert await cluster.download(odd) == site.odd.encode()
        await cluster.upload(odd, b"new")
        await cluster.change_mode(odd, 0o600)
        await cluster.remove(odd)
        await cluster.make_directory(odd)
        assert await cluster.list_directory(odd) == []
        await cluster.remove(odd)
        await cluster.symlink(near, odd)
        assert await cluster.read_link(odd) == near

    on(site, body)
    assert far[1].read_bytes() == site.near.encode()
    assert far[0].is_symlink() is site.carries
    for place in far:
        place.unlink()


def test_a_canary_does_not_run(site: Site) -> None:
    """Safety: whatever the server does with quotes, a name is no command."""

    async def body(cluster: Cluster) -> None:
        for name in (CANARY, f"x  {CANARY}"):
            path = path_of(site, name)
            carried = site.carries and bool(site.simulator.v2_url)
            assert await cluster.learn_carries(path, Route.COMMAND) is carried
            for route in (Route.STAGED_DOWNLOAD, Route.STAGED_UPLOAD, Route.MOVE):
                assert not await cluster.learn_carries(path, route)
            if carried:
                await cluster.make_directory(path)
                await cluster.remove(path)
            else:
                with pytest.raises(NameNotSupported):
                    await cluster.make_directory(path)

    on(site, body)
    simulator = site.simulator
    assert not [*simulator.home.glob("canary*"), *simulator.scratch.glob("canary*")]
    if simulator.v2_url:
        assert simulator.injections() == []


def test_what_keeps_it_from_answering_is_asked_again(site: Site) -> None:
    """An unreachable server says nothing about names."""
    site.simulator.faults(
        [{"match": "*", "where": ".f7tfs-probe-", "times": None, "action": {"status": 503}}]
    )

    async def body(cluster: Cluster) -> None:
        with pytest.raises(Unreachable):
            await cluster.learn_carries(path_of(site, site.odd), Route.COMMAND)
        with pytest.raises(Unreachable):
            await cluster.stat(path_of(site, site.odd))
        site.simulator.clear_faults()
        learnt = await cluster.learn_carries(path_of(site, site.odd), Route.COMMAND)
        assert learnt is site.carries

    on(site, body)


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_unclear_answer_is_a_no(site: Site, status: int) -> None:
    """Names: what is not known to be safe is refused, and not asked again."""
    body_of = {
        200: '{"description": "x", "output": {"mode": 33188, "ino": 1, "dev": 1, "nlink": 1,'
        ' "uid": 1, "gid": 1, "size": 0, "atime": 0, "mtime": 0, "ctime": 0}}',
        404: '{"errorType": "error", "message": "No such file or directory", "user": null}',
        500: '{"errorType": "error", "message": "something broke", "user": null}',
    }
    action = {"status": status, "headers": {"content-type": "application/json"}}
    site.simulator.faults(
        [
            {
                "match": "*",
                "where": ".f7tfs-probe-",
                "times": None,
                "action": action | {"body": body_of[status]},
            }
        ]
    )

    async def body(cluster: Cluster) -> None:
        for _ in range(2):
            assert not await cluster.learn_carries(path_of(site, site.odd), Route.COMMAND)
        assert len(sent(site)) == 1

    on(site, body)


def test_a_shell_makes_one_word_of_the_probe(site: Site) -> None:
    """The probe itself, between raw single quotes, runs nothing else."""

    async def body(cluster: Cluster) -> None:
        await cluster.learn_carries(path_of(site, site.odd), Route.COMMAND)

    on(site, body)
    params = next(one["params"] for one in site.simulator.log())
    probe = urllib.parse.unquote(params.get("targetPath") or params["path"])
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' '{probe}'"], capture_output=True, text=True, check=True
    )
    assert done.stdout == probe.replace("'", "") + "\n"
    assert not done.stderr
