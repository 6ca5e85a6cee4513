"""Readers that wait for a file that does not come, and who is beside them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mounting import Mount
from waits import wait_until

from bench.figures import Figure, median
from bench.rig import MiB, Rig, rig

TRIES = 50
READY = b"ready" * 20_000


CAT = ("cat",)
# It handles the signal, so the kernel leaves it waiting: the mount itself has to notice.
HANDLES_IT = (sys.executable, "-c", "import sys; open(sys.argv[1], 'rb', buffering=0).read(1)")


@contextlib.contextmanager
def waiting_readers(
    made: Rig, mount: Mount, number: int, command: Sequence[str] = CAT
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Readers of the files stuck-0, stuck-1 …, whose staging does not end; all of them wait."""
    made.simulator.hold_staging(True)
    readers = [
        subprocess.Popen(
            [*command, str(mount.path / f"stuck-{one}")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in range(number)
    ]
    try:
        # Each file has its own: it begins when the reader's request has come to the daemon.
        wait_until(lambda: _staging(mount) == number, "the readers to wait", 60)
        yield readers
    finally:
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(10)
        made.simulator.hold_staging(False)


def _staging(mount: Mount) -> int:
    return sum(one["state"] == "staging" for one in mount.status()["transfers"])


def beside_stuck_readers(made: Rig, readers: int, tries: int) -> tuple[list[float], list[float]]:
    """Seconds of each `stat`, and of each open and read of a cached file. Every one of them is the
    daemon's to answer: no name is looked up twice, and the kernel has none of the pages."""
    for number in range(readers):
        made.file(f"stuck-{number}", 8 * MiB)
    made.folder("others")
    for number in range(tries):
        made.file(f"others/{number}", number)
    (made.file("cached", 1)).write_bytes(READY)
    stats, reads = [], []
    with made.mount().start() as mount:
        mount.call((mount.path / "cached").read_bytes)
        with waiting_readers(made, mount, readers) as waiting:
            mount.call(os.stat, mount.path / "others/0")  # the listing
            for number in range(tries):
                stats.append(mount.call(_stat, mount.path / f"others/{number}", number))
                reads.append(mount.call(_read, mount.path / "cached"))
            assert all(reader.poll() is None for reader in waiting), "a reader does not wait"
            assert _staging(mount) == readers
    return stats, reads


def _stat(path: Path, size: int) -> float:
    began = time.monotonic()
    assert os.stat(path).st_size == size
    return time.monotonic() - began


def _read(path: Path) -> float:
    began = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read(len(READY)) == READY
    return time.monotonic() - began


def stuck_row(rounds: int) -> list[Figure]:
    with rig() as made:
        stats, reads = beside_stuck_readers(made, 40, TRIES)
    return [
        Figure(
            f"{what}, slowest of {TRIES}", 1000 * max(times), 50, "ms",
            note=f"median {1000 * median(times):.1f}",
        )
        for what, times in (("stat", stats), ("read", reads))
    ]  # fmt: skip


def until_ctrl_c_ends(made: Rig, readers: int, command: Sequence[str] = CAT) -> list[float]:
    """Seconds from SIGINT to the end of a program that waits for staging, one after the other."""
    for number in range(readers):
        made.file(f"stuck-{number}", 8 * MiB)
    took = []
    with (
        made.mount().start() as mount,
        waiting_readers(made, mount, readers, command) as waiting,
    ):
        for reader in waiting:
            assert reader.poll() is None, "a reader does not wait"
            began = time.monotonic()
            reader.send_signal(signal.SIGINT)
            assert reader.wait(20) != 0
            took.append(time.monotonic() - began)
    return took


def ctrl_c_row(rounds: int) -> list[Figure]:
    with rig() as made:
        cat = until_ctrl_c_ends(made, rounds)
        handled = until_ctrl_c_ends(made, rounds, HANDLES_IT)
    return [
        Figure(f"cat, slowest of {rounds}", max(cat), 1, "s"),
        Figure(f"who handles the signal, slowest of {rounds}", max(handled), 1, "s"),
    ]
