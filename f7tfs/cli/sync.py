"""`f7tfs sync`: wait until something is on the cluster."""

from __future__ import annotations

import click

from f7tfs.cli import mounts, waiting
from f7tfs.cli.completion import MOUNTED


@click.command("sync")
@click.argument("path", type=MOUNTED, required=False)
def command(path: str | None) -> None:
    """Wait until PATH, or everything below it, is on the cluster.

    Without PATH: everything of the mount of the working directory, else of the only mount. Files
    that are held under a temporary name are sent as well. Ctrl-C ends the waiting, not the uploads.
    """
    if path is None:
        waiting.wait_for_uploads(mounts.default())
    else:
        mount, name = mounts.within(path)
        waiting.wait_for_uploads(mount, [name])
