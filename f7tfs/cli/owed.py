"""What is not on the cluster yet: of the mounts that run, and of journals that no mount serves.

A running mount tells it in `.f7tfs/status.json`; a journal without one is read from the disk. The
bytes are in the spool either way, so that they can be had when no daemon answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from f7tfs.cli import mounts
from f7tfs.cli.waiting import is_below

if TYPE_CHECKING:
    from f7tfs.content.salvage import Found

# In the order in which they are shown: what needs a person first.
STATES = (
    "stuck", "unclosed", "nameless", "script", "uploading", "pending", "held", "dirty", "removal",
)  # fmt: skip
_NEVER_CLOSED = "it was written and never closed; its name is not known"
_NAMELESS = "the journal does not tell its name"


@dataclasses.dataclass(frozen=True)
class Item:
    """One file. `name` is below the mount; times are epoch seconds. `file` holds its bytes, None
    for what has none (removals); `permissions` and `modified` are those of the file."""

    name: str
    state: str
    size: int
    since: float
    file: Path | None
    modified: float = 0.0
    permissions: int = 0o600
    sent: int = 0
    error: str | None = None
    attempts: int = 0
    next_try: float | None = None
    open: bool = False
    unwritten: bool = False
    junk: bool = False
    in_place: bool = False
    base: tuple[int, int] | None = None  # size and mtime of the cluster's version
    awaited_by: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "file": str(self.file) if self.file else None}


@dataclasses.dataclass
class Source:
    """One mount, or one journal that is not mounted. `trouble`: why more is not known."""

    remote: str  # SYSTEM:/PATH, or the directory where even that is not known
    mountpoint: str | None
    journal: Path | None
    items: list[Item]
    trouble: str = ""
    mount: mounts.Mount | None = None

    @property
    def name(self) -> str:
        return self.mountpoint or self.remote

    def as_json(self) -> dict[str, Any]:
        return {
            "remote": self.remote,
            "mountpoint": self.mountpoint,
            "journal": str(self.journal) if self.journal else None,
            "trouble": self.trouble,
            "uploads": [item.as_json() for item in self.items],
        }


def sorted_items(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda one: (STATES.index(one.state), one.since, one.name))


# Of a running mount.


def of_mount(mount: mounts.Mount, names: Iterable[str] = ("",)) -> Source:
    """What is at and below `names` (below the mount). Failure when the daemon does not answer."""
    return _of_status(mount, mounts.status_of(mount), tuple(names))


def _of_status(mount: mounts.Mount, status: mounts.Status, names: tuple[str, ...]) -> Source:
    about = status.get("mount") or {}
    journal = Path(about["journal"]) if about.get("journal") else None
    uploads = [
        _of_upload(one, journal)
        for one in mounts.uploads_of(status).get("items") or []
        if is_below(one.get("name"), names)
    ]
    removals = [
        Item(str(one.get("name")), "removal", 0, 0.0, None)
        for one in (status.get("removals") or {}).get("items") or []
        if is_below(one.get("name"), names)
    ]
    offline = status.get("offline")
    trouble = f"offline: {offline.get('reason')}" if isinstance(offline, dict) else ""
    items = sorted_items([*uploads, *removals])
    return Source(mount.source, mount.mountpoint, journal, items, trouble, mount)


def _of_upload(one: dict[str, Any], journal: Path | None) -> Item:
    file = None
    if journal is not None:
        file = journal / "spool" / str(one.get("id"))
        if not file.exists():
            file = file.with_name(f"{file.name}.open")
    base = one.get("base")
    return Item(
        name=str(one.get("name") or one.get("path")),
        state=str(one.get("state")) if one.get("state") in STATES else "pending",
        size=int(one.get("size") or 0),
        since=float(one.get("since") or 0),
        file=file,
        modified=float(one.get("modified") or 0),
        permissions=int(one.get("permissions") or 0o600),
        sent=int(one.get("sent") or 0),
        error=one.get("error"),
        attempts=int(one.get("attempts") or 0),
        next_try=one.get("next_try"),
        open=bool(one.get("open")),
        unwritten=bool(one.get("unwritten")),
        junk=bool(one.get("junk")),
        in_place=bool(one.get("in_place")),
        base=(base[0], base[1]) if base else None,
        awaited_by=tuple(one.get("awaited_by") or ()),
    )


# Of journals on the disk.


def everywhere(state_directories: Iterable[Path]) -> Iterator[Source]:
    """Every mount that answers, then every journal with something in it that none of them serves,
    those set aside and files that were never closed too."""
    served: set[Path] = set()
    roots = {path.resolve() for path in state_directories}
    for mount, said in mounts.our_mounts():
        if isinstance(said, dict):
            source = _of_status(mount, said, ("",))
            if source.journal is not None:
                served.add(source.journal)
                roots.add(source.journal.parent.parent)
            yield source
        else:
            trouble = "its daemon is gone" if isinstance(said, mounts.Dead) else "no answer"
            yield Source(mount.source, mount.mountpoint, None, [], trouble)
    yield from journals(roots, served)


def journals(roots: Iterable[Path], served: Iterable[Path] = ()) -> Iterator[Source]:
    """Journals below state directories. Of those that are `served` only what the daemon does not
    speak of: files that were never closed."""
    from f7tfs.content import salvage

    known = set(served)
    for root in sorted(roots):
        for directory in salvage.places(root):
            source = of_directory(directory, is_served=directory in known)
            if source.items or (source.trouble and directory not in known):
                yield source


def of_directory(directory: Path, *, is_served: bool = False) -> Source:
    """One journal on the disk."""
    from f7tfs.content import salvage

    try:
        found = salvage.read(directory)
    except OSError as error:
        return Source(str(directory), None, directory, [], f"not readable: {error.strerror}")
    items = [] if is_served else list(_of_records(found))
    items += [_of_file(file, "unclosed", _NEVER_CLOSED) for file in found.unclosed]
    items += [] if is_served else [_of_file(file, "nameless", _NAMELESS) for file in found.nameless]
    remote = f"{found.key[1]}:{found.key[3]}" if found.key else str(directory)
    notes = []
    if not is_served and found.is_held:
        notes.append("a daemon holds it that serves no mount, or does not answer")
    if directory.match(salvage.SET_ASIDE):
        notes.append("it was set aside")
    if found.damage:
        notes.append(found.damage)
    return Source(remote, None, directory, sorted_items(items), "; ".join(notes))


def _of_records(found: Found) -> Iterator[Item]:
    from f7tfs.tree.temporaries import is_junk

    root = found.key[3].rstrip("/") if found.key else ""
    for one in found.uploads:
        name = one.path.removeprefix(f"{root}/") if root else one.path.lstrip("/")
        file = found.file_of(one.id)
        size = file.stat().st_size if file.exists() else 0
        state = "stuck" if one.stuck else "held" if one.held else "pending"
        yield Item(
            name=name,
            state=state,
            size=size,
            since=one.created,
            file=file,
            modified=one.mtime_ns / 1e9,
            permissions=one.permissions,
            error=one.stuck if file.exists() else "its bytes are missing in the spool",
            junk=one.held and is_junk(name.rpartition("/")[2]),
            base=(one.base.size, one.base.mtime) if one.base else None,
        )
    for script in found.scripts:
        file = found.file_of(f"{script.id}.script")
        if file.exists():
            yield Item(
                name=f"jobs/{script.name}",
                state="script",
                size=file.stat().st_size,
                since=script.created,
                file=file,
                modified=script.created,
                permissions=0o700,
                error=f"{script.state}{f': {script.error}' if script.error else ''}",
            )


def _of_file(file: Path, state: str, note: str) -> Item:
    status = file.stat()
    return Item(
        name=f"{state}/{file.name.removesuffix('.open')}",
        state=state,
        size=status.st_size,
        since=status.st_mtime,
        file=file,
        modified=status.st_mtime,
        error=note,
    )
