"""The folders and files that the recordings were made on, derived from what they show.

`build(sim)` makes them below the simulated home: `fx` is read, `w` is written, `jobs` is run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from sim_process import Simulator

ODD = [
    " lead", "--help", "-dash", "..dots", "a -> b", "amp&er", "at@x", "back\\slash", "brace{a,b}",
    "brack[1]", "caret^", "colon:x", "comma,x", "del\x7f", "dollar$HOME", 'dq"uote', "emoji😀",
    "eq=", "esc\x1b[31m", "excl!", "gt>", "hash#1", "lit\\n", "lt<", "nbsp\xa0x", "new\nline",
    "paren(1)", "per%20cent", "pipe|x", "plus+", "ques?", "quo'te", "semi;colon", "sp ace",
    "star*", "tab\tx", "tick`x", "trail ", "two  spaces", "x" * 255, "~tilde", "ünïcode-☃",
    "\u202ertl",
]  # fmt: skip
DEEP = 15
"""Levels of 200 characters below fx/deep, enough for the longest recorded path."""

JOB = """#!/bin/bash
#SBATCH --job-name=f7tjob
#SBATCH --output=out-%j.txt
#SBATCH --error=err-%j.txt
#SBATCH --time=00:05:00
echo "hello from node1 user $USER dir $PWD var=$MYVAR"
echo oops >&2
"""
SCRIPTS = {
    "job.sh": JOB + "echo done\n",
    "arr.sh": "#!/bin/bash\n#SBATCH --job-name=arr --array=1-3\ntrue\n",
    "fail.sh": "#!/bin/bash\n#SBATCH -o %j.out\nexit 3\n",
    "bad.sh": "#!/bin/bash\n#SBATCH --nodes=9999\ntrue\n",
    "noshebang.sh": "echo hi\n",
    "long.sh": "#!/bin/bash\nsleep 600\n",
}
UPLOADED_SCRIPTS = {
    "my script.sh": JOB + "sleep 600\n",
    "bad.sh": "#!/bin/bash\n#SBATCH --partition=nosuch\n",
    "a.sh": "#!/bin/bash\ntrue\n",
    "../..//ü;$x.sh": "#!/bin/bash\ntrue\n",
    "quick.sh": '#!/bin/bash\necho "v=$MYVAR"\n',
}


class Tree:
    """Files first, then owners, then modes and times: each undoes what follows it otherwise."""

    def __init__(self, sim: Simulator) -> None:
        self.sim = sim
        self.home = sim.home
        self._modes: list[tuple[Path, int]] = []
        self._times: list[tuple[Path, float, float]] = []
        self._foreign: set[Path] = set()

    def file(self, name: str, content: bytes | str = b"", mode: int = 0o644) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self._modes.append((path, mode))
        return path

    def sparse(self, name: str, size: int) -> None:
        os.truncate(self.file(name), size)

    def folder(self, name: str, mode: int = 0o755) -> Path:
        path = self.home / name
        path.mkdir(parents=True, exist_ok=True)
        self._modes.append((path, mode))
        return path

    def link(self, name: str, target: str) -> None:
        (self.home / name).parent.mkdir(parents=True, exist_ok=True)
        (self.home / name).symlink_to(target)

    def special(self, name: str, kind: int, mode: int) -> None:
        os.mknod(self.home / name, kind | mode)
        self._modes.append((self.home / name, mode))

    def times(self, name: str, accessed: float, modified: float) -> None:
        self._times.append((self.home / name, accessed, modified))

    def foreign(self, path: Path, mode: int, fallback: int) -> None:
        """Root's, if we are root; else ours with the mode that has its effect."""
        self._foreign.add(path)
        self._modes.append((path, mode if os.getuid() == 0 else fallback))

    def finish(self) -> None:
        if os.getuid() == 0:
            owner = self.home.stat()
            for path, folders, files in os.walk(self.home):
                for name in ["", *folders, *files]:
                    place = Path(path, name)
                    if place not in self._foreign and not place.is_relative_to(
                        self.home / "fx/rootdir"
                    ):
                        os.chown(place, owner.st_uid, owner.st_gid, follow_symlinks=False)
        for path, mode in self._modes:
            path.chmod(mode)
        for path, accessed, modified in self._times:
            os.utime(path, (accessed, modified), follow_symlinks=False)


def build(sim: Simulator) -> None:
    tree = Tree(sim)
    for part in (read_only, writable, transfers, jobs, strangers):
        part(tree)
    tree.finish()
    deep(sim)


def read_only(tree: Tree) -> None:
    file, folder = tree.file, tree.folder
    file("fx/bin.dat", bytes(range(256)) * 4)
    file("fx/crlf.txt", b"a\r\nb\r\n")
    for name, mode in (("d_000", 0), ("d_r", 0o444), ("d_ro", 0o555), ("d_x", 0o111)):
        file(f"fx/{name}/x", b"x")
        folder(f"fx/{name}", mode)
    for name, content in (
        (".hid", ""), ("a.txt", "aaa\n"), ("b.txt", "bb\n"), ("sub/c.txt", "c\n"),
        ("sub/deep/d.txt", "d\n"),
    ):  # fmt: skip
        file(f"fx/dir/{name}", content)
    folder("fx/dir/emptysub")
    tree.times("fx/dir", 1500000000, 1500000000)
    file("fx/empty.dat")
    folder("fx/emptydir")
    file("fx/exec.sh", "#!/bin/sh\necho hi\n", 0o755)
    tree.special("fx/fifo", stat.S_IFIFO, 0o644)
    tree.special("fx/sock", stat.S_IFSOCK, 0o755)
    for name, size in (
        ("five", 5242880), ("fiveplus", 5242881), ("huge_sparse", 1 << 40), ("mb3_6", 3600000),
        ("mb3_9", 3900000), ("mb4", 4000000), ("six", 6291456), ("sparse", 3145728),
        ("mb1", 1048576),
    ):  # fmt: skip
        tree.sparse(f"fx/{name}.dat", size)
    file("fx/kb100.dat", b"\xf5" * 100000)
    file("fx/latin1.txt", b"caf\xe9\n")
    file("fx/lines.txt", "".join(f"line {n}\n" for n in range(1, 31)))
    for name, target in (
        ("abs", "/etc/passwd"), ("broken", "nowhere"), ("dir", "dir"), ("file", "small.txt"),
        ("loop", "link_loop"), ("odd_target", 'sp ace -> "x'),
    ):  # fmt: skip
        tree.link(f"fx/link_{name}", target)
    file("fx/links/target.txt", "t\n")
    tree.link("fx/links/ok", "target.txt")
    tree.link("fx/links/broken", "gone")
    for number in range(2000):
        file(f"fx/many/file_{number:05}.dat")
    file("fx/nonl.txt", "no newline at end")
    file("fx/noread.txt", "secret\n", 0)
    for name in ODD:
        file(f"fx/odd/{name}", "odd\n")
    file(os.fsdecode(b"fx/odd/latin1-\xe9"), "odd\n")
    file("fx/onlynl.txt", "\n\n\n")
    file("fx/quote_content.txt", b'it says "hi" \\ back\0nul\x01\n')
    file("fx/ro.txt", "read only\n", 0o444)
    folder("fx/sgiddir", 0o2775)
    folder("fx/stickydir", 0o1777)
    file("fx/suid", "s", 0o4755)
    file("fx/small.txt", "hello world\n")
    file("fx/text4_9.txt", b"0123456789abcdef" * 313600)
    file("fx/utf8.txt", "héllo wörld ☃\n")
    for name, content, when in (
        ("future", "f\n", 4102444800), ("old", "old\n", 0), ("prehist", "p\n", -86400),
    ):  # fmt: skip
        file(f"fx/{name}.txt", content)
        tree.times(f"fx/{name}.txt", when, when)
    tree.times("fx/small.txt", 1700000000, 1600000000)


def writable(tree: Tree) -> None:
    file, folder = tree.file, tree.folder
    file("w/target", "target\n")
    tree.link("w/sl", "target")
    file("w/hard", "hard\n")
    file("w/my_directory.txt")
    file("w/ün☃.txt")
    file("w/poison1/No such file")
    file("w/poison1/ok")
    file("w/poison2/cannot open.log")
    for name in ("f1", "f2", "f3", "d3/x/full"):
        file(f"w/mv/{name}", name)
    for name in ("d1", "d2"):
        folder(f"w/mv/{name}")
    tree.link("w/mv/l1", "f3")
    tree.link("w/mv/ld1", "nowhere")
    file("w/cp/f1", "f1\n", 0o751)
    file("w/cp/f2", "f2\n")
    file("w/cp/d1/inner", "inner\n")
    folder("w/cp/d2")
    folder("w/cp/ex")
    tree.link("w/cp/l1", "f1")
    for size in (3932157, 3932158, 3932160, 3932161):
        tree.sparse(f"w/b{size}", size)


def transfers(tree: Tree) -> None:
    tree.file("w/x/existing", "existing\n")
    tree.file("w/x/ro", "read only\n", 0o444)
    tree.file("w/x/ro2", "read only\n", 0o444)
    tree.file("w/x/hard1", "hard\n")
    os.link(tree.home / "w/x/hard1", tree.home / "w/x/hard2")
    tree.file("w/x/bigx", "old\n")
    for name in ("gone", "adir", "mt", "vd"):
        tree.folder(f"w/x/{name}")
    tree.file("w/x/vd/inside", "x")
    tree.link("w/x/vl", "vd")
    tree.file("w/int/f1", "f1\n")
    tree.file("w/int/d1/x", "x\n")


def jobs(tree: Tree) -> None:
    for name, script in SCRIPTS.items():
        tree.file(f"jobs/{name}", script)


def strangers(tree: Tree) -> None:
    """What belongs to others: outside the home, and root's things in it."""
    other = tree.sim.root / "home/test2"
    forbidden = tree.sim.root / "forbidden"
    etc = tree.sim.root / "etc"
    for path in (other, forbidden, etc):
        path.mkdir()
    (etc / "hostname").write_text("node1\n")
    tree.foreign(etc / "hostname", 0o644, 0o644)
    tree.foreign(other, 0o755, 0o555)
    tree.foreign(forbidden, 0o700, 0)
    tree.foreign(etc, 0o755, 0o555)
    (tree.home / "fx/rootdir").mkdir()
    (tree.home / "fx/rootdir/inside").write_text("x")
    (tree.home / "fx/rootfile").write_text("root\n")
    tree.foreign(tree.home / "fx/rootdir", 0o700, 0)
    tree.foreign(tree.home / "fx/rootfile", 0o600, 0)


def deep(sim: Simulator) -> None:
    """Level by level: the whole path is longer than one system call takes with comfort."""
    here = os.open(sim.home / "fx", os.O_RDONLY)
    owner = sim.home.stat()
    for name in ["deep", *["d" * 200] * DEEP]:
        os.mkdir(name, dir_fd=here)
        if os.getuid() == 0:
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def big_folder(sim: Simulator) -> None:
    folder = sim.home / "big20k"
    folder.mkdir()
    for number in range(20000):
        (folder / f"file_{number:06}.dat").touch()


def no_wrapper_tree(sim: Simulator) -> None:
    tree = Tree(sim)
    for name, content in (("two  sp", "two\n"), ("two sp", "one\n"), ("do$HOME", "x\n")):
        tree.file(f"w/nw/{name}", content)
    tree.finish()


Step = Callable[[Simulator], None]


def test_the_tree_can_be_built_and_removed() -> None:
    """Odd names, modes that forbid, owners: all of it, and nothing is left behind."""
    from sim_process import running_simulator

    with running_simulator() as sim:
        build(sim)
        folder = sim.root.parent
        assert len(os.listdir(sim.home / "fx/odd")) == len(ODD) + 1
    assert not folder.exists()
