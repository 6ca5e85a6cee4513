"""The kernel's door: numbers and bytes become nodes and calls, results become attributes.

The only file that imports pyfuse3. Every handler runs under `answered`: one place turns errors
into errno and logs them once; no exception but FUSEError ever leaves a handler (it would end the
mount). Decisions are one floor below, in `tree`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat as stat_module
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import pyfuse3
import trio

from f7tfs.errors import F7tfsError, InvalidArgument, NotFound, NotPermitted, errno_of
from f7tfs.tree.nodes import Node
from f7tfs.tree.tree import Tree
from f7tfs.tree.waiting import caller_pid
from f7tfs.tree.wing import ATTRIBUTE_TIMEOUT, Caller, Changes, Look

log = logging.getLogger("f7tfs.door")
BLOCK_SIZE = 1 << 20  # st_blksize: cp then writes 1 MiB at a time, 3.3 times as fast (PERFORMANCE)
MAX_TASKS = 2000  # stalled requests must not stop others (FUSE.md)
MAX_BACKGROUND, CONGESTION = 1000, 900
READ_AHEAD = 1024  # KiB; the kernel then asks in pieces of up to 1 MiB, with an eighth of the work
CAPABILITIES = b"security.capability"  # the kernel asks for it before every write
BDI = Path("/sys/class/bdi")
CONTROL = Path("/sys/fs/fuse/connections")

# A caller that was killed meanwhile takes no answer; pyfuse3 calls that an error.
logging.getLogger("pyfuse3").addFilter(
    lambda record: "fuse_reply_* failed with No such file" not in record.getMessage()
)

H = TypeVar("H", bound=Callable[..., Coroutine[Any, Any, Any]])
_QUIET = {errno.ENOENT, errno.ENODATA, errno.ENOTSUP, errno.EEXIST, errno.ENOTEMPTY, errno.EINTR}


def answered(handler: H) -> H:
    """Every error becomes an errno, once logged; the unknown becomes EIO with a traceback."""

    @functools.wraps(handler)
    async def wrapper(self: Operations, *args: Any) -> Any:
        asker = args[-1] if args else None
        caller_pid.set(asker.pid if isinstance(asker, pyfuse3.RequestContext) else 0)
        try:
            return await handler(self, *args)
        except pyfuse3.FUSEError:
            raise
        except (F7tfsError, OSError) as error:
            number = errno_of(error)
            level = logging.DEBUG if number in _QUIET else logging.INFO
            if number in {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EHOSTUNREACH}:
                level = logging.WARNING  # the user did nothing wrong
            if isinstance(error, F7tfsError) and error.quiet:
                level = logging.DEBUG
            log.log(level, "%s: %s: %s", handler.__name__, errno.errorcode.get(number), error)
            raise pyfuse3.FUSEError(number) from None
        except Exception:
            log.exception("%s failed in a way that nobody foresaw", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return cast(H, wrapper)


def _text(name: bytes) -> str:
    return os.fsdecode(name)


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(pid=ctx.pid, umask=ctx.umask)


class Operations(pyfuse3.Operations):
    enable_writeback_cache = False  # the kernel would own size and mtime of every file
    enable_acl = False
    supports_dot_lookup = True

    def __init__(self, tree: Tree, spool_directory: Path) -> None:
        super().__init__()
        self._tree = tree
        self._spool_directory = spool_directory

    def _attributes(self, node: Node, look: Look) -> pyfuse3.EntryAttributes:
        node.told_size = look.size
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = cast(Any, node.ino)
        entry.generation = 0
        entry.entry_timeout = look.timeout
        entry.attr_timeout = look.timeout
        entry.st_mode = cast(Any, look.kind.format_bits | look.permissions)
        entry.st_nlink = look.nlink
        entry.st_uid, entry.st_gid = look.uid, look.gid
        entry.st_rdev = 0
        entry.st_size = look.size
        entry.st_blksize = BLOCK_SIZE
        entry.st_blocks = (look.size + 511) // 512
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = look.mtime_ns
        return entry

    # Finding.

    @answered
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            with self._tree.callers.interruptible():
                node, look = await self._tree.lookup(parent_inode, _text(name))
        except NotFound:
            absent = pyfuse3.EntryAttributes()  # inode 0: the kernel keeps the absence
            absent.st_ino = cast(Any, 0)
            absent.entry_timeout = ATTRIBUTE_TIMEOUT
            return absent
        return self._attributes(node, look)

    @answered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self._tree.forget(ino, count)

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        with self._tree.callers.interruptible():
            look = await self._tree.look(inode)
        return self._attributes(self._tree.node(inode), look)

    @answered
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = Changes(
            size=attr.st_size if fields.update_size else None,
            permissions=stat_module.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        look = await self._tree.change(inode, changes, fh)
        return self._attributes(self._tree.node(inode), look)

    @answered
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        with self._tree.callers.interruptible():
            return await self._tree.may(inode, mode)

    @answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        with self._tree.callers.interruptible():
            return os.fsencode(await self._tree.readlink(inode))

    # Files.

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        with self._tree.callers.interruptible():
            handle = await self._tree.open(inode, flags, _caller(ctx))
        if self._tree.opened(handle).is_resized:
            # Else a reader sees no further than the old end, for as long as attributes are kept.
            with contextlib.suppress(OSError):  # the kernel may have forgotten the inode
                pyfuse3.invalidate_inode(cast(Any, inode), attr_only=True)
        return self._file_info(handle)

    def _file_info(self, handle: int) -> pyfuse3.FileInfo:
        opened = self._tree.opened(handle)
        return pyfuse3.FileInfo(
            fh=cast(Any, handle),
            direct_io=opened.source.is_direct,
            keep_cache=opened.keep_cache,
        )

    @answered
    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        node, look, handle = await self._tree.create(
            parent_inode, _text(name), stat_module.S_IMODE(mode), flags, _caller(ctx)
        )
        return self._file_info(handle), self._attributes(node, look)

    @answered
    async def mknod(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if not stat_module.S_ISREG(mode):
            raise NotPermitted("only regular files, directories and symlinks")
        node, look, handle = await self._tree.create(
            parent_inode, _text(name), stat_module.S_IMODE(mode),
            os.O_WRONLY | os.O_CREAT | os.O_EXCL, _caller(ctx),
        )  # fmt: skip
        await self._tree.release(handle)
        return self._attributes(node, look)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._tree.read(fh, off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._tree.write(fh, off, buf)

    @answered
    async def flush(self, fh: int) -> None:
        await self._tree.flush(fh, Caller())

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._tree.sync(fh)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names that exist on the cluster were changed there before the call returned."""

    @answered
    async def release(self, fh: int) -> None:
        await self._tree.release(fh)

    # Directories.

    @answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        with self._tree.callers.interruptible():
            return await self._tree.open_directory(inode)

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._tree.directory(fh)
        for index in range(start_id, len(directory.entries)):
            name, look = directory.entries[index]
            node = self._tree.child_for_readdir(directory.node, name, look)
            told = node.told_size
            attributes = self._attributes(node, look)
            if not pyfuse3.readdir_reply(
                token, cast(Any, os.fsencode(name)), attributes, index + 1
            ):
                node.told_size = told  # it had no more room
                break
            self._tree.nodes.remember(node)

    @answered
    async def releasedir(self, fh: int) -> None:
        self._tree.release_directory(fh)

    # Names.

    @answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        permissions = stat_module.S_IMODE(mode) & ~ctx.umask
        node, look = await self._tree.mkdir(parent_inode, _text(name), permissions)
        return self._attributes(node, look)

    @answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node, look = await self._tree.symlink(parent_inode, _text(name), _text(target))
        return self._attributes(node, look)

    @answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node, look = await self._tree.link(inode, new_parent_inode, _text(new_name))
        return self._attributes(node, look)

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._tree.unlink(parent_inode, _text(name), _caller(ctx))

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._tree.rmdir(parent_inode, _text(name))

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise InvalidArgument("names cannot be exchanged")
        await self._tree.rename(
            parent_inode_old,
            _text(name_old),
            parent_inode_new,
            _text(name_new),
            replace=not flags & pyfuse3.RENAME_NOREPLACE,
        )

    # The file system.

    @answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Neither dialect tells a quota: what limits writing is the spool's disk."""
        local = os.statvfs(self._spool_directory)
        data = pyfuse3.StatvfsData()
        data.f_bsize, data.f_frsize = BLOCK_SIZE, local.f_frsize
        data.f_blocks = local.f_blocks
        data.f_bfree = max(1, local.f_bfree)
        data.f_bavail = max(1, local.f_bavail)
        data.f_files = max(1, local.f_files)
        data.f_ffree = data.f_favail = max(1, local.f_ffree)
        data.f_namemax = 255
        return data

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if name == CAPABILITIES:
            raise pyfuse3.FUSEError(errno.ENOTSUP)
        with self._tree.callers.interruptible():
            return await self._tree.attribute(inode, _text(name))

    @answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return [os.fsencode(name) for name in await self._tree.attributes(inode)]

    @answered
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        await self._tree.set_attribute(inode, _text(name), _text(value))

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._tree.set_attribute(inode, _text(name), "")


class Door:
    """The mount itself: from `open` on the kernel knows it, `serve` answers it, `close` ends it."""

    def __init__(self, operations: Operations, mountpoint: Path) -> None:
        self._operations = operations
        self._mountpoint = mountpoint
        self._is_mounted = False

    def open(
        self, *, source: str, subtype: str, allow_other: bool = False, debug: bool = False
    ) -> None:
        """Mount. Raises RuntimeError if fusermount3 refuses."""
        options = set(pyfuse3.default_options) - {"default_permissions"}
        options |= {f"fsname={source}", f"subtype={subtype}"}
        if allow_other:
            options.add("allow_other")
        if debug:
            options.add("debug")
        pyfuse3.init(self._operations, str(self._mountpoint), options)
        self._is_mounted = True

    async def serve(self) -> None:
        """Answer the kernel until the mount ends: by unmount, or by cancellation."""
        await pyfuse3.main(max_tasks=MAX_TASKS)

    async def raise_background_limit(self) -> bool:
        """The kernel lets 12 buffered reads wait at once; more would stop reads of ready files
        (FUSE.md). True if the limit could be raised. In a thread, because the stat of our own
        mountpoint is answered by this very loop."""
        return await trio.to_thread.run_sync(self._raise_background_limit, abandon_on_cancel=True)

    def _raise_background_limit(self) -> bool:
        device = os.lstat(self._mountpoint).st_dev
        minor = os.minor(device)
        with contextlib.suppress(OSError):  # only root may; nothing depends on it
            (BDI / f"{os.major(device)}:{minor}" / "read_ahead_kb").write_text(str(READ_AHEAD))
        control = CONTROL / str(minor)
        try:
            if not control.exists() and os.getuid() == 0:
                subprocess.run(
                    ["mount", "-t", "fusectl", "none", str(CONTROL)],
                    check=False,
                    timeout=5,
                    capture_output=True,
                )
            (control / "max_background").write_text(str(MAX_BACKGROUND))
            (control / "congestion_threshold").write_text(str(CONGESTION))
        except (OSError, subprocess.SubprocessError) as error:
            log.info("waiting for content happens in open, because at most 12 reads may: %s", error)
            return False
        return True

    def close(self, *, unmount: bool) -> None:
        if self._is_mounted:
            self._is_mounted = False
            pyfuse3.close(unmount=unmount)
