"""The cluster behind the API: accounts, systems, and the shell that runs real commands.

Source: v1 FACTS §1-§3. A call is one command line under `timeout`, run by a shell in the home
directory with the system's locale and time zone. The site's wrapper runs `eval ${SSH_EXECUTE}`
unquoted, at its line 70: that is reproduced, not imitated, so the folding of spaces and the
"line 70" in messages come from bash itself.
"""

from __future__ import annotations

import base64
import io
import os
import pwd
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import trio

from f7tfs.sim.classify import POISON, TIMEOUT_CODE, TIMEOUT_TEXT, invalid
from f7tfs.sim.hardlinks import HardLinks
from f7tfs.sim.options import SimError, SimOptions

OUTPUT_LIMIT = 5242880
"""The SSH window: this many bytes of output, or more, fail (§2, §4 download)."""
COMMAND_LINE_LIMIT = 4000
"""base64 of a command travels in gunicorn's 4094-byte request line (§3 Max path)."""

_WRAPPER = "/ssh_command_wrapper.sh"
_WRAPPER_SCRIPT = "\n" * 69 + "eval ${SSH_EXECUTE}"
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class System:
    name: str
    address: str
    environment: dict[str, str]
    mounted: tuple[str, ...]
    reachable: bool = True

    @property
    def utf8(self) -> bool:
        return "LANG" in self.environment


@dataclass(frozen=True)
class Account:
    """Who commands and jobs run as. `switch` is what subprocess needs to become that user."""

    name: str
    uid: int
    gid: int
    switch: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str | None) -> Account:
        try:
            entry = pwd.getpwuid(os.getuid()) if name is None else pwd.getpwnam(name)
        except KeyError:
            raise SimError(f"there is no account {name or os.getuid()!r} on this machine") from None
        if entry.pw_uid == os.getuid():
            return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)
        if os.getuid() != 0:
            raise SimError(f"only root can run the simulated cluster as {entry.pw_name}")
        switch = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, switch)


@dataclass
class Room:
    """What staged uploads may still write before the cluster refuses: a full quota or disk."""

    left: int | None = None
    """Bytes; None = as much as they like."""
    words: str = "Disk quota exceeded"
    """strerror(3)'s."""

    def take(self, size: int) -> int:
        """How many of `size` bytes go in; they are taken."""
        if self.left is None:
            return size
        taken = min(size, self.left)
        self.left -= taken
        return taken


@dataclass(frozen=True)
class Outcome:
    """What the API makes of a command: text, or an error with a code."""

    output: str = ""
    error: str | None = None
    code: int = 0

    @property
    def failed(self) -> bool:
        return self.code != 0


class Cluster:
    def __init__(self, options: SimOptions) -> None:
        self.options = options
        self.hard_links = HardLinks()
        self.room = Room()
        self.root = Path(os.path.realpath(options.root))
        self.account = Account.of(options.user)
        self.users = (self.account.name, "other" if self.account.name != "other" else "another")
        utc = {"LANG": "C.UTF-8", "TZ": "UTC"}
        both = (str(self.root / "home"), str(self.root / "scratch"))
        self.systems = {
            system.name: system
            for system in (
                System("cluster", "cluster.example:22", utc, both),
                System("cluster2", "cluster2.example:22", {"TZ": "Europe/Zurich"}, both[:1]),
                System("downcluster", "downcluster.example:22", utc, both[:1], reachable=False),
            )
        }

    def home(self, user: str) -> Path:
        return self.root / "home" / user

    def scratch(self, user: str) -> Path:
        return self.root / "scratch" / user

    def prepare(self) -> None:
        """Make the directories, give them to the account, and see that it can get there."""
        if invalid(str(self.root)) or "  " in str(self.root):
            raise SimError(f"the API cannot name paths below {self.root}: choose a plainer folder")
        self.root.mkdir(parents=True, exist_ok=True)
        made = [self.root / "home", self.root / "scratch"]
        made += [place(user) for user in self.users for place in (self.home, self.scratch)]
        for path in made:
            path.mkdir(exist_ok=True)
        if self.account.switch:
            for path in [self.root, *made]:
                os.chown(path, self.account.uid, self.account.gid)
        check = subprocess.run(
            ["/bin/sh", "-c", 'cd "$0"', str(self.home(self.users[0]))],
            stderr=subprocess.DEVNULL,
            cwd="/",
            check=False,
            **self.account.switch,
        )
        if check.returncode != 0:
            raise SimError(
                f"{self.account.name} cannot reach {self.root}: "
                "give the directories above it search permission (chmod o+x)"
            )

    def environment(self, system: System, user: str) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": str(self.home(user)),
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            **system.environment,
            **self.hard_links.environment(_PATH),
        }

    # -- the fence

    def absolute(self, user: str, path: str) -> str:
        return os.path.normpath(os.path.join(self.home(user), path))

    def fenced(self, user: str, path: str, *, follows: bool) -> bool:
        """Whether a path leads out of the root: by its text, its parents, or its own link."""
        plain = self.absolute(user, path)
        follows = follows or path.endswith("/")
        parent, name = os.path.split(plain)
        real = os.path.join(os.path.realpath(parent), name)
        return not all(
            self._inside(place) for place in (plain, os.path.realpath(plain) if follows else real)
        )

    def _inside(self, path: str) -> bool:
        return path == str(self.root) or path.startswith(f"{self.root}/")

    # -- running

    def too_long(self, command: str) -> bool:
        return len(base64.b64encode(command.encode())) > COMMAND_LINE_LIMIT

    def argv(self, command: str) -> tuple[list[str], dict[str, str]]:
        if self.options.collapse_spaces:
            return ["bash", "-c", _WRAPPER_SCRIPT, _WRAPPER], {"SSH_EXECUTE": command}
        return ["bash", "-c", command], {}

    @asynccontextmanager
    async def process(
        self, system: System, user: str, command: str, **streams: Any
    ) -> AsyncIterator[trio.Process]:
        """A started command; killed if the block is left before it ended."""
        argv, extra = self.argv(command)
        home = self.home(user)
        process = await trio.lowlevel.open_process(
            argv,
            env=self.environment(system, user) | extra,
            cwd=home if home.is_dir() else self.root,
            start_new_session=True,
            **streams,
            **self.account.switch,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                kill_session(process.pid)
                with trio.CancelScope(shield=True):
                    await process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(pipe)

    async def run(
        self,
        system: System,
        user: str,
        command: str,
        *,
        stdin: bytes = b"",
        limit: float | None = None,
    ) -> Outcome:
        """exec_remote_command of the utilities: text, one error string, one code (§2)."""
        seconds = self.options.command_limit if limit is None else limit
        outcome, _ = await self.run_bytes(system, user, f"timeout {seconds:g} {command}", stdin)
        return outcome

    async def run_bytes(
        self, system: System, user: str, command: str, stdin: bytes = b""
    ) -> tuple[Outcome, bytes]:
        if not system.reachable:
            return Outcome(error="Connection refused", code=111), b""
        if self.too_long(command):
            return Outcome(error=None, code=1), b""
        taken = {1: bytearray(), 2: bytearray()}
        async with self.process(
            system,
            user,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:

            async def feed() -> None:
                assert process.stdin is not None
                try:
                    async with process.stdin:
                        await process.stdin.send_all(stdin)
                except trio.BrokenResourceError:
                    pass  # the command did not want its input

            async def drain(number: int, pipe: trio.abc.ReceiveStream | None) -> None:
                assert pipe is not None
                async for chunk in pipe:
                    taken[number] += chunk
                    if len(taken[number]) >= OUTPUT_LIMIT:
                        pumps.cancel_scope.cancel()

            async with trio.open_nursery() as pumps:
                pumps.start_soon(feed)
                pumps.start_soon(drain, 1, process.stdout)
                pumps.start_soon(drain, 2, process.stderr)
            if max(len(data) for data in taken.values()) >= OUTPUT_LIMIT:
                text = f"Command output exceeded buffer limit ({OUTPUT_LIMIT})"
                return Outcome(error=text, code=1), b""
            code = await process.wait()
        return judge(code, bytes(taken[1]), bytes(taken[2])), bytes(taken[1])

    async def copy(self, system: System, user: str, command: str, **streams: IO[bytes]) -> bool:
        """Run a command that moves a whole file between a path and an open file; no time limit."""
        async with self.process(
            system,
            user,
            command,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **streams},
            stderr=subprocess.DEVNULL,
        ) as process:
            return await process.wait() == 0


def judge(code: int, stdout: bytes, stderr: bytes) -> Outcome:
    """When a command has failed (cscs_api_common.py:541-551): also by words on its output."""
    if code == TIMEOUT_CODE:
        return Outcome(error=TIMEOUT_TEXT, code=code)
    complaint = stderr.decode(errors="replace").replace("\n", "")
    if code != 0 or complaint:
        return Outcome(error=complaint, code=code or 1)
    try:
        # the server decodes line by line: the position in the message counts from the line's start
        output = "".join(line.decode() for line in io.BytesIO(stdout))
    except UnicodeDecodeError as mistake:
        return Outcome(error=str(mistake), code=1)
    if any(words in output for words in POISON):
        return Outcome(error=output.replace("\n", ""), code=1)
    return Outcome(output=output)


def session_members(session: int) -> Iterator[int]:
    """Processes of a session: those which a job's shell put into groups of their own as well."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except (OSError, UnicodeDecodeError):
                continue  # it has just ended
            if int(fields[3]) == session and fields[0] != "Z":
                yield int(entry)


def kill_session(session: int, signal: int = 9) -> None:
    for pid in list(session_members(session)):
        try:
            os.kill(pid, signal)
        except ProcessLookupError:
            pass  # it has just ended


def is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
