"""What of the cluster a mount shows: one directory of it, or all file systems of the system."""

from __future__ import annotations

import logging

import msgspec

from f7tfs.api.port import Cluster, FileSystem
from f7tfs.config import Config
from f7tfs.errors import (
    NameNotSupported,
    NotADirectory,
    NotFound,
    NotPermitted,
    OutcomeUnknown,
    PermissionDenied,
    ServerError,
)
from f7tfs.model import Kind, RemotePath, Stat, join, remote_path

log = logging.getLogger("f7tfs.mount")


class View(msgspec.Struct, frozen=True):
    """What a mount shows. `root`: the remote path of its root. `anchors`: of a whole system, the
    file systems that the server announces. `home`: where jobs work and our own directory is made;
    `owner` is the one of it, None where that is not known."""

    root: RemotePath
    home: RemotePath
    owner: Stat | None
    anchors: tuple[RemotePath, ...] = ()


async def look_around(config: Config, cluster: Cluster, user: str) -> View:
    """Raises NotFound and NotADirectory where there is nothing to show."""
    root = remote_path(config.remote_path)
    if not config.whole_system:
        stat = await cluster.stat(root, follow=True)
        if stat.kind is not Kind.DIRECTORY:
            raise NotADirectory(f"{config.system}:{root} is not a directory")
        return View(root, root, stat)
    found = await cluster.file_systems()
    if not found:
        raise NotFound(
            f"the server announces no file systems of {config.system}; say {config.system}:/PATH"
        )
    home, owner = await _home(cluster, found, user)
    return View(root, home, owner, tuple(one.path for one in found))


async def _home(
    cluster: Cluster, found: list[FileSystem], user: str
) -> tuple[RemotePath, Stat | None]:
    """The user's own directory in the first file system that has one, the default one before the
    others; else that file system itself."""
    found = sorted(found, key=lambda one: not one.default_work_directory)
    for one in found:
        try:
            stat = await cluster.stat(join(one.path, user), follow=True)
        except (
            NotFound, NotADirectory, PermissionDenied, NotPermitted, NameNotSupported,
            OutcomeUnknown, ServerError,
        ) as error:  # fmt: skip
            log.info("no directory of %s in %s: %s", user, one.path, error)
            continue
        if stat.kind is Kind.DIRECTORY:
            return join(one.path, user), stat
    return found[0].path, None
