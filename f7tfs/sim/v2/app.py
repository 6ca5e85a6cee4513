"""Puts the parts of v2 together into one application."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from f7tfs.sim.cluster import Cluster
from f7tfs.sim.objects import ObjectStore
from f7tfs.sim.scheduler import Scheduler
from f7tfs.sim.tokens import Tokens
from f7tfs.sim.v2.compute import Compute
from f7tfs.sim.v2.parts import Parts
from f7tfs.sim.v2.reading import Reading
from f7tfs.sim.v2.replies import ApiError, Unhandled
from f7tfs.sim.v2.service import Service, stamped
from f7tfs.sim.v2.shell import Shell
from f7tfs.sim.v2.status import Status
from f7tfs.sim.v2.systems import Injections, Systems
from f7tfs.sim.v2.transfer import Transfer
from f7tfs.sim.v2.writing import Writing

Message = MutableMapping[str, Any]


class V2:
    """One v2 server: its routes below a prefix, and those of its object store and control."""

    def __init__(
        self,
        cluster: Cluster,
        tokens: Tokens,
        store: ObjectStore,
        scheduler: Scheduler,
        url: str,
        prefix: str,
    ) -> None:
        """`url` without `prefix`; the store is below `url`/s3."""
        injections = Injections()
        systems = Systems(cluster, f"{url}/s3")
        shell = Shell(cluster, injections)
        service = Service(cluster, tokens, systems, shell)
        parts = Parts(store, "/s3", cluster.options.part_size is not None)
        status = Status(service, f"{url}{prefix}", injections)
        transfer = Transfer(service, scheduler, store, parts, injections)
        routes = [
            *status.routes(),
            *Reading(service).routes(),
            *Writing(service).routes(),
            *transfer.routes(),
            *Compute(service, scheduler).routes(),
        ]
        application = Starlette(
            routes=routes, exception_handlers={HTTPException: _unrouted, Exception: _broken}
        )
        application.router.redirect_slashes = False
        self._application = application
        self.outer_routes: list[Route] = [*parts.routes(), *status.control_routes()]
        self.mount = Mount(prefix, app=self)

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """The whole path is case-insensitive (main.py:206), and each reply is stamped."""
        if scope["type"] != "http":
            return
        sent = dict(scope["headers"])

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                stamped(headers, sent)
                message = {**message, "headers": headers}
            await send(message)

        lowered = {**scope, "path": scope["path"].lower()}
        await self._application(lowered, receive, with_headers)


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = "Not Found" if error.status_code == 404 else "Method Not Allowed"
    allow = (error.headers or {}).get("Allow")
    headers = {} if allow is None else {"allow": allow}
    return ApiError(error.status_code, text, headers=headers).reply(None)


async def _broken(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return Unhandled(*error.args).reply()
