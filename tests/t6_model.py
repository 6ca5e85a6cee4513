"""Random operations against a model: whatever a mount is asked for, through remounts and kill -9,
it shows what an ordinary file system would show, and in the end the cluster holds the same.

A short run in the suite; F7TFS_MODEL_STEPS=5000 F7TFS_MODEL_SEED=7 for a long or a chosen one.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, tree_door
from doors import Door, Handle, MountDoor
from mounting import Mount

pytestmark = pytest.mark.simulator
STEPS = int(os.environ.get("F7TFS_MODEL_STEPS", "120"))
SEED = int(os.environ.get("F7TFS_MODEL_SEED", "0"))
NAMES = ["a", "b", "c", "long name ü", ".hidden", "x~"]


class Model:
    """Files are bytes by path, directories a set of paths; "" is the root."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.modes: dict[str, int] = {}
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
            self.modes[target] = self.modes.pop(source)
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
                self.modes[new] = self.modes.pop(one)
        return 0


class Player:
    def __init__(self, door: Door, chance: random.Random) -> None:
        self.door = door
        self.chance = chance
        self.model = Model()
        self.history: list[str] = []
        self.open: dict[str, Handle] = {}

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

    def content(self) -> bytes:
        size = self.chance.choice([0, 1, 10, 1000, 5000, 70_000])
        return self.chance.randbytes(size)

    # Doing the same to both.

    def agree(self, what: str, expected: int, action: Callable[..., Any], *words: Any) -> bool:
        """The real thing succeeds (0) or fails with just this errno; True if it succeeded."""
        self.history.append(f"{what} → {errno.errorcode.get(expected, 'ok')}")
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
        return "\n  after:\n    " + "\n    ".join(self.history[-25:])

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
            self.model.files[path] = bytearray(content)
            self.model.modes.setdefault(path, 0o644)

    def append(self) -> None:
        path, content = self.path(), self.content()
        error = self.parent_error(path) or (errno.EISDIR if path in self.model.directories else 0)
        if self.agree(f"append {path!r} {len(content)}", error, self.door.append, path, content):
            self.model.files.setdefault(path, bytearray()).extend(content)
            self.model.modes.setdefault(path, 0o644)

    def patch(self) -> None:
        if not self.model.files:
            return
        path = self.chance.choice(sorted(self.model.files))
        offset, data = self.chance.randrange(20_000), self.chance.randbytes(300)

        def work() -> None:
            with self.door.open(path, os.O_RDWR) as file:
                assert file.read(64, 0) == bytes(self.model.files[path][:64])
                file.write(data, offset)

        self.agree(f"patch {path!r} at {offset}", 0, work)
        known = self.model.files[path]
        known.extend(bytes(max(0, offset - len(known))))
        known[offset : offset + len(data)] = data

    def truncate(self) -> None:
        path, size = self.path(), self.chance.choice([0, 5, 5000])
        error = self.parent_error(path)
        if not error and path in self.model.directories:
            error = errno.EISDIR
        if not error and path not in self.model.files:
            error = errno.ENOENT
        if self.agree(f"truncate {path!r} {size}", error, self.door.truncate, path, size):
            known = self.model.files[path]
            del known[size:]
            known.extend(bytes(size - len(known)))

    def unlink(self) -> None:
        path = self.path()
        error = self.parent_error(path)
        if not error and path in self.model.directories:
            error = errno.EISDIR
        if not error and path not in self.model.files:
            error = errno.ENOENT
        if self.agree(f"unlink {path!r}", error, self.door.unlink, path):
            del self.model.files[path], self.model.modes[path]

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

    def chmod(self) -> None:
        if self.model.files:
            path = self.chance.choice(sorted(self.model.files))
            mode = self.chance.choice([0o600, 0o640, 0o755])
            self.agree(f"chmod {path!r} {mode:o}", 0, self.door.chmod, path, mode)
            self.model.modes[path] = mode

    def sync(self) -> None:
        self.agree("sync", 0, self.door.sync)

    def refresh(self) -> None:
        self.agree("refresh", 0, self.door.refresh)

    def remount(self) -> None:
        self.agree("remount", 0, self.door.remount)

    def crash(self) -> None:
        self.history.append("crash")
        self.door.remount(crash=True)

    # Comparing.

    def compare(self) -> None:
        for directory in sorted(self.model.directories):
            shown, known = set(self.door.listdir(directory)), self.model.children(directory)
            assert shown == known, f"{directory!r}: {shown} instead of {known}{self.story()}"
        for path, content in self.model.files.items():
            assert self.door.stat(path).size == len(content), f"size of {path!r}{self.story()}"
            assert self.door.read(path) == bytes(content), f"content of {path!r}{self.story()}"
            shown_mode = self.door.stat(path).permissions
            assert shown_mode == self.model.modes[path], f"mode of {path!r}{self.story()}"

    def play(self, steps: int, ends: list[Callable[[], None]]) -> None:
        often = [
            self.write, self.write, self.append, self.patch, self.truncate, self.unlink, self.mkdir,
            self.mkdir, self.rmdir, self.rename, self.rename, self.rename, self.chmod,
        ]  # fmt: skip
        for step in range(steps):
            if self.chance.random() < 0.04:
                self.chance.choice([self.sync, self.refresh, *ends])()
            else:
                self.chance.choice(often)()
            if step % 10 == 9:
                self.compare()
        self.compare()


def holds(far: Any, model: Model) -> None:
    """The cluster has exactly what the model has."""
    found = far.snapshot()
    assert set(found) == set(model.files) | (model.directories - {""})
    for path, content in model.files.items():
        assert far.read(path) == bytes(content), path
        assert far.mode(path) == model.modes[path], path


@pytest.mark.parametrize("seed", range(3))
def test_the_tree(place: Place, directory: str, far: Any, tmp_path: Path, seed: int) -> None:
    """Tenet 1 and the whole of Writing, Metadata, without a kernel; every invariant is checked
    after every operation."""
    with tree_door(place, directory, tmp_path, writeback_delay=0.05) as door:
        player = Player(door, random.Random(f"{SEED}-{seed}"))
        player.play(STEPS, [player.remount])
        door.sync()
        player.compare()
        holds(far, player.model)


@pytest.mark.parametrize("seed", range(3))
def test_a_mount(mount_with: Callable[..., Mount], far: Any, seed: int) -> None:
    """The same through the kernel, with kill -9 of the daemon in between."""
    mount = mount_with(writeback_delay=0.05, **{"jobs.enabled": "false"})
    mount.announce("stay in the journal")
    door = MountDoor(mount)
    player = Player(door, random.Random(f"{SEED}-mount-{seed}"))
    player.play(STEPS, [player.remount, player.crash])
    door.sync()
    player.compare()
    holds(far, player.model)
    mount.assert_nothing_left()
    assert mount.unmount_plainly() == 0
    assert far.all_litter() == []
