"""`f7tfs submit`: drop a script into jobs/, and perhaps wait for its job."""

from __future__ import annotations

import errno
import os
from typing import IO

import click

from f7tfs.cli import board, mounts
from f7tfs.cli.completion import MOUNTPOINT
from f7tfs.cli.exits import Exit, Failure

_REFUSED = {errno.EINVAL, errno.EACCES, errno.EDQUOT}


@click.command("submit")
@click.argument("script", type=click.File("rb"))
@click.option("--mount", "mountpoint", type=MOUNTPOINT, help="Where, if not the only mount.")
@click.option("--name", help="Its name in jobs/, if not that of SCRIPT.")
@click.option("--wait", is_flag=True, help="Until the job is over; fails if the job did.")
def command(script: IO[bytes], mountpoint: str | None, name: str | None, wait: bool) -> None:
    """Submit SCRIPT (- is stdin) once everything written before is on the cluster.

    Prints the job's number. With --wait, Ctrl-C ends the waiting, not the job.
    """
    mount = board.chosen(mountpoint)
    name = name or os.path.basename(script.name).replace("<stdin>", "script.sh")
    number = board.drop(mount, name, script.read())
    if number in _REFUSED:
        _raise_if_refused(_drop_of(mount, name))
    if number == errno.ENOENT:
        raise Failure(Exit.UNSPECIFIED, f"{mount.mountpoint} has no jobs/ (jobs.enabled=false)")
    if number:
        raise Failure(Exit.UNSPECIFIED, f"{name} was not submitted: {os.strerror(number)}")
    drop = _drop_of(mount, name)
    _raise_if_refused(drop)
    if wait:
        _wait(mount, drop)
    elif drop["id"]:
        click.echo(drop["id"])
    else:
        click.echo(f"f7tfs: {_about(drop)}", err=True)
        if drop["state"] == "unknown":
            raise Failure(Exit.UNKNOWN, f"see {mount.mountpoint}/jobs/{name}.status")


def _drop_of(mount: mounts.Mount, name: str, since: float | None = None) -> board.Row:
    """The newest drop of a name; with `since`, that very one. Failure if it is gone."""
    _, drops = board.read(mount)
    mine = [one for one in drops if one["name"] == name and since in {None, one["since"]}]
    if not mine:
        raise Failure(Exit.UNSPECIFIED, f"{name} was removed, or dropped again")
    return max(mine, key=lambda one: float(one["since"]))


def _raise_if_refused(drop: board.Row) -> None:
    if drop["state"] == "refused":
        raise Failure(Exit.REFUSED, f"{drop['name']} was refused: {drop['error']}")


def _about(drop: board.Row) -> str:
    words = " ".join(str(drop["error"]).split()) or "waits for " + ", ".join(drop["waits_for"])
    return f"{drop['name']} is {drop['state'].upper()}: {words}"


def _wait(mount: mounts.Mount, drop: board.Row) -> None:
    ident = str(drop["id"])
    said = ""
    try:
        while not ident:
            if _about(drop) != said:
                said = _about(drop)
                click.echo(f"f7tfs: {said}", err=True)
            board.pause()
            drop = _drop_of(mount, drop["name"], drop["since"])
            _raise_if_refused(drop)
            ident = str(drop["id"])
        click.echo(ident)
        while not board.is_over(job := _job(mount, ident)):
            board.pause()
    except KeyboardInterrupt:
        what = f"job {ident} goes on; to end it: f7tfs cancel {ident}"
        if not ident:
            what = f"{drop['name']} stays; to give it up: f7tfs cancel {drop['name']}"
        raise Failure(Exit.INTERRUPTED, what) from None
    if not board.has_succeeded(job):
        code = f", exit code {job['exit_code']}" if job["exit_code"] else ""
        raise Failure(Exit.JOB_FAILED, f"job {ident} ended {job['state']}{code}")


def _job(mount: mounts.Mount, ident: str) -> board.Row:
    jobs, _ = board.read(mount)
    for job in jobs:
        if job["id"] == ident:
            return job
    raise Failure(Exit.UNSPECIFIED, f"job {ident} is not shown any more")
