"""/_sim: what tests ask and tell the simulator; unauthenticated, on loopback.

- GET /_sim/health
- GET /_sim/calls: {"calls": {"GET /tasks/{id}": 3, ...}, "total", "tokens",
  "object_store": {"bytes_in", "bytes_out", "GET", "POST", "PUT"}}; POST /_sim/calls/reset
- GET /_sim/log?last=N: the last N requests with method, path, params, status and time (epoch)
- POST /_sim/sweep: look for staged uploads now; answers when the downloads it began have ended
- GET /_sim/tasks/{id}: {"states": [...], "times": [...]}, every state as GET /tasks/{id} would have
  shown it, and when it began (epoch: the records themselves have whole seconds)
- POST /_sim/staging: JSON {"hold": true}: v1's downloads stay at 116 until {"hold": false}
- POST /_sim/jobs: JSON {"hold": true}: no job starts until {"hold": false}
- POST /_sim/links: JSON {"refuse": "EPERM", "across": false}: the file system makes no hard links
  (across directories, or none at all) until {"refuse": null}
- POST /_sim/uplink: JSON {"rate": bytes per second, null for no limit}: what clients can send
- POST /_sim/room: JSON {"left": bytes, null for no limit, "words": "Disk quota exceeded"}: what
  staged uploads may still write on the cluster
- POST /_sim/objects: JSON {"bucket", "key", "size"}: such an object has arrived at the web server
  that forms lead to (--form-origin); its bytes are taken for zeros
- POST /_sim/token: JSON {"user", "lifetime", "scope"}, any of them; mints any token
- POST, GET, DELETE /_sim/faults: see f7tfs.sim.faults; DELETE also allows hard links again
- with v2: POST /_sim/system, GET and DELETE /_sim/injections, see f7tfs.sim.v2.status
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.cluster import Room
from f7tfs.sim.gate import Gate
from f7tfs.sim.hardlinks import HardLinks
from f7tfs.sim.objects import ObjectStore
from f7tfs.sim.replies import reply
from f7tfs.sim.scheduler import Scheduler
from f7tfs.sim.storage import Storage
from f7tfs.sim.tasks import TaskBook
from f7tfs.sim.tokens import SCOPE, Tokens


class Control:
    def __init__(
        self,
        store: ObjectStore,
        tokens: Tokens,
        book: TaskBook,
        storage: Storage,
        scheduler: Scheduler,
        hard_links: HardLinks,
        room: Room,
        user: str,
    ) -> None:
        self.gate: Gate | None = None
        """Set once, when the gate is put in front of the application."""
        self._store = store
        self._tokens = tokens
        self._book = book
        self._storage = storage
        self._scheduler = scheduler
        self._hard_links = hard_links
        self._room = room
        self._user = user

    def routes(self) -> list[Route]:
        return [
            Route("/_sim/health", self._health, methods=["GET"]),
            Route("/_sim/calls", self._calls, methods=["GET"]),
            Route("/_sim/calls/reset", self._reset, methods=["POST"]),
            Route("/_sim/log", self._log, methods=["GET"]),
            Route("/_sim/sweep", self._sweep_now, methods=["POST"]),
            Route("/_sim/tasks/{ident}", self._task, methods=["GET"]),
            Route("/_sim/staging", self._staging, methods=["POST"]),
            Route("/_sim/jobs", self._jobs, methods=["POST"]),
            Route("/_sim/links", self._links, methods=["POST"]),
            Route("/_sim/uplink", self._uplink, methods=["POST"]),
            Route("/_sim/room", self._make_room, methods=["POST"]),
            Route("/_sim/objects", self._object, methods=["POST"]),
            Route("/_sim/token", self._token, methods=["POST"]),
            Route("/_sim/faults", self._add_faults, methods=["POST"]),
            Route("/_sim/faults", self._faults, methods=["GET"]),
            Route("/_sim/faults", self._clear_faults, methods=["DELETE"]),
        ]

    @property
    def _front(self) -> Gate:
        assert self.gate is not None
        return self.gate

    async def _health(self, request: Request) -> Response:
        return reply({"status": "ok"})

    async def _calls(self, request: Request) -> Response:
        traffic = self._store.traffic
        return reply(
            {
                "calls": dict(self._front.calls),
                "total": self._front.calls.total(),
                "tokens": self._front.tokens,
                "object_store": {
                    "bytes_in": traffic.bytes_in,
                    "bytes_out": traffic.bytes_out,
                    **traffic.methods,
                },
            }
        )

    async def _reset(self, request: Request) -> Response:
        self._front.reset()
        traffic = self._store.traffic
        traffic.bytes_in = traffic.bytes_out = 0
        traffic.methods = dict.fromkeys(traffic.methods, 0)
        return reply({})

    async def _log(self, request: Request) -> Response:
        last = int(request.query_params.get("last", "100"))
        return reply({"log": list(self._front.log)[-last:] if last > 0 else []})

    async def _sweep_now(self, request: Request) -> Response:
        await self._storage.sweep()
        return reply({})

    async def _task(self, request: Request) -> Response:
        task = self._book.find(request.path_params["ident"])
        url = f"/tasks/{request.path_params['ident']}"
        states = [] if task is None else [task.record(s) | {"task_url": url} for s in task.history]
        return reply({"states": states, "times": [] if task is None else task.times})

    async def _staging(self, request: Request) -> Response:
        self._storage.hold(bool((await request.json())["hold"]))
        return reply({})

    async def _jobs(self, request: Request) -> Response:
        self._scheduler.hold(bool((await request.json())["hold"]))
        return reply({})

    async def _links(self, request: Request) -> Response:
        try:
            self._hard_links.order(await request.json())
        except (ValueError, AttributeError) as mistake:
            return reply({"error": str(mistake)}, 400)
        return reply({})

    async def _uplink(self, request: Request) -> Response:
        self._front.uplink.rate = (await request.json())["rate"]
        return reply({})

    async def _make_room(self, request: Request) -> Response:
        wish = await request.json()
        self._room.left = wish["left"]
        self._room.words = wish.get("words", "Disk quota exceeded")
        return reply({})

    async def _object(self, request: Request) -> Response:
        wish = await request.json()
        self._store.adopt_hole(wish["bucket"], wish["key"], int(wish["size"]))
        return reply({})

    async def _token(self, request: Request) -> Response:
        wish = await request.json()
        token = self._tokens.mint(
            wish.get("user", self._user), wish.get("lifetime", 300), wish.get("scope", SCOPE)
        )
        return reply({"access_token": token})

    async def _add_faults(self, request: Request) -> Response:
        try:
            return reply({"ids": self._front.faults.add(await request.json())})
        except (ValueError, TypeError, AttributeError) as mistake:
            return reply({"error": str(mistake)}, 400)

    async def _faults(self, request: Request) -> Response:
        return reply({"faults": self._front.faults.report()})

    async def _clear_faults(self, request: Request) -> Response:
        self._front.faults.clear()
        self._hard_links.allow()
        return reply({})
