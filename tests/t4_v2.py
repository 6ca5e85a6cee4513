"""FirecREST v2 on a real mount, with the recorded 60-second sleep of its ingest job switched on."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Place
from mounting import Mount
from t3_scenarios import refused
from waits import wait_until

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(180)]
MIB = 1 << 20


@pytest.fixture
def place(own_simulator: Callable[..., Place]) -> Place:
    """A v2 server as recorded: who misses the job's first look waits 60 s more."""
    return own_simulator(api="v2", ingest_sleep=60)


@pytest.fixture
def mount(place: Place) -> Iterator[Mount]:
    with place.mount(place.directory, writeback_delay=0.2) as mounted:
        mounted.start()
        yield mounted


def jobs(place: Place) -> int:
    """How many jobs of the scheduler the calls so far have made."""
    assert place.simulator is not None
    calls = place.simulator.calls()["calls"]
    return sum(
        count
        for call, count in calls.items()
        if call.startswith("POST") and ("/transfer/" in call or call.endswith("/jobs"))
    )


def test_a_rename_moves_no_bytes_and_needs_no_job(place: Place, mount: Mount) -> None:
    """Metadata: "v2 has no rename call: files … are renamed by a tar of one link and an rm of the
    old name, synchronously". 1 GiB, under 1 s."""
    far = place.far(place.directory)
    far.write("big", b"")
    with open(far["big"], "r+b") as file:
        file.truncate(1 << 30)
    inode = far.stat("big").st_ino
    mount.run("ls -l mnt")
    before = jobs(place)
    mount.call(os.rename, mount.path / "big", mount.path / "warm")  # our working directory is made
    began = time.monotonic()
    mount.call(os.rename, mount.path / "warm", mount.path / "moved")
    took = time.monotonic() - began
    assert far.names() == {"moved"}
    assert far.stat("moved").st_ino == inode
    assert jobs(place) == before
    assert took < 1.0, f"the rename took {took:.2f} s"


def test_a_save_in_vim_needs_no_job(place: Place, mount: Mount) -> None:
    """Writing: "one editor save is one upload"; on v2 without the scheduler."""
    far = place.far(place.directory)
    far.write("text", b"before\n")
    before = jobs(place)
    mount.run("vim -es -c '%s/before/after/' -c wq mnt/text")
    mount.sync()
    assert far.read("text") == b"after\n"
    assert jobs(place) == before


def test_20_mib_are_verified_within_10_seconds(place: Place, mount: Mount) -> None:
    """Upload routes: bytes are at the staging area before the ingest job looks for them."""
    content = os.urandom(20 * MIB)
    far = place.far(place.directory)
    mount.call((mount.path / "big").write_bytes, content, deadline=30.0)
    began = time.monotonic()
    mount.sync()
    took = time.monotonic() - began
    assert far.read("big") == content
    assert took < 10.0, f"verified {took:.1f} s after close"
    assert place.simulator is not None
    home = place.simulator.home
    wait_until(
        lambda: not [one for one in os.listdir(home) if one.startswith(".f7t_file_handling")],
        "the job's logs to go",
    )


@pytest.mark.parametrize("fault", ["removed", "forbidden", "cancelled"])
def test_a_failed_staged_upload_never_reads_as_success(
    place: Place, mount: Mount, fault: str
) -> None:
    """Writing: COMPLETED with its success line proves nothing (v2 FACTS §7): stuck or tried again,
    the reason shown, the content kept."""
    simulator = place.simulator
    assert simulator is not None
    far = place.far(place.directory)
    far.mkdir("dir")
    mount.announce("stuck", "again in", "EIO")
    mount.run("ls -l mnt/dir")
    content = os.urandom(8 * MIB)
    if fault == "cancelled":
        rule = {"match": "object-store PUT", "times": None, "action": {"status": 503}}
        simulator.faults([rule])
    else:
        simulator.hold_jobs(True)
    mount.call((mount.path / "dir/file").write_bytes, content, deadline=30.0)
    started = "POST /filesystem/{system}/transfer/upload"
    wait_until(lambda: jobs(place) > 0, f"{started} to be called", 30)
    if fault == "removed":
        far.rename("dir", "elsewhere")
    elif fault == "forbidden":
        far.chmod("dir", 0o555)
    if fault != "cancelled":
        simulator.hold_jobs(False)
    wait_until(lambda: _complaint(mount), "the reason to show", 60)
    assert mount.uploads()["items"], "it must not read as done"
    assert mount.call((mount.path / "dir/file").read_bytes, deadline=30.0) == content
    if fault == "removed":
        far.rename("elsewhere", "dir")
    elif fault == "forbidden":
        far.chmod("dir", 0o755)
    simulator.clear_faults()
    mount.call((mount.path / ".f7tfs/retry").write_text, "\n")
    mount.sync(120.0)
    assert far.read("dir/file") == content


def _complaint(mount: Mount) -> Any:
    items = mount.uploads()["items"]
    return items and items[0]["error"]


def test_rmdir_against_a_concurrent_creator(place: Place, mount: Mount) -> None:
    """Metadata: "`rmdir` is never a bare remote remove": never a file lost. The rounds are set by
    F7TFS_RMDIR_ROUNDS (1,000 in the endurance run)."""
    far = place.far(place.directory)
    rounds = int(os.environ.get("F7TFS_RMDIR_ROUNDS", "40"))
    lost = []
    for number in range(rounds):
        name = f"d{number}"
        mount.call(os.mkdir, mount.path / name)
        made = threading.Event()

        def create(directory: str = name, done: threading.Event = made) -> None:
            try:
                with open(far[directory] / "precious", "xb") as file:
                    file.write(b"precious")
                done.set()
            except OSError:
                pass  # the directory was gone first

        creator = threading.Timer(0.002 * (number % 20), create)
        creator.start()
        try:
            mount.call(os.rmdir, mount.path / name)
        except OSError as error:
            assert error.errno == errno.ENOTEMPTY
        creator.join()
        if made.is_set() and not far.exists(f"{name}/precious"):
            lost.append(name)
    assert not lost


def test_a_name_that_a_shell_would_run_never_leaves(place: Place, mount: Mount) -> None:
    """Names: a `'` makes v2 run a different shell command (v2 FACTS §2)."""
    simulator = place.simulator
    assert simulator is not None
    far = place.far(place.directory)
    canary = far["canary"]
    for name in (f"x'; touch {canary.name}; '", "it's"):
        refused(errno.EINVAL, mount.call, os.mkdir, mount.path / name)
        refused(errno.EINVAL, mount.call, (mount.path / name).write_bytes, b"x")
    assert not canary.exists()
    assert simulator.injections() == []
