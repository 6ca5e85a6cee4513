"""The way to the file systems that a server announces, for the mount of a whole system.

The directories that lead to them are shown without asking: the cluster may not even let us.
"""

from __future__ import annotations

import time

from f7tfs.model import Attributes, Kind, RemotePath, is_within, parent_of


class Waypoints:
    """`anchors`: the paths of the file systems; one inside another counts as a part of it."""

    def __init__(self, anchors: tuple[RemotePath, ...]) -> None:
        self._anchors = frozenset(
            one for one in anchors if not any(one != a and is_within(one, a) for a in anchors)
        )
        self._on_the_way = _ways_to(self._anchors)
        self._signpost = Attributes(
            kind=Kind.DIRECTORY,
            permissions=0o555,
            size=0,
            mtime=int(time.time()),
            user="",
            group="",
        )

    def __contains__(self, directory: object) -> bool:
        """Whether it only leads to a file system."""
        return directory in self._on_the_way

    def is_anchor(self, path: RemotePath) -> bool:
        return path in self._anchors

    def below(self, directory: RemotePath) -> list[RemotePath]:
        """What a directory on the way leads to next."""
        known = sorted(self._on_the_way | self._anchors)
        return [path for path in known if path != "/" and parent_of(path) == directory]

    def signpost(self) -> Attributes:
        """A directory of nobody, where nobody may write."""
        return self._signpost


def _ways_to(anchors: frozenset[RemotePath]) -> frozenset[RemotePath]:
    """The directories above, without the anchors themselves."""
    found: set[RemotePath] = set()
    for path in anchors:
        while path != "/":
            path = parent_of(path)
            found.add(path)
    return frozenset(found)
