"""Backup names through both doors (Metadata: "Rename of a clean file to a backup name … is a
journaled local alias while a new file takes its place"; docs/decisions/0014). The old content is
never gone: it is at its old name on the cluster until it is at the backup's, and readable here."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from doors import Door, holding
from sim_process import Simulator
from t3_scenarios import refused
from waits import wait_until


def changes(simulator: Simulator) -> list[str]:
    """Calls since the last time that changed something on the cluster."""
    calls = simulator.calls()["calls"]
    simulator.reset_calls()
    return [call for call, count in calls.items() for _ in range(count) if call[:3] != "GET"]


def contents(far: Any) -> dict[str, bytes]:
    return {name: far.read(name) for name in far.names()}


@pytest.fixture(params=["clean", "dirty"])
def saved(request: pytest.FixtureRequest) -> Callable[..., str]:
    """A file with old content: as the cluster has it, or just written here again."""

    def make(door: Door, far: Any, name: str = "f") -> str:
        far.write(name, b"old" if request.param == "clean" else b"older")
        far.age(name)
        door.refresh()
        if request.param == "dirty":
            door.write(name, b"old")
        assert door.read(name) == b"old"
        return name

    return make


@pytest.mark.simulator
def test_a_save_costs_one_upload(
    door: Door, far: Any, simulator: Simulator, saved: Callable[..., str]
) -> None:
    """FUSE.md, vim: RENAME f→f~; CREATE f; WRITE; UNLINK f~. No call before the upload, and the
    cluster has a whole file at `f` all the time."""
    saved(door, far)
    inode = far.stat("f").st_ino
    changes(simulator)
    door.rename("f", "f~")
    assert door.listdir() == ["f~"]
    refused(errno.ENOENT, door.stat, "f")
    assert (door.stat("f~").size, far.names()) == (3, {"f"})
    door.create_exclusive("f", b"new")
    assert sorted(door.listdir()) == ["f", "f~"]
    assert door.read("f") == b"new"
    door.unlink("f~")
    assert door.listdir() == ["f"]
    assert not changes(simulator)
    assert far.stat("f").st_ino == inode
    door.sync()
    assert contents(far) == {"f": b"new"}
    done = changes(simulator)
    uploads = [one for one in done if one.endswith("upload")]
    assert len(uploads) <= (2 if simulator.v2_url else 1), done  # v2: the archive of the link
    assert not [one for one in done if one.startswith("DELETE") and not simulator.v2_url]


@pytest.mark.simulator
def test_a_backup_that_stays(
    door: Door, far: Any, simulator: Simulator, saved: Callable[..., str]
) -> None:
    """vim's `:set backup`: the old content is at the backup's name, before the new one is
    published."""
    saved(door, far)
    door.rename("f", "f~")
    door.create_exclusive("f", b"new")
    door.sync()
    assert contents(far) == {"f": b"new", "f~": b"old"}
    assert (door.read("f"), door.read("f~")) == (b"new", b"old")
    log = [one for one in simulator.log(500) if one["path"].endswith(("/rename", "/extract"))]
    assert len(log) >= 2


def test_a_rename_is_a_rename(door: Door, far: Any, saved: Callable[..., str]) -> None:
    """`mv f f.bak` by a person: nothing new comes, the cluster's name changes."""
    saved(door, far)
    when = door.stat("f").mtime_ns
    door.rename("f", "f.bak")
    assert door.stat("f.bak").mtime_ns == when
    door.sync()
    assert contents(far) == {"f.bak": b"old"}
    assert door.read("f.bak") == b"old"
    assert door.stat("f.bak").mtime_ns == when


@pytest.mark.simulator
def test_it_is_carried_out_by_itself(door: Door, far: Any, saved: Callable[..., str]) -> None:
    """It is only here for ten seconds at most."""
    saved(door, far)
    door.rename("f", "f~")
    wait_until(lambda: far.names() == {"f~"}, "the rename on the cluster", 15)
    assert far.read("f~") == b"old"


def test_removing_the_backup_removes_the_file(
    door: Door, far: Any, saved: Callable[..., str]
) -> None:
    """rename and unlink without a new file: the user removed it."""
    saved(door, far)
    door.rename("f", "f~")
    door.unlink("f~")
    assert door.listdir() == []
    door.sync()
    assert far.names() == set()


def test_removing_the_new_file_leaves_the_backup(
    door: Door, far: Any, saved: Callable[..., str]
) -> None:
    """Tenet 1: the new file was a mistake; the old content is where the user put it."""
    saved(door, far)
    door.rename("f", "f~")
    door.write("f", b"a mistake")
    door.unlink("f")
    assert door.listdir() == ["f~"]
    door.sync()
    assert contents(far) == {"f~": b"old"}


def test_the_backup_is_used(door: Door, far: Any, saved: Callable[..., str]) -> None:
    """Read, written, linked, moved, given another mode while it is only here."""
    for number in range(4):
        saved(door, far, f"f{number}")
    far.mkdir("d")
    door.refresh()
    for number in range(4):
        door.rename(f"f{number}", f"f{number}~")
        door.write(f"f{number}", b"new")
    assert door.read("f0~") == b"old"
    with holding(door.open("f1~", os.O_RDWR)) as (file,):
        file.write(b"!", 3)
    door.rename("f2~", "d/moved")
    door.chmod("f3~", 0o600)
    door.link("f3~", "linked")
    assert (door.read("f1~"), door.read("d/moved"), door.read("f2")) == (b"old!", b"old", b"new")
    assert door.stat("f3~").permissions == 0o600
    door.sync()
    assert {name: far.read(name) for name in sorted(far.names() - {"d"})} == {
        "f0": b"new", "f0~": b"old", "f1": b"new", "f1~": b"old!", "f2": b"new", "f3": b"new",
        "f3~": b"old", "linked": b"old",
    }  # fmt: skip
    assert far.read("d/moved") == b"old"


def test_the_old_name_is_used_for_something_else(
    door: Door, far: Any, saved: Callable[..., str]
) -> None:
    """mkdir, symlink, a rename onto it by file, temporary and directory; the directory above."""
    for name in ("a", "b", "c", "d", "e"):
        saved(door, far, name)
        door.rename(name, f"{name}~")
    far.write("other", b"other")
    far.mkdir("folder")
    door.refresh()
    door.mkdir("a")
    door.symlink("nowhere", "b")
    door.rename("other", "c")
    door.write(".goutputstream-XYZ", b"through a temporary")
    door.rename(".goutputstream-XYZ", "d")
    door.rename("folder", "e")
    door.sync()
    assert far.names() == {"a", "a~", "b", "b~", "c", "c~", "d", "d~", "e", "e~"}
    assert far.is_directory("a") and far.is_directory("e") and far.readlink("b") == "nowhere"
    assert (far.read("c"), far.read("d")) == (b"other", b"through a temporary")
    assert {far.read(f"{name}~") for name in "abcde"} == {b"old"}


def test_the_directory_above_moves(door: Door, far: Any, saved: Callable[..., str]) -> None:
    """rename(2) of a directory takes the backup and the new file along."""
    far.mkdir("here")
    saved(door, far, "here/f")
    door.rename("here/f", "here/f~")
    door.write("here/f", b"new")
    refused(errno.ENOTEMPTY, door.rmdir, "here")
    door.rename("here", "there")
    assert (door.read("there/f"), door.read("there/f~")) == (b"new", b"old")
    door.sync()
    assert far.names() == {"there"} and far.names("there") == {"f", "f~"}
    assert (far.read("there/f"), far.read("there/f~")) == (b"new", b"old")


@pytest.mark.simulator
@pytest.mark.parametrize("until", ["renamed", "written", "removed"])
def test_kill(
    door_with: Callable[..., Door], far: Any, saved: Callable[..., str], until: str
) -> None:
    """Tenet 1: whatever moment of a save it is, the next mount has both contents, or the one that
    the user kept."""
    door = door_with(writeback_delay=30)
    door.announce("never closed")
    saved(door, far)
    door.rename("f", "f~")
    if until != "renamed":
        door.create_exclusive("f", b"new")
    if until == "removed":
        door.unlink("f~")
    door.remount(crash=True)
    wanted = {"f~": b"old"} if until == "renamed" else {"f": b"new", "f~": b"old"}
    if until == "removed":
        wanted = {"f": b"new"}
    assert {name: door.read(name) for name in door.listdir()} == wanted
    door.sync()
    assert contents(far) == wanted


@pytest.mark.simulator
def test_somebody_changes_the_file_meanwhile(door: Door, far: Any) -> None:
    """Conflict: theirs stays under the name, ours goes beside it; there is no backup to make."""
    door.announce("changed on the cluster")
    far.write("f", b"old")
    far.age("f")
    assert door.read("f") == b"old"
    door.rename("f", "f~")
    with door.open("f", os.O_WRONLY | os.O_CREAT) as file:
        file.write(b"mine")
        far.write("f", b"theirs, and longer")
    door.sync()
    (beside,) = far.names() - {"f"}
    assert beside.startswith("f.conflict-")
    assert (far.read("f"), far.read(beside)) == (b"theirs, and longer", b"mine")


@pytest.mark.simulator
def test_somebody_takes_the_backups_name(door: Door, far: Any) -> None:
    """Conflict: nothing that the user did not see is replaced."""
    door.announce("is taken on the cluster")
    far.write("f", b"old")
    far.age("f")
    assert door.read("f") == b"old"
    door.rename("f", "f~")
    with door.open("f", os.O_WRONLY | os.O_CREAT) as file:
        file.write(b"mine")
        far.write("f~", b"theirs")
    door.sync()
    (beside,) = far.names() - {"f", "f~"}
    assert contents(far) == {"f": b"mine", "f~": b"theirs", beside: b"old"}


@pytest.mark.simulator
def test_the_reply_to_its_rename_is_lost(door: Door, far: Any, simulator: Simulator) -> None:
    """Metadata: "No call that changes something is ever resent blindly"."""
    door.announce("upload of")
    far.write("f", b"old")
    far.age("f")
    assert door.read("f") == b"old"
    door.rename("f", "f~")
    door.create_exclusive("f", b"new")
    call = "POST /filesystem/cluster/ops/extract" if simulator.v2_url else "PUT /utilities/rename"
    simulator.faults([{"match": call, "times": 1, "action": {"drop": "after"}}])
    door.sync()
    assert contents(far) == {"f": b"new", "f~": b"old"}
