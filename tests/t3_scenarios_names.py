"""Names through both doors, on both dialects: right, or EINVAL before anything is sent, and nothing
else on the cluster is touched (SEMANTICS "Names"; v1 FACTS §3; v2 FACTS §2, §5, §7, §8).

One table says what each dialect makes of a name. Tests take many names at a time, all of them in
one directory, and compare the whole of the far side after every operation.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import place_of, tree_door
from doors import Door
from sim_process import Simulator, running_simulator
from t3_scenarios import refused

PLAIN = [
    "sp ace", " lead", "trail ", "-dash", "--help", "ünïcode-☃", "emoji😀", "*?$HOME",
    "#~%20+=:@!^,", "brace{a,b}[1]", "~tilde", "x" * 255, "ä" * 127, "..dots", "nbsp\xa0x",
]  # fmt: skip
# Each with a neighbour that a careless client, or a shell, would hit instead.
NEIGHBOURS = {
    "two  spaces": "two spaces", "semi;colon": "semi", "amp&er": "amp", "pipe|x": "pipe",
    "quo'te": "quote", 'dq"uote': "dquote", "paren(1)": "paren", "new\nline": "new",
    "back\\slash": "backslash", "gt>": "gt", "lt<": "lt", "tick`x": "tick", "tab\tx": "tab x",
    "esc\x1b[31m": "esc", "a -> b": "a", "$(touch pwned)": "pwned", "p'a'irs": "pairs",
    "x'; touch pwned1; 'y": "xy", "`touch pwned2`": "touch pwned2", "new\\nline": "newnline",
}  # fmt: skip
CANARIES = ("pwned", "pwned1", "pwned2")  # would appear in the home, where commands run


class Table(NamedTuple):
    """What a dialect does with the names above. `stuck`: directories of these names cannot be
    renamed, because only a job could."""

    carried: list[str]
    refused: list[str]
    stuck: list[str]


def table_of(api: str) -> Table:
    awkward = list(NEIGHBOURS)
    if api == "v1":
        awkward.remove("new\\nline")  # shown as the newline that it reads like: no stat can tell
        # FORBIDDEN_INPUT_CHARS, control characters, two spaces.
        return Table(PLAIN, awkward, [])
    quoted = [name for name in awkward if "'" in name]
    carried = PLAIN + [name for name in awkward if name not in quoted]
    return Table(carried, quoted, [name for name in carried if set(name) & set('&<>"\n\t\x1b')])


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    return table_of(request.config.getoption("--api"))


DIRECTORY = object()


def link_to(target: str) -> tuple[str, str]:
    return ("link", target)


def agrees(far: Any, expected: dict[str, Any], what: str) -> None:
    """The far side holds just this: path → content, DIRECTORY, or link_to()."""
    if not hasattr(far, "snapshot"):  # --live: what one listing tells
        found = far.names()
        assert found == {path for path in expected if "/" not in path}, what
        return
    shown: dict[str, Any] = {}
    for path, (_, mode, content) in far.snapshot().items():
        kind = stat.S_IFMT(int(mode, 8))
        if kind == stat.S_IFDIR:
            shown[path] = DIRECTORY
        else:
            shown[path] = link_to(content) if kind == stat.S_IFLNK else content
    wanted = {
        path: hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else content
        for path, content in expected.items()
    }
    assert shown == wanted, what


def no_canary(simulator: Simulator) -> None:
    """Nothing was run that a name held."""
    assert not set(CANARIES) & set(os.listdir(simulator.home))
    if simulator.v2_url:
        assert simulator.injections() == []


def test_names_through_a_whole_life(door: Door, far: Any, table: Table) -> None:
    """Names: create, list, read, rename, directory, remove."""
    life(door, far, table)


def life(door: Door, far: Any, table: Table) -> None:
    names = table.carried
    files: dict[str, Any] = {name: f"content of {name}".encode() for name in names}
    for name in names:
        door.write(name, files[name])
    assert set(door.listdir()) == set(names)
    door.sync()
    agrees(far, files, "written")
    for name in names:
        assert far.read(name) == files[name], name
    door.refresh()
    assert set(door.listdir()) == set(names)
    for name in names:
        assert door.stat(name).size == len(files[name]), name
        assert door.read(name) == files[name], name
    files["moving"] = b"moving"
    door.write("moving", files["moving"])
    door.sync()
    for name in names:
        door.chmod(name, 0o600)
        assert far.mode(name) == 0o600, name
        agrees(far, files, f"chmod {name!r}")
        door.unlink(name)
        del files[name]
        agrees(far, files, f"{name!r} removed")
    for old, new in zip(["moving", *names], [*names, "moving"], strict=True):
        door.rename(old, new)  # each name is once its target, and once its source
        assert door.read(new) == b"moving", new
        agrees(far, {new: b"moving"}, f"{old!r} renamed to {new!r}")
    door.unlink("moving")
    tree: dict[str, Any] = {}
    for name in names:
        door.mkdir(name)
        tree[name] = DIRECTORY
        agrees(far, tree, f"directory {name!r} made")
        door.symlink("inside", f"{name}/link")
        tree[f"{name}/link"] = link_to("inside")
        agrees(far, tree, f"symlink in {name!r} made")
    for name in names:
        door.write(f"{name}/inside", files.setdefault(name, name.encode()))
        tree[f"{name}/inside"] = files[name]
    door.sync()
    agrees(far, tree, "written inside")
    for name in names:
        assert far.read(f"{name}/inside") == files[name], name
        if name in table.stuck:
            refused(errno.EINVAL, door.rename, name, "plain")
            agrees(far, tree, f"directory {name!r} not renamed")
        assert door.readlink(f"{name}/link") == "inside"
        door.unlink(f"{name}/link")
        door.unlink(f"{name}/inside")
        door.rmdir(name)
        tree = {path: held for path, held in tree.items() if path.partition("/")[0] != name}
        agrees(far, tree, f"directory {name!r} removed")
    assert far.names() == set()


def test_directories_are_renamed(door: Door, far: Any, table: Table) -> None:
    """Metadata, rename of directories; on v2 by a job, which is waited for: a few names only."""
    names = ["plain", "sp ace", "*?$HOME", "ünïcode-☃"]
    names += [one for one in ("semi;colon", "$(touch pwned)") if one in table.carried]
    far.mkdir("plain")
    far.write("plain/inside", b"inside")
    door.refresh()
    for old, new in zip(names, [*names[1:], "plain"], strict=True):  # each once from and once to
        door.rename(old, new)
        assert door.read(f"{new}/inside") == b"inside"
        agrees(far, {new: DIRECTORY, f"{new}/inside": b"inside"}, f"{old!r} renamed to {new!r}")


@pytest.mark.simulator
def test_a_directory_that_no_job_renames(
    door: Door, far: Any, table: Table, simulator: Simulator
) -> None:
    """Names: "EINVAL **before** anything is sent": also before the empty directory that it would
    replace is removed."""
    if not table.stuck:
        pytest.skip("this dialect renames by a call")
    tree: dict[str, Any] = {"empty": DIRECTORY}
    far.mkdir("empty")
    for name in table.stuck:
        far.mkdir(name)
        tree[name] = DIRECTORY
    door.refresh()
    simulator.reset_calls()
    for name in table.stuck:
        refused(errno.EINVAL, door.rename, name, "empty")
        refused(errno.EINVAL, door.rename, "empty", name)
    agrees(far, tree, "nothing renamed")
    assert not [one for one in simulator.log() if one["method"] != "GET"]


@pytest.mark.simulator
def test_big_files_of_odd_names(door: Door, far: Any, table: Table, simulator: Simulator) -> None:
    """Names: a route that breaks on a name is not taken (v1 FACTS §3: staged downloads break on
    spaces, `$`, commas and braces; v2 FACTS §7: they run what follows a `;`, and staged uploads
    expand `$` and backticks): "a symlink with a safe name for staged downloads"."""
    content = os.urandom(1 << 20) * 5 + b"tail"
    names = ["sp ace", "ünïcode ☃", "dollar$HOME", "brace{a,b}", "comma,x"]
    odd = ["x;touch pwned1", "`touch pwned2`", 'dq"uote', "amp&er", "new\nline"]
    names += [one for one in odd if table.stuck]
    files = {name: content + name.encode() for name in names}
    for name in names:
        far.write(name, files[name])
    for name in names:
        assert door.read(name) == files[name], name
    for name in names[:5]:  # the bytes go to a plain temporary name
        files[name] += b"more"
        door.write(name, files[name])
    door.sync()
    agrees(far, files, "written")
    no_canary(simulator)


@pytest.mark.simulator
def test_bad_names_are_refused_before_anything_is_sent(
    door: Door, far: Any, table: Table, simulator: Simulator
) -> None:
    """Names: "EINVAL **before** anything is sent"; create, mkdir, symlink, link, rename. All that
    may be asked is what the server does with such names, by a name that cannot exist."""
    neighbours = {NEIGHBOURS[name] for name in table.refused}
    for name in neighbours:
        far.write(name, b"precious")
    far.mkdir("directory")
    assert set(door.listdir()) == neighbours | {"directory"}
    before = far.snapshot()
    simulator.reset_calls()
    for name in table.refused:
        refused(errno.EINVAL, door.write, name, b"x")
        refused(errno.EINVAL, door.create_exclusive, name, b"x")
        refused(errno.EINVAL, door.mkdir, name)
        refused(errno.EINVAL, door.symlink, "directory", name)
        refused(errno.EINVAL, door.link, NEIGHBOURS[name], name)
        refused(errno.EINVAL, door.rename, NEIGHBOURS[name], name)
        refused(errno.EINVAL, door.rename, "directory", name)
        assert far.snapshot() == before, name
    log = simulator.log(1000)
    sent = [one for one in log if one["method"] != "GET"]
    assert not sent, sent
    for name in table.refused:
        assert not [one for one in log if name in "\n".join(one["params"].values())], name
    assert len([one for one in log if ".f7tfs-probe-" in str(one["params"])]) <= 1
    assert set(door.listdir()) == neighbours | {"directory"}
    no_canary(simulator)


@pytest.mark.simulator
def test_bad_names_that_somebody_made(
    door: Door, far: Any, table: Table, simulator: Simulator
) -> None:
    """Names: "such names met in a listing are shown, reading them goes through a link alias, and
    other operations fail with EINVAL". The neighbours stay."""
    neighbours = {NEIGHBOURS[name] for name in table.refused}
    for name in table.refused:
        far.write(name, f"odd content of {name}".encode())
    for name in neighbours:
        far.write(name, b"precious")
    before = far.snapshot()
    assert set(door.listdir()) == {*table.refused, *neighbours}
    for name in table.refused:
        content = f"odd content of {name}".encode()
        assert door.stat(name).size == len(content), name
        assert door.read(name) == content, name
        refused(errno.EINVAL, door.unlink, name)
        refused(errno.EINVAL, door.rename, name, "other")
        refused(errno.EINVAL, door.link, name, "other")
        refused(errno.EINVAL, door.chmod, name, 0o600)
        refused(errno.EINVAL, door.utime, name, 1_000_000_000)
        refused(errno.EINVAL, door.write, name, b"x")
        refused(errno.EINVAL, door.append, name, b"x")
        refused(errno.EINVAL, door.truncate, name, 0)
        assert door.read(NEIGHBOURS[name]) == b"precious"
        assert far.snapshot() == before, name
    for name in neighbours:
        door.unlink(name)
        del before[name]
        assert far.snapshot() == before, name
    door.sync()
    assert far.snapshot() == before
    no_canary(simulator)


@pytest.mark.simulator
def test_directories_with_bad_names(
    door: Door, far: Any, table: Table, simulator: Simulator
) -> None:
    """Names: they are shown; they are never confused with their neighbours."""
    for name in table.refused:
        far.mkdir(name)
        far.write(f"{name}/inside", b"odd")
        far.mkdir(NEIGHBOURS[name])
        far.write(f"{NEIGHBOURS[name]}/near", b"near")
    before = far.snapshot()
    assert set(door.listdir()) == {*table.refused, *(NEIGHBOURS[one] for one in table.refused)}
    for name in table.refused:
        refused(errno.EINVAL, door.rmdir, name)
        refused(errno.EINVAL, door.write, f"{name}/new", b"x")
        refused(errno.EINVAL, door.mkdir, f"{name}/new")
        refused(errno.EINVAL, door.rename, name, "other")
        try:
            assert door.listdir(name) == ["inside"]
        except OSError as error:
            assert error.errno == errno.EINVAL
        assert far.snapshot() == before, name
    door.sync()
    assert far.snapshot() == before
    no_canary(simulator)


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


# Sites that carry more than the recorded servers: what the probe learns is used.


class Site(NamedTuple):
    door: Door
    far: Any
    simulator: Simulator


@pytest.fixture(params=["v1 without a wrapper", "v2 that escapes"])
def other_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    v1 = request.param.startswith("v1")
    options: dict[str, Any] = {"no_wrapper": True, "staging_interval": 0.3}
    if not v1:
        options = {"api": "v2", "escape_quotes": True, "ingest_sleep": 2}
    with running_simulator(**options) as simulator:
        place = place_of(simulator)
        name = f"d-{uuid.uuid4().hex[:10]}"
        place.far(place.directory).mkdir(name)
        directory = f"{place.directory}/{name}"
        with tree_door(place, directory, tmp_path) as door:
            yield Site(door, place.far(directory), simulator)


@pytest.mark.v1  # its servers are its own: once is enough
@pytest.mark.simulator
def test_what_another_site_carries(other_site: Site) -> None:
    """Names: "What a site's server really does with double spaces and quotes is probed once per
    mount": there they are names like all others."""
    door, far, simulator = other_site
    odd = ["two  spaces", "  lead", "three   sp", "trail  "]
    stuck: list[str] = []
    if simulator.v2_url:
        odd = ["quo'te", "p'a'irs", "x'; touch pwned1; 'y", "'"]
        stuck = odd
    life(door, far, Table(odd, [], stuck))
    log = simulator.log(5000)
    probes = [one for one in log if ".f7tfs-probe-" in str(one["params"])]
    assert len(probes) == 1 and probes[0]["method"] == "GET"
    no_canary(simulator)


@pytest.mark.v1  # its servers are its own: once is enough
@pytest.mark.simulator
def test_big_files_on_another_site(other_site: Site) -> None:
    """The staged routes of such names: straight, or by an alias and a temporary name."""
    door, far, simulator = other_site
    name = "it's  big" if simulator.v2_url else "two  big"
    content = os.urandom(1 << 20) * 6
    far.write(name, content)
    assert door.read(name) == content
    door.write(name, content + b"more")
    door.sync()
    agrees(far, {name: content + b"more"}, "written")
    no_canary(simulator)


# Alike everywhere.


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
