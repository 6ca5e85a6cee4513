"""What can be known early fails early, through both doors (Failure: "no write permission on the
directory (create) or file (open) → EACCES"): from mode, ids and groups, before any call."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from doors import Door
from sim_process import Simulator
from t3_scenarios import refused

pytestmark = pytest.mark.simulator
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to somebody else")
THEM = 12345


def given(far: Any, path: str, mode: int, *, group: int = THEM) -> None:
    """It is somebody else's."""
    os.chown(far[path], THEM, group)
    far[path].chmod(mode)


def asks_nothing(simulator: Simulator, number: int, action: Any, *arguments: Any) -> None:
    """Refused with this errno, and nothing that could change anything was sent."""
    simulator.reset_calls()
    refused(number, action, *arguments)
    calls = simulator.calls()["calls"]
    assert not {call for call in calls if not call.startswith("GET")}, calls


@needs_root
def test_a_sticky_directory(door: Door, far: Any, simulator: Simulator) -> None:
    """As /tmp: everybody makes names, only the owner takes them away (EPERM, as unlink(2))."""
    far.mkdir("tmp")
    for name in ("theirs", "mine"):
        far.write(f"tmp/{name}", name.encode())
    far.mkdir("tmp/folder")
    given(far, "tmp/theirs", 0o666)
    given(far, "tmp/folder", 0o777)
    given(far, "tmp", 0o1777)
    door.listdir("tmp")
    asks_nothing(simulator, errno.EPERM, door.unlink, "tmp/theirs")
    asks_nothing(simulator, errno.EPERM, door.rmdir, "tmp/folder")
    asks_nothing(simulator, errno.EPERM, door.rename, "tmp/theirs", "tmp/stolen")
    asks_nothing(simulator, errno.EPERM, door.rename, "tmp/theirs", "stolen")
    asks_nothing(simulator, errno.EPERM, door.rename, "tmp/mine", "tmp/theirs")
    door.write("tmp/new", b"new")
    refused(errno.EPERM, door.rename, "tmp/new", "tmp/theirs")  # while it is uploaded
    door.rename("tmp/new", "tmp/newer")
    door.rename("tmp/mine", "tmp/moved")
    door.write("tmp/theirs", b"they let me")
    door.sync()
    assert far.names("tmp") == {"theirs", "folder", "newer", "moved"}
    assert far.read("tmp/theirs") == b"they let me"
    door.unlink("tmp/moved")
    assert far.names("tmp") == {"theirs", "folder", "newer"}


@needs_root
def test_groups(door: Door, far: Any, simulator: Simulator) -> None:
    """ "computed from mode, ids and groups": our group's bits count before the others'."""
    ours = far.stat("").st_gid
    for name, mode, group in (
        ("shared", 0o664, ours), ("readable", 0o644, ours), ("barred", 0o604, ours),
        ("theirs", 0o646, THEM),
    ):  # fmt: skip
        far.write(name, b"old")
        given(far, name, mode, group=group)
    door.listdir()
    for name in ("shared", "theirs"):
        with door.open(name, os.O_RDWR) as file:
            file.write(b"new")
    asks_nothing(simulator, errno.EACCES, door.open, "readable", os.O_RDWR)
    asks_nothing(simulator, errno.EACCES, door.open, "barred", os.O_RDONLY)
    assert door.read("readable") == b"old"
    door.sync()
    assert far.read("shared") == far.read("theirs") == b"new"


@needs_root
def test_modes_and_times_are_the_owners(door: Door, far: Any, simulator: Simulator) -> None:
    """chmod(2), utimensat(2): EPERM to others; times, if it is not writable either."""
    far.write("theirs", b"x")
    given(far, "theirs", 0o644)
    far.write("open", b"x")
    given(far, "open", 0o666)
    door.listdir()
    asks_nothing(simulator, errno.EPERM, door.chmod, "theirs", 0o600)
    asks_nothing(simulator, errno.EPERM, door.utime, "theirs", 10**18)
    asks_nothing(simulator, errno.EPERM, door.chmod, "open", 0o600)
    door.utime("open", 10**18)
    assert door.stat("open").mtime_ns == 10**18


@pytest.mark.parametrize("state", ["dirty", "clean"])
def test_a_read_only_file_of_ours(door: Door, far: Any, simulator: Simulator, state: str) -> None:
    """A file is made with mode 0444 and written once; then it is read-only, uploaded or not."""
    door.write("file", b"written once", 0o444)
    if state == "clean":
        door.sync()
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        asks_nothing(simulator, errno.EACCES, door.open, "file", flags)
    asks_nothing(simulator, errno.EACCES, door.truncate, "file", 0)
    with door.open("file", os.O_RDONLY):
        asks_nothing(simulator, errno.EACCES, door.truncate, "file", 0)
    assert door.read("file") == b"written once"
    door.chmod("file", 0o200)
    refused(errno.EACCES, door.open, "file", os.O_RDONLY)
    door.chmod("file", 0o644)
    door.append("file", b", then again")
    door.sync()
    assert far.read("file") == b"written once, then again"


def test_an_open_handle_outlives_a_chmod(door: Door, far: Any) -> None:
    """open(2): what a descriptor may do is decided when it is opened."""
    with door.open("file", os.O_WRONLY | os.O_CREAT) as file:
        door.chmod("file", 0o444)
        file.write(b"still written")
        file.truncate(5)
    door.sync()
    assert (far.read("file"), far.mode("file")) == (b"still", 0o444)


def test_a_directory_that_may_not_be_written(door: Door, far: Any, simulator: Simulator) -> None:
    """EACCES at create, mkdir, symlink, link, unlink, rmdir, rename into and out of it; and a
    read-only directory itself goes nowhere else, because its `..` would change."""
    far.mkdir("locked")
    far.write("locked/file", b"x")
    far.mkdir("locked/folder")
    far.mkdir("elsewhere")
    far.write("mine", b"mine")
    far.chmod("locked", 0o555)
    door.listdir("locked")
    door.listdir()
    for action, *words in (
        (door.write, "locked/new", b"x"),
        (door.create_exclusive, "locked/new"),
        (door.mkdir, "locked/new"),
        (door.symlink, "target", "locked/new"),
        (door.link, "mine", "locked/new"),
        (door.unlink, "locked/file"),
        (door.rmdir, "locked/folder"),
        (door.rename, "locked/file", "stolen"),
        (door.rename, "locked/file", "locked/file~"),
        (door.rename, "mine", "locked/new"),
        (door.rename, "locked", "elsewhere/locked"),
    ):
        asks_nothing(simulator, errno.EACCES, action, *words)
    door.rename("locked", "renamed")
    door.sync()
    assert far.names("renamed") == {"file", "folder"}
    assert far.names() == {"renamed", "elsewhere", "mine"}
    far.chmod("renamed", 0o755)


def test_a_name_that_is_too_long(door: Door, far: Any, simulator: Simulator) -> None:
    """ENAMETOOLONG in bytes, before anything is sent; 255 of them are carried."""
    far.write("file", b"x")
    door.listdir()
    long = "ü" * 127 + "xx"
    for action, *words in (
        (door.write, long, b"x"),
        (door.mkdir, long),
        (door.symlink, "file", long),
        (door.link, "file", long),
        (door.rename, "file", long),
    ):
        asks_nothing(simulator, errno.ENAMETOOLONG, action, *words)
    door.write(long[:-1], b"255 bytes")
    door.sync()
    assert far.read(long[:-1]) == b"255 bytes"
