"""What the cluster really holds, seen past the mount.

`SimFarSide` looks into the simulator's folder; `LiveFarSide` asks a real FirecREST. Both speak of
paths relative to one remote directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat as stat_module
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import trio
from mounting import Credentials

from f7tfs.api.connect import open_cluster, token_source
from f7tfs.api.port import Cluster
from f7tfs.errors import NotFound
from f7tfs.model import RemotePath, join, remote_path

T = TypeVar("T")
OURS = ".f7tfs-"  # names that f7tfs makes for itself


class FarSide(ABC):
    """`names` and `snapshot` leave out f7tfs' own hidden names; `litter` shows just those."""

    directory: str

    @abstractmethod
    def all_names(self, path: str = "") -> set[str]: ...
    @abstractmethod
    def read(self, path: str) -> bytes: ...
    @abstractmethod
    def write(self, path: str, content: bytes, mode: int = 0o644) -> None: ...
    @abstractmethod
    def mkdir(self, path: str, mode: int = 0o755) -> None: ...
    @abstractmethod
    def symlink(self, target: str, path: str) -> None: ...
    @abstractmethod
    def readlink(self, path: str) -> str: ...
    @abstractmethod
    def remove(self, path: str) -> None: ...
    @abstractmethod
    def rename(self, source: str, target: str) -> None: ...
    @abstractmethod
    def chmod(self, path: str, mode: int) -> None: ...
    @abstractmethod
    def stat(self, path: str) -> Any:
        """Something with st_mode, st_size, st_mtime and st_ino, not following symlinks."""

    @abstractmethod
    def is_directory(self, path: str) -> bool: ...

    def names(self, path: str = "") -> set[str]:
        return {name for name in self.all_names(path) if not name.startswith(OURS)}

    def litter(self, path: str = "") -> set[str]:
        return {name for name in self.all_names(path) if name.startswith(OURS)}

    def exists(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        return name in self.all_names(parent)

    def sha256(self, path: str) -> str:
        return hashlib.sha256(self.read(path)).hexdigest()

    def mode(self, path: str) -> int:
        return stat_module.S_IMODE(self.stat(path).st_mode)


class SimFarSide(FarSide):
    """The simulator's folder. What is made here belongs to the cluster's user, unless the test
    takes it away (`own=False`)."""

    def __init__(self, directory: Path, uid: int, gid: int) -> None:
        self.place = directory
        self.directory = str(directory)
        self._uid, self._gid = uid, gid

    def __getitem__(self, path: str) -> Path:
        return self.place / path

    def _own(self, path: str) -> None:
        if os.getuid() == 0:
            os.chown(self[path], self._uid, self._gid, follow_symlinks=False)

    def all_names(self, path: str = "") -> set[str]:
        return set(os.listdir(self[path]))

    def read(self, path: str) -> bytes:
        return self[path].read_bytes()

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self[path].write_bytes(content)
        self[path].chmod(mode)
        self._own(path)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self[path].mkdir()
        self[path].chmod(mode)
        self._own(path)

    def symlink(self, target: str, path: str) -> None:
        self[path].symlink_to(target)
        self._own(path)

    def fifo(self, path: str) -> None:
        os.mkfifo(self[path], 0o644)
        self._own(path)

    def readlink(self, path: str) -> str:
        return os.readlink(self[path])

    def remove(self, path: str) -> None:
        if self[path].is_dir() and not self[path].is_symlink():
            shutil.rmtree(self[path])
        else:
            self[path].unlink()

    def rename(self, source: str, target: str) -> None:
        self[source].rename(self[target])

    def chmod(self, path: str, mode: int) -> None:
        self[path].chmod(mode)

    def age(self, path: str, seconds: float = 3600.0) -> None:
        """Make a file look older, as most files are: not changed a moment ago."""
        now = self[path].stat().st_mtime
        os.utime(self[path], (now - seconds, now - seconds))

    def stat(self, path: str) -> os.stat_result:
        return self[path].lstat()

    def is_directory(self, path: str) -> bool:
        return self[path].is_dir() and not self[path].is_symlink()

    def sha256(self, path: str) -> str:
        with open(self[path], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def snapshot(self) -> dict[str, tuple[Any, ...]]:
        """Everything below the directory, with inode, mode and content: what was not touched is
        equal in two of them."""
        found: dict[str, tuple[Any, ...]] = {}
        for path, folders, files in os.walk(self.place):
            folders[:] = [name for name in folders if not name.startswith(OURS)]
            for name in (*folders, *files):
                if name.startswith(OURS):
                    continue
                place = Path(path) / name
                status = place.lstat()
                content: Any = None
                if stat_module.S_ISREG(status.st_mode):
                    content = hashlib.sha256(place.read_bytes()).hexdigest()
                elif stat_module.S_ISLNK(status.st_mode):
                    content = os.readlink(place)
                key = os.path.relpath(place, self.place)
                found[key] = (status.st_ino, oct(status.st_mode), content)
        return found

    def all_litter(self) -> list[str]:
        return [
            os.path.join(path, name)
            for path, folders, files in os.walk(self.place)
            for name in (*folders, *files)
            if name.startswith(OURS)
        ]


class _Status:
    def __init__(self, mode: int, size: int, mtime: float, ino: int) -> None:
        self.st_mode, self.st_size, self.st_mtime, self.st_ino = mode, size, mtime, ino


class LiveFarSide(FarSide):
    """A real FirecREST: one connection for each question, so slow, but independent of the mount."""

    def __init__(self, credentials: Credentials, system: str, directory: str) -> None:
        self._credentials = credentials
        self._system = system
        self.directory = directory

    def _at(self, path: str) -> RemotePath:
        return remote_path(f"{self.directory}/{path}")

    def _ask(self, question: Callable[[Cluster], Awaitable[T]]) -> T:
        async def main() -> T:
            with trio.fail_after(120):
                source = token_source(
                    token_url=self._credentials.token_url,
                    client_id=self._credentials.client_id,
                    client_secret=self._credentials.client_secret,
                )
                async with open_cluster(
                    url=self._credentials.url, token_source=source, system=self._system
                ) as (cluster, _):
                    return await question(cluster)

        return trio.run(main)

    def all_names(self, path: str = "") -> set[str]:
        listed = self._ask(lambda cluster: cluster.list_directory(self._at(path)))
        return {one.name for one in listed}

    def read(self, path: str) -> bytes:
        return self._ask(lambda cluster: cluster.download(self._at(path)))

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        async def put(cluster: Cluster) -> None:
            await cluster.upload(self._at(path), content)
            await cluster.change_mode(self._at(path), mode)

        self._ask(put)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        async def make(cluster: Cluster) -> None:
            await cluster.make_directory(self._at(path))
            await cluster.change_mode(self._at(path), mode)

        self._ask(make)

    def symlink(self, target: str, path: str) -> None:
        self._ask(lambda cluster: cluster.symlink(target, self._at(path)))

    def readlink(self, path: str) -> str:
        return self._ask(lambda cluster: cluster.read_link(self._at(path)))

    def remove(self, path: str) -> None:
        self._ask(lambda cluster: cluster.remove(self._at(path)))

    def rename(self, source: str, target: str) -> None:
        self._ask(lambda cluster: cluster.rename(self._at(source), self._at(target)))

    def chmod(self, path: str, mode: int) -> None:
        self._ask(lambda cluster: cluster.change_mode(self._at(path), mode))

    def stat(self, path: str) -> _Status:
        found = self._ask(lambda cluster: cluster.stat(self._at(path)))
        return _Status(found.mode, found.size, found.mtime, found.ino)

    def is_directory(self, path: str) -> bool:
        return stat_module.S_ISDIR(self.stat(path).st_mode)

    def sha256(self, path: str) -> str:
        return self._ask(lambda cluster: cluster.checksum(self._at(path)))

    def exists(self, path: str) -> bool:
        try:
            self.stat(path)
        except NotFound:
            return False
        return True


def below(directory: str, name: str) -> str:
    return join(remote_path(directory), name)
