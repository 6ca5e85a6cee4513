"""v1 tasks: many askers, few calls.

A round collects the ids of all who ask within a short window, or while an earlier round is on its
way, and observes them with one call (v1 FACTS §5).
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from f7tfs.api.http import ApiClient, words_of
from f7tfs.errors import (
    F7tfsError,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    ServerError,
    Stalled,
    Unreachable,
)

WINDOW = 0.05  # seconds in which askers gather
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


class _Round:
    """Askers who share one poll. `found` and `failure` are set together, once."""

    def __init__(self) -> None:
        self.askers: Counter[str] = Counter()
        self.over = False
        self.found: dict[str, Task] = {}
        self.failure: F7tfsError | None = None


class TaskBoard:
    """Observes tasks over one ApiClient.

    Whoever holds the lock polls for its whole round; the others of the round queue for the lock and
    then find the answer. Joining a round and queueing happen without a checkpoint between, so the
    queue is in the order of the rounds, and when a poller is cancelled the next one of its round
    takes over.
    """

    def __init__(self, api: ApiClient, *, window: float = WINDOW) -> None:
        self._api = api
        self._window = window
        self._lock = trio.Lock()
        self._gathering: _Round | None = None

    async def observe(self, task_id: str) -> Task:
        """One observation. Raises NotFound for ids that are unknown or somebody else's, and what
        GETs raise."""
        if not _TASK_ID.fullmatch(task_id):
            raise NotFound(f"not a task id: {task_id!r}")
        if self._gathering is None:
            self._gathering = _Round()
        mine = self._gathering
        mine.askers[task_id] += 1
        try:
            async with self._lock:
                if not mine.over:
                    await self._lead(mine)
        finally:
            mine.askers[task_id] -= 1
            if not +mine.askers and self._gathering is mine:
                self._gathering = None
        if mine.failure is not None:
            raise copy.copy(mine.failure)
        if task_id not in mine.found:
            raise NotFound(f"the server knows no task {task_id}")
        return mine.found[task_id]

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

    async def _lead(self, mine: _Round) -> None:
        """Poll for a round and publish; on cancellation the round stays open for another leader."""
        if self._gathering is mine:
            await trio.sleep(self._window)
            self._gathering = None
        # Those who left meanwhile are not asked for.
        ids = list(+mine.askers)
        found: dict[str, Task] = {}
        failure = None
        try:
            for start in range(0, len(ids), IDS_PER_CALL):
                found |= await self._poll(ids[start : start + IDS_PER_CALL])
        except F7tfsError as error:
            failure = error
        mine.found, mine.failure, mine.over = found, failure, True

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
