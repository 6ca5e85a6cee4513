"""`f7tfs cancel`: what rm of a dropped name and rm -r of a job's directory do."""

from __future__ import annotations

import errno
import os

import click

from f7tfs.cli import board
from f7tfs.cli.completion import MOUNTPOINT
from f7tfs.cli.exits import Exit, Failure


@click.command("cancel")
@click.argument("jobs", nargs=-1, required=True, metavar="ID|NAME...")
@click.option("--mount", "mountpoint", type=MOUNTPOINT, help="Where, if not the only mount.")
def command(jobs: tuple[str, ...], mountpoint: str | None) -> None:
    """Cancel jobs by their numbers, or by the names under which they were dropped.

    What is over already counts as cancelled. The job's directory, or the name, goes.
    """
    mount = board.chosen(mountpoint)
    failed = 0
    for job in jobs:
        if "/" in job or job in {".", ".."}:
            raise Failure(Exit.USAGE, f"{job} is no job's number and no name in jobs/")
        number, words = board.remove(mount, job)
        if number == errno.ENOENT:
            words = "there is no such job"
        if number:
            click.echo(f"f7tfs: {job}: {words or os.strerror(number)}", err=True)
            failed += 1
    if failed:
        plural = "job was" if failed == 1 else "jobs were"
        raise Failure(Exit.UNSPECIFIED, f"{failed} {plural} not cancelled")
