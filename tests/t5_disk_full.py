"""The disk that holds spool and journal is full to the last byte, under a real daemon: what the
program that writes is told, and that what it was told of is not forgotten (Tenet 2)."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, place_of
from mounting import Mount
from sim_process import running_simulator
from waits import wait_until

from f7tfs.cli.exits import Exit

pytestmark = [
    pytest.mark.simulator,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system"),
]
CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with running_simulator(staging_interval=0.3) as simulator:
        yield place_of(simulator)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB: more than the spool leaves free, by a little."""
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=80m", "f7tfs-test", str(small)]
    if subprocess.run(command, timeout=20, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield small
    subprocess.run(["umount", "-l", str(small)], timeout=20, check=True)


@pytest.fixture
def mount(disk: Path, mount_with: Callable[..., Mount]) -> Mount:
    return mount_with(state_directory=disk / "state", **{"jobs.enabled": "false"})


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), open(disk / "filler", "wb") as filler:
        while True:
            filler.write(b"x" * 65536)
            filler.flush()


def refused(mount: Mount, function: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:
        mount.call(function, *arguments)
    assert caught.value.errno == errno.ENOSPC


@pytest.fixture
def unwritten(disk: Path, mount: Mount) -> Path:
    """A file whose close() failed for want of room, with the disk still full."""
    mount.announce("is not in the journal", "ENOSPC", "takes no more records")
    path = mount.path / "file"
    fd = mount.call(os.open, path, os.O_RDWR | os.O_CREAT, 0o644)
    mount.call(os.pwrite, fd, CONTENT, 0)
    fill(disk)
    refused(mount, os.fsync, fd)
    refused(mount, os.close, fd)
    return path


def test_what_close_could_not_write_down_is_sent_once_there_is_room(
    disk: Path, mount: Mount, far: Any, unwritten: Path
) -> None:
    assert mount.call(unwritten.read_bytes) == CONTENT
    refused(mount, os.open, mount.path / "other", os.O_RDWR | os.O_CREAT)
    mount.call(os.rename, unwritten, mount.path / "name")
    (disk / "filler").unlink()
    wait_until(lambda: far.names() == {"name"}, "the file on the cluster", 30)
    assert far.read("name") == CONTENT
    mount.sync()
    mount.assert_nothing_left()


def test_who_waits_is_told(disk: Path, mount: Mount, far: Any, unwritten: Path) -> None:
    """umount and sync do not pass over it."""
    done = mount.f7tfs("sync", str(mount.path))
    assert done.returncode == Exit.UPLOADS
    assert "file: " in done.stderr
    assert "No space left on device" in done.stderr or "takes no more records" in done.stderr
    assert mount.f7tfs("umount", str(mount.path)).returncode == Exit.UPLOADS
    assert mount.is_mounted
    (disk / "filler").unlink()
    assert mount.f7tfs("sync", str(mount.path)).returncode == 0
    assert far.read("file") == CONTENT


def test_one_that_is_removed_is_gone(disk: Path, mount: Mount, far: Any, unwritten: Path) -> None:
    mount.call(os.unlink, unwritten)
    (disk / "filler").unlink()
    mount.run("echo other >mnt/other")
    mount.sync()
    assert far.names() == {"other"}
    assert set(mount.call(os.listdir, mount.path)) == {"other"}


def test_a_plain_unmount_tries_once_more(
    disk: Path, mount: Mount, far: Any, unwritten: Path
) -> None:
    mount.announce("stay in the journal")
    (disk / "filler").unlink()
    assert mount.unmount_plainly() == 0
    mount.start()
    mount.sync()
    assert far.read("file") == CONTENT


def test_it_can_be_given_up(disk: Path, mount: Mount, far: Any, unwritten: Path) -> None:
    """It takes the very room that is missing."""
    listed = mount.f7tfs("uploads", "list", str(mount.path)).stdout
    assert "No space left" in listed or "takes no more records" in listed
    assert " open " not in listed
    done = mount.f7tfs("uploads", "discard", "--yes", str(unwritten))
    assert done.returncode == 0, done.stderr
    assert mount.call(os.listdir, mount.path) == []
    (disk / "filler").unlink()
    mount.sync()
    assert far.names() == set()


def test_sigterm_ends_well(disk: Path, mount: Mount, far: Any, unwritten: Path) -> None:
    """What can be written down is drained; what cannot is named in the log, with its bytes."""
    mount.announce("not everything is on the cluster", "never closed", "stay in the journal")
    assert mount.terminate() == 0
    assert "file is not in the journal" in mount.log()
    (disk / "filler").unlink()
    mount.start()
    (left,) = (disk / "state").glob("*/*/spool/unclosed/*")
    assert left.read_bytes() == CONTENT


def test_a_rename_that_is_found_out_while_the_disk_is_full(
    place: Place, disk: Path, mount: Mount, far: Any
) -> None:
    """What a lost rename moved is followed again and again, until the journal takes it; the file
    that was moved is not taken for one that was replaced."""
    simulator = place.simulator
    assert simulator is not None
    mount.announce("not known", "EIO", "EHOSTUNREACH", "offline", "takes no more records", "ENOSPC")
    far.write("file", b"old")
    far.age("file")
    mount.call((mount.path / "file").write_bytes, CONTENT)
    looks = {"match": "GET /utilities/stat", "where": "moved", "skip": 1, "times": None}
    simulator.faults(
        [
            {"match": "PUT /utilities/rename", "times": 1, "action": {"drop": "after"}},
            {**looks, "action": {"drop": "before"}},
        ]
    )
    with pytest.raises(OSError):
        mount.call(os.rename, mount.path / "file", mount.path / "moved", deadline=90)
    fill(disk)
    simulator.clear_faults()
    wait_until(lambda: mount.log().count("not known yet") > 1, "one more try", 30)
    (disk / "filler").unlink()
    mount.sync()
    assert far.names() == {"moved"}
    assert far.read("moved") == CONTENT
