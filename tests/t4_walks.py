"""`ls -lR`, `find` and `du` through a real mount: right, and as few calls as promised."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from mounting import Mount
from sim_process import Simulator

pytestmark = pytest.mark.simulator
DIRECTORIES, FILES = 200, 50


def grow(far: Any, directories: int = DIRECTORIES, files: int = FILES) -> None:
    for number in range(directories):
        folder = far[f"d{number:03}"]
        folder.mkdir()
        for other in range(files):
            (folder / f"file-{other:02}").write_bytes(b"x" * (number % 7))


def recursive(simulator: Simulator) -> list[str]:
    return [
        one["params"].get("targetPath") or one["params"]["path"]
        for one in simulator.log(10000)
        if "recursive" in one["params"]
    ]


def calls(simulator: Simulator) -> int:
    return sum(simulator.calls()["calls"].values())


@pytest.mark.v1
@pytest.mark.parametrize(
    "tool",
    ["ls -lR {}", "find {} -printf '%y %s %m %TY-%Tm-%Td %f\\n'", "du -a --apparent-size {}"],
    ids=["ls", "find", "du"],
)
def test_a_walk_costs_few_calls(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator, tool: str
) -> None:
    """Issue 4: "`ls -lR` over 200 directories of 50 files, cold, v1: ≤ 10 API calls"."""
    grow(far)
    mount = mount_with(**{"jobs.enabled": "false"})
    simulator.reset_calls()
    seen = mount.run(tool.format("mnt")).stdout
    cost = calls(simulator)
    print(f"{tool.split()[0]}: {cost} calls, {simulator.calls()['calls']}")
    names = sum(line.rstrip().rpartition("/")[2].count("file-") for line in seen.splitlines())
    assert names == DIRECTORIES * FILES
    assert cost <= 10
    assert recursive(simulator) == [far.directory]
    # The same again, and every name and size by itself: nothing more is asked.
    assert mount.run(tool.format("mnt")).stdout == seen
    for number in (0, 77, 199):
        status = mount.call(os.lstat, mount.path / f"d{number:03}" / "file-49")
        assert status.st_size == number % 7
    assert calls(simulator) == cost


@pytest.mark.v1
def test_what_ls_shows_is_what_is_there(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator
) -> None:
    """Names, sizes, modes and times that came ahead, against the disk."""
    grow(far, 20, 3)
    for name in ("ünï☃", "sp ace", "#%$~"):
        far[f"d011/{name}"].write_bytes(b"12345")
        os.utime(far[f"d011/{name}"], (1_700_000_000, 1_700_000_000))
        far[f"d012/{name}"].mkdir()
    far["d013/file-00"].chmod(0o640)
    far.symlink("../d001", "d014/link")
    mount = mount_with(**{"jobs.enabled": "false"})
    show = (
        "find . -mindepth 1 ! -type d -printf '%y %s %m %TY-%Tm-%Td %TH:%TM %l %p\\n'"
        " -o -printf '%y %m %p\\n'"
    )
    here = mount.run(f"cd mnt && {show} | sort").stdout
    there = mount.run(f"cd '{far.directory}' && {show} | sort").stdout
    assert here.splitlines() == there.splitlines()
    assert len(recursive(simulator)) == 1


@pytest.mark.v1
def test_looking_around_by_hand(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator
) -> None:
    """A few commands, however fast, are no reason to list a home recursively."""
    grow(far, 12, 2)
    mount = mount_with(**{"jobs.enabled": "false"})
    mount.run("ls mnt; ls -l mnt/d003; ls -la mnt/d007; cat mnt/d001/file-00; ls mnt/d005")
    assert recursive(simulator) == []


@pytest.mark.v1
def test_a_tree_that_is_removed(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator
) -> None:
    """rm -r while the tree is listed as a whole: nothing comes back, nothing stays."""
    grow(far, 12, 2)
    for number in range(12):
        far._own(f"d{number:03}")
    mount = mount_with(**{"jobs.enabled": "false"})
    mount.run('rm -r mnt/d0*; test -z "$(ls mnt)"')
    mount.sync()
    assert far.names() == set()


def test_a_walk_on_v2(own_simulator: Callable[..., Any]) -> None:
    """Metadata: "On v2 recursive listings are never used", and no directory is listed twice."""
    place = own_simulator(api="v2")
    far = place.far(place.directory)
    grow(far, 60, 5)
    with place.mount(place.directory, **{"jobs.enabled": "false"}).start() as mount:
        place.simulator.reset_calls()
        assert mount.run("ls -lR mnt").stdout.count("file-") == 300
        assert recursive(place.simulator) == []
        assert calls(place.simulator) <= 61 + 4
        mount.assert_quiet()
