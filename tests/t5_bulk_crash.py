"""kill -9, and an orderly end, while an archive of small files travels (docs/decisions/0011):
whatever is done with the files afterwards, nothing is lost, old or left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import leave_tidy
from mounting import Mount
from sim_process import Simulator
from waits import wait_until

from f7tfs.faultpoints import VARIABLE

pytestmark = pytest.mark.simulator
POINTS = ("archive.expected", "archive.brought", "archive.extracted", "archive.removed")


@pytest.mark.parametrize("point", POINTS)
def test_kill_with_an_archive_under_way(
    mount_with: Callable[..., Mount], far: Any, point: str
) -> None:
    """After the remount one file each is edited, renamed, removed, replaced and made private."""
    mount = mount_with(start=False)
    mount.environment[VARIABLE] = point
    mount.start()
    names = ("kept", "edited", "renamed", "removed", "replaced", "private")
    script = "; ".join(f"echo {name} > mnt/{name}; chmod 664 mnt/{name}" for name in names)
    mount.run(script, check=False)
    assert mount.process is not None
    mount.process.wait(20)  # it ends itself
    del mount.environment[VARIABLE]
    mount.kill()
    mount.start()
    (mount.folder / "new").write_bytes(b"more of it\n")
    mount.run(
        "echo newer >> mnt/edited; mv mnt/renamed mnt/other; rm mnt/removed;"
        " cp new mnt/.new-one; mv mnt/.new-one mnt/replaced; chmod 600 mnt/private"
    )
    mount.sync()
    wanted = {
        "kept": b"kept\n",
        "edited": b"edited\nnewer\n",
        "other": b"renamed\n",
        "replaced": b"more of it\n",
        "private": b"private\n",
    }
    assert {name: far.read(name) for name in far.names()} == wanted
    assert (far.mode("kept"), far.mode("private")) == (0o664, 0o600)
    for name, content in wanted.items():
        assert mount.call((mount.path / name).read_bytes) == content
    leave_tidy(mount)
    assert far.all_litter() == []


@pytest.mark.v1
def test_a_start_right_after_an_end_waits_for_the_extraction(
    mount: Mount, far: Any, simulator: Simulator
) -> None:
    """The server allows an extraction 5 s. One that the end of the daemon left running would bring
    old bytes over those that the next daemon sends."""
    extract = "POST /utilities/extract"
    (ident,) = simulator.faults([{"match": extract, "action": {"hang": True}}])
    mount.announce("are not there", "stay in the journal")
    mount.run("for n in 1 2 3; do echo $n > mnt/file-$n; done")
    wait_until(lambda: simulator.fired().get(ident), "the extraction")
    done = mount.umount("--now")
    assert done.returncode == 0, done.stderr
    ended = time.monotonic()
    mount.start()
    mount.run("echo newer > mnt/file-2")
    wait_until(lambda: os.path.exists(f"{far.directory}/file-2"), "the next try", 30)
    assert time.monotonic() - ended > 3.0
    mount.sync()
    assert far.read("file-2") == b"newer\n"
