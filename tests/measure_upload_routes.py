"""How a file of a middle size gets to a v2 cluster soonest (docs/decisions/0009), in the simulator
with the recorded 60-second sleep of the ingest job:

    .venv/bin/python tests/measure_upload_routes.py [--uplink MBIT] [--start SECONDS] [--runs N]

Two routes take turns: `staged` through the object store, and `pieces` of 5 MiB by direct upload,
which a job of our own puts together and checks. Seconds run until the size by stat and the sha256
are the file's; API calls include polling and the removal of what the route leaves behind.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable

import trio
from sim_process import Simulator, running_simulator

from f7tfs.api.connect import open_cluster, token_source
from f7tfs.api.port import Cluster, Phase
from f7tfs.api.staging import StagingArea
from f7tfs.content.disk import sha256_of
from f7tfs.model import RemotePath, join, remote_path
from f7tfs.transfers.follow import follow
from f7tfs.transfers.pieces import PARALLEL

MIB = 1 << 20
SIZES = (6, 12, 20, 32, 64)
PIECE = 5 * MIB


async def staged(cluster: Cluster, storage: StagingArea, fd: int, target: RemotePath) -> list[str]:
    size = os.fstat(fd).st_size
    ticket = await cluster.stage_upload(target, size)
    ready = await cluster.progress(ticket)
    assert ready.parts is not None
    await storage.send_parts(ready.parts, fd, size)
    await follow(cluster, ticket, lambda now: now.phase is Phase.DONE, stall_timeout=600)
    return list(cluster.litter(ticket))


async def pieces(cluster: Cluster, storage: StagingArea, fd: int, target: RemotePath) -> list[str]:
    size, home = os.fstat(fd).st_size, remote_path(os.path.dirname(target))
    starts = list(range(0, size, PIECE))
    mark = uuid.uuid4().hex[:12]
    names = [join(home, f".f7tfs-{mark}-{number}") for number in range(len(starts))]
    waiting = iter(zip(starts, names, strict=True))

    async def work() -> None:
        for start, name in waiting:
            await cluster.upload(name, os.pread(fd, PIECE, start))

    async with trio.open_nursery() as nursery:
        for _ in range(PARALLEL):
            nursery.start_soon(work)
    digest = sha256_of(fd)
    ticket = cluster.plan_join(names, target, digest)
    await cluster.join(ticket)
    await follow(cluster, ticket, lambda now: now.phase is Phase.DONE, stall_timeout=600)
    return []


Way = Callable[[Cluster, StagingArea, int, RemotePath], Awaitable[list[str]]]


async def once(simulator: Simulator, way: Way, fd: int, digest: str) -> tuple[float, int]:
    info = simulator.info
    source = token_source(
        token_url=info["auth_token_url"],
        client_id=info["client_id"],
        client_secret=info["client_secret"],
    )
    async with open_cluster(
        url=info["firecrest_url"], token_source=source, system=simulator.system, api="v2"
    ) as (cluster, storage):
        target = remote_path(f"{simulator.scratch}/{uuid.uuid4().hex}")
        simulator.reset_calls()
        began = time.monotonic()
        left = await way(cluster, storage, fd, target)
        assert (await cluster.stat(target)).size == os.fstat(fd).st_size
        assert await cluster.checksum(target) == digest
        took = time.monotonic() - began
        for path in left:
            await cluster.stat(remote_path(path))  # as the mount does: looked at, then removed
            await cluster.remove(remote_path(path))
        calls = int(simulator.calls()["total"])
        await cluster.remove(target)
    return took, calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uplink", type=float, help="Mbit/s to API and object store together")
    parser.add_argument("--start", type=float, default=1.0, help="seconds until a job starts")
    parser.add_argument("--runs", type=int, default=3)
    wish = parser.parse_args()
    print(f"uplink {wish.uplink or 'unlimited'} Mbit/s, jobs start after {wish.start:g} s")
    print("  MiB   staged s  calls   pieces s  calls")
    with running_simulator(api="v2", ingest_sleep=60, start_delay=wish.start) as simulator:
        simulator.uplink(wish.uplink * 1e6 / 8 if wish.uplink else None)
        for size in SIZES:
            content = os.urandom(size * MIB)
            digest = hashlib.sha256(content).hexdigest()
            found: dict[str, list[tuple[float, int]]] = {"staged": [], "pieces": []}
            with tempfile.TemporaryFile() as file:
                file.write(content)
                file.flush()
                for _ in range(wish.runs):
                    for way in (staged, pieces):
                        found[way.__name__].append(
                            trio.run(once, simulator, way, file.fileno(), digest)
                        )
            cells = (
                f"{statistics.median(t for t, _ in runs):9.1f} "
                f"{statistics.median(c for _, c in runs):6.0f}"
                for runs in found.values()
            )
            print(f"{size:5} " + "  ".join(cells))


if __name__ == "__main__":
    main()
