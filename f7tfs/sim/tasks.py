"""/tasks: the memory copy and the redis copy of each task, which may disagree (v1 FACTS §5)."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.classify import invalid
from f7tfs.sim.replies import kong_invalid, refuse, reply
from f7tfs.sim.service import Call, Service
from f7tfs.sim.tokens import Tokens

DESCRIPTIONS = {
    "100": "Queued",
    "110": "Waiting for Form URL from Object Storage to be retrieved",
    "111": "Form URL from Object Storage received",
    "112": "Object Storage confirms that upload to Object Storage has finished",
    "113": "Download from Object Storage to server has started",
    "114": "Download from Object Storage to server has finished",
    "115": "Download from Object Storage error",
    "116": "Started upload from filesystem to Object Storage",
    "117": "Upload from filesystem to Object Storage has finished succesfully",
    "118": "Upload from filesystem to Object Storage has finished with errors",
    "200": "Finished successfully",
    "302": "Task not longer valid",
    "400": "Finished with errors",
}
LISTED_AFTER_INVALIDATION = 300.0
"""For this long the list still shows the old record of an invalidated task (§5)."""


def timestamp(moment: float | None = None) -> str:
    """The server's local time, here UTC: whole seconds, no zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


@dataclass
class Task:
    id: str
    user: str
    service: str
    system: str
    created_at: str
    shown: dict[str, Any]
    """Status, data and times as GET /tasks/{id} answers."""
    listed: dict[str, Any] | None
    """The same in redis, for GET /tasks?tasks=; None once expired there."""
    unlisted_at: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    """All that `shown` ever was, for tests: some states last milliseconds."""
    times: list[float] = field(default_factory=list)
    """When each of them began."""

    def show(self, state: dict[str, Any]) -> None:
        self.shown = state
        self.history.append(state)
        self.times.append(time.time())

    def record(self, state: dict[str, Any]) -> dict[str, Any]:
        return {
            "hash_id": self.id,
            "task_id": self.id,
            "user": self.user,
            "service": self.service,
            "system": self.system,
            "created_at": self.created_at,
            **state,
        }


def _state(status: str, data: Any) -> dict[str, Any]:
    now = timestamp()
    return {
        "status": status,
        "description": DESCRIPTIONS[status],
        "data": data,
        "last_modify": now,
        "updated_at": now,
    }


class TaskBook:
    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def create(self, user: str, service: str, system: str, data: Any = "Queued") -> Task:
        """A new task at 100. Ids are md5("user-counter"): predictable (§5)."""
        number = len(self._tasks) + 1
        ident = hashlib.md5(f"{user}-{number}".encode(), usedforsecurity=False).hexdigest()
        state = _state("100", data)
        task = Task(ident, user, service, system, timestamp(), state, state)
        task.show(state)
        self._tasks[ident] = task
        return task

    def update(self, task: Task, status: str, data: Any = None, listed: Any = None) -> None:
        """`listed` is the internal record, where it differs from what is shown."""
        shown = DESCRIPTIONS[status] if data is None else data
        task.show(_state(status, shown))
        task.listed = task.shown if listed is None else _state(status, listed)
        task.unlisted_at = None

    def invalidate(self, task: Task) -> None:
        """Changes the memory copy only; redis drops its copy later."""
        old = task.shown["last_modify"]
        task.show(_state("302", "") | {"last_modify": old, "updated_at": old})
        if task.unlisted_at is None:
            task.unlisted_at = time.monotonic() + LISTED_AFTER_INVALIDATION

    def find(self, ident: str) -> Task | None:
        return self._tasks.get(ident)

    def of(self, user: str) -> dict[str, Task]:
        return {ident: task for ident, task in self._tasks.items() if task.user == user}


class TaskService:
    def __init__(self, book: TaskBook, tokens: Tokens, latency: float) -> None:
        self._book = book
        self._service = Service("/tasks", tokens, latency)

    def routes(self) -> list[Route]:
        route = self._service.route
        return [
            route("", "GET", self.list_tasks),
            route("/", "GET", self.list_tasks),
            route("/status", "GET", self.status),
            route("/{ident}", "GET", self.get_task),
        ]

    async def list_tasks(self, call: Call) -> Response:
        wanted: set[str] | None = None
        if "tasks" in call.params:
            if reason := invalid(call.params["tasks"]):
                raise refuse("Failed to retrieve tasks information", f"'tasks' {reason}")
            wanted = set(call.params["tasks"].split(","))
        now = time.monotonic()
        found = {
            ident: task.record(task.listed)
            for ident, task in self._book.of(call.user).items()
            if (wanted is None or ident in wanted)
            and task.listed is not None
            and (task.unlisted_at is None or now < task.unlisted_at)
        }
        return reply({"tasks": found})

    async def get_task(self, call: Call) -> Response:
        ident = str(call.request.path_params["ident"])
        if ident == "taskslist":
            return kong_invalid()  # internal: the gateway does not route it
        task = self._book.find(ident)
        if task is None:
            return reply({"error": f"Task {ident} does not exist"}, 404)
        if task.user != call.user:
            raise refuse("Operation not permitted. Invalid task owner.", status=403)
        return reply({"task": task.record(task.shown) | {"task_url": f"/tasks/{ident}"}})

    async def status(self, call: Call) -> Response:
        return reply({"success": "ack"})
