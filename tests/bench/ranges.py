"""Cold files: what leaves the object store, how fast, and how soon."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mounting import Mount

from bench.figures import Figure, median, spread
from bench.rig import (
    STAGING,
    GiB,
    Kept,
    MiB,
    Rig,
    read_at,
    rig,
    rig_with_web_server,
    seconds,
    timed,
    wait_until_idle,
)

MARK = b"what is looked for"
RECORDED = 0.25, 1.15  # seconds that v1 took to stage up to 150 MB (v1 FACTS §7)


def one_block(made: Rig, size: int, offset: int) -> int:
    """Bytes that leave the object store for 4 KiB at `offset` of a file that nobody has read."""
    path = made.file("large", size)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(MARK)
    with made.mount().start() as mount:
        made.simulator.reset_calls()
        found = mount.call(read_at, mount.path / "large", offset, 4096)
        assert found.startswith(MARK)
        assert len(found) == 4096
        wait_until_idle(mount)
    calls = made.simulator.calls()
    assert calls["calls"][STAGING] == 1
    return int(calls["object_store"]["bytes_out"])


def offset_row(rounds: int) -> list[Figure]:
    with rig() as made:
        out = one_block(made, GiB, 900 * MiB)
    return [Figure("left the object store", out / MiB, 8, "MiB")]


@contextmanager
def staged_already(made: Rig, size: int) -> Iterator[tuple[Mount, Kept, str]]:
    """A mount, not running, whose cache has the link of `large` and its last block; with the link.
    The block is one of `size` / MiB: it weighs nothing."""
    made.file("large", size, random=True)
    with made.mount() as mount:
        mount.start()
        mount.call(read_at, mount.path / "large", size - 4096, 4096)
        wait_until_idle(mount)
        assert mount.umount("--now").returncode == 0
        labels = [json.loads(file.read_bytes()) for file in mount.folder.glob("cache/**/*.json")]
        (label,) = [label for label in labels if label["path"].endswith("/large")]
        made.simulator.reset_calls()
        yield mount, Kept(mount), label["snapshot"]["link"]
        assert made.calls_of(STAGING) == 0, "the kept link was not used"


def throughput_row(rounds: int) -> list[Figure]:
    ours, curls = [], []
    with rig_with_web_server() as made, staged_already(made, GiB) as (mount, kept, link):
        target = mount.folder / "curl"
        for _ in range(rounds):
            curls.append(seconds(["curl", "-sf", "-o", str(target), link]))
            assert target.stat().st_size == GiB
            target.unlink()
            kept.restore()
            mount.start()
            mount.run("ls mnt")
            dd = ["dd", f"if={mount.path / 'large'}", "of=/dev/null", "bs=1M"]
            ours.append(seconds(dd))
            if len(ours) == rounds:
                seconds(["cmp", str(made.directory / "large"), str(mount.path / "large")])
            assert mount.umount("--now").returncode == 0
    ratios = [curl / our for curl, our in zip(curls, ours, strict=True)]
    speed = f"curl {GiB / median(curls) / 1e6:.0f} MB/s, dd {GiB / median(ours) / 1e6:.0f} MB/s"
    note = f"{speed}; {spread(ratios)}"
    return [Figure("of curl's throughput", median(ratios), 0.8, "x", at_least=True, note=note)]


def after_staging(made: Rig, mount: Mount, path: Path, staging: float) -> float:
    """Seconds from open to the first 4 KiB of a file whose staging takes so long, without those
    from the arrival of the request at the server to the link's being ready."""
    simulator = made.simulator
    simulator.reset_calls()
    simulator.hold_staging(True)
    release = threading.Timer(staging, simulator.hold_staging, [False])
    began = time.time()
    release.start()
    mount.call(read_at, mount.path / path.name, 0, 4096)
    whole = time.time() - began
    release.join()
    log = simulator.log(1000)
    (asked,) = [one for one in log if f"{one['method']} {one['path']}" == STAGING]
    (task,) = {one["path"] for one in log if one["path"].startswith("/tasks/")}
    return whole - (simulator.staged_at(task.rpartition("/")[2]) - asked["time"])


def first_byte_row(rounds: int) -> list[Figure]:
    known = []
    with rig_with_web_server() as made:
        with staged_already(made, 256 * MiB) as (mount, kept, _):
            for _ in range(rounds):
                kept.restore()
                mount.start()
                mount.run("ls mnt")
                path = mount.path / "large"
                known.append(timed(lambda path=path: mount.call(read_at, path, 64 * MiB, 4096)))
                assert mount.umount("--now").returncode == 0
        number = max(8, rounds)
        first, last = RECORDED
        durations = [first + one * (last - first) / number for one in range(number)]
        files = [made.file(f"new-{one}", 8 * MiB) for one in range(number)]
        with made.mount().start() as mount:
            mount.run("ls mnt")
            anew = [
                after_staging(made, mount, path, staging)
                for path, staging in zip(files, durations, strict=True)
            ]
    known, anew = [1000 * t for t in known], [1000 * t for t in anew]
    return [
        Figure("with a kept link", median(known), 50, "ms", note=spread(known, ".0f")),
        Figure("staged for it", median(anew), 50, "ms", note=spread(anew, ".0f")),
    ]
