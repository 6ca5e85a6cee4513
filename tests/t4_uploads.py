"""`f7tfs uploads`, `sync`, `umount`, `refresh` and fsync under a real mount: what a user does about
what is still on its way (docs/semantics.md "Writing": failure, unmount, fsync)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, leave_tidy
from mounting import CHECKOUT, Mount
from sim_process import Simulator
from t3_scenarios import data_of, refused
from waits import wait_until

pytestmark = pytest.mark.simulator
STUCK = ("is stuck", "EIO: stuck", "stay in the journal")
OFFLINE = (" offline: ",)


def stuck_at(mount: Mount, far: Any, name: str, content: bytes = b"precious\n") -> None:
    """A file that the cluster refuses: its directory is not writable any more."""
    folder = name.rpartition("/")[0]
    mount.announce(*STUCK)
    mount.call((mount.path / name).write_bytes, content)
    far.chmod(folder, 0o555)
    assert mount.f7tfs("sync", str(mount.path / name)).returncode == 12


def ok(mount: Mount, *words: str) -> str:
    done = mount.f7tfs(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def fails(mount: Mount, code: int, *words: str) -> str:
    done = mount.f7tfs(*words)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    assert all(line.startswith("f7tfs: ") for line in done.stderr.splitlines()), done.stderr
    return done.stdout + done.stderr


def on_terminal(mount: Mount, words: list[str], typed: str, when: bytes = b"[y/N]") -> str:
    """What a command shows on a terminal on which `typed` is typed when it has shown `when`."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "-c", "-w", sys.executable, "-m", "f7tfs", *words],
        env=mount.environment | {"COLUMNS": "200", "TERM": "xterm"},
        cwd=CHECKOUT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, end, is_typed = b"", time.monotonic() + 20, False
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: its other end is closed
                break
            shown += data
            if when in shown and not is_typed:
                is_typed = True
                os.write(ours, typed.encode())
        process.wait(max(0.1, end - time.monotonic()))
    finally:
        process.kill()
        os.close(ours)
    return f"{shown.decode()}\nexit {process.returncode}"


def listed(mount: Mount, *paths: Path) -> list[dict[str, Any]]:
    text = ok(mount, "uploads", "list", "--json", *map(str, paths or (mount.path,)))
    return [item for source in json.loads(text) for item in source["uploads"]]


# Looking and trying again.


def test_list_retry_and_sync(mount: Mount, far: Any) -> None:
    """Failure: what is stuck is named with its reason; a retry of its directory brings it."""
    far.mkdir("closed")
    far.mkdir("open")
    stuck_at(mount, far, "closed/thesis")
    mount.call((mount.path / "open/fine").write_bytes, b"fine")
    assert ok(mount, "sync", str(mount.path / "open")) == ""
    assert far.read("open/fine") == b"fine"
    text = ok(mount, "uploads", "list", str(mount.path))
    assert "stuck" in text and "closed/thesis" in text and "(Permission denied)" in text
    assert far.directory in text and ".f7tfs-" not in text, "no temporary names of ours"
    (item,) = listed(mount, mount.path / "closed")
    assert (item["name"], item["state"], item["size"]) == ("closed/thesis", "stuck", 9)
    assert item["next_try"] is None and "Permission denied" in item["error"]
    assert Path(item["file"]).read_bytes() == b"precious\n"
    assert listed(mount, mount.path / "open") == []

    text = fails(mount, 12, "sync", str(mount.path))
    assert "stuck: closed/thesis: Permission denied" in text
    assert "nothing of it is on its way" in fails(
        mount, 1, "uploads", "retry", str(mount.path / "open")
    )
    far.chmod("closed", 0o755)
    assert "1 file tried again" in ok(mount, "uploads", "retry", str(mount.path / "closed"))
    assert ok(mount, "sync", str(mount.path / "closed/thesis")) == ""
    assert far.read("closed/thesis") == b"precious\n"
    assert "nothing is stuck" in ok(mount, "uploads", "retry", str(mount.path))
    assert "everything is on the cluster" in ok(mount, "uploads", "list", str(mount.path))


def test_sync_waits_for_one_place_only(mount_with: Callable[..., Mount], far: Any) -> None:
    """Writing: `f7tfs sync [PATH]`: uploads and removals at and below it, temporary names as well,
    and nothing else."""
    for name in ("a", "b"):
        far.mkdir(name)
    for name in ("a/old", "a/one", "ab"):
        far.write(name, b"old")  # edits go one by one; new small files may travel with others
    mount = mount_with(writeback_delay=60)
    for name in ("a/one", "a/sedABC123", "a/.one.swp", "ab", "b/two"):
        mount.call((mount.path / name).write_bytes, name.encode())
    mount.call(os.unlink, mount.path / "a/old")  # behind what was closed before it
    assert far.exists("a/old")
    (mount.folder / "link").symlink_to(mount.path / "b")
    states = {item["name"]: item["state"] for item in listed(mount)}
    assert states["a/sedABC123"] == "held" and states["a/one"] == "pending"
    assert states["a/old"] == "removal"
    assert ok(mount, "sync", str(mount.folder / "link" / "two")) == ""
    assert far.names("b") == {"two"} and far.exists("a/old")
    assert far.read("ab") == far.read("a/one") == b"old"
    assert ok(mount, "sync", str(mount.path / "b")) == ""
    # The removal waits for all that was closed before it, in other places too.
    assert ok(mount, "sync", str(mount.path / "a")) == ""
    assert far.names("a") == {"one", "sedABC123"}
    mount.call(os.unlink, mount.path / "a/.one.swp")
    leave_tidy(mount)


def test_sync_without_a_path(mount: Mount, far: Any) -> None:
    """The mount of the working directory."""
    mount.call((mount.path / "file").write_bytes, b"x")
    words = [sys.executable, "-m", "f7tfs", "sync"]
    mount.run(f"cd mnt && {' '.join(words)}", environment={"PYTHONPATH": str(CHECKOUT)})
    assert far.read("file") == b"x"


def test_a_swap_file_is_owed_to_nobody(mount: Mount, far: Any) -> None:
    """Temporary names: "pure junk such as swap files and .DS_Store never", also while an editor has
    one open and syncs it."""
    fd = mount.call(os.open, mount.path / ".file.swp", os.O_RDWR | os.O_CREAT)
    try:
        mount.call(os.write, fd, b"swap")
        mount.call(os.fsync, fd)
        mount.call((mount.path / "file").write_bytes, b"x")
        assert ok(mount, "sync", str(mount.path)) == ""
        assert far.names() == {"file"}
    finally:
        mount.call(os.close, fd)
    assert ok(mount, "sync", str(mount.path)) == ""
    assert far.names() == {"file"}
    assert "everything is on the cluster" in ok(mount, "uploads", "list", str(mount.path))
    assert [item["junk"] for item in listed(mount)] == [True]
    mount.call(os.unlink, mount.path / ".file.swp")


def test_refresh(mount: Mount, far: Any) -> None:
    far.mkdir("d")
    mount.run("ls mnt/d")
    far.write("d/new", b"x")
    assert mount.call(os.listdir, mount.path / "d") == []
    assert ok(mount, "refresh", str(mount.path / "d")) == ""
    assert mount.call(os.listdir, mount.path / "d") == ["new"]
    far.write("top", b"x")
    assert ok(mount, "refresh", str(mount.path)) == ""
    assert "top" in mount.call(os.listdir, mount.path)
    fails(mount, 13, "refresh", str(mount.folder))


# Discarding.


@pytest.mark.parametrize("before", [b"short", data_of(30_000)], ids=["shorter", "longer"])
def test_discard_shows_the_cluster_s_version(mount: Mount, far: Any, before: bytes) -> None:
    """`discard`: the local changes are lost, the name shows what the cluster has, for everybody and
    at once; nothing comes back at the next start."""
    far.mkdir("d")
    far.write("d/file", before)
    assert mount.call((mount.path / "d/file").read_bytes) == before
    far.chmod("d", 0o555)
    far.chmod("d/file", 0o444)
    mount.announce(*STUCK)
    place = mount.path / "d/file"
    with contextlib.suppress(PermissionError):  # where the mode is known already
        mount.call(place.write_bytes, b"my changes")
    if not listed(mount):
        far.chmod("d", 0o755)
        far.chmod("d/file", 0o644)
        mount.refresh()
        mount.call(place.write_bytes, b"my changes")
        far.chmod("d", 0o555)
        far.chmod("d/file", 0o444)
    assert mount.f7tfs("sync", str(place)).returncode == 12
    assert mount.call(place.read_bytes) == b"my changes"

    words = fails(mount, 2, "uploads", "discard", str(place))
    assert "--yes" in words
    said = on_terminal(mount, ["uploads", "discard", str(place)], "n\n")
    assert "d/file" in said and "are lost; the cluster's version was" in said
    assert "exit 1" in said and len(listed(mount)) == 1
    said = on_terminal(mount, ["uploads", "discard", str(mount.path / "d")], "y\n")
    assert "1 file discarded" in said and "exit 0" in said
    assert mount.call(place.read_bytes) == before
    assert mount.call(os.stat, place).st_size == len(before)
    assert listed(mount) == []
    far.chmod("d", 0o755)
    mount.kill()
    mount.start()
    assert mount.call(place.read_bytes) == before
    assert far.names("d") == {"file"}
    leave_tidy(mount)


def test_discard_what_the_cluster_never_had(mount: Mount, far: Any) -> None:
    far.mkdir("d")
    stuck_at(mount, far, "d/one")
    said = on_terminal(mount, ["uploads", "discard", str(mount.path / "d/one")], "y\n")
    assert "nothing of it is on the cluster" in said
    refused(errno.ENOENT, mount.call, os.stat, mount.path / "d/one")
    far.chmod("d", 0o755)
    assert ok(mount, "uploads", "discard", "--all-stuck", "--yes", str(mount.path)).strip() == (
        "nothing is stuck"
    )
    assert "nothing of it is on its way" in fails(
        mount, 1, "uploads", "discard", "--yes", str(mount.path / "d")
    )
    assert "--all-stuck" in fails(mount, 2, "uploads", "discard", "--yes")


@pytest.mark.v1
def test_discard_during_an_attempt(mount: Mount, far: Any, simulator: Simulator) -> None:
    """An attempt under way publishes nothing once its file was discarded, and leaves nothing."""
    far.write("file", b"the cluster's")
    rule = {"match": "POST /utilities/upload", "action": {"delay": 2.0}}
    ident = simulator.faults([rule])[0]
    mount.call((mount.path / "file").write_bytes, b"mine")
    wait_until(lambda: simulator.fired().get(ident), "the upload to begin")
    assert listed(mount)[0]["state"] == "uploading"
    assert "1 file discarded" in ok(mount, "uploads", "discard", "--yes", str(mount.path / "file"))
    assert mount.call((mount.path / "file").read_bytes) == b"the cluster's"
    wait_until(lambda: not far.litter(), "the attempt's temporary to go")
    assert ok(mount, "sync", str(mount.path)) == ""
    assert far.read("file") == b"the cluster's" and far.names() == {"file"}


def test_discard_leaves_open_files_alone(mount: Mount, far: Any) -> None:
    """Somebody has it open: nothing is taken away under them; the others are discarded."""
    far.mkdir("d")
    stuck_at(mount, far, "d/read")
    far.chmod("d", 0o755)
    mount.refresh()
    stuck_at(mount, far, "d/closed")
    command = ["uploads", "discard", "--yes", "--all-stuck", str(mount.path)]
    with open(mount.path / "d/read", "rb") as file:
        said = fails(mount, 1, *command)
        assert "d/read is left alone: it is open in" in said and f"({os.getpid()})" in said
        assert "1 file discarded" in said
        refused(errno.EBUSY, mount.call, (mount.path / ".f7tfs/discard").write_text, "d/read\n")
        assert mount.call(file.read) == b"precious\n"
    assert [item["name"] for item in listed(mount)] == ["d/read"]
    wait_until(lambda: not listed(mount)[0]["open"], "the close to be known")
    ok(mount, *command)
    assert listed(mount) == []
    refused(errno.ENOENT, mount.call, (mount.path / ".f7tfs/discard").write_text, "d/read\n")
    refused(errno.EINVAL, mount.call, (mount.path / ".f7tfs/discard").write_text, "../x\n")
    far.chmod("d", 0o755)


def test_discard_lets_no_job_start(mount_with: Callable[..., Mount], far: Any) -> None:
    """Barrier: a job that is held behind a file keeps it from being discarded: it would start
    without its input (docs/decisions/0013)."""
    far.mkdir("d")
    mount = mount_with()
    mount.announce("train.sh waits for ")
    stuck_at(mount, far, "d/input")
    drop = mount.path / "jobs/train.sh"
    mount.call(drop.write_text, "#!/bin/sh\n", deadline=30.0)
    (item,) = listed(mount)
    assert item["awaited_by"] == ["train.sh"]
    said = fails(mount, 1, "uploads", "discard", "--yes", str(mount.path / "d/input"))
    assert "jobs/train.sh waits for it" in said
    refused(errno.EBUSY, mount.call, (mount.path / ".f7tfs/discard").write_text, "d/input\n")
    assert mount.status()["jobs"]["dropped"][0]["state"] == "held"
    mount.call(os.unlink, drop)
    ok(mount, "uploads", "discard", "--yes", str(mount.path / "d/input"))
    assert mount.status()["jobs"]["dropped"] == []
    far.chmod("d", 0o755)
    leave_tidy(mount)


# Saving.


def test_save_of_a_running_mount(mount: Mount, far: Any) -> None:
    """`save`: paths, modes and times; nothing is overwritten, nothing is copied twice."""
    far.mkdir("d")
    stuck_at(mount, far, "d/thesis", data_of(100_000))
    mount.call(os.chmod, mount.path / "d/thesis", 0o640)
    folder = mount.folder / "saved"
    assert "1 file (97.7 KiB) saved" in ok(mount, "uploads", "save", str(folder), str(mount.path))
    saved = folder / "d/thesis"
    assert saved.read_bytes() == data_of(100_000)
    here = mount.call(os.stat, mount.path / "d/thesis")
    assert saved.stat().st_mode & 0o777 == 0o640
    assert abs(saved.stat().st_mtime - here.st_mtime) < 0.001
    ok(mount, "uploads", "save", str(folder), str(mount.path / "d"))
    assert sorted(os.listdir(folder / "d")) == ["thesis"]
    saved.write_bytes(b"somebody else's")
    assert "is saved as thesis.1" in ok(mount, "uploads", "save", str(folder), str(mount.path))
    assert saved.read_bytes() == b"somebody else's"
    assert (folder / "d/thesis.1").read_bytes() == data_of(100_000)
    assert "is in an f7tfs mount" in fails(
        mount, 2, "uploads", "save", str(mount.path / "d"), str(mount.path)
    )
    (mount.folder / "file").touch()
    fails(mount, 2, "uploads", "save", str(mount.folder / "file"), str(mount.path))
    far.chmod("d", 0o755)
    ok(mount, "uploads", "retry", str(mount.path))


def test_the_account_is_gone(mount_with: Callable[..., Mount], far: Any) -> None:
    """Tenet 1: what was closed stays "visible and recoverable", also when it cannot be mounted any
    more: by list and save, from the journal on the disk, which they do not change."""
    far.mkdir("d")
    mount = mount_with(writeback_delay=60)
    mount.call((mount.path / "d/thesis").write_bytes, data_of(50_000))
    mount.call((mount.path / "d/notes").write_bytes, b"notes")
    mount.call((mount.path / ".x.swp").write_bytes, b"junk")
    fd = mount.call(os.open, mount.path / "unclosed", os.O_WRONLY | os.O_CREAT)
    mount.call(os.write, fd, b"never closed")
    mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    journal = mount.journal_directory()
    before = {file: file.stat().st_mtime_ns for file in journal.rglob("*")}
    text = ok(mount, "uploads", "list", mount.remote)
    assert "not mounted" in text and "d/thesis" in text and "2 pending" in text
    assert str(journal) in text and "never closed" in text and "swp" not in text
    assert "d/thesis" in ok(mount, "uploads", "list", str(journal))
    folder = mount.folder / "saved"
    ok(mount, "uploads", "save", str(folder), mount.remote)
    assert (folder / "d/thesis").read_bytes() == data_of(50_000)
    assert (folder / "d/notes").read_bytes() == b"notes"
    (unclosed,) = (folder / "unclosed").iterdir()
    assert unclosed.read_bytes() == b"never closed"
    assert {file: file.stat().st_mtime_ns for file in journal.rglob("*")} == before
    for command in ("retry", "discard"):
        fails(mount, 13, "uploads", command, mount.remote)

    mount.announce("never closed was set aside")
    mount.start()
    mount.sync()
    assert far.read("d/thesis") == data_of(50_000)
    (item,) = [item for item in json.loads(ok(mount, "uploads", "list", "--json", str(journal)))[0][
        "uploads"
    ] if item["state"] == "unclosed"]  # fmt: skip
    assert Path(item["file"]).read_bytes() == b"never closed"
    os.unlink(item["file"])
    mount.call(os.unlink, mount.path / ".x.swp")
    leave_tidy(mount)


@pytest.mark.parametrize("damage", ["whole", "torn"])
def test_a_journal_that_was_set_aside(
    mount_with: Callable[..., Mount], far: Any, damage: str
) -> None:
    """ "set aside whole, and never silently dropped": list finds it, save gets its files out."""
    mount = mount_with(writeback_delay=60)
    mount.call((mount.path / "thesis").write_bytes, data_of(50_000))
    mount.kill()
    journal = mount.journal_directory()
    if damage == "whole":
        for name in ("journal.sqlite-wal", "journal.sqlite-shm"):
            (journal / name).unlink(missing_ok=True)
        (journal / "journal.sqlite").write_bytes(b"not a database" * 1000)
    else:
        import sqlite3

        with contextlib.closing(sqlite3.connect(journal / "journal.sqlite")) as database:
            database.execute("UPDATE about SET value = 'somebody else''s' WHERE name = 'key'")
            database.commit()
    mount.announce("the journal cannot be used")
    mount.start()
    (aside,) = journal.glob("journal.set-aside-*")
    text = ok(mount, "uploads", "list", str(aside))
    assert "it was set aside" in text and str(aside) in text
    folder = mount.folder / "saved"
    ok(mount, "uploads", "save", str(folder), str(aside))
    (saved,) = [file for file in folder.rglob("*") if file.is_file()]
    assert saved.read_bytes() == data_of(50_000)
    if damage == "torn":
        assert saved.name == "thesis"
    leave_tidy(mount)


# Unmounting.


def test_umount_of_a_busy_mount(mount: Mount, far: Any) -> None:
    """One sentence, before it waits for uploads."""
    with subprocess.Popen(["sleep", "60"], cwd=mount.path) as user:
        try:
            said = fails(mount, 8, "umount", str(mount.path))
            assert f"busy: still used by sleep ({user.pid})" in said
            assert len(said.splitlines()) == 1
            assert "busy" in fails(mount, 8, "umount", "--now", str(mount.path))
        finally:
            user.kill()
    assert mount.is_mounted


def test_a_daemon_that_hangs(mount: Mount, far: Any) -> None:
    """Tenet 2: a command that looks at the mount is not taken along; the bytes can be had."""
    far.mkdir("d")
    stuck_at(mount, far, "d/thesis")
    assert mount.process is not None
    mount.process.send_signal(signal.SIGSTOP)
    try:
        said = fails(mount, 1, "umount", str(mount.path))
        assert "does not answer" in said and f"f7tfs umount --now {mount.path}" in said
        assert "does not answer" in fails(mount, 1, "sync", str(mount.path / "d"))
        text = ok(mount, "uploads", "list", mount.remote)
        assert "a daemon holds it" in text and "d/thesis" in text
        ok(mount, "uploads", "save", str(mount.folder / "saved"), mount.remote)
        assert (mount.folder / "saved/d/thesis").read_bytes() == b"precious\n"
    finally:
        mount.process.send_signal(signal.SIGCONT)
    far.chmod("d", 0o755)
    ok(mount, "uploads", "retry", str(mount.path))


def test_a_daemon_that_is_gone(mount: Mount, far: Any) -> None:
    far.mkdir("d")
    stuck_at(mount, far, "d/thesis")
    assert mount.process is not None
    mount.process.kill()
    mount.process.wait(20)
    assert "is gone; run: f7tfs umount" in fails(mount, 1, "sync", str(mount.path))
    assert "d/thesis" in ok(mount, "uploads", "list", mount.remote)
    done = mount.umount()
    assert done.returncode == 0 and "waits in the journal" in done.stderr
    far.chmod("d", 0o755)


def test_umount_offline(own_simulator: Callable[..., Place]) -> None:
    """ "never hangs without a reason that the user can see": says that it is offline, and how to
    leave; Ctrl-C ends the waiting and leaves it mounted; `--now` leaves the rest in the journal."""
    place = own_simulator()
    simulator = place.simulator
    assert simulator is not None
    with place.mount(place.directory, patience=1, writeback_delay=0.2) as mount:
        mount.start()
        mount.announce(*OFFLINE, *STUCK, "again in", "EHOSTUNREACH")
        mount.call(os.listdir, mount.path)
        simulator.stop()
        mount.call((mount.path / "file").write_bytes, b"x")
        wait_until(lambda: not mount.status()["online"], "the mount to find out", 30)
        waiting = subprocess.Popen(
            [sys.executable, "-m", "f7tfs", "umount", str(mount.path)],
            env=mount.environment, cwd=CHECKOUT, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert waiting.stderr is not None
        assert select.select([waiting.stderr], [], [], 20)[0], "nothing is said"
        line = waiting.stderr.readline().decode()
        assert "1 upload left" in line and "offline since" in line
        assert f"f7tfs umount --now {mount.path}" in line
        waiting.send_signal(signal.SIGINT)
        _, rest = waiting.communicate(timeout=20)
        assert waiting.returncode == 130 and b"1 upload" in rest and b"Traceback" not in rest
        assert mount.is_mounted
        said = on_terminal(mount, ["sync", str(mount.path)], "\x03", when=b"offline since")
        assert "exit 130" in said and "not waited for any more: 1 upload" in said
        done = mount.umount("--now")
        assert done.returncode == 0 and "1 file stays in the journal" in done.stderr
        simulator.start_again()
        mount.start()
        mount.sync()
        assert place.far(place.directory).read("file") == b"x"
        leave_tidy(mount)


def test_a_waiting_command_that_is_killed_leaves_no_child(
    mount: Mount, far: Any, simulator: Simulator
) -> None:
    """A child that waits in the mount would keep it busy for ever."""
    rule = {"match": "upload", "times": None, "action": {"delay": 3.0}}
    simulator.faults([rule])
    mount.call((mount.path / "file").write_bytes, b"x")
    with subprocess.Popen(
        [sys.executable, "-m", "f7tfs", "sync", str(mount.path)],
        env=mount.environment, cwd=CHECKOUT,
    ) as waiting:  # fmt: skip
        lever = str(mount.path / ".f7tfs/sync")
        wait_until(lambda: users_of(lever), "the child to wait")
        waiting.kill()
    wait_until(lambda: not users_of(lever), "the child to end")


def users_of(path: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                if path in [os.readlink(one) for one in (process / "fd").iterdir()]:
                    found.append(int(process.name))
    return found


def test_a_stop_says_what_is_left(mount_with: Callable[..., Mount], far: Any) -> None:
    """Unmount: "SIGTERM and systemd stop drain for a bounded time"; the log names what is left."""
    mount = mount_with(drain_timeout=1)
    far.mkdir("d")
    stuck_at(mount, far, "d/thesis")
    assert mount.terminate() == 0
    (line,) = [line for line in mount.log().splitlines() if "stay in the journal" in line]
    assert "1 uploads (9 bytes, 1 stuck)" in line and "d/thesis" in line
    far.chmod("d", 0o755)
    mount.start()
    ok(mount, "uploads", "retry", str(mount.path))
    mount.sync()
    leave_tidy(mount)


# fsync = "cluster".


def test_fsync_waits_for_the_cluster(mount_with: Callable[..., Mount], far: Any) -> None:
    """Writing: `fsync = "cluster"` … wait[s] for the cluster: what was written before it is there
    when it returns, while the file stays open and is written on."""
    far.write("there", b"old content")
    mount = mount_with(fsync="cluster", writeback_delay=60)
    for name in ("new", "there"):
        fd = mount.call(os.open, mount.path / name, os.O_RDWR | os.O_CREAT)
        mount.call(os.pwrite, fd, b"first", 0)
        mount.call(os.fsync, fd)
        assert far.read(name)[:5] == b"first"
        mount.call(os.pwrite, fd, b"second", 5)
        assert far.read(name)[5:11] != b"second"
        mount.call(os.fdatasync, fd)
        assert far.read(name)[:11] == b"firstsecond"
        mount.call(os.pwrite, fd, b"last", 0)
        mount.call(os.close, fd)
    mount.call((mount.path / "unsynced").write_bytes, b"x")
    assert not far.exists("unsynced"), "close is as quick as ever"
    fd = mount.call(os.open, mount.path / ".new.swp", os.O_RDWR | os.O_CREAT)
    mount.call(os.write, fd, b"swap")
    mount.call(os.fsync, fd)
    mount.call(os.close, fd)
    mount.call(os.unlink, mount.path / ".new.swp")
    mount.sync()
    assert far.read("there") == b"laststsecond"[:4] + b"tsecond"
    assert far.names() == {"new", "there", "unsynced"}
    leave_tidy(mount)


@pytest.mark.v1
def test_fsync_tells_what_stopped_it(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator
) -> None:
    """Errors of a stuck upload reach fsync(2), by their own errno; the content is kept."""
    mount = mount_with(fsync="cluster")
    mount.announce(*STUCK, "fsync: E")
    words = '{"description": "x", "error": "cat: write error: Disk quota exceeded"}'
    action = {"status": 400, "body": words, "headers": {"Content-Type": "application/json"}}
    simulator.faults([{"match": "POST /utilities/upload", "times": None, "action": action}])
    fd = mount.call(os.open, mount.path / "file", os.O_RDWR | os.O_CREAT)
    mount.call(os.write, fd, b"content")
    refused(errno.EDQUOT, mount.call, os.fsync, fd)
    assert mount.call((mount.path / "file").read_bytes) == b"content"
    simulator.clear_faults()
    ok(mount, "uploads", "retry", str(mount.path))
    mount.call(os.fsync, fd)
    assert far.read("file") == b"content"
    mount.call(os.close, fd)
    leave_tidy(mount)


@pytest.mark.v1
def test_fsync_can_be_interrupted(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator
) -> None:
    """Tenet 2: "every wait can be interrupted"."""
    mount = mount_with(fsync="cluster")
    rule = {"match": "POST /utilities/upload", "action": {"delay": 8.0}}
    simulator.faults([rule])
    program = "import os, sys; f = open(sys.argv[1], 'wb'); f.write(b'x'); f.flush(); os.fsync(f)"
    with subprocess.Popen([sys.executable, "-c", program, str(mount.path / "file")]) as writer:
        wait_until(lambda: mount.uploads()["items"], "the file")
        wait_until(lambda: mount.uploads()["items"][0]["state"] == "uploading", "fsync to wait")
        began = time.monotonic()
        writer.terminate()
        assert writer.wait(timeout=6) == -signal.SIGTERM
        assert time.monotonic() - began < 5
    mount.sync()
    assert far.read("file") == b"x"
    leave_tidy(mount)
