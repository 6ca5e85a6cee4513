"""/filesystem/{system}/transfer: everything here is a job of the scheduler (v2 FACTS §7, §8)."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.objects import ObjectStore
from f7tfs.sim.scheduler import Job, Scheduler
from f7tfs.sim.v2 import moving
from f7tfs.sim.v2.moving import Moving, Work
from f7tfs.sim.v2.parts import Parts
from f7tfs.sim.v2.replies import ApiError, Unhandled, invalid, missing, reply
from f7tfs.sim.v2.service import Call, Service, given, snake
from f7tfs.sim.v2.shell import STAND_IN
from f7tfs.sim.v2.staging import Staging
from f7tfs.sim.v2.systems import JOB_LIMIT, Injections
from f7tfs.sim.v2.writing import compression_of

_METHODS = {"s3", "streamer", "wormhole"}
Body = Callable[[Job], Awaitable[int]]


class Transfer:
    def __init__(
        self,
        service: Service,
        scheduler: Scheduler,
        store: ObjectStore,
        parts: Parts,
        injections: Injections,
    ) -> None:
        self._service = service
        self._scheduler = scheduler
        self._store = store
        self._parts = parts
        self._staging = Staging(service.shell, store, injections)
        self._moving = Moving(service.shell)
        self._dialect = service.systems.dialect
        self._limit = f"timeout {service.cluster.options.command_limit:g}"

    def routes(self) -> list[Route]:
        def one(name: str, method: str, checks_path: bool = True) -> Route:
            return self._service.route(
                f"/filesystem/{{system}}/transfer/{name}",
                method,
                getattr(self, name),
                checks_path=checks_path,
                service="scheduler",
                blocks=True,
            )

        return [
            one("upload", "POST", False),
            one("download", "POST", False),
            one("mv", "POST"),
            one("cp", "POST"),
            one("rm", "DELETE"),
            one("compress", "POST"),
            one("extract", "POST"),
        ]

    # -- staged

    async def upload(self, call: Call) -> Response:
        """Nothing of the target is looked at: the job will see (§7)."""
        directives = self._directives(call)
        self._account(call)
        path = call.raw_path
        size = given(directives, "fileSize")
        if not self._dialect.has_directives:
            path = f"{path}/{call.text('fileName')}" if call.given("fileName") else path
            size = call.given("fileSize")
        name = os.path.basename(path)
        if not isinstance(size, int):
            raise Unhandled("unsupported operand type(s) for /: 'NoneType' and 'int'")
        if "\n" in name:
            raise Unhandled(
                "An error occurred (404) when calling the CreateMultipartUpload operation: "
                "Not Found"
            )
        place = call.place
        key = f"{uuid.uuid4()}/{name}"
        links, complete = self._parts.begin(call.user, key, math.ceil(size / place.part_size))
        job = await self._submit(
            call,
            "IngressFileTransfer",
            lambda job: self._staging.ingest(job, place, key, path),
        )
        if not self._dialect.has_directives:
            top = {
                "partsUploadUrls": links,
                "completeMultipartUploadUrl": complete,
                "maxPartSize": place.part_size,
            }
            return reply(self._transfer_job(call, job) | top, 201)
        told = {
            "transferMethod": "s3",
            "partsUploadUrls": links,
            "completeUploadUrl": complete,
            "maxPartSize": place.part_size,
        }
        return self._answer(call, job, told)

    async def download(self, call: Call) -> Response:
        self._directives(call)
        self._account(call)
        place, path = call.place, call.raw_path
        command = f"{self._limit} stat --dereference --format=%s -- {{0}}"
        result = await self._service.shell.run(place, call.user, command, path, tool="stat")
        size = int(result.text)
        key = f"{uuid.uuid4()}/{os.path.basename(path)}"
        job = await self._submit(
            call,
            "OutgressFileTransfer",
            lambda job: self._staging.outgest(job, place, key, path, size),
        )
        link = self._store.link(call.user, key)
        if not self._dialect.has_directives:
            return reply(self._transfer_job(call, job) | {"downloadUrl": link}, 201)
        return self._answer(call, job, {"transferMethod": "s3", "downloadUrl": link})

    def _directives(self, call: Call) -> dict[str, Any]:
        if not self._dialect.has_directives:
            return {}
        directives = call.given("transferDirectives")
        if directives is None:
            raise missing("body", "transferDirectives")
        method = given(directives, "transferMethod") if isinstance(directives, dict) else None
        if method not in _METHODS:
            raise missing("body", "transferDirectives", "transferMethod")
        if method != call.place.method or method != "s3":  # no streamer, no wormhole here
            raise ApiError(400, "Requested transfer method is not available.")
        assert isinstance(directives, dict)
        return directives

    def _answer(self, call: Call, job: Job, told: dict[str, Any]) -> Response:
        if not self._dialect.camel:
            told = {snake(name): value for name, value in told.items()}
        return reply(self._transfer_job(call, job) | {"transferDirectives": told}, 201)

    # -- jobs that move

    async def mv(self, call: Call) -> Response:
        return await self._move(call, moving.MOVE, call.text("targetPath"))

    async def cp(self, call: Call) -> Response:
        work = moving.COPY_DEREFERENCED if call.truth("dereference") else moving.COPY
        return await self._move(call, work, call.text("targetPath"))

    async def rm(self, call: Call) -> Response:
        return await self._move(call, moving.DELETE, status=200)

    async def compress(self, call: Call) -> Response:
        pattern = call.optional_text("matchPattern")
        work = moving.compress(compression_of(call), pattern, call.truth("dereference"))
        return await self._move(call, work, call.text("targetPath"))

    async def extract(self, call: Call) -> Response:
        work = moving.extract(compression_of(call))
        return await self._move(call, work, call.text("targetPath"))

    async def _move(self, call: Call, work: Work, *target: str, status: int = 201) -> Response:
        self._account(call)
        paths = (call.raw_path, *target)
        job = await self._submit(call, work.job, lambda job: self._moving.do(job, work, *paths))
        return reply(self._transfer_job(call, job), status)

    # -- what all have in common

    def _account(self, call: Call) -> None:
        named = call.given("account") or call.request.query_params.get("account")
        if call.place.wants_account and not named:
            raise ApiError(400, "Account parameter is required on this system.")
        if named is not None and not isinstance(named, str):
            raise invalid("string_type", ("body", "account"), "Input should be a valid string")

    async def _submit(self, call: Call, name: str, body: Body) -> Job:
        """The job runs in the simulator, its commands as the user."""
        home = str(self._service.cluster.home(call.user))
        ident = uuid.uuid4()
        script = "\n".join(["#!/bin/bash", *call.place.directives, f"# {name} of {STAND_IN}", ""])
        async with self._service.shell.session(call.place, call.user):
            (job,) = self._scheduler.submit(
                call.user,
                call.place.system,
                f"{home}/sbatch",
                script.encode(),
                {},
                {
                    "job-name": name,
                    "chdir": home,
                    "output": f"{home}/.f7t_file_handling_job_{ident}.log",
                    "error": f"{home}/.f7t_file_handling_job_error_{ident}.log",
                    "time": f"0:{JOB_LIMIT:.0f}",
                },
                body,
            )
        return job

    def _transfer_job(self, call: Call, job: Job) -> dict[str, Any]:
        return {
            "transferJob": {
                "jobId": self._dialect.job_id(str(job.id)),
                "system": call.place.name,
                "workingDirectory": job.folder,
                "logs": {"outputLog": job.output, "errorLog": job.error},
            }
        }
