"""The f7tfs mounts of this machine, found in /proc and asked through `.f7tfs/`.

A process that waits for a FUSE answer cannot be interrupted, so nothing here touches a mount by
itself: short-lived children do, and one that gets no answer is left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from f7tfs.cli.exits import Exit, Failure

PATIENCE = 10.0  # seconds for an answer from `.f7tfs/`, which never waits for the network
_SOURCE = re.compile(r"[^/:]+:/")

Status = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    mountpoint: str
    source: str
    kind: str  # of the file system, e.g. "fuse.f7tfs"

    @property
    def looks_ours(self) -> bool:
        """A FUSE mount of SYSTEM:/path; the subtype is configurable. sshfs looks so too."""
        return self.kind.startswith("fuse") and _SOURCE.match(self.source) is not None


class Dead(Exception):
    """The mount is there, its daemon is not (ENOTCONN)."""


class Silent(Exception):
    """The daemon does not answer, or only with errors."""


class NotOurs(Exception):
    """There is no `.f7tfs/status.json`."""


def _unescape(text: str) -> str:
    raw = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), os.fsencode(text))
    return os.fsdecode(raw)


def all_mounts() -> list[Mount]:
    """Every mount of this process's namespace, the newest last."""
    found = []
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines():
        before, _, after = line.partition(" - ")
        kind, source = after.split(" ")[:2]
        found.append(Mount(_unescape(before.split(" ")[4]), _unescape(source), kind))
    return found


def resolve(path: str | Path) -> str:
    """Absolute and without symlinks, as /proc spells it, without touching what is mounted there."""
    parent, name = os.path.split(os.path.abspath(path))
    whole = os.path.join(os.path.realpath(parent), name)
    if any(mount.mountpoint == whole for mount in all_mounts()):
        return whole
    return os.path.realpath(whole)


def mount_at(mountpoint: str) -> Mount | None:
    """The topmost mount at exactly this place."""
    return next((m for m in reversed(all_mounts()) if m.mountpoint == mountpoint), None)


def read_status(mount: Mount, patience: float = PATIENCE) -> Status:
    """What the daemon of `mount` says of itself. Raises Dead, Silent or NotOurs."""
    reader = subprocess.Popen(
        ["cat", "--", f"{mount.mountpoint}/.f7tfs/status.json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        cwd="/",
    )
    try:
        output, complaint = reader.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        reader.kill()  # and no wait: it may be stuck in the kernel
        raise Silent(mount.mountpoint) from None
    if b"not connected" in complaint or b"Connection aborted" in complaint:
        raise Dead(mount.mountpoint)
    if b"Input/output error" in complaint:
        raise Silent(mount.mountpoint)
    try:
        status = json.loads(output)
    except ValueError:
        status = None
    if reader.returncode != 0 or not isinstance(status, dict):
        raise NotOurs(mount.mountpoint)
    return status


def our_mounts() -> Iterator[tuple[Mount, Status | Dead | Silent]]:
    """Every f7tfs mount with what it says, or why it says nothing."""
    for mount in all_mounts():
        if not mount.looks_ours:
            continue
        try:
            yield mount, read_status(mount)
        except (Dead, Silent) as trouble:
            if mount.kind == "fuse.f7tfs":
                yield mount, trouble
        except NotOurs:
            pass


def require(path: str | Path) -> tuple[Mount, Status]:
    """The f7tfs mount at `path` and its status; Failure when there is none that answers."""
    mountpoint = resolve(path)
    mount = mount_at(mountpoint)
    if mount is None or not mount.looks_ours:
        raise Failure(Exit.NOT_F7TFS, f"{mountpoint} is not an f7tfs mount")
    return mount, status_of(mount)


def find(path: str) -> tuple[Mount, str] | None:
    """The mount that looks like ours and that `path` lies in, and the rest of the path, symlinks
    outside followed; None when there is none. Nothing in the mount is touched."""
    ours = {mount.mountpoint: mount for mount in all_mounts() if mount.looks_ours}
    here, rest, links = "/", os.path.abspath(path).split("/")[1:], 0
    while True:
        if here in ours:
            return ours[here], "/".join(part for part in rest if part)
        if not rest:
            return None
        name = rest.pop(0)
        there = os.path.normpath(os.path.join(here, name))
        target = "" if there in ours else _link_at(there)
        if target and links < 40:
            links += 1
            rest = [part for part in target.split("/") if part] + rest
            there = "/" if target.startswith("/") else here
        here = there


def _link_at(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def within(path: str) -> tuple[Mount, str]:
    """The f7tfs mount that `path` lies in, and the path below its root, symlinks followed; Failure
    when there is none that answers."""
    found = find(path)
    if found is None:
        raise Failure(Exit.NOT_F7TFS, f"{path} is not in an f7tfs mount")
    mount, rest = found
    status_of(mount)
    real = _real_path(f"{mount.mountpoint}/{rest}") if rest else mount.mountpoint
    if not (real + "/").startswith(mount.mountpoint.rstrip("/") + "/"):
        raise Failure(Exit.NOT_F7TFS, f"{path} leads out of the f7tfs mount")
    return mount, real[len(mount.mountpoint.rstrip("/")) + 1 :]


_REAL = "import os, sys; sys.stdout.buffer.write(os.fsencode(os.path.realpath(sys.argv[1])))"


def _real_path(path: str) -> str:
    """Of a path in a mount, by a child; the path itself when there is no answer."""
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _REAL, path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        output, _ = reader.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        reader.kill()  # and no wait: it may be stuck in the kernel
        return path
    return os.fsdecode(output) or path


def holding(path: str) -> Mount:
    """The f7tfs mount that `path` lies in; Failure when there is none that answers."""
    return within(path)[0]


def default() -> Mount:
    """The mount of the working directory, else the only one; Failure when that is none."""
    with contextlib.suppress(FileNotFoundError):  # the working directory is gone
        here = find(os.getcwd())
        if here is not None:
            status_of(here[0])
            return here[0]
    found = [mount for mount, _ in our_mounts()]
    if len(found) == 1:
        status_of(found[0])
        return found[0]
    if not found:
        raise Failure(Exit.NOT_F7TFS, "there is no f7tfs mount")
    places = ", ".join(mount.mountpoint for mount in found)
    raise Failure(Exit.USAGE, f"say which one: {places}")


def status_of(mount: Mount) -> Status:
    """Like `read_status`, with a sentence for the user when there is no answer."""
    where = mount.mountpoint
    try:
        return read_status(mount)
    except NotOurs:
        raise Failure(Exit.NOT_F7TFS, f"{where} is not an f7tfs mount") from None
    except Dead:
        raise Failure(
            Exit.UNSPECIFIED, f"the daemon of {where} is gone; run: f7tfs umount {where}"
        ) from None
    except Silent:
        raise Failure(
            Exit.UNSPECIFIED, f"the daemon of {where} does not answer; its log may say why"
        ) from None


def uploads_of(status: Status) -> dict[str, Any]:
    """The uploads of a status; {} when it says nothing of them."""
    uploads = status.get("uploads")
    return uploads if isinstance(uploads, dict) else {}


def left_in(status: Status) -> int:
    """How many files are not on the cluster yet."""
    uploads = uploads_of(status)
    return sum(int(uploads.get(key) or 0) for key in ("pending", "stuck", "held"))


# Waiting.

_PULL = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: nobody would wait for us
text = sys.stdin.buffer.read()
try:
    fd = os.open(sys.argv[1], os.O_WRONLY)
    try:
        os.write(fd, text + b"\\n")
    finally:
        os.close(fd)
except OSError as error:
    sys.exit(error.errno or 5)
"""


_BATCH = 60_000  # bytes of one write: a pipe takes them, and the kernel does not cut them


@contextlib.contextmanager
def _child(argv: list[str], text: bytes) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True, cwd="/")
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stream:
            stream.write(text)
        yield process
    finally:
        if process.poll() is None:
            process.kill()


def pull(mount: Mount, lever: str, text: str, tick: Callable[[], None]) -> int:
    """Write `text` to a lever in `.f7tfs/` and block until it has done its work, calling `tick` a
    few times a second. Returns 0, or the errno that it ended with."""
    place = f"{mount.mountpoint}/.f7tfs/{lever}"
    argv = [sys.executable, "-I", "-S", "-c", _PULL, place]
    with _child(argv, os.fsencode(text)) as process:
        while True:
            try:
                return process.wait(timeout=0.25)
            except subprocess.TimeoutExpired:
                tick()


def pull_for(
    mount: Mount, lever: str, names: Sequence[str], tick: Callable[[], None] = lambda: None
) -> int:
    """`pull` with paths below the mount. Returns 0, or the first errno."""
    first, batch = 0, [names[0]]
    for name in names[1:]:
        if sum(len(os.fsencode(one)) + 1 for one in batch) + len(os.fsencode(name)) > _BATCH:
            error = pull(mount, lever, "\0".join(batch), tick)
            first, batch = first or error, []
        batch.append(name)
    error = pull(mount, lever, "\0".join(batch), tick)
    return first or error


class Process:
    """A process that is not our child, held by a descriptor so that its number cannot be reused."""

    def __init__(self, pid: object) -> None:
        self.pid = pid if isinstance(pid, int) and pid > 0 else 0
        try:
            self._descriptor = os.pidfd_open(self.pid) if self.pid else -1
        except OSError:
            self._descriptor = -1

    def gone_within(self, seconds: float) -> bool:
        """Wait for its end."""
        if self._descriptor < 0:
            return True
        return bool(select.select([self._descriptor], [], [], seconds)[0])


def fusermount(mountpoint: str, *, lazily: bool = False) -> str:
    """Unmount. Returns "" or what fusermount3 complained about."""
    argv = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", mountpoint]
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            env={**os.environ, "LC_ALL": "C"},
            cwd="/",
        )
    except FileNotFoundError:
        raise Failure(
            Exit.NO_FUSERMOUNT, "fusermount3 is not installed (Debian: apt install fuse3)"
        ) from None
    except subprocess.TimeoutExpired:
        return "fusermount3 got no answer"
    return "" if done.returncode == 0 else (done.stderr.strip() or "fusermount3 failed")


def users_of(mountpoint: str, limit: int = 3) -> list[str]:
    """Programs that keep a mount busy, like "vim (4711)"; found without touching the mount."""
    found = []
    deadline = time.monotonic() + 2
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or time.monotonic() > deadline:
            continue
        links = [process / "cwd", process / "root", process / "exe"]
        try:
            links += (process / "fd").iterdir()
        except OSError:
            pass
        for link in links:
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if (target + "/").startswith(mountpoint + "/"):
                with contextlib.suppress(OSError):
                    found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
                break
        if len(found) == limit:
            break
    return found
