"""What can be known before the network is asked: this machine and the mountpoint."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import click

from f7tfs.cli import mounts
from f7tfs.cli.exits import Exit, Failure


def check_machine() -> None:
    """Failure when this machine cannot mount anything."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise Failure(
            Exit.NO_FUSE, "there is no /dev/fuse (kernel module not loaded: modprobe fuse)"
        ) from None
    except OSError as error:
        hint = ""
        if error.errno in {errno.EPERM, errno.EACCES, errno.ENODEV, errno.ENXIO}:
            hint = "; a container needs --device /dev/fuse and the right to mount"
        raise Failure(
            Exit.NO_FUSE, f"/dev/fuse cannot be opened ({error.strerror}){hint}"
        ) from None
    if shutil.which("fusermount3") is None:
        raise Failure(
            Exit.NO_FUSERMOUNT, "fusermount3 is not installed (Debian: apt install fuse3)"
        )


def check_allow_other(path: Path = Path("/etc/fuse.conf")) -> None:
    """Failure when allow_other was asked for and the administrator did not permit it."""
    if os.geteuid() == 0:
        return
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" not in (line.strip() for line in lines):
        raise Failure(Exit.CONFIGURATION, f"allow_other: {path} does not hold user_allow_other")


def check_mountpoint(mountpoint: str, subtypes: frozenset[str]) -> None:
    """Failure unless `mountpoint` is a directory that nothing is mounted on.

    A mount of ours (one of `subtypes`) whose daemon is gone is unmounted first, with one line.
    """
    while (mount := mounts.mount_at(mountpoint)) is not None:
        if not _is_dead(mount, subtypes):
            raise Failure(
                Exit.MOUNTPOINT,
                f"{mountpoint} is busy: {mount.source} ({mount.kind}) is mounted there",
            )
        complaint = mounts.fusermount(mountpoint, lazily=True)
        if complaint and mounts.mount_at(mountpoint) is not None:
            raise Failure(Exit.MOUNTPOINT, f"{mountpoint} holds a dead mount: {complaint}")
        click.echo(f"f7tfs: removed the dead mount of {mount.source} from {mountpoint}", err=True)
    try:
        mode = os.stat(mountpoint)
    except FileNotFoundError:
        raise Failure(
            Exit.MOUNTPOINT, f"the mountpoint {mountpoint} does not exist (mkdir it first)"
        ) from None
    except OSError as error:
        raise Failure(Exit.MOUNTPOINT, f"the mountpoint {mountpoint}: {error.strerror}") from None
    if not os.path.isdir(mountpoint):
        raise Failure(Exit.MOUNTPOINT, f"the mountpoint {mountpoint} is not a directory")
    if os.geteuid() != 0 and (mode.st_uid != os.geteuid() or not os.access(mountpoint, os.W_OK)):
        raise Failure(Exit.MOUNTPOINT, f"the mountpoint {mountpoint} must be yours and writable")


def _is_dead(mount: mounts.Mount, subtypes: frozenset[str]) -> bool:
    if not mount.looks_ours or mount.kind.partition(".")[2] not in subtypes:
        return False
    try:
        mounts.read_status(mount)
    except mounts.Dead:
        return True
    except (mounts.Silent, mounts.NotOurs):
        pass
    return False
