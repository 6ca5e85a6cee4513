"""The folders and files that the v2 recordings were made on, derived from what they show.

`build(sim)` makes them as `t` below the simulated home.
"""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from pathlib import Path

from sim_process import Simulator
from t0_sim_tree import Tree

ODD = [
    "\x01ctl\x7f", "\x1b[31mesc", " lead", "!bang", "$(id)", "$HOME", "(p)", "-dash", "...",
    "UPPER", "[br]", "`id`", "a -> b", "a,b=c", "a\\nb", "amp&x", "back\\slash", "colon: x",
    "cr\rx", 'dq"x', "e\u0301nfd", "hash#x", "it's",
    'line1\n-rw-r--r-- 1 root root 5 2020-01-01T00:00:00 "fake"', "lt<gt>", "new\nline", "n" * 255,
    "nonutf8\udcff\udcfe", "per%41cent", "plus+x", 'q" -> "z', "q?x", "semi;colon", "star*",
    "tab\tx", "trail ", "with space", "{{j}}", "~", "\x85nel", "ünï", "\u2028ls", "日本",
]  # fmt: skip
_ASCII = b"0123456789abcdef"
SIZES = {
    "20MiB": 20 << 20, "2MiB": 2 << 20, "3932157": 3932157, "3932158": 3932158,
    "3932160": 3932160, "5MiB": 5 << 20, "5MiB-1": (5 << 20) - 1, "6MiB": 6 << 20,
}  # fmt: skip


def pattern(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def build(sim: Simulator, *, many: bool = True) -> None:
    tree = Tree(sim)
    plain(tree)
    names(tree)
    links(tree)
    special(tree)
    strangers(tree)
    for name, size in SIZES.items():
        tree.file(f"t/sz/{name}", pattern(size))
    tree.file("t/sz/6MiB-ascii", _ASCII * ((6 << 20) // 16))
    for number in range(2000 if many else 0):
        tree.file(f"t/many/file_{number:04}.dat")
    tree.finish()


def plain(tree: Tree) -> None:
    file = tree.file
    for name, content in (
        ("basic.txt", b"hello world\n"), ("bin256", bytes(range(256)) * 4),
        ("crlf.txt", b"a\r\nb\rc\x0bd\x0ce\n"), ("dir\nnl/f", b"abc"), ("dïr/f", b"abc"),
        ("empty", b""), ("latin1.txt", b"caf\xe9 \xfc\xf1 end\n" * 20),
        ("lines.txt", "".join(f"line {n}\n" for n in range(1, 101))),
        ("nul.bin", b"ab\0cd\0\r\nef"), ("odd dir/it's/f", b"abc"), ("tree/a/.h", b"h\n"),
        ("tree/a/b/c.txt", b"c\n"), ("tree/d.txt", b"d\n"), ("tree/f with space/g.txt", b"g\n"),
        ("utf8.txt", "aé日𝄞z\n" * 50), ("archive/src/one.txt", b"1\n"),
        ("archive/src/sub/two.txt", b"2\n"), ("jobs/job.sh", "#!/bin/bash\necho from file\n"),
    ):  # fmt: skip
        file(f"t/{name}", content)
    file("t/exec.sh", "#!/bin/bash\necho hi\n", 0o755)
    tree.folder("t/emptydir")
    tree.folder("t/tree/e")
    tree.sparse("t/sparse1G", 1 << 30)
    tree.sparse("t/sparse40G", 40 << 30)


def names(tree: Tree) -> None:
    for name in ODD:
        tree.file(f"t/odd/{name}", b"odd\n")


def links(tree: Tree) -> None:
    target = tree.file("t/links/target", b"target\n")
    os.link(target, tree.home / "t/links/hard")
    for name, aim in (
        ("abs", str(target)), ("arrow", "a -> b"), ("broken", f"{tree.sim.root}/nowhere/x y"),
        ("loop", "loop"), ("nl", "x\ny"), ("quote", "it's \"q\""), ("rel", "target"),
        ("todir", "../tree"), ("uni", "zié"),
    ):  # fmt: skip
        tree.link(f"t/links/{name}", aim)


def special(tree: Tree) -> None:
    for name, mode in (("epochneg", 0o644), ("frac", 0o644), ("future", 0o644), ("old", 0o644)):
        tree.file(f"t/special/{name}", b"x\n", mode)
    for name, moment in (("epochneg", -86400), ("frac", 1600000000.75), ("future", 4102444800)):
        tree.times(f"t/special/{name}", moment, moment)
    tree.times("t/special/old", 1, 1)
    tree.file("t/special/noread", b"x\n", 0)
    tree.file("t/special/suid", b"x", 0o4755)
    tree.file("t/special/suid_nox", b"x", 0o4644)
    tree.folder("t/special/setgid", 0o2755)
    tree.folder("t/special/sticky", 0o1777)
    tree.special("t/special/fifo", stat.S_IFIFO, 0o644)
    place = tree.home / "t/special/sock"
    with socket.socket(socket.AF_UNIX) as one:
        descriptor = os.open(place.parent, os.O_RDONLY)  # the whole path may be too long
        try:
            one.bind(f"/proc/self/fd/{descriptor}/sock")
        finally:
            os.close(descriptor)
    place.chmod(0o755)
    if os.getuid() == 0:
        try:
            os.mknod(tree.home / "t/special/null", stat.S_IFCHR | 0o644, os.makedev(1, 3))
        except PermissionError:
            pass  # a container without that right: the record is not claimed


def strangers(tree: Tree) -> None:
    """Root's, or unreadable if we are not root."""
    for name, content in (
        ("mixed/locked/f", b"f"), ("mixed/ok/f", b"f"), ("mixed/z", b"z\n"), ("rodir/f", b"f"),
        ("rootdir/secret", b"s"), ("rootfile", b"root\n"), ("rootro", b"rootown\n"),
    ):  # fmt: skip
        tree.file(f"t/{name}", content)
    home = tree.home / "t"
    for name in ("mixed", "mixed/ok", "mixed/ok/f", "mixed/z", "mixed/locked/f", "rodir/f"):
        is_folder = name in {"mixed", "mixed/ok"}
        mode = 0o755 if is_folder else 0o644
        tree.foreign(home / name, mode, 0o555 if is_folder else 0o444)
    tree.foreign(home / "rodir", 0o755, 0o555)
    tree.foreign(home / "rootdir/secret", 0o600, 0o600)
    tree.foreign(home / "rootdir", 0o700, 0)
    tree.foreign(home / "mixed/locked", 0o700, 0)
    tree.foreign(home / "rootfile", 0o600, 0)
    tree.foreign(home / "rootro", 0o644, 0o444)


def restore(sim: Simulator) -> None:
    """What was made anew between the recordings of ops and those of transfers, and what their
    own preparations made, to be moved, overwritten and removed."""
    tree = Tree(sim)
    tree.home = sim.home / "prepared"
    tree.home.mkdir()
    if os.getuid() == 0:
        owner = sim.home.stat()
        os.chown(tree.home, owner.st_uid, owner.st_gid)
    written(tree)
    tree.finish()
    for path in (tree.home / "t").iterdir():
        path.rename(sim.home / "t" / path.name)
    (tree.home / "special/noread").rename(sim.home / "t/special/noread")
    (sim.home / "t/links/target").write_bytes(b"target\n")


def written(tree: Tree) -> None:
    tree.file("special/noread", b"x\n", 0)
    tree.sparse("t/sp64", 64 << 20)
    for name in (
        "up/over", "up/ov_empty", "up/lnk_target", "mv/a", "mv/b", "mv/c", "mv/d", "mv/e", "mv/f",
        "mv/g", "mv/h", "mv/i", "mv/k", "mv/sp ace", "mv/it's", "mv/amp&x", "mv/dollar$HOME",
        "mv/notempty/f", "mv/d1/f", "w11/e", "w12/f",
    ):  # fmt: skip
        tree.file(f"t/{name}", b"old\n")
    tree.file("t/mv/ro", b"ro\n", 0o444)
    for name in ("up/isdir", "mv/d2", "w8", "st"):
        tree.folder(f"t/{name}")
    tree.link("t/up/lnk", "lnk_target")
    tree.link("t/mv/lnk", "g")


def archive(folder: Path) -> bytes:
    """Some tar of 10,240 bytes, as the recorded ones were."""
    path = folder / "made.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("f")
        member.mtime, member.size = 1500000000, 4
        tar.addfile(member, io.BytesIO(b"new\n"))
    return path.read_bytes()
