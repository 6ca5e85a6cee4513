"""The decision who may cause a transfer, without a mount and without /proc."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from f7tfs.errors import Unwelcome, WouldBlock
from f7tfs.tree.readers import NAMES, Processes, Readers

LINES: dict[int, list[tuple[str, ...]]] = {
    10: [("nautilus", "pool-3"), ("systemd",)],
    11: [("gdk-pixbuf-thumbnailer", "gdk-pixbuf-thum"), ("bwrap",)],
    12: [("convert",), ("sh",), ("raw-thumbnailer",)],
    13: [("updatedb.plocate", "updatedb.plocat")],
    14: [("borg", "python3.11")],
    15: [("cp",), ("bash",)],
    16: [],
}


def readers(clock: list[float] | None = None) -> Readers:
    return Readers(
        crawlers=("*thumbnail*",),
        indexers=("updatedb*",),
        noatime=("borg",),
        line_of=lambda pid: LINES.get(pid, [(f"p{pid}",)]),
        clock=lambda: clock[0] if clock else 0.0,
    )


@pytest.mark.parametrize(
    ("pid", "flags", "name"),
    [
        (0, os.O_NOATIME, ""),  # the kernel itself
        (10, os.O_RDONLY, ""),
        (10, os.O_NOATIME, "nautilus"),
        (11, os.O_RDONLY, "gdk-pixbuf-thumbnailer"),
        (12, os.O_RDONLY, "raw-thumbnailer"),
        (13, os.O_RDONLY, "updatedb.plocate"),
        (14, os.O_NOATIME, ""),
        (15, os.O_RDONLY, ""),
        (16, os.O_RDONLY, ""),
        (16, os.O_NOATIME, "?"),
    ],
)
def test_who_sniffs(pid: int, flags: int, name: str) -> None:
    assert readers().sniffer(pid, flags) == name


def test_only_indexers_may_not_list() -> None:
    policy = readers()
    for pid in (0, 10, 11, 12, 14, 15, 16):
        policy.require_listing(pid)
    with pytest.raises(Unwelcome):
        policy.require_listing(13)
    assert policy.tallies["updatedb.plocate"].listings_refused == 1


def test_one_line_per_name_and_hour(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "f7tfs.readers")
    now = [0.0]
    policy = readers(now)
    for _ in range(100):
        assert isinstance(policy.refused("gio"), WouldBlock)
    policy.refused("tumblerd")
    assert len(caplog.records) == 2
    now[0] = 3601.0
    policy.refused("gio")
    assert len(caplog.records) == 3
    assert policy.tallies["gio"].reads_refused == 101


def test_the_number_of_names_is_bounded() -> None:
    policy = readers()
    for pid in range(1000, 1000 + 3 * NAMES):
        policy.sniffer(pid, os.O_NOATIME)
    assert len(policy.tallies) == NAMES + 1
    assert policy.tallies["others"].opens == 2 * NAMES


def test_names_from_proc(tmp_path: Path) -> None:
    script = tmp_path / "some-thumbnailer-with-a-long-name"
    script.write_text(f"#!{sys.executable}\nprint('ready', flush=True)\ninput()\n")
    script.chmod(0o755)
    with subprocess.Popen([str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        line = Processes().line(process.pid)
        process.stdin.close()
    assert line[0][0] == script.name
    assert script.name[:15] in line[0]
    assert any(name.startswith(("python", "pytest")) for name in line[1])
    assert Processes().line(2**22 + 1) == []
