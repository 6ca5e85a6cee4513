"""Daemons that are forked instead of executed: a start without the half second of imports.

For tests that kill and start a daemon again and again. A process that has imported everything
forks for each start; what runs in the fork is the command line's own `main`. Its exit status
comes back over the socket that asked for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST_REQUEST = 1 << 18  # bytes


class Forked:
    """One forked daemon; what `Mount` needs of subprocess.Popen."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lines = link.makefile("rb")
        self.returncode: int | None = None
        self.pid = int(self._line(10.0))

    def _line(self, timeout: float | None) -> bytes:
        if not select.select([self._link], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked daemon", timeout or 0.0)
        return self._lines.readline()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = int(self._line(timeout) or b"-9")
            self._lines.close()
            self._link.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Zygote:
    """The process that forks; a context manager."""

    def __init__(self) -> None:
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
        there.close()

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], log: int, ready: int
    ) -> Forked:
        """`f7tfs WORDS`, with `log` as stdout and stderr; {ready} in a word is the number of the
        descriptor `ready` over there."""
        mine, theirs = socket.socketpair()
        request = json.dumps({"words": list(words), "environment": dict(environment)}).encode()
        assert len(request) < LONGEST_REQUEST
        socket.send_fds(self._here, [request], [theirs.fileno(), log, ready])
        theirs.close()
        return Forked(mine)

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        try:
            self._process.wait(10.0)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()


def _serve(requests: socket.socket) -> None:
    """Fork until the other end is closed. Each daemon has a parent of its own, which waits for it
    and tells how it ended."""
    import f7tfs.cli.daemon
    import f7tfs.cli.mount
    import f7tfs.config
    import f7tfs.mount  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, LONGEST_REQUEST, 3)
        if not data:
            return
        if os.fork() == 0:
            requests.close()
            _tend(json.loads(data), *descriptors)
        for one in descriptors:
            os.close(one)


def _tend(request: dict[str, Any], link: int, log: int, ready: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(link)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        _become(request, ready)
    os.close(log)
    os.close(ready)
    os.write(link, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(link, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: dict[str, Any], ready: int) -> None:
    from f7tfs.cli import main

    os.environ.clear()
    os.environ.update(request["environment"])
    os.set_inheritable(ready, True)
    code: object = 70
    try:
        main([word.replace("{ready}", str(ready)) for word in request["words"]], prog_name="f7tfs")
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
