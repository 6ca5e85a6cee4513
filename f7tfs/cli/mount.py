"""`f7tfs mount`: check, start the daemon, return when it serves."""

from __future__ import annotations

from pathlib import Path

import click

from f7tfs.cli import checks, mounts
from f7tfs.cli.settings import config_file_of, config_option, configuration, options_option


@click.command("mount")
@click.argument("remote", metavar="SYSTEM[:/REMOTE/PATH]")
@click.argument("mountpoint", type=click.Path())
@click.option("--foreground", "-f", is_flag=True, help="Stay; log to stderr.")
@options_option
@config_option
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
    """Mount a directory of a cluster, or, without a path, the file systems that it announces.

    Returns when the mount serves; it ends with `f7tfs umount MOUNTPOINT`. Credentials come from
    FIRECREST_URL, AUTH_TOKEN_URL, FIRECREST_CLIENT_ID and FIRECREST_CLIENT_SECRET, or from the
    configuration file.
    """
    from f7tfs.config import check_target, load

    try:
        check_target(remote)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    place = mounts.resolve(mountpoint)
    file = config_file_of(config_file)
    if debug:
        options = (*options, "log_level=debug")
    config = configuration(lambda: load(remote, Path(place), options=options, config_file=file))

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
