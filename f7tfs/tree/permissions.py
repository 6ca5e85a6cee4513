"""What the remote user may do, computed from mode, ids and groups, so that it fails early.

The kernel is not asked to check (`default_permissions`): it knows the local user's groups, not
the remote user's. An ACL can say anything, so a file that has one is tried.
"""

from __future__ import annotations

from f7tfs.errors import PermissionDenied
from f7tfs.model import Attributes, Identity

READ, WRITE, SEARCH = 4, 2, 1


def permits(identity: Identity, attributes: Attributes, want: int) -> bool:
    """`want` is a sum of READ, WRITE, SEARCH."""
    if attributes.has_acl or identity.uid == 0:
        return True
    if attributes.uid is None and attributes.user is None:
        return True
    if identity.uid == attributes.uid or identity.user == attributes.user:
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
