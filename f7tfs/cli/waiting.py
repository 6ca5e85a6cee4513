"""Waiting for uploads and downloads, in a way that the user can see and leave."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from f7tfs.cli import mounts
from f7tfs.cli.exits import Exit, Failure

_FIRST_LINE = 5.0  # seconds until a waiting command without a terminal says what it waits for
_NEXT_LINE = 30.0


def plural(number: int, what: str) -> str:
    """ "1 upload", "2 uploads"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def human(number: float) -> str:
    """Bytes for people: "3.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def items_of(status: mounts.Status, *states: str) -> list[dict[str, Any]]:
    """The uploads of a status that are in one of `states` (all without any)."""
    items = mounts.uploads_of(status).get("items") or []
    found = [item for item in items if isinstance(item, dict)]
    return [item for item in found if not states or item.get("state") in states]


def wait_for_uploads(mount: mounts.Mount) -> None:
    """Return when everything of `mount` is on the cluster; Failure when something is stuck."""
    with teller(mount, _describe, _Amounts().of) as tick:
        error = mounts.pull(mount, "flush", "flush", tick)  # EIO: something is stuck
    if error == 0:
        return
    status = mounts.status_of(mount)
    stuck = items_of(status, "stuck", "STUCK")
    for item in stuck[:20]:
        reason = item.get("error") or "no reason given"
        click.echo(f"f7tfs: stuck: {item.get('path', '?')}: {reason}", err=True)
    left = mounts.left_in(status)
    raise Failure(
        Exit.UPLOADS,
        f"{plural(left, 'file')} of {mount.mountpoint} did not reach the cluster; "
        "the content is safe on this machine (see: f7tfs status)",
    )


Describe = Callable[[mounts.Status], str]
Measure = Callable[[mounts.Status], tuple[int, int]]  # bytes done, and in all


@contextlib.contextmanager
def teller(
    mount: mounts.Mount, describe: Describe, measure: Measure
) -> Iterator[Callable[[], None]]:
    """A function to call a few times a second, which tells the user of the progress."""
    if sys.stderr.isatty():
        with _progress_bar(mount, describe, measure) as tick:
            yield tick
    else:
        yield _lines(mount, describe)


def _lines(mount: mounts.Mount, describe: Describe) -> Callable[[], None]:
    next_line = time.monotonic() + _FIRST_LINE

    def tick() -> None:
        nonlocal next_line
        if time.monotonic() < next_line:
            return
        next_line = time.monotonic() + _NEXT_LINE
        with contextlib.suppress(mounts.Dead, mounts.Silent, mounts.NotOurs):
            click.echo(f"f7tfs: {describe(mounts.read_status(mount))}", err=True)

    return tick


def _describe(status: mounts.Status) -> str:
    size = human(mounts.uploads_of(status).get("bytes") or 0)
    text = f"waiting for {plural(mounts.left_in(status), 'upload')} ({size})"
    reasons = [item["error"] for item in items_of(status) if item.get("error")]
    return f"{text}: {reasons[0]}" if reasons else text


class _Amounts:
    """How much is uploaded of the most that was ever due."""

    def __init__(self) -> None:
        self._total = 0

    def of(self, status: mounts.Status) -> tuple[int, int]:
        sent = sum(int(item.get("sent") or 0) for item in items_of(status))
        left = max(0, int(mounts.uploads_of(status).get("bytes") or 0) - sent)
        self._total = max(self._total, left)
        return self._total - left, self._total


@contextlib.contextmanager
def _progress_bar(
    mount: mounts.Mount, describe: Describe, measure: Measure
) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("waiting", total=None)

        def tick() -> None:
            try:
                status = mounts.read_status(mount)
            except (mounts.Dead, mounts.Silent, mounts.NotOurs):
                return
            done, total = measure(status)
            progress.update(task, description=describe(status), total=total, completed=done)

        yield tick
