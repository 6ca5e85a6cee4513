"""Hard links of files that the cluster does not have yet, through both doors (Metadata: `link(2)`;
docs/decisions/0014): two names of one file at once, hard links on the cluster later."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from doors import Door, holding
from sim_process import Simulator
from t3_scenarios import refused
from t3_scenarios_rename import MOMENTS, bring_to


def changing(simulator: Simulator) -> dict[str, int]:
    return {call: n for call, n in simulator.calls()["calls"].items() if call[:3] != "GET"}


@pytest.mark.simulator
@pytest.mark.parametrize("moment", MOMENTS[:2])
def test_two_names_of_one_file(door: Door, far: Any, simulator: Simulator, moment: str) -> None:
    """Metadata: one inode, two links; what is written through one name is read through the other,
    before the upload and during it."""
    bring_to(moment, door, simulator, "one", b"content")
    door.link("one", "two")
    one, two = door.stat("one"), door.stat("two")
    assert (one.ino, one.nlink, two.nlink) == (two.ino, 2, 2)
    assert sorted(door.listdir()) == ["one", "two"]
    door.append("two", b" and more")
    assert door.read("one") == door.read("two") == b"content and more"
    door.sync()
    assert far.stat("one").st_ino == far.stat("two").st_ino
    assert far.read("one") == b"content and more"
    assert far.names() == {"one", "two"}
    assert door.stat("one").nlink == 2
    assert door.stat("one").mtime_ns == door.stat("two").mtime_ns
    door.append("one", b"!")
    door.sync()
    assert far.read("two") == b"content and more!"


@pytest.mark.simulator
def test_link_and_unlink_is_a_rename(door: Door, far: Any, simulator: Simulator) -> None:
    """What git does with each object, and programs that lock by link(2): the first name costs no
    call, the content travels once."""
    door.listdir()
    simulator.reset_calls()
    door.write("tmp_obj_x", b"object", 0o444)
    door.link("tmp_obj_x", "final")
    refused(errno.EEXIST, door.link, "tmp_obj_x", "final")
    assert door.stat("tmp_obj_x").nlink == 2
    door.unlink("tmp_obj_x")
    assert (door.listdir(), door.stat("final").nlink) == (["final"], 1)
    assert not changing(simulator)
    door.sync()
    uploads = [one for one in changing(simulator) if one.endswith("/upload")]
    assert len(uploads) == 1
    assert "tmp_obj_x" not in str(simulator.log(100))
    assert far.names() == {"final"} and far.read("final") == b"object"
    assert far.mode("final") == 0o444


@pytest.mark.simulator
@pytest.mark.parametrize("moment", MOMENTS[:2])
def test_either_name_goes_away(door: Door, far: Any, simulator: Simulator, moment: str) -> None:
    """Metadata: unlink of one name leaves the other."""
    for gone, left in (("a", "b"), ("d", "c")):
        first, second = sorted((gone, left))
        bring_to(moment, door, simulator, first, b"x" + first.encode())
        door.link(first, second)
        door.unlink(gone)
        assert door.read(left) == b"x" + first.encode()
        assert not door.exists(gone)
    door.sync()
    assert far.names() == {"b", "c"}
    assert (far.read("b"), far.read("c")) == (b"xa", b"xc")


def test_of_a_changed_file_of_the_cluster(door: Door, far: Any) -> None:
    """Metadata: a file that is on the cluster and was written again has dirty content under both
    names; unlink of the old name leaves the new one with it."""
    far.write("old", b"base")
    door.append("old", b" more")
    door.link("old", "new")
    assert door.read("new") == b"base more"
    door.unlink("old")
    assert door.listdir() == ["new"]
    door.sync()
    assert far.names() == {"new"} and far.read("new") == b"base more"


def test_names_move(door: Door, far: Any) -> None:
    """rename(2) of one of two names: onto a free name, a file of ours, one of the cluster, the
    other name, and with the directory."""
    far.write("theirs", b"theirs")
    door.mkdir("d")
    door.write("d/a", b"content")
    door.link("d/a", "d/b")
    door.rename("d/a", "d/b")
    assert sorted(door.listdir("d")) == ["a", "b"], "two names of one file: nothing is done"
    door.write("d/ours", b"ours")
    door.rename("d/b", "d/ours")
    door.rename("d/a", "theirs")
    door.rename("d", "e")
    assert door.read("theirs") == door.read("e/ours") == b"content"
    door.write("e/ours", b"changed")
    assert door.read("theirs") == b"changed"
    door.sync()
    assert far.names() == {"theirs", "e"} and far.names("e") == {"ours"}
    assert far.read("theirs") == far.read("e/ours") == b"changed"
    assert far.stat("theirs").st_ino == far.stat("e/ours").st_ino


def test_a_name_that_is_replaced(door: Door, far: Any) -> None:
    """rename(2) over one of two names leaves the file under the other."""
    for name in ("first", "second"):
        door.write(name, b"shared")
        door.link(name, f"{name}-link")
    door.write("new", b"new")
    door.rename("new", "first")
    door.write("new", b"new")
    door.rename("new", "second-link")
    door.sync()
    assert {name: far.read(name) for name in far.names()} == {
        "first": b"new", "first-link": b"shared", "second": b"shared", "second-link": b"new",
    }  # fmt: skip


def test_an_open_file(door: Door, far: Any) -> None:
    """Two handles by two names, opened before and after link(2)."""
    with door.open("one", os.O_RDWR | os.O_CREAT) as first:
        first.write(b"begin ")
        door.link("one", "two")
        with holding(door.open("two", os.O_RDWR)) as (second,):
            second.write(b"middle ", 6)
            door.unlink("one")
            first.write(b"end", 13)
            assert second.read() == b"begin middle end"
    door.sync()
    assert far.names() == {"two"} and far.read("two") == b"begin middle end"


@pytest.mark.parametrize("crash", [False, True])
def test_over_a_remount(door_with: Callable[..., Door], far: Any, crash: bool) -> None:
    """Tenet 1: both names are in the journal."""
    door = door_with(writeback_delay=30)
    door.announce("stay in the journal")
    door.write("one", b"content")
    door.link("one", "two")
    door.remount(crash=crash)
    assert door.read("one") == door.read("two") == b"content"
    door.append("two", b"!")
    assert door.read("one") == b"content!"
    door.sync()
    assert far.stat("one").st_ino == far.stat("two").st_ino
    assert far.read("one") == b"content!"


def test_somebody_takes_the_second_name(door: Door, far: Any) -> None:
    """Conflict: both survive, for a link as for a file."""
    door.announce("is taken on the cluster")
    with door.open("one", os.O_RDWR | os.O_CREAT) as file:
        file.write(b"mine")
        door.link("one", "two")
        far.write("two", b"theirs")
    door.sync()
    (beside,) = far.names() - {"one", "two"}
    assert beside.startswith("two.conflict-")
    assert far.read("two") == b"theirs" and far.read(beside) == far.read("one") == b"mine"
