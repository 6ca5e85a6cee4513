"""Object stores for uploads, the same for whoever sends: one writes to disk, one discards.

Each tells of every request how long it took, from its first byte to the answer; what asks it, how
the simulator's sweeps fall and what the daemon does before and after is not in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from waits import wait_until

from bench.rig import MiB, Rig, nginx, rig

HEAD = 1 << 16  # bytes of a form in which its fields end
_KEY = re.compile(rb'name="key"\r\n\r\n([^\r]+)\r\n')


@dataclass
class Taken:
    """One form that a depot took in."""

    seconds: float
    bucket: str
    key: str
    size: int  # bytes of the file in it
    file: Path | None  # where the whole body is, head and tail of the form included
    start: int  # of the file's bytes in it


class Depot:
    def __init__(self, origin: str, log: Path) -> None:
        self.origin = origin
        self._log = log
        self._seen = 0

    def next(self, deadline: float = 120.0) -> Taken:
        """The next form that has been answered."""
        wait_until(lambda: len(self._lines()) > self._seen, "a form to be answered", deadline)
        told = json.loads(self._lines()[self._seen])
        self._seen += 1
        file = Path(told["file"]) if told["file"] else None
        if file is not None:
            with open(file, "rb") as body:
                head, length = body.read(HEAD), os.fstat(body.fileno()).st_size
        else:
            head, length = bytes.fromhex(told["head"]), int(told["length"])
        key = _KEY.search(head)
        start = head.index(b"\r\n\r\n", head.index(b'filename="')) + 4
        assert key is not None
        boundary = head.partition(b"\r\n")[0]
        return Taken(
            float(told["seconds"]),
            told["uri"].partition("?")[0].rpartition("/")[2],
            key[1].decode(),
            length - start - len(b"\r\n" + boundary + b"--\r\n"),
            file,
            start,
        )

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@contextlib.contextmanager
def writing_depot(folder: Path) -> Iterator[Depot]:
    """nginx; each body ends up in a file of its own."""
    log = folder / "forms"
    words = (
        '{"seconds":"$request_time","uri":"$request_uri","file":"$request_body_file",'
        '"status":"$status"}'
    )
    taken = (
        f"log_format taken escape=json '{words}'; "
        f"server {{ listen unix:{folder}/answer; location / {{ return 204; }} }}"
    )
    # It reads a body only to hand it on: to itself, and then nothing but the head.
    location = (
        f"location /s3/ {{ access_log {log} taken; client_body_in_file_only on; "
        "proxy_pass_request_body off; proxy_set_header Content-Length 0; "
        f"proxy_pass http://unix:{folder}/answer:; }}"
    )
    with nginx(folder / "nginx", location, taken) as origin:
        yield Depot(origin, log)


@contextlib.contextmanager
def discarding_depot(folder: Path) -> Iterator[Depot]:
    """Bodies are counted inside the kernel and nowhere kept: a process of its own, see `sink`."""
    log = folder / "forms"
    with open(log, "wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.depot"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=lines,
            cwd=Path(__file__).parent.parent,
        )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield Depot(f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@contextlib.contextmanager
def rig_with_depot(folder: Path, *, discards: bool) -> Iterator[tuple[Rig, Depot]]:
    """A v1 cluster whose forms lead there."""
    made = discarding_depot(folder) if discards else writing_depot(folder)
    with made as depot, rig(form_origin=depot.origin, staging_interval=1) as cluster:
        yield cluster, depot


# The sink.


def sink() -> None:
    """Serve until the end: a line with the port on stdout, one of JSON a form on stderr."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    buffer = bytearray(4 * MiB)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while (found := connection.recv(HEAD)) != b"":
            began = time.monotonic()
            while b"\r\n\r\n" not in found:
                found += connection.recv(HEAD)
            head, _, body = found.partition(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
            if re.search(rb"(?i)expect: *100-continue", head):
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            while b'filename="' not in body or b"\r\n\r\n" not in body.partition(b'filename="')[2]:
                body += connection.recv(HEAD)
            left = length - len(body)
            while left:
                # The kernel counts the bytes and throws them away.
                left -= connection.recv_into(buffer, min(left, len(buffer)), socket.MSG_TRUNC)
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            told = {
                "seconds": time.monotonic() - began,
                "uri": head.split(b" ")[1].decode(),
                "file": "",
                "head": body[:HEAD].hex(),
                "length": length,
            }
            print(json.dumps(told), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sink()
