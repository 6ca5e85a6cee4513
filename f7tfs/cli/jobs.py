"""`f7tfs jobs`: what jobs/ of a mount shows, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from f7tfs.cli import board, mounts
from f7tfs.cli.completion import MOUNTPOINT
from f7tfs.cli.status import console

if TYPE_CHECKING:
    from rich.table import Table

_HEADINGS = ("ID", "NAME", "STATE", "ELAPSED", "EXIT", "ABOUT")


@click.command("jobs")
@click.argument("mountpoint", type=MOUNTPOINT, required=False)
@click.option("--watch", is_flag=True, help="Show it again every 2 s until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="What jobs/.jobs.json holds.")
def command(mountpoint: str | None, watch: bool, as_json: bool) -> None:
    """List the jobs of a mount, and the scripts that are not submitted yet.

    Without MOUNTPOINT: the mount of the working directory, else the only mount.
    """
    mount = board.chosen(mountpoint)
    if as_json:
        while True:
            jobs, drops = board.read(mount)
            click.echo(json.dumps({"jobs": jobs, "drops": drops}, indent=None if watch else 2))
            if not watch:
                return
            board.pause()
    if watch:
        _watch(mount)
    else:
        console().print(_table(mount))


def _watch(mount: mounts.Mount) -> None:
    from rich.live import Live

    with Live(_table(mount), console=console(), auto_refresh=False) as live:
        while True:
            board.pause()
            live.update(_table(mount), refresh=True)


def _table(mount: mounts.Mount) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows(*board.read(mount)):
        table.add_row(*row)
    return table


def rows(jobs: list[board.Row], drops: list[board.Row]) -> Iterator[tuple[str, ...]]:
    """What is not submitted first, then jobs, the newest first; arrays as a whole."""
    for drop in drops:
        if drop["state"] != "submitted":
            about = drop["error"] or ", ".join(drop["waits_for"])
            words = " ".join(str(about).split())
            if drop["candidates"]:
                words += f" (perhaps {', '.join(drop['candidates'])})"
            yield "-", drop["name"], drop["state"].upper(), "", "", words
    for job in sorted(jobs, key=_number, reverse=True):
        if "_" not in job["id"]:
            about = job["elements"] or job["reason"] or job["node_list"]
            shown = ("id", "name", "state", "elapsed", "exit_code")
            yield (*(job[key] for key in shown), about)


def _number(job: board.Row) -> int:
    return int("".join(letter for letter in job["id"].partition("_")[0] if letter.isdigit()) or 0)
