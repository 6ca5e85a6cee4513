"""Where the cluster's file system makes no hard links: found out once, and nothing is lost by it
(Metadata; TAR.md, cautions). Through the tree, on both dialects; each test starts a new mount."""

from __future__ import annotations

import errno
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, place_of, tree_door
from doors import Door
from sim_process import Simulator, running_simulator
from t3_scenarios import refused

pytestmark = pytest.mark.simulator


@pytest.fixture(scope="module", params=["v1", "v2"])
def served(request: pytest.FixtureRequest) -> Iterator[Place]:
    with running_simulator(api=request.param, staging_interval=0.3, start_delay=0) as simulator:
        yield place_of(simulator)


@pytest.fixture
def simulator(served: Place) -> Iterator[Simulator]:
    assert served.simulator is not None
    yield served.simulator
    served.simulator.clear_faults()


@pytest.fixture
def directory(served: Place) -> str:
    name = f"d-{uuid.uuid4().hex[:10]}"
    served.far(served.directory).mkdir(name)
    return f"{served.directory}/{name}"


@pytest.fixture
def far(served: Place, directory: str) -> Any:
    return served.far(directory)


@pytest.fixture
def door(served: Place, directory: str, far: Any, tmp_path: Path) -> Iterator[Door]:
    with tree_door(served, directory, tmp_path) as made:
        yield made
    assert far.all_litter() == []


def is_v2(simulator: Simulator) -> bool:
    return bool(simulator.v2_url)


def made(simulator: Simulator) -> Counter[str]:
    """How often what was called since the last time, by the last word of the endpoint."""
    calls = simulator.calls()["calls"]
    simulator.reset_calls()
    return Counter({call.rpartition("/")[2]: count for call, count in calls.items()})


def tries(calls: Counter[str]) -> int:
    return calls["extract"]


def renames(calls: Counter[str]) -> int:
    """Renames without a link: v2's job, v1's call."""
    return calls["mv"] + calls["rename"]


@pytest.mark.parametrize("words", ["EPERM", "EXDEV"])
def test_a_refusal_is_found_out_once(
    door: Door, far: Any, simulator: Simulator, words: str
) -> None:
    """Metadata: "The capability to hard-link is probed once per mount and directory device; where
    it fails, the job is the fallback" (v1: the rename call)."""
    for number in range(3):
        far.write(f"file{number}", b"content %d" % number)
        far.symlink("file0", f"link{number}")
    door.listdir()
    simulator.refuse_links(words)
    made(simulator)
    for number in range(3):
        # v1 links only where its mv would follow a symlink at the target.
        target = f"new{number}" if is_v2(simulator) else f"link{number}"
        inode = far.stat(f"file{number}").st_ino
        door.rename(f"file{number}", target)
        assert far.stat(target).st_ino == inode
        assert far.read(target) == b"content %d" % number
        calls = made(simulator)
        assert tries(calls) == (1 if number == 0 else 0), calls
        assert renames(calls) == 1, calls
    if is_v2(simulator) or words == "EPERM":
        refused(errno.EPERM, door.link, "link2", "linked")
        assert tries(made(simulator)) == 0
    door.write("new", b"small")
    door.sync()
    assert far.read("new") == b"small"
    assert tries(made(simulator)) == 0


def test_link_where_none_are_made(door: Door, far: Any, simulator: Simulator) -> None:
    """Metadata: "where the cluster's file system refuses, EPERM"; asked once."""
    far.write("file", b"x")
    door.listdir()
    simulator.refuse_links("EPERM")
    made(simulator)
    refused(errno.EPERM, door.link, "file", "other")
    assert tries(made(simulator)) == 1
    refused(errno.EPERM, door.link, "file", "other")
    assert tries(made(simulator)) == 0
    assert far.names() == {"file"}


def test_only_links_across_directories_are_refused(
    door: Door, far: Any, simulator: Simulator
) -> None:
    """TAR.md: "some parallel file systems forbid hard links across directories (BeeGFS, AFS)":
    within a directory they are still made."""
    if not is_v2(simulator):
        pytest.skip("v1 renames by its own call")
    for name in ("a", "b", "c"):
        far.write(name, name.encode())
    far.mkdir("sub")
    door.listdir()
    simulator.refuse_links("EXDEV", across=True)
    made(simulator)
    for name in ("a", "b"):
        door.rename(name, f"sub/{name}")
        calls = made(simulator)
        assert (tries(calls), renames(calls)) == (1 if name == "a" else 0, 1), calls
    door.rename("c", "d")
    calls = made(simulator)
    assert (tries(calls), renames(calls)) == (1, 0), calls
    assert far.read("sub/a") == b"a" and far.read("sub/b") == b"b" and far.read("d") == b"c"


def test_a_refused_link_does_not_take_the_target_away(
    door: Door, far: Any, simulator: Simulator
) -> None:
    """Tenet 1. tar unlinks the file in the way before link(2) is refused; if the fallback then
    fails as well, nothing may be missing."""
    far.write("file", b"new")
    far.write("target", b"precious")
    if not is_v2(simulator):
        far.remove("target")
        far.symlink("precious", "target")
    before = far.snapshot()
    door.listdir()
    simulator.refuse_links("EPERM")
    fallback = "POST /filesystem/cluster/transfer/mv"
    if is_v2(simulator):
        body = '{"errorType": "error", "message": "no jobs today", "user": null}'
        simulator.faults(
            [{"match": fallback, "times": None, "action": {"status": 500, "body": body}}]
        )
        with pytest.raises(OSError):
            door.rename("file", "target")
        assert far.snapshot() == before
        simulator.clear_faults()
        simulator.refuse_links("EPERM")
    door.rename("file", "target")
    assert far.names() == {"target"} and far.read("target") == b"new"


def test_somebody_elses_file_says_nothing_about_the_device(
    door: Door, far: Any, simulator: Simulator
) -> None:
    """TAR.md: "or to others' files (`fs.protected_hardlinks`)": that is per file, and the target
    stays until it is known."""
    protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip()
    if os.getuid() != 0 or protected != "1" or not is_v2(simulator):
        pytest.skip("needs another owner, and v2")
    for name in ("theirs", "target", "mine"):
        far.write(name, name.encode())
    os.chown(far["theirs"], 0, 0)
    door.listdir()
    made(simulator)
    door.rename("theirs", "target")  # the job can: the directory is ours
    calls = made(simulator)
    assert (tries(calls), renames(calls)) == (1, 1), calls
    assert far.read("target") == b"theirs"
    door.rename("mine", "own")
    calls = made(simulator)
    assert (tries(calls), renames(calls)) == (1, 0), calls
    assert far.names() == {"target", "own"}


def test_what_worked_once_is_proven(door: Door, far: Any, simulator: Simulator) -> None:
    """A link that works is proven: replacing a file then costs no trial."""
    if not is_v2(simulator):
        pytest.skip("v1 renames by its own call")
    for name in ("a", "b", "c", "d"):
        far.write(name, name.encode())
    door.listdir()
    door.rename("a", "b")
    first = made(simulator)
    door.rename("c", "d")
    second = made(simulator)
    assert tries(first) == tries(second) == 1
    assert first["rm"] == second["rm"] + 1, "the trial's own name"
    assert far.names() == {"b", "d"} and far.read("b") == b"a" and far.read("d") == b"c"


def test_a_dirty_link_that_is_refused_later(door: Door, far: Any, simulator: Simulator) -> None:
    """Metadata: link(2) of a dirty file has already said yes: the name gets a copy of the content,
    and the next link on this device is refused at once."""
    door.announce("goes as a file of its own")
    simulator.refuse_links("EPERM")
    door.write("one", b"content")
    door.link("one", "two")
    assert door.stat("two").nlink == 2
    door.sync()
    assert far.names() == {"one", "two"}
    assert far.read("one") == far.read("two") == b"content"
    assert far.stat("one").st_ino != far.stat("two").st_ino
    assert door.stat("one").ino != door.stat("two").ino
    door.append("two", b"!")
    door.sync()
    assert (far.read("one"), far.read("two")) == (b"content", b"content!")
    door.write("three", b"x")
    refused(errno.EPERM, door.link, "three", "four")
