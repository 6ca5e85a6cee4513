"""Must show: bad input gives one sentence, the numbered exit code, no traceback, no hang."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Place
from mounting import Mount
from sim_process import Simulator

from f7tfs.cli.exits import Exit

pytestmark = pytest.mark.simulator


@pytest.fixture
def idle(place: Place, directory: str) -> Iterator[Mount]:
    """A mount that was not started: its folder and environment."""
    with place.mount(directory) as made:
        yield made


def fails(
    idle: Mount, code: Exit, *words: str, quickly: float = 15.0
) -> subprocess.CompletedProcess[str]:
    """`f7tfs mount …` ends with the code and one sentence."""
    begin = time.monotonic()
    done = idle.f7tfs("mount", *words)
    assert done.returncode == code, f"{done.returncode}: {done.stderr}"
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("f7tfs: ")
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begin < quickly
    assert not idle.is_mounted
    return done


def test_wrong_secret(idle: Mount) -> None:
    """Exit 4: the credentials were refused."""
    idle.environment["FIRECREST_CLIENT_SECRET"] = "wrong"
    done = fails(idle, Exit.CREDENTIALS, idle.remote, str(idle.path))
    assert "wrong" not in done.stderr


def test_unknown_client(idle: Mount) -> None:
    """Exit 4."""
    idle.environment["FIRECREST_CLIENT_ID"] = "nobody-knows-me"
    fails(idle, Exit.CREDENTIALS, idle.remote, str(idle.path))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9", "http://no-such-host.invalid", "{here}/not-firecrest"],
)
def test_wrong_url(idle: Mount, simulator: Simulator, url: str) -> None:
    """Exit 6: unreachable, unresolvable, or something else answers there."""
    idle.environment["FIRECREST_URL"] = url.format(here=simulator.url)
    fails(idle, Exit.UNREACHABLE, idle.remote, str(idle.path), "-o", "patience=2", quickly=8)


def test_wrong_token_url(idle: Mount) -> None:
    """Exit 6: the token endpoint is not there."""
    idle.environment["AUTH_TOKEN_URL"] = "http://127.0.0.1:9/token"
    fails(idle, Exit.UNREACHABLE, idle.remote, str(idle.path), "-o", "patience=2", quickly=8)


def test_unknown_system(idle: Mount) -> None:
    """Exit 5, and those that exist are listed."""
    done = fails(idle, Exit.SYSTEM, f"nosuch:{idle.remote_path}", str(idle.path))
    assert "cluster2" in done.stderr


@pytest.mark.parametrize("what", ["missing", "file", "forbidden"])
def test_bad_remote_path(idle: Mount, far: Any, what: str) -> None:
    """Exit 7: missing, not a directory, not permitted."""
    far.write("file", b"x")
    far.mkdir("forbidden")
    far.mkdir("forbidden/below")
    far.chmod("forbidden", 0)
    path = "forbidden/below" if what == "forbidden" else what
    fails(idle, Exit.REMOTE_PATH, f"{idle.remote}/{path}", str(idle.path))
    far.chmod("forbidden", 0o755)


def test_bad_mountpoints(idle: Mount) -> None:
    """Exit 8: a file, nothing, below a file."""
    file = idle.folder / "file"
    file.write_text("x")
    for place in (file, idle.folder / "missing", file / "below"):
        fails(idle, Exit.MOUNTPOINT, idle.remote, str(place))
    assert file.read_text() == "x"


def test_busy_mountpoint(mount: Mount, place: Place, directory: str) -> None:
    """Exit 8: something is mounted there already; it goes on."""
    done = mount.f7tfs("mount", mount.remote, str(mount.path))
    assert done.returncode == Exit.MOUNTPOINT, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert mount.call(os.listdir, mount.path) == ["jobs"]


def test_a_bad_command_line(idle: Mount) -> None:
    """Exit 2: not understood."""
    done = idle.f7tfs("mount", "cluster:relative/path", str(idle.path))
    assert done.returncode == Exit.USAGE
    assert "Traceback" not in done.stderr


def test_a_bad_option(idle: Mount) -> None:
    """Exit 3, naming the key."""
    done = fails(idle, Exit.CONFIGURATION, idle.remote, str(idle.path), "-o", "writeback_dely=3")
    assert "writeback_delay" in done.stderr


def test_missing_credentials(idle: Mount) -> None:
    """Exit 3: all complaints at once, each with the variable to set."""
    for name in list(idle.environment):
        if name.startswith(("FIRECREST_", "AUTH_TOKEN")):
            del idle.environment[name]
    done = idle.f7tfs("mount", idle.remote, str(idle.path))
    assert done.returncode == Exit.CONFIGURATION
    for name in ("FIRECREST_URL", "AUTH_TOKEN_URL", "FIRECREST_CLIENT_ID"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_umount_of_what_is_no_mount(idle: Mount, tmp_path: Path) -> None:
    """Exit 13."""
    for words in (("umount", str(tmp_path)), ("status", str(tmp_path)), ("sync", str(tmp_path))):
        done = idle.f7tfs(*words)
        assert done.returncode == Exit.NOT_F7TFS, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_daemon_in_the_background(idle: Mount, far: Any) -> None:
    """The interface: `f7tfs mount` "returns 0 only when the mount serves"; umount ends it."""
    done = idle.f7tfs("mount", idle.remote, str(idle.path))
    assert done.returncode == 0, done.stderr
    assert idle.is_mounted
    try:
        idle.call((idle.path / "file").write_text, "x")
        assert str(idle.path) in idle.f7tfs("status", str(idle.path)).stdout
        assert idle.f7tfs("sync", str(idle.path)).returncode == 0
        assert far.read("file") == b"x"
    finally:
        done = idle.f7tfs("umount", str(idle.path))
    assert done.returncode == 0, done.stderr
    assert not idle.is_mounted
