"""The side of `f7tfs mount` that serves."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any

from f7tfs import errors, faultpoints, service
from f7tfs.cli.exits import Exit, Failure, cause_of, code_of, sentence_of
from f7tfs.config import Config

log = logging.getLogger(__name__)


class _Starter:
    """Whoever waits for the mount: `f7tfs mount` at the other end of a pipe, systemd, or nobody.

    It is told once, of success or of failure.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.told = False
        if descriptor is not None:
            try:
                os.set_inheritable(descriptor, False)
            except OSError:
                raise Failure(Exit.USAGE, "--ready-fd: no such descriptor") from None

    def ready(self, complaints: list[str]) -> None:
        """It serves. `complaints`: what the user must know all the same."""
        self._tell({"ready": True, "pid": os.getpid(), "complaints": complaints})
        service.sd_notify("READY=1")

    def failed(self, code: int, message: str) -> None:
        self._tell({"exit": code, "message": message})
        service.sd_notify(f"STATUS={message}")

    def _tell(self, line: dict[str, Any]) -> None:
        self.told = True
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(line).encode() + b"\n")
        except BrokenPipeError:
            if line.get("ready"):  # nobody would know of this mount
                raise errors.Interrupted("the command that asked for the mount was ended") from None
        finally:
            os.close(self._descriptor)
            self._descriptor = None


def run(config: Config, ready_fd: int | None) -> None:
    """Serve until unmounted or told to stop. Failure when the mount could not be served."""
    starter = _Starter(ready_fd)
    os.umask(0o077)  # of what we keep on this disk; in the mount the caller's umask counts
    os.chdir("/")
    _raise_descriptor_limit()
    try:
        service.configure_logging(config)
        faultpoints.arm(os.environ)
        _serve(config, starter)
    except BaseException as error:
        cause = cause_of(error)
        code, sentence = code_of(cause), sentence_of(cause)
        if code is Exit.INTERNAL and (ready_fd is not None or starter.told):
            log.exception(
                "%s", sentence
            )  # where stderr is the log, or there is no terminal to spare
        elif starter.told:
            log.error("ended: %s", sentence)
        starter.failed(code, sentence)
        if code is Exit.INTERNAL and log.isEnabledFor(logging.DEBUG):
            raise
        raise Failure(code, sentence) from None
    if not starter.told:
        starter.failed(Exit.UNSPECIFIED, "stopped before the mount was ready")
        sys.exit(Exit.UNSPECIFIED)


def _serve(config: Config, starter: _Starter) -> None:
    try:
        import trio

        from f7tfs import mount
    except ImportError as error:  # a broken installation, e.g. pyfuse3 without libfuse3
        raise errors.Unsupported(f"the installation is incomplete: {error}") from error
    trio.run(_main, mount, config, starter)


async def _main(mount: Any, config: Config, starter: _Starter) -> None:
    await mount.serve(config, ready=starter.ready)


def _raise_descriptor_limit() -> None:
    """Every open file of the mount may hold a spool or cache file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # less files at a time
