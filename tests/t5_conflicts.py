"""Conflicts that come at a bad moment: both are kept, and there is none with ourselves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import STAGING_INTERVAL, Place
from sim_process import Simulator
from t3_scenarios import data_of
from waits import wait_until

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(120)]
BIG = data_of(6_000_000)
KEPT = r"the local version is|again in"
LATE = 1.5  # seconds


def sides_of(place: Place) -> tuple[Any, Simulator]:
    """The cluster's files, and the server."""
    assert place.simulator is not None
    return place.far(place.directory), place.simulator


@pytest.fixture(params=["v1", "v2"])
def slow(request: pytest.FixtureRequest, own_simulator: Callable[..., Place]) -> Place:
    """A server whose staged uploads arrive when the test says so."""
    if request.param == "v1":
        return own_simulator(staging_interval=3600)
    return own_simulator(api="v2", ingest_sleep=1, staging_interval=STAGING_INTERVAL)


@pytest.mark.parametrize("how", ["changed", "removed", "replaced by a directory", "chmod"])
def test_while_the_server_sweeps(slow: Place, how: str) -> None:
    """Writing: "… and **again immediately before publishing; that one counts**": what happens on
    the cluster during the 60 seconds of a staged upload is not overwritten."""
    far, simulator = sides_of(slow)
    far.write("file", b"base")
    far.age("file")
    with slow.mount(slow.directory) as mount:
        mount.start()
        mount.announce(KEPT)
        mount.call((mount.path / "file").read_bytes)
        is_v1 = mount.status()["mount"]["dialect"] == "v1"
        if not is_v1:
            simulator.hold_jobs(True)
        mount.call((mount.path / "file").write_bytes, BIG)
        item = wait_until(lambda: mount.uploads()["items"], "the upload")[0]
        wait_until(lambda: mount.uploads()["items"][0]["sent"] == len(BIG), f"the bytes: {item}")
        if how == "changed":
            far.write("file", b"theirs, and longer")
        elif how == "chmod":
            far.chmod("file", 0o600)
        else:
            far.remove("file")
            if how != "removed":
                far.mkdir("file")
        if not is_v1:
            simulator.hold_jobs(False)

        def is_over() -> bool:
            if is_v1:
                simulator.sweep()
            return not mount.uploads()["items"]

        wait_until(is_over, "the upload to end", 30.0)
        beside = sorted(far.names() - {"file"})
        if how in {"removed", "chmod"}:
            assert beside == []
            assert far.read("file") == BIG
        else:
            (name,) = beside
            assert name.startswith("file.conflict-")
            assert far.read(name) == BIG
            assert far.is_directory("file") or far.read("file") == b"theirs, and longer"
        mount.sync()
        mount.assert_quiet()


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_our_own_lost_reply_is_no_conflict(own_simulator: Callable[..., Place], api: str) -> None:
    """Not a conflict: "a remote equal to what we journaled just before publishing (lost reply)",
    also when the reply of each later look is lost, and the daemon ends."""
    options = {"api": "v2", "ingest_sleep": 1} if api == "v2" else {}
    place = own_simulator(**options)
    far, simulator = sides_of(place)
    far.write("file", b"base")
    far.age("file")
    publish = {"v1": "PUT /utilities/rename", "v2": "POST /filesystem/cluster/ops/extract"}[api]
    with place.mount(place.directory) as mount:
        mount.start()
        mount.announce(KEPT, "EIO", "Unreachable", "linking", "offline")
        (ident,) = simulator.faults([{"match": publish, "action": {"drop": "after"}}])
        mount.call((mount.path / "file").write_bytes, b"mine")
        wait_until(lambda: simulator.fired().get(ident), "the lost reply")
        mount.kill()
        simulator.clear_faults()
        mount.start()
        mount.sync()
        assert far.names() == {"file"}
        assert far.read("file") == b"mine"
        assert mount.unmount_plainly() == 0
        assert far.all_litter() == []


@pytest.mark.parametrize("size", [4, 6_000_000], ids=["direct", "staged"])
@pytest.mark.parametrize("is_changed", [False, True], ids=["as it was", "changed"])
def test_a_late_rename_is_no_conflict(
    own_simulator: Callable[..., Place], is_changed: bool, size: int
) -> None:
    """The call of a killed daemon waits at the server, and the next one looks before it is carried
    out: what it does then is neither somebody else's change nor the last word. (v2 renames by an
    archive, and that is removed first.)"""
    mine = os.urandom(size)
    place = own_simulator(staging_interval=0.3)
    far, simulator = sides_of(place)
    far.write("file", b"base")
    far.age("file")
    with place.mount(place.directory) as mount:
        mount.start()
        mount.announce(KEPT, "never closed")
        rule = {"match": "PUT /utilities/rename", "times": 1, "action": {"delay": LATE}}
        (ident,) = simulator.faults([rule])
        mount.call((mount.path / "file").write_bytes, mine)
        wait_until(lambda: simulator.fired().get(ident), "the call that is to be late")
        over = time.monotonic() + LATE + 0.5
        mount.kill()
        for call in ("DELETE /utilities/rm", "POST /utilities/upload"):  # it comes before these
            simulator.faults([{"match": call, "times": 1, "action": {"delay": 2 * LATE}}])
        mount.start()
        content = mine
        if is_changed:
            content = mine + b", and newer"
            mount.call((mount.path / "file").write_bytes, content)
            mount.call(os.rename, mount.path / "file", mount.path / "other")
            mount.call((mount.path / "file").write_bytes, content)
        wait_until(lambda: time.monotonic() > over, "the late call to be carried out")
        mount.sync()
        assert far.names() == ({"file", "other"} if is_changed else {"file"})
        assert {far.read(name) for name in far.names()} == {content}
        assert mount.unmount_plainly() == 0
        assert far.all_litter() == []


def test_a_late_rename_to_a_backup_takes_no_new_file(own_simulator: Callable[..., Place]) -> None:
    """vim's save: the old content goes to `file~` on the cluster before the new one takes its
    place. The call of a killed daemon that comes after the next one's would take the new file."""
    place = own_simulator()
    far, simulator = sides_of(place)
    far.write("file", b"old")
    far.age("file")
    with place.mount(place.directory) as mount:
        mount.start()
        mount.announce("never closed")
        rule = {"match": "PUT /utilities/rename", "times": 1, "action": {"delay": LATE}}
        (ident,) = simulator.faults([rule])
        mount.call(os.rename, mount.path / "file", mount.path / "file~")
        mount.call((mount.path / "file").write_bytes, b"new")
        wait_until(lambda: simulator.fired().get(ident), "the call that is to be late")
        over = time.monotonic() + LATE + 0.5
        mount.kill()
        mount.start()
        mount.sync()
        wait_until(lambda: time.monotonic() > over, "the late call to be carried out")
        mount.refresh()
        assert far.names() == {"file", "file~"}
        assert (far.read("file"), far.read("file~")) == (b"new", b"old")
        assert mount.call((mount.path / "file").read_bytes) == b"new"


def test_a_late_removal_takes_no_new_file(own_simulator: Callable[..., Place]) -> None:
    """`cp a b; rm a`, a kill while the cluster removes a, and a new a: the late call is over before
    the new one is published."""
    place = own_simulator()
    far, simulator = sides_of(place)
    far.write("file", b"old")
    far.age("file")
    with place.mount(place.directory, writeback_delay=0.1) as mount:
        mount.start()
        mount.announce("never closed")
        rule = {"match": "DELETE /utilities/rm", "where": "/file", "action": {"delay": LATE}}
        (ident,) = simulator.faults([rule])
        mount.call((mount.path / "copy").write_bytes, b"old")
        mount.call(os.unlink, mount.path / "file")
        wait_until(lambda: simulator.fired().get(ident), "the call that is to be late")
        over = time.monotonic() + LATE + 0.5
        mount.kill()
        mount.start()
        mount.call((mount.path / "file").write_bytes, b"new")
        mount.sync()
        wait_until(lambda: time.monotonic() > over, "the late call to be carried out")
        assert far.names() == {"file", "copy"}
        assert far.read("file") == b"new"
