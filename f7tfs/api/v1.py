"""FirecREST v1 (1.13 to 1.16) as a `Cluster`. Facts: wire/v1/FACTS.md, cited by section.

No state beyond the limits that the server told, no sleep; the only retries are those of `http` for
calls that change nothing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import trio

from f7tfs.api import v1_names, v1_poisoned, v1_wire
from f7tfs.api.breaker import Breaker
from f7tfs.api.http import ApiClient
from f7tfs.api.names import require
from f7tfs.api.port import Capabilities, FileSystem, Progress, Route, SystemStatus, Ticket
from f7tfs.api.tasks import TaskBoard
from f7tfs.api.v1_calls import Calls, task_id_of
from f7tfs.api.v1_errors import PoisonedListing
from f7tfs.api.v1_jobs import Jobs
from f7tfs.clock import ServerClock
from f7tfs.errors import (
    InvalidArgument,
    NotADirectory,
    NotFound,
    ServerError,
    TooLarge,
    UnknownSystem,
    Unreachable,
    Unsupported,
)
from f7tfs.model import (
    Identity,
    Job,
    Kind,
    Listed,
    RemotePath,
    Stat,
    Submitted,
    name_of,
    parent_of,
    remote_path,
)

# The server never opens the source of an upload; its basename names the staged object (FACTS §6).
STAGED_NAME = "content"
SLICE = 1000  # entries of a recursive listing understood before other tasks have a turn


class V1Cluster:
    """`port.Cluster` over v1. `job_timeout`: seconds that the task of a job call may take."""

    def __init__(
        self,
        api: ApiClient,
        tasks: TaskBoard,
        system: str,
        *,
        parallel_calls: int = 4,
        job_timeout: float = 60.0,
    ) -> None:
        api.heartbeat = "/status/parameters"  # 2 ms, nothing on the cluster (FACTS §10)
        self._calls = Calls(api, system)
        self._tasks = tasks
        self._jobs = Jobs(self._calls, tasks, task_timeout=job_timeout)
        self._system = system
        self._spaces = v1_names.lesson()
        self._parallel_calls = parallel_calls
        self._capabilities = v1_wire.capabilities_of(v1_wire.Parameters(), parallel_calls)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def system(self) -> str:
        return self._system

    @property
    def calls(self) -> Mapping[str, int]:
        return self._calls.api.calls

    @property
    def breaker(self) -> Breaker:
        return self._calls.api.breaker

    @property
    def clock(self) -> ServerClock:
        return self._calls.api.clock

    def carries(self, path: RemotePath, route: Route) -> bool:
        return v1_names.carries(path, route, spaces=self._spaces.is_carried)

    async def learn_carries(self, path: RemotePath, route: Route) -> bool:
        if not self.carries(path, route) and v1_names.carries(path, route, spaces=True):
            await self._learn_spaces(path)
        return self.carries(path, route)

    # Who and what is there.

    async def discover(self) -> Capabilities:
        """The parameters name the systems, in 2 ms; /status/systems took 4 s (FACTS §10) and is
        asked only where they do not."""
        told = v1_wire.parameters_of(await self._calls.status("/status/parameters"))
        if told.systems is None or self._system not in told.systems:
            known = tuple(sorted(status.name for status in await self.systems()))
            if self._system not in known:
                offered = ", ".join(known) or "none"
                raise UnknownSystem(
                    f"the server offers no system {self._system!r}; it offers: {offered}", known
                )
        self._capabilities = v1_wire.capabilities_of(told, self._parallel_calls)
        return self._capabilities

    async def systems(self) -> list[SystemStatus]:
        return v1_wire.systems_of(await self._calls.status("/status/systems"))

    async def file_systems(self) -> list[FileSystem]:
        """/status/filesystems is slow and cached for 960 s (FACTS §10); the parameters, which tell
        less, stand in where a server does not have it."""
        try:
            told = await self._calls.status(f"/status/filesystems/{quote(self._system, safe='')}")
        except (NotFound, ServerError, Unsupported):
            told = _mounted(await self._calls.status("/status/parameters"), self._system)
        return list(_file_systems(told))

    async def whoami(self) -> Identity:
        answer = await self._calls.ask("/utilities/whoami", {"groups": "true"}, "whoami")
        return v1_wire.identity_of(answer.get("output"))

    # Names.

    async def list_directory(self, path: RemotePath) -> list[Listed]:
        """With a trailing slash: a symlink to a directory lists itself without it (FACTS §4)."""
        await self._check(path)
        query = {"targetPath": path.rstrip("/") + "/", "showhidden": "true", "numericUid": "true"}
        try:
            reply = await self._calls.fetch("/utilities/ls", query, f"ls {path}")
        except PoisonedListing as error:
            if (understood := v1_poisoned.entries_in(error.text)) is None:
                raise
            return understood
        found = v1_wire.entries(reply.body)
        if len(found) == 1 and found[0].name.startswith("/"):
            raise NotADirectory(f"ls {path}: not a directory")
        return [item for entry in found if (item := v1_wire.listed(entry, entry.name))]

    async def list_tree(self, path: RemotePath) -> list[tuple[str, Listed]]:
        """Without a trailing slash, as the names relative to the root were observed; so a symlink
        to a directory is NotADirectory here. Owners as numbers, as `list_directory` has them."""
        await self._check(path)
        if path == "/":
            raise Unsupported("a recursive listing of / is not asked for")
        query = {
            "targetPath": path, "showhidden": "true", "numericUid": "true", "recursive": "true",
        }  # fmt: skip
        reply = await self._calls.fetch("/utilities/ls", query, f"ls -R {path}")
        found = v1_wire.entries(reply.body)
        if len(found) == 1 and found[0].name.startswith("/"):
            raise NotADirectory(f"ls -R {path}: not a directory")
        tree: list[tuple[str, Listed]] = []
        for item in v1_wire.tree(found, path):
            tree.append(item)
            if len(tree) % SLICE == 0:
                await trio.lowlevel.checkpoint()
        return tree

    async def stat(self, path: RemotePath, *, follow: bool = False) -> Stat:
        await self._check(path)
        query = {"targetPath": path} | ({"dereference": "true"} if follow else {})
        answer = await self._calls.ask("/utilities/stat", query, f"stat {path}")
        return v1_wire.stat_of(answer.get("output"))

    async def read_link(self, path: RemotePath) -> str:
        """By a listing of the link itself: the only call that tells a target (FACTS §4)."""
        await self._check(path)
        query = {"targetPath": path, "showhidden": "true"}
        reply = await self._calls.fetch("/utilities/ls", query, f"readlink {path}")
        found = v1_wire.entries(reply.body)
        if len(found) == 1 and found[0].name.startswith("/"):
            item = v1_wire.listed(found[0], name_of(path) or "/")
            if item and item.kind is Kind.SYMLINK and item.target:
                return item.target
        raise InvalidArgument(f"readlink {path}: not a symbolic link")

    async def make_directory(self, path: RemotePath) -> None:
        await self._check(path)
        await self._calls.act(
            "POST", "/utilities/mkdir", f"mkdir {path}", form={"targetPath": path}
        )

    async def rename(self, source: RemotePath, target: RemotePath) -> None:
        await self._from_to("PUT", "/utilities/rename", "mv", source, target)

    async def move_by_job(self, source: RemotePath, target: RemotePath) -> Ticket:
        raise Unsupported("v1 has a rename call")

    async def copy(self, source: RemotePath, target: RemotePath) -> None:
        await self._from_to("POST", "/utilities/copy", "cp", source, target)

    async def remove(self, path: RemotePath) -> None:
        """Without a trailing slash, ever: with one, rm empties what a symlink points to (§4)."""
        await self._check(path)
        if path.rstrip("/") == "":
            raise InvalidArgument("rm /: refused")
        form = {"targetPath": path.rstrip("/")}
        await self._calls.act("DELETE", "/utilities/rm", f"rm {path}", form=form)

    async def change_mode(self, path: RemotePath, permissions: int) -> None:
        """Five digits: with fewer, GNU chmod keeps the set-id bits of directories."""
        await self._check(path)
        form = {"targetPath": path, "mode": f"{permissions & 0o7777:05o}"}
        await self._calls.act("PUT", "/utilities/chmod", f"chmod {path}", form=form)

    async def change_owner(self, path: RemotePath, user: str | None, group: str | None) -> None:
        await self._check(path)
        chosen = {"owner": user, "group": group}
        form = {name: value for name, value in chosen.items() if value is not None}
        if not form:
            return
        if not v1_names.carries_text(*form.values()):
            raise InvalidArgument(f"chown {path}: not a user or group")
        await self._calls.act(
            "PUT", "/utilities/chown", f"chown {path}", form={"targetPath": path, **form}
        )

    async def symlink(self, target: str, link: RemotePath) -> None:
        await self._check_all(target, link)
        form = {"targetPath": target, "linkPath": link}
        await self._calls.act("POST", "/utilities/symlink", f"ln -s {link}", form=form)

    async def checksum(self, path: RemotePath) -> str:
        await self._check(path)
        answer = await self._calls.ask(
            "/utilities/checksum", {"targetPath": path}, f"sha256sum {path}"
        )
        words = str(answer.get("output") or "").split()
        if not words:
            raise Unreachable("the reply to checksum is not FirecREST's")
        return words[0].lower()

    async def compress(self, source: RemotePath, archive: RemotePath) -> None:
        await self._from_to("POST", "/utilities/compress", "tar c", source, archive)

    async def extract(self, archive: RemotePath, directory: RemotePath) -> None:
        await self._from_to("POST", "/utilities/extract", "tar x", archive, directory)

    # Content, small: one call.

    async def download(self, path: RemotePath) -> bytes:
        """The file's name travels back in a header, which a DEL breaks (FACTS §3)."""
        await self._check(path)
        require("\x7f" not in name_of(path), path)
        what = f"download {path}"
        reply = await self._calls.fetch("/utilities/download", {"sourcePath": path}, what)
        if (
            reply.headers.get("content-type", "").startswith("text/html")
            and "content-disposition" not in reply.headers
        ):
            raise Unreachable(f"{what}: the reply is not FirecREST's")
        return reply.body

    async def head(self, path: RemotePath, count: int) -> bytes:
        """Exact: the server decodes strictly as UTF-8 and fails on everything else, also on a
        character cut in two (FACTS §4), which is Unsupported."""
        await self._check(path)
        if count <= 0:
            return b""
        query = {"targetPath": path, "bytes": str(count)}
        return await self._text("/utilities/head", query, f"head {path}")

    async def tail(self, path: RemotePath, offset: int) -> bytes:
        await self._check(path)
        query = {"targetPath": path, "bytes": str(offset + 1), "skip_beginning": "true"}
        return await self._text("/utilities/tail", query, f"tail {path}")

    async def upload(self, path: RemotePath, content: bytes) -> None:
        await self._check(path)
        if len(content) > self._capabilities.direct_upload_limit:
            raise TooLarge(f"upload {path}: {len(content)} bytes are too many for one call")
        form = {"targetPath": parent_of(path)}
        files = {"file": (name_of(path), content)}
        await self._calls.act("POST", "/utilities/upload", f"upload {path}", form=form, files=files)

    # Content, staged.

    async def stage_download(self, path: RemotePath) -> Ticket:
        await self._check(path, Route.STAGED_DOWNLOAD)
        what = f"stage {path}"
        answer = await self._calls.act(
            "POST", "/storage/xfer-external/download", what, form={"sourcePath": path}
        )
        return Ticket(task_id_of(answer, what), path)

    async def stage_upload(self, path: RemotePath, size: int) -> Ticket:
        await self._check(path, Route.STAGED_UPLOAD)
        limit = self._capabilities.staged_upload_limit
        if limit is not None and size > limit:
            raise TooLarge(f"upload {path}: {size} bytes are more than the staging area takes")
        what = f"upload {path}"
        form = {"targetPath": path, "sourcePath": STAGED_NAME}
        answer = await self._calls.act("POST", "/storage/xfer-external/upload", what, form=form)
        return Ticket(task_id_of(answer, what), path)

    async def progress(self, ticket: Ticket) -> Progress:
        return v1_wire.progress_of(await self._tasks.observe(ticket.task_id))

    async def withdraw(self, ticket: Ticket) -> None:
        """The server refuses when there is no object yet, or no such task: nothing to withdraw."""
        try:
            await self._calls.act(
                "POST",
                "/storage/xfer-external/invalidate",
                f"withdraw {posixpath.basename(ticket.path)}",
                headers={"X-Task-Id": ticket.task_id},
            )
        except (ServerError, NotFound):
            pass

    def litter(self, ticket: Ticket) -> tuple[RemotePath, ...]:
        return ()

    # Content, in pieces.

    def plan_join(self, pieces: Sequence[RemotePath], path: RemotePath, sha256: str) -> Ticket:
        raise Unsupported("FirecREST v1 needs no pieces: its staging is no job")

    async def join(self, ticket: Ticket) -> None:
        raise Unsupported("FirecREST v1 needs no pieces: its staging is no job")

    # Jobs.

    async def submit(
        self, script: bytes, tag: str, account: str | None, directory: RemotePath
    ) -> Submitted:
        """v1 runs the script in a directory of its own making, whatever `directory` (FACTS §9)."""
        return await self._jobs.submit(script, tag, account)

    async def jobs(self, *, reasons: bool = False) -> list[Job]:
        return await self._jobs.all(reasons=reasons)

    async def accounting(self, ids: Sequence[str]) -> list[Job]:
        return await self._jobs.accounted(ids)

    async def job_paths(self, job: Job) -> Submitted:
        return await self._jobs.paths(job)

    async def submitted_as(self, tags: Collection[str]) -> dict[str, Submitted]:
        return await self._jobs.submitted_as(tags)

    async def cancel(self, job_id: str) -> None:
        await self._jobs.cancel(job_id)

    # Shared.

    async def _check(self, path: RemotePath, route: Route = Route.COMMAND) -> None:
        require(await self.learn_carries(path, route), path)

    async def _check_all(self, *texts: str) -> None:
        """Parameters of one command, the last a path; they share the command's length."""
        if not v1_names.carries_text(*texts) and v1_names.carries_text(*texts, spaces=True):
            await self._learn_spaces(RemotePath(texts[-1]))
        require(v1_names.carries_text(*texts, spaces=self._spaces.is_carried), *texts)

    async def _learn_spaces(self, path: RemotePath) -> None:
        async def stat(probe: RemotePath) -> None:
            await self._calls.ask("/utilities/stat", {"targetPath": probe}, "probe")

        await self._spaces.learn(path, v1_names.carries_text, stat)

    async def _from_to(
        self, method: str, endpoint: str, verb: str, source: RemotePath, target: RemotePath
    ) -> None:
        await self._check_all(source, target)
        form = {"sourcePath": source, "targetPath": target}
        await self._calls.act(method, endpoint, f"{verb} {source} → {target}", form=form)

    async def _text(self, endpoint: str, query: dict[str, str], what: str) -> bytes:
        output = (await self._calls.ask(endpoint, query, what)).get("output")
        if not isinstance(output, str):
            raise Unreachable(f"{what}: the reply is not FirecREST's")
        return output.encode("utf-8", "surrogatepass")


def _file_systems(rows: Any) -> Iterator[FileSystem]:
    """From [{"name": "HOME", "path": "/home", …}]."""
    for row in rows if isinstance(rows, list) else ():
        path = row.get("path") if isinstance(row, dict) else None
        if isinstance(path, str) and path.startswith("/") and "\0" not in path:
            yield FileSystem(remote_path(path), str(row.get("name") or ""))


def _mounted(parameters: Any, system: str) -> list[dict[str, Any]]:
    """FILESYSTEMS of the parameters: [{"system": …, "mounted": [path, …]}], like the reply of
    /status/filesystems, without names."""
    groups = parameters.values() if isinstance(parameters, dict) else ()
    rows = [row for group in groups if isinstance(group, list) for row in group]
    found = []
    for row in rows:
        if not isinstance(row, dict) or row.get("name") != "FILESYSTEMS":
            continue
        for one in row["value"] if isinstance(row.get("value"), list) else ():
            if isinstance(one, dict) and one.get("system") == system:
                paths = one.get("mounted")
                found += [{"path": path} for path in (paths if isinstance(paths, list) else ())]
    return found
