"""v2's two kinds of calls, bound to one system: those that ask and those that change."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from f7tfs.api.http import ApiClient
from f7tfs.api.replies import Reply
from f7tfs.api.v2_errors import error_of
from f7tfs.api.wire import document
from f7tfs.errors import OutcomeUnknown, Unreachable

OPS = "/filesystem/{system}/ops/"
TRANSFER = "/filesystem/{system}/transfer/"
JOBS = "/compute/{system}/jobs"
JOB = JOBS + "/{id}"
METADATA = JOB + "/metadata"


class Calls:
    """`route` is a template for the system, and for the `job` where it has an {id}. Parameters go
    in the query of what asks, as JSON with what changes (v2 FACTS §1)."""

    def __init__(self, api: ApiClient, system: str) -> None:
        self.api = api
        self._system = urllib.parse.quote(system, safe="")

    async def reply_to(self, route: str, query: Mapping[str, str], *, job: str = "") -> Reply:
        """A GET, whatever the answer."""
        return await self.api.request(
            "GET",
            route.format(system=self._system, id=job),
            query=query or None,
            idempotent=True,
            endpoint=_label(route),
        )

    async def fetch(self, route: str, query: Mapping[str, str], what: str) -> Reply:
        """A GET, successful, undecoded. `what` names it in messages."""
        reply = await self.reply_to(route, query)
        if reply.status >= 300:
            raise error_of(reply, what, changes=False)
        return reply

    async def ask(self, route: str, query: Mapping[str, str], what: str) -> dict[str, Any]:
        """A GET that answers with a JSON object."""
        return document((await self.fetch(route, query, what)).body)

    async def send(
        self,
        method: str,
        route: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        job: str = "",
    ) -> Reply:
        """A call that changes something, whatever the answer."""
        return await self.api.request(
            method,
            route.format(system=self._system, id=job),
            query=query,
            files=files,
            document=body,
            idempotent=False,
            endpoint=_label(route),
        )

    async def act(
        self,
        method: str,
        route: str,
        what: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
    ) -> dict[str, Any]:
        """A call that changes something, successful; {} for a reply without a body, which is called
        JSON all the same (v2 FACTS §1)."""
        reply = await self.send(method, route, body=body, query=query, files=files)
        if reply.status >= 300:
            raise error_of(reply, what, changes=True)
        return answer_to(reply, what)


def answer_to(reply: Reply, what: str) -> dict[str, Any]:
    """The object in the answer to a change. Raises OutcomeUnknown for what is not FirecREST's."""
    if reply.status == 204 or not reply.body:
        return {}
    try:
        return document(reply.body)
    except Unreachable as error:
        raise OutcomeUnknown(f"{what}: {error}") from None


def _label(route: str) -> str:
    """To count under: "/ops/ls", "/compute/jobs/{id}"."""
    return route.replace("/filesystem/{system}", "").replace("/{system}", "")
