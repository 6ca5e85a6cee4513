"""Files and their content through both doors: what the application sees, and what the cluster
holds after a sync."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import time
from typing import Any

import pytest
from doors import Door, holding
from sim_process import Simulator
from waits import wait_until

DIRECT_LIMIT = 3_932_157  # bytes; above it downloads are staged (v1 FACTS §4)


def refused(number: int, action: Any, *arguments: Any, **words: Any) -> None:
    """The call fails with exactly this errno."""
    with pytest.raises(OSError) as caught:
        action(*arguments, **words)
    assert caught.value.errno == number, (
        f"{errno.errorcode.get(caught.value.errno or 0)} instead of {errno.errorcode[number]}: "
        f"{caught.value}"
    )


def data_of(size: int, seed: int = 0) -> bytes:
    return random.Random(size + seed).randbytes(size)


# Content.


@pytest.mark.parametrize("size", [0, 1, 4096, 131_073, 1_500_000])
def test_what_is_written_is_read_and_arrives(door: Door, far: Any, size: int) -> None:
    """Writing: "All writing goes to a spool file …" and arrives verified."""
    content = data_of(size)
    door.write("file", content)
    assert door.read("file") == content
    assert door.stat("file").size == size
    door.sync()
    assert far.read("file") == content
    assert door.read("file") == content
    assert far.names() == {"file"}


@pytest.mark.simulator
def test_overwriting_downloads_nothing(door: Door, far: Any, simulator: Simulator) -> None:
    """Writing: "`open(O_WRONLY|O_TRUNC)` downloads nothing"."""
    far.write("file", b"old " * 1000)
    assert door.stat("file").size == 4000
    door.write("file", b"new")
    assert door.read("file") == b"new"
    door.sync()
    assert far.read("file") == b"new"
    assert door.stat("file").size == 3
    assert simulator.calls()["calls"].get("GET /utilities/download", 0) == 0


def test_append(door: Door, far: Any) -> None:
    """Writing: append keeps what is on the cluster."""
    far.write("log", b"one\n")
    door.append("log", b"two\n")
    door.append("log", b"three\n")
    assert door.read("log") == b"one\ntwo\nthree\n"
    door.sync()
    assert far.read("log") == b"one\ntwo\nthree\n"


def test_append_to_a_new_file(door: Door, far: Any) -> None:
    """Writing: `>>` makes the file if need be."""
    door.append("log", b"one\n")
    door.append("log", b"two\n")
    door.sync()
    assert far.read("log") == b"one\ntwo\n"


def test_random_writes(door: Door, far: Any) -> None:
    """Writing: random writes into a file of the cluster; the rest stays."""
    model = bytearray(data_of(300_000))
    far.write("file", bytes(model))
    with door.open("file", os.O_RDWR) as file:
        for seed in range(20):
            chance = random.Random(seed)
            offset, data = chance.randrange(320_000), chance.randbytes(chance.randrange(1, 5000))
            file.write(data, offset)
            model[len(model) :] = bytes(max(0, offset - len(model)))
            model[offset : offset + len(data)] = data
        assert file.read(1 << 20, 0) == bytes(model)[: 1 << 20]
    assert door.read("file") == bytes(model)
    door.sync()
    assert far.read("file") == bytes(model)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 70_000])
def test_truncate_by_name(door: Door, far: Any, size: int) -> None:
    """Writing: truncate, down and up; what is new is zeros."""
    far.write("file", b"x" * 1000)
    door.truncate("file", size)
    wanted = (b"x" * 1000)[:size].ljust(size, b"\0")
    assert door.stat("file").size == size
    assert door.read("file") == wanted
    door.sync()
    assert far.read("file") == wanted


def test_truncate_of_an_open_file(door: Door, far: Any) -> None:
    """Writing: ftruncate between writes."""
    with door.open("file", os.O_RDWR | os.O_CREAT) as file:
        file.write(b"0123456789")
        file.truncate(4)
        file.write(b"ab", 6)
        assert file.read() == b"0123\0\0ab"
    door.sync()
    assert far.read("file") == b"0123\0\0ab"


def test_sparse(door: Door, far: Any) -> None:
    """Writing: sparse files."""
    with door.open("file", os.O_WRONLY | os.O_CREAT) as file:
        file.write(b"end", 1_000_000)
    assert door.stat("file").size == 1_000_003
    door.sync()
    assert far.read("file") == bytes(1_000_000) + b"end"


def test_read_your_writes_through_every_handle(door: Door, far: Any) -> None:
    """Writing: "read-your-writes through every handle", also those opened before the write."""
    far.write("file", b"old content")
    with holding(
        door.open("file", os.O_RDONLY), door.open("file", os.O_RDWR), door.open("file", os.O_RDWR)
    ) as (reader, one, two):
        assert reader.read(3) == b"old"
        one.write(b"NEW")
        two.write(b"!", 11)
        for each in (reader, one, two):
            assert each.stat().size == 12
            assert each.read() == b"NEW content!"
    assert door.read("file") == b"NEW content!"
    door.sync()
    assert far.read("file") == b"NEW content!"


def test_writing_goes_on_after_an_upload(door: Door, far: Any) -> None:
    """Writing: a file written again after it became clean is uploaded again, whole."""
    for number in range(3):
        door.append("file", b"%d\n" % number)
        door.sync()
        assert far.read("file") == b"".join(b"%d\n" % n for n in range(number + 1))


def test_a_file_held_open_is_on_the_cluster_after_the_last_close(door: Door, far: Any) -> None:
    """Writing: "The upload becomes due after the **last** release"."""
    first = door.open("file", os.O_WRONLY | os.O_CREAT)
    second = door.open("file", os.O_WRONLY)
    first.write(b"one")
    first.close()
    second.write(b"two", 3)
    second.close()
    door.sync()
    assert far.read("file") == b"onetwo"


def test_fsync_is_local_and_quick(door: Door, far: Any) -> None:
    """Writing: "`fsync` = durable in the local journal"; then more may be written."""
    with door.open("file", os.O_WRONLY | os.O_CREAT) as file:
        file.write(b"one")
        file.sync()
        file.write(b"two", 3)
    door.sync()
    assert far.read("file") == b"onetwo"


def test_reading_past_the_end(door: Door, far: Any) -> None:
    """Reading: end of file is the size, not an error."""
    far.write("file", b"12345")
    with door.open("file", os.O_RDONLY) as file:
        assert file.read(10, 3) == b"45"
        assert file.read(10, 5) == b""
        assert file.read(10, 5000) == b""


def test_many_small_files(door: Door, far: Any) -> None:
    """Writing: each of many files arrives as itself."""
    door.mkdir("tree")
    for number in range(40):
        door.write(f"tree/{number:02}", b"%d" % number * number)
    assert sorted(door.listdir("tree")) == [f"{n:02}" for n in range(40)]
    door.sync()
    assert far.names("tree") == {f"{n:02}" for n in range(40)}
    assert [far.read(f"tree/{n:02}") for n in (0, 7, 39)] == [b"", b"7" * 7, b"39" * 39]


@pytest.mark.simulator
@pytest.mark.parametrize("size", [DIRECT_LIMIT, DIRECT_LIMIT + 1, 5 << 20, (5 << 20) + 1])
def test_sizes_around_the_limits(door: Door, far: Any, size: int) -> None:
    """Reading, Writing: the direct limits of both directions change the route, not the bytes."""
    content = data_of(size)
    digest = hashlib.sha256(content).hexdigest()
    far.write("down", content)
    assert hashlib.sha256(door.read("down")).hexdigest() == digest
    door.write("up", content)
    door.sync()
    assert far.sha256("up") == digest
    assert far.stat("up").st_size == size


@pytest.mark.simulator
def test_a_100_mb_file(door: Door, far: Any) -> None:
    """Must show: a 100 MB file, both ways, by sha256."""
    content = data_of(10_000_000) * 10
    digest = hashlib.sha256(content).hexdigest()
    door.write("up", content)
    door.sync()
    assert far.sha256("up") == digest
    far.rename("up", "down")
    door.refresh()
    assert hashlib.sha256(door.read("down")).hexdigest() == digest


# Removing.


def test_unlink_of_a_clean_file(door: Door, far: Any) -> None:
    """Metadata: unlink of what exists on the cluster is synchronous."""
    far.write("file", b"x")
    far.write("other", b"y")
    assert door.read("file") == b"x"
    door.unlink("file")
    assert not door.exists("file")
    assert "file" not in door.listdir()
    assert far.names() == {"other"}
    refused(errno.ENOENT, door.unlink, "file")


def test_unlink_and_recreate(door: Door, far: Any) -> None:
    """The namespace: a new file of an old name has nothing of the old one."""
    far.write("file", b"old old old")
    door.unlink("file")
    door.write("file", b"new")
    assert door.read("file") == b"new"
    door.unlink("file")
    door.write("file", b"newer")
    door.sync()
    assert far.read("file") == b"newer"
    assert door.listdir() == ["file"]


def test_an_unlinked_open_file_goes_on_reading(door: Door, far: Any) -> None:
    """The namespace: open handles keep what they have; nothing of it reaches the cluster."""
    far.write("clean", b"clean content")
    door.write("dirty", b"dirty content")
    with holding(door.open("clean", os.O_RDONLY), door.open("dirty", os.O_RDWR)) as (clean, dirty):
        assert clean.read(5) == b"clean"
        door.unlink("clean")
        door.unlink("dirty")
        assert clean.read() == b"clean content"
        assert dirty.read() == b"dirty content"
        dirty.write(b"DIRTY")
        assert dirty.read() == b"DIRTY content"
        assert door.listdir() == []
    door.sync()
    assert far.names() == set()


def test_an_unlinked_open_empty_file(door: Door, far: Any) -> None:
    """The same of a file without a byte, of which nothing had to be fetched."""
    far.write("empty", b"")
    with holding(door.open("empty", os.O_RDWR)) as (file,):
        door.unlink("empty")
        assert file.read() == b""
        file.truncate(3)
        assert file.read() == bytes(3)
    door.sync()
    assert far.names() == set()


def test_an_unlinked_open_new_file_can_be_written(door: Door, far: Any) -> None:
    """The namespace: the anonymous temporary file of many programs."""
    with door.open("file", os.O_RDWR | os.O_CREAT) as file:
        door.unlink("file")
        file.write(b"hello")
        assert file.read() == b"hello"
        assert file.stat().size == 5
    door.sync()
    assert far.names() == set()


def test_copy_and_remove_with_uploads_pending(door: Door, far: Any) -> None:
    """Metadata: "`cp a b; rm a` must never end with neither"."""
    far.write("a", b"precious")
    door.write("b", door.read("a"))
    door.unlink("a")
    assert door.listdir() == ["b"]
    assert door.read("b") == b"precious"
    door.sync()
    assert far.names() == {"b"}
    assert far.read("b") == b"precious"


def test_unlink_of_a_directory_and_rmdir_of_a_file(door: Door, far: Any) -> None:
    """Errors: EISDIR and ENOTDIR, and nothing is removed (the server's rm is recursive)."""
    far.mkdir("directory")
    far.write("directory/inside", b"x")
    far.write("file", b"x")
    refused(errno.EISDIR, door.unlink, "directory")
    refused(errno.ENOTDIR, door.rmdir, "file")
    assert far.names() == {"directory", "file"}
    assert far.names("directory") == {"inside"}


def test_rmdir(door: Door, far: Any) -> None:
    """Metadata: rmdir of an empty directory, and of one that was filled and emptied."""
    door.mkdir("empty")
    door.mkdir("used")
    door.write("used/file", b"x")
    refused(errno.ENOTEMPTY, door.rmdir, "used")
    door.sync()
    refused(errno.ENOTEMPTY, door.rmdir, "used")
    door.unlink("used/file")
    door.rmdir("used")
    door.rmdir("empty")
    assert door.listdir() == []
    door.sync()
    assert far.names() == set()
    refused(errno.ENOENT, door.rmdir, "empty")


@pytest.mark.parametrize("name", ["file", ".hidden"])
def test_rmdir_of_what_somebody_else_filled(door: Door, far: Any, name: str) -> None:
    """Metadata: "A non-empty directory gives ENOTEMPTY", also when our listing is old."""
    door.mkdir("directory")
    assert door.listdir("directory") == []
    far.write(f"directory/{name}", b"precious")
    refused(errno.ENOTEMPTY, door.rmdir, "directory")
    assert far.read(f"directory/{name}") == b"precious"
    assert far.names() == {"directory"}


def test_remove_a_tree(door: Door, far: Any) -> None:
    """Metadata: what `rm -r` does, leaf by leaf."""
    for path in ("t", "t/u", "t/u/v"):
        door.mkdir(path)
        door.write(f"{path}/file", b"x")
    door.sync()
    for path in ("t/u/v", "t/u", "t"):
        door.unlink(f"{path}/file")
        door.rmdir(path)
    door.sync()
    assert far.names() == set()


# Directories and attributes.


def test_mkdir(door: Door, far: Any) -> None:
    """Metadata: mkdir is synchronous; the mode and the umask count; EEXIST, ENOENT, ENOTDIR."""
    door.mkdir("one", 0o750)
    assert far.is_directory("one")
    assert far.mode("one") == 0o750
    assert stat.S_ISDIR(door.stat("one").mode)
    refused(errno.EEXIST, door.mkdir, "one")
    refused(errno.ENOENT, door.mkdir, "missing/two")
    door.write("file", b"")
    refused(errno.EEXIST, door.mkdir, "file")
    refused(errno.ENOTDIR, door.mkdir, "file/two")
    assert sorted(door.listdir()) == ["file", "one"]


def test_missing_names(door: Door) -> None:
    """Errors: ENOENT."""
    for action in (door.stat, door.read, door.unlink, door.rmdir, door.listdir):
        refused(errno.ENOENT, action, "missing")
    refused(errno.ENOENT, door.rename, "missing", "other")
    refused(errno.ENOENT, door.chmod, "missing", 0o600)
    refused(errno.ENOENT, door.truncate, "missing", 0)


def test_modes_of_new_files(door: Door, far: Any) -> None:
    """Ownership: "`umask` applies"; the mode travels with the upload."""
    door.write("plain", b"x")
    door.write("script", b"#!/bin/sh\n", 0o777)
    door.write("private", b"x", 0o600)
    for _ in range(2):
        assert door.stat("plain").permissions == 0o644
        assert door.stat("script").permissions == 0o755
        assert door.stat("private").permissions == 0o600
        door.sync()
    assert (far.mode("plain"), far.mode("script"), far.mode("private")) == (0o644, 0o755, 0o600)


def test_chmod(door: Door, far: Any) -> None:
    """Ownership: "`chmod` goes to the cluster", at once for a clean file, else with the upload."""
    far.write("clean", b"x")
    far.mkdir("directory")
    door.chmod("clean", 0o640)
    door.chmod("directory", 0o700)
    assert far.mode("clean") == 0o640
    assert far.mode("directory") == 0o700
    door.write("dirty", b"x")
    door.chmod("dirty", 0o400)
    assert door.stat("dirty").permissions == 0o400
    door.sync()
    assert far.mode("dirty") == 0o400
    assert door.stat("clean").permissions == 0o640


def test_overwriting_keeps_the_mode(door: Door, far: Any) -> None:
    """Writing: the published file gets "the old mode"."""
    far.write("file", b"#!/bin/sh\n", 0o755)
    door.write("file", b"#!/bin/sh\nexit\n")
    door.sync()
    assert far.mode("file") == 0o755
    assert far.read("file") == b"#!/bin/sh\nexit\n"


def test_chown_to_the_same_ids(door: Door, far: Any) -> None:
    """Ownership: own files show the local ids; chown to them succeeds, to others is EPERM."""
    far.write("file", b"x")
    assert (door.stat("file").uid, door.stat("file").gid) == (os.getuid(), os.getgid())
    door.chown("file", os.getuid(), os.getgid())
    refused(errno.EPERM, door.chown, "file", 12345, os.getgid())
    refused(errno.EPERM, door.chown, "file", os.getuid(), 12345)


@pytest.mark.parametrize("moment", ["before the upload", "after the upload"])
def test_times_stay(door: Door, far: Any, moment: str) -> None:
    """Times: what utimens set stays "stable through upload and remount", to the nanosecond."""
    when = 1_234_567_890_123_456_789
    door.write("file", b"x")
    if moment == "after the upload":
        door.sync()
    door.utime("file", when)
    assert door.stat("file").mtime_ns == when
    door.sync()
    assert door.stat("file").mtime_ns == when
    door.remount()
    assert door.stat("file").mtime_ns == when
    assert far.read("file") == b"x"


def test_the_time_of_a_written_file_does_not_jump(door: Door, far: Any) -> None:
    """Times: no editor says "changed on disk" because an upload ended."""
    before = time.time_ns()
    door.write("file", b"x")
    written = door.stat("file").mtime_ns
    assert before - 50_000_000 <= written <= time.time_ns()
    door.sync()
    assert door.stat("file").mtime_ns == written
    door.remount()
    assert door.stat("file").mtime_ns == written


def test_the_clusters_own_time_counts_after_a_change_there(door: Door, far: Any) -> None:
    """Times: "until the remote file changes"."""
    door.write("file", b"x")
    door.sync()
    door.utime("file", 1_000_000_000_000_000_000)
    far.write("file", b"changed")
    door.refresh()

    def shown() -> bool:
        return abs(door.stat("file").mtime_ns / 1e9 - far.stat("file").st_mtime) <= 1

    wait_until(shown, "the cluster's time to show")


def test_inode_numbers_stay_over_a_remount(door: Door, far: Any) -> None:
    """Times: git's index keeps inode numbers: upload and remount do not change them."""
    door.write("file", b"x")
    number = door.stat("file").ino
    door.sync()
    assert door.stat("file").ino == number
    door.remount()
    assert door.stat("file").ino == number


def test_create_exclusive(door: Door, far: Any) -> None:
    """Locks: "O_EXCL asks the cluster once … when the name is only known absent from a cache"."""
    door.create_exclusive("mine", b"x")
    refused(errno.EEXIST, door.create_exclusive, "mine")
    assert sorted(door.listdir()) == ["mine"]
    far.write("theirs", b"precious")
    refused(errno.EEXIST, door.create_exclusive, "theirs", b"overwritten")
    door.sync()
    assert far.read("theirs") == b"precious"
    assert far.read("mine") == b"x"


def test_hard_links(door: Door, far: Any) -> None:
    """Metadata: `link(2)` on regular files works by a tar."""
    far.write("one", b"same")
    door.link("one", "two")
    assert far.stat("one").st_ino == far.stat("two").st_ino
    assert door.stat("two").size == 4
    assert door.stat("one").nlink == 2
    refused(errno.EEXIST, door.link, "one", "two")
    door.append("two", b" content")
    door.sync()
    assert far.read("one") == far.read("two") == b"same content", "written in place"
    door.unlink("one")
    assert door.read("two") == b"same content"
    assert "one" not in far.names()


def test_extended_attributes(door: Door, far: Any) -> None:
    """xattrs: ours; ENOTSUP for `system.*` and `security.*`, ENODATA otherwise."""
    far.write("file", b"x")
    assert door.getxattr("file", "user.f7tfs.state") == b"remote"
    assert door.getxattr("file", "user.f7tfs.remote_path").decode() == f"{far.directory}/file"
    assert door.read("file") == b"x"
    assert door.getxattr("file", "user.f7tfs.state") == b"cached"
    door.write("new", b"x")
    assert door.getxattr("new", "user.f7tfs.state") in {b"dirty", b"uploading"}
    door.sync()
    assert door.getxattr("new", "user.f7tfs.state") == b"cached"
    refused(errno.ENODATA, door.getxattr, "file", "user.other")
    refused(errno.ENOTSUP, door.getxattr, "file", "system.posix_acl_access")
    refused(errno.ENOTSUP, door.getxattr, "file", "security.selinux")


@pytest.mark.simulator
def test_the_checksum_of_the_cluster(door: Door, far: Any, simulator: Simulator) -> None:
    """xattrs: ".sha256 (asks the cluster)", once for the two calls of getxattr(2); a file that is
    not there yet has none, and nobody who reads all attributes causes work."""
    key = "user.f7tfs.sha256"
    content = data_of(50_000)
    names = ("file", "two words ü")
    for name in names:
        far.write(name, content)
    for name in names:
        door.stat(name)
        before = simulator.calls()["calls"]
        wanted = hashlib.sha256(content).hexdigest().encode()
        assert door.getxattr(name, key) == wanted
        assert door.getxattr(name, key) == wanted
        after = simulator.calls()["calls"]
        asked = {k: n - before.get(k, 0) for k, n in after.items() if "checksum" in k}
        assert sum(asked.values()) <= 2, asked  # v2 refuses a name with a space before it takes one
    far.write("file", b"changed over there")
    door.refresh()
    assert door.getxattr("file", key) == hashlib.sha256(b"changed over there").hexdigest().encode()
    door.write("file", b"changed here")
    refused(errno.ENODATA, door.getxattr, "file", key)
    door.sync()
    assert door.getxattr("file", key) == hashlib.sha256(b"changed here").hexdigest().encode()
    door.mkdir("directory")
    refused(errno.ENODATA, door.getxattr, "directory", key)
