"""A real mount in a process of its own, with deadlines on everything, for any test.

`Mount` starts `python -m f7tfs mount … --foreground` with a home of its own. Whatever hangs is
aborted: the daemon is killed by its id and the mount lazily taken away, which ends every system
call that waits in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from waits import wait_until
from zygote import Forked, Zygote

T = TypeVar("T")
CHECKOUT = Path(__file__).parent.parent
START_DEADLINE = 30.0
CALL_DEADLINE = 25.0
END_DEADLINE = 40.0
_TROUBLE = re.compile(
    r" (WARNING|ERROR|CRITICAL) |Traceback|^\w*Error:|^\w*Exception:|asyncio|trio\."
)
_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<level>\w+) +(?P<text>.*)$")


class Hung(AssertionError):
    """Something in a mount did not answer in time; the mount was aborted."""


class MountFailed(AssertionError):
    """`f7tfs mount` ended instead of serving."""

    def __init__(self, code: int | None, message: str) -> None:
        super().__init__(f"exit {code}: {message}")
        self.code = code
        self.message = message


class Credentials:
    """How to reach a FirecREST; the environment that f7tfs reads."""

    def __init__(self, url: str, token_url: str, client_id: str, client_secret: str) -> None:
        self.url = url
        self.token_url = token_url
        self.client_id = client_id
        self.client_secret = client_secret

    @property
    def environment(self) -> dict[str, str]:
        return {
            "FIRECREST_URL": self.url,
            "AUTH_TOKEN_URL": self.token_url,
            "FIRECREST_CLIENT_ID": self.client_id,
            "FIRECREST_CLIENT_SECRET": self.client_secret,
        }


class Mount:
    """One mount of `remote` (SYSTEM:/PATH), started by `start()`; a context manager.

    `announce(regex)` tells that the test expects such a line of trouble in the log; any other
    warning, error or traceback fails `assert_quiet`.
    """

    def __init__(
        self,
        remote: str,
        credentials: Credentials,
        *,
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        zygote: Zygote | None = None,
    ) -> None:
        self.remote = remote
        self._zygote = zygote
        self.system, _, self.remote_path = remote.partition(":")
        # Not below /tmp: vim makes no backups there, and hides what it does elsewhere (FUSE.md).
        self.folder = Path(tempfile.mkdtemp(prefix="f7tfs-mount-", dir="/var/tmp"))
        self.path = self.folder / "mnt"
        self.path.mkdir()
        self.options: dict[str, Any] = {"writeback_delay": 0.2, **(options or {})}
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.pid = 0
        self.announced: list[str] = []
        self._checked = 0  # bytes of the log that were looked at
        self.log_file = self.folder / "log"
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("FIRECREST_", "AUTH_TOKEN", "F7TFS_", "XDG_", "GIT_"))
        }
        self.environment |= credentials.environment
        self.environment |= {
            "HOME": str(self.folder / "home"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "PYTHONDEVMODE": "",
            "PYTHONFAULTHANDLER": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
        }  # fmt: skip
        self.environment |= dict(environment or {})
        (self.folder / "home").mkdir()
        self._threads = _Caller()

    # Starting and ending.

    def start(self) -> Mount:
        """Mount; returns when it serves. Raises MountFailed with the exit code."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        reader, writer = os.pipe()
        words = ",".join(f"{key}={value}" for key, value in self.options.items())
        mount = ["mount", self.remote, str(self.path), "--foreground", "-o", words, "--ready-fd"]
        with open(self.log_file, "ab") as log:
            if self._zygote is not None:
                self.process = self._zygote.start(
                    [*mount, "{ready}"], self.environment, log.fileno(), writer
                )
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "f7tfs", *mount, str(writer)],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[writer],
                    cwd=CHECKOUT,
                )
        os.close(writer)
        self.pid = self.process.pid
        try:
            line = self._ready_line(reader)
        finally:
            os.close(reader)
        if not line.get("ready"):
            code = self.process.wait(END_DEADLINE)
            raise MountFailed(code, str(line.get("message", self.log()[-2000:])))
        return self

    def _ready_line(self, reader: int) -> dict[str, Any]:
        end, line = time.monotonic() + START_DEADLINE, b""
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([reader], [], [], left)[0]:
                raise self._abort("the mount did not get ready")
            data = os.read(reader, 65536)
            if not data:
                return {}
            line += data
        return dict(json.loads(line))

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """kill -9, as a power cut would; the dead mount is taken away."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(END_DEADLINE)
        self._take_away()

    def terminate(self, deadline: float = END_DEADLINE) -> int:
        """SIGTERM; the exit status of the daemon, which drains before."""
        assert self.process is not None
        self.process.terminate()
        return self.wait(deadline)

    def unmount_plainly(self, deadline: float = END_DEADLINE) -> int:
        """`fusermount3 -u`; the exit status of the daemon."""
        subprocess.run(["fusermount3", "-u", str(self.path)], check=True, timeout=CALL_DEADLINE)
        return self.wait(deadline)

    def wait(self, deadline: float = END_DEADLINE) -> int:
        assert self.process is not None
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise self._abort(f"the daemon did not end within {deadline:.0f} s") from None

    def umount(
        self, *arguments: str, deadline: float = END_DEADLINE
    ) -> subprocess.CompletedProcess[str]:
        """`f7tfs umount`; looks that no mount and no daemon is left if it says 0."""
        done = self.f7tfs("umount", str(self.path), *arguments, deadline=deadline)
        if done.returncode == 0:
            self.wait()
            assert not self.is_mounted, "f7tfs umount said 0 and left the mount"
        return done

    def restart(self) -> Mount:
        """Unmount by `f7tfs umount --now`, mount again."""
        if self.is_running:
            done = self.umount("--now")
            assert done.returncode == 0, done.stderr
        return self.start()

    @property
    def is_mounted(self) -> bool:
        text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        return any(line.split(" ")[4] == str(self.path) for line in text.splitlines())

    def _take_away(self) -> None:
        if self.is_mounted:
            subprocess.run(
                ["fusermount3", "-uz", str(self.path)],
                check=False,
                capture_output=True,
                timeout=CALL_DEADLINE,
            )

    def _abort(self, what: str) -> Hung:
        """Stop everything that waits in this mount, and say what is known."""
        facts = [what]
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{self.pid}/status").read_text()
                facts.append(" ".join(status.split("\n")[2].split()))
            with contextlib.suppress(OSError, ProcessLookupError):
                os.kill(self.pid, signal.SIGABRT)  # faulthandler writes all stacks to the log
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
        facts.append("log:\n" + self.log()[-6000:])
        self.kill()
        return Hung("\n".join(facts))

    def remove(self) -> None:
        """Whatever state it is in: no daemon, no mount, no folder afterwards."""
        try:
            self.kill()
        finally:
            self._threads.close()
            assert not self.is_mounted, f"{self.path} is still mounted"
            shutil.rmtree(self.folder, ignore_errors=True)

    # Using.

    def call(
        self, function: Callable[..., T], *arguments: Any, deadline: float = CALL_DEADLINE
    ) -> T:
        """A system call in the mount, in a thread that a hang cannot take the suite along with."""
        done = self._threads.run(function, arguments)
        try:
            good, value = done.get(timeout=deadline)
        except queue.Empty:
            raise self._abort(f"{function} {arguments} did not return") from None
        if not good:
            raise value
        return value  # type: ignore[no-any-return]

    def run(
        self,
        command: str | Sequence[str],
        timeout: float = 20.0,
        *,
        check: bool = True,
        stdin: bytes | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command with the mount as working directory (a str runs in bash). Fails on a bad
        status unless `check` is False."""
        words = ["bash", "-c", command] if isinstance(command, str) else list(command)
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment | {"MNT": str(self.path)} | dict(environment or {}),
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=None,
        )
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            where = _where(process.pid)
            hung = self._abort(f"{command!r} did not end within {timeout} s; it waits in {where}")
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            raise hung from None
        done = subprocess.CompletedProcess(
            words, process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{command!r}: status {done.returncode}\n{done.stdout[-1500:]}"
                f"\n{done.stderr[-1500:]}"
                f"\nlog: {self.log()[-2500:]}"
            )
        return done

    def f7tfs(
        self, *words: str, deadline: float = END_DEADLINE
    ) -> subprocess.CompletedProcess[str]:
        """The command line in the environment of this mount; any exit code."""
        process = subprocess.Popen(
            [sys.executable, "-m", "f7tfs", *words],
            env=self.environment,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            hung = self._abort(f"f7tfs {' '.join(words)} did not end")
            process.kill()
            raise hung from None
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def sync(self, deadline: float = 60.0) -> None:
        """Until everything that was closed is on the cluster. OSError (EIO) if something is
        stuck."""

        def flush() -> None:
            fd = os.open(self.path / ".f7tfs" / "flush", os.O_WRONLY)
            try:
                os.write(fd, b"\n")
            finally:
                os.close(fd)

        self.call(flush, deadline=deadline)

    def refresh(self, path: str = "") -> None:
        """Forget cached metadata of a path below the mount ("" = all)."""

        def pull() -> None:
            fd = os.open(self.path / ".f7tfs" / "refresh", os.O_WRONLY)
            try:
                os.write(fd, path.encode(errors="surrogateescape") + b"\n")
            finally:
                os.close(fd)

        self.call(pull)

    def status(self) -> dict[str, Any]:
        text = self.call((self.path / ".f7tfs" / "status.json").read_text)
        return dict(json.loads(text))

    def uploads(self) -> dict[str, Any]:
        return dict(self.status()["uploads"])

    # Looking.

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def announce(self, *patterns: str) -> None:
        """This trouble in the log is part of the test."""
        self.announced += patterns

    def trouble(self, allow: Sequence[str] = ()) -> list[str]:
        """Lines of trouble since the last look that nobody announced."""
        with open(self.log_file, "rb") as file:
            file.seek(self._checked)
            text = file.read().decode(errors="replace")
            self._checked = file.tell()
        known = [re.compile(pattern) for pattern in (*self.announced, *allow)]
        found = []
        for line in text.splitlines():
            parts = _LINE.match(line)
            bad = parts["level"] not in {"INFO", "DEBUG"} if parts else bool(line.strip())
            if bad and not any(pattern.search(line) for pattern in known):
                found.append(line)
        return found

    def assert_quiet(self, allow: Sequence[str] = ()) -> None:
        """A silent log is part of passing (HABITS 12)."""
        found = self.trouble(allow)
        assert not found, "unannounced trouble in the log:\n" + "\n".join(found[:60])

    def descriptors(self) -> list[str]:
        """What the daemon has open, without the clean files of its cache (one each)."""
        folder = Path(f"/proc/{self.pid}/fd")
        found = []
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                target = os.readlink(folder / name)
                if not target.startswith(str(self.folder / "cache")):
                    found.append(re.sub(r":\[\d+\]", "", target))
        return sorted(found)

    def spool_files(self) -> list[Path]:
        """What is in the spool: bytes that the cluster has not got, and scripts of jobs."""
        folders = (self.folder / "state").rglob("spool")
        return sorted(f for folder in folders for f in folder.rglob("*") if f.is_file())

    def assert_nothing_left(self) -> None:
        """After everything was uploaded: no dirty bytes on this disk, none in open descriptors."""

        def left() -> list[Path]:
            files = [file for file in self.spool_files() if file.suffix != ".script"]
            return [f for f in files if f.parent.name == "spool" and "set-aside" not in str(f)]

        # What was unlinked or replaced during its upload goes when that attempt has noticed.
        wait_until(lambda: not left(), f"the spool to become empty: {left()}", 5.0)
        if self.is_running:
            wait_until(
                lambda: not [one for one in self.descriptors() if "/spool/" in one],
                f"the daemon to close its spool files: {self.descriptors()}",
                5.0,
            )

    def journal_directory(self) -> Path:
        found = list((self.folder / "state").rglob("journal.sqlite"))
        assert len(found) == 1, found
        return found[0].parent


class _Caller:
    """A thread that makes system calls one after the other; a new one if it hangs."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._idle = 0
        self._lock = threading.Lock()
        self._threads = 0

    def run(
        self, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> queue.SimpleQueue[Any]:
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            if self._idle == 0:
                self._threads += 1
                threading.Thread(target=self._work, daemon=True, name="mount-call").start()
            else:
                self._idle -= 1
        self._jobs.put((function, arguments, done))
        return done

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, arguments, done = job
            try:
                result = (True, function(*arguments))
            except BaseException as error:
                result = (False, error)
            with self._lock:
                self._idle += 1
            done.put(result)

    def close(self) -> None:
        for _ in range(self._threads):
            self._jobs.put(None)


def _where(pid: int) -> str:
    facts = []
    for name in ("wchan", "syscall", "stack"):
        with contextlib.suppress(OSError):
            facts.append(f"{name}: {Path(f'/proc/{pid}/{name}').read_text().strip()[:300]}")
    return "; ".join(facts)


_libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def renameat2(source: bytes | str | Path, target: bytes | str | Path, flags: int) -> None:
    """rename(2) with flags."""
    at = -100  # AT_FDCWD
    if _libc.renameat2(at, os.fsencode(source), at, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(source))
