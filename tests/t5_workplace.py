"""What a killed daemon leaves on the cluster is removed by the next one (Writing, litter)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, tree_door
from mounting import CALL_DEADLINE, Mount
from waits import wait_until

pytestmark = [
    pytest.mark.simulator,
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no usable /dev/fuse"),
]


@pytest.fixture(params=["v1", "v2"])
def place(request: pytest.FixtureRequest, own_simulator: Callable[..., Place]) -> Place:
    return own_simulator(api=request.param)


def use_of_the_workplace(mount: Mount) -> None:
    """An rmdir extracts a tar on both dialects."""
    mount.call(os.mkdir, mount.path / "made")
    mount.call(os.rmdir, mount.path / "made")


def test_the_working_directory_of_a_killed_daemon(
    mount_with: Callable[..., Mount], far: Any
) -> None:
    """Litter "is hidden and removed", also when the daemon that comes next never used it."""
    mount = mount_with()
    use_of_the_workplace(mount)
    assert len(far.litter()) == 1
    mount.kill()
    mount.start()
    assert mount.unmount_plainly() == 0
    assert far.all_litter() == []


def test_what_is_not_ours_stays(mount_with: Callable[..., Mount], far: Any) -> None:
    """Litter: "f7tfs deletes only … files and symlinks it made"."""
    mount = mount_with()
    mount.announce("is not ours")
    use_of_the_workplace(mount)
    (directory,) = far.litter()
    far.write(f"{directory}/precious", b"x")
    assert mount.unmount_plainly() == 0
    assert far.all_names(directory) == {"precious"}


def test_a_mount_that_needs_no_workplace_asks_nothing(
    place: Place, mount_with: Callable[..., Mount]
) -> None:
    """Tenet 3: the unmount costs no call where there is nothing to remove."""
    mount = mount_with()
    mount.call(os.listdir, mount.path)
    assert place.simulator is not None
    before = place.simulator.calls()["total"]
    assert mount.unmount_plainly() == 0
    assert place.simulator.calls()["total"] == before


def test_a_link_in_use_is_not_swept(place: Place, directory: str, tmp_path: Path, far: Any) -> None:
    """Names: a staged download of an odd name goes through a link, and may wait in the scheduler's
    queue for much longer than from one sweep to the next."""
    simulator = place.simulator
    assert simulator is not None
    content = os.urandom(5 << 20)
    far.write("brace{a,b}", content)
    with tree_door(place, directory, tmp_path) as door, ThreadPoolExecutor(1) as reader:
        simulator.hold_jobs(True)
        simulator.hold_staging(True)
        try:
            reading = reader.submit(door.read, "brace{a,b}")
            (link,) = wait_until(
                lambda: [one for one in far.all_litter() if os.path.islink(one)], "a link"
            )
            door.run(door.mounted.workplace.sweep)
            assert os.path.islink(link)
        finally:
            simulator.hold_jobs(False)
            simulator.hold_staging(False)
        assert reading.result(CALL_DEADLINE) == content
        wait_until(lambda: not os.path.lexists(link), "the link's end")


@pytest.mark.parametrize("count", [1, 20], ids=["a link", "an archive"])
@pytest.mark.parametrize(
    ("place", "extract", "remove"),
    [
        ("v1", "POST /utilities/extract", "DELETE /utilities/rm"),
        ("v2", "POST /filesystem/cluster/ops/extract", "DELETE /filesystem/cluster/ops/rm"),
    ],
    indirect=["place"],
)
def test_an_unmount_in_the_middle_of_an_upload(
    place: Place,
    mount_with: Callable[..., Mount],
    far: Any,
    count: int,
    extract: str,
    remove: str,
) -> None:
    """Writing: what is owed stays in the journal, and goes on at the next start. Found by the
    model: our working directory went first, and with it the archive that an upload was about to
    have extracted, so the upload was given up as one that can never arrive."""
    simulator = place.simulator
    assert simulator is not None
    far.mkdir("dir")
    content = {f"file.{number}": b"%d" % number for number in range(count)}
    if count == 1:
        if remove.endswith("utilities/rm"):
            pytest.skip("v1 publishes one file without an archive")
        far.write("dir/file.0", b"old")
    mount = mount_with(writeback_delay=0.2)
    mount.announce("stay in the journal", "never closed")
    ident, _ = simulator.faults(
        [
            {"match": extract, "times": 1, "action": {"delay": 1.0}},
            # Of the working directory, not of the archive in it.
            {"match": remove, "where": ".f7tfs-", "skip": 1, "action": {"delay": 1.5}},
        ]
    )
    for name, data in content.items():
        mount.call((mount.path / "dir" / name).write_bytes, data)
    wait_until(lambda: simulator.fired().get(ident), "the call that is to be in the middle")
    assert mount.unmount_plainly() == 0
    simulator.clear_faults()
    mount.start()
    mount.sync()
    assert mount.uploads()["items"] == []
    assert {name: far.read(f"dir/{name}") for name in far.names("dir")} == content
    assert mount.unmount_plainly() == 0
    assert far.all_litter() == []


def test_a_file_that_moved_before_a_kill_leaves_nothing(
    own_simulator: Callable[..., Place],
) -> None:
    """Litter. Found by the model: the next daemon took a temporary in the new directory, and the
    one in the old directory, which an attempt still seemed to need, stayed until a later sweep."""
    place = own_simulator()
    simulator, far = place.simulator, place.far(place.directory)
    assert simulator is not None
    far.mkdir("dir")
    far.write("dir/file", b"old")
    with place.mount(place.directory, writeback_delay=0.1) as mount:
        mount.start()
        proof = {"match": "GET /utilities/stat", "where": ".f7tfs-", "action": {"delay": 1.0}}
        (ident,) = simulator.faults([proof])
        mount.call((mount.path / "dir/file").write_bytes, b"new")
        wait_until(lambda: simulator.fired().get(ident), "the proof of its bytes")
        mount.call(os.rename, mount.path / "dir/file", mount.path / "moved")
        mount.kill()
        mount.announce("never closed")
        mount.start()
        mount.sync()
        assert far.read("moved") == b"new"
        assert far.names() == {"dir", "moved"}
        assert far.litter("dir") == set()
