"""Waiting for uploads and downloads, in a way that the user can see and leave."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from f7tfs.cli import mounts
from f7tfs.cli.exits import Exit, Failure
from f7tfs.cli.words import clock, human, plural, reason, shown

_FIRST_LOOK = 1.0  # seconds until a waiting command without a terminal looks what it waits for,
_FIRST_LINE = 5.0  # until it says so where nothing is wrong,
_NEXT_LINE = 30.0  # and until it says so again
_LOOK = 0.3  # seconds between two looks of a progress bar
_SHOWN = 20  # stuck files that are named

Item = dict[str, Any]


def items_of(status: mounts.Status, *states: str) -> list[Item]:
    """The uploads of a status that are in one of `states` (all without any)."""
    items = mounts.uploads_of(status).get("items") or []
    found = [item for item in items if isinstance(item, dict)]
    return [item for item in found if not states or item.get("state") in states]


def is_below(name: object, names: Sequence[str]) -> bool:
    """Whether a path below the mount is one of `names` or below one; "" is the mount itself."""
    return any(not one or (str(name) + "/").startswith(one + "/") for one in names)


def wait_for_uploads(
    mount: mounts.Mount, names: Sequence[str] = ("",), *, way_out: str = ""
) -> None:
    """Return when everything at and below `names` (paths below the mount) is on the cluster;
    Failure when something is stuck. `way_out`: what else the user can do meanwhile."""
    progress = _Progress(names, way_out)
    try:
        with teller(
            mount,
            progress.brief if sys.stderr.isatty() else progress.describe,
            progress.measure,
            progress.trouble,
        ) as tick:
            error = mounts.pull_for(mount, "sync", names, tick)
    except KeyboardInterrupt:
        with contextlib.suppress(mounts.Dead, mounts.Silent, mounts.NotOurs):
            left = _Left(mounts.read_status(mount), names)
            if left.count:
                click.echo(f"f7tfs: not waited for any more: {left.count}", err=True)
        raise
    if error:
        _tell_of_failure(mount, names, error)


def _tell_of_failure(mount: mounts.Mount, names: Sequence[str], error: int) -> None:
    status = mounts.status_of(mount)
    stuck = [one for one in items_of(status, "stuck") if is_below(one.get("name"), names)]
    stuck += [
        one
        for one in items_of(status, "dirty")
        if is_below(one.get("name"), names) and one.get("unwritten")
    ]
    if not stuck:
        if error == errno.EIO:
            return  # somebody has freed it meanwhile, and it arrived
        if error < 0:
            raise Failure(Exit.UNSPECIFIED, f"the waiting was ended by signal {-error}")
        raise Failure(Exit.UNSPECIFIED, f"the waiting ended early: {os.strerror(error)}")
    for item in stuck[:_SHOWN]:
        why = shown(reason(str(item.get("error") or "no reason given")))
        click.echo(f"f7tfs: stuck: {shown(str(item.get('name')))}: {why}", err=True)
    if len(stuck) > _SHOWN:
        click.echo(f"f7tfs: … and {len(stuck) - _SHOWN} more", err=True)
    raise Failure(
        Exit.UPLOADS,
        f"{plural(len(stuck), 'file')} of {mount.mountpoint} did not reach the cluster; "
        "the content is safe on this machine (see: f7tfs uploads list)",
    )


class _Left:
    """What is still on its way, of one status."""

    def __init__(self, status: mounts.Status, names: Sequence[str]) -> None:
        self.uploads = [
            one
            for one in items_of(status, "pending", "uploading", "held")
            if is_below(one.get("name"), names) and not one.get("junk")
        ]
        removals = (status.get("removals") or {}).get("items") or []
        self.removals = [one for one in removals if is_below(one.get("name"), names)]
        self.sent = sum(int(one.get("sent") or 0) for one in self.uploads)
        self.size = sum(int(one.get("size") or 0) for one in self.uploads)

    @property
    def count(self) -> str:
        """ "3 uploads and 1 removal"; "" for nothing."""
        counts = ((len(self.uploads), "upload"), (len(self.removals), "removal"))
        return " and ".join(plural(number, what) for number, what in counts if number)


class _Progress:
    """One wait for uploads, as it is told."""

    def __init__(self, names: Sequence[str], way_out: str) -> None:
        self._names = names
        self._way_out = way_out
        self._most = 0  # bytes that were ever left
        self._most_files = 0

    def describe(self, status: mounts.Status) -> str:
        left = _Left(status, self._names)
        if not left.count:
            return "the last look"
        text = f"{left.count} left ({human(max(0, left.size - left.sent))})"
        sending = self._sending(left)
        return f"{text}, {sending}" if sending else text

    def brief(self, status: mounts.Status) -> str:
        """Beside a bar that counts the bytes."""
        left = _Left(status, self._names)
        number = len(left.uploads) + len(left.removals)
        sending = self._sending(left)
        return f"{number} left, {sending}" if sending else f"{number} left"

    def _sending(self, left: _Left) -> str:
        sending = [one for one in left.uploads if one.get("state") == "uploading"]
        if not sending:
            return ""
        one = max(sending, key=lambda item: int(item.get("sent") or 0))
        more = f" and {len(sending) - 1} more" if len(sending) > 1 else ""
        return f"sending {shown(str(one.get('name')))}{more}"

    def trouble(self, status: mounts.Status) -> str:
        """Why it may take long; "" where nothing is wrong."""
        left = _Left(status, self._names)
        offline = status.get("offline")
        if not left.count:
            return ""
        if isinstance(offline, dict):
            text = f"offline since {clock(offline.get('since'))}: {offline.get('reason')}"
        else:
            failed = [one for one in left.uploads if one.get("error")]
            if not failed:
                return ""
            why = shown(reason(str(failed[0]["error"])))
            text = f"{shown(str(failed[0].get('name')))}: {why}"
            text += f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"{text}; {self._way_out}" if self._way_out else text

    def measure(self, status: mounts.Status) -> tuple[int, int]:
        left = _Left(status, self._names)
        missing = max(0, left.size - left.sent)
        self._most = max(self._most, missing)
        return self._most - missing, self._most


Describe = Callable[[mounts.Status], str]
Measure = Callable[[mounts.Status], tuple[int, int]]  # bytes done, and in all


def _no_trouble(_: mounts.Status) -> str:
    return ""


@contextlib.contextmanager
def teller(
    mount: mounts.Mount, describe: Describe, measure: Measure, trouble: Describe = _no_trouble
) -> Iterator[Callable[[], None]]:
    """A function to call a few times a second, which tells the user of the progress."""
    if sys.stderr.isatty():
        with _progress_bar(mount, describe, measure, trouble) as tick:
            yield tick
    else:
        yield _lines(mount, describe, trouble)


def _lines(mount: mounts.Mount, describe: Describe, trouble: Describe) -> Callable[[], None]:
    """Quiet for some seconds, and at once where something is wrong."""
    began = time.monotonic()
    next_look = began + _FIRST_LOOK

    def tick() -> None:
        nonlocal next_look
        now = time.monotonic()
        if now < next_look:
            return
        with contextlib.suppress(mounts.Dead, mounts.Silent, mounts.NotOurs):
            status = mounts.read_status(mount)
            wrong = trouble(status)
            if not wrong and now < began + _FIRST_LINE:
                next_look = began + _FIRST_LINE
                return
            next_look = now + _NEXT_LINE
            text = f"waiting: {describe(status)}"
            click.echo(f"f7tfs: {text}; {wrong}" if wrong else f"f7tfs: {text}", err=True)

    return tick


@contextlib.contextmanager
def _progress_bar(
    mount: mounts.Mount, describe: Describe, measure: Measure, trouble: Describe
) -> Iterator[Callable[[], None]]:
    """The bar comes and goes; what is wrong stays above it, once."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    from rich.table import Column

    columns = (
        BarColumn(bar_width=16),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
    )
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task("waiting", total=None)
        next_look, told = 0.0, ""

        def tick() -> None:
            nonlocal next_look, told
            began = time.monotonic()
            if began < next_look:
                return
            try:
                status = mounts.read_status(mount)
            except (mounts.Dead, mounts.Silent, mounts.NotOurs):
                return
            wrong = trouble(status)
            if wrong and wrong != told:
                console.print(f"f7tfs: {wrong}")
            told = wrong
            done, total = measure(status)
            progress.update(task, description=describe(status), total=total or None, completed=done)
            now = time.monotonic()  # a long status is not asked for all the time
            next_look = now + max(_LOOK, 10 * (now - began))

        yield tick


__all__ = ["human", "items_of", "plural", "teller", "wait_for_uploads"]
