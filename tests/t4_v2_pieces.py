"""Files of a middle size that go to v2 in pieces (docs/decisions/0009), on a real mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Place, leave_tidy, place_of
from mounting import Mount
from sim_process import Simulator, running_simulator
from t3_scenarios import refused
from waits import wait_until

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(120)]
MIB = 1 << 20
UPLOAD, SUBMIT = "POST /filesystem/cluster/ops/upload", "POST /compute/cluster/jobs"
STAGE = "POST /filesystem/cluster/transfer/upload"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Place]:
    """Jobs start at once, so that every staged upload over a slow line comes too late."""
    with running_simulator(api="v2", ingest_sleep=1, start_delay=0) as simulator:
        yield place_of(simulator)


@pytest.fixture
def place(hasty: Place) -> Iterator[Place]:
    assert hasty.simulator is not None
    hasty.simulator.reset_calls()
    yield hasty
    hasty.simulator.clear_faults()
    hasty.simulator.hold_jobs(False)
    hasty.simulator.uplink(None)


@pytest.fixture
def simulator(place: Place) -> Simulator:
    assert place.simulator is not None
    return place.simulator


def calls(simulator: Simulator, match: str) -> int:
    return int(simulator.calls()["calls"].get(match, 0))


def put(mount: Mount, name: str, size: int) -> bytes:
    content = os.urandom(size)
    mount.call((mount.path / name).write_bytes, content, deadline=30.0)
    return content


@pytest.fixture
def late(mount: Mount, simulator: Simulator) -> Mount:
    """A mount that has seen a staged upload of 6 MiB come too late."""
    simulator.uplink(16 * MIB)
    put(mount, "first", 6 * MIB)
    mount.sync()
    mount.call(os.unlink, mount.path / "first")
    mount.sync()
    simulator.uplink(None)
    assert (calls(simulator, STAGE), calls(simulator, SUBMIT)) == (1, 0)
    return mount


def numbers(mount: Mount) -> list[str]:
    return [one for one in mount.call(os.listdir, mount.path / "jobs") if one.isdigit()]


def test_after_a_lost_race_pieces_are_sent(late: Mount, far: Any, simulator: Simulator) -> None:
    """Upload routes: "in pieces: … once a staged upload of that size was seen to come too late";
    nothing is left of them, and the job is nobody's in jobs/."""
    content = put(late, "file", 12 * MIB)
    late.sync()
    assert far.read("file") == content
    assert (calls(simulator, STAGE), calls(simulator, SUBMIT)) == (1, 1)
    assert numbers(late) == []
    smaller = put(late, "smaller", 5 * MIB + 1)
    late.sync()
    assert far.read("smaller") == smaller
    assert calls(simulator, STAGE) == 2, "no race of that size is lost yet"
    leave_tidy(late)
    assert far.all_litter() == []
    assert sorted(os.listdir(simulator.home)) == []


def test_a_private_file_does_not_go_in_pieces(late: Mount, far: Any, simulator: Simulator) -> None:
    """Upload routes: "never private files": pieces can be read by others."""
    late.run("umask 077; head -c 7000000 /dev/urandom > mnt/private")
    late.sync()
    assert far.mode("private") == 0o600
    assert far.stat("private").st_size == 7_000_000
    assert (calls(simulator, STAGE), calls(simulator, SUBMIT)) == (2, 0)


@pytest.mark.parametrize(
    ("call", "skip", "action", "resumed"),
    [
        (UPLOAD, 1, {"hang": True}, False),  # a piece is there, another on its way
        (SUBMIT, 0, {"hang": True}, False),  # the ticket is journaled, no job exists
        (SUBMIT, 0, {"drop": "after"}, True),  # a job exists, and nobody knows
        (None, 0, {}, True),  # the job waits in the queue
    ],
    ids=["pieces", "before", "after", "waiting"],
)
def test_a_kill_while_pieces_travel(
    late: Mount,
    far: Any,
    simulator: Simulator,
    call: str | None,
    skip: int,
    action: dict[str, Any],
    resumed: bool,
) -> None:
    """Writing: "A crash at any point is resumed or repeated from the journal": the job is found
    again by its name, and never two write to one."""
    late.announce("again in")
    simulator.hold_jobs(True)
    ident = 0
    if call is not None:
        rule = {"match": call, "skip": skip, "action": action}
        (ident,) = simulator.faults([rule])
    content = put(late, "file", 12 * MIB)
    if call is not None:
        wait_until(lambda: simulator.fired().get(ident), f"the daemon to reach {call}")
    else:
        wait_until(lambda: late.uploads()["items"][0]["state"] == "uploading", "the upload")
        wait_until(lambda: calls(simulator, SUBMIT), "the job to be submitted")
        wait_until(lambda: calls(simulator, "GET /compute/cluster/jobs/{id}"), "it is followed")
    late.kill()
    simulator.clear_faults()
    simulator.reset_calls()
    late.start()
    if resumed:
        wait_until(lambda: calls(simulator, "GET /compute/cluster/jobs"), "it is looked for")
    simulator.hold_jobs(False)
    late.sync()
    assert far.read("file") == content
    assert far.names() == {"file"}
    assert calls(simulator, SUBMIT) == 0
    assert calls(simulator, STAGE) == (0 if resumed else 1)
    assert numbers(late) == []
    wait_until(lambda: not pieces(far), "the pieces to be swept")
    leave_tidy(late)
    assert far.all_litter() == []


def pieces(far: Any) -> list[str]:
    """What is left of any: the pieces, what their job had to say, the temporary."""
    return [one for one in far.all_litter() if not os.path.isdir(one) and not one.endswith(".tar")]


def test_a_job_that_cannot_put_them_together(late: Mount, far: Any, simulator: Simulator) -> None:
    """Failure: what such a job lacks, the staged way may have: it is tried again by that."""
    late.announce("again in")
    simulator.hold_jobs(True)
    content = put(late, "file", 12 * MIB)
    wait_until(lambda: calls(simulator, SUBMIT), "the job to be submitted")
    os.unlink(next(one for one in pieces(far) if one.endswith("-1")))
    simulator.hold_jobs(False)
    late.sync()
    assert far.read("file") == content
    assert (calls(simulator, STAGE), calls(simulator, SUBMIT)) == (2, 1)
    assert "No such file or directory" in late.log()
    put(late, "next", 12 * MIB)
    late.sync()
    assert (calls(simulator, STAGE), calls(simulator, SUBMIT)) == (3, 1)
    wait_until(lambda: not pieces(far), "the pieces to go")


def test_a_site_that_takes_no_such_job(late: Mount, far: Any, simulator: Simulator) -> None:
    """Failure: a refused job is no failed upload: the same attempt goes through the store."""
    words = '{"errorType": "error", "message": "Unexpected Slurm command response. exit_status:1 '
    words += 'std_err:sbatch: error: Batch job submission failed: Invalid account"}'
    action = {"status": 500, "body": words, "headers": {"Content-Type": "application/json"}}
    simulator.faults([{"match": SUBMIT, "action": action}])
    content = put(late, "file", 12 * MIB)
    late.sync()
    assert far.read("file") == content
    assert calls(simulator, STAGE) == 2
    assert "does not go in pieces" in late.log()
    wait_until(lambda: not pieces(far), "the pieces to go")


def test_in_place_keeps_links_and_siblings(mount: Mount, far: Any, simulator: Simulator) -> None:
    """Writing: "In place instead of by rename: a target … with other hard links". v2's own job
    would break them, and take `target.1` for itself (v2 FACTS §7)."""
    far.write("file", b"old")
    os.link(far["file"], far["twin"])
    far.write("file.1", b"precious")
    inode = far.stat("file").st_ino
    content = put(mount, "file", 7 * MIB)
    mount.sync()
    assert far.read("file") == far.read("twin") == content
    assert far.stat("file").st_ino == inode
    assert far.read("file.1") == b"precious"
    assert calls(simulator, STAGE) == 0


def test_in_place_never_takes_a_sibling(mount: Mount, far: Any, simulator: Simulator) -> None:
    """Tenet 1: "nothing is ever deleted, overwritten … that the user did not name": where only
    v2's own job could write in place, a sibling in its way makes the upload stuck."""
    mount.announce("is stuck", "EIO: stuck")
    far.write("file", b"old", 0o600)
    os.link(far["file"], far["twin"])
    far.write("file.1", b"precious")
    content = put(mount, "file", 7 * MIB)
    refused(errno.EIO, mount.sync)
    assert "would destroy" in mount.uploads()["items"][0]["error"]
    assert (far.read("file"), far.read("file.1")) == (b"old", b"precious")
    assert mount.call((mount.path / "file").read_bytes) == content
    far.rename("file.1", "other")
    mount.call((mount.path / ".f7tfs/retry").write_text, "\n")
    mount.sync()
    assert (far.read("file"), far.read("other")) == (content, b"precious")
