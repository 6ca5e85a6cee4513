"""v1's two kinds of calls, bound to one system: those that ask and those that change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from f7tfs.api.http import ApiClient
from f7tfs.api.replies import Reply
from f7tfs.api.v1_errors import error_of
from f7tfs.api.wire import document
from f7tfs.errors import OutcomeUnknown, Unreachable


class Calls:
    """Parameters go in the query of a GET and in the form of everything else (v1 FACTS §1)."""

    def __init__(self, api: ApiClient, system: str) -> None:
        self.api = api
        self._machine = {"X-Machine-Name": system}

    async def fetch(self, path: str, query: Mapping[str, str], what: str) -> Reply:
        """A GET on the cluster, successful, undecoded. `what` names it in messages."""
        reply = await self.api.request(
            "GET", path, query=query, headers=self._machine, idempotent=True
        )
        if reply.status >= 300:
            raise error_of(reply, what, changes=False)
        return reply

    async def ask(self, path: str, query: Mapping[str, str], what: str) -> dict[str, Any]:
        """A GET on the cluster that answers with a JSON object."""
        return document((await self.fetch(path, query, what)).body)

    async def status(self, path: str) -> Any:
        """`out` of a GET below /status, which knows no system."""
        reply = await self.api.request("GET", path, idempotent=True)
        if reply.status >= 300:
            raise error_of(reply, path, changes=False)
        return document(reply.body).get("out")

    async def act(
        self,
        method: str,
        path: str,
        what: str,
        *,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        headers: Mapping[str, str] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """A call that changes something; {} for a reply without a body (rm)."""
        reply = await self.api.request(
            method,
            path,
            form=form,
            files=files,
            headers=headers or self._machine,
            endpoint=endpoint,
            idempotent=False,
        )
        if reply.status >= 300:
            raise error_of(reply, what, changes=True)
        if reply.status == 204:
            return {}
        try:
            return document(reply.body)
        except Unreachable as error:
            raise OutcomeUnknown(f"{what}: {error}") from None


def task_id_of(answer: Mapping[str, Any], what: str) -> str:
    """The task that a call started. Raises OutcomeUnknown: something was started, unfollowable."""
    task_id = answer.get("task_id")
    if not isinstance(task_id, str) or not task_id:
        raise OutcomeUnknown(f"{what}: the server named no task")
    return task_id
