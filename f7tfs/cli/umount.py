"""`f7tfs umount`: the end of a mount, when everything is where it belongs."""

from __future__ import annotations

import os
import time

import click

from f7tfs.cli import mounts, waiting
from f7tfs.cli.completion import MOUNTPOINT
from f7tfs.cli.exits import Exit, Failure
from f7tfs.cli.words import plural

_END = 120.0  # seconds for the daemon to end after the unmount


@click.command("umount")
@click.argument("mountpoint", type=MOUNTPOINT)
@click.option("--now", is_flag=True, help="Do not wait: pending uploads stay in the journal.")
def command(mountpoint: str, now: bool) -> None:
    """Wait until everything is on the cluster, then unmount MOUNTPOINT.

    Refused while a program uses the mount, and when an upload is stuck. Ctrl-C leaves it mounted.
    """
    place = mounts.resolve(mountpoint)
    os.chdir("/")  # or we would keep it busy ourselves
    mount = mounts.mount_at(place)
    if mount is None or not mount.looks_ours:
        raise Failure(Exit.NOT_F7TFS, f"{place} is not an f7tfs mount")
    status: mounts.Status = {}
    try:
        status = mounts.read_status(mount)
    except mounts.Dead:
        _unmount_dead(mount)
        return
    except mounts.Silent:
        if not now:
            raise Failure(
                Exit.UNSPECIFIED,
                f"the daemon of {place} does not answer; f7tfs umount --now {place} unmounts "
                "without asking it",
            ) from None
    except mounts.NotOurs:
        raise Failure(Exit.NOT_F7TFS, f"{place} is not an f7tfs mount") from None

    daemon = mounts.Process((status.get("mount") or {}).get("pid"))
    if not now:
        _require_unused(place)  # or the waiting would be for nothing
        way_out = f"f7tfs umount --now {place} leaves them in the journal"
        waiting.wait_for_uploads(mount, way_out=way_out)
    _unmount(mount)
    if now and (left := mounts.left_in(status)):
        stay = "stays" if left == 1 else "stay"
        click.echo(
            f"f7tfs: {plural(left, 'file')} {stay} in the journal until the next mount "
            "(see: f7tfs uploads list)",
            err=True,
        )
    if not daemon.gone_within(_END):
        raise Failure(
            Exit.UNSPECIFIED, f"{place} is unmounted, but its daemon ({daemon.pid}) still runs"
        )


def _require_unused(place: str) -> None:
    """A moment of patience: indexers and file managers look at a mount and leave again."""
    for pause in (0.2, 0.5, 1.0, None):
        users = mounts.users_of(place)
        if not users:
            return
        if pause is None:
            raise Failure(Exit.MOUNTPOINT, f"{place} is busy: still used by {', '.join(users)}")
        time.sleep(pause)


def _unmount_dead(mount: mounts.Mount) -> None:
    complaint = mounts.fusermount(mount.mountpoint, lazily=True)
    if complaint:
        raise Failure(Exit.UNSPECIFIED, complaint)
    click.echo(
        f"f7tfs: the daemon of {mount.mountpoint} was gone; what it had not uploaded waits in the "
        "journal for the next mount",
        err=True,
    )


def _unmount(mount: mounts.Mount) -> None:
    """With the same patience."""
    for pause in (0.2, 0.5, 1.0, None):
        complaint = mounts.fusermount(mount.mountpoint)
        if not complaint or mounts.mount_at(mount.mountpoint) is None:
            return
        if "busy" not in complaint.lower():
            raise Failure(Exit.UNSPECIFIED, complaint)
        if pause is not None:
            time.sleep(pause)
    users = ", ".join(mounts.users_of(mount.mountpoint)) or "another program"
    raise Failure(Exit.MOUNTPOINT, f"{mount.mountpoint} is busy: still used by {users}")
