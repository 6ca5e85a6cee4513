"""A simulated cluster with files to read, mounts of it, and what can be seen of both."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mounting import Credentials, Mount
from sim_process import Simulator, running_simulator
from waits import wait_until

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
OLD = 3600.0  # seconds; what changed just now is not trusted by later mounts


class QuietMount(Mount):
    """What goes wrong in it, and is only logged, fails the measurement."""

    def __exit__(self, *raised: object) -> None:
        try:
            if raised[0] is None:
                self.assert_quiet()
        finally:
            self.remove()


class Rig:
    """One simulator and a directory on its cluster."""

    def __init__(self, simulator: Simulator, directory: Path) -> None:
        self.simulator = simulator
        self.directory = directory
        self._owner = directory.stat()

    def file(self, name: str, size: int, *, random: bool = False) -> Path:
        """A file of the cluster; without `random` a hole, which no disk has to bring."""
        path = self.directory / name
        with open(path, "wb") as file:
            if random:
                for start in range(0, size, MiB):
                    file.write(os.urandom(min(MiB, size - start)))
            file.truncate(size)
        self._own(path)
        return path

    def folder(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir()
        self._own(path)
        return path

    def _own(self, path: Path) -> None:
        if os.getuid() == 0:
            os.chown(path, self._owner.st_uid, self._owner.st_gid)
        os.utime(path, (time.time() - OLD,) * 2)

    def mount(self, **options: Any) -> Mount:
        """Not started yet."""
        info = self.simulator.info
        credentials = Credentials(
            info["firecrest_url"],
            info["auth_token_url"],
            info["client_id"],
            info["client_secret"],
        )
        return QuietMount(f"{info['system']}:{self.directory}", credentials, options=options)

    @property
    def calls(self) -> int:
        return int(self.simulator.calls()["total"])

    def calls_of(self, *calls: str) -> int:
        """Of "METHOD /path", as the simulator counts them."""
        counted = self.simulator.calls()["calls"]
        return sum(int(counted.get(call, 0)) for call in calls)


STAGING = "POST /storage/xfer-external/download"
LISTING = "GET /utilities/ls"


@contextlib.contextmanager
def rig(**options: Any) -> Iterator[Rig]:
    """`options` are the simulator's."""
    with running_simulator(**options) as simulator:
        yield Rig(simulator, simulator.scratch)


@contextlib.contextmanager
def rig_with_web_server() -> Iterator[Rig]:
    """Its links lead to nginx: the simulator's own store would be what is measured."""
    folder = Path(tempfile.mkdtemp(prefix="f7tfs-bench-", dir="/var/tmp"))
    folder.chmod(0o711)
    try:
        state = folder / "state"
        with (
            web_server(folder / "nginx", state / "served") as origin,
            rig(state=state, link_origin=origin) as made,
        ):
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def web_server(folder: Path, served: Path) -> Iterator[str]:
    """nginx that serves a folder as /s3/; its origin."""
    with nginx(folder, f"location /s3/ {{ alias {served}/; }}") as origin:
        yield origin


@contextlib.contextmanager
def nginx(folder: Path, locations: str, more: str = "") -> Iterator[str]:
    """nginx on a free port of loopback, with everything of its own in `folder`; its origin.
    `more`: what else is to be in its http block."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise RuntimeError("there is no nginx: ./scripts/setup bench installs it")
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = folder / "nginx.conf"
    temporary = "".join(
        f"    {name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"{'user root;' if os.getuid() == 0 else ''}\n"
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error;\n"
        "events { worker_connections 256; }\n"
        "http {\n    access_log off; client_max_body_size 0; default_type binary/octet-stream;\n"
        "    sendfile on; sendfile_max_chunk 2m; tcp_nopush on; keepalive_requests 100000;\n"
        f"{temporary}"
        f"    {more}\n    server {{ listen 127.0.0.1:{port}; {locations} }}\n}}\n"
    )
    process = subprocess.Popen(
        [program, "-c", str(config), "-e", str(folder / "error")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _listens(port, process), "nginx to listen")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"nginx ended with status {process.returncode}")
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


# What one looks at.


def read_at(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def wait_until_idle(mount: Mount) -> None:
    """Until nothing that a read began is under way."""
    wait_until(lambda: not mount.status()["transfers"], "the transfers to end", 60)


def touch_free_pages(size: int = 4 * GiB) -> None:
    """A virtual machine gets memory from its host page by page, at the first touch, and gives it
    back when it is free: whoever comes after a big file pays for that, up to four times the time of
    a copy. Before each measurement, so that nobody does."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()


def seconds(command: list[str], timeout: float = 120.0) -> float:
    """How long a command takes."""
    began = time.monotonic()
    subprocess.run(
        command,
        check=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def timed(function: Callable[[], object]) -> float:
    began = time.monotonic()
    function()
    return time.monotonic() - began


def bytes_read_by(pid: int) -> int:
    """All bytes that a process got from read(2) and its kin: the requests of the kernel, and what
    it serves from its cache."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def peak_memory(pid: int) -> int:
    """VmHWM in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * KiB


def data_process(mount: Mount) -> int:
    """The id of the mount's data process, 0 if there is none."""
    for task in Path(f"/proc/{mount.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"f7tfs.api.mover_worker" in words:
                return int(child)
    return 0


class Kept:
    """A mount's cache as it is now, to begin from again."""

    def __init__(self, mount: Mount) -> None:
        assert not mount.is_running
        self._cache = mount.folder / "cache"
        self._copy = mount.folder / "kept"
        self._run(self._cache, self._copy)

    def restore(self) -> None:
        shutil.rmtree(self._cache)
        self._run(self._copy, self._cache)

    @staticmethod
    def _run(source: Path, target: Path) -> None:
        command = ["cp", "-a", "--sparse=always", str(source), str(target)]
        subprocess.run(command, check=True, timeout=60)
