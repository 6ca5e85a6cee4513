"""/status: what the deployment says of itself (v1 FACTS §10)."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.cluster import Cluster, System
from f7tfs.sim.replies import refuse, reply
from f7tfs.sim.service import Call, Service
from f7tfs.sim.tokens import Tokens

_SERVICES = ("certificator", "utilities", "compute", "storage", "tasks", "reservations")


class Status:
    def __init__(self, cluster: Cluster, tokens: Tokens, latency: float) -> None:
        self._cluster = cluster
        self._service = Service("/status", tokens, latency)

    def routes(self) -> list[Route]:
        route = self._service.route
        return [
            route("/services", "GET", self.services),
            route("/services/{name}", "GET", self.one_service),
            route("/systems", "GET", self.systems),
            route("/systems/{name}", "GET", self.system),
            route("/filesystems", "GET", self.filesystems),
            route("/filesystems/{name}", "GET", self.filesystem),
            route("/parameters", "GET", self.parameters),
        ]

    async def services(self, call: Call) -> Response:
        found = [_service(name) for name in _SERVICES]
        description = "List of services with status and description."
        return reply({"description": description, "out": found})

    async def one_service(self, call: Call) -> Response:
        name = call.request.path_params["name"]
        if name not in _SERVICES:
            text = "Service does not exists"
            return reply({"description": text, "status_code": 404}, 404)
        return reply(_service(name))

    async def systems(self, call: Call) -> Response:
        found = [_system(system) for system in self._cluster.systems.values()]
        description = "List of systems with status and description."
        return reply({"description": description, "out": found})

    def _named(self, call: Call) -> System:
        system = self._cluster.systems.get(call.request.path_params["name"])
        if system is None:
            raise refuse("System does not exists.", status=404)
        return system

    async def system(self, call: Call) -> Response:
        return reply({"description": "System information", "out": _system(self._named(call))})

    async def filesystems(self, call: Call) -> Response:
        found = {name: _filesystems(system) for name, system in self._cluster.systems.items()}
        return reply({"description": "Filesystem information", "out": found})

    async def filesystem(self, call: Call) -> Response:
        system = self._named(call)
        description = f"Filesystem information for system {system.name}"
        return reply({"description": description, "out": _filesystems(system)})

    async def parameters(self, call: Call) -> Response:
        options = self._cluster.options
        mounted = [
            {"system": system.name, "mounted": list(system.mounted)}
            for system in self._cluster.systems.values()
        ]
        out = {
            "general": [
                _parameter("FIRECREST_VERSION", "FirecREST version.", options.server_version),
                _parameter("FIRECREST_BUILD", "FirecREST build timestamp.", "2025-07-15T13:48:30Z"),
            ],
            "compute": [
                _parameter(
                    "WORKLOAD_MANAGER",
                    "Type of resource and workload manager used in compute microservice.",
                    "Slurm",
                )
            ],
            "storage": [
                _parameter(
                    "OBJECT_STORAGE",
                    "Type of object storage, like `swift`, `s3v2` or `s3v4`.",
                    "s3v4",
                ),
                _parameter(
                    "STORAGE_TEMPURL_EXP_TIME",
                    "Expiration time for temp URLs.",
                    options.expiry_text,
                    "seconds",
                ),
                _parameter(
                    "STORAGE_MAX_FILE_SIZE", "Maximum file size for temp URLs.", "5120", "MB"
                ),
                _parameter("FILESYSTEMS", "Available filesystems through the API.", mounted),
            ],
            "utilities": [
                _parameter(
                    "UTILITIES_MAX_FILE_SIZE",
                    "The maximum allowable file size for various operations of the utilities "
                    "microservice.",
                    "5",
                    "MB",
                ),
                _parameter(
                    "UTILITIES_TIMEOUT",
                    "Maximum time duration for executing the commands in the cluster for the "
                    "utilities microservice.",
                    f"{options.command_limit:g}",
                    "seconds",
                ),
            ],
        }
        return reply({"description": "Firecrest's parameters", "out": out})


def _parameter(name: str, description: str, value: Any, unit: str = "") -> dict[str, Any]:
    return {"name": name, "description": description, "value": value, "unit": unit}


def _service(name: str) -> dict[str, Any]:
    return {
        "service": name,
        "status": "available",
        "description": "server up & flask running",
        "status_code": 200,
    }


def _system(system: System) -> dict[str, str]:
    return {
        "system": system.name,
        "status": "available" if system.reachable else "not available",
        "description": "System ready" if system.reachable else "System does not accept connections",
    }


def _filesystems(system: System) -> list[dict[str, Any]]:
    names = ("HOME", "SCRATCH")
    words = ("Users home filesystem", "Scratch filesystem")
    return [
        {
            "name": name,
            "description": description,
            "path": path,
            "status": "available" if system.reachable else "not available",
            "status_code": 200 if system.reachable else 400,
        }
        for name, description, path in zip(names, words, system.mounted, strict=False)
    ]
