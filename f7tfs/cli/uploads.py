"""`f7tfs uploads`: what is not on the cluster yet, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from f7tfs.cli import mounts, owed, settings
from f7tfs.cli.completion import MOUNTED
from f7tfs.cli.exits import Exit, Failure
from f7tfs.cli.owed import Item, Source
from f7tfs.cli.words import clock, human, lasting, plural, reason, shown

_NAMED = 20  # files that a question names

paths_argument = click.argument("paths", type=MOUNTED, nargs=-1, metavar="[PATH...]")


@click.group("uploads", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """What is not on the cluster yet, and what to do about it."""


# Looking.


@command.command("list")
@paths_argument
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")
@settings.options_option
@settings.config_option
def list_(
    paths: tuple[str, ...], as_json: bool, options: tuple[str, ...], config_file: str | None
) -> None:
    """List what is not on the cluster yet, what is stuck first.

    Without PATH: of all mounts, and of journals of earlier mounts that nothing serves now. PATH is
    a path in a mount, or SYSTEM:/PATH or the directory of a journal, as the list names it.
    """
    if paths:
        sources = _sources(paths, options, config_file)
    else:
        sources = list(owed.everywhere(settings.state_directories(options, config_file)))
    if as_json:
        click.echo(json.dumps([source.as_json() for source in sources], indent=2))
        return
    shown_sources = [source for source in sources if source.trouble or _listed(source.items)]
    if not shown_sources:
        click.echo("everything is on the cluster")
    for number, source in enumerate(shown_sources):
        if number:
            click.echo()
        _show(source)


def _listed(items: list[Item]) -> list[Item]:
    """Junk never travels."""
    return [item for item in items if not item.junk]


def _show(source: Source) -> None:
    if source.mountpoint:
        click.echo(f"{shown(source.mountpoint)} ({shown(source.remote)})")
    else:
        click.echo(f"{shown(source.remote)}, not mounted; the bytes are in {source.journal}/spool")
    if source.trouble:
        click.echo(f"{source.trouble}")
    items = _listed(source.items)
    if not items:
        return
    rows = [("STATE", "SIZE", "AGE", "PROGRESS", "FILE")]
    for item in items:
        size = human(item.size) if item.file else ""
        age = lasting(time.time() - item.since) if item.since else ""
        rows.append((item.state, size, age, _progress(item), shown(item.name)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row, one in zip(rows, [None, *items], strict=True):
        state, size, age, progress, name = row
        left = f"{state:{widths[0]}}  {size:>{widths[1]}}  {age:>{widths[2]}}"
        click.echo(f"{left}  {progress:{widths[3]}}  {name}")
        if one is not None and one.error:
            click.echo(f"{'':{widths[0]}}  ({shown(reason(one.error))})")
    counts = [(sum(item.state == state for item in items), state) for state in owed.STATES]
    text = ", ".join(f"{number} {state}" for number, state in counts if number)
    click.echo(f"{text}; {human(sum(item.size for item in items))}")


def _progress(item: Item) -> str:
    if item.state == "uploading":
        return f"{human(item.sent)} sent" if item.sent else "begun"
    if item.state == "dirty":
        return "" if item.unwritten else "open"
    if item.next_try is None:
        return ""
    wait = item.next_try - time.time()
    when = f"in {lasting(wait)}" if wait >= 1 else "now"
    return f"try {item.attempts + 1} {when}" if item.attempts else when


# Choosing.


def _sources(
    paths: Sequence[str], options: tuple[str, ...], config_file: str | None
) -> list[Source]:
    """What the user named: paths in mounts, and journals. One source for each mount or journal."""
    names: dict[mounts.Mount, list[str]] = {}
    found: list[Source] = []
    on_disk: list[Source] | None = None
    for path in paths:
        if mounts.find(path) is not None:
            mount, name = mounts.within(path)
            names.setdefault(mount, []).append(name)
            continue
        if on_disk is None:
            on_disk = list(owed.journals(settings.state_directories(options, config_file)))
        chosen = [one for one in on_disk if path == one.remote or _is_at(path, one.journal)]
        if not chosen and (Path(path) / "spool").is_dir():
            chosen = [owed.of_directory(Path(path).absolute())]
        if not chosen:
            raise Failure(
                Exit.NOT_F7TFS,
                f"{path} is neither in an f7tfs mount nor a journal with something in it "
                "(see: f7tfs uploads list)",
            )
        found += [one for one in chosen if one not in found]
    return [owed.of_mount(mount, below) for mount, below in names.items()] + found


def _is_at(path: str, journal: Path | None) -> bool:
    return journal is not None and Path(path).absolute() == journal


def _of_mounts(paths: Sequence[str]) -> list[Source]:
    """What the user named, in mounts only; without paths the default mount."""
    if not paths:
        return [owed.of_mount(mounts.default())]
    names: dict[mounts.Mount, list[str]] = {}
    for path in paths:
        mount, name = mounts.within(path)
        source = owed.of_mount(mount, [name])
        if name and not [item for item in _listed(source.items) if item.file]:
            raise Failure(Exit.UNSPECIFIED, f"{path}: nothing of it is on its way")
        names.setdefault(mount, []).append(name)
    return [owed.of_mount(mount, below) for mount, below in names.items()]


# Trying again.


@command.command("retry")
@paths_argument
def retry(paths: tuple[str, ...]) -> None:
    """Try again now what is stuck, and what waits for its next try.

    All of it at and below PATH; without PATH, of the mount of the working directory, else of the
    only mount. `f7tfs sync` waits for the outcome.
    """
    number = 0
    for source in _of_mounts(paths):
        again = [
            item
            for item in source.items
            if item.state == "stuck" or (item.state == "pending" and item.attempts)
        ]
        if again:
            _pull(source, "retry", [item.name for item in again])
        number += len(again)
    if number:
        click.echo(f"{plural(number, 'file')} tried again; f7tfs sync waits for the outcome")
    else:
        click.echo("nothing is stuck")


def _pull(source: Source, lever: str, names: list[str]) -> int:
    assert source.mount is not None
    return mounts.pull_for(source.mount, lever, names)


# Giving up.


@command.command("discard")
@paths_argument
@click.option("--all-stuck", is_flag=True, help="Everything that is stuck (at or below PATH).")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(paths: tuple[str, ...], all_stuck: bool, yes: bool) -> None:
    """Lose the local changes of files for good; the cluster's version is shown again.

    Of PATH, or of everything below it that is on its way. Files that a program has open, or that a
    held job waits for, are left alone.
    """
    if not paths and not all_stuck:
        raise Failure(Exit.USAGE, "say which files, or --all-stuck")
    left_alone = 0
    chosen: list[tuple[Source, list[Item]]] = []
    for source in _of_mounts(paths):
        items = [item for item in source.items if item.file and not item.junk]
        if all_stuck:
            items = [item for item in items if item.state == "stuck"]
        free = [item for item in items if not _why_not(source, item)]
        for item in items:
            if why := _why_not(source, item):
                click.echo(f"f7tfs: {shown(item.name)} is left alone: {why}", err=True)
                left_alone += 1
        chosen.append((source, free))
    number = sum(len(items) for _, items in chosen)
    if number:
        _ask(chosen, number, yes)
        left_alone += sum(_discard(source, items) for source, items in chosen if items)
    elif not left_alone:
        click.echo("nothing is stuck" if all_stuck else "nothing is on its way")
    if left_alone:
        raise Failure(Exit.UNSPECIFIED, f"{plural(left_alone, 'file')} left alone")


def _why_not(source: Source, item: Item) -> str:
    if item.awaited_by:
        drop = f"jobs/{item.awaited_by[0]}"
        return f"{drop} waits for it (keep the script elsewhere and rm {drop} first)"
    if item.open or (item.state == "dirty" and not item.unwritten):
        users = mounts.users_of(f"{source.mountpoint}/{item.name}")
        return f"it is open in {', '.join(users) or 'another program'}"
    return ""


def _ask(chosen: list[tuple[Source, list[Item]]], number: int, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(
            Exit.USAGE,
            f"{plural(number, 'file')} would lose local changes; say --yes, "
            "there is no terminal to ask on",
        )
    lines = [_loss(item) for _, items in chosen for item in items]
    for line in lines[:_NAMED]:
        click.echo(line, err=True)
    if len(lines) > _NAMED:
        click.echo(f"… and {len(lines) - _NAMED} more", err=True)
    if not click.confirm(f"Discard {plural(number, 'file')} for good?", err=True):
        raise Failure(Exit.UNSPECIFIED, "nothing was discarded")


def _loss(item: Item) -> str:
    """What a discard takes, and what is there afterwards."""
    age = lasting(time.time() - item.since)
    text = f"{shown(item.name)}: {human(item.size)} of {age} ago are lost; "
    if item.base is None:
        text += "nothing of it is on the cluster"
    else:
        size, mtime = item.base
        text += f"the cluster's version was {human(size)} of {clock(mtime)} when they began"
    if item.in_place:
        text += ", and may hold a part of them"
    return text


def _discard(source: Source, items: list[Item]) -> int:
    """Returns how many are still there. What changed since the question was put is left alone."""
    assert source.mount is not None
    now = {item.name: item for item in owed.of_mount(source.mount).items if item.file}
    same = [one for one in items if (there := now.get(one.name)) and _is_same(one, there)]
    for item in items:
        if item.name in now and item not in same:
            click.echo(f"f7tfs: {shown(item.name)} was written to meanwhile: left alone", err=True)
    error = _pull(source, "discard", [item.name for item in same]) if same else 0
    after = {item.file for item in owed.of_mount(source.mount).items}
    failed = [item for item in same if item.file in after]
    for item in failed:
        why = os.strerror(error) if error > 0 else "it is still there"
        click.echo(f"f7tfs: {shown(item.name)}: {why}", err=True)
    if done := len(same) - len(failed):
        click.echo(f"{plural(done, 'file')} discarded")
    return len(failed) + sum(item.name in now for item in items) - len(same)


def _is_same(one: Item, other: Item) -> bool:
    return (one.file, one.size, one.modified) == (other.file, other.size, other.modified)


# Saving.


@command.command("save")
@click.argument("folder", type=MOUNTED, metavar="DIR")
@paths_argument
@click.option("--all", "everything", is_flag=True, help="Also what is on its way and not stuck.")
@settings.options_option
@settings.config_option
def save(
    folder: str,
    paths: tuple[str, ...],
    everything: bool,
    options: tuple[str, ...],
    config_file: str | None,
) -> None:
    """Copy what is stuck into DIR, with its paths, modes and times.

    Of a journal that no mount serves, everything is copied. PATH as in `f7tfs uploads list`;
    without it, everything that the list shows. Nothing is overwritten: beside another file a copy
    becomes NAME.1. Each copy is read back and compared. What is in the journal stays there.
    """
    if mounts.find(folder) is not None:
        raise Failure(Exit.USAGE, f"{folder} is in an f7tfs mount: save to this machine's own disk")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise Failure(Exit.USAGE, f"{folder} is not a directory")
    if paths:
        sources = _sources(paths, options, config_file)
    else:
        sources = list(owed.everywhere(settings.state_directories(options, config_file)))
    chosen = [(source, items) for source in sources if (items := _to_save(source, everything))]
    if len(chosen) > 1 and not paths:
        names = ", ".join(_handle(source) for source, _ in chosen)
        raise Failure(Exit.USAGE, f"say whose files, each into a DIR of its own: {names}")
    done = failed = size = 0
    for source, items in chosen:
        for item in items:
            if _save(source, item, Path(folder)):
                done, size = done + 1, size + item.size
            else:
                failed += 1
    if not done and not failed:
        click.echo("nothing is stuck" if not everything else "everything is on the cluster")
    else:
        click.echo(f"{plural(done, 'file')} ({human(size)}) saved in {folder}")
    if failed:
        raise Failure(Exit.UNSPECIFIED, f"{plural(failed, 'file')} not saved")


def _handle(source: Source) -> str:
    """What names exactly this one on the command line."""
    return source.mountpoint or str(source.journal)


def _to_save(source: Source, everything: bool) -> list[Item]:
    items = [item for item in source.items if item.file is not None and not item.junk]
    if source.mountpoint is None or everything:
        return items
    return [item for item in items if item.state == "stuck"]


def _save(source: Source, item: Item, folder: Path) -> bool:
    from f7tfs.cli import rescue

    try:
        place = rescue.save(item, folder)
    except rescue.Unsaved as error:
        if source.mount is not None and not _is_owed(source.mount, item):
            click.echo(f"{shown(item.name)} has reached the cluster meanwhile")
            return True
        click.echo(f"f7tfs: {shown(item.name)}: {error}", err=True)
        return False
    if place != rescue.target_of(folder, item.name):
        click.echo(f"{shown(item.name)} is saved as {place.name}: the name was taken")
    return True


def _is_owed(mount: mounts.Mount, item: Item) -> bool:
    return any(one.file == item.file for one in owed.of_mount(mount, [item.name]).items)
