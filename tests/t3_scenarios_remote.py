"""What the cluster does by itself, through both doors: other people's changes, permissions,
symlinks, odd files, other clocks."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, tree_door
from doors import Door, holding
from sim_process import Simulator
from t3_scenarios import data_of, refused
from waits import wait_until

# Somebody else changes the cluster.


def test_changes_there_are_seen_after_the_ttl(door_with: Callable[..., Door], far: Any) -> None:
    """Metadata: names, sizes and contents that change on the cluster show after the TTL."""
    far.write("changed", b"one")
    far.write("removed", b"x")
    door = door_with(listing_ttl=0.3, stale_max=0.3)
    assert sorted(door.listdir()) == ["changed", "removed"]
    assert door.read("changed") == b"one"
    refused(errno.ENOENT, door.stat, "new")
    far.write("changed", b"two two")
    far.remove("removed")
    far.write("new", b"new")
    wait_until(lambda: sorted(door.listdir()) == ["changed", "new"], "the new listing")
    wait_until(lambda: door.exists("new"), "the new name")
    wait_until(lambda: door.stat("changed").size == 7, "the new size")
    assert door.read("changed") == b"two two"
    assert door.read("new") == b"new"
    wait_until(lambda: not door.exists("removed"), "the kernel to forget the removed name")


def test_open_never_trusts_an_old_listing(door_with: Callable[..., Door], far: Any) -> None:
    """Metadata: "**open()** never trusts a listing older than its TTL"; same size, new content."""
    far.write("file", b"one")
    far.age("file") if hasattr(far, "age") else None
    door = door_with(listing_ttl=0.2)
    assert door.read("file") == b"one"
    far.write("file", b"two")
    time_of_change = time.monotonic()
    wait_until(lambda: time.monotonic() > time_of_change + 0.25, "the TTL to pass")
    assert door.read("file") == b"two"


@pytest.mark.simulator
def test_a_growing_file(door_with: Callable[..., Door], far: Any) -> None:
    """Reading: "same inode and only grown → the open handle sees the growth"."""
    far.write("log", b"one\n")
    door = door_with(listing_ttl=0.2, stale_max=0.2)
    with door.open("log", os.O_RDONLY) as file:
        assert file.read() == b"one\n"
        with open(far["log"], "ab") as log:
            log.write(b"two\n")
        wait_until(lambda: file.stat().size == 8, "the growth")
        wait_until(lambda: file.read() == b"one\ntwo\n", "the new line")


def test_open_shows_a_new_size_at_once(door: Door, far: Any) -> None:
    """Metadata: "**open()** never trusts" what is old; nor does the kernel, which keeps a size."""
    far.write("file", b"x")
    assert door.read("file") == b"x"
    for size in (542, 7, 100_000):
        far.write("file", os.urandom(size))
        door.stat("file")
        door.refresh()
        assert door.read("file") == far.read("file"), size


def test_the_same_bytes_are_no_conflict(door: Door, far: Any) -> None:
    """Writing: a conflict is two versions; here somebody else wrote the same."""
    far.write("file", b"base")
    with door.open("file", os.O_RDWR) as file:
        file.write(b"the same bytes")
        far.write("file", b"the same bytes")
    door.sync()
    assert far.names() == {"file"}
    assert far.read("file") == door.read("file") == b"the same bytes"


def test_conflict_keeps_both(door: Door, far: Any) -> None:
    """Writing: "If the remote changed, the local version is uploaded as `NAME.conflict-HOST-…`
    beside it, both survive"."""
    door.announce("conflict|changed on the cluster")
    far.write("file", b"base")
    with door.open("file", os.O_RDWR) as file:
        file.write(b"mine")
        far.write("file", b"theirs, and longer")
    door.sync()
    names = far.names()
    assert len(names) == 2
    (beside,) = names - {"file"}
    assert beside.startswith("file.conflict-")
    assert far.read("file") == b"theirs, and longer"
    assert far.read(beside) == b"mine"
    door.refresh()
    assert set(door.listdir()) == names
    assert door.read("file") == b"theirs, and longer"
    assert door.read(beside) == b"mine"


def test_conflict_of_two_new_files(door: Door, far: Any) -> None:
    """Writing: a name that was free when our file was made, and is not when it is published."""
    door.announce("conflict|changed on the cluster")
    with door.open("file", os.O_WRONLY | os.O_CREAT) as file:
        file.write(b"mine")
        far.write("file", b"theirs")
    door.sync()
    (beside,) = far.names() - {"file"}
    assert far.read("file") == b"theirs"
    assert far.read(beside) == b"mine"


def test_no_conflict_by_chmod_there(door: Door, far: Any) -> None:
    """Writing: "Not a conflict: a change of ctime alone"."""
    far.write("file", b"base")
    with door.open("file", os.O_RDWR) as file:
        file.write(b"mine")
        far.chmod("file", 0o600)
    door.sync()
    assert far.names() == {"file"}
    assert far.read("file") == b"mine"


def test_overwrite_by_choice(door_with: Callable[..., Door], far: Any) -> None:
    """Writing: `on_conflict = "overwrite"`."""
    far.write("file", b"base")
    door = door_with(on_conflict="overwrite")
    with door.open("file", os.O_RDWR) as file:
        file.write(b"mine")
        far.write("file", b"theirs, and longer")
    door.announce("changed on the cluster")
    door.sync()
    assert far.names() == {"file"}
    assert far.read("file") == b"mine"


def test_the_file_vanished_there(door: Door, far: Any) -> None:
    """Tenet 1: what was written survives that somebody removed the file meanwhile."""
    far.write("file", b"base")
    with door.open("file", os.O_RDWR) as file:
        file.write(b"mine")
        far.remove("file")
    door.sync()
    assert [far.read(name) for name in far.names()] == [b"mine"]


@pytest.mark.simulator
def test_in_place_where_a_rename_would_change_more(door: Door, far: Any) -> None:
    """Writing: "In place instead of by rename: a target … with other hard links"."""
    far.write("one", b"old")
    os.link(far["one"], far["two"])
    number = far.stat("one").st_ino
    door.write("one", b"new content")
    door.sync()
    assert far.stat("one").st_ino == far.stat("two").st_ino == number
    assert far.read("two") == b"new content"


# Permissions: "What can be known early fails early".


@pytest.mark.simulator
def test_files_that_the_remote_user_must_not_touch(door: Door, far: Any) -> None:
    """Failure: "no write permission on the directory (create) or file (open) → EACCES"."""
    far.write("unreadable", b"x", 0o200)
    far.write("readonly", b"readable", 0o444)
    far.mkdir("locked", 0o555)
    far.write("locked/file", b"x") if os.getuid() == 0 else None
    refused(errno.EACCES, door.open, "unreadable", os.O_RDONLY)
    refused(errno.EACCES, door.open, "readonly", os.O_WRONLY)
    refused(errno.EACCES, door.open, "readonly", os.O_RDWR)
    refused(errno.EACCES, door.write, "readonly", b"x")
    assert door.read("readonly") == b"readable"
    refused(errno.EACCES, door.write, "locked/new", b"x")
    refused(errno.EACCES, door.mkdir, "locked/new")
    refused(errno.EACCES, door.unlink, "locked/file")
    refused(errno.EACCES, door.rename, "locked/file", "stolen")
    refused(errno.EACCES, door.rename, "readonly", "locked/new")
    refused(errno.EACCES, door.truncate, "readonly", 0)
    door.sync()
    assert far.names() == {"unreadable", "readonly", "locked"}
    assert far.names("locked") == {"file"}
    assert far.read("readonly") == b"readable"
    far.chmod("locked", 0o755)


@pytest.mark.simulator
def test_an_unreadable_directory(door: Door, far: Any) -> None:
    """Errors: EACCES, not an empty directory; names in one that may be searched are found."""
    far.mkdir("closed")
    far.write("closed/file", b"x")
    far.mkdir("search")
    far.write("search/file", b"x")
    far.chmod("closed", 0o000)
    far.chmod("search", 0o311)
    refused(errno.EACCES, door.listdir, "closed")
    refused(errno.EACCES, door.listdir, "search")
    assert door.read("search/file") == b"x"
    for name in ("closed", "search"):
        far.chmod(name, 0o755)


@pytest.mark.simulator
@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to somebody else")
def test_somebody_elses_file(door: Door, far: Any) -> None:
    """Ownership: "others keep their numeric ids"; a writable one is written in place."""
    far.write("theirs", b"old", 0o666)
    os.chown(far["theirs"], 12345, 12346)
    shown = door.stat("theirs")
    assert (shown.uid, shown.gid) == (12345, 12346)
    number = far.stat("theirs").st_ino
    door.write("theirs", b"new")
    door.sync()
    status = far.stat("theirs")
    assert (status.st_uid, status.st_gid, status.st_ino) == (12345, 12346, number)
    assert far.read("theirs") == b"new"


# Symlinks and other kinds.


def test_symlinks(door: Door, far: Any) -> None:
    """Symlinks: relative ones pass through, dangling ones dangle, EEXIST never goes inside."""
    far.mkdir("directory")
    far.write("directory/file", b"content")
    door.symlink("directory/file", "file")
    door.symlink("directory", "dir")
    door.symlink("nowhere", "dangling")
    assert {name: far.readlink(name) for name in ("file", "dir", "dangling")} == {
        "file": "directory/file", "dir": "directory", "dangling": "nowhere",
    }  # fmt: skip
    assert door.readlink("file") == "directory/file"
    assert stat.S_ISLNK(door.stat("file").mode)
    assert door.read("file") == b"content"
    assert door.read("dir/file") == b"content"
    assert door.listdir("dir") == ["file"]
    refused(errno.ENOENT, door.read, "dangling")
    refused(errno.EEXIST, door.symlink, "other", "dir")
    refused(errno.EEXIST, door.symlink, "other", "directory")
    assert far.names("directory") == {"file"}
    door.write("file", b"through the link")
    door.sync()
    assert far.read("directory/file") == b"through the link"
    assert far.readlink("file") == "directory/file"
    for name in ("file", "dir", "dangling"):
        door.unlink(name)
    assert far.names() == {"directory"}
    assert far.names("directory") == {"file"}


def test_absolute_symlinks(door: Door, far: Any) -> None:
    """Symlinks: inside the mounted path rewritten; "One outside them is shown, and opening it
    gives EPERM, because on the laptop it would name a local file"."""
    far.mkdir("sub")
    far.write("target", b"content")
    far.symlink(f"{far.directory}/target", "inside")
    far.symlink(f"{far.directory}/target", "sub/inside")
    far.symlink("/etc/hostname", "outside")
    far.symlink("../../../../../../../../../../etc/hostname", "escaping")
    assert door.read("inside") == b"content"
    assert door.read("sub/inside") == b"content"
    assert not door.readlink("inside").startswith("/")
    assert {"inside", "outside"} <= set(door.listdir())
    refused(errno.EPERM, door.read, "outside")
    refused(errno.EPERM, door.stat, "outside", follow=True)
    assert not door.readlink("outside").startswith("/")
    door.unlink("outside")
    assert "outside" not in far.names()


@pytest.mark.v1
@pytest.mark.simulator
def test_a_fifo(door: Door, far: Any, simulator: Simulator) -> None:
    """Metadata: "Content calls go only to regular files after dereferencing: a FIFO hangs v1's
    storage service for all users". It is shown, renamed and removed."""
    far.fifo("fifo")
    far.symlink("fifo", "link")
    assert stat.S_ISFIFO(door.stat("fifo").mode)
    for name in ("fifo", "link"):
        try:
            door.open(name, os.O_RDONLY | os.O_NONBLOCK).close()  # the kernel opens its own pipe
        except PermissionError:
            pass
    calls = simulator.calls()["calls"]
    content = {"GET /utilities/download", "POST /storage/xfer-external/download",
               "GET /utilities/head", "GET /utilities/tail", "GET /utilities/view",
               "GET /utilities/checksum"}  # fmt: skip
    assert not content & set(calls)
    door.rename("fifo", "renamed")
    assert stat.S_ISFIFO(far.stat("renamed").st_mode)
    door.unlink("renamed")
    door.unlink("link")
    assert far.names() == set()


# Costs, clocks.


@pytest.mark.v1
@pytest.mark.simulator
def test_a_directory_of_2000_files_is_one_listing(
    door: Door, far: Any, simulator: Simulator
) -> None:
    """Metadata: "One directory listing is one API call, and it answers every lookup, stat, access
    and readdir in it until its TTL ends"."""
    far.mkdir("many")
    for number in range(2000):
        far[f"many/file-{number:04}"].write_bytes(b"x" * (number % 7))
    door.stat("many")
    simulator.reset_calls()
    names = door.listdir("many")
    assert len(names) == 2000
    for name in names:
        assert door.stat(f"many/{name}").size == int(name[-4:]) % 7
    refused(errno.ENOENT, door.stat, "many/missing")
    calls = simulator.calls()["calls"]
    listings = [one for one in simulator.log(1000) if one["params"].get("targetPath", "").rstrip(
        "/").endswith("/many") and one["path"] == "/utilities/ls"]  # fmt: skip
    assert len(listings) == 1, calls
    assert calls.get("GET /utilities/stat", 0) <= 1  # what the listing's clock means


@pytest.mark.v1
@pytest.mark.simulator
def test_a_posix_locale_in_another_time_zone(
    place: Place, far: Any, directory: str, tmp_path: Path
) -> None:
    """Times, Names: cluster2 lists octal escapes and Zurich's clock; names and times are right."""
    names = ["ünïcode-☃", "plain", "sp ace", "emoji😀"]
    for number, name in enumerate(names):
        far.write(name, name.encode())
        os.utime(far[name], (1_700_000_000 + number, 1_700_000_000 + number))
    os.utime(far["plain"], (1_720_000_000, 1_720_000_000))  # the other half of the year
    zurich = Place(place.credentials, "cluster2", directory, place.far, place.simulator)
    with tree_door(zurich, directory, tmp_path) as door:
        assert set(door.listdir()) == set(names)
        for name in names:
            assert door.read(name) == name.encode()
            assert door.stat(name).mtime_ns == int(far.stat(name).st_mtime) * 10**9
        door.write("neu-ü", b"x")
        door.rename("ünïcode-☃", "umbenannt-é")
        door.sync()
        assert far.names() == {"umbenannt-é", "plain", "sp ace", "emoji😀", "neu-ü"}


@pytest.mark.simulator
def test_a_never_uploaded_file_costs_no_call(
    door_with: Callable[..., Door], far: Any, simulator: Simulator
) -> None:
    """Writing: "Unlink of a never-uploaded file costs no call"; nor does its rename."""
    door = door_with(writeback_delay=60)
    door.listdir()
    simulator.reset_calls()
    door.write("one", b"x")
    door.rename("one", "two")
    door.unlink("two")
    assert door.listdir() == []
    calls = simulator.calls()["calls"]
    assert not {call for call in calls if not call.startswith("GET")}, calls
    assert calls.get("GET /utilities/stat", 0) <= 1  # of the directory, for its permissions
    assert far.names() == set()


@pytest.mark.simulator
def test_many_readers_share_one_download(door: Door, far: Any, simulator: Simulator) -> None:
    """Reading: one staging for all who wait; "the next reader joins it"."""
    content = data_of(5_000_000)
    far.write("big", content)
    with holding(*(door.open("big", os.O_RDONLY) for _ in range(5))) as files:
        for number, file in enumerate(files):
            offset = number * 1_000_000
            assert file.read(1000, offset) == content[offset : offset + 1000]
    calls = simulator.calls()["calls"]
    stagings = {
        "POST /storage/xfer-external/download",
        "POST /filesystem/cluster/transfer/download",
    }
    assert sum(calls.get(one, 0) for one in stagings) == 1


@pytest.mark.simulator
def test_a_clean_file_is_read_without_a_call(
    door_with: Callable[..., Door], far: Any, simulator: Simulator
) -> None:
    """Reading: what we wrote is "the clean cached copy, without a download", over a remount."""
    content = data_of(100_000)
    door = door_with()
    door.write("file", content)
    door.sync()
    door.remount()
    simulator.reset_calls()
    assert door.read("file") == content
    assert "GET /utilities/download" not in simulator.calls()["calls"]
