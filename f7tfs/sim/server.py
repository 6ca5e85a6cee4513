"""Puts the services together and serves them on one port, until a signal."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from f7tfs.sim.cluster import Cluster
from f7tfs.sim.compute import Compute
from f7tfs.sim.connection import Connection
from f7tfs.sim.control import Control
from f7tfs.sim.gate import Gate
from f7tfs.sim.internal import InternalTransfers
from f7tfs.sim.objects import ObjectStore
from f7tfs.sim.options import SimError, SimOptions
from f7tfs.sim.replies import flask_page, kong_invalid
from f7tfs.sim.scheduler import Scheduler
from f7tfs.sim.status import Status
from f7tfs.sim.storage import Storage
from f7tfs.sim.tasks import TaskBook, TaskService
from f7tfs.sim.tokens import TOKEN_PATH, Client, Tokens
from f7tfs.sim.utilities import Utilities
from f7tfs.sim.v2.app import V2

V2_PREFIX = "/v2"
"""Where v2 is when v1 is served as well."""
_GRACE = 0.2
"""Seconds that requests under way get at the end."""


async def serve(options: SimOptions, *, ready: Callable[[dict[str, str]], None]) -> None:
    """Serve until SIGTERM or SIGINT. `ready` gets what a client needs to know.

    SimError says in one sentence why it cannot start.
    """
    if not (options.serves_v1 or options.serves_v2):
        raise SimError(f"the simulator speaks v1, v2 or both, not {options.api}")
    cluster = Cluster(options)
    cluster.prepare()
    try:
        listener = socket.create_server((options.host, options.port), backlog=256)
    except OSError as error:
        raise SimError(f"cannot listen on {options.host}:{options.port}: {error}") from error
    with listener, _state(options.state) as state:
        async with trio.open_nursery() as nursery:
            site = Site(options, cluster, state, listener.getsockname(), nursery)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                await nursery.start(site.listen, listener)
                ready(site.facts())
                async for _ in signals:
                    break
            site.scheduler.kill_all()
            nursery.cancel_scope.cancel()


@contextmanager
def _state(folder: Path | None) -> Iterator[Path]:
    """Searchable by all: jobs read their scripts there as the cluster's user."""
    if folder is not None:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="f7tfs-sim-state-") as made:
        os.chmod(made, 0o711)
        yield Path(made)


class Site:
    """One simulated deployment."""

    def __init__(
        self,
        options: SimOptions,
        cluster: Cluster,
        state: Path,
        address: tuple[str, int],
        nursery: trio.Nursery,
    ) -> None:
        self._cluster = cluster
        self._url = f"http://{address[0]}:{address[1]}"
        self._nursery = nursery
        self._connections: dict[tuple[str, int], Connection] = {}
        name, other = cluster.users
        self._client = Client("firecrest-sim", options.client_secret or secrets.token_hex(16), name)
        clients = [
            self._client,
            Client("firecrest-other", self._client.client_secret, other),
            Client("firecrest-unknown", self._client.client_secret, "unknown"),
        ]
        tokens = Tokens(clients, options.token_lifetime)
        book = TaskBook()
        store = ObjectStore(
            state / "objects",
            f"{self._url}/s3",
            options.object_store_expiry,
            served=(state / "served", options.link_origin) if options.link_origin else None,
            forms=options.form_origin,
        )
        storage = Storage(cluster, tokens, book, store, self.spawn)
        self.scheduler = Scheduler(cluster, state / "spool", self.spawn)
        compute = Compute(cluster, tokens, book, self.scheduler, self.spawn)
        internal = InternalTransfers(cluster, book, compute, storage.service)
        control = Control(
            store,
            tokens,
            book,
            storage,
            self.scheduler,
            cluster.hard_links,
            cluster.room,
            name,
        )
        routes: list[BaseRoute] = [
            Route(TOKEN_PATH, tokens.endpoint, methods=["POST"]),
            *store.routes(),
            *control.routes(),
        ]
        if options.serves_v1:
            routes += [
                *Status(cluster, tokens, options.latency).routes(),
                *TaskService(book, tokens, options.latency).routes(),
                *Utilities(cluster, tokens, options.latency).routes(),
                *storage.routes(),
                *internal.routes(),
                *compute.routes(),
            ]
        self._v2_prefix = V2_PREFIX if options.serves_v1 else ""
        if options.serves_v2:
            v2 = V2(cluster, tokens, store, self.scheduler, self._url, self._v2_prefix)
            routes += [*v2.outer_routes, v2.mount]
        application = Starlette(
            routes=routes,
            exception_handlers={HTTPException: _unrouted, Exception: _broken},
        )
        application.router.redirect_slashes = False
        self._gate = control.gate = Gate(cast(Any, application), self._cut)
        self.spawn(storage.sweep_forever)

    def facts(self) -> dict[str, str]:
        name = self._cluster.users[0]
        facts = {
            "firecrest_url": self._url,
            "auth_token_url": f"{self._url}{TOKEN_PATH}",
            "client_id": self._client.client_id,
            "client_secret": self._client.client_secret,
            "system": "cluster",
            "root": str(self._cluster.root),
            "home": str(self._cluster.home(name)),
            "scratch": str(self._cluster.scratch(name)),
            "user": name,
        }
        if self._cluster.options.serves_v2:
            facts["firecrest_v2_url"] = f"{self._url}{self._v2_prefix}"
        return facts

    def spawn(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Background work that outlives its request; a fault in it is told, and ends only it."""

        async def guarded() -> None:
            try:
                await work(*arguments)
            except Exception:
                traceback.print_exc(file=sys.stderr)

        self._nursery.start_soon(guarded)

    async def listen(
        self, listener: socket.socket, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """hypercorn's trio worker, but with connections that a scripted fault can cut."""
        config = Config()
        config.h11_max_incomplete_size = 1 << 16  # long paths travel percent-encoded
        config.keep_alive_timeout = 75
        config.graceful_timeout = _GRACE
        context = WorkerContext(None)
        wrapped = ASGIWrapper(cast(Any, self._gate))

        async def converse(stream: trio.SocketStream) -> None:
            try:
                peer = stream.socket.getpeername()[:2]
            except OSError:
                return  # gone before it was accepted
            connection = self._connections[peer] = Connection(stream)
            state = ConnectionState({})
            try:
                await TCPServer(wrapped, config, context, state, cast(Any, connection))
            finally:
                self._connections.pop(peer, None)

        trio_socket = trio.socket.from_stdlib_socket(listener)
        await trio.serve_listeners(
            converse, [trio.SocketListener(trio_socket)], task_status=cast(Any, task_status)
        )

    async def _cut(self, scope: MutableMapping[str, Any]) -> None:
        connection = self._connections.get(tuple(scope["client"]))
        if connection is not None:
            await connection.aclose()


async def _unrouted(request: Request, error: Exception) -> Response:
    """Within a service Flask answers, outside Kong (§1 Machine errors)."""
    assert isinstance(error, HTTPException)
    parts = request.url.path.split("/")
    if parts[1] not in {"status", "utilities", "storage", "compute"}:
        return kong_invalid()  # Kong knows the methods of /tasks as well
    return flask_page(404 if error.status_code == 404 else 405, _flask_allow(error))


def _flask_allow(error: HTTPException) -> dict[str, str]:
    allowed = set((error.headers or {}).get("Allow", "").split(", ")) - {""}
    if not allowed:
        return {}
    order = ("HEAD", "OPTIONS", "GET", "POST", "PUT", "DELETE")
    return {"Allow": ", ".join(name for name in order if name in allowed | {"OPTIONS"})}


async def _broken(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return flask_page(500)
