"""One file system interface, two doors: the kernel's, and the tree itself without a kernel.

Paths are relative to the door's directory. Both raise OSError with the errno that an application
sees. When only `MountDoor` fails a scenario, the fault is in the door.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat as stat_module
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio
from mounting import CALL_DEADLINE, RENAME_NOREPLACE, Mount, renameat2

from f7tfs import mount as f7tfs_mount
from f7tfs.config import Config
from f7tfs.errors import F7tfsError, NotFound, errno_of
from f7tfs.model import Kind
from f7tfs.tree.nodes import ROOT_INODE, Node
from f7tfs.tree.wing import Caller, Changes, Look

T = TypeVar("T")
Path_ = str | bytes


class Status(NamedTuple):
    """The part of struct stat that both doors have."""

    mode: int
    size: int
    mtime_ns: int
    nlink: int
    uid: int
    gid: int
    ino: int

    @property
    def permissions(self) -> int:
        return stat_module.S_IMODE(self.mode)

    @property
    def format(self) -> int:
        return stat_module.S_IFMT(self.mode)


class Handle(ABC):
    """An open file."""

    @abstractmethod
    def read(self, size: int = 1 << 20, offset: int = 0) -> bytes: ...
    @abstractmethod
    def write(self, data: bytes, offset: int = 0) -> int: ...
    @abstractmethod
    def truncate(self, size: int) -> None: ...
    @abstractmethod
    def sync(self) -> None: ...
    @abstractmethod
    def stat(self) -> Status: ...
    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Door(ABC):
    name: str

    @abstractmethod
    def open(self, path: Path_, flags: int, mode: int = 0o666) -> Handle: ...
    @abstractmethod
    def listdir(self, path: Path_ = "") -> list[str]: ...
    @abstractmethod
    def stat(self, path: Path_, *, follow: bool = False) -> Status: ...
    @abstractmethod
    def mkdir(self, path: Path_, mode: int = 0o777) -> None: ...
    @abstractmethod
    def rmdir(self, path: Path_) -> None: ...
    @abstractmethod
    def unlink(self, path: Path_) -> None: ...
    @abstractmethod
    def rename(self, source: Path_, target: Path_, *, noreplace: bool = False) -> None: ...
    @abstractmethod
    def truncate(self, path: Path_, size: int) -> None: ...
    @abstractmethod
    def chmod(self, path: Path_, mode: int) -> None: ...
    @abstractmethod
    def chown(self, path: Path_, uid: int, gid: int) -> None: ...
    @abstractmethod
    def utime(self, path: Path_, mtime_ns: int) -> None: ...
    @abstractmethod
    def symlink(self, target: str, path: Path_) -> None: ...
    @abstractmethod
    def readlink(self, path: Path_) -> str: ...
    @abstractmethod
    def link(self, source: Path_, target: Path_) -> None: ...
    @abstractmethod
    def getxattr(self, path: Path_, name: str) -> bytes: ...
    @abstractmethod
    def sync(self) -> None:
        """Until everything that was closed is on the cluster; OSError if something is stuck."""

    @abstractmethod
    def refresh(self) -> None:
        """Forget cached metadata."""

    @abstractmethod
    def remount(self, *, crash: bool = False) -> None:
        """End (orderly, leaving what is pending in the journal; or as kill -9 would) and start."""

    @abstractmethod
    def announce(self, *patterns: str) -> None: ...
    @abstractmethod
    def assert_quiet(self) -> None: ...

    # What is made of these.

    def read(self, path: Path_) -> bytes:
        with self.open(path, os.O_RDONLY) as file:
            found = bytearray()
            while data := file.read(1 << 20, len(found)):
                found += data
            return bytes(found)

    def write(self, path: Path_, content: bytes, mode: int = 0o666) -> None:
        """As a shell's `>`: O_CREAT | O_TRUNC, write, close."""
        with self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as file:
            self.pour(file, content)

    def pour(self, file: Handle, content: bytes) -> None:
        done = 0
        while done < len(content):
            done += file.write(content[done : done + (1 << 20)], done)

    def append(self, path: Path_, content: bytes) -> None:
        with self.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
            file.write(content, file.stat().size)

    def create_exclusive(self, path: Path_, content: bytes = b"") -> None:
        with self.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            self.pour(file, content)

    def exists(self, path: Path_) -> bool:
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True


# The kernel's door.


class _MountHandle(Handle):
    def __init__(self, mount: Mount, fd: int) -> None:
        self._mount = mount
        self.fd = fd

    def read(self, size: int = 1 << 20, offset: int = 0) -> bytes:
        return self._mount.call(os.pread, self.fd, size, offset)

    def write(self, data: bytes, offset: int = 0) -> int:
        return self._mount.call(os.pwrite, self.fd, data, offset)

    def truncate(self, size: int) -> None:
        self._mount.call(os.ftruncate, self.fd, size)

    def sync(self) -> None:
        self._mount.call(os.fsync, self.fd)

    def stat(self) -> Status:
        return _status(self._mount.call(os.fstat, self.fd))

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._mount.call(os.close, fd)


def _status(found: os.stat_result) -> Status:
    return Status(
        found.st_mode, found.st_size, found.st_mtime_ns, found.st_nlink,
        found.st_uid, found.st_gid, found.st_ino,
    )  # fmt: skip


class MountDoor(Door):
    """Real system calls on a real mount, which is another process; each has a deadline."""

    name = "mount"

    def __init__(self, mount: Mount, below: str = "") -> None:
        self.mount = mount
        self.base = mount.path / below

    def at(self, path: Path_) -> bytes:
        return os.path.join(os.fsencode(self.base), os.fsencode(path))

    def open(self, path: Path_, flags: int, mode: int = 0o666) -> Handle:
        fd = self.mount.call(os.open, self.at(path), flags | os.O_CLOEXEC, mode)
        return _MountHandle(self.mount, fd)

    def listdir(self, path: Path_ = "") -> list[str]:
        return [os.fsdecode(name) for name in self.mount.call(os.listdir, self.at(path))]

    def stat(self, path: Path_, *, follow: bool = False) -> Status:
        return _status(self.mount.call(os.stat if follow else os.lstat, self.at(path)))

    def mkdir(self, path: Path_, mode: int = 0o777) -> None:
        self.mount.call(os.mkdir, self.at(path), mode)

    def rmdir(self, path: Path_) -> None:
        self.mount.call(os.rmdir, self.at(path))

    def unlink(self, path: Path_) -> None:
        self.mount.call(os.unlink, self.at(path))

    def rename(self, source: Path_, target: Path_, *, noreplace: bool = False) -> None:
        flags = RENAME_NOREPLACE if noreplace else 0
        self.mount.call(renameat2, self.at(source), self.at(target), flags)

    def truncate(self, path: Path_, size: int) -> None:
        self.mount.call(os.truncate, self.at(path), size)

    def chmod(self, path: Path_, mode: int) -> None:
        self.mount.call(os.chmod, self.at(path), mode)

    def chown(self, path: Path_, uid: int, gid: int) -> None:
        self.mount.call(os.chown, self.at(path), uid, gid)

    def utime(self, path: Path_, mtime_ns: int) -> None:
        self.mount.call(lambda: os.utime(self.at(path), ns=(mtime_ns, mtime_ns)))

    def symlink(self, target: str, path: Path_) -> None:
        self.mount.call(os.symlink, os.fsencode(target), self.at(path))

    def readlink(self, path: Path_) -> str:
        return os.fsdecode(self.mount.call(os.readlink, self.at(path)))

    def link(self, source: Path_, target: Path_) -> None:
        self.mount.call(os.link, self.at(source), self.at(target))

    def getxattr(self, path: Path_, name: str) -> bytes:
        return self.mount.call(os.getxattr, self.at(path), name)

    def sync(self) -> None:
        self.mount.sync()

    def refresh(self) -> None:
        self.mount.refresh()

    def remount(self, *, crash: bool = False) -> None:
        if crash:
            self.mount.kill()
            self.mount.start()
        else:
            self.mount.restart()

    def announce(self, *patterns: str) -> None:
        self.mount.announce(*patterns)

    def assert_quiet(self) -> None:
        self.mount.assert_quiet()


# The tree's door.


class _TreeHandle(Handle):
    def __init__(self, door: TreeDoor, node: Node, number: int) -> None:
        self._door = door
        self._node = node
        self._number = number

    @property
    def _tree(self) -> Any:
        return self._door.mounted.tree

    def read(self, size: int = 1 << 20, offset: int = 0) -> bytes:
        async def work() -> bytes:
            look = await self._tree.look(self._node.ino)  # the kernel reads nothing past the end
            if not self._tree.opened(self._number).source.is_direct and offset >= look.size:
                return b""
            data: bytes = await self._tree.read(self._number, offset, size)
            return data

        return self._door.run(work)

    def write(self, data: bytes, offset: int = 0) -> int:
        async def work() -> int:
            return int(await self._tree.write(self._number, offset, data))

        return self._door.run(work)

    def truncate(self, size: int) -> None:
        async def work() -> None:
            await self._tree.change(self._node.ino, Changes(size=size), self._number)

        self._door.run(work)

    def sync(self) -> None:
        async def work() -> None:
            await self._tree.sync(self._number)

        self._door.run(work)

    def stat(self) -> Status:
        async def work() -> Status:
            return _status_of(self._node, await self._tree.look(self._node.ino))

        return self._door.run(work)

    def close(self) -> None:
        number, self._number = self._number, 0
        if not number:
            return

        async def work() -> None:
            try:
                await self._tree.flush(number, Caller())
            finally:
                await self._tree.release(number)
                self._tree.forget(self._node.ino, 1)

        self._door.run(work)


def _status_of(node: Node, look: Look) -> Status:
    return Status(
        look.kind.format_bits | look.permissions, look.size, look.mtime_ns, look.nlink,
        look.uid, look.gid, node.ino,
    )  # fmt: skip


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")
        if record.exc_info:
            self.lines.append(repr(record.exc_info[1]))


class TreeDoor(Door):
    """`f7tfs.mount.build` without a kernel, in a trio loop in a thread. Looks names up and forgets
    them as the kernel would, and checks every invariant after every operation."""

    name = "tree"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._announced: list[str] = []
        self._listener = _Listener()
        logging.getLogger("f7tfs").addHandler(self._listener)
        self._start()

    # The loop in its thread.

    def _start(self) -> None:
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="tree-door")
        self._thread.start()
        if not self._ready.wait(CALL_DEADLINE):
            raise AssertionError("the tree did not get ready")
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        with trio.CancelScope() as self._scope:
            async with f7tfs_mount.build(self._config) as self.mounted:
                self._ready.set()
                await self._stop.wait()
                await self.mounted.tree.close()

    def run(self, work: Callable[[], Awaitable[T]], deadline: float = CALL_DEADLINE) -> T:
        async def guarded() -> T:
            try:
                with trio.fail_after(deadline):
                    return await work()
            except F7tfsError as error:
                number = errno_of(error)
                raise OSError(number, f"{os.strerror(number)}: {error}") from error
            finally:
                self.mounted.check()

        return trio.from_thread.run(guarded, trio_token=self._token)

    def close(self, *, crash: bool = False) -> None:
        """Orderly: open files are released. Crash: the loop is cancelled where it stands."""
        if self._thread.is_alive():
            self._token.run_sync_soon(self._scope.cancel if crash else self._stop.set)
            self._thread.join(CALL_DEADLINE)
            assert not self._thread.is_alive(), "the tree did not end"
        if self._failure is not None:
            raise self._failure

    def remove(self) -> None:
        logging.getLogger("f7tfs").removeHandler(self._listener)
        self.close()

    # What the kernel does: walk, look up, forget.

    @contextlib.asynccontextmanager
    async def _walked(self, path: Path_, *, follow: bool, depth: int = 0) -> Any:
        """(parent node, last name, node or None, look or None), counted until the block ends."""
        if depth > 40:
            raise OSError(errno.ELOOP, "too many links")
        tree = self.mounted.tree
        counted: list[int] = []
        try:
            here = tree.node(ROOT_INODE)
            parent, name = here, "."
            look: Look | None = None
            parts = [part for part in os.fsdecode(path).split("/") if part]
            if not parts:
                yield here, ".", here, await tree.look(ROOT_INODE)
                return
            for index, part in enumerate(parts):
                parent, name = here, part
                last = index == len(parts) - 1
                if part == "..":
                    here = here.parent or here
                    look = await tree.look(here.ino)
                    continue
                try:
                    here, look = await tree.lookup(parent.ino, part)
                except NotFound:
                    if not last:
                        raise
                    yield parent, name, None, None
                    return
                if look.kind is not Kind.DIRECTORY:
                    # A directory is kept, as the kernel keeps those of files that are open.
                    counted.append(here.ino)
                if stat_module.S_ISLNK(look.kind.format_bits) and (follow or not last):
                    target = await tree.readlink(here.ino)
                    if target.startswith("/"):
                        raise AssertionError(f"an absolute symlink reached the kernel: {target}")
                    rest = "/".join((*parts[:index], target, *parts[index + 1 :]))
                    async with self._walked(rest, follow=follow, depth=depth + 1) as found:
                        yield found
                    return
            yield parent, name, here, look
        finally:
            for ino in counted:
                tree.forget(ino, 1)

    def _on(self, path: Path_, work: Callable[[Node, Look], Awaitable[T]], *, follow: bool) -> T:
        async def whole() -> T:
            async with self._walked(path, follow=follow) as (_, name, node, look):
                if node is None:
                    raise NotFound(name)
                return await work(node, look)

        return self.run(whole)

    def open(self, path: Path_, flags: int, mode: int = 0o666) -> Handle:
        tree = self.mounted.tree
        sent = flags & ~(os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)

        async def work() -> Handle:
            exclusive = bool(flags & os.O_EXCL)
            async with self._walked(path, follow=not exclusive) as (parent, name, node, _):
                if node is None:
                    if not flags & os.O_CREAT:
                        raise NotFound(name)
                    made, _, number = await tree.create(
                        parent.ino, name, mode, flags & ~os.O_CLOEXEC, Caller()
                    )
                    return _TreeHandle(self, made, number)
                if exclusive and flags & os.O_CREAT:
                    raise FileExistsError(errno.EEXIST, "exists", name)
                number = await tree.open(node.ino, sent, Caller())
                tree.nodes.remember(node)
                return _TreeHandle(self, node, number)

        return self.run(work)

    def listdir(self, path: Path_ = "") -> list[str]:
        tree = self.mounted.tree

        async def work(node: Node, look: Look) -> list[str]:
            number = await tree.open_directory(node.ino)
            try:
                names = []
                for name, each in tree.directory(number).entries:
                    child = tree.child_for_readdir(node, name, each)
                    tree.nodes.remember(child)
                    tree.forget(child.ino, 1)
                    names.append(name)
                return names
            finally:
                tree.release_directory(number)

        return self._on(path, work, follow=True)

    def stat(self, path: Path_, *, follow: bool = False) -> Status:
        async def work(node: Node, look: Look) -> Status:
            return _status_of(node, look)

        return self._on(path, work, follow=follow)

    def _in_parent(self, path: Path_, work: Callable[[Node, str, Node | None], Awaitable[T]]) -> T:
        async def whole() -> T:
            async with self._walked(path, follow=False) as (parent, name, node, _):
                return await work(parent, name, node)

        return self.run(whole)

    def mkdir(self, path: Path_, mode: int = 0o777) -> None:
        async def work(parent: Node, name: str, node: Node | None) -> None:
            made, _ = await self.mounted.tree.mkdir(parent.ino, name, mode & ~0o022)
            self.mounted.tree.forget(made.ino, 1)

        self._in_parent(path, work)

    def rmdir(self, path: Path_) -> None:
        async def work(parent: Node, name: str, node: Node | None) -> None:
            await self.mounted.tree.rmdir(parent.ino, name)

        self._in_parent(path, work)

    def unlink(self, path: Path_) -> None:
        async def work(parent: Node, name: str, node: Node | None) -> None:
            await self.mounted.tree.unlink(parent.ino, name, Caller())

        self._in_parent(path, work)

    def rename(self, source: Path_, target: Path_, *, noreplace: bool = False) -> None:
        async def work() -> None:
            async with (
                self._walked(source, follow=False) as (parent, name, node, _),
                self._walked(target, follow=False) as (new_parent, new_name, _, _),
            ):
                if node is None:
                    raise NotFound(name)  # the kernel looked it up, and asks no more
                await self.mounted.tree.rename(
                    parent.ino, name, new_parent.ino, new_name, replace=not noreplace
                )

        self.run(work)

    def _change(self, path: Path_, changes: Changes) -> None:
        async def work(node: Node, look: Look) -> None:
            await self.mounted.tree.change(node.ino, changes, None)

        self._on(path, work, follow=True)

    def truncate(self, path: Path_, size: int) -> None:
        self._change(path, Changes(size=size))

    def chmod(self, path: Path_, mode: int) -> None:
        self._change(path, Changes(permissions=mode))

    def chown(self, path: Path_, uid: int, gid: int) -> None:
        self._change(path, Changes(uid=uid, gid=gid))

    def utime(self, path: Path_, mtime_ns: int) -> None:
        self._change(path, Changes(mtime_ns=mtime_ns))

    def symlink(self, target: str, path: Path_) -> None:
        async def work(parent: Node, name: str, node: Node | None) -> None:
            made, _ = await self.mounted.tree.symlink(parent.ino, name, target)
            self.mounted.tree.forget(made.ino, 1)

        self._in_parent(path, work)

    def readlink(self, path: Path_) -> str:
        async def work(node: Node, look: Look) -> str:
            return str(await self.mounted.tree.readlink(node.ino))

        return self._on(path, work, follow=False)

    def link(self, source: Path_, target: Path_) -> None:
        async def work(parent: Node, name: str, node: Node | None) -> None:
            if node is not None:
                raise FileExistsError(errno.EEXIST, "exists", name)
            async with self._walked(source, follow=False) as (_, _, original, _):
                linked, _ = await self.mounted.tree.link(original.ino, parent.ino, name)
                assert linked is original, "two names of one inode"
                self.mounted.tree.forget(linked.ino, 1)

        self._in_parent(target, work)

    def getxattr(self, path: Path_, name: str) -> bytes:
        async def work(node: Node, look: Look) -> bytes:
            return bytes(await self.mounted.tree.attribute(node.ino, name))

        return self._on(path, work, follow=True)

    def sync(self) -> None:
        self.run(self.mounted.everything_there, 60.0)

    def refresh(self) -> None:
        with self.open(".f7tfs/refresh", os.O_WRONLY) as lever:
            lever.write(b"\n")

    def remount(self, *, crash: bool = False) -> None:
        self.close(crash=crash)
        self._start()

    def announce(self, *patterns: str) -> None:
        self._announced += patterns

    def assert_quiet(self) -> None:
        lines, self._listener.lines = self._listener.lines, []
        known = [re.compile(pattern) for pattern in self._announced]
        found = [line for line in lines if not any(one.search(line) for one in known)]
        assert not found, "unannounced trouble in the log:\n" + "\n".join(found[:60])


@contextlib.contextmanager
def holding(*handles: Handle) -> Iterator[Sequence[Handle]]:
    """Close them all at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.close)
        yield handles


def spool_of(config: Config) -> list[Path]:
    folders = config.state_directory.rglob("spool")
    return sorted(f for folder in folders for f in folder.rglob("*") if f.is_file())
