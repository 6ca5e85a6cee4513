"""What makes a daemon of a process: its log, and a word to systemd. Nothing third-party."""

from __future__ import annotations

import collections
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Protocol

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_RECENT = 200
_CHATTY = ("httpx", "httpcore", "hpack", "asyncio")  # they log URLs, and presigned ones are secrets


class LogSettings(Protocol):
    """The part of the configuration that the log needs."""

    @property
    def log_file(self) -> Path | None: ...

    @property
    def log_level(self) -> str: ...


class RecentLines(logging.Handler):
    """Keeps the last lines in memory, for `.f7tfs/log`."""

    def __init__(self, limit: int = _RECENT) -> None:
        super().__init__()
        self.lines: collections.deque[str] = collections.deque(maxlen=limit)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.lines.append(self.format(record))
        except Exception:  # as logging's own handlers do: a log call never raises
            self.handleError(record)


_recent = RecentLines()


def configure_logging(config: LogSettings) -> None:
    """Send the log to `config.log_file`, or to stderr, and keep the last lines in memory.

    Replaces what an earlier call set up.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        if handler is not _recent:
            handler.close()
    target: logging.Handler
    if config.log_file is None:
        target = logging.StreamHandler(sys.stderr)
    else:
        config.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = logging.FileHandler(config.log_file, encoding="utf-8", errors="backslashreplace")
    for handler in (target, _recent):
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)
    root.setLevel(config.log_level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def recent_lines() -> list[str]:
    """The last lines of this process's log, oldest first."""
    return list(_recent.lines)


def sd_notify(state: str) -> bool:
    """Tell systemd, e.g. "READY=1" or "STOPPING=1". False when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.sendall(state.encode())
        except OSError as error:
            logging.getLogger(__name__).warning("systemd was not told %r: %s", state, error)
            return False
    return True
