"""`f7tfs fetch`: bring files into the cache before they are needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import click

from f7tfs.cli import mounts, waiting
from f7tfs.cli.completion import MOUNTED
from f7tfs.cli.exits import Exit, Failure


@click.command("fetch")
@click.argument("paths", type=MOUNTED, nargs=-1, required=True, metavar="PATH...")
def command(paths: tuple[str, ...]) -> None:
    """Bring files, and all files below directories, into the local cache.

    Also those above stage_limit. What is cached already costs nothing.
    """
    failed = 0
    for path in paths:
        mount = mounts.holding(path)
        for file in _files(mounts.resolve(path)):
            problem = _fetch(mount, file)
            if problem:
                click.echo(f"f7tfs: {file}: {problem}", err=True)
                failed += 1
    if failed:
        raise Failure(Exit.UNSPECIFIED, f"{waiting.plural(failed, 'file')} could not be fetched")


def _files(path: str) -> Iterator[str]:
    """The regular files at or below `path`, found by a child, which a signal can end."""
    finder = subprocess.Popen(
        ["find", path, "-name", ".f7tfs", "-prune", "-o", "-type", "f", "-print0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    assert finder.stdout is not None
    with finder.stdout as stream:
        rest = b""
        while chunk := os.read(stream.fileno(), 65536):
            *whole, rest = (rest + chunk).split(b"\0")
            yield from map(os.fsdecode, whole)
    if finder.wait() != 0:
        raise Failure(Exit.UNSPECIFIED, f"not everything of {path} could be found")


def _fetch(mount: mounts.Mount, file: str) -> str:
    """What went wrong, in words; "" if nothing."""
    name = os.path.relpath(file, mount.mountpoint)

    def transfer(status: mounts.Status) -> tuple[int, int]:
        for one in status.get("transfers") or []:
            if str(one.get("path", "")).endswith("/" + name):
                return int(one.get("done") or 0), int(one.get("size") or 0)
        return 0, 0

    def describe(status: mounts.Status) -> str:
        done, size = transfer(status)
        amount = f" ({waiting.human(done)} of {waiting.human(size)})" if size else ""
        return f"fetching {name}{amount}"

    with waiting.teller(mount, describe, transfer) as tick:
        error = mounts.pull(mount, "fetch", name, tick)
    if not error:
        return ""
    return os.strerror(error) if error > 0 else f"ended by signal {-error}"
