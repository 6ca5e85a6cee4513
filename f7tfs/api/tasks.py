"""v1 tasks: many askers share one call (v1 FACTS §5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from f7tfs.api.http import ApiClient
from f7tfs.api.replies import words_of
from f7tfs.api.rounds import WINDOW, Rounds
from f7tfs.errors import (
    F7tfsError,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    ServerError,
    Stalled,
    Unreachable,
)

FIRST_POLL = 0.2  # seconds after which the fastest tasks are done (FACTS §5)
PACE = (0.3, 0.5, 1.0, 2.0)  # seconds between further polls; the last one repeats
IDS_PER_CALL = 60  # 32 characters each: a request line below 4 KiB

_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Task(msgspec.Struct, frozen=True):
    """One observation, the same for the public record (GET /tasks/{id}) and the internal one (GET
    /tasks?tasks=…, whose data holds more). `status` is the three digits of FACTS §5; `data` is what
    JSON gave."""

    id: str
    status: str
    description: str = ""
    data: Any = None
    system: str = ""
    service: str = ""

    @property
    def is_over(self) -> bool:
        """For compute tasks: 100 and 101 are the only states before the end."""
        return not self.status.startswith("1")

    @property
    def succeeded(self) -> bool:
        return self.status.startswith("2")

    @property
    def text(self) -> str:
        """What a failed task says."""
        if isinstance(self.data, str) and self.data:
            return self.data
        if isinstance(self.data, dict):
            for field in ("error", "msg"):
                if isinstance(self.data.get(field), str) and self.data[field]:
                    return str(self.data[field])
        return self.description


class TaskBoard:
    """Observes tasks over one ApiClient; many askers share a call."""

    def __init__(self, api: ApiClient, *, window: float = WINDOW) -> None:
        self._api = api
        self._rounds = Rounds(self._poll_all, window=window)

    async def observe(self, task_id: str) -> Task:
        """One observation. Raises NotFound for ids that are unknown or somebody else's, and what
        GETs raise."""
        if not _TASK_ID.fullmatch(task_id):
            raise NotFound(f"not a task id: {task_id!r}")
        task = await self._rounds.observe(task_id)
        if task is None:
            raise NotFound(f"the server knows no task {task_id}")
        return task

    async def outcome(
        self, task_id: str, *, timeout: float, unfinished: type[F7tfsError] = Stalled
    ) -> Task:
        """Follow a compute task until it is over. `unfinished` is raised when `timeout` seconds did
        not bring the end; with OutcomeUnknown also when the task cannot be observed any more,
        because the work it stands for may be done all the same."""
        may_be_done = issubclass(unfinished, OutcomeUnknown)
        trouble: F7tfsError | None = None
        pace = [FIRST_POLL, *PACE]
        with trio.move_on_after(timeout):
            while True:
                await trio.sleep(pace.pop(0) if len(pace) > 1 else pace[0])
                try:
                    task = await self.observe(task_id)
                except (Unreachable, RateLimited) as error:
                    if not may_be_done:
                        raise
                    trouble = error
                    continue
                except F7tfsError as error:
                    if may_be_done:
                        raise unfinished(f"task {task_id}: {error}") from error
                    if isinstance(error, NotFound):
                        raise ServerError(str(error)) from error
                    raise
                if task.is_over:
                    return task
        raise unfinished(f"task {task_id} is not over after {timeout:g} s") from trouble

    async def results_of(self, service: str) -> list[dict[str, Any]]:
        """What the user's tasks of a service answered that succeeded, as far as the server keeps
        them. It lists all tasks of the user, so it is for rare questions (FACTS §5)."""
        reply = await self._api.request("GET", "/tasks", idempotent=True)
        if reply.status != 200:
            raise ServerError(f"the tasks cannot be listed: {words_of(reply)}")
        tasks = (
            normalised(task_id, record)
            for task_id, record in _member(reply.body, "tasks").items()
            if isinstance(record, dict)
        )
        return [
            task.data
            for task in tasks
            if task.service == service and task.succeeded and isinstance(task.data, dict)
        ]

    async def _poll_all(self, ids: Sequence[str]) -> dict[str, Task]:
        found: dict[str, Task] = {}
        for start in range(0, len(ids), IDS_PER_CALL):
            found |= await self._poll(ids[start : start + IDS_PER_CALL])
        return found

    async def _poll(self, ids: Sequence[str]) -> dict[str, Task]:
        if len(ids) == 1:
            reply = await self._api.request(
                "GET", f"/tasks/{ids[0]}", idempotent=True, endpoint="/tasks/{id}"
            )
            if reply.status in {403, 404}:
                return {}
            records = {ids[0]: _member(reply.body, "task")} if reply.status == 200 else {}
        else:
            reply = await self._api.request(
                "GET", "/tasks", query={"tasks": ",".join(ids)}, idempotent=True
            )
            records = _member(reply.body, "tasks") if reply.status == 200 else {}
        if reply.status != 200:
            raise ServerError(f"the tasks cannot be observed: {words_of(reply)}")
        return {
            task_id: normalised(task_id, record)
            for task_id, record in records.items()
            if isinstance(record, dict)
        }


def normalised(task_id: str, record: dict[str, Any]) -> Task:
    """A Task from either record. Missing fields are tolerated."""
    return Task(
        id=task_id,
        status=str(record.get("status", "")),
        description=str(record.get("description") or ""),
        data=record.get("data"),
        system=str(record.get("system") or ""),
        service=str(record.get("service") or ""),
    )


def _member(body: bytes, name: str) -> dict[str, Any]:
    """The object under `name`. Raises Unreachable for a reply that is not FirecREST's."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get(name), dict):
        raise Unreachable("the reply to a question for tasks is not FirecREST's")
    found: dict[str, Any] = document[name]
    return found
