"""Many small files at once (SEMANTICS "Upload routes"): what travels in an archive arrives whole or
goes by itself, harms nobody else's file, and is never lost on the way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from doors import Door, MountDoor
from sim_process import Simulator
from waits import wait_until

pytestmark = pytest.mark.simulator

COUNT = 12


@pytest.fixture
def door(door_with: Callable[..., Door]) -> Door:
    """Nothing leaves before the test asks for it, however slow this machine is."""
    return door_with(writeback_delay=60)


@pytest.fixture
def quick(door_with: Callable[..., Door]) -> Door:
    return door_with(writeback_delay=0.3)


def endpoint(simulator: Simulator, verb: str) -> str:
    """How the simulator calls "POST extract" and its like in the dialect that it speaks."""
    method, name = verb.split()
    if bool(simulator.v2_url):
        return f"{method} /filesystem/{simulator.system}/ops/{name}"
    return f"{method} /utilities/{name}"


def disturb(simulator: Simulator, verb: str, action: dict[str, Any], **more: Any) -> int:
    return simulator.faults([{"match": endpoint(simulator, verb), "action": action, **more}])[0]


def count(simulator: Simulator, verb: str) -> int:
    return int(simulator.calls()["calls"].get(endpoint(simulator, verb), 0))


def contents(number: int = COUNT) -> dict[str, bytes]:
    return {f"file-{each:02}": b"%d\n" % each * (each * 37) for each in range(number)}


def put_all(door: Door, files: dict[str, bytes], mode: int = 0o644) -> None:
    for name, content in files.items():
        with door.open(name, os.O_WRONLY | os.O_CREAT, mode) as file:
            if content:
                file.write(content)


def retry(door: Door) -> None:
    if isinstance(door, MountDoor):
        door.mount.call((door.mount.path / ".f7tfs" / "retry").write_text, "\n")
    else:
        with door.open(".f7tfs/retry", os.O_WRONLY) as lever:
            lever.write(b"\n")


def arrived(far: Any, files: dict[str, bytes]) -> None:
    assert {name: far.read(name) for name in far.names()} == files


def test_small_files_travel_together(door: Door, far: Any, simulator: Simulator) -> None:
    """ "many small files in three calls": upload, extract, remove; an empty one among them."""
    files = contents()
    put_all(door, files)
    door.sync()
    arrived(far, files)
    assert count(simulator, "POST upload") == 1
    assert count(simulator, "POST extract") == 1
    for name, content in files.items():
        assert door.read(name) == content
    assert sorted(door.listdir()) == sorted(files)


def test_times_and_modes_arrive(door: Door, far: Any) -> None:
    """ "times and modes arrive on the cluster"."""
    files = contents(4)
    put_all(door, files)
    door.chmod("file-01", 0o755)
    door.chmod("file-02", 0o600)
    for number, name in enumerate(files):
        door.utime(name, (1_500_000_000 + number) * 10**9 + 123_456_789)
    door.sync()
    for number, name in enumerate(files):
        assert int(far.stat(name).st_mtime) == 1_500_000_000 + number
        assert door.stat(name).mtime_ns == (1_500_000_000 + number) * 10**9 + 123_456_789
    assert [far.mode(name) for name in files] == [0o644, 0o755, 0o600, 0o644]
    door.refresh()
    assert [door.stat(name).permissions for name in files] == [0o644, 0o755, 0o600, 0o644]


def test_what_the_umask_of_the_cluster_takes_away_is_given_back(door: Door, far: Any) -> None:
    files = contents(3)
    put_all(door, files)
    door.chmod("file-01", 0o664)
    door.sync()
    assert far.mode("file-01") == 0o664
    assert door.stat("file-01").permissions == 0o664
    arrived(far, files)


def test_an_archive_of_private_files_is_private(door: Door, far: Any, simulator: Simulator) -> None:
    """While it lies on the cluster, nobody else may read it."""
    files = contents(3)
    put_all(door, files, 0o600)
    held = disturb(simulator, "POST extract", {"delay": 1.0})
    door.sync()
    assert simulator.fired()[held] == 1
    (place,) = [name for name in far.litter() if far.is_directory(name)] or [""]
    assert not place or far.mode(place) == 0o700
    assert [far.mode(name) for name in files] == [0o600] * 3


def test_a_name_that_is_there_is_not_replaced(door: Door, far: Any) -> None:
    """ "they carry only names that a listing taken just before shows absent": somebody else's file
    stays, ours goes beside it."""
    door.announce("conflict|changed on the cluster")
    files = contents(5)
    put_all(door, files)
    far.write("file-03", b"theirs")
    door.sync()
    assert far.read("file-03") == b"theirs"
    (beside,) = far.names() - set(files)
    assert beside.startswith("file-03.conflict-")
    assert far.read(beside) == files["file-03"]
    for name in set(files) - {"file-03"}:
        assert far.read(name) == files[name]


def test_a_directory_in_the_place_of_a_file(door: Door, far: Any) -> None:
    door.announce("conflict|changed on the cluster")
    files = contents(4)
    put_all(door, files)
    far.mkdir("file-02")
    door.sync()
    assert far.is_directory("file-02")
    (beside,) = [name for name in far.names() if name.startswith("file-02.")]
    assert far.read(beside) == files["file-02"]


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_lost_reply_to_the_extraction(
    door: Door, far: Any, simulator: Simulator, lost: str
) -> None:
    """After a lost reply first look: nothing is sent twice, or a conflict with ourselves."""
    door.announce("are not there", "again in")
    files = contents(6)
    put_all(door, files)
    disturb(simulator, "POST extract", {"drop": lost})
    door.sync()
    arrived(far, files)
    assert count(simulator, "POST extract") == (1 if lost == "after" else 2)


@pytest.mark.parametrize("verb", ["POST upload", "DELETE rm", "GET ls"])
def test_lost_replies_around_it(door: Door, far: Any, simulator: Simulator, verb: str) -> None:
    door.announce("are not there", "again in", "an archive of", "removed later")
    files = contents(6)
    put_all(door, files)
    disturb(simulator, verb, {"drop": "after"})
    door.sync()
    arrived(far, files)


def test_a_refused_extraction(door: Door, far: Any, simulator: Simulator) -> None:
    """ "a failing member falls back to single uploads and cannot block the others": here all."""
    door.announce("are not there")
    files = contents(4)
    put_all(door, files)
    body = {"description": "Error on extract operation", "error": "tar: something is wrong"}
    message = {"errorType": "error", "message": "tar: something is wrong", "data": None}
    is_v2 = bool(simulator.v2_url)
    disturb(
        simulator,
        "POST extract",
        {"status": 500 if is_v2 else 400, "body": message if is_v2 else body},
    )
    door.sync()
    arrived(far, files)


def test_one_directory_that_cannot_be_written(door: Door, far: Any) -> None:
    """Its files are stuck, with the reason; those of the other directories arrive."""
    far.mkdir("open")
    far.mkdir("closed")
    door.listdir("open")
    door.listdir("closed")
    files = {f"{folder}/{name}": data for folder in ("open", "closed") for name, data in
             contents(4).items()}  # fmt: skip
    put_all(door, files)
    far.chmod("closed", 0o555)
    door.announce("is stuck", "are not there", "stuck")
    with pytest.raises(OSError, match=r"stuck|error"):
        door.sync()
    assert {name: far.read(f"open/{name}") for name in far.names("open")} == contents(4)
    assert far.names("closed") == set()
    assert door.getxattr("closed/file-01", "user.f7tfs.state") == b"stuck"
    assert door.read("closed/file-01") == files["closed/file-01"]
    far.chmod("closed", 0o755)
    retry(door)
    door.sync()
    assert {name: far.read(f"closed/{name}") for name in far.names("closed")} == contents(4)


def travelling(door: Door, simulator: Simulator) -> dict[str, bytes]:
    """Files whose archive is being extracted."""
    files = contents(5)
    put_all(door, files)
    held = disturb(simulator, "POST extract", {"delay": 0.7})
    wait_until(lambda: simulator.fired()[held], "the extraction")
    return files


def test_written_again_while_the_archive_travels(
    quick: Door, far: Any, simulator: Simulator
) -> None:
    files = travelling(quick, simulator)
    with quick.open("file-02", os.O_WRONLY) as file:
        file.write(b"newer", 0)
        file.truncate(5)
    quick.sync()
    files["file-02"] = b"newer"
    arrived(far, files)
    assert quick.read("file-02") == b"newer"


def test_unlinked_and_renamed_while_the_archive_travels(
    quick: Door, far: Any, simulator: Simulator
) -> None:
    files = travelling(quick, simulator)
    quick.unlink("file-01")
    quick.rename("file-02", "other")
    quick.chmod("file-03", 0o700)
    quick.sync()
    del files["file-01"]
    files["other"] = files.pop("file-02")
    arrived(far, files)
    assert far.mode("file-03") == 0o700
    assert sorted(quick.listdir()) == sorted(files)


def test_new_directories_and_deep_trees(door: Door, far: Any, simulator: Simulator) -> None:
    """Fewer calls than files, directories included."""
    files: dict[str, bytes] = {}
    for number in range(4):
        folder = f"d{number}"
        door.mkdir(folder)
        for name, content in contents(5).items():
            files[f"{folder}/{name}"] = content
    simulator.reset_calls()
    put_all(door, files)
    door.sync()
    assert sum(simulator.calls()["calls"].values()) <= 13
    for name, content in files.items():
        assert far.read(name) == content
        assert door.read(name) == content


def test_awkward_names_in_an_archive(door: Door, far: Any) -> None:
    """A tar takes any name, byte for byte."""
    names = ["-rf", "with space", "ünïcödé", "x" * 200, "*", "trailing "]
    files = {name: name.encode() for name in names}
    put_all(door, files)
    door.sync()
    arrived(far, files)


def test_rm_right_after_cp(door: Door, far: Any) -> None:
    """`cp a b; rm a` must never end with neither: tombstones wait for the archive."""
    files = contents(4)
    put_all(door, files)
    door.sync()
    copies = {f"copy-{name}": content for name, content in files.items()}
    put_all(door, copies)
    for name in files:
        door.unlink(name)
    assert sorted(door.listdir()) == sorted(copies)
    door.sync()
    arrived(far, copies)


def test_a_name_that_a_listing_shows_otherwise_is_not_replaced(
    door: Door, far: Any, simulator: Simulator
) -> None:
    """A listing shows a literal backslash like an escape: only a stat of the name tells."""
    if not simulator.v2_url:
        pytest.skip("v1 carries no backslash")
    door.announce("conflict|changed on the cluster")
    name = r"a\303\274b"
    far.write(name, b"theirs")
    files = contents(3) | {name: b"ours"}
    put_all(door, files)
    door.sync()
    assert far.read(name) == b"theirs"
    (beside,) = far.names() - set(files)
    assert far.read(beside) == b"ours"


def test_an_archive_that_cannot_be_removed_stops_nobody(
    door: Door, far: Any, simulator: Simulator
) -> None:
    door.announce("are not there", "stays", "removed later")
    disturb(simulator, "POST extract", {"drop": "before"})
    denied: dict[str, Any] = {"status": 400, "headers": {"X-Permission-Denied": "no"}, "body": "{}"}
    if simulator.v2_url:
        message = "rm: cannot remove: Permission denied"
        body = {"errorType": "error", "message": message, "data": None}
        denied = {"status": 403, "body": body}
    disturb(simulator, "DELETE rm", denied, times=2, where=".tar")
    files = contents(4)
    put_all(door, files)
    door.sync()
    arrived(far, files)


def test_a_few_files_in_a_crowded_directory_go_by_themselves(
    door: Door, far: Any, simulator: Simulator
) -> None:
    """Listing thousands of names before and after costs more than two files do."""
    far.mkdir("crowded")
    for number in range(2500):
        far.write(f"crowded/{number}", b"")
    door.listdir("crowded")
    simulator.reset_calls()
    put_all(door, {"crowded/one": b"1", "crowded/two": b"2"})
    door.sync()
    assert (far.read("crowded/one"), far.read("crowded/two")) == (b"1", b"2")
    if not simulator.v2_url:  # there a rename is an extraction, too
        assert count(simulator, "POST extract") == 0
    assert count(simulator, "GET ls") == 0


def test_a_file_of_an_archive_is_followed(door_with: Callable[..., Door], far: Any) -> None:
    """Growth: "same inode and only grown → the open handle sees it", also of a file that this mount
    has just uploaded together with others: its inode is learnt while it is open."""
    door = door_with(listing_ttl=0.3)
    files = contents(3)
    put_all(door, files)
    door.sync()
    with door.open("file-02", os.O_RDONLY) as file:
        assert file.read() == files["file-02"]
        opened = time.monotonic()
        while time.monotonic() - opened < 2:  # as tail -f does
            file.stat()
            time.sleep(0.2)
        with open(far["file-02"], "ab") as log:
            log.write(b"more\n")
        wait_until(lambda: file.read() == files["file-02"] + b"more\n", "the growth")
