"""Unmodified tools on a real mount: right results, and as few calls as promised."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from mounting import Mount
from sim_process import Simulator
from t3_scenarios import data_of


def uploads_of(simulator: Simulator) -> list[str]:
    """Direct uploads of content, without the little archives of our working directory."""
    return [
        one["params"].get("file", "")
        for one in simulator.log(5000)
        if one["path"] == "/utilities/upload" and not one["params"].get("file", "").endswith(".tar")
    ]


def test_cp(mount: Mount, far: Any) -> None:
    """cp into the mount and out of it, by sha256."""
    (mount.folder / "source").write_bytes(data_of(3000))
    (mount.folder / "big").write_bytes(data_of(4 << 20))
    mount.run("cp source mnt/a; cp big mnt/big; cp mnt/a mnt/b; cp mnt/b back; cmp source back")
    mount.sync()
    assert far.read("b") == data_of(3000)
    assert far.sha256("big") == hashlib.sha256(data_of(4 << 20)).hexdigest()


def test_cp_a_of_a_tree(mount: Mount, far: Any) -> None:
    """cp -a: modes, times and symlinks."""
    mount.run(
        "mkdir -p t/sub; echo one >t/one; echo two >t/sub/two; chmod 750 t/sub; chmod 600 t/one;"
        "ln -s sub/two t/link; touch -d '2001-02-03 04:05:06' t/one t/sub; cp -a t mnt/"
    )
    mount.sync()
    assert far.read("t/sub/two") == b"two\n"
    assert far.readlink("t/link") == "sub/two"
    assert (far.mode("t/one"), far.mode("t/sub")) == (0o600, 0o750)
    done = mount.run("diff -r t mnt/t && stat -c %Y t/one mnt/t/one")
    times = done.stdout.split()
    assert times[0] == times[1]


def test_mv(mount: Mount, far: Any) -> None:
    """mv into, inside and out of the mount; of a directory, too."""
    mount.run(
        "echo x >x; mv x mnt/; mv mnt/x mnt/y; mkdir mnt/d; mv mnt/y mnt/d/; mv mnt/d mnt/e;"
        "mkdir local; echo z >local/z; mv local mnt/; mv mnt/e/y back; test ! -e x"
    )
    mount.sync()
    assert far.names() == {"e", "local"}
    assert far.names("e") == set()
    assert far.read("local/z") == b"z\n"
    assert (mount.folder / "back").read_text() == "x\n"


def test_rsync_twice(mount: Mount, far: Any, place: Any) -> None:
    """Times: "the second `rsync -a` sends nothing", also after a remount."""
    mount.run(
        "mkdir -p s/d; for n in 1 2 3 4 5; do echo $n >s/$n; echo d$n >s/d/$n; done;"
        "touch -d '2010-01-01 00:00:00.123456789' s/1; chmod 640 s/2; ln -s 1 s/link"
    )
    mount.run("rsync -a s/ mnt/t/", timeout=60)
    mount.sync()
    assert far.names("t") == {"1", "2", "3", "4", "5", "d", "link"}
    assert far.read("t/d/5") == b"d5\n"
    assert far.mode("t/2") == 0o640
    for again in (False, True):
        if again:
            mount.restart()
        if place.simulator is not None:
            place.simulator.reset_calls()
        done = mount.run("rsync -a -i -O s/ mnt/t/")
        assert done.stdout == ""
        mount.sync()
        if place.simulator is not None:
            assert {call for call in place.simulator.calls()["calls"]
                    if not call.startswith("GET")} == set()  # fmt: skip


def test_rsync_keeps_the_times_of_directories(mount: Mount) -> None:
    """Times: those set by `utimens` "stay stable through upload and remount", of a directory, too,
    whose files were still pending when it got its time."""
    mount.run("mkdir -p s/d; echo x >s/x; echo y >s/d/y; touch -d 2010-01-01 s/d s")
    mount.run("rsync -a s/ mnt/t/")
    mount.sync()
    assert mount.run("rsync -a -i s/ mnt/t/").stdout == ""
    mount.restart()
    assert mount.run("rsync -a -i s/ mnt/t/").stdout == ""


def test_rsync_sends_what_changed(mount: Mount, far: Any, place: Any) -> None:
    """FUSE.md, rsync: temporary name, then rename: one upload for one changed file."""
    mount.run("mkdir s; for n in 1 2 3; do echo $n >s/$n; done; rsync -a s/ mnt/t/")
    mount.sync()
    if place.simulator is not None:
        place.simulator.reset_calls()
    mount.run("echo changed >s/2; touch -d '2031-01-01' s/2; rsync -a s/ mnt/t/")
    mount.sync()
    assert far.read("t/2") == b"changed\n"
    assert far.names("t") == {"1", "2", "3"}
    if place.simulator is not None:
        assert len(uploads_of(place.simulator)) == 1


def test_sed_in_place(mount: Mount, far: Any, place: Any) -> None:
    """FUSE.md, sed -i: **one editor save is one upload**."""
    far.write("file", b"one two\n", 0o755)
    mount.run("sed -i s/two/three/ mnt/file")
    mount.sync()
    assert far.read("file") == b"one three\n"
    assert far.names() == {"file"}
    assert far.mode("file") == 0o755
    if place.simulator is not None:
        assert len(uploads_of(place.simulator)) == 1


@pytest.mark.parametrize("options", ["", "-c 'set backup' ", "-c 'set backupcopy=yes' "])
def test_vim(mount: Mount, far: Any, place: Any, options: str) -> None:
    """FUSE.md, vim: one save is exactly one upload; swap files never travel."""
    far.write("file", b"one\n")
    mount.run(f"vim -u NONE -es mnt/file {options}-c '%s/one/two/' -c 'w' -c 'q'")
    mount.sync()
    assert far.read("file") == b"two\n"
    kept = {"file", "file~"} if "set backup'" in options else {"file"}
    assert far.names() == kept
    if place.simulator is not None and len(kept) == 1:
        assert len(uploads_of(place.simulator)) == 1


def test_git(mount: Mount, far: Any) -> None:
    """git init, add, commit, status, fsck, clone on the mount."""
    mount.run(
        "git init -q mnt/r && cd mnt/r && for n in 1 2 3 4 5; do echo $n >f$n; done &&"
        " git add . && git commit -qm one && echo more >>f1 && git commit -qam two &&"
        ' git fsck --strict && test -z "$(git status --porcelain)"',
        timeout=90,
    )
    mount.sync()
    assert far.exists("r/.git/HEAD")
    mount.restart()
    mount.run("cd mnt/r && git fsck --strict && test -z \"$(git status --porcelain)\" &&"
              " cd ../.. && git clone -q mnt/r clone && test $(git -C clone log --oneline |"
              " wc -l) = 2 && cat clone/f1 && git clone -q clone mnt/r2", timeout=90)  # fmt: skip
    mount.sync()
    assert far.read("r2/f1") == b"1\nmore\n"


def test_tar(mount: Mount, far: Any) -> None:
    """tar x into the mount (times, modes, symlinks), tar c out of it."""
    mount.run(
        "mkdir -p t/d; echo x >t/d/x; printf '' >t/empty; ln -s d/x t/l; chmod 755 t/d/x;"
        "touch -d 2005-05-05 t/d/x; tar cf t.tar t; tar xf t.tar -C mnt; tar cf u.tar -C mnt t;"
        "mkdir u; tar xf u.tar -C u; diff -r t u/t"
    )
    mount.sync()
    assert far.read("t/d/x") == b"x\n"
    assert far.read("t/empty") == b""
    assert far.mode("t/d/x") == 0o755
    mount.run("tar df t.tar -C mnt")


def test_dd(mount: Mount, far: Any) -> None:
    """dd: seek, notrunc, fsync."""
    mount.run(
        "dd if=/dev/zero of=mnt/f bs=64k count=8 status=none;"
        "printf hello | dd of=mnt/f bs=1 seek=100000 conv=notrunc,fsync status=none"
    )
    mount.sync()
    wanted = bytearray(8 * 65536)
    wanted[100000:100005] = b"hello"
    assert far.read("f") == bytes(wanted)


def test_sqlite(mount: Mount, far: Any) -> None:
    """FUSE.md, sqlite: fsync and locks at each commit."""
    mount.run(
        "sqlite3 mnt/db 'create table t(x); insert into t values(1); insert into t values(2);'"
        " && sqlite3 mnt/db 'update t set x=x+1; vacuum; pragma integrity_check;'"
        " && test \"$(sqlite3 mnt/db 'select sum(x) from t')\" = 5"
    )
    mount.sync()
    assert far.read("db").startswith(b"SQLite format 3\0")
    assert far.names() == {"db"}
    mount.restart()
    assert mount.run("sqlite3 mnt/db 'pragma integrity_check; select sum(x) from t'").stdout == (
        "ok\n5\n"
    )


@pytest.mark.skipif(shutil.which("gio") is None, reason="there is no gio")
def test_gio(mount: Mount, far: Any, place: Any) -> None:
    """FUSE.md, gio: copy, save over an existing file, remove."""
    (mount.folder / "a.txt").write_text("hello")
    mount.run("gio copy a.txt mnt/a.txt; gio cat mnt/a.txt")
    mount.sync()
    assert far.read("a.txt") == b"hello"
    if place.simulator is not None:
        place.simulator.reset_calls()
    mount.run("echo saved | gio save mnt/a.txt")
    mount.sync()
    assert far.read("a.txt") == b"saved\n"
    assert far.names() == {"a.txt"}
    if place.simulator is not None:
        assert len(uploads_of(place.simulator)) == 1
    mount.run("gio remove mnt/a.txt")
    assert far.names() == set()


def test_shell_redirections(mount: Mount, far: Any) -> None:
    """Writing: `>`, `>>`, noclobber, here-documents, many descriptors."""
    mount.run(
        "cd mnt; echo a >f; echo b >>f; (echo c; echo d) >>f; exec 7>>f; echo e >&7; exec 7>&-;"
        "set -C; ! echo no >f; set +C; cat f f >g; wc -l <g"
    )
    mount.sync()
    assert far.read("f") == b"a\nb\nc\nd\ne\n"
    assert far.read("g") == b"a\nb\nc\nd\ne\n" * 2


def test_rm_r(mount: Mount, far: Any) -> None:
    """rm -r and find -delete of trees, clean and pending."""
    far.write("keep", b"x")
    mount.run("mkdir -p mnt/a/b/c mnt/p/q; touch mnt/a/1 mnt/a/b/2 mnt/a/b/c/3 mnt/p/q/4")
    mount.sync()
    mount.run("echo pending >mnt/a/b/new; rm -r mnt/a; find mnt/p -delete", timeout=60)
    mount.sync()
    assert far.names() == {"keep"}


def test_find_does_not_walk_what_is_ours(mount: Mount, far: Any) -> None:
    """The namespace: `.f7tfs/` is not listed, so that cp -r and find do not walk it."""
    far.mkdir("d")
    far.write("d/f", b"x")
    found = set(mount.run("cd mnt; find . -path ./jobs/\\* -prune -o -print").stdout.split())
    assert found == {".", "./d", "./d/f", "./jobs"}


@pytest.mark.simulator
def test_ten_thousand_appends_are_one_upload(mount_with: Callable[..., Mount], far: Any,
                                             simulator: Simulator) -> None:  # fmt: skip
    """Writing: "at local disk speed"; the API is precious."""
    mount = mount_with(writeback_delay=2)
    simulator.reset_calls()
    mount.run("for n in $(seq 2000); do echo $n >>mnt/log; done", timeout=60)
    mount.sync()
    assert far.read("log") == b"".join(b"%d\n" % n for n in range(1, 2001))
    assert len(uploads_of(simulator)) <= 2


def test_fetch(mount_with: Callable[..., Mount], far: Any, simulator: Simulator) -> None:
    """Reading: above `stage_limit` EFBIG "until `f7tfs fetch PATH` asks for it"."""
    big = data_of(6 << 20)
    far.mkdir("d")
    far.write("d/it's big", big)
    far.write("d/small", b"small")
    mount = mount_with(stage_limit="5MiB")
    mount.announce("stage_limit")
    assert mount.run('cat "mnt/d/it\'s big"', check=False).returncode != 0
    done = mount.f7tfs("fetch", str(mount.path / "d"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    simulator.reset_calls()
    assert mount.call((mount.path / "d" / "it's big").read_bytes) == big
    assert mount.call((mount.path / "d" / "small").read_bytes) == b"small"
    assert not [call for call in simulator.calls()["calls"] if "download" in call]
    missing = mount.f7tfs("fetch", str(mount.path / "nothing"))
    assert missing.returncode == 1
    assert "not everything" in missing.stderr
