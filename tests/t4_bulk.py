"""SEMANTICS "Upload routes": many small files in few calls, each verified, none lost."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sim_process import Simulator
from waits import wait_until

pytestmark = pytest.mark.simulator
APIS = ("v1", "v2")


def grow(place: Path, directories: int, files: int, size: int = 2048) -> None:
    """A tree of small files with content, modes and times of their own."""
    chance = random.Random(directories * files)
    place.mkdir()
    for number in range(directories):
        folder = place / f"dir {number:02}"
        folder.mkdir()
        for other in range(files):
            file = folder / f"file-{other:03}"
            file.write_bytes(chance.randbytes(size))
            file.chmod(0o755 if other % 7 == 0 else 0o644)
            os.utime(file, ns=(10**18, 10**18 + chance.randrange(10**17)))


def tree_of(place: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, whole second and content of every file, by its path."""
    return {
        str(file.relative_to(place)): (
            file.stat().st_mode, int(file.stat().st_mtime), file.read_bytes(),
        )
        for file in sorted(place.rglob("*"))
        if file.is_file()
    }  # fmt: skip


def calls(simulator: Simulator) -> dict[str, int]:
    return dict(simulator.calls()["calls"])


@pytest.mark.parametrize("api", APIS)
def test_a_thousand_small_files_cost_few_calls(
    own_simulator: Callable[..., Any], tmp_path: Path, api: str
) -> None:
    """Issue 5: "`cp -r` of 1,000 files of 2 KiB in 20 directories until verified on the cluster:
    ≤ 80 API calls on v1 and on v2, mkdirs included"."""
    place = own_simulator(api=api)
    source = tmp_path / "source"
    grow(source, 20, 50)
    # However slow this machine is, the copy is over before the first archive is cut.
    with place.mount(place.directory, writeback_delay=60) as mount:
        mount.start()
        place.simulator.reset_calls()
        began = time.monotonic()
        mount.run(f"cp -r {source} mnt/copy", timeout=120)
        copied = time.monotonic()
        mount.sync(deadline=120)
        counted = calls(place.simulator)
        print(f"{api}: {sum(counted.values())} calls: {counted}")
        print(f"cp {copied - began:.1f} s, then {time.monotonic() - copied:.1f} s")
        far = Path(place.directory) / "copy"
        assert {path: content for path, (_, _, content) in tree_of(far).items()} == {
            path: content for path, (_, _, content) in tree_of(source).items()
        }
        assert sum(counted.values()) <= 80
        assert mount.uploads()["pending"] == 0
        mount.assert_quiet()


def seconds_of_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_what_waits_for_its_next_try_costs_nothing(own_simulator: Callable[..., Any]) -> None:
    """Files that failed, and were closed longer than ten delays ago, are looked at again when
    their next try is due, not all the time."""
    place = own_simulator()
    with place.mount(place.directory, writeback_delay=0.05) as mount:
        mount.start()
        mount.announce("an archive of")
        away = {"status": 400, "headers": {"X-Machine-Not-Available": "down"}, "body": "{}"}
        rule = {"match": "POST /utilities/extract", "times": None, "action": away}
        (ident,) = place.simulator.faults([rule])
        mount.run("for n in 1 2 3 4; do echo $n > mnt/file-$n; done")
        wait_until(lambda: place.simulator.fired().get(ident) == 3, "the third try")
        time.sleep(0.5)  # the archive is removed; the next try comes 4 s after the third
        before, began = seconds_of_cpu(mount.pid), time.monotonic()
        time.sleep(1.0)  # what is measured
        assert seconds_of_cpu(mount.pid) - before < 0.2 * (time.monotonic() - began)
        place.simulator.clear_faults()
        mount.run("echo another > mnt/another")
        wait_until((Path(place.directory) / "another").exists, "it does not wait")
        mount.sync()
        assert (Path(place.directory) / "file-4").read_text() == "4\n"
