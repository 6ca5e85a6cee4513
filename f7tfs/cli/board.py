"""jobs/ of a mount as commands see it: one file tells of everything, names are written and removed.

A process that waits for a FUSE answer cannot be interrupted, so children touch the mount.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from f7tfs.cli import mounts
from f7tfs.cli.exits import Exit, Failure

PATIENCE = 60.0  # seconds; a first look at the scheduler goes over the network
INTERVAL = 2.0  # seconds between two looks of a command that waits

Row = dict[str, Any]
"""A job or a drop, as jobs/.jobs.json has them."""

# Exit status: 0, or the errno. The scheduler's words, if there are any, on stdout.
_DROP = """
import os, sys
try:
    with open(sys.argv[1], "wb", buffering=0) as file:
        file.write(sys.stdin.buffer.read())
except OSError as error:
    sys.exit(error.errno or 5)
"""
_REMOVE = """
import os, sys
path = sys.argv[1]
try:
    if os.path.isdir(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
        os.rmdir(path)
    else:
        os.unlink(path)
except OSError as error:
    try:
        sys.stdout.buffer.write(os.getxattr(path, "user.f7tfs.error"))
    except OSError:
        pass
    sys.exit(error.errno or 5)
"""


def chosen(mountpoint: str | None) -> mounts.Mount:
    """The mount of --mount, of the working directory, or the only one."""
    return mounts.default() if mountpoint is None else mounts.require(mountpoint)[0]


def read(mount: mounts.Mount) -> tuple[list[Row], list[Row]]:
    """(jobs, drops). Failure when the scheduler cannot be asked and was never."""
    status, output = _run(["cat", "--", f"{mount.mountpoint}/jobs/.jobs.json"], PATIENCE)
    if status:
        words = output.decode(errors="replace").rpartition(": ")[2].strip()
        raise Failure(
            Exit.UNSPECIFIED,
            f"the jobs of {mount.mountpoint} cannot be read: {words or 'no answer'}",
        )
    found = json.loads(output)
    return list(found["jobs"]), list(found["drops"])


def drop(mount: mounts.Mount, name: str, script: bytes) -> int:
    """Write a script into jobs/, which submits it. Returns 0 or an errno."""
    argv = [sys.executable, "-I", "-S", "-c", _DROP, f"{mount.mountpoint}/jobs/{name}"]
    return _run(argv, None, script)[0]


def remove(mount: mounts.Mount, name: str) -> tuple[int, str]:
    """Remove a dropped name or a job's directory. Returns 0 or an errno, and words about it."""
    argv = [sys.executable, "-I", "-S", "-c", _REMOVE, f"{mount.mountpoint}/jobs/{name}"]
    status, output = _run(argv, None)
    return status, output.decode(errors="replace").strip()


def _run(argv: list[str], patience: float | None, text: bytes = b"") -> tuple[int, bytes]:
    """Exit status and output of a child, which is left behind when it gets no answer."""
    child = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
        cwd="/",
    )
    try:
        output, _ = child.communicate(text, timeout=patience)
    except subprocess.TimeoutExpired:
        child.kill()  # and no wait: it may be stuck in the kernel
        return 5, b""
    except KeyboardInterrupt:
        child.kill()
        raise
    return child.returncode, output


def pause() -> None:
    time.sleep(INTERVAL)


def is_over(job: Row) -> bool:
    """Whether a job's state is an end, by the first word of the scheduler's."""
    word = (str(job.get("state")).split() or [""])[0].rstrip("+")
    return word not in {
        "PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "UNKNOWN",
        "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "REQUEUE_HOLD", "REQUEUE_FED",
    }  # fmt: skip


def has_succeeded(job: Row) -> bool:
    return str(job.get("state")).startswith("COMPLETED")
