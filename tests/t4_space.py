"""A spool on a disk that is full: ENOSPC to that write, nothing else breaks (SEMANTICS "Space")."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mounting import Mount
from t3_scenarios import data_of, refused

MIB = 1 << 20
DISK = 128  # MiB, of which the last 64 are for journal and log
pytestmark = [
    pytest.mark.simulator,
    pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small disk"),
]


@pytest.fixture
def cramped(mount_with: Callable[..., Mount]) -> Iterator[Mount]:
    """A mount whose state and cache lie on one small disk."""
    mount = mount_with(start=False, writeback_delay=30, cache_min_free="0")
    disk = mount.folder / "state"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", str(disk)], check=True, timeout=10
    )
    mount.environment["XDG_CACHE_HOME"] = str(disk / "cache")
    mount.announce("ENOSPC", "stay in the journal")
    try:
        yield mount.start()
    finally:
        mount.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=10)


def fill(mount: Mount, name: str, most: int) -> int:
    """Write until ENOSPC, at most so many bytes; what was accepted."""
    fd = os.open(mount.path / name, os.O_WRONLY | os.O_CREAT)
    done = 0
    try:
        while done < most:
            done += os.pwrite(fd, b"x" * MIB, done)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    finally:
        os.close(fd)
    return done


def test_a_full_disk(cramped: Mount, far: Any) -> None:
    """Space: "clean cache is evicted for dirty data, dirty data never; a full disk gives ENOSPC to
    that write, nothing else breaks"; once there is room, writing goes on."""
    mount = cramped
    for number in range(8):
        far.write(f"clean{number}", data_of(3 * MIB, number))
    mount.run("cat mnt/clean* >/dev/null")
    mount.call((mount.path / "dirty").write_bytes, data_of(5 * MIB))
    done = mount.call(fill, mount, "big", 2 * DISK * MIB, deadline=60)
    assert done > (DISK - 64 - 5 - 8) * MIB, f"the cache of 24 MiB did not give way: {done}"
    assert done < DISK * MIB
    refused(errno.ENOSPC, mount.call, (mount.path / "more").write_bytes, b"x" * MIB)
    assert mount.call((mount.path / "dirty").read_bytes) == data_of(5 * MIB)
    assert mount.call((mount.path / "clean3").read_bytes) == data_of(3 * MIB, 3)
    assert mount.call(os.stat, mount.path / "big").st_size == done
    mount.call(os.unlink, mount.path / "big")
    mount.call((mount.path / "more").write_bytes, data_of(7 * MIB))
    mount.sync()
    assert far.read("more") == data_of(7 * MIB)
    assert far.read("dirty") == data_of(5 * MIB)


def test_editing_needs_room_for_the_base(cramped: Mount, far: Any) -> None:
    """Space: the base that an edit starts from is dirty data as well; ENOSPC before anything of the
    file is changed."""
    mount = cramped
    content = data_of(20 * MIB)
    far.write("base", content)
    done = mount.call(fill, mount, "big", 30 * MIB, deadline=60)
    assert done == 30 * MIB

    def append() -> None:
        fd = os.open(mount.path / "base", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, b"more")
        finally:
            os.close(fd)

    refused(errno.ENOSPC, mount.call, append)
    assert mount.call(os.stat, mount.path / "base").st_size == len(content)
    mount.call(os.unlink, mount.path / "big")
    mount.call(append)
    mount.sync()
    assert far.read("base") == content + b"more"
