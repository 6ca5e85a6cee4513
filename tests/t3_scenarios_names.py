"""Names through both doors: right, or EINVAL before anything is sent, and nothing else on the
cluster is touched (SEMANTICS "Names"; v1 FACTS §3)."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from doors import Door
from sim_process import Simulator
from t3_scenarios import refused

pytestmark = pytest.mark.v1  # each dialect has its own set of safe names

GOOD = [
    "sp ace", " lead", "trail ", "-dash", "--help", "ünïcode-☃", "emoji😀", "*?$HOME",
    "#~%20+=:@!^,", "brace{a,b}[1]", "~tilde", "x" * 255, "ä" * 127, "..dots", "nbsp\xa0x",
]  # fmt: skip
BAD = [
    "two  spaces", "quo'te", 'dq"uote', "paren(1)", "amp&er", "semi;colon", "pipe|x", "lt<", "gt>",
    "back\\slash", "tick`x", "new\nline", "tab\tx", "esc\x1b[31m", "a -> b",
    "$(touch pwned)",
]  # fmt: skip
# A neighbour that a careless client would hit instead.
NEIGHBOURS = {
    "two  spaces": "two spaces", "semi;colon": "semi", "amp&er": "amp", "pipe|x": "pipe",
    "quo'te": "quote", 'dq"uote': "dquote", "paren(1)": "paren", "new\nline": "new",
    "back\\slash": "backslash", "gt>": "gt", "lt<": "lt", "tick`x": "tick", "tab\tx": "tab x",
    "esc\x1b[31m": "esc", "a -> b": "a", "$(touch pwned)": "pwned",
}  # fmt: skip


def ident(name: str) -> str:
    return name.encode("unicode_escape").decode()[:20]


@pytest.mark.parametrize("name", GOOD, ids=ident)
def test_good_names_through_a_whole_life(door: Door, far: Any, name: str) -> None:
    """Names: create, list, read, rename, directory, remove."""
    door.write(name, b"content")
    assert door.listdir() == [name]
    door.sync()
    assert far.names() == {name}
    assert far.read(name) == b"content"
    door.refresh()
    assert door.listdir() == [name]
    assert door.stat(name).size == 7
    assert door.read(name) == b"content"
    door.rename(name, "plain")
    door.rename("plain", name)
    assert far.names() == {name}
    door.chmod(name, 0o600)
    door.unlink(name)
    door.mkdir(name)
    assert far.is_directory(name)
    door.write(f"{name}/inside", b"x")
    door.sync()
    assert far.read(f"{name}/inside") == b"x"
    door.unlink(f"{name}/inside")
    door.rmdir(name)
    assert far.names() == set()


@pytest.mark.simulator
@pytest.mark.parametrize("name", ["sp ace", "ünïcode ☃", "dollar$HOME", "brace{a,b}", "comma,x"])
def test_big_files_of_odd_names(door: Door, far: Any, name: str) -> None:
    """Names: a route that breaks on a name is not taken (v1 FACTS §3: staged downloads break on
    spaces, `$`, commas and braces): "a symlink with a safe name for staged downloads"."""
    content = os.urandom(1 << 20) * 5 + b"tail"
    far.write(name, content)
    assert door.read(name) == content
    door.write(name, content + b"more")
    door.sync()
    assert far.read(name) == content + b"more"
    assert far.names() == {name}


@pytest.mark.simulator
@pytest.mark.parametrize("name", BAD, ids=ident)
def test_bad_names_are_refused_before_anything_is_sent(
    door: Door, far: Any, simulator: Simulator, name: str
) -> None:
    """Names: "EINVAL **before** anything is sent"; create, mkdir, symlink, rename."""
    far.write(NEIGHBOURS[name], b"precious")
    far.mkdir("directory")
    assert set(door.listdir()) == {NEIGHBOURS[name], "directory"}
    before = far.snapshot()
    simulator.reset_calls()
    refused(errno.EINVAL, door.write, name, b"x")
    refused(errno.EINVAL, door.create_exclusive, name, b"x")
    refused(errno.EINVAL, door.mkdir, name)
    refused(errno.EINVAL, door.symlink, "directory", name)
    refused(errno.EINVAL, door.rename, NEIGHBOURS[name], name)
    refused(errno.EINVAL, door.rename, "directory", name)
    sent = [one for one in simulator.log() if one["method"] != "GET"]
    assert not sent, sent
    assert far.snapshot() == before
    assert set(door.listdir()) == {NEIGHBOURS[name], "directory"}


@pytest.mark.simulator
@pytest.mark.parametrize("name", BAD, ids=ident)
def test_bad_names_that_somebody_made(
    door: Door, far: Any, simulator: Simulator, name: str
) -> None:
    """Names: "such names met in a listing are shown, reading them goes through a link alias, and
    other operations fail with EINVAL". The neighbour stays."""
    neighbour = NEIGHBOURS[name]
    far.write(name, b"odd content")
    far.write(neighbour, b"precious")
    before = far.snapshot()
    assert set(door.listdir()) == {name, neighbour}
    assert door.stat(name).size == len(b"odd content")
    assert door.read(name) == b"odd content"
    refused(errno.EINVAL, door.unlink, name)
    refused(errno.EINVAL, door.rename, name, "other")
    refused(errno.EINVAL, door.chmod, name, 0o600)
    refused(errno.EINVAL, door.write, name, b"x")
    refused(errno.EINVAL, door.append, name, b"x")
    refused(errno.EINVAL, door.truncate, name, 0)
    assert door.read(neighbour) == b"precious"
    door.unlink(neighbour)
    del before[neighbour]
    door.sync()
    assert far.snapshot() == before


@pytest.mark.simulator
@pytest.mark.parametrize("name", ["two  sp", "quo'te", "semi;colon"])
def test_a_directory_with_a_bad_name(door: Door, far: Any, name: str) -> None:
    """Names: it is shown; it is never confused with its neighbour."""
    neighbour = "two sp" if "  " in name else NEIGHBOURS[name]
    far.mkdir(name)
    far.write(f"{name}/inside", b"odd")
    far.mkdir(neighbour)
    far.write(f"{neighbour}/near", b"near")
    before = far.snapshot()
    assert set(door.listdir()) == {name, neighbour}
    refused(errno.EINVAL, door.rmdir, name)
    refused(errno.EINVAL, door.write, f"{name}/new", b"x")
    refused(errno.EINVAL, door.mkdir, f"{name}/new")
    refused(errno.EINVAL, door.rename, name, "other")
    try:
        assert door.listdir(name) == ["inside"]
    except OSError as error:
        assert error.errno == errno.EINVAL
    door.sync()
    assert far.snapshot() == before


@pytest.mark.simulator
def test_bytes_that_are_no_utf8(door: Door, far: Any) -> None:
    """Names: refused at create; shown and readable when somebody else made it."""
    before = far.snapshot()
    refused(errno.EINVAL, door.write, b"latin1-\xe9", b"x")
    refused(errno.EINVAL, door.mkdir, b"latin1-\xe9")
    assert far.snapshot() == before
    name = os.fsdecode(b"latin1-\xe9")
    far.write(name, b"odd content")
    far.write("latin1-é", b"precious")
    before = far.snapshot()
    door.refresh()
    assert set(door.listdir()) == {name, "latin1-é"}
    assert door.read(b"latin1-\xe9") == b"odd content"
    assert door.read("latin1-é") == b"precious"
    refused(errno.EINVAL, door.unlink, b"latin1-\xe9")
    refused(errno.EINVAL, door.rename, b"latin1-\xe9", "other")
    door.sync()
    assert far.snapshot() == before


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128])
def test_too_long_names(door: Door, far: Any, name: str) -> None:
    """Errors: ENAMETOOLONG, and nothing happens."""
    for action in (door.mkdir, door.write):
        with pytest.raises(OSError) as caught:
            action(*((name, b"x") if action == door.write else (name,)))
        assert caught.value.errno in {errno.ENAMETOOLONG, errno.EINVAL}
    door.sync()
    assert far.names() == set()


def test_names_of_our_own_making_are_ours(door: Door, far: Any) -> None:
    """Litter: our temporary names are hidden, and nobody makes them through the mount."""
    far.write(".f7tfs-other-machine", b"x")
    assert door.listdir() == []
    refused(errno.EINVAL, door.write, ".f7tfs-mine", b"x")
    assert far.read(".f7tfs-other-machine") == b"x"
    far.remove(".f7tfs-other-machine")


@pytest.mark.simulator
def test_a_directory_that_holds_no_such_file(door: Door, far: Any) -> None:
    """v1 FACTS §2, poisoned listings: a *name* that reads like an error does not hide a
    directory."""
    far.mkdir("poisoned")
    far.write("poisoned/cannot open", b"x")
    far.write("poisoned/other", b"y")
    assert set(door.listdir("poisoned")) == {"cannot open", "other"}
    assert door.read("poisoned/other") == b"y"
    assert door.read("poisoned/cannot open") == b"x"


def test_chmod_of_a_poisoned_name(door: Door, far: Any) -> None:
    """v1 FACTS §2: a success whose output holds these words is reported as an error."""
    far.write("No such file", b"x", 0o644)
    door.chmod("No such file", 0o600)
    assert door.stat("No such file").permissions == 0o600
    assert far.mode("No such file") == 0o600
