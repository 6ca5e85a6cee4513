"""rename(2) through both doors: the server's `mv` has traps, and uploads may be under way."""

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

MOMENTS = ["queued", "uploading", "clean"]


def bring_to(moment: str, door: Door, simulator: Simulator, path: str, content: bytes) -> None:
    """A file of our own whose upload has not begun, is under way, or is over."""
    if moment == "uploading":
        v2 = bool(simulator.v2_url)
        upload = "POST /filesystem/cluster/ops/upload" if v2 else "POST /utilities/upload"
        rule = {"match": upload, "times": 1, "action": {"delay": 0.6}}
        (ident,) = simulator.faults([rule])
        door.write(path, content)
        wait_until(lambda: simulator.fired().get(ident), "the upload to begin")
    else:
        door.write(path, content)
        if moment == "clean":
            door.sync()


@pytest.mark.simulator
@pytest.mark.parametrize("moment", MOMENTS)
def test_rename(door: Door, far: Any, simulator: Simulator, moment: str) -> None:
    """Writing: "Rename of a dirty … file moves the pending upload"."""
    bring_to(moment, door, simulator, "old", b"content")
    door.rename("old", "new")
    assert door.listdir() == ["new"]
    assert door.read("new") == b"content"
    assert not door.exists("old")
    door.sync()
    assert far.names() == {"new"}
    assert far.read("new") == b"content"
    assert door.read("new") == b"content"


@pytest.mark.simulator
@pytest.mark.parametrize("moment", MOMENTS)
def test_rename_onto_a_file_of_the_cluster(
    door: Door, far: Any, simulator: Simulator, moment: str
) -> None:
    """Metadata: rename replaces; an editor's save through a temporary is no conflict."""
    far.write("target", b"old content")
    assert door.read("target") == b"old content"
    bring_to(moment, door, simulator, "source", b"new")
    door.rename("source", "target")
    assert door.listdir() == ["target"]
    assert door.read("target") == b"new"
    door.sync()
    assert far.names() == {"target"}
    assert far.read("target") == b"new"


@pytest.mark.simulator
@pytest.mark.parametrize("target", MOMENTS)
@pytest.mark.parametrize("source", MOMENTS)
def test_rename_onto_a_file_of_ours(
    door: Door, far: Any, simulator: Simulator, source: str, target: str
) -> None:
    """Writing: both files may be at any moment of their way."""
    bring_to(target, door, simulator, "target", b"old content")
    bring_to(source, door, simulator, "source", b"new")
    door.rename("source", "target")
    assert door.listdir() == ["target"]
    assert door.read("target") == b"new"
    door.sync()
    assert far.names() == {"target"}
    assert far.read("target") == b"new"
    assert door.read("target") == b"new"


@pytest.mark.simulator
@pytest.mark.parametrize("moment", MOMENTS)
def test_rename_of_an_open_file(door: Door, far: Any, simulator: Simulator, moment: str) -> None:
    """FUSE.md, gio save: rename while open, then more is written."""
    bring_to(moment, door, simulator, "old", b"begin ")
    with door.open("old", os.O_RDWR) as file:
        file.write(b"middle ", 6)
        door.rename("old", "new")
        file.write(b"end", 13)
        assert file.read() == b"begin middle end"
        assert door.read("new") == b"begin middle end"
    door.sync()
    assert far.names() == {"new"}
    assert far.read("new") == b"begin middle end"


def test_a_replaced_open_file_goes_on_reading(door: Door, far: Any) -> None:
    """Reading: "handles on the old one keep reading the version that they opened"."""
    far.write("target", b"old content")
    with door.open("target", os.O_RDONLY) as file:
        assert file.read(3) == b"old"
        door.write("source", b"new")
        door.rename("source", "target")
        assert file.read() == b"old content"
        assert door.read("target") == b"new"
    door.sync()
    assert far.read("target") == b"new"


@pytest.mark.simulator
@pytest.mark.parametrize("moment", MOMENTS)
def test_rename_of_a_directory_with_our_files_inside(
    door: Door, far: Any, simulator: Simulator, moment: str
) -> None:
    """Writing: "the publish step reads the entry's *current* path"."""
    door.mkdir("old")
    door.mkdir("old/sub")
    far.write("old/theirs", b"theirs")
    bring_to(moment, door, simulator, "old/sub/ours", b"ours")
    door.rename("old", "new")
    assert door.listdir() == ["new"]
    assert door.read("new/sub/ours") == b"ours"
    door.sync()
    assert far.names() == {"new"}
    assert far.names("new") == {"sub", "theirs"}
    assert far.read("new/sub/ours") == b"ours"
    assert far.names("new/sub") == {"ours"}
    assert far.litter("new/sub") == set()


@pytest.mark.simulator
def test_rename_into_another_directory(door: Door, far: Any, simulator: Simulator) -> None:
    """Metadata: rename between directories, in all moments."""
    door.mkdir("there")
    for moment in MOMENTS:
        bring_to(moment, door, simulator, moment, moment.encode())
        door.rename(moment, f"there/{moment}")
    assert sorted(door.listdir("there")) == sorted(MOMENTS)
    door.sync()
    assert far.names() == {"there"}
    assert {far.read(f"there/{m}") for m in MOMENTS} == {m.encode() for m in MOMENTS}


def test_rename_never_moves_into_a_directory(door: Door, far: Any) -> None:
    """Metadata: "`rename` onto an existing directory must not move *into* it (`mv` would)"."""
    far.mkdir("empty")
    far.mkdir("full")
    far.write("full/inside", b"x")
    far.mkdir("directory")
    far.write("directory/mine", b"x")
    far.write("clean", b"x")
    door.write("dirty", b"x")
    for file in ("clean", "dirty"):
        for directory in ("empty", "full"):
            refused(errno.EISDIR, door.rename, file, directory)
    refused(errno.ENOTEMPTY, door.rename, "directory", "full")
    refused(errno.ENOTDIR, door.rename, "directory", "clean")
    refused(errno.ENOTDIR, door.rename, "directory", "dirty")
    assert far.names("empty") == set()
    assert far.names("full") == {"inside"}
    door.rename("directory", "empty")
    assert far.names("empty") == {"mine"}
    assert not door.exists("directory")
    door.sync()
    assert far.names() == {"empty", "full", "clean", "dirty"}


def test_rename_onto_a_directory_with_only_our_pending_file(door: Door, far: Any) -> None:
    """Metadata: what exists only in the spool makes a directory non-empty, too."""
    door.mkdir("source")
    door.mkdir("target")
    door.write("target/pending", b"x")
    refused(errno.ENOTEMPTY, door.rename, "source", "target")
    refused(errno.ENOTEMPTY, door.rmdir, "target")
    door.sync()
    assert far.read("target/pending") == b"x"


def test_noreplace(door: Door, far: Any) -> None:
    """Metadata: "RENAME_NOREPLACE honoured"."""
    far.write("clean", b"clean")
    door.write("dirty", b"dirty")
    door.write("new", b"new")
    refused(errno.EEXIST, door.rename, "new", "clean", noreplace=True)
    refused(errno.EEXIST, door.rename, "new", "dirty", noreplace=True)
    refused(errno.EEXIST, door.rename, "clean", "dirty", noreplace=True)
    door.rename("new", "free", noreplace=True)
    door.rename("clean", "free2", noreplace=True)
    door.sync()
    assert {name: far.read(name) for name in far.names()} == {
        "dirty": b"dirty", "free": b"new", "free2": b"clean",
    }  # fmt: skip


def test_noreplace_onto_a_removed_name(door_with: Callable[..., Door], far: Any) -> None:
    """mv asks for RENAME_NOREPLACE first, and some versions do not bear EEXIST for a name that is
    not there: "cannot overwrite directory"."""
    far.write("clean", b"clean")
    far.write("removed", b"removed")
    door = door_with(writeback_delay=60)
    door.write("pending", b"pending")  # the removal waits behind it
    door.unlink("removed")
    door.rename("clean", "removed", noreplace=True)
    assert far.names() == {"removed"}
    assert door.read("removed") == b"clean"
    door.sync()
    assert far.names() == {"removed", "pending"}
    assert far.read("removed") == b"clean"


@pytest.mark.parametrize("how", ["renamed over", "removed"])
def test_an_open_file_that_only_the_kernel_reads(door: Door, far: Any, how: str) -> None:
    """Writing: "unlink of an open file (reads go on)", and writes. Found by the model: the kernel
    answered all reads from its pages, so the content was dropped from the cache with the name."""
    far.write("file", b"0123456789")
    far.age("file")
    assert door.read("file") == b"0123456789"
    with door.open("file", os.O_RDWR) as file:
        if how == "removed":
            door.unlink("file")
        else:
            door.write("new", b"new")
            door.rename("new", "file")
        door.sync()
        file.write(b"x", 5)
        assert file.read() == b"01234x6789"
    assert far.names() == (set() if how == "removed" else {"file"})


def test_rename_onto_itself(door: Door, far: Any) -> None:
    """Metadata: as rename(2), nothing happens."""
    far.write("clean", b"x")
    door.write("dirty", b"y")
    door.rename("clean", "clean")
    door.rename("dirty", "dirty")
    door.sync()
    assert far.names() == {"clean", "dirty"}
    assert (far.read("clean"), far.read("dirty")) == (b"x", b"y")


@pytest.mark.simulator
def test_rename_between_two_links_of_one_file(door: Door, far: Any) -> None:
    """Metadata: as rename(2): both names stay."""
    far.write("one", b"x")
    os.link(far["one"], far["two"])
    door.rename("one", "two")
    assert far.names() == {"one", "two"}


@pytest.mark.simulator
def test_rename_onto_a_removed_link_of_the_same_file(
    door_with: Callable[..., Door], far: Any
) -> None:
    """The name is not there any more, whatever the cluster still has: the other one moves."""
    far.write("one", b"x")
    os.link(far["one"], far["two"])
    door = door_with(writeback_delay=60)
    door.write("pending", b"pending")  # the removal waits behind it
    door.unlink("two")
    door.rename("one", "two")
    assert far.names() == {"two"}
    assert set(door.listdir()) == {"two", "pending"}
    door.sync()
    assert far.names() == {"two", "pending"}
    assert far.read("two") == b"x"


def test_rename_of_a_symlink(door: Door, far: Any) -> None:
    """Metadata: the link itself is renamed, also one to a directory, also onto a file."""
    far.mkdir("directory")
    far.write("directory/file", b"x")
    far.symlink("directory", "link")
    far.write("victim", b"y")
    door.rename("link", "other")
    door.rename("other", "victim")
    assert door.readlink("victim") == "directory"
    assert far.names() == {"directory", "victim"}
    assert far.names("directory") == {"file"}


def test_rename_onto_a_symlink_to_a_directory(door: Door, far: Any) -> None:
    """Metadata: `mv` would move into the directory; rename(2) replaces the link."""
    far.mkdir("directory")
    far.symlink("directory", "link")
    far.write("file", b"x")
    door.rename("file", "link")
    assert far.names("directory") == set()
    assert far.names() == {"directory", "link"}
    assert far.read("link") == b"x"


def test_a_rename_cycle(door: Door, far: Any) -> None:
    """Writing: names change places while all of it is pending."""
    door.write("a", b"A")
    door.write("b", b"B")
    door.rename("a", "c")
    door.rename("b", "a")
    door.rename("c", "b")
    assert (door.read("a"), door.read("b")) == (b"B", b"A")
    door.sync()
    assert (far.read("a"), far.read("b")) == (b"B", b"A")
    assert far.names() == {"a", "b"}


def test_an_editors_backup(door: Door, far: Any) -> None:
    """FUSE.md, vim: RENAME f→f~; CREATE f; WRITE; UNLINK f~. The content is never gone."""
    far.write("f", b"old")
    door.rename("f", "f~")
    door.create_exclusive("f", b"new")
    door.unlink("f~")
    assert door.listdir() == ["f"]
    assert door.read("f") == b"new"
    door.sync()
    assert far.names() == {"f"}
    assert far.read("f") == b"new"


def test_handles_of_both_sides_survive(door: Door, far: Any) -> None:
    """Reading: source and target open during the rename."""
    far.write("source", b"source")
    far.write("target", b"target")
    with holding(door.open("source", os.O_RDWR), door.open("target", os.O_RDWR)) as (one, two):
        assert (one.read(), two.read()) == (b"source", b"target")
        door.rename("source", "target")
        one.write(b"SOURCE")
        two.write(b"lost")
        assert one.read() == b"SOURCE"
        assert two.read() == b"lostet"
    assert door.read("target") == b"SOURCE"
    door.sync()
    assert far.names() == {"target"}
    assert far.read("target") == b"SOURCE"


def test_rename_of_a_directory_below_itself(door: Door, far: Any) -> None:
    """Errors: EINVAL, as rename(2)."""
    door.mkdir("a")
    door.mkdir("a/b")
    refused(errno.EINVAL, door.rename, "a", "a/b/c")
    assert far.names() == {"a"}
    assert far.names("a") == {"b"}


def test_a_removal_does_not_wait_for_a_file_that_is_written_again(
    door_with: Callable[..., Door], far: Any
) -> None:
    """Tenet 2; found by the model: mkdir at a removed name waited for a file that the removal
    stands behind, and that somebody had opened and written again."""
    far.write("name", b"old")
    door = door_with(writeback_delay=60)
    door.write("copy", b"old")
    door.unlink("name")
    with door.open("copy", os.O_RDWR) as file:
        file.write(b"new")
        door.mkdir("name")
        assert set(door.listdir()) >= {"copy", "name"}
    door.sync()
    assert far.is_directory("name")
    assert far.read("copy") == b"new"


def test_a_mode_that_changed_under_an_open_file_stays(door: Door, far: Any) -> None:
    """Found by the model: a write through a handle that was opened before the chmod of a clean file
    brought the old mode back."""
    far.write("file", b"old", 0o644)
    with door.open("file", os.O_RDWR) as file:
        door.chmod("file", 0o600)
        file.write(b"new")
    door.sync()
    assert door.stat("file").permissions == 0o600
    assert far.mode("file") == 0o600


@pytest.mark.parametrize("removed", ["target", "target/file"])
def test_a_directory_takes_the_place_of_what_was_removed(
    door: Door, far: Any, removed: str
) -> None:
    """`rename(2)`: a file is gone, and a directory empty, for whoever looks, also while the removal
    waits for uploads."""
    if "/" in removed:
        far.mkdir("target")
    far.write(removed, b"old")
    door.mkdir("folder")
    door.write("folder/pending", b"new")
    door.unlink(removed)
    door.rename("folder", "target")
    assert door.listdir() == ["target"]
    door.sync()
    assert far.names() == {"target"}
    assert far.names("target") == {"pending"}
    assert far.read("target/pending") == b"new"
