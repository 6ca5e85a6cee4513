"""Files that were read before: from the kernel's pages, and from the disk after a remount."""

from __future__ import annotations

import os
from pathlib import Path

from mounting import Mount

from bench.figures import Figure, median, spread
from bench.passthrough import passthrough
from bench.rig import (
    GiB,
    KiB,
    Rig,
    bytes_read_by,
    rig_with_web_server,
    seconds,
    touch_free_pages,
    wait_until_idle,
)


def fetch(mount: Mount, name: str) -> None:
    """Until all of it is in the cache, and durable: the mount is at rest."""
    mount.call(seconds, ["cat", str(mount.path / name)], deadline=180)
    wait_until_idle(mount)


def asked_by_reread(made: Rig, size: int, times: int) -> list[int]:
    """Bytes that the daemon has read for each more, complete reading through a new open. Pages
    that the machine took back meanwhile are asked for again, whoever serves them."""
    made.file("file", size, random=True)
    with made.mount().start() as mount:
        fetch(mount, "file")
        asked = []
        for _ in range(times):
            before = bytes_read_by(mount.pid)
            mount.call(seconds, ["cp", str(mount.path / "file"), "/dev/null"])
            asked.append(bytes_read_by(mount.pid) - before)
        return asked


def reread_row(rounds: int) -> list[Figure]:
    ours, theirs, asked = [], [], []
    with rig_with_web_server() as made:
        source = made.file("file", GiB, random=True)
        with made.mount().start() as mount:
            fetch(mount, "file")
            plain = _copy(source, mount.folder / "plain")
            for _ in range(rounds):
                theirs.append(seconds(["cp", str(plain), "/dev/null"]))
                before = bytes_read_by(mount.pid)
                ours.append(mount.call(seconds, ["cp", str(mount.path / "file"), "/dev/null"]))
                asked.append(bytes_read_by(mount.pid) - before)
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    return [
        Figure(
            "of cp on the local disk", median(ratios), 0.6, "x", at_least=True, note=spread(ratios)
        ),
        # One open costs some hundred bytes of requests. The median: in a round before which the
        # machine took pages back (fincore shows it of a plain file), those are read again.
        Figure(
            "read by the daemon",
            median(asked) / KiB,
            64,
            "KiB",
            note="each round: " + spread([one / KiB for one in asked], ".1f"),
        ),
    ]


def calls_of_reread_after_remount(made: Rig, size: int) -> dict[str, int]:
    """The API calls of a complete reading from the disk cache, without those of mounting."""
    made.file("file", size, random=True)
    with made.mount().start() as mount:
        fetch(mount, "file")
        mount.restart()
        made.simulator.reset_calls()
        mount.call(seconds, ["cat", str(mount.path / "file")])
        assert made.simulator.calls()["object_store"]["GET"] == 0
        return dict(made.simulator.calls()["calls"])


def remount_row(rounds: int) -> list[Figure]:
    ours, theirs, from_disk, calls = [], [], [], []
    bare: dict[str, list[float]] = {"pread": [], "mapping": []}
    with rig_with_web_server() as made:
        made.file("file", GiB, random=True)
        with made.mount().start() as mount:
            fetch(mount, "file")
            mount.umount("--now")
            files = [file for file in mount.folder.glob("cache/**/*") if file.is_file()]
            (cached,) = [file for file in files if file.stat().st_size == GiB]

            def again() -> float:
                mount.start()
                made.simulator.reset_calls()
                touch_free_pages()  # the kernel keeps what is read through the mount once more
                took = mount.call(seconds, _dd(mount.path / "file"))
                calls.append(made.simulator.calls()["calls"])
                assert mount.umount("--now").returncode == 0
                return took

            for _ in range(rounds):
                seconds(_dd(cached))  # its pages are in memory on both sides
                theirs.append(seconds(_dd(cached)))
                ours.append(again())
                for how, taken in bare.items():
                    with passthrough(cached, how) as file:
                        touch_free_pages()
                        taken.append(seconds(_dd(file)))
                drop_pages(cached)
                disk = seconds(_dd(cached))
                drop_pages(cached)
                from_disk.append(disk / again())
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    floors = [one / our for one, our in zip(bare["pread"], ours, strict=True)]
    reach = ", ".join(
        f"{how} {median([their / one for their, one in zip(theirs, taken, strict=True)]):.2f}"
        for how, taken in bare.items()
    )
    speed = f"{GiB / median(theirs) / 1e6:.0f} and {GiB / median(ours) / 1e6:.0f} MB/s"
    note = f"{speed}; {spread(ratios)}; with the file's pages dropped: {median(from_disk):.2f}"
    most = max(calls, key=lambda counted: sum(counted.values()))
    return [
        Figure("of the local disk", median(ratios), 0.5, "x", at_least=True, note=note),
        Figure(
            "of a bare pyfuse3 passthrough of that file",
            median(floors),
            0.9,
            "x",
            at_least=True,
            note=f"of the local disk such a passthrough reaches by {reach}",
        ),
        Figure("API calls", sum(most.values()), 1, note=", ".join(sorted(most))),
    ]


def _dd(path: Path) -> list[str]:
    return ["dd", f"if={path}", "of=/dev/null", "bs=1M"]


def drop_pages(path: Path) -> None:
    """The kernel forgets what it holds of a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _copy(source: Path, target: Path) -> Path:
    seconds(["cp", str(source), str(target)])
    seconds(["cat", str(target)])
    return target
