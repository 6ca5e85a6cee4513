"""Reading large files, through both doors: staged once, by ranges, links that last, growth."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from doors import Door, holding
from sim_process import Simulator
from t3_scenarios import data_of, refused
from waits import wait_until

MiB = 1 << 20
SIZE = 40 * MiB
STAGINGS = {"POST /storage/xfer-external/download", "POST /filesystem/cluster/transfer/download"}

pytestmark = pytest.mark.simulator


@pytest.fixture(scope="module")
def content() -> bytes:
    return data_of(SIZE)


@pytest.fixture
def big(far: Any, content: bytes) -> bytes:
    """`big`, old enough to be trusted by later mounts."""
    far.write("big", content)
    far.age("big")
    return content


def stagings(simulator: Simulator) -> int:
    calls = simulator.calls()["calls"]
    return sum(calls.get(one, 0) for one in STAGINGS)


def left_the_store(simulator: Simulator) -> int:
    return int(simulator.calls()["object_store"]["bytes_out"])


def test_a_far_look_fetches_a_block(door: Door, big: bytes, simulator: Simulator) -> None:
    """Reading: "a 4 KiB read at offset 900 MiB of a 1 TiB file fetches one block, not the file"."""
    with door.open("big", os.O_RDONLY) as file:
        assert stagings(simulator) == 0  # nothing at open
        for at in (33 * MiB + 12_345, 7 * MiB - 2, SIZE - 10):
            assert file.read(4096, at) == big[at : at + 4096]
    assert stagings(simulator) == 1
    assert left_the_store(simulator) <= 8 * MiB


def test_a_sequential_reader_gets_every_byte_once(
    door: Door, big: bytes, simulator: Simulator
) -> None:
    """Reading: "readers stream while the rest arrives"; nothing is fetched twice."""
    assert door.read("big") == big
    assert stagings(simulator) == 1
    assert SIZE <= left_the_store(simulator) <= SIZE + 16
    assert door.getxattr("big", "user.f7tfs.state") == b"cached"
    simulator.reset_calls()
    assert door.read("big") == big
    assert left_the_store(simulator) == 0


def test_the_link_outlives_the_mount(door: Door, big: bytes, simulator: Simulator) -> None:
    """Reading: "its link is reused over opens and remounts"; what arrived before is kept."""
    with door.open("big", os.O_RDONLY) as file:
        assert file.read(1000, 20 * MiB) == big[20 * MiB : 20 * MiB + 1000]
        assert file.read(10, 21 * MiB - 10) == big[21 * MiB - 10 : 21 * MiB]  # all of the block
    door.remount()
    simulator.reset_calls()
    with door.open("big", os.O_RDONLY) as file:
        assert file.read(1000, 20 * MiB) == big[20 * MiB : 20 * MiB + 1000]
        assert left_the_store(simulator) == 0
        assert file.read(1000, 30 * MiB) == big[30 * MiB : 30 * MiB + 1000]
    assert stagings(simulator) == 0
    assert door.read("big") == big
    assert left_the_store(simulator) <= SIZE


def test_after_a_crash_no_wrong_byte(door: Door, big: bytes, far: Any) -> None:
    """Cache: what a killed daemon left is either right or not there."""
    with door.open("big", os.O_RDONLY) as file:
        assert file.read(1000, 20 * MiB) == big[20 * MiB : 20 * MiB + 1000]
        door.announce("reset|closed|connection|cancelled")
    door.remount(crash=True)
    assert door.read("big") == big


def test_a_link_that_ends_in_the_middle(door: Door, big: bytes, simulator: Simulator) -> None:
    """Flight: "link renewed when it answers 403/404 in the middle"."""
    with door.open("big", os.O_RDONLY) as file:
        assert file.read(1000, 0) == big[:1000]
        refusal = {"status": 403, "body": "<Error><Code>AccessDenied</Code></Error>"}
        simulator.faults([{"match": "object-store GET", "times": 1, "action": refusal}])
        assert file.read(1000, 20 * MiB) == big[20 * MiB : 20 * MiB + 1000]
    assert stagings(simulator) == 2
    assert door.read("big") == big


def test_lost_connections_go_on_where_they_stopped(
    door: Door, big: bytes, simulator: Simulator
) -> None:
    """Reading: a body that was cut is not the file."""
    simulator.faults(
        [{"match": "object-store GET", "skip": 2, "times": 2, "action": {"truncate": 300_000}}]
    )
    assert door.read("big") == big
    assert stagings(simulator) == 1


def test_another_version_is_another_inode(
    door_with: Callable[..., Door], far: Any, big: bytes, simulator: Simulator
) -> None:
    """Reading: "handles on the old one keep reading the version that they opened, as far as it is
    cached or staged"; the name shows the new one."""
    door = door_with(listing_ttl=0.2, stale_max=0.2)
    newer = data_of(SIZE - 5 * MiB)
    with door.open("big", os.O_RDONLY) as file:
        assert file.read(1000, 0) == big[:1000]
        far.remove("big")
        far.write("big", newer)
        wait_until(lambda: door.stat("big").size == len(newer), "the new version")
        assert door.read("big") == newer
        assert file.read(1000, 30 * MiB) == big[30 * MiB : 30 * MiB + 1000]


def test_a_log_that_grows_is_not_staged_again(
    door_with: Callable[..., Door], far: Any, simulator: Simulator
) -> None:
    """Reading: "same inode and only grown → … only the new tail is fetched, where the dialect is
    byte-exact … without staging the file again"."""
    door = door_with(listing_ttl=0.2, stale_max=0.2)
    text = b"".join(b"%07d a line of the log: \xc3\xa4\xc3\xb6\n" % i for i in range(150_000))
    assert len(text) > 4 * MiB
    far.write("log", text)
    with door.open("log", os.O_RDONLY) as file:
        door_reads = b"".join(iter_of(file))
        assert door_reads == text
        for number in range(3):
            line = b"new line %d \xc3\xa9\n" % number
            with open(far["log"], "ab") as log:
                log.write(line)
            at = len(text)
            text += line
            wait_until(_shows(file, at, line), "the new line")
        assert file.read(1000, 0) == text[:1000]
    assert stagings(simulator) == 1


def _shows(file: Any, at: int, line: bytes) -> Callable[[], bool]:
    return lambda: file.stat().size == at + len(line) and file.read(4096, at) == line


def iter_of(file: Any) -> Any:
    at = 0
    while data := file.read(MiB, at):
        at += len(data)
        yield data


@pytest.mark.parametrize("same_beginning", [True, False])
def test_what_was_rewritten_longer_is_never_mixed(
    door_with: Callable[..., Door], far: Any, same_beginning: bool
) -> None:
    """Reading: "a later fingerprint is never attached to earlier bytes": `cp new old` on the
    cluster keeps the inode, and the file is longer."""
    door = door_with(listing_ttl=0.2, stale_max=0.2)
    first = b"first version\n" * 400
    far.write("file", first)
    assert door.read("file") == first
    second = (b"first version\n" if same_beginning else b"") + b"second version!\n" * 500
    with open(far["file"], "wb") as file:
        file.write(second)
    wait_until(lambda: door.stat("file").size == len(second), "the new size")
    wait_until(lambda: door.read("file") == second, "the new content")


def test_a_file_larger_than_the_cache(
    door_with: Callable[..., Door], big: bytes, far: Any, simulator: Simulator
) -> None:
    """Cache: limit "enforced *at admission*", "two readers cannot dead-lock each other out of
    space": both are read through a cache that holds a fifth of one."""
    other = bytes(reversed(big))
    far.write("other", other)
    door = door_with(cache_size="8MiB", cache_min_free="1MiB")
    with holding(door.open("big", os.O_RDONLY), door.open("other", os.O_RDONLY)) as files:
        for at in range(0, SIZE, MiB):
            for file, whole in zip(files, (big, other), strict=True):
                assert file.read(MiB, at) == whole[at : at + MiB], at
    assert stagings(simulator) == 2


def test_too_large_until_it_is_asked_for(
    door_with: Callable[..., Door], big: bytes, far: Any, simulator: Simulator
) -> None:
    """Reading: "Files above `stage_limit` … give EFBIG"."""
    far.write("small", b"small")
    door = door_with(stage_limit="30MiB")
    door.announce("stage_limit")
    with door.open("big", os.O_RDONLY) as file:
        refused(errno.EFBIG, file.read, 10)
    assert door.read("small") == b"small"
    assert stagings(simulator) == 0


def test_an_edit_of_a_partly_cached_file(door: Door, big: bytes, far: Any) -> None:
    """Writing: "the base is fetched only when a part of it is really needed", and then whole."""
    with door.open("big", os.O_RDWR) as file:
        assert file.read(10, 9 * MiB) == big[9 * MiB : 9 * MiB + 10]
        file.write(b"EDITED", 5 * MiB)
    door.sync()
    assert far.read("big") == big[: 5 * MiB] + b"EDITED" + big[5 * MiB + 6 :]


def test_a_replaced_file_is_never_mixed_in(
    door_with: Callable[..., Door], big: bytes, far: Any, simulator: Simulator
) -> None:
    """Reading: handles keep the version that they opened "as far as it is cached or staged, else
    ESTALE", and stay at that: no later read gets bytes of another version."""
    door = door_with(listing_ttl=300)
    door.announce("another file|replaced|ESTALE|403")
    with door.open("big", os.O_RDONLY) as file:
        assert file.read(1000, 0) == big[:1000]
        far.remove("big")
        far.write("big", bytes(reversed(big)))
        far.age("big", 60)
        refusal = {"status": 403, "body": "<Error><Code>AccessDenied</Code></Error>"}
        simulator.faults([{"match": "object-store GET", "times": 1, "action": refusal}])
        for _ in range(3):
            refused(errno.ESTALE, file.read, 1000, 20 * MiB)
    door.refresh()
    assert door.read("big") == bytes(reversed(big))


def test_a_log_that_grows_while_it_is_read(door_with: Callable[..., Door], far: Any) -> None:
    """Reading: a growing file is read as far as it was listed, whatever comes behind, and others
    may look at it meanwhile."""
    door = door_with(listing_ttl=0.2, stale_max=0.2)
    text = b"".join(b"%09d\n" % number for number in range(600_000))
    far.write("log", text)
    with door.open("log", os.O_RDONLY) as file:
        at = 0
        while at < 5 * MiB:
            with open(far["log"], "ab") as log:
                log.write(b"more and more\n")
            door.listdir()
            assert door.stat("log").size >= len(text)
            found = file.read(MiB, at)
            assert found == text[at : at + len(found)]
            at += len(found)
        assert found


def test_a_middle_file_where_the_cache_is_taken(
    door_with: Callable[..., Door], big: bytes, far: Any, simulator: Simulator
) -> None:
    """Cache: a file that one call brings is admitted whole, once, however little room there is."""
    middle = data_of(3 * MiB)
    far.write("middle", middle)
    door = door_with(cache_size="2MiB", cache_min_free="1MiB")
    with holding(door.open("big", os.O_RDONLY), door.open("middle", os.O_RDONLY)) as files:
        assert files[0].read(MiB, 0) == big[:MiB]
        assert files[1].read(1000, 2 * MiB) == middle[2 * MiB : 2 * MiB + 1000]
        assert files[0].read(MiB, 30 * MiB) == big[30 * MiB : 31 * MiB]
    downloads = [n for call, n in simulator.calls()["calls"].items() if "download" in call]
    assert sum(downloads) == 2  # one of the small file, one staging
