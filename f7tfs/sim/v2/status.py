"""/status, and what tests tell the simulated v2 (v2 FACTS §1)."""

from __future__ import annotations

from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.sbatch import PARTITIONS
from f7tfs.sim.scheduler import NODE
from f7tfs.sim.v2.replies import ApiError, Unhandled, reply
from f7tfs.sim.v2.rows import group_name
from f7tfs.sim.v2.service import Call, Service, route
from f7tfs.sim.v2.systems import ACCOUNT, Injections

_STATES = {"up", "refused", "down"}


class Status:
    def __init__(self, service: Service, base: str, injections: Injections) -> None:
        """`base`: the API's own address, for the redirection of /status/liveness."""
        self._service = service
        self._base = base
        self._injections = injections
        self._systems = service.systems

    def routes(self) -> list[Route]:
        one = self._service.route
        return [
            route("/status/liveness", "GET", self._redirected),
            route("/status/liveness/", "GET", self._liveness),
            self._service.plain_route("/status/systems", self._all),
            one("/status/{system}/userinfo", "GET", self.userinfo),
            one("/status/{system}/nodes", "GET", self.nodes, service="scheduler"),
            one("/status/{system}/partitions", "GET", self.partitions, service="scheduler"),
            one("/status/{system}/reservations", "GET", self.reservations, service="scheduler"),
        ]

    def control_routes(self) -> list[Route]:
        """POST /_sim/system {"name", "state": "up" | "refused" | "down"}: the login node is gone
        and the prober has not noticed, or has. GET /_sim/injections: what clients' paths would
        have run besides the server's own commands; DELETE forgets them."""
        return [
            Route("/_sim/system", self._set_state, methods=["POST"]),
            Route("/_sim/injections", self._list_injections, methods=["GET"]),
            Route("/_sim/injections", self._forget_injections, methods=["DELETE"]),
        ]

    async def _redirected(self, request: Request) -> Response:
        headers = {"location": f"{self._base}/status/liveness/"}
        return Response(status_code=307, headers=headers)

    async def _liveness(self, request: Request) -> Response:
        return reply(self._systems.liveness())

    def _all(self, user: str) -> dict[str, Any]:
        return self._systems.announcement()

    async def userinfo(self, call: Call) -> Response:
        try:
            async with self._service.shell.session(call.place, call.user, 2):
                await trio.lowlevel.checkpoint()
        except Unhandled:
            text = "Error executing Slurm command."
            raise ApiError(500, text, caused_by=[text]) from None
        account = self._service.cluster.account
        group = {"id": str(account.gid), "name": group_name(account.gid)}
        told: dict[str, Any] = {"user": {"id": str(account.uid), "name": call.user}}
        if self._systems.dialect.plain_user:
            told["groups"] = [group | {"default": True}]
        else:
            told |= {"group": group, "groups": [group]}
        return reply(told | {"accounts": [{"name": ACCOUNT, "default": True}]})

    async def nodes(self, call: Call) -> Response:
        node = {
            "sockets": 16,
            "cores": 16,
            "threads": 16,
            "cpus": 16,
            "cpuLoad": 1.1,
            "freeMemory": 21846,
            "features": "f7t",
            "name": NODE,
            "address": "login.example",
            "hostname": NODE,
            "state": ["IDLE"],
            "partitions": list(PARTITIONS),
            "weight": 1,
            "allocMemory": 16000,
            "allocCpus": 0,
            "idleCpus": 16,
        }
        return reply({"nodes": [node]})

    async def partitions(self, call: Call) -> Response:
        rows = [
            {"name": name, "cpus": 16, "totalNodes": 1, "partition": "UP"} for name in PARTITIONS
        ]
        return reply({"partitions": rows})

    async def reservations(self, call: Call) -> Response:
        return reply({"reservations": []})

    # -- control

    async def _set_state(self, request: Request) -> Response:
        wish = await request.json()
        try:
            place = self._systems.find(str(wish.get("name")))
        except ApiError as unknown:
            return reply({"error": unknown.message}, 400)
        if wish.get("state") not in _STATES:
            return reply({"error": f"a state is one of {', '.join(sorted(_STATES))}"}, 400)
        place.state = wish["state"]
        return reply({})

    async def _list_injections(self, request: Request) -> Response:
        return reply({"injections": self._injections.seen})

    async def _forget_injections(self, request: Request) -> Response:
        self._injections.seen.clear()
        return reply({})
