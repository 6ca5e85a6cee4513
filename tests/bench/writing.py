"""Files written into the mount: until close() returns, and until the object store has them."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mounting import Mount

from bench.depot import Depot, Taken, rig_with_depot
from bench.figures import Figure, median, spread
from bench.passthrough import passthrough
from bench.rig import GiB, MiB, Rig, data_process, peak_memory, rig, seconds, touch_free_pages

PATIENT = 600.0  # seconds, for what writes gigabytes


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """On the spool's disk."""
    made = Path(tempfile.mkdtemp(prefix="f7tfs-bench-", dir="/var/tmp"))
    made.chmod(0o711)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def random_file(path: Path, size: int) -> Path:
    with open(path, "wb") as file:
        for _ in range(size // MiB):
            file.write(os.urandom(MiB))
        os.fsync(file.fileno())
    return path


# Until close() returns.


def copy_in_row(rounds: int) -> list[Figure]:
    ours, theirs, bare = [], [], []
    with rig() as made, made.mount(writeback_delay=3600).start() as mount:
        source, plain = random_file(mount.folder / "source", GiB), mount.folder / "plain"

        def to_disk() -> float:
            touch_free_pages()
            took = seconds(["cp", str(source), str(plain)]) + seconds(["sync", str(plain)])
            plain.unlink()
            os.sync()
            return took

        def through(target: Path) -> float:
            touch_free_pages()
            took = mount.call(seconds, ["cp", str(source), str(target)], deadline=PATIENT)
            mount.call(target.unlink)  # before it is due
            os.sync()
            return took

        with passthrough(mount.folder / "bare", "pwrite") as least:
            to_disk()  # the first one finds no free pages yet
            for _ in range(rounds):
                theirs.append(to_disk())
                ours.append(through(mount.path / "file"))
                bare.append(through(least))
        assert mount.umount().returncode == 0
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    floors = [one / our for one, our in zip(bare, ours, strict=True)]
    reach = median([their / one for their, one in zip(theirs, bare, strict=True)])
    speed = f"{GiB / median(theirs) / 1e6:.0f} and {GiB / median(ours) / 1e6:.0f} MB/s"
    note = f"until close returns, against cp and sync: {speed}; {spread(ratios)}"
    return [
        Figure("of cp and fsync", median(ratios), 0.6, "x", at_least=True, note=note),
        Figure(
            "of a bare pyfuse3 passthrough that syncs at close",
            median(floors),
            1.0,
            "x",
            at_least=True,
            note=f"of cp and fsync such a passthrough reaches {reach:.2f}; {spread(floors)}",
        ),
    ]


# Until the object store has answered.


def send_by_curl(depot: Depot, source: Path) -> None:
    """The same form: as many fields, about as long."""
    fields = {
        "key": "0" * 32 + "/curl", "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": "c" * 60, "x-amz-date": "20261124T000000Z", "policy": "p" * 400,
        "x-amz-signature": "s" * 64,
    }  # fmt: skip
    words = [word for name, value in fields.items() for word in ("-F", f"{name}={value}")]
    seconds(["curl", "-sSf", *words, "-F", f"file=@{source}", f"{depot.origin}/s3/curl"], PATIENT)


def drained(made: Rig, depot: Depot, mount: Mount, source: Path, name: str) -> Taken:
    """A file of the mount, until it is on the cluster; what its form told."""
    mount.call(seconds, ["cp", str(source), str(mount.path / name)], deadline=PATIENT)
    touch_free_pages()
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(mount.sync, PATIENT)
        taken = depot.next(PATIENT)
        assert taken.size == source.stat().st_size
        made.simulator.arrived(taken.bucket, taken.key, taken.size)
        synced.result(PATIENT)
    assert (made.directory / name).stat().st_size == taken.size
    return taken


def _is_the_same(taken: Taken, source: Path) -> bool:
    """Whether what was sent is the file, byte for byte."""
    assert taken.file is not None
    with open(taken.file, "rb") as body, open(taken.file.with_suffix(".cut"), "wb") as cut:
        body.seek(taken.start)
        shutil.copyfileobj(body, cut, MiB)
        cut.truncate(taken.size)
    return filecmp.cmp(source, cut.name, shallow=False)


def drain_ratios(rounds: int, size: int, *, discards: bool) -> tuple[list[float], str]:
    ours, theirs = [], []
    with (
        folder() as place,
        rig_with_depot(place, discards=discards) as (made, depot),
        made.mount(writeback_delay=3600).start() as mount,
    ):
        source = random_file(mount.folder / "source", size)

        def forget(taken: Taken) -> None:
            if taken.file is not None:
                taken.file.unlink()
            os.sync()

        for number in range(rounds + 1):
            touch_free_pages()
            send_by_curl(depot, source)
            theirs.append(depot.next())
            forget(theirs[-1])
            ours.append(drained(made, depot, mount, source, f"file-{number}"))
            if number == 0 and not discards:
                assert _is_the_same(ours[-1], source), "other bytes than those of the file"
            forget(ours[-1])
            mount.call((mount.path / f"file-{number}").unlink)
        assert data_process(mount), "it did not go through the data process"
    # The first round finds no free pages and no process yet.
    pairs = [(one.seconds, two.seconds) for one, two in zip(theirs, ours, strict=True)][1:]
    ratios = [their / our for their, our in pairs]
    fast = [size / median([pair[side] for pair in pairs]) / 1e6 for side in (0, 1)]
    note = f"first byte to answer, by the store's log: {fast[0]:.0f} and {fast[1]:.0f} MB/s"
    return ratios, f"{note}; {spread(ratios)}"


def drain_row(rounds: int) -> list[Figure]:
    found = []
    for what, discards, bar in (
        ("of curl -F to a store that writes to disk", False, 1.0),
        ("of curl -F to one that discards", True, 0.5),
    ):
        ratios, note = drain_ratios(rounds, GiB, discards=discards)
        found.append(Figure(what, median(ratios), bar, "x", at_least=True, note=note))
    return found


# Memory.


def peaks(made: Rig, depot: Depot, sizes: list[int]) -> tuple[int, int]:
    """Of the daemon and of the data process, in bytes, after files of zeros went through."""
    with made.mount().start() as mount:
        for number, size in enumerate(sizes):
            target = mount.path / f"huge-{number}"
            dd = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={size // MiB}"]
            mount.call(seconds, dd, PATIENT, deadline=PATIENT)
            taken = depot.next(PATIENT)
            assert taken.size == size
            made.simulator.arrived(taken.bucket, taken.key, taken.size)
            mount.sync(PATIENT)
            mount.call(target.unlink)
        mover = data_process(mount)
        assert mover, "the data process is not there"
        return peak_memory(mount.pid), peak_memory(mover)


def memory_row(rounds: int) -> list[Figure]:
    with folder() as place, rig_with_depot(place, discards=True) as (made, depot):
        daemon, mover = peaks(made, depot, [5 * GiB - MiB] * 2)
    note = f"daemon {daemon / MiB:.0f}, data process {mover / MiB:.0f}; v1's forms take 5 GiB"
    return [Figure("at most, both processes", (daemon + mover) / MiB, 150, "MiB", note=note)]
