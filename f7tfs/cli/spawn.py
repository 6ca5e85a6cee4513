"""Starting the daemon: a process of its own session that says in one line how it went."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import f7tfs
from f7tfs.cli.exits import Exit, Failure, by_number
from f7tfs.config import Config

_START = 180.0  # seconds until the mount must serve; every step on the way has its own limit
_LOG_LIMIT = 8 << 20  # bytes; a longer log is set aside when a mount starts

# `python -m` puts the working directory first on its path: start where the package lies, so that
# neither a `json.py` in the user's directory nor another f7tfs can slip in.
HOME = Path(f7tfs.__file__).parent.parent
COMMAND = [sys.executable, "-m", "f7tfs"]


def log_file_of(config: Config) -> Path:
    """Where a daemon logs unless the configuration says so: one file for each mountpoint."""
    if config.log_file is not None:
        return config.log_file
    place = hashlib.sha256(os.fsencode(config.mountpoint)).hexdigest()[:8]
    return config.state_directory / "log" / f"{config.system}-{place}.log"


def start(config: Config, arguments: list[str]) -> None:
    """Start the daemon and return when it serves; Failure with its sentence when it does not."""
    signal.signal(signal.SIGTERM, _interrupt)
    log_file = log_file_of(config)
    log = _open_log(log_file)
    reading, writing = os.pipe()
    try:
        daemon = subprocess.Popen(
            [*COMMAND, "mount", "--foreground", "--ready-fd", str(writing), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            start_new_session=True,
            cwd=HOME,
        )
    finally:
        os.close(writing)
        os.close(log)
    try:
        line = _read_line(reading, time.monotonic() + _START)
    except BaseException:
        _stop(daemon)
        raise
    finally:
        os.close(reading)
    if line is None:
        _stop(daemon)
        raise Failure(Exit.INTERNAL, f"the mount was not ready in {_START:.0f} s; see {log_file}")
    _judge(line, log_file)
    daemon.returncode = 0  # it outlives us on purpose


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends a start like Ctrl-C does: with the half-started daemon."""
    raise KeyboardInterrupt


def _judge(line: bytes, log_file: Path) -> None:
    try:
        said: dict[str, Any] = json.loads(line)
        if said.get("ready") is True:
            for sentence in said.get("complaints", ()):
                print(f"f7tfs: {sentence}", file=sys.stderr)
            return
        code, sentence = by_number(said["exit"]), str(said["message"])
    except (ValueError, KeyError, AttributeError):
        raise Failure(
            Exit.INTERNAL, f"the daemon ended without a word; its log is {log_file}"
        ) from None
    if code is Exit.INTERNAL:
        sentence += f"; see {log_file}"
    raise Failure(code, sentence)


def _open_log(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _LOG_LIMIT:
            path.rename(path.with_name(path.name + ".old"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(
            Exit.CONFIGURATION, f"log_file: {path} cannot be written ({error.strerror})"
        ) from None


def _read_line(descriptor: int, deadline: float) -> bytes | None:
    """One line, b"" when the other end closed without one, None when the time is over."""
    buffer = b""
    while not buffer.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        if not (chunk := os.read(descriptor, 65536)):
            return b""
        buffer += chunk
    return buffer


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        try:
            os.killpg(daemon.pid, number)
            daemon.wait(timeout=patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        else:
            return
