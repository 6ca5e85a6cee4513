"""`f7tfs refresh`: look at the cluster anew."""

from __future__ import annotations

import os

import click

from f7tfs.cli import mounts
from f7tfs.cli.completion import MOUNTED
from f7tfs.cli.exits import Exit, Failure


@click.command("refresh")
@click.argument("paths", type=MOUNTED, nargs=-1, metavar="[PATH...]")
def command(paths: tuple[str, ...]) -> None:
    """Forget what is known of PATH and everything below it: the next look asks the cluster.

    Without PATH: everything of the mount of the working directory, else of the only mount.
    """
    places = [mounts.within(path) for path in paths] or [(mounts.default(), "")]
    for mount, name in places:
        error = mounts.pull_for(mount, "refresh", [name])
        if error:
            where = f"{mount.mountpoint}/{name}"
            raise Failure(Exit.UNSPECIFIED, f"{where}: {os.strerror(abs(error))}")
