"""What only a kernel can ask for: mmap, O_DIRECT, locks, statfs, signals that end waits."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from mounting import Mount, renameat2
from sim_process import Simulator
from t3_scenarios import data_of, refused
from waits import wait_until

pytestmark = pytest.mark.simulator


def test_mmap(mount: Mount, far: Any) -> None:
    """FUSE.md: "mmap (shared too) … work through emulation"."""
    far.write("file", data_of(100_000))

    def change() -> bytes:
        with open(mount.path / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            before = bytes(view)
            view[5000:5005] = b"hello"
            view.flush()
            return before

    assert mount.call(change) == data_of(100_000)
    mount.sync()
    wanted = bytearray(data_of(100_000))
    wanted[5000:5005] = b"hello"
    assert far.read("file") == bytes(wanted)


def test_odd_system_calls(mount: Mount, far: Any) -> None:
    """FUSE.md: O_DIRECT, copy_file_range, posix_fallocate, SEEK_HOLE work by emulation."""
    content = data_of(1 << 20)

    def work() -> None:
        buffer = mmap.mmap(-1, 1 << 20)
        buffer.write(content)
        fd = os.open(mount.path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        assert os.pwritev(fd, [buffer], 0) == 1 << 20
        back = mmap.mmap(-1, 1 << 20)
        assert os.preadv(fd, [back], 0) == 1 << 20
        assert back[:] == content
        os.close(fd)
        source = os.open(mount.path / "direct", os.O_RDONLY)
        target = os.open(mount.path / "copy", os.O_RDWR | os.O_CREAT)
        done = 0
        while done < 1 << 20:
            done += os.copy_file_range(source, target, (1 << 20) - done)
        os.posix_fallocate(target, 0, (1 << 20) + 5)
        assert os.lseek(target, 0, os.SEEK_HOLE) >= 1 << 20
        os.close(source)
        os.close(target)

    mount.call(work)
    mount.sync()
    assert far.read("direct") == content
    assert far.read("copy") == content + bytes(5)


def test_locks(mount: Mount, far: Any) -> None:
    """Locks: "the kernel's local ones (flock, fcntl)"."""
    far.write("file", b"x")

    def work() -> None:
        with open(mount.path / "file", "r+b") as one, open(mount.path / "file", "r+b") as two:
            fcntl.flock(one, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(one, fcntl.LOCK_UN)
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB)

    mount.call(work)


def test_statfs(mount: Mount) -> None:
    """`statfs`: "never 0. `st_blksize` is 1 MiB"."""
    found = mount.call(os.statvfs, mount.path)
    assert min(found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree) > 0
    assert found.f_namemax == 255
    assert mount.call(os.stat, mount.path).st_blksize == 1 << 20
    assert mount.remote.encode() in mount.run("df mnt | cat").stdout.encode()


def test_what_is_not_offered(mount: Mount, far: Any) -> None:
    """Ownership, Metadata: device nodes, sockets and FIFOs EPERM; RENAME_EXCHANGE EINVAL; trash
    denied; setxattr ENOTSUP; the mount's own names stay."""
    far.write("a", b"a")
    far.write("b", b"b")
    refused(errno.EPERM, mount.call, os.mkfifo, mount.path / "fifo")
    refused(errno.EPERM, mount.call, os.mknod, mount.path / "node", 0o600 | 0o020000, 0x0103)
    refused(errno.EINVAL, mount.call, renameat2, mount.path / "a", mount.path / "b", 2)
    refused(errno.ENOTSUP, mount.call, os.setxattr, mount.path / "a", "user.x", b"1")
    for name in (".Trash", ".Trash-0"):
        with pytest.raises(PermissionError):
            mount.call(os.mkdir, mount.path / name)
    refused(errno.EPERM, mount.call, os.unlink, mount.path / ".f7tfs/status")
    assert set(mount.call(os.listdir, mount.path)) == {"a", "b", "jobs"}
    assert far.names() == {"a", "b"}


def test_a_name_that_collides_with_ours(mount: Mount, far: Any) -> None:
    """The namespace: "A remote name that collides with a virtual one is shadowed, with one
    warning"."""
    mount.announce("hidden behind the mount's own jobs")
    far.mkdir("jobs")
    far.write("jobs/theirs", b"x")
    for _ in range(3):
        assert mount.call(os.listdir, mount.path) == ["jobs"]
    assert "theirs" not in mount.call(os.listdir, mount.path / "jobs")
    assert mount.log().count("hidden behind") == 1
    assert far.names("jobs") == {"theirs"}


def test_the_control_files(mount: Mount, far: Any) -> None:
    """.f7tfs/: status, status.json, transfers.json, metrics, log."""
    mount.call((mount.path / "file").write_bytes, b"x")
    mount.sync()
    mount.refresh()
    mount.call(os.listdir, mount.path)  # the cluster's clock is learnt, and logged
    place = mount.path / ".f7tfs"
    assert str(mount.path) in mount.call((place / "status").read_text)
    assert mount.status()["mount"]["pid"] == mount.pid
    assert "f7tfs_uploads_pending 0" in mount.call((place / "metrics").read_text)
    assert "clock" in mount.call((place / "log").read_text)
    assert set(mount.call(os.listdir, place)) >= {"status", "flush", "refresh", "retry"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_wait(
    mount: Mount, far: Any, simulator: Simulator, number: signal.Signals
) -> None:
    """Waits: "ends with EINTR as soon as the caller has a signal pending"; the staging goes on,
    and the next reader joins it."""
    content = data_of(5_000_000)
    far.write("big", content)
    (ident,) = simulator.faults(
        [{"match": "object-store GET", "times": None, "action": {"hang": True}}]
    )
    process = subprocess.Popen(["cat", mount.path / "big"], stdout=subprocess.DEVNULL)
    wait_until(lambda: simulator.fired().get(ident), "cat to wait for the object")
    begin = time.monotonic()
    process.send_signal(number)
    process.wait(5)
    assert time.monotonic() - begin < 1.5
    assert mount.call(os.stat, mount.path / "big").st_size == len(content)
    simulator.clear_faults()
    assert mount.call((mount.path / "big").read_bytes) == content
    assert simulator.calls()["calls"]["POST /storage/xfer-external/download"] == 1


def test_a_slow_file_slows_no_other(mount: Mount, far: Any, simulator: Simulator) -> None:
    """Tenet 2: "One slow file never slows another": 20 readers wait, and the rest is quick."""
    for number in range(20):
        far.write(f"big-{number}", data_of(4_000_000))
    far.write("ready", b"ready" * 1000)
    mount.run("cat mnt/ready >/dev/null; ls mnt")
    simulator.faults([{"match": "object-store GET", "times": None, "action": {"hang": True}}])
    waiting = [
        subprocess.Popen(["cat", mount.path / f"big-{number}"], stdout=subprocess.DEVNULL)
        for number in range(20)
    ]
    wait_until(lambda: len(mount.status()["transfers"]) >= 4, "the readers to wait")
    begin = time.monotonic()
    mount.call((mount.path / "new").write_bytes, b"x" * 100_000)
    assert mount.call((mount.path / "ready").read_bytes) == b"ready" * 1000
    assert mount.call(os.stat, mount.path / "big-7").st_size == 4_000_000
    assert mount.call((mount.path / "new").read_bytes) == b"x" * 100_000
    assert time.monotonic() - begin < 2.0
    for process in waiting:
        process.kill()
    for process in waiting:
        process.wait(5)
    simulator.clear_faults()


def test_open_unlinked_and_closed_many_times(mount: Mount, far: Any) -> None:
    """HABITS 12: no descriptor is leaked by 200 files, nor by 200 failed opens."""
    mount.run(
        "for n in $(seq 200); do echo $n > mnt/f$n; cat mnt/f$n >/dev/null; rm mnt/f$n;"
        " cat mnt/none$n 2>/dev/null; done; true",
        timeout=60,
    )
    mount.sync()
    assert far.names() == set()
    assert not [one for one in mount.descriptors() if "spool/" in one or "deleted" in one]


def test_ls_of_2000_files_is_one_listing(mount: Mount, far: Any, simulator: Simulator) -> None:
    """Must show: "`ls -l` of the 2,000-file directory costs one listing call"."""
    far.mkdir("many")
    for number in range(2000):
        far[f"many/file-{number:04}"].write_bytes(b"x")
    mount.run("ls mnt")
    simulator.reset_calls()
    done = mount.run("ls -l mnt/many", timeout=60)
    assert len(done.stdout.splitlines()) == 2001
    calls = simulator.calls()["calls"]
    assert calls.get("GET /utilities/ls") == 1, calls
    assert calls.get("GET /utilities/stat", 0) <= 1, calls  # what the listing's clock means


def test_tail_f_of_a_growing_file(mount_with: Callable[..., Mount], far: Any) -> None:
    """Reading: "`tail -f` shows new lines within the poll interval + 2 s"."""
    far.write("log", b"one\n")
    mount = mount_with(listing_ttl=0.5, stale_max=0.5)
    process = subprocess.Popen(
        ["timeout", "30", "tail", "-n", "+1", "-f", mount.path / "log"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    seen = bytearray()

    def shows(text: bytes) -> bool:
        seen.extend(os.read(process.stdout.fileno(), 65536) or b"")  # type: ignore[union-attr]
        return text in seen

    wait_until(lambda: shows(b"one\n"), "the first line")
    for line in (b"two\n", b"three\n"):
        with open(far["log"], "ab") as log:
            log.write(line)
        wait_until(lambda line=line: shows(line), f"tail -f to show {line!r}", 6)
    process.terminate()
    process.wait(5)
    process.stdout.close()
    assert bytes(seen) == b"one\ntwo\nthree\n"
