"""Sniffers, thumbnailers and indexers at a real mount (docs/semantics.md, "Sniffers and crawlers").

What counts is what the cluster sees: calls are counted at the simulator.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mounting import Mount
from sim_process import Simulator
from t3_scenarios import data_of, refused

pytestmark = [pytest.mark.simulator]
LARGE = 4 << 20  # above what one call downloads


def sniff(path: Path, count: int = 16384) -> bytes:
    """What GIO does to find a file's type (FUSE.md)."""
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        return os.read(fd, count)
    finally:
        os.close(fd)


def calls(simulator: Simulator) -> dict[str, int]:
    return {name: count for name, count in simulator.calls()["calls"].items() if count}


def named(mount: Mount, name: str) -> str:
    """A Python under another name, as a thumbnailer or indexer would show."""
    script = mount.folder / "bin" / name
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!{sys.executable}\nimport os, sys\nexec(sys.argv[1])\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.skipif(not shutil.which("gio"), reason="needs gio (libglib2.0-bin)")
def test_a_file_manager_costs_one_listing(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator, place: Any
) -> None:
    """`gio list -a standard::content-type` on 200 large files without extension: "1 listing, 0
    stagings", and no download."""
    for number in range(200):
        far.write(f"large{number:03}", b"")
        os.truncate(far[f"large{number:03}"], LARGE + number)
    mount = mount_with()
    simulator.reset_calls()
    done = mount.run(f"gio list -a standard::content-type '{mount.path}'", timeout=60)
    lines = [line for line in done.stdout.splitlines() if line.startswith("large")]
    assert len(lines) == 200
    seen = calls(simulator)
    print(f"\ngio list over 200 large files: {seen}")
    listings = {name: count for name, count in seen.items() if name.endswith("/ls")}
    assert sum(listings.values()) == 1
    allowed = ("/ls", "/stat", "/squeue", "/jobs", "/acct", "tasks", "token")
    others = {n: c for n, c in seen.items() if not any(word in n for word in allowed)}
    assert not others, "neither staged nor downloaded, and no head of a large file"
    assert sum(c for n, c in seen.items() if n.endswith("/stat")) <= 3, "the zone's lessons only"
    told = mount.status()["readers"]["gio"]
    assert told["opens"] >= 200 and told["reads_refused"] >= 200
    assert mount.log().count("f7tfs.readers: gio ") == 1
    assert "held off: gio: " in mount.call((mount.path / ".f7tfs/status").read_text)
    metrics = mount.call((mount.path / ".f7tfs/metrics").read_text)
    assert f'f7tfs_reader_reads_refused_total{{process="gio"}} {told["reads_refused"]}' in metrics


def test_what_a_sniffer_gets(mount: Mount, far: Any, simulator: Simulator) -> None:
    """Sniffers: "cached bytes, or a `head` where its answer is provably byte-exact, else EAGAIN
    from read"; and the file is read in full by everybody else afterwards."""
    text, binary, large = b"plain text\n" * 5000, bytes(range(256)) * 200, data_of(LARGE)
    far.write("text", text)
    far.write("binary", binary)
    far.write("large", large)
    far.write("empty", b"")
    assert mount.call(sniff, mount.path / "text") == text[:16384]
    assert mount.call(sniff, mount.path / "text", 100) == text[:100]
    assert mount.call(sniff, mount.path / "empty") == b""
    for name in ("binary", "large"):
        for _ in range(2):
            refused(errno.EAGAIN, mount.call, sniff, mount.path / name)
    assert simulator.calls()["calls"].get("GET /utilities/download", 0) == 0
    heads = {n: c for n, c in calls(simulator).items() if n.endswith("/head")}
    assert sum(heads.values()) == 2, "one of the text, one lossy one of the binary, remembered"

    assert mount.call((mount.path / "text").read_bytes) == text  # no page of it was spoilt
    assert mount.call((mount.path / "large").read_bytes) == large
    assert mount.call(sniff, mount.path / "large") == large[:16384]  # cached now
    mount.call((mount.path / "dirty").write_bytes, b"not on the cluster")
    assert mount.call(sniff, mount.path / "dirty") == b"not on the cluster"


def test_heads_are_few(mount_with: Callable[..., Mount], far: Any, simulator: Simulator) -> None:
    """Sniffers: a folder of small files is not a call for each."""
    for number in range(20):
        far.write(f"small{number}", b"text")
    mount = mount_with(**{"readers.heads": 3})
    answers = []
    for number in range(20):
        try:
            answers.append(mount.call(sniff, mount.path / f"small{number}"))
        except BlockingIOError:
            continue
    assert answers == [b"text"] * 3
    heads = {n: c for n, c in calls(simulator).items() if n.endswith("/head")}
    assert sum(heads.values()) == 3


def test_names_of_processes(mount: Mount, far: Any, simulator: Simulator) -> None:
    """Sniffers: "whose process is a known thumbnailer, indexer or crawler", or one of its parents;
    indexers "get EACCES at opendir"; backup tools may."""
    far.write("file", b"\xff\x00" * 500)  # no head is exact
    path = mount.path / "file"
    same = "== b'\\xff\\x00' * 500"
    read = f"import os; print(os.read(os.open({str(path)!r}, os.O_RDONLY), 1000) {same})"
    noatime = f"print(len(os.read(os.open({str(path)!r}, os.O_RDONLY | os.O_NOATIME), 9)))"
    listed = f"print(os.listdir({str(mount.path)!r}))"
    thumbnailer, indexer = named(mount, "totem-video-thumbnailer"), named(mount, "updatedb.plocate")
    backup, python = named(mount, "borg"), sys.executable

    for program in (thumbnailer, indexer):
        failed = mount.run([program, read], check=False)
        assert failed.returncode and "BlockingIOError" in failed.stderr
    inside = f"import subprocess; sys.exit(subprocess.call([{python!r}, '-c', {read!r}]))"
    failed = mount.run([thumbnailer, inside], check=False)
    assert failed.returncode and "BlockingIOError" in failed.stderr
    failed = mount.run([python, "-c", f"import os; {noatime}"], check=False)
    assert failed.returncode and "BlockingIOError" in failed.stderr
    assert not [n for n in calls(simulator) if "download" in n]

    failed = mount.run([indexer, listed], check=False)
    assert failed.returncode and "PermissionError" in failed.stderr
    assert "file" in mount.run([thumbnailer, listed]).stdout
    assert mount.run([backup, noatime]).stdout == "9\n"
    assert mount.run([thumbnailer, read]).stdout == "True\n"  # cached now
    assert mount.run([python, "-c", read]).stdout == "True\n"
    told = mount.status()["readers"]
    assert told["updatedb.plocate"] == {"opens": 1, "reads_refused": 1, "listings_refused": 1}
    assert told["totem-video-thumbnailer"]["reads_refused"] == 2
    assert "borg" not in told


def test_trash(mount: Mount) -> None:
    """FUSE.md: "if that MKDIR is denied, file managers offer permanent deletion": EACCES."""
    for place in (mount.path, mount.path / "jobs"):
        for name in (f".Trash-{os.getuid()}", ".Trash"):
            refused(errno.EACCES, mount.call, os.mkdir, place / name)
