"""How remote files look here: whose they seem to be, and when they seem to have changed."""

from __future__ import annotations

import os
import posixpath

from f7tfs.content.spool import SpoolEntry
from f7tfs.content.times import Times
from f7tfs.model import Attributes, Identity, Kind, RemotePath, is_within
from f7tfs.tree.wing import Look

OUTSIDE = ".f7tfs/outside"  # where symlinks that leave the mount lead: nothing can be opened there
NOBODY = 65534
# A directory that is gone on the cluster while files for it are still in the spool: they stay
# readable under their names.
GHOST = Attributes(kind=Kind.DIRECTORY, permissions=0o755, size=0, mtime=0)


class Looks:
    """Entries of the remote user show the local uid and gid; others keep their numeric ids."""

    def __init__(self, identity: Identity, times: Times, root: RemotePath) -> None:
        self._below = len(root.rstrip("/")) + 1
        self._identity = identity
        self._times = times
        self.uid, self.gid = os.getuid(), os.getgid()

    def of(self, path: RemotePath, attributes: Attributes) -> Look:
        """What is on the cluster, with the times of the overlay."""
        me = self._identity
        mine = attributes.uid == me.uid or attributes.user == me.user
        same_group = attributes.gid == me.gid or attributes.group == me.group
        return Look(
            kind=attributes.kind,
            permissions=attributes.permissions,
            size=attributes.size,
            mtime_ns=self._times.mtime_ns(path, attributes.fingerprint),
            uid=self.uid if mine else _number(attributes.uid),
            gid=self.gid if same_group else _number(attributes.gid),
            nlink=attributes.nlink or (2 if attributes.is_directory else 1),
            version=(attributes.size, attributes.mtime),
        )

    def of_entry(self, entry: SpoolEntry) -> Look:
        """A dirty file."""
        return Look(
            kind=Kind.FILE,
            permissions=entry.permissions,
            size=entry.size,
            mtime_ns=entry.mtime_ns,
            uid=self.uid,
            gid=self.gid,
            nlink=len(entry.names),
            version=(entry.id, entry.version),
            first_name=entry.path[self._below :] if entry.links else "",
        )


def _number(ident: int | None) -> int:
    return NOBODY if ident is None else ident


def shown_target(target: str, path: RemotePath, root: RemotePath) -> str:
    """What readlink(2) of a symlink on the cluster answers here (docs/decisions/0004)."""
    here = posixpath.dirname(path)
    whole = posixpath.normpath(posixpath.join(here, target))
    if is_within(whole, root):
        return posixpath.relpath(whole, here) if target.startswith("/") else target
    # On this machine the name would mean a local file. It is shown, and leads nowhere.
    return posixpath.relpath(f"{root}/{OUTSIDE}{whole}", here)
