"""`f7tfs status`: what the mounts say of themselves."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from f7tfs.cli import mounts
from f7tfs.cli.completion import MOUNTPOINT
from f7tfs.cli.waiting import items_of
from f7tfs.cli.words import clock, human, lasting, reason, shown

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 20  # uploads in a table; `f7tfs uploads list` has all of them


@click.command("status")
@click.argument("mountpoint", type=MOUNTPOINT, required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")
def command(mountpoint: str | None, as_json: bool) -> None:
    """Show all f7tfs mounts, or more of the one at MOUNTPOINT."""
    if mountpoint is not None:
        mount, status = mounts.require(mountpoint)
        if as_json:
            _print_json(status)
        else:
            _show_one(mount, status)
        return
    found = list(mounts.our_mounts())
    if as_json:
        _print_json([_as_json(mount, said) for mount, said in found])
    elif not found:
        click.echo("no f7tfs mounts")
    else:
        _show_all(found)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _as_json(
    mount: mounts.Mount, said: mounts.Status | mounts.Dead | mounts.Silent
) -> dict[str, Any]:
    if isinstance(said, dict):
        return said
    trouble = "dead" if isinstance(said, mounts.Dead) else "silent"
    return {"mount": {"mountpoint": mount.mountpoint, "source": mount.source}, "error": trouble}


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def state_of(said: mounts.Status | mounts.Dead | mounts.Silent) -> str:
    if isinstance(said, mounts.Dead):
        return "daemon gone"
    if isinstance(said, mounts.Silent):
        return "no answer"
    offline = said.get("offline")
    if isinstance(offline, dict):
        return f"offline since {clock(offline.get('since'))}"
    return "offline" if said.get("online") is False else "online"


def _uploads(status: mounts.Status) -> str:
    uploads = mounts.uploads_of(status)
    counts = [(uploads.get(key) or 0, key) for key in ("pending", "held", "stuck")]
    words = [f"{number} {what}" for number, what in counts if number]
    if not words:
        return "all on the cluster"
    size = uploads.get("bytes")
    return ", ".join(words) + (f" ({human(size)})" if size else "")


def _show_all(
    found: list[tuple[mounts.Mount, mounts.Status | mounts.Dead | mounts.Silent]],
) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("MOUNTPOINT", "REMOTE", "STATE", "UPLOADS"):
        table.add_column(heading, overflow="fold")
    for mount, said in found:
        uploads = _uploads(said) if isinstance(said, dict) else "?"
        table.add_row(mount.mountpoint, mount.source, state_of(said), uploads)
    console().print(table)


def _show_one(mount: mounts.Mount, status: mounts.Status) -> None:
    about = status.get("mount") or {}
    cache = status.get("cache") or {}
    api = status.get("api") or {}
    rows = [
        ("mountpoint", mount.mountpoint),
        ("remote", mount.source),
        ("state", state_of(status)),
        ("since", clock(about.get("since"))),
        ("daemon", about.get("pid")),
        ("version", " ".join(str(about[k]) for k in ("version", "dialect") if about.get(k))),
        ("uploads", _uploads(status)),
        ("jobs", _counts(status.get("jobs"))),
        ("cache", _cache(cache)),
        ("API calls", api.get("total")),
    ]
    out = console()
    for name, value in rows:
        if value not in (None, ""):
            out.print(f"{name:12}{value}")
    for one in status.get("renames") or []:
        job = f", job {one['job']}" if one.get("job") else ""
        since = lasting(time.time() - one["since"])
        out.print(f"  renaming  {shown(one['name'])} → {shown(one['to'])}  (for {since}{job})")
    items = [item for item in items_of(status) if not item.get("junk")]
    items.sort(key=lambda item: item.get("state") != "stuck")
    for item in items[:_SHOWN]:
        size, sent = item.get("size") or 0, item.get("sent") or 0
        progress = f"{human(sent)} of {human(size)}" if sent else human(size)
        name = shown(str(item.get("name", "?")))
        line = f"  {item.get('state', '?')}  {name}  {progress}"
        why = shown(reason(str(item.get("error") or "")))
        out.print(f"{line}  {why}".rstrip())
    if len(items) > _SHOWN:
        out.print(f"  … and {len(items) - _SHOWN} more (f7tfs uploads list)")


def _counts(jobs: object) -> str:
    if not isinstance(jobs, dict):
        return ""
    return ", ".join(f"{n} {what}" for what, n in jobs.items() if isinstance(n, int) and n)


def _cache(cache: dict[str, Any]) -> str:
    if "bytes" not in cache:
        return ""
    limit = f" of {human(cache['limit'])}" if cache.get("limit") else ""
    files = f", {cache['files']} files" if "files" in cache else ""
    return f"{human(cache['bytes'] or 0)}{limit}{files}"
