"""`f7tfs top`: what a mount is doing, again every second."""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from f7tfs.cli import board, mounts
from f7tfs.cli.completion import MOUNTPOINT
from f7tfs.cli.exits import Exit, Failure
from f7tfs.cli.status import console, state_of
from f7tfs.cli.waiting import items_of
from f7tfs.cli.words import human, lasting, plural, reason, shown

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

INTERVAL = 1.0  # seconds between two looks
SPAN = 5  # looks that a rate is taken over
FRAME = 3  # lines around the rows: the headings, what is left out, the cursor's
_HEADINGS = ("", "STATE", "SIZE", "DONE", "RATE", "LEFT", "FILE")
# What is under way comes first, then what needs somebody, then what waits.
_ORDER = (
    "downloading",
    "staging",
    "waiting",
    "uploading",
    "renaming",
    "stuck",
    "pending",
    "held",
    "dirty",
)


@click.command("top")
@click.argument("mountpoint", type=MOUNTPOINT, required=False)
def command(mountpoint: str | None) -> None:
    """Show what a mount is doing, again every second until Ctrl-C.

    Without MOUNTPOINT: the mount of the working directory, else the only mount. Where the output is
    no terminal, it is shown once, with the rates of one second.
    """
    mount = board.chosen(mountpoint)
    meter = Meter()
    status = mounts.status_of(mount)
    meter.note(time.monotonic(), status)
    if sys.stdout.isatty():
        _follow(mount, status, meter)
    else:
        time.sleep(INTERVAL)
        status = mounts.status_of(mount)
        meter.note(time.monotonic(), status)
        console().print(screen(mount, status, meter))


def _follow(mount: mounts.Mount, status: mounts.Status, meter: Meter) -> None:
    from rich.console import Console
    from rich.live import Live

    out = Console(highlight=False, markup=False, emoji=False)
    said: mounts.Status | mounts.Dead | mounts.Silent = status
    with Live(console=out, auto_refresh=False, screen=True) as live:
        while True:
            live.update(screen(mount, said, meter, height=out.height), refresh=True)
            time.sleep(INTERVAL)
            try:
                said = mounts.read_status(mount)
                meter.note(time.monotonic(), said)
            except (mounts.Dead, mounts.Silent) as trouble:
                said = trouble  # it may come back
            except mounts.NotOurs:
                raise Failure(Exit.NOT_F7TFS, f"{mount.mountpoint} was unmounted") from None


class Look(NamedTuple):
    when: float  # seconds of a monotonic clock
    done: dict[str, int]  # bytes by transfer
    calls: int


class Meter:
    """Rates over the last looks, per second."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque(maxlen=SPAN + 1)

    def note(self, when: float, status: mounts.Status) -> None:
        done = {one.key: one.done for one in transfers_of(status)}
        calls = int((status.get("api") or {}).get("total") or 0)
        self._looks.append(Look(when, done, calls))

    def rate(self, keys: Iterable[str]) -> float:
        """Bytes per second of some transfers. One that began, ended or began anew within the span
        counts for what was seen of it."""
        gained = 0
        for before, after in itertools.pairwise(self._looks):
            for key in keys:
                if key in before.done and key in after.done:
                    gained += max(0, after.done[key] - before.done[key])
        return gained / self._seconds if self._seconds else 0.0

    @property
    def known(self) -> set[str]:
        """Every transfer of the span."""
        return {key for look in self._looks for key in look.done}

    def calls(self) -> float:
        """API calls per minute."""
        if not self._seconds:
            return 0.0
        return 60 * max(0, self._looks[-1].calls - self._looks[0].calls) / self._seconds

    @property
    def _seconds(self) -> float:
        return self._looks[-1].when - self._looks[0].when if self._looks else 0.0


class Transfer(NamedTuple):
    """A download, or what is not on the cluster yet: a file, a removal, a rename.
    `about`: why it waits."""

    arrow: str
    state: str
    size: int
    done: int
    name: str
    about: str = ""

    @property
    def key(self) -> str:
        return f"{self.arrow} {self.name}"


def transfers_of(status: mounts.Status) -> list[Transfer]:
    root = str((status.get("mount") or {}).get("remote_path") or "").rstrip("/") + "/"
    found = [
        Transfer(
            "↓",
            str(one.get("state")),
            int(one.get("size") or 0),
            int(one.get("done") or 0),
            str(one.get("path")).removeprefix(root),
        )
        for one in _dicts(status.get("transfers"))
    ]
    found += [
        Transfer(
            "↑",
            str(one.get("state")),
            int(one.get("size") or 0),
            int(one.get("sent") or 0),
            str(one.get("name")),
            _why(one),
        )
        for one in items_of(status)
        if not one.get("junk")
    ]
    removals = (status.get("removals") or {}).get("items")
    found += [Transfer("✗", "removal", 0, 0, str(one.get("name"))) for one in _dicts(removals)]
    found += [
        Transfer(
            "→",
            "renaming",
            0,
            0,
            f"{one.get('name')} → {one.get('to')}",
            f"job {one['job']}" if one.get("job") else "",
        )
        for one in _dicts(status.get("renames"))
    ]
    return sorted(found, key=lambda one: (_rank(one.state), one.name))


def _why(upload: dict[str, Any]) -> str:
    words = reason(str(upload.get("error") or ""))
    if not words and upload.get("awaited_by"):
        words = f"{', '.join(map(str, upload['awaited_by']))} waits for it"
    return words


def _dicts(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _rank(state: str) -> int:
    return _ORDER.index(state) if state in _ORDER else len(_ORDER)


def screen(
    mount: mounts.Mount,
    said: mounts.Status | mounts.Dead | mounts.Silent,
    meter: Meter,
    *,
    height: int | None = None,
) -> Group:
    """The whole of it, in `height` lines."""
    from rich.console import Group

    head = [f"{mount.mountpoint}  {mount.source}  {state_of(said)}"]
    if not isinstance(said, dict):
        return Group(*head)
    transfers = transfers_of(said)
    head += [*_summary(said, meter), ""]
    room = len(transfers) if height is None else max(1, height - len(head) - FRAME)
    rows = transfers[:room]
    lines: list[Table | str] = [_table(rows, meter)] if rows else ["nothing is under way"]
    if len(transfers) > len(rows):
        lines.append(f"… and {len(transfers) - len(rows)} more")
    return Group(*head, *lines)


def _summary(status: mounts.Status, meter: Meter) -> list[str]:
    down, up = ({key for key in meter.known if key.startswith(arrow)} for arrow in "↓↑")
    uploads = mounts.uploads_of(status)
    counts = [(int(uploads.get(key) or 0), key) for key in ("pending", "stuck", "held", "open")]
    words = [
        f"{number} {'being written' if key == 'open' else key}" for number, key in counts if number
    ]
    removals = int((status.get("removals") or {}).get("pending") or 0)
    if removals:
        words.append(plural(removals, "removal"))
    cache = status.get("cache") or {}
    calls = (status.get("api") or {}).get("total") or 0
    return [
        f"down {human(meter.rate(down))}/s   up {human(meter.rate(up))}/s   "
        f"API {meter.calls():.0f} calls a minute, {calls} in all",
        f"uploads {', '.join(words) or 'all on the cluster'}   "
        f"cache {human(cache.get('bytes') or 0)} of {human(cache.get('limit') or 0)}",
    ]


def _table(rows: list[Transfer], meter: Meter) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        right = heading in {"SIZE", "DONE", "RATE", "LEFT"}
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for one in rows:
        rate = meter.rate([one.key])
        name = shown(one.name) + (f"  ({shown(one.about)})" if one.about else "")
        size = human(one.size) if one.state != "removal" else ""
        done = f"{100 * one.done // one.size} %" if one.done and one.size else ""
        left = lasting((one.size - one.done) / rate) if rate and one.size > one.done else ""
        table.add_row(
            one.arrow, one.state, size, done, f"{human(rate)}/s" if rate else "", left, name
        )
    return table
