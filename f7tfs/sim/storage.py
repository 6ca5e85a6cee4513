"""/storage/xfer-external: staged uploads and downloads (v1 FACTS §6, §7)."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.cluster import Cluster, Outcome, System
from f7tfs.sim.objects import ObjectStore
from f7tfs.sim.replies import Refused, flask_page, gunicorn_page, refuse, reply
from f7tfs.sim.service import Call, Service
from f7tfs.sim.tasks import Task, TaskBook
from f7tfs.sim.tokens import Tokens
from f7tfs.sim.utilities import UNKNOWN_USER

# `-F file=@/path` stands unquoted on the command line: the shell and curl read these (§3).
_UNSTAGEABLE = re.compile(r"[ ,$]|\{.*\}")
_WAITING_TEXT = (
    "Waiting for Presigned URL to upload file to staging area (Amazon S3 - Signature v4)"
)


@dataclass
class Upload:
    """An external upload that the sweeps look at until it is done."""

    task: Task
    system: System
    user: str
    target: str
    key: str
    shown: dict[str, Any]
    """The 111 payload, which 112 and (with its own status) 115 show again."""
    listed: dict[str, Any]

    @property
    def failed(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The form once more, as 115 shows it: without a word of what went wrong."""
        return {**self.shown, "status": "115"}, {**self.listed, "status": "115"}

    @property
    def done(self) -> dict[str, str]:
        return {
            "source": os.path.basename(self.key),
            "target": self.target,
            "system_name": self.system.name,
            "system_addr": self.system.address,
        }


Spawn = Callable[..., None]


class Storage:
    def __init__(
        self,
        cluster: Cluster,
        tokens: Tokens,
        book: TaskBook,
        store: ObjectStore,
        spawn: Spawn,
    ) -> None:
        """`spawn(async_function, *arguments)` starts work that outlives the request."""
        self._cluster = cluster
        self._book = book
        self._store = store
        self._spawn = spawn
        self._pending: dict[str, Upload] = {}
        self._may_stage = trio.Event()
        self._may_stage.set()
        self.service = Service("/storage", tokens, cluster.options.latency)

    def routes(self) -> list[Route]:
        route = self.service.route
        return [
            route("/xfer-external/upload", "POST", self.upload),
            route("/xfer-external/download", "POST", self.download),
            route("/xfer-external/invalidate", "POST", self.invalidate),
            route("/status", "GET", self.status),
        ]

    # -- uploads

    async def upload(self, call: Call) -> Response:
        system = call.system(self._cluster, "Failed operation")
        target = call.checked("targetPath", "Failed to upload file")
        source = call.checked("sourcePath", "Failed to upload file")
        name = os.path.basename(source)
        denial = await self._try_directory(call.user, system, target)
        if denial is None:
            target = f"{target.rstrip('/')}/{name}"
        else:
            parent = os.path.dirname(target)
            denial = await self._try_directory(call.user, system, parent)
            if denial is not None:
                raise refuse(
                    "Failed to upload file",
                    "'targetPath' directory not allowed",
                    headers=path_header(parent, denial),
                )
        task = self._book.create(call.user, "storage", system.name)
        facts = {
            "hash_id": task.id,
            "source": name,
            "target": target,
            "system_name": system.name,
            "system_addr": system.address,
            "trace_id": "",
            "user": call.user,
        }
        self._book.update(task, "110", {**facts, "status": "110", "msg": _WAITING_TEXT})
        upload = Upload(task, system, call.user, target, f"{task.id}/{name}", facts, facts)
        self._spawn(self._offer_form, upload, source)
        return created(task)

    async def _try_directory(self, user: str, system: System, path: str) -> Outcome | None:
        """Write and remove a file there, as the server does: the directory's mtime changes."""
        probe = f"{path}/.firecrest.{hashlib.md5(secrets.token_bytes(8)).hexdigest()}"
        if user not in self._cluster.users:
            return Outcome(error=UNKNOWN_USER, code=1)
        if self._cluster.fenced(user, probe, follows=False):
            return Outcome(error=f"touch: cannot touch '{probe}': Permission denied", code=1)
        command = f"touch -- '{probe}' && rm -- '{probe}'"
        outcome = await self._cluster.run(system, user, command)
        return outcome if outcome.failed else None

    async def _offer_form(self, upload: Upload, source: str) -> None:
        await trio.sleep(0.01)  # 110 lasts a few milliseconds
        url, fields = self._store.form(upload.user, upload.key)
        link = self._store.link(upload.user, upload.key)
        parts = "".join(f" -F '{name}={value}'" for name, value in fields.items())
        # the blanks are the server's; sourcePath stands there unquoted
        command = f"curl -f --show-error -s -i -X POST             {url}{parts} -F file=@{source}"
        message = {
            "command": command,
            "parameters": {
                "method": "POST",
                "url": url,
                "data": fields,
                "files": source,
                "headers": {},
                "json": {},
                "params": {},
            },
        }
        internal = message | {
            "action": f"curl -f -s -G -o '{upload.target}' -- '{link}'",
            "download_url": link,
            "cert": ["gAAAAAB" + secrets.token_urlsafe(1240), "/tmp/dummy" + secrets.token_hex(4)],
        }
        facts = upload.shown
        upload.shown = {**facts, "status": "111", "msg": message}
        upload.listed = {**facts, "status": "111", "msg": internal}
        self._book.update(upload.task, "111", upload.shown, upload.listed)
        self._pending[upload.task.id] = upload

    async def sweep(self) -> None:
        """What the polling thread does each interval; ends when its downloads have ended."""
        async with trio.open_nursery() as nursery:
            for ident, upload in list(self._pending.items()):
                if self._store.find(upload.user, upload.key) is not None:
                    del self._pending[ident]  # no other sweep takes it meanwhile
                    nursery.start_soon(self._fetch, upload)

    async def _fetch(self, upload: Upload) -> None:
        """The cluster downloads in place as the user: truncates, grows, keeps the inode (§6)."""
        book, cluster = self._book, self._cluster
        book.update(upload.task, "112", upload.shown, upload.listed)
        await trio.sleep(0.005)
        book.update(upload.task, "113", upload.done)
        stored = self._store.find(upload.user, upload.key)
        fetched = False
        if stored and not cluster.fenced(upload.user, upload.target, follows=True):
            size = cluster.room.take(stored.size)
            with stored.path.open("rb") as content:
                fetched = await cluster.copy(
                    upload.system, upload.user, f"head -c {size} > '{upload.target}'", stdin=content
                )
            fetched = fetched and size == stored.size
        if fetched:
            self._store.delete(upload.user, upload.key)
            book.update(upload.task, "114", upload.done)
        else:
            book.update(upload.task, "115", *upload.failed)
            self._pending[upload.task.id] = upload  # not final: the next sweep tries again

    async def sweep_forever(self) -> None:
        while True:
            await trio.sleep(self._cluster.options.staging_interval)
            self._spawn(self.sweep)

    # -- downloads

    def hold(self, held: bool) -> None:
        """While it is held, downloads stay at 116, as those of large files do."""
        if not held:
            self._may_stage.set()
        elif self._may_stage.is_set():
            self._may_stage = trio.Event()

    async def download(self, call: Call) -> Response:
        system = call.system(self._cluster, "Failed operation")
        source = call.checked("sourcePath", "Failed to download file")
        outcome: Outcome | None = None
        if call.user not in self._cluster.users:
            outcome = Outcome(error=UNKNOWN_USER, code=1)
        elif self._cluster.fenced(call.user, source, follows=True):
            outcome = Outcome(error=f"head: {source}: Permission denied", code=1)
        else:
            with trio.move_on_after(self._cluster.options.worker_timeout):
                # no time limit on the command: a FIFO blocks the service, until its worker dies
                outcome, _ = await self._cluster.run_bytes(
                    system, call.user, f"head -c 1 -- '{source}' > /dev/null"
                )
        if outcome is None:
            return gunicorn_page(500, "Internal Server Error")
        if outcome.failed:
            raise refuse("sourcePath error", headers=path_header(source, outcome))
        task = self._book.create(call.user, "storage", system.name)
        self._spawn(self._stage, task, system, call.user, source)
        return created(task)

    async def _stage(self, task: Task, system: System, user: str, source: str) -> None:
        facts = {"source": source, "system_name": system.name}
        await trio.sleep(0.005)
        self._book.update(task, "116", facts)
        await self._may_stage.wait()
        name = os.path.basename(source)
        key = f"{task.id}/{name}"
        with self._store.blank() as file:
            staged = not _UNSTAGEABLE.search(source) and await self._cluster.copy(
                system, user, f"cat -- '{source}'", stdout=file
            )
            if staged:
                self._store.adopt(user, key, file)
            else:
                Path(file.name).unlink()
        if staged:
            link = self._store.link(user, key)
            bare = self._cluster.options.bare_link
            self._book.update(task, "117", link if bare else facts | {"url": link})
        else:
            error = (
                f"Upload to Staging area has failed. Object: {name}. "
                "curl: (26) Failed to open/read local data from file/application"
            )
            self._book.update(task, "118", facts | {"error": error})

    async def invalidate(self, call: Call) -> Response:
        """Answers success and deletes nothing; a pending upload goes on all the same (§6, §7)."""
        ident = call.request.headers.get("x-task-id")
        if ident is None:
            return reply({"error": "Header X-Task-Id missing"}, 400)
        if not ident.isalnum():
            return reply({"error": "Header X-Task-Id is not alphanumeric"}, 400)
        task = self._book.find(ident)
        if task is None or task.user != call.user:
            return reply({"error": "Invalid X-Task-Id"}, 400)
        if not self._store.holds(call.user, f"{ident}/"):
            return flask_page(500)
        self._book.invalidate(task)
        return reply({"success": "URL invalidated successfully"}, 201)

    async def status(self, call: Call) -> Response:
        return reply({"success": "ack"})


def created(task: Task) -> Response:
    return reply(
        {"success": "Task created", "task_id": task.id, "task_url": f"/tasks/{task.id}"}, 201
    )


def path_header(path: str, outcome: Outcome) -> dict[str, str]:
    """is_valid_file and is_valid_dir have words of their own (cscs_api_common.py:912-960)."""
    error = outcome.error or "None"
    if "Permission denied" in error:
        text = "User does not have permissions to access machine or path"
        return {"X-Permission-Denied": text}
    if "No such file" in error:
        return {"X-Invalid-Path": f"{path} is an invalid path."}
    if "Not a directory" in error:
        return {"X-Not-A-Directory": f"{path} is not a directory"}
    if "directory" in error:
        return {"X-A-Directory": f"{path} is a directory"}
    return {"X-Error": error}


def path_refusal(description: str, path: str, outcome: Outcome) -> Refused:
    return refuse(description, headers=path_header(path, outcome))
