"""`f7tfs sync`: wait until everything is on the cluster."""

from __future__ import annotations

import os

import click

from f7tfs.cli import mounts, waiting
from f7tfs.cli.completion import MOUNTPOINT
from f7tfs.cli.exits import Exit, Failure


@click.command("sync")
@click.argument("path", type=MOUNTPOINT, required=False)
def command(path: str | None) -> None:
    """Wait until everything of the mount that holds PATH is on the cluster.

    Without PATH: the mount of the working directory, else the only mount.
    """
    waiting.wait_for_uploads(mounts.holding(path) if path is not None else _default())


def _default() -> mounts.Mount:
    here = mounts.mount_holding(os.getcwd())
    if here is not None and here.looks_ours:
        mounts.status_of(here)
        return here
    found = [mount for mount, _ in mounts.our_mounts()]
    if len(found) == 1:
        mounts.status_of(found[0])
        return found[0]
    if not found:
        raise Failure(Exit.NOT_F7TFS, "there is no f7tfs mount")
    places = ", ".join(mount.mountpoint for mount in found)
    raise Failure(Exit.USAGE, f"say which one: {places}")
