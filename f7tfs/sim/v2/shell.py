"""Commands on the login node: one pooled connection per user, a few sessions, 5 s (v2 FACTS §2)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import trio

from f7tfs.sim.cluster import Cluster, System, kill_session
from f7tfs.sim.v2.quoting import Unsafe, Unterminated, judge
from f7tfs.sim.v2.replies import ApiError, Unhandled
from f7tfs.sim.v2.systems import MAX_OPS, Injections, Place

_WINDOW = 2 << 20
"""What asyncssh takes off the wire before anybody reads it."""
_BUFFERS = 2 << 20
"""What sshd and the pipes hold beyond that: then the command itself gets stuck."""
_TIMED_OUT = 124
"""Exit status of coreutils `timeout`."""
STAND_IN = "/PATH"
"""A harmless path, to see what a command line looks like without the client's."""


@dataclass(frozen=True)
class Result:
    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Lossy: what is no UTF-8 becomes U+FFFD (§4)."""
        return self.stdout.decode(errors="replace")


@dataclass
class Connection:
    """One user's ssh connection to one login node."""

    sessions: int = 0
    scopes: set[trio.CancelScope] = field(default_factory=set)
    killed: bool = False


class Shell:
    def __init__(self, cluster: Cluster, injections: Injections) -> None:
        self.cluster = cluster
        self._injections = injections
        self._connections: dict[tuple[str, str], Connection] = {}

    # -- the fence

    def inside(self, user: str, path: str, *, follows: bool = False) -> bool:
        return not self.cluster.fenced(user, path, follows=follows)

    # -- sessions

    @asynccontextmanager
    async def session(self, place: Place, user: str, count: int = 1) -> AsyncIterator[None]:
        """Channels of the user's connection, for as long as the block runs."""
        if place.state == "refused":
            raise Unhandled(111, "Connection refused")
        connection = self._connections.setdefault((place.system.address, user), Connection())
        if connection.sessions + count > self.cluster.options.max_sessions:
            raise ApiError(424, "Unable to open a new SSH channel.")
        connection.sessions += count
        scope = trio.CancelScope()
        connection.scopes.add(scope)
        try:
            with scope:
                yield
        finally:
            connection.scopes.discard(scope)
            connection.sessions -= count
        if scope.cancelled_caught:
            raise ApiError(424, "Unable to establish SSH connection.")

    def kill_connection(self, place: Place, user: str) -> None:
        """A NUL in a command takes the connection away from all calls of that user (§1)."""
        connection = self._connections.get((place.system.address, user))
        for scope in list(connection.scopes if connection else ()):
            scope.cancel()

    # -- commands

    async def run(
        self,
        place: Place,
        user: str,
        template: str,
        *paths: str,
        follows: bool = True,
        tool: str = "",
        stdin: bytes | None = b"",
    ) -> Result:
        """Run `template`, in which `{0}`, `{1}` stand between single quotes for the paths.

        `stdin` None: nothing is sent, and the end neither. ApiError for what fails.
        """
        command = fill(template, paths, escapes=self.cluster.options.escape_quotes)
        if "\0" in command:
            self.kill_connection(place, user)
            raise ApiError(424, "Unable to establish SSH connection.")
        try:
            command.encode()
        except UnicodeEncodeError as mistake:
            raise Unhandled(*mistake.args) from None
        self._check(user, command, template, paths, follows, tool)
        async with self.session(place, user):
            result = await self.execute(place.system, user, command, stdin)
        return judged(result)

    def _check(
        self,
        user: str,
        command: str,
        template: str,
        paths: tuple[str, ...],
        follows: bool,
        tool: str,
    ) -> None:
        escapes = self.cluster.options.escape_quotes
        if escapes or not any("'" in path for path in paths):
            for path in paths:
                if not self.inside(user, path, follows=follows):
                    text = f"{tool}: cannot access '{path}': Permission denied"
                    raise failed(Result(1, b"", text))
            return
        plain = fill(template, (STAND_IN,) * len(paths))
        try:
            more = judge(command, plain, lambda path: self.inside(user, path, follows=follows))
        except Unterminated:
            text = "bash: -c: line 1: unexpected EOF while looking for matching `''"
            raise failed(Result(2, b"", text)) from None
        except Unsafe:
            self._injections.seen.append(command)
            raise failed(Result(126, b"", "the simulator does not run this")) from None
        if more:
            self._injections.seen.append(command)

    async def execute(
        self, system: System, user: str, command: str, stdin: bytes | None = b""
    ) -> Result:
        """Its output, or what the server makes of too much of it (§2)."""
        limit = self.cluster.options.command_limit
        started = trio.current_time()
        taken = {1: bytearray(), 2: bytearray()}
        async with self.process(
            system,
            user,
            command,
            stdin=subprocess.DEVNULL if stdin == b"" else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:

            async def feed(data: bytes) -> None:
                assert process.stdin is not None
                try:
                    async with process.stdin:
                        await process.stdin.send_all(data)
                except trio.BrokenResourceError:
                    pass  # the command did not want its input

            async def drain(number: int, pipe: trio.abc.ReceiveStream | None) -> None:
                assert pipe is not None
                async for chunk in pipe:
                    taken[number] += chunk
                    if len(taken[number]) > MAX_OPS + _WINDOW + _BUFFERS:
                        pumps.cancel_scope.cancel()  # it is stuck: nobody reads the rest

            with trio.move_on_after(limit + 1):
                async with trio.open_nursery() as pumps:
                    if stdin:
                        pumps.start_soon(feed, stdin)
                    pumps.start_soon(drain, 1, process.stdout)
                    pumps.start_soon(drain, 2, process.stderr)
                if len(taken[1]) <= MAX_OPS + _WINDOW + _BUFFERS:
                    await process.wait()
            size = len(taken[1])
            if size > MAX_OPS + _WINDOW:
                await trio.sleep_until(started + limit)
                if size > MAX_OPS + _WINDOW + _BUFFERS:
                    return Result(_TIMED_OUT, b"", "")
                raise Unhandled("Channel not open for sending")
            if process.returncode is None:
                return Result(_TIMED_OUT, b"", "")
            if size >= MAX_OPS:
                raise ApiError(413, "Command output exceeded buffer limit.")
            code = process.returncode
        return Result(code, bytes(taken[1]), taken[2].decode(errors="replace"))

    @asynccontextmanager
    async def process(
        self, system: System, user: str, *command: str, **streams: Any
    ) -> AsyncIterator[trio.Process]:
        """`bash -c command…` in the home; killed if the block is left before it ended."""
        home = self.cluster.home(user)
        process = await trio.lowlevel.open_process(
            ["bash", "-c", *command],
            env=self.cluster.environment(system, user),
            cwd=home if home.is_dir() else self.cluster.root,
            start_new_session=True,
            **streams,
            **self.cluster.account.switch,
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

    async def job_command(
        self,
        system: System,
        user: str,
        *command: str,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> Result:
        """A command of a job: no time limit, no session."""
        async with self.process(
            system,
            user,
            *command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.PIPE,
        ) as process:
            complaint = bytearray()
            assert process.stderr is not None
            async for chunk in process.stderr:
                complaint += chunk
            code = await process.wait()
        return Result(code, b"", complaint.decode(errors="replace"))


def fill(template: str, paths: tuple[str, ...], *, escapes: bool = False) -> str:
    """Not str.format: paths may hold braces."""
    if escapes:
        paths = tuple(path.replace("'", "'\\''") for path in paths)
    return re.sub(r"\{([012])\}", lambda found: f"'{paths[int(found[1])]}'", template)


def judged(result: Result) -> Result:
    if result.code == _TIMED_OUT:
        raise ApiError(408, "Command execution timeout limit exceeded.")
    if result.code != 0:
        raise failed(result)
    return result


def failed(result: Result) -> ApiError:
    """A status found by substring in stderr, whatever it is part of (§2)."""
    complaint = result.stderr.strip()
    message = f"Remote process failed with exit status:{result.code} and error message:{complaint}"
    status = 500
    if "No such file or directory" in complaint:
        status = 404
    elif "Permission denied" in complaint or "Operation not permitted" in complaint:
        status = 403
    elif "File exists" in complaint or "invalid user" in complaint:
        status = 400
    return ApiError(status, message)
