"""What looking around costs the cluster."""

from __future__ import annotations

import os

from bench.figures import Figure
from bench.rig import LISTING, STAGING, MiB, Rig, rig


def calls_of_a_walk(made: Rig, directories: int, files: int) -> int:
    """API calls of `ls -lR` over a tree that nobody has looked at."""
    made.folder("tree")
    for number in range(directories):
        made.folder(f"tree/d{number}")
        for other in range(files):
            made.file(f"tree/d{number}/f{other}", 10 * other)
    with made.mount().start() as mount:
        made.simulator.reset_calls()
        done = mount.run("ls -lR mnt/tree", timeout=300)
        lines = [line for line in done.stdout.splitlines() if line.startswith(("-", "d"))]
        assert len(lines) == directories * (files + 1)
        return made.calls


def walk_row(rounds: int) -> list[Figure]:
    with rig() as made:
        return [Figure("API calls", calls_of_a_walk(made, 200, 50), 10)]


def calls_of_sniffing(made: Rig, files: int, size: int) -> tuple[int, int, int]:
    """Listings, stagings, and all API calls of a file manager's look at large files whose names
    tell no type."""
    made.folder("plain")
    for number in range(files):
        made.file(f"plain/file{number}", size)
    with made.mount().start() as mount:
        mount.call(os.listdir, mount.path)  # the file manager came from there
        made.simulator.reset_calls()
        gio = ["gio", "list", "-a", "standard::content-type", str(mount.path / "plain")]
        done = mount.run(gio, timeout=300)
        assert done.stdout.count("standard::content-type=") == files, done.stdout[-500:]
        return made.calls_of(LISTING), made.calls_of(STAGING), made.calls


def sniff_row(rounds: int) -> list[Figure]:
    with rig() as made:
        listings, stagings, calls = calls_of_sniffing(made, 200, 8 * MiB)
    return [
        Figure("listings", listings, 1),
        Figure("stagings", stagings, 0, note=f"{calls} calls in all"),
    ]
