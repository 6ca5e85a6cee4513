"""Uploads in parts, cut by kill -9 or by faults: what the object store has is not sent again, and
never put together with bytes of another time (Writing: "A crash at any point is resumed or
repeated from the journal"; docs/decisions/0012)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Place, leave_tidy
from mounting import Mount
from sim_process import Simulator
from waits import wait_until

from f7tfs.faultpoints import VARIABLE

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(120)]
MIB = 1 << 20
PART, PARTS = 2 * MIB, 5
CONTENT = os.urandom(4 * PART + 17)


@pytest.fixture
def place(own_simulator: Callable[..., Place]) -> Place:
    return own_simulator(api="v2", ingest_sleep=1, part_size=PART)


@pytest.fixture
def simulator(place: Place) -> Simulator:
    assert place.simulator is not None
    return place.simulator


@pytest.fixture
def far(place: Place) -> Any:
    return place.far(place.directory)


@pytest.fixture
def mount(place: Place) -> Iterator[Mount]:
    with place.mount(place.directory) as made:
        yield made
        leave_tidy(made)


def puts(simulator: Simulator) -> int:
    """Parts that arrived at the object store."""
    return int(simulator.calls()["object_store"]["PUT"])


def cut_after(mount: Mount, simulator: Simulator, recorded: int) -> None:
    """The daemon gets kill -9 when the journal knows so many parts; no later one arrives."""
    for number in range(recorded + 1, PARTS + 1):
        where = f"partNumber={number}&"
        rule = {
            "match": "object-store PUT",
            "where": where,
            "times": None,
            "action": {"hang": True},
        }
        simulator.faults([rule])
    mount.environment[VARIABLE] = f"upload.part-recorded:{recorded}"
    mount.start()
    mount.call((mount.path / "file").write_bytes, CONTENT)
    assert mount.wait() == -signal.SIGKILL
    mount.kill()
    del mount.environment[VARIABLE]
    simulator.clear_faults()
    assert puts(simulator) == recorded


def finish(mount: Mount, far: Any, content: bytes) -> None:
    mount.sync()
    assert far.read("file") == content
    assert mount.call((mount.path / "file").read_bytes) == content
    assert far.names() == {"file"}


@pytest.mark.parametrize("recorded", [1, 3])
def test_a_restart_sends_only_what_is_missing(
    mount: Mount, simulator: Simulator, far: Any, recorded: int
) -> None:
    """Issue 5: "resume … of missing multipart parts after a restart"."""
    cut_after(mount, simulator, recorded)
    mount.start()
    finish(mount, far, CONTENT)
    assert puts(simulator) == PARTS


def test_a_restart_when_all_parts_are_there(mount: Mount, simulator: Simulator, far: Any) -> None:
    """The completion went through, its reply was lost with the daemon: the object is not made
    again."""
    executed, again = simulator.faults(
        [
            {"match": "object-store POST", "action": {"drop": "after"}},
            {"match": "object-store POST", "times": None, "action": {"hang": True}},
        ]
    )
    mount.start()
    mount.call((mount.path / "file").write_bytes, CONTENT)
    wait_until(lambda: simulator.fired().get(again), "the daemon to complete it once more")
    assert simulator.fired()[executed] == 1
    mount.kill()
    simulator.clear_faults()
    mount.start()
    finish(mount, far, CONTENT)
    assert puts(simulator) == PARTS


def test_a_file_that_was_written_to_since(mount: Mount, simulator: Simulator, far: Any) -> None:
    """Bytes that were written and never flushed may be in the file after a crash: no part from
    before goes with them."""
    cut_after(mount, simulator, 3)
    (spooled,) = [file for file in mount.spool_files() if file.stat().st_size == len(CONTENT)]
    with open(spooled, "r+b") as file:
        file.seek(3 * PART)
        file.write(b"unflushed")
    mount.start()
    changed = CONTENT[: 3 * PART] + b"unflushed" + CONTENT[3 * PART + 9 :]
    finish(mount, far, changed)
    assert puts(simulator) == 3 + PARTS


def test_a_file_that_is_written_again(mount: Mount, simulator: Simulator, far: Any) -> None:
    """The same of a file that its owner writes before the upload goes on."""
    cut_after(mount, simulator, 2)
    simulator.faults([{"match": "object-store PUT", "times": None, "action": {"hang": True}}])
    mount.start()
    other = os.urandom(len(CONTENT))
    mount.call((mount.path / "file").write_bytes, other)
    simulator.clear_faults()
    finish(mount, far, other)


def test_a_fault_costs_only_its_part(mount: Mount, simulator: Simulator, far: Any) -> None:
    """Failure: transient → again; the next attempt goes on where the last one stopped."""
    where, times = "partNumber=3&", 4  # all tries of one attempt
    rule = {
        "match": "object-store PUT", "where": where, "times": times, "action": {"status": 503},
    }  # fmt: skip
    (ident,) = simulator.faults([rule])
    mount.announce("again in")
    mount.start()
    mount.call((mount.path / "file").write_bytes, CONTENT)
    finish(mount, far, CONTENT)
    assert simulator.fired()[ident] == times
    assert puts(simulator) == PARTS
