"""Random operations against a model: whatever a mount is asked for, through remounts and kill -9,
it shows what an ordinary file system would show, and in the end the cluster holds the same.

A short run in the suite; F7TFS_MODEL_STEPS=500 F7TFS_MODEL_SEED=7 for a longer or a chosen one.
`scripts/endure model` plays a hundred thousand.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, tree_door
from doors import Door, Handle, MountDoor, _MountHandle
from farside import SimFarSide
from mounting import Mount

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(600)]
STEPS = int(os.environ.get("F7TFS_MODEL_STEPS", "120"))
SEED = int(os.environ.get("F7TFS_MODEL_SEED", "0"))
NAMES = ["a", "b", "c", "long name ü", ".hidden", "x~"]
HANDLES = 4


class File:
    """An inode: names and open handles share it."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.mode = 0o644
        self.mtime_ns: int | None = None  # None: now, or whatever it was when nobody looked

    def write(self, data: bytes, offset: int) -> None:
        if data:
            self.content.extend(bytes(max(0, offset - len(self.content))))
            self.content[offset : offset + len(data)] = data
            self.mtime_ns = None

    def truncate(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        self.mtime_ns = None


class Open:
    """A handle of the real thing, and what the model has behind it."""

    def __init__(self, handle: Handle, file: File, flags: int) -> None:
        self.handle, self.file = handle, file
        self.appends = bool(flags & os.O_APPEND)
        self.writes = flags & os.O_ACCMODE != os.O_RDONLY
        self.reads = flags & os.O_ACCMODE != os.O_WRONLY


class Model:
    """Files by path, directories a set of paths; "" is the root."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.directories: set[str] = {""}

    def children(self, path: str) -> set[str]:
        prefix = f"{path}/" if path else ""
        return {
            one[len(prefix) :]
            for one in (*self.files, *self.directories)
            if one and one.startswith(prefix) and "/" not in one[len(prefix) :]
        }

    def below(self, path: str) -> list[str]:
        return [one for one in (*self.files, *self.directories) if one.startswith(f"{path}/")]

    def rename(self, source: str, target: str) -> int:
        """0 or the errno of rename(2)."""
        if source not in self.files and source not in self.directories:
            return errno.ENOENT
        if source == target:
            return 0
        if target.startswith(f"{source}/"):
            return errno.EINVAL
        if source in self.files:
            if target in self.directories:
                return errno.EISDIR
            self.files[target] = self.files.pop(source)
            return 0
        if target in self.files:
            return errno.ENOTDIR
        if target in self.directories and self.children(target):
            return errno.ENOTEMPTY
        if source.startswith(f"{target}/"):
            return errno.ENOTEMPTY
        for one in [source, *self.below(source)]:
            new = target + one[len(source) :]
            if one in self.directories:
                self.directories.discard(one)
                self.directories.add(new)
            else:
                self.files[new] = self.files.pop(one)
        return 0


class Player:
    """`far`: where somebody else changes files, None if nobody does."""

    def __init__(self, door: Door, chance: random.Random, far: Any = None) -> None:
        self.door = door
        self.chance = chance
        self.far = far
        self.model = Model()
        self.history: list[str] = []
        self.opened: list[Open] = []
        self.done: dict[str, int] = {}  # how often each operation was played

    # Choosing.

    def directory(self) -> str:
        return self.chance.choice(sorted(self.model.directories))

    def path(self) -> str:
        """Some name, there or not."""
        known = sorted({*self.model.files, *self.model.directories} - {""})
        if known and self.chance.random() < 0.6:
            return self.chance.choice(known)
        parent = self.directory()
        name = self.chance.choice(NAMES)
        return f"{parent}/{name}" if parent and parent.count("/") < 3 else name

    def file(self) -> str | None:
        return self.chance.choice(sorted(self.model.files)) if self.model.files else None

    def content(self) -> bytes:
        size = self.chance.choice([0, 1, 10, 1000, 5000, 70_000])
        return self.chance.randbytes(size)

    # Doing the same to both.

    def agree(self, what: str, expected: int, action: Callable[..., Any], *words: Any) -> bool:
        """The real thing succeeds (0) or fails with just this errno; True if it succeeded."""
        self.history.append(f"{what} → {errno.errorcode.get(expected, 'ok')}")
        del self.history[:-60]
        try:
            action(*words)
        except OSError as error:
            assert error.errno == expected, (
                f"{what}: {errno.errorcode.get(error.errno or 0)} ({error}) instead of "
                f"{errno.errorcode.get(expected, 'ok')}{self.story()}"
            )
            return False
        assert expected == 0, (
            f"{what} succeeded instead of {errno.errorcode[expected]}{self.story()}"
        )
        return True

    def story(self) -> str:
        return "\n  after:\n    " + "\n    ".join(self.history[-40:])

    def parent_error(self, path: str) -> int:
        """ENOENT or ENOTDIR if the directory of a path is not one."""
        parts = path.split("/")[:-1]
        for index in range(len(parts)):
            place = "/".join(parts[: index + 1])
            if place in self.model.files:
                return errno.ENOTDIR
            if place not in self.model.directories:
                return errno.ENOENT
        return 0

    def write(self) -> None:
        path, content = self.path(), self.content()
        error = self.parent_error(path) or (errno.EISDIR if path in self.model.directories else 0)
        if self.agree(f"write {path!r} {len(content)}", error, self.door.write, path, content):
            file = self.model.files.setdefault(path, File())
            file.truncate(0)
            file.write(content, 0)

    def append(self) -> None:
        path, content = self.path(), self.content() or b"x"  # the kernel passes on no empty write
        error = self.parent_error(path) or (errno.EISDIR if path in self.model.directories else 0)
        if self.agree(f"append {path!r} {len(content)}", error, self.door.append, path, content):
            file = self.model.files.setdefault(path, File())
            file.write(content, len(file.content))

    def patch(self) -> None:
        path = self.file()
        if path is None:
            return
        offset, data = self.chance.randrange(20_000), self.chance.randbytes(300)
        file = self.model.files[path]

        def work() -> None:
            with self.door.open(path, os.O_RDWR) as handle:
                assert handle.read(64, 0) == bytes(file.content[:64])
                handle.write(data, offset)

        self.agree(f"patch {path!r} at {offset}", 0, work)
        file.write(data, offset)

    def map(self) -> None:
        """A shared mapping; through the tree alone it is what the kernel makes of it."""
        path = self.file()
        if path is None or not self.model.files[path].content:
            return
        file = self.model.files[path]
        offset = self.chance.randrange(len(file.content))
        data = self.chance.randbytes(min(200, len(file.content) - offset))

        def work() -> None:
            with self.door.open(path, os.O_RDWR) as handle:
                if not isinstance(handle, _MountHandle):
                    handle.write(data, offset)
                    return

                def scribble(fd: int) -> None:
                    with mmap.mmap(fd, 0) as mapping:
                        assert mapping[offset] == file.content[offset]
                        mapping[offset : offset + len(data)] = data
                        mapping.flush()

                handle._mount.call(scribble, handle.fd)

        self.agree(f"map {path!r} at {offset}", 0, work)
        file.write(data, offset)

    def truncate(self) -> None:
        path, size = self.path(), self.chance.choice([0, 5, 5000])
        error = self.parent_error(path)
        if not error and path in self.model.directories:
            error = errno.EISDIR
        if not error and path not in self.model.files:
            error = errno.ENOENT
        if self.agree(f"truncate {path!r} {size}", error, self.door.truncate, path, size):
            self.model.files[path].truncate(size)

    def unlink(self) -> None:
        path = self.path()
        error = self.parent_error(path)
        if not error and path in self.model.directories:
            error = errno.EISDIR
        if not error and path not in self.model.files:
            error = errno.ENOENT
        if self.agree(f"unlink {path!r}", error, self.door.unlink, path):
            del self.model.files[path]

    def mkdir(self) -> None:
        path = self.path()
        error = self.parent_error(path)
        if not error and (path in self.model.files or path in self.model.directories):
            error = errno.EEXIST
        if self.agree(f"mkdir {path!r}", error, self.door.mkdir, path):
            self.model.directories.add(path)

    def rmdir(self) -> None:
        path = self.path()
        error = self.parent_error(path)
        if not error and path in self.model.files:
            error = errno.ENOTDIR
        if not error and path not in self.model.directories:
            error = errno.ENOENT
        if not error and self.model.children(path):
            error = errno.ENOTEMPTY
        if self.agree(f"rmdir {path!r}", error, self.door.rmdir, path):
            self.model.directories.discard(path)

    def rename(self) -> None:
        source, target = self.path(), self.path()
        if self.parent_error(source) or self.parent_error(target):
            return  # which of two errors comes first is nobody's promise
        if f"{source}/".startswith(f"{target}/") or f"{target}/".startswith(f"{source}/"):
            return  # likewise, of a directory into itself, or onto what holds it
        error = self.model.rename(source, target)
        self.agree(f"rename {source!r} {target!r}", error, self.door.rename, source, target)

    def save(self) -> None:
        """As editors do: a temporary beside it, then a rename over it."""
        path, content = self.path(), self.content()
        if self.parent_error(path) or path in self.model.directories:
            return
        beside = os.path.join(os.path.dirname(path), ".goutputstream-ABCDEF")

        def work() -> None:
            self.door.write(beside, content)
            self.door.rename(beside, path)

        self.agree(f"save {path!r} {len(content)}", 0, work)
        self.model.files[path] = File(content)

    def chmod(self) -> None:
        if (path := self.file()) is not None:
            mode = self.chance.choice([0o600, 0o640, 0o755])
            self.agree(f"chmod {path!r} {mode:o}", 0, self.door.chmod, path, mode)
            self.model.files[path].mode = mode

    def utime(self) -> None:
        if (path := self.file()) is not None:
            mtime_ns = self.chance.randrange(10**18, 16 * 10**17)
            self.agree(f"utime {path!r} {mtime_ns}", 0, self.door.utime, path, mtime_ns)
            self.model.files[path].mtime_ns = mtime_ns

    # Handles: they live on, whatever becomes of the name.

    def open(self) -> None:
        path = self.file()
        if path is None or len(self.opened) >= HANDLES:
            return
        flags = self.chance.choice(
            [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_TRUNC]
        )
        file, made = self.model.files[path], []

        def work() -> None:
            made.append(self.door.open(path, flags))
            if not flags & os.O_TRUNC:  # what was never read can be gone with its name
                assert made[0].read(1 << 20, 0) == bytes(file.content)

        self.agree(f"open {path!r} {flags:o}", 0, work)
        if flags & os.O_TRUNC:
            file.truncate(0)
        self.opened.append(Open(made[0], file, flags))

    def handle(self) -> Open | None:
        return self.chance.choice(self.opened) if self.opened else None

    def write_handle(self) -> None:
        one = self.handle()
        if one is None or not one.writes:
            return
        data, offset = self.chance.randbytes(500), self.chance.randrange(10_000)
        if one.appends:
            offset = len(one.file.content)
        if self.agree(f"write to a handle at {offset}", 0, one.handle.write, data, offset):
            one.file.write(data, offset)

    def truncate_handle(self) -> None:
        one = self.handle()
        if one is None or not one.writes:
            return
        size = self.chance.choice([0, 700, 6000])
        if self.agree(f"truncate a handle to {size}", 0, one.handle.truncate, size):
            one.file.truncate(size)

    def read_handle(self) -> None:
        one = self.handle()
        if one is not None and one.reads:
            found: list[bytes] = []
            self.agree("read a handle", 0, lambda: found.append(one.handle.read(1 << 20, 0)))
            assert found[0] == bytes(one.file.content), f"a handle's content{self.story()}"

    def sync_handle(self) -> None:
        if (one := self.handle()) is not None:
            self.agree("fsync a handle", 0, one.handle.sync)

    def close_handle(self) -> None:
        if (one := self.handle()) is not None:
            self.opened.remove(one)
            self.agree("close a handle", 0, one.handle.close)

    def close_all(self) -> None:
        while self.opened:
            self.close_handle()

    # What happens to all of it.

    def others(self) -> None:
        """Somebody else rewrites a file on the cluster."""
        path = self.file()
        if self.far is None or path is None:
            return
        file = self.model.files[path]
        if any(one.file is file for one in self.opened):
            return
        self.sync()
        content = bytes(file.content) + self.chance.randbytes(1 + self.chance.randrange(900))
        self.history.append(f"somebody else writes {path!r} {len(content)}")
        self.far.write(path, content, file.mode)
        file.content, file.mtime_ns = bytearray(content), None
        self.refresh()

    def sync(self) -> None:
        self.agree("sync", 0, self.door.sync)

    def refresh(self) -> None:
        self.agree("refresh", 0, self.door.refresh)

    def remount(self) -> None:
        self.close_all()
        self.agree("remount", 0, self.door.remount)

    def crash(self) -> None:
        """kill -9 while files are open; what was written is synced, so all of it is owed."""
        for one in self.opened:
            one.handle.sync()
        self.history.append("crash")
        self.door.remount(crash=True)
        for one in self.opened:
            with contextlib.suppress(Exception):
                one.handle.close()
        self.opened.clear()

    # Comparing.

    def compare(self) -> None:
        for directory in sorted(self.model.directories):
            shown, known = set(self.door.listdir(directory)), self.model.children(directory)
            assert shown == known, f"{directory!r}: {shown} instead of {known}{self.story()}"
        for path, file in self.model.files.items():
            status = self.door.stat(path)
            assert status.size == len(file.content), f"size of {path!r}{self.story()}"
            assert self.door.read(path) == bytes(file.content), f"content of {path!r}{self.story()}"
            assert status.permissions == file.mode, f"mode of {path!r}{self.story()}"
            if file.mtime_ns is None:
                file.mtime_ns = status.mtime_ns  # and from now on it stays
            assert status.mtime_ns == file.mtime_ns, (
                f"time of {path!r}: {status.mtime_ns} instead of {file.mtime_ns}{self.story()}"
            )

    def play(self, steps: int, ends: list[Callable[[], None]], every: int = 10) -> None:
        often = [
            self.write, self.write, self.append, self.patch, self.map, self.truncate, self.unlink,
            self.mkdir, self.rmdir, self.rename, self.rename, self.save, self.chmod, self.utime,
            self.open, self.open, self.write_handle, self.write_handle, self.truncate_handle,
            self.read_handle, self.read_handle, self.sync_handle, self.close_handle,
        ]  # fmt: skip
        for step in range(steps):
            if self.chance.random() < 0.02:
                action = self.chance.choice([self.sync, self.refresh, self.others, *ends])
            else:
                action = self.chance.choice(often)
            action()
            name = action.__name__
            self.done[name] = self.done.get(name, 0) + 1
            if step % every == every - 1:
                self.compare()
        self.close_all()
        self.compare()


def holds(far: Any, model: Model) -> None:
    """The cluster has exactly what the model has."""
    found = far.snapshot()
    assert set(found) == set(model.files) | (model.directories - {""})
    for path, file in model.files.items():
        assert far.read(path) == bytes(file.content), path
        assert far.mode(path) == file.mode, path


@pytest.mark.parametrize("seed", range(3))
def test_the_tree(place: Place, directory: str, far: Any, tmp_path: Path, seed: int) -> None:
    """Tenet 1 and the whole of Writing, Metadata, without a kernel; every invariant is checked
    after every operation."""
    with tree_door(place, directory, tmp_path, writeback_delay=0.05) as door:
        player = Player(door, random.Random(f"{SEED}-{seed}"), far)
        player.play(STEPS, [player.remount])
        door.sync()
        player.compare()
        holds(far, player.model)


@pytest.mark.parametrize("seed", range(3))
def test_a_mount(mount_with: Callable[..., Mount], far: SimFarSide, seed: int) -> None:
    """The same through the kernel, with kill -9 of the daemon in between."""
    mount = mount_with(writeback_delay=0.05, **{"jobs.enabled": "false"})
    mount.announce("stay in the journal", "never closed")
    door = MountDoor(mount)
    player = Player(door, random.Random(f"{SEED}-mount-{seed}"), far)
    player.play(STEPS, [player.remount, player.crash])
    door.sync()
    player.compare()
    holds(far, player.model)
    mount.assert_nothing_left()
    assert mount.unmount_plainly() == 0
    assert far.all_litter() == []
