"""Times as tools need them, on a real mount of each dialect (SEMANTICS "Times"): stable through
upload and remount, whatever second the upload lands in, and through kill -9 in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Place, place_of
from mounting import Mount
from sim_process import Simulator, running_simulator
from waits import wait_until

from f7tfs.faultpoints import VARIABLE

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(180)]
WHEN = 1_234_567_890_123_456_789


@pytest.fixture(scope="module", params=["v1", "v2"])
def served(request: pytest.FixtureRequest) -> Iterator[Place]:
    with running_simulator(api=request.param, staging_interval=0.3, start_delay=0) as simulator:
        yield place_of(simulator)


@pytest.fixture
def place(served: Place) -> Place:
    return served


@pytest.fixture
def simulator(served: Place) -> Simulator:
    assert served.simulator is not None
    return served.simulator


def test_make_does_not_rebuild(mount: Mount) -> None:
    """Times: "`make` does not rebuild": uploads land in any order and second."""
    (mount.folder / "Makefile").write_text(
        "all: c\nb: a\n\tcp a b\nc: b d/x\n\tcat b d/x >c\nd/x: a\n\tmkdir -p d; cp a d/x\n"
    )
    mount.run("cp Makefile mnt/; echo a >mnt/a; make -C mnt")
    for _ in range(2):
        mount.sync()
        assert "Nothing to be done" in mount.run("LC_ALL=C make -C mnt").stdout
        mount.restart()
        assert "Nothing to be done" in mount.run("LC_ALL=C make -C mnt").stdout
    mount.run("echo changed >mnt/a; make -C mnt; grep -q changed mnt/c")


def test_kept_times(mount: Mount) -> None:
    """Times: `cp -p`, `cp -a`, `tar x`, `touch -d` and mv keep times of files, directories and
    symlinks, to the nanosecond, over upload and remount."""
    mount.run(
        "mkdir -p t/d; echo one >t/one; echo two >t/d/two; ln -s one t/link; printf '' >t/empty;"
        "touch -d '2001-02-03 04:05:06.123456789' t/one t/empty;"
        "touch -d '2002-02-02 02:02:02.000000001' t/d/two; touch -h -d 2003-03-03 t/link;"
        "touch -d '2004-04-04 04:04:04.4' t/d; touch -d '2005-05-05 05:05:05.5' t;"
        "tar --format=posix -cf t.tar t; cp -p t/one mnt/p; cp -a t mnt/a; mkdir mnt/x;"
        "tar xf t.tar -C mnt/x;"
        "mv mnt/p mnt/q; echo >mnt/touched; touch -d '2006-06-06 06:06:06.6' mnt/touched"
    )
    show = "find {} -printf '%P %T@\\n' | sort"
    wanted = mount.run(show.format("t")).stdout
    for moment in ("written", "uploaded", "mounted again", "known anew"):
        assert mount.run(show.format("mnt/a")).stdout == wanted, moment
        assert mount.run(show.format("mnt/x/t")).stdout == wanted, moment
        kept = mount.run("stat -c %y mnt/q mnt/touched").stdout
        assert "04:05:06.123456789" in kept and "06:06:06.600000000" in kept, moment
        if moment == "written":
            mount.sync()
        elif moment == "uploaded":
            mount.restart()
        else:
            mount.refresh()


def test_the_upload_lands_in_another_second(mount_with: Callable[..., Mount], far: Any) -> None:
    """Times: the overlay is keyed by what the upload's time became, not by what it was here."""
    mount = mount_with(writeback_delay=1.5)
    mount.call((mount.path / "file").write_bytes, b"content")
    written = mount.call(os.stat, mount.path / "file").st_mtime_ns
    wait_until(lambda: far.names() == {"file"}, "the upload")
    mount.sync()
    assert int(far.stat("file").st_mtime) > written // 10**9
    for _ in range(2):
        assert mount.call(os.stat, mount.path / "file").st_mtime_ns == written
        mount.restart()


@pytest.mark.parametrize("point", ["upload.expected", "upload.renamed", "upload.record-dropped"])
def test_kill_between_upload_and_overlay(
    mount_with: Callable[..., Mount], far: Any, point: str
) -> None:
    """Times: the overlay ends the upload's record in one commit; a killed upload keeps the time."""
    mount = mount_with(start=False, writeback_delay=0)
    mount.environment[VARIABLE] = point
    mount.announce("never closed", VARIABLE)
    mount.start()

    def write() -> None:
        fd = os.open(mount.path / "file", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"content")
        os.utime(fd, ns=(WHEN, WHEN))
        os.close(fd)

    mount.call(write)
    mount.wait()
    mount.kill()
    del mount.environment[VARIABLE]
    mount.start()
    assert mount.call(os.stat, mount.path / "file").st_mtime_ns == WHEN
    mount.sync()
    assert mount.call(os.stat, mount.path / "file").st_mtime_ns == WHEN
    mount.restart()
    assert mount.call(os.stat, mount.path / "file").st_mtime_ns == WHEN
    assert far.read("file") == b"content" and far.names() == {"file"}


def test_rsync_of_a_changed_tree(mount: Mount, simulator: Simulator) -> None:
    """Times: "the second `rsync -a` sends nothing", the third neither, with directories' times."""
    mount.run(
        "mkdir -p s/d/e; for n in 1 2 3; do echo $n >s/$n; echo $n >s/d/e/$n; done; ln -s 1 s/l;"
        "touch -d '2010-01-01 00:00:00.7' s/1 s/d/e/2 s/d/e s/d; rsync -a s/ mnt/t/;"
        "echo 4 >s/d/4; rm s/2; mv s/3 s/d/e/moved;"
        # Not this second: rsync leaves a directory alone whose time it finds right by chance.
        "touch -d '2011-01-01 00:00:00.7' s/d/e s/d s; rsync -a --delete s/ mnt/t/"
    )
    mount.sync()
    for again in range(3):
        assert mount.run("rsync -a -i --delete s/ mnt/t/").stdout == "", again
        if again == 1:
            mount.restart()
    mount.run("diff -r s mnt/t")
