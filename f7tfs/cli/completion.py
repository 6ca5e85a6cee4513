"""What the shell completes beyond options."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import CompletionItem

from f7tfs.cli import mounts


class _Mountpoint(click.Path):
    """A path; completes to the f7tfs mounts, found without asking their daemons."""

    name = "mountpoint"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Without the stat(2) of click's own: a daemon that hangs would take us along, and no
        signal ends that."""
        return os.fsdecode(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        places = [mount.mountpoint for mount in mounts.all_mounts() if mount.looks_ours]
        found = [CompletionItem(place) for place in places if place.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="dir")]


class _Mounted(_Mountpoint):
    """A path in a mount: mountpoints first, then what is below them."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found = super().shell_complete(ctx, param, incomplete)
        ours = [item for item in found if item.type == "plain" and item.value != incomplete]
        return ours or [CompletionItem(incomplete, type="file")]


MOUNTPOINT = _Mountpoint()
MOUNTED = _Mounted()
