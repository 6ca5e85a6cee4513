"""FirecREST v2 (2.4 to 2.6) as a `Cluster`. Facts: wire/v2/FACTS.md, cited by section.

No state beyond the limits that the server told and the ids of our own transfers, no sleep; the only
retries are those of `http` for calls that change nothing, or were certainly not executed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from f7tfs.api import v2_names, v2_wire
from f7tfs.api.breaker import Breaker
from f7tfs.api.http import ApiClient
from f7tfs.api.names import require
from f7tfs.api.port import Capabilities, FileSystem, Progress, Route, SystemStatus, Ticket
from f7tfs.api.v2_calls import OPS, Calls
from f7tfs.api.v2_errors import error_of, is_scheduler_failure, judge
from f7tfs.api.v2_jobs import Jobs
from f7tfs.api.v2_join import Joins
from f7tfs.api.v2_transfer import Transfers
from f7tfs.api.wire import document, listed, stat_of
from f7tfs.clock import ServerClock
from f7tfs.errors import (
    Exists,
    InvalidArgument,
    NotADirectory,
    NotPermitted,
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

SYSTEMS = "/status/systems"
USERINFO = "/status/{system}/userinfo"

_COMPRESSIONS = {
    ".tar": "none",
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.bz2": "bzip2",
    ".tar.xz": "xz",
}
_SHA256 = re.compile(r"\\?([0-9a-f]{64})", re.IGNORECASE)


class V2Cluster:
    """`port.Cluster` over v2. `account`: what transfers are charged to where a system asks."""

    def __init__(
        self,
        api: ApiClient,
        system: str,
        *,
        account: str | None = None,
        parallel_calls: int = 4,
    ) -> None:
        api.adapt(judge=judge, most_calls=v2_wire.MOST_CALLS)
        api.heartbeat = SYSTEMS  # from the server's memory, nothing on the cluster
        own_transfers: set[str] = set()
        self._calls = Calls(api, system)
        self._jobs = Jobs(self._calls, own_transfers)
        self._transfers = Transfers(self._calls, self._jobs, own_transfers, account)
        self._joins = Joins(self._calls, self._jobs, self._transfers)
        self._system = system
        self._quotes = v2_names.lesson()
        self._parallel_calls = parallel_calls
        self._capabilities = v2_wire.capabilities_of(v2_wire.System(system), "", parallel_calls)

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
        return v2_names.carries(path, route, quotes=self._quotes.is_carried)

    async def learn_carries(self, path: RemotePath, route: Route) -> bool:
        if not self.carries(path, route) and v2_names.carries(path, route, quotes=True):
            await self._learn_quotes(path)
        return self.carries(path, route)

    # Who and what is there.

    async def discover(self) -> Capabilities:
        reply = await self._calls.fetch(SYSTEMS, {}, "list systems")
        systems = v2_wire.systems_of(reply.body)
        # Names and the URL's whole path are told without regard to case (FACTS §1).
        mine = [one for one in systems if one.name.lower() == self._system.lower()]
        if not mine:
            known = tuple(sorted(one.name for one in systems))
            offered = ", ".join(known) or "none"
            raise UnknownSystem(
                f"the server offers no system {self._system!r}; it offers: {offered}", known
            )
        self._transfers.system = mine[0]
        version = reply.headers.get("f7t-appversion", "")  # "2.x.x" from a source build (FACTS §1)
        self._capabilities = v2_wire.capabilities_of(mine[0], version, self._parallel_calls)
        return self._capabilities

    async def systems(self) -> list[SystemStatus]:
        reply = await self._calls.fetch(SYSTEMS, {}, "list systems")
        return [v2_wire.status_of(system) for system in v2_wire.systems_of(reply.body)]

    async def file_systems(self) -> list[FileSystem]:
        reply = await self._calls.fetch(SYSTEMS, {}, "list file systems")
        rows = document(reply.body).get("systems")
        return list(_file_systems(rows, self._system))

    async def whoami(self) -> Identity:
        reply = await self._calls.reply_to(USERINFO, {})
        if is_scheduler_failure(reply):
            raise Unreachable("userinfo: the server does not reach the cluster")
        if reply.status >= 300:
            raise error_of(reply, "userinfo", changes=False)
        return v2_wire.user_of(document(reply.body))

    # Names.

    async def list_directory(self, path: RemotePath) -> list[Listed]:
        """With a trailing slash: a symlink to a directory lists itself without it (FACTS §3). Never
        dereferenced nor recursive: one bad entry fails the whole."""
        await self._check(path)
        query = {"path": path.rstrip("/") + "/", "showHidden": "true", "numericUid": "true"}
        reply = await self._calls.fetch(OPS + "ls", query, f"ls {path}")
        found = v2_wire.entries(reply.body)
        if len(found) == 1 and found[0].name.startswith("/"):
            raise NotADirectory(f"ls {path}: not a directory")
        return [item for entry in found if (item := listed(entry, entry.name))]

    async def list_tree(self, path: RemotePath) -> list[tuple[str, Listed]]:
        raise Unsupported("recursive listings of FirecREST v2 are not used (FACTS §3)")

    async def stat(self, path: RemotePath, *, follow: bool = False) -> Stat:
        await self._check(path)
        query = {"path": path} | ({"dereference": "true"} if follow else {})
        answer = await self._calls.ask(OPS + "stat", query, f"stat {path}")
        return stat_of(answer.get("output"))

    async def read_link(self, path: RemotePath) -> str:
        """By a listing of the link itself: the only call that tells a target (FACTS §3)."""
        await self._check(path)
        query = {"path": path, "showHidden": "true"}
        reply = await self._calls.fetch(OPS + "ls", query, f"readlink {path}")
        found = v2_wire.entries(reply.body)
        if len(found) == 1 and found[0].name.startswith("/"):
            item = listed(found[0], name_of(path) or "/")
            if item and item.kind is Kind.SYMLINK and item.target:
                return item.target
        raise InvalidArgument(f"readlink {path}: not a symbolic link")

    async def make_directory(self, path: RemotePath) -> None:
        await self._check(path)
        body = {"path": path, "parent": False}
        await self._calls.act("POST", OPS + "mkdir", f"mkdir {path}", body=body)

    async def rename(self, source: RemotePath, target: RemotePath) -> None:
        raise Unsupported("FirecREST v2 has no rename call")

    async def move_by_job(self, source: RemotePath, target: RemotePath) -> Ticket:
        return await self._transfers.move(source, target)

    async def copy(self, source: RemotePath, target: RemotePath) -> None:
        raise Unsupported("FirecREST v2 copies only by a job of the scheduler")

    async def remove(self, path: RemotePath) -> None:
        """Without a trailing slash: what is removed is the name, not what it points to."""
        await self._check(path)
        if path.rstrip("/") == "":
            raise InvalidArgument("rm /: refused")
        query = {"path": path.rstrip("/")}
        await self._calls.act("DELETE", OPS + "rm", f"rm {path}", query=query)

    async def change_mode(self, path: RemotePath, permissions: int) -> None:
        """Five digits: with fewer, GNU chmod keeps the set-id bits of directories."""
        await self._check(path)
        body = {"path": path, "mode": f"{permissions & 0o7777:05o}"}
        await self._calls.act("PUT", OPS + "chmod", f"chmod {path}", body=body)

    async def change_owner(self, path: RemotePath, user: str | None, group: str | None) -> None:
        await self._check(path)
        chosen = {"owner": user, "group": group}
        named = {key: value for key, value in chosen.items() if value is not None}
        if not named:
            return
        if not all(map(v2_names.is_identifier, named.values())):
            raise InvalidArgument(f"chown {path}: not a user or group")
        await self._calls.act("PUT", OPS + "chown", f"chown {path}", body={"path": path, **named})

    async def symlink(self, target: str, link: RemotePath) -> None:
        """Only absolute targets, and only inside the system's file systems (FACTS §5): Unsupported
        for others. A directory at `link` is reported by the server as a success: the new link
        stands in it, under the target's name."""
        await self._check(target, link)
        if not target.startswith("/"):
            raise Unsupported(f"ln -s {link}: FirecREST v2 makes no relative links")
        body = {"path": target, "linkPath": link}
        try:
            answer = await self._calls.act("POST", OPS + "symlink", f"ln -s {link}", body=body)
        except NotPermitted as error:
            raise Unsupported(str(error)) from error
        kind = v2_wire.field(answer.get("output"), "type")
        if kind not in {"l", None}:
            stray = name_of(RemotePath(target.rstrip("/")))
            raise Exists(f"ln -s {link}: there is a directory, in which the link {stray!r} is now")

    async def checksum(self, path: RemotePath) -> str:
        await self._check(path)
        if not v2_names.carries_checksum(path):
            raise Unsupported(f"sha256sum {path}: FirecREST v2 fails on white space in a name")
        answer = await self._calls.ask(OPS + "checksum", {"path": path}, f"sha256sum {path}")
        told = v2_wire.field(answer.get("output"), "checksum")
        found = _SHA256.fullmatch(str(told or ""))
        if found is None:
            raise Unreachable("the reply to checksum is not FirecREST's")
        return found[1].lower()

    async def compress(self, source: RemotePath, archive: RemotePath) -> None:
        require(v2_names.carries_archive(source), source)
        await self._archive("compress", "tar c", archive, source, archive)

    async def extract(self, archive: RemotePath, directory: RemotePath) -> None:
        require(v2_names.carries_archive(directory), directory)
        await self._archive("extract", "tar x", archive, archive, directory)

    # Content, small: one call.

    async def download(self, path: RemotePath) -> bytes:
        await self._check(path)
        what = f"download {path}"
        reply = await self._calls.fetch(OPS + "download", {"path": path}, what)
        if reply.headers.get("content-type", "").startswith("text/html"):
            raise Unreachable(f"{what}: the reply is not FirecREST's")
        return reply.body

    async def head(self, path: RemotePath, count: int) -> bytes:
        """Nothing is asked for nothing: to the server, 0 bytes are ten lines (FACTS §4)."""
        await self._check(path)
        if count <= 0:
            return b""
        query = {"path": path, "bytes": str(count)}
        what = f"head {path}"
        content = v2_wire.exact(await self._calls.ask(OPS + "head", query, what), what)
        if len(content) > count:
            raise Unreachable(f"{what}: the server sent more than was asked")
        return content

    async def tail(self, path: RemotePath, offset: int) -> bytes:
        """The server counts bytes from 1 (FACTS §4)."""
        await self._check(path)
        query = {"path": path, "bytes": str(offset + 1), "skipHeading": "true"}
        what = f"tail {path}"
        return v2_wire.exact(await self._calls.ask(OPS + "tail", query, what), what)

    async def upload(self, path: RemotePath, content: bytes) -> None:
        """Not of nothing: the file would be there at once, and the answer, 408, after 5 s (§5)."""
        await self._check(path)
        require(v2_names.carries_file_name(path), path)
        what = f"upload {path}"
        if not content:
            raise Unsupported(f"{what}: FirecREST v2 uploads no empty files")
        if len(content) > self._capabilities.direct_upload_limit:
            raise TooLarge(f"{what}: {len(content)} bytes are too many for one call")
        await self._calls.act(
            "POST",
            OPS + "upload",
            what,
            query={"path": parent_of(path)},
            files={"file": (name_of(path), content)},
        )

    # Content, staged.

    async def stage_download(self, path: RemotePath) -> Ticket:
        return await self._transfers.stage_download(path)

    async def stage_upload(self, path: RemotePath, size: int) -> Ticket:
        return await self._transfers.stage_upload(path, size)

    async def progress(self, ticket: Ticket) -> Progress:
        """An upload is READY, with its parts, for as long as its job runs, whether they were sent
        or not: who sent them knows. DONE means that the job is over; `stat` tells whether the file
        is there (FACTS §7), and if not, `error` holds what the job's error log says."""
        return await self._who_moves(ticket).progress(ticket)

    async def withdraw(self, ticket: Ticket) -> None:
        await self._who_moves(ticket).withdraw(ticket)

    def litter(self, ticket: Ticket) -> tuple[RemotePath, ...]:
        return self._who_moves(ticket).litter(ticket)

    def _who_moves(self, ticket: Ticket) -> Joins | Transfers:
        return self._joins if ticket.joins else self._transfers

    # Content, in pieces.

    def plan_join(self, pieces: Sequence[RemotePath], path: RemotePath, sha256: str) -> Ticket:
        return self._joins.plan(pieces, path, sha256)

    async def join(self, ticket: Ticket) -> None:
        await self._joins.start(ticket)

    # Jobs.

    async def submit(
        self, script: bytes, tag: str, account: str | None, directory: RemotePath
    ) -> Submitted:
        return await self._jobs.submit(script, tag, account, directory)

    async def jobs(self, *, reasons: bool = False) -> list[Job]:
        return await self._jobs.all()

    async def accounting(self, ids: Sequence[str]) -> list[Job]:
        return await self._jobs.accounted(ids)

    async def job_paths(self, job: Job) -> Submitted:
        return await self._jobs.paths(job.id)

    async def submitted_as(self, tags: Collection[str]) -> dict[str, Submitted]:
        return await self._jobs.submitted_as(tags)

    async def cancel(self, job_id: str) -> None:
        await self._jobs.cancel(job_id)

    # Shared.

    async def _check(self, *paths: str) -> None:
        """Parameters of one command, the last a path."""
        if not v2_names.carries_text(*paths) and v2_names.carries_text(*paths, quotes=True):
            await self._learn_quotes(RemotePath(paths[-1]))
        require(v2_names.carries_text(*paths, quotes=self._quotes.is_carried), *paths)

    async def _learn_quotes(self, path: RemotePath) -> None:
        async def stat(probe: RemotePath) -> None:
            await self._calls.ask(OPS + "stat", {"path": probe}, "probe")

        await self._quotes.learn(path, v2_names.carries_text, stat)

    async def _archive(
        self, call: str, verb: str, archive: RemotePath, source: RemotePath, target: RemotePath
    ) -> None:
        """Gzip is the server's default, whatever the name says: it is told."""
        await self._check(source, target)
        name = name_of(archive).lower()
        kinds = [kind for ending, kind in _COMPRESSIONS.items() if name.endswith(ending)]
        if not kinds:
            raise InvalidArgument(f"{verb} {archive}: not the name of an archive")
        body = {"path": source, "targetPath": target, "compression": kinds[0]}
        await self._calls.act("POST", OPS + call, f"{verb} {source} → {target}", body=body)


def _file_systems(systems: Any, name: str) -> Iterator[FileSystem]:
    """From [{"name", "fileSystems": [{"path", "dataType", "defaultWorkDir"}]}]; names of systems
    are told without regard to case (FACTS §1)."""
    for system in systems if isinstance(systems, list) else ():
        if str(v2_wire.field(system, "name")).lower() != name.lower():
            continue
        rows = v2_wire.field(system, "fileSystems")
        for row in rows if isinstance(rows, list) else ():
            path = v2_wire.field(row, "path")
            if isinstance(path, str) and path.startswith("/") and "\0" not in path:
                kind = str(v2_wire.field(row, "dataType") or "")
                default = v2_wire.field(row, "defaultWorkDir") is True
                yield FileSystem(remote_path(path), kind, default)
