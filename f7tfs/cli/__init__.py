"""The command line. Every command is imported when it is asked for, so that the ones that only
read `.f7tfs/` start quickly (no pyfuse3, trio, httpx)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from f7tfs import __version__
from f7tfs.cli.exits import Exit, Failure

# Name → (module, help in one line).
_COMMANDS = {
    "mount": ("f7tfs.cli.mount", "Mount a directory of a cluster, or its file systems."),
    "umount": ("f7tfs.cli.umount", "Unmount when everything is on the cluster."),
    "systems": ("f7tfs.cli.systems", "List the systems that the URL offers."),
    "status": ("f7tfs.cli.status", "Show mounts, uploads and jobs."),
    "top": ("f7tfs.cli.top", "Show what a mount is doing, again every second."),
    "sync": ("f7tfs.cli.sync", "Wait until a path, or everything, is on the cluster."),
    "uploads": ("f7tfs.cli.uploads", "List, retry, save or discard what is on its way."),
    "refresh": ("f7tfs.cli.refresh", "Look at the cluster anew."),
    "fetch": ("f7tfs.cli.fetch", "Bring files into the local cache."),
    "jobs": ("f7tfs.cli.jobs", "List jobs, and scripts that are not submitted yet."),
    "submit": ("f7tfs.cli.submit", "Submit a script, and perhaps wait for its job."),
    "cancel": ("f7tfs.cli.cancel", "Cancel jobs."),
    "demo": ("f7tfs.cli.demo", "Show it all on a simulated cluster."),
    "simulate": ("f7tfs.cli.simulate", "Serve a simulated cluster over a local folder."),
}


class _Commands(click.Group):
    """Imports a command when it is asked for, and tells of every failure in one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in _COMMANDS.items()])

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,
    ) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            result = super().main(arguments, prog_name or "f7tfs", **extra)
        except Exception as error:
            if "--debug" in arguments and not isinstance(error, click.ClickException | Failure):
                raise
            code = _tell(error)
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        else:
            code = result if isinstance(result, int) else Exit.OK
        sys.exit(int(code))


def _tell(error: Exception) -> int:
    """Print the one sentence; returns the exit code."""
    code: int
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return error.exit_code
    if isinstance(error, click.Abort):
        return Exit.INTERRUPTED
    if isinstance(error, BrokenPipeError):  # `f7tfs status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.UNSPECIFIED
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "f7tfs"
        text, code = (
            f"{error.format_message().rstrip('.')} (see: {command} --help)",
            error.exit_code,
        )
    elif isinstance(error, Failure):
        text, code = str(error), error.code
    elif isinstance(error, click.ClickException):
        text, code = error.format_message(), error.exit_code
    else:
        text = f"internal fault ({type(error).__name__}: {error}); --debug shows where"
        code = Exit.INTERNAL
    for line in text.splitlines() or [""]:
        click.echo(f"f7tfs: {line}", err=True)
    return code


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="f7tfs", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Log more; show where an internal fault happened.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """An HPC cluster behind the FirecREST REST API, mounted as a drive.

    Completion for bash: eval "$(_F7TFS_COMPLETE=bash_source f7tfs)"; likewise zsh_source,
    fish_source.
    """
    ctx.obj = debug


__all__ = ["Exit", "Failure", "main"]
