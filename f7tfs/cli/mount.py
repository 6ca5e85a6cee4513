"""`f7tfs mount`: check, start the daemon, return when it serves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from f7tfs.cli import checks, mounts
from f7tfs.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from f7tfs.config import Config


@click.command("mount")
@click.argument("remote", metavar="SYSTEM:/REMOTE/PATH")
@click.argument("mountpoint", type=click.Path())
@click.option("--foreground", "-f", is_flag=True, help="Stay; log to stderr.")
@click.option(
    "options",
    "-o",
    metavar="KEY=VALUE[,…]",
    multiple=True,
    help="Any key of the configuration file, e.g. -o cache_size=5GiB,jobs.account=g12.",
)
@click.option(
    "config_file",
    "--config",
    type=click.Path(),
    help="TOML file, instead of F7TFS_CONFIG or the user's config.toml.",
)
@click.option("--ready-fd", type=int, hidden=True)
@click.pass_obj
def command(
    debug: bool | None,
    remote: str,
    mountpoint: str,
    foreground: bool,
    options: tuple[str, ...],
    config_file: str | None,
    ready_fd: int | None,
) -> None:
    """Mount a directory of a cluster.

    Returns when the mount serves; it ends with `f7tfs umount MOUNTPOINT`. Credentials come from
    FIRECREST_URL, AUTH_TOKEN_URL, FIRECREST_CLIENT_ID and FIRECREST_CLIENT_SECRET, or from the
    configuration file.
    """
    from f7tfs.config import split_target

    try:
        split_target(remote)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    place = mounts.resolve(mountpoint)
    chosen = config_file or os.environ.get("F7TFS_CONFIG")
    file = Path(chosen).expanduser().absolute() if chosen else None
    if debug:
        options = (*options, "log_level=debug")
    config = _configuration(remote, place, options, file)

    if ready_fd is None:
        checks.check_machine()
        if config.allow_other:
            checks.check_allow_other()
        checks.check_mountpoint(place, frozenset({"f7tfs", "sshfs", config.subtype}))
    if foreground or ready_fd is not None:
        from f7tfs.cli import daemon

        daemon.run(config, ready_fd)
    else:
        from f7tfs.cli import spawn

        arguments = [remote, place, *(word for text in options for word in ("-o", text))]
        if file is not None:
            arguments += ["--config", str(file)]
        spawn.start(config, arguments)


def _configuration(remote: str, place: str, options: tuple[str, ...], file: Path | None) -> Config:
    from f7tfs.config import BadConfiguration, load

    try:
        return load(remote, Path(place), options=options, config_file=file)
    except BadConfiguration as error:
        raise Failure(Exit.CONFIGURATION, "\n".join(error.complaints)) from None
