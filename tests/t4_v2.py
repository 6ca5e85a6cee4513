"""FirecREST v2 on a real mount, with the recorded 60-second sleep of its ingest job switched on."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Place, place_of
from mounting import Mount
from sim_process import Simulator, running_simulator
from t3_scenarios import refused
from waits import wait_until

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(180)]
MIB = 1 << 20
COMPUTE = "/compute/{}/jobs"


@pytest.fixture(scope="module")
def recorded() -> Iterator[Place]:
    """A v2 server as recorded: who misses the job's first look waits 60 s more."""
    with running_simulator(api="v2", ingest_sleep=60) as simulator:
        yield place_of(simulator)


@pytest.fixture
def place(recorded: Place) -> Iterator[Place]:
    assert recorded.simulator is not None
    yield recorded
    recorded.simulator.clear_faults()
    recorded.simulator.hold_jobs(False)
    recorded.simulator.room(None)


@pytest.fixture
def simulator(place: Place) -> Simulator:
    assert place.simulator is not None
    return place.simulator


def jobs(place: Place) -> int:
    """How many jobs of the scheduler the calls so far have made."""
    assert place.simulator is not None
    calls = place.simulator.calls()["calls"]
    return sum(
        count
        for call, count in calls.items()
        if call.startswith("POST") and ("/transfer/" in call or call.endswith("/jobs"))
    )


def test_a_rename_moves_no_bytes_and_needs_no_job(place: Place, mount: Mount, far: Any) -> None:
    """Metadata: "v2 has no rename call: files … are renamed by a tar of one link and an rm of the
    old name, synchronously". 1 GiB, under 1 s."""
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


def test_a_save_in_vim_needs_no_job(place: Place, mount: Mount, far: Any) -> None:
    """Writing: "one editor save is one upload"; on v2 without the scheduler."""
    far.write("text", b"before\n")
    before = jobs(place)
    mount.run("vim -es -c '%s/before/after/' -c wq mnt/text")
    mount.sync()
    assert far.read("text") == b"after\n"
    assert jobs(place) == before


def test_20_mib_are_verified_within_10_seconds(
    mount: Mount, far: Any, simulator: Simulator
) -> None:
    """Upload routes: bytes are at the staging area before the ingest job looks for them."""
    content = os.urandom(20 * MIB)
    mount.call((mount.path / "big").write_bytes, content, deadline=30.0)
    began = time.monotonic()
    mount.sync()
    took = time.monotonic() - began
    assert far.read("big") == content
    assert took < 10.0, f"verified {took:.1f} s after close"
    wait_until(lambda: not logs(simulator), "the job's logs to go")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("removed", "No such file or directory"),
        ("forbidden", "Permission denied"),
        ("quota", "Disk quota exceeded"),
        ("disk", "No space left on device"),
    ],
)
def test_a_failed_staged_upload_never_reads_as_success(
    place: Place, mount: Mount, far: Any, simulator: Simulator, fault: str, words: str
) -> None:
    """Failure: "Permanent (EACCES, quota, missing parent) → *stuck*: content stays readable in the
    mount and safe in the spool, the reason is in the xattr, `f7tfs status`, the log". The job ends
    COMPLETED with its success line all the same (v2 FACTS §7)."""
    far.mkdir("dir")
    far.write("dir/file.1", b"precious")
    mount.announce("is stuck", "EIO: stuck")
    mount.run("ls -l mnt/dir")
    content = os.urandom(8 * MIB)
    simulator.hold_jobs(True)
    before = jobs(place)
    mount.call((mount.path / "dir/file").write_bytes, content, deadline=30.0)
    wait_until(lambda: jobs(place) > before, "the ingest job to be made", 30)
    if fault == "removed":
        far.rename("dir", "elsewhere")
    elif fault == "forbidden":
        far.chmod("dir", 0o555)
    else:
        simulator.room(3 * MIB, words)
    simulator.hold_jobs(False)
    refused(errno.EIO, mount.sync)
    assert jobs(place) == before + 1, "it is not tried again by itself"
    shows_stuck(mount, "dir/file", words, content)
    if fault == "removed":
        far.rename("elsewhere", "dir")
    elif fault == "forbidden":
        far.chmod("dir", 0o755)
    else:
        # Nothing half of ours takes up the room that somebody is about to make.
        wait_until(lambda: not rest(far, "dir"), "what is left of it to go")
        simulator.room(None)
    mount.call((mount.path / ".f7tfs/retry").write_text, "\n")
    mount.sync(120.0)
    assert far.read("dir/file") == content
    assert far.read("dir/file.1") == b"precious"
    assert far.names("dir") == {"file", "file.1"}
    wait_until(lambda: not rest(far, "dir"), "our litter to go")
    wait_until(lambda: not logs(simulator), "the jobs' logs to go")


def shows_stuck(mount: Mount, name: str, words: str, content: bytes) -> None:
    (item,) = mount.uploads()["items"]
    assert item["state"] == "stuck"
    assert words in item["error"]
    path = mount.path / name
    assert mount.call(path.read_bytes, deadline=30.0) == content
    assert [file.read_bytes() for file in mount.spool_files()] == [content]
    assert mount.call(os.getxattr, path, "user.f7tfs.state") == b"stuck"
    assert words.encode() in mount.call(os.getxattr, path, "user.f7tfs.error")
    assert words in mount.f7tfs("status", str(mount.path)).stdout
    assert any(words in line and "is stuck" in line for line in mount.log().splitlines())


def rest(far: Any, path: str = "") -> list[str]:
    """Files of f7tfs' own making; its working directory stays until the end of the mount."""
    return [one for one in far.litter(path) if not far.is_directory(f"{path}/{one}".lstrip("/"))]


def logs(simulator: Simulator) -> list[str]:
    """What transfer jobs left in the home directory."""
    return [one for one in os.listdir(simulator.home) if one.startswith(".f7t_file_handling")]


def cancel_ingest(simulator: Simulator, state: str) -> None:
    """scancel, by a person or an administrator, of the one transfer that waits or runs."""
    where = COMPUTE.format(simulator.system)

    def found() -> str:
        _, _, answer = simulator.v2("GET", where, {"name": "IngressFileTransfer"})
        active = [one["jobId"] for one in answer["jobs"] if one["status"]["state"] == state]
        return active[0] if active else ""

    job = wait_until(found, f"an ingest job that is {state}")
    assert simulator.v2("DELETE", f"{where}/{job}")[0] == 204


def test_a_waiting_transfer_that_is_cancelled_again_and_again(
    place: Place, mount: Mount, far: Any, simulator: Simulator
) -> None:
    """Failure: "a transfer that somebody cancels is tried again with a new job twice, then it is
    stuck"."""
    mount.announce("is stuck", "again in", "EIO: stuck")
    content = os.urandom(6 * MIB)
    simulator.hold_jobs(True)
    before = jobs(place)
    mount.call((mount.path / "file").write_bytes, content, deadline=30.0)
    for number in (1, 2, 3):
        wait_until(lambda n=number: jobs(place) == before + n, f"transfer job {number}", 30)
        cancel_ingest(simulator, "PENDING")
    refused(errno.EIO, mount.sync)
    assert jobs(place) == before + 3
    shows_stuck(mount, "file", "somebody cancelled its transfer", content)
    assert far.all_names() == set()
    simulator.hold_jobs(False)
    mount.call((mount.path / ".f7tfs/retry").write_text, "\n")
    mount.sync()
    assert far.read("file") == content
    wait_until(lambda: not logs(simulator), "the jobs' logs to go")


def test_a_running_transfer_that_is_cancelled_once(
    place: Place, mount: Mount, far: Any, simulator: Simulator
) -> None:
    """Failure: the same; once is an accident: a new job under a new name brings it."""
    mount.announce("again in")
    content = os.urandom(6 * MIB)
    before = jobs(place)
    simulator.faults([{"match": "object-store PUT", "times": None, "action": {"hang": True}}])
    mount.call((mount.path / "file").write_bytes, content, deadline=30.0)
    wait_until(lambda: jobs(place) > before, "the ingest job to be made", 30)
    cancel_ingest(simulator, "RUNNING")
    simulator.clear_faults()
    mount.sync()
    assert jobs(place) == before + 2
    assert far.read("file") == content
    assert far.names() == {"file"}
    assert "somebody cancelled its transfer" in mount.log()
    wait_until(lambda: not rest(far), "our litter to go")
    wait_until(lambda: not logs(simulator), "the jobs' logs to go")


def test_an_object_store_that_is_away(own_simulator: Callable[..., Place]) -> None:
    """Failure: transient → again, for ever; meanwhile the reason shows and the content is kept."""
    place = own_simulator(api="v2", ingest_sleep=2)
    far, simulator = place.far(place.directory), place.simulator
    assert simulator is not None
    content = os.urandom(8 * MIB)
    rule = {"match": "object-store PUT", "times": None, "action": {"status": 503}}
    simulator.faults([rule])
    with place.mount(place.directory) as mount:
        mount.start()
        mount.announce("again in")
        mount.call((mount.path / "file").write_bytes, content, deadline=30.0)
        wait_until(lambda: _complaint(mount), "the reason to show", 60)
        assert mount.uploads()["items"], "it must not read as done"
        assert mount.call((mount.path / "file").read_bytes, deadline=30.0) == content
        simulator.clear_faults()
        mount.call((mount.path / ".f7tfs/retry").write_text, "\n")
        mount.sync()
        assert far.read("file") == content
        assert jobs(place) == 1, "the same transfer goes on"
        mount.assert_quiet()


def _complaint(mount: Mount) -> Any:
    items = mount.uploads()["items"]
    return items and items[0]["error"]


def test_rmdir_against_a_concurrent_creator(mount: Mount, far: Any) -> None:
    """Metadata: "`rmdir` is never a bare remote remove": never a file lost. The rounds are set by
    F7TFS_RMDIR_ROUNDS (1,000 in the endurance run)."""
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


def test_a_name_that_a_shell_would_run_never_leaves(
    mount: Mount, far: Any, simulator: Simulator
) -> None:
    """Names: a `'` makes v2 run a different shell command (v2 FACTS §2)."""
    canary = far["canary"]
    for name in (f"x'; touch {canary.name}; '", "it's"):
        refused(errno.EINVAL, mount.call, os.mkdir, mount.path / name)
        refused(errno.EINVAL, mount.call, (mount.path / name).write_bytes, b"x")
    assert not canary.exists()
    assert simulator.injections() == []
