"""What the remote user may do, computed from mode, ids and groups, so that it fails early.

The kernel is not asked to check (`default_permissions`): it knows the local user's groups, not
the remote user's. An ACL can say anything, so a file that has one is tried.
"""

from __future__ import annotations

import os

from f7tfs.errors import IsADirectory, NotPermitted, PermissionDenied
from f7tfs.model import Attributes, Identity, Kind

READ, WRITE, SEARCH = 4, 2, 1


STICKY = 0o1000


def is_owner(identity: Identity, attributes: Attributes) -> bool:
    """Also of what nobody knows the owner of, and for root."""
    if identity.uid == 0 or (attributes.uid is None and attributes.user is None):
        return True
    return identity.uid == attributes.uid or identity.user == attributes.user


def permits(identity: Identity, attributes: Attributes, want: int) -> bool:
    """`want` is a sum of READ, WRITE, SEARCH."""
    if attributes.has_acl or identity.uid == 0:
        return True
    if attributes.uid is None and attributes.user is None:
        return True
    if is_owner(identity, attributes):
        granted = attributes.permissions >> 6
    elif attributes.gid in identity.groups.values() or attributes.group in identity.groups:
        granted = attributes.permissions >> 3
    else:
        granted = attributes.permissions
    return granted & want == want


def require(identity: Identity, attributes: Attributes, want: int, what: str) -> None:
    if not permits(identity, attributes, want):
        letters = "".join(letter for bit, letter in ((4, "r"), (2, "w"), (1, "x")) if want & bit)
        raise PermissionDenied(f"{what}: the remote user {identity.user} has no {letters} on it")


def require_owner(identity: Identity, attributes: Attributes, what: str) -> None:
    """chmod(2) is the owner's. Raises NotPermitted."""
    if not is_owner(identity, attributes):
        raise NotPermitted(f"{what} belongs to somebody else")


def require_removable(
    identity: Identity, directory: Attributes, there: Attributes | None, what: str
) -> None:
    """In a directory with the sticky bit (/tmp) a name may be taken away, or replaced, only by the
    owner of what has it, or of the directory. Raises NotPermitted, as unlink(2) says EPERM."""
    if there is None or not directory.permissions & STICKY:
        return
    if not is_owner(identity, there) and not is_owner(identity, directory):
        raise NotPermitted(f"{what} belongs to somebody else, as does its sticky directory")


def require_openable(identity: Identity, attributes: Attributes, flags: int, what: str) -> None:
    """Raises IsADirectory, NotPermitted for what is no regular file, PermissionDenied."""
    if attributes.is_directory:
        raise IsADirectory(what)
    if attributes.kind is not Kind.FILE:
        raise NotPermitted(f"{what} is not a regular file")
    accmode = flags & os.O_ACCMODE
    want = {os.O_RDONLY: READ, os.O_WRONLY: WRITE}.get(accmode, READ | WRITE)
    require(identity, attributes, want, what)
