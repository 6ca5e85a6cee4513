"""What one call of `ls` tells.

A recursive listing is taken apart into the listings of its directories here, so that nothing above
has to know how a listing came.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import msgspec

from f7tfs.model import (
    Attributes,
    Identity,
    Kind,
    Listed,
    RemotePath,
    Stat,
    join,
)
from f7tfs.zone import ClusterZone

log = logging.getLogger("f7tfs.catalog")
HIDDEN_PREFIX = ".f7tfs-"  # names of our own making on the cluster
JOB_LOG = ".f7t_file_handling_job_"  # how v2's transfer jobs name their logs (v2 FACTS §7)


class Listing:
    """The entries of one directory, and when they were asked for (trio time)."""

    def __init__(self, entries: dict[str, Attributes], asked: float) -> None:
        self.entries = entries
        self.asked = asked
        self.raw: dict[str, int] = {}  # name → wall clock of its mtime, for learning the zone
        self.is_of_tree = False  # it came by a recursive listing
        self.is_made_here = False  # nobody was asked: this mount has just made the directory
        self.unproven: set[str] = set()  # names whose escapes may be literal: `Listed.ambiguous`

    def change(self, name: str, attributes: Attributes | None) -> None:
        self.raw.pop(name, None)
        self.unproven.discard(name)
        if attributes is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = attributes

    def keep_details(self, before: Listing) -> None:
        """What a stat told (inode, ctime, owner ids) stays true while size and time are equal."""
        for name, attributes in self.entries.items():
            known = before.entries.get(name)
            if (
                known is not None
                and known.ino is not None
                and attributes.ino is None
                and (known.size, known.mtime, known.kind)
                == (attributes.size, attributes.mtime, attributes.kind)
                and attributes.permissions == known.permissions
            ):
                self.unproven.discard(name)
                self.entries[name] = msgspec.structs.replace(
                    known, has_acl=attributes.has_acl, target=attributes.target
                )


def listing_of(
    directory: RemotePath,
    listed: Sequence[Listed],
    asked: float,
    identity: Identity,
    zone: ClusterZone,
) -> Listing:
    """Without names of our own making."""
    listing = Listing({}, asked)
    for one in listed:
        if one.name in listing.entries:
            # A literal backslash beside the escape that reads like it (v1 FACTS §4).
            log.warning("two names in %s read as %r; one is hidden", directory, one.name)
        elif not is_hidden(one.name) and not _is_mark(one):
            listing.entries[one.name] = _attributes_of_listed(one, identity, zone)
            listing.raw[one.name] = one.local_mtime
            if one.ambiguous:
                listing.unproven.add(one.name)
    return listing


def directories_of(
    root: RemotePath, tree: Sequence[tuple[str, Listed]]
) -> Iterator[tuple[RemotePath, list[Listed]]]:
    """The directories of a recursive listing, in the order in which they are walked.

    Only those to which the listing itself leads, through entries that are directories: nothing
    leaves the root, no symlink is followed. Nothing below a name that is ambiguous: it may be
    another one's, and a single listing of the name tells.
    """
    inside: dict[str, list[Listed]] = {}
    for relative, one in tree:
        inside.setdefault(relative, []).append(one)
    doubtful = {_below(relative, one.name) for relative, one in tree if one.ambiguous}
    pending, reached = [""], set[str]()
    found: list[str] = []
    while pending:
        relative = pending.pop()
        if relative in reached:
            continue
        reached.add(relative)
        found.append(relative)
        for one in reversed(inside.get(relative, ())):
            path = _below(relative, one.name)
            if one.kind is Kind.DIRECTORY and path not in doubtful and not is_hidden(one.name):
                pending.append(path)
    # Entries of a directory that nothing leads to: it has two spellings (v1 quotes the headings of
    # a recursive listing differently from its lines), and what looks empty may be just that one.
    is_whole = inside.keys() <= reached
    for relative in found:
        if relative in inside or is_whole:
            path = join(root, relative) if relative else root
            yield path, inside.get(relative, [])


def _below(relative: str, name: str) -> str:
    return f"{relative}/{name}" if relative else name


def attributes_of(stat: Stat, *, target: str | None = None) -> Attributes:
    return Attributes(
        kind=stat.kind,
        permissions=stat.mode & 0o7777,
        size=stat.size,
        mtime=stat.mtime,
        uid=stat.uid,
        gid=stat.gid,
        target=target,
        ino=stat.ino,
        dev=stat.dev,
        nlink=stat.nlink,
        ctime=stat.ctime,
    )


def _attributes_of_listed(one: Listed, identity: Identity, zone: ClusterZone) -> Attributes:
    return Attributes(
        kind=one.kind,
        permissions=one.permissions,
        size=one.size,
        mtime=zone.epoch(one.local_mtime),
        uid=_number(one.user, {identity.user: identity.uid}),
        gid=_number(one.group, identity.groups),
        user=one.user,
        group=one.group,
        target=one.target,
        has_acl=one.has_acl,
    )


def _number(text: str, known: dict[str, int]) -> int | None:
    return int(text) if text.isdigit() else known.get(text)


def is_hidden(name: str) -> bool:
    """Names of our own making, and the logs that v2's transfer jobs leave in the home directory."""
    return name.startswith((HIDDEN_PREFIX, JOB_LOG))


def _is_mark(one: Listed) -> bool:
    """The symlink that stands where a directory was removed, until it is removed itself."""
    return one.target is not None and one.target.startswith(f"{HIDDEN_PREFIX}removed-")
