"""The demo's stage: a simulated cluster and a mount in a fresh directory, taken down whole."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from f7tfs.cli import mounts
from f7tfs.cli.exits import Exit, Failure
from f7tfs.cli.spawn import COMMAND, HOME

_SHOWN = 16  # lines of output shown of one command
_LAUNCHER = """\
import sys
sys.path[0] = {home!r}
from f7tfs.cli import main
main(prog_name="f7tfs")
"""


class Stage:
    """Runs commands in `work`, where `mnt` is the mountpoint and `cluster` the far side."""

    def __init__(self, mountpoint: str | None) -> None:
        self.work = Path(tempfile.mkdtemp(prefix="f7tfs-demo-"))
        self.work.chmod(0o711)  # the simulated cluster may run jobs as somebody else
        self.cluster = self.work / "cluster"
        self.cluster.mkdir(mode=0o755)
        self.checks = 0
        self.mountpoint = mounts.resolve(mountpoint or self.work / "mnt")
        self._made_mountpoint = not os.path.lexists(self.mountpoint)
        if self._made_mountpoint:
            Path(self.mountpoint).mkdir()
        if mountpoint:
            (self.work / "mnt").symlink_to(self.mountpoint)
        self._simulator: subprocess.Popen[bytes] | None = None
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._environment = dict(os.environ)
        self._write_launcher()

    def _write_launcher(self) -> None:
        """An `f7tfs` for the shell that is this one, installed or not; and no configuration of
        the user's."""
        programs = self.work / "bin"
        programs.mkdir()
        (programs / "launch.py").write_text(_LAUNCHER.format(home=str(HOME)))
        start = f"exec {shlex.quote(sys.executable)} {shlex.quote(str(programs / 'launch.py'))}"
        (programs / "f7tfs").write_text(f'#!/bin/sh\n{start} "$@"\n')
        (programs / "f7tfs").chmod(0o755)
        config = self.work / "config.toml"
        config.write_text(
            f'cache_directory = "{self.work}/cache"\nstate_directory = "{self.work}/state"\n'
            "[jobs]\npoll_interval = 1\n"
        )
        for name in [n for n in self._environment if n.startswith(("FIRECREST_", "F7TFS_"))]:
            del self._environment[name]
        self._environment |= {
            "F7TFS_CONFIG": str(config),
            "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
            "LC_ALL": "C.UTF-8",
        }

    # Commands.

    def say(self, text: str) -> None:
        """A heading."""
        click.secho(f"\n# {text}", bold=True)

    def show(self, command: str, *, deadline: float = 60, exits: int = 0) -> str:
        """Show a shell command, run it, show what it said; DemoFailed unless it exits so."""
        click.secho(f"$ {command}", fg="cyan")
        output = self.run(command, deadline=deadline, exits=exits)
        lines = output.splitlines()
        for line in lines[:_SHOWN]:
            click.echo(f"  {line}")
        if len(lines) > _SHOWN:
            click.echo(f"  … {len(lines) - _SHOWN} more lines")
        return output

    def run(self, command: str, *, deadline: float = 60, exits: int | None = 0) -> str:
        """The same without showing it."""
        shell = self._start(command)
        try:
            output = shell.communicate(timeout=deadline)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            _kill(shell)
            raise DemoFailed(f"{command!r} did not end within {deadline:.0f} s") from None
        except BaseException:
            _kill(shell)
            raise
        if exits is not None and shell.returncode != exits:
            said = output.strip().splitlines()[-1:] or [""]
            raise DemoFailed(f"{command!r} exited with {shell.returncode}: {said[0]}")
        return output

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.work,
            env=self._environment,
            start_new_session=True,
        )

    def follow(self, command: str, until: str, deadline: float) -> str:
        """Show the lines of a command that does not end, until one holds `until`."""
        click.secho(f"$ {command}", fg="cyan")
        follower = self._start(command)
        self._helpers.append(follower)
        assert follower.stdout is not None
        seen, shown, end = b"", 0, time.monotonic() + deadline
        while until.encode() not in seen:
            left = end - time.monotonic()
            if left <= 0 or not select.select([follower.stdout], [], [], left)[0]:
                raise DemoFailed(f"{command!r} did not show {until!r} within {deadline:.0f} s")
            if not (chunk := os.read(follower.stdout.fileno(), 65536)):
                raise DemoFailed(f"{command!r} ended before {until!r}")
            seen += chunk
            whole = seen[: seen.rfind(b"\n") + 1].decode(errors="replace").splitlines()
            for line in whole[shown:]:
                click.echo(f"  {line}")
            shown = len(whole)
        _kill(follower)
        return seen.decode(errors="replace")

    def check(self, holds: bool, what: str) -> None:
        """One thing that the demo promises."""
        if not holds:
            raise DemoFailed(f"this does not hold: {what}")
        self.checks += 1
        click.secho(f"  ✓ {what}", fg="green")

    def until(self, command: str, wanted: str, *, deadline: float) -> str:
        """Repeat a quiet command until its output holds `wanted`; returns that output."""
        end, output = time.monotonic() + deadline, ""
        while time.monotonic() < end:
            output = self.run(command, exits=None)
            if wanted in output:
                return output
            time.sleep(0.3)
        last = " ".join(output.split())[-200:]
        raise DemoFailed(f"{command!r} did not say {wanted!r} in {deadline:.0f} s, last: {last!r}")

    # The simulated cluster.

    def start_cluster(self, api: str, staging_interval: float) -> dict[str, Any]:
        """Start the simulator in a process of its own; returns its ready line."""
        arguments = ["simulate", "--root", str(self.cluster), "--api", api]
        arguments += ["--staging-interval", str(staging_interval)]  # v1's,
        arguments += ["--ingest-sleep", str(staging_interval)]  # and v2's counterpart
        with (self.work / "simulator.log").open("wb") as log:
            self._simulator = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd=HOME,
                env=self._environment,
            )
        pipe = self._simulator.stdout
        assert pipe is not None
        line = pipe.readline() if select.select([pipe], [], [], 30)[0] else b""
        try:
            ready: dict[str, Any] = json.loads(line)
        except ValueError:
            tail = (self.work / "simulator.log").read_text(errors="replace").splitlines()[-1:]
            raise DemoFailed(f"the simulated cluster did not start: {' '.join(tail)}") from None
        for variable, key in (
            ("FIRECREST_URL", "firecrest_url"),
            ("AUTH_TOKEN_URL", "auth_token_url"),
            ("FIRECREST_CLIENT_ID", "client_id"),
            ("FIRECREST_CLIENT_SECRET", "client_secret"),
        ):
            self._environment[variable] = str(ready[key])
        return ready

    def is_mounted(self) -> bool:
        return mounts.mount_at(self.mountpoint) is not None

    # The end.

    def strike(self) -> list[str]:
        """Take everything down; returns what could not be."""
        for helper in self._helpers:
            _kill(helper)
        left = []
        if self.is_mounted():
            self._unmount()
        if self.is_mounted():
            left.append(f"the mount at {self.mountpoint}")
        if self._simulator is not None and not _end(self._simulator):
            left.append(f"the process {self._simulator.pid}")
        left += [f"the process {pid}" for pid in self._end_strays()]
        if left:
            return left
        if self._made_mountpoint:
            with contextlib.suppress(OSError):
                os.rmdir(self.mountpoint)
        for _ in range(3):  # a job that is just ending may still write
            shutil.rmtree(self.work, ignore_errors=True)
            if not self.work.exists():
                return []
            time.sleep(0.5)
        return [f"the directory {self.work}"]

    def _unmount(self) -> None:
        mount = mounts.mount_at(self.mountpoint)
        assert mount is not None
        try:
            about = mounts.read_status(mount).get("mount") or {}
        except (mounts.Dead, mounts.Silent, mounts.NotOurs):
            about = {}
        daemon = mounts.Process(about.get("pid"))
        if mounts.fusermount(self.mountpoint):
            mounts.fusermount(self.mountpoint, lazily=True)
        if not daemon.gone_within(5):
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(daemon.pid, number)
                if daemon.gone_within(10):
                    break

    def _end_strays(self) -> list[int]:
        """Whatever was started here and still runs (a daemon that was just starting, a job) is
        known by its environment. Returns those that will not end."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._strays():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            end = time.monotonic() + 5
            while self._strays() and time.monotonic() < end:
                time.sleep(0.1)
        return self._strays()

    def _strays(self) -> list[int]:
        mark = os.fsencode(f"F7TFS_CONFIG={self.work}/config.toml")
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdecimal() and mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                pass
        return found


class DemoFailed(Failure):
    """Something did not hold."""

    def __init__(self, message: str) -> None:
        super().__init__(Exit.UNSPECIFIED, f"demo: {message}")


@contextlib.contextmanager
def stage(mountpoint: str | None) -> Iterator[Stage]:
    """A stage that is taken down in the end, also on failure, Ctrl-C and SIGTERM."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    here = Stage(mountpoint)
    try:
        yield here
    except BaseException as error:
        if isinstance(error, DemoFailed):
            _show_logs(here.work)
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if left := here.strike():
            raise DemoFailed(f"left behind: {', '.join(left)}")


def _show_logs(work: Path) -> None:
    for log in (work / "simulator.log", *(work / "state" / "log").glob("*.log")):
        if log.exists() and (lines := log.read_text(errors="replace").splitlines()[-15:]):
            click.echo(f"--- the end of {log.name}", err=True)
            for line in lines:
                click.echo(f"    {line}", err=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to its whole session; and only a short wait: it may be stuck in the kernel."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    if process.stdout is not None:
        process.stdout.close()


def _end(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        _kill(process)
    if process.stdout is not None:
        process.stdout.close()
    return process.poll() is not None
