"""A microservice: one request at a time, a token, a form (v1 FACTS §1)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

import trio
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.classify import invalid
from f7tfs.sim.cluster import Cluster, System
from f7tfs.sim.replies import Refused, refuse
from f7tfs.sim.tokens import Tokens

BODY_LIMIT = 5242880
"""The whole body of a form, not the file in it (§4 upload)."""

# The utilities and the other services disagree about the name of this header and its text.
UTILITIES_UNKNOWN = ("X-Machine-Does-Not-Exist", "Machine does not exist")
OTHERS_UNKNOWN = ("X-Machine-Does-Not-Exists", "Machine does not exists")


@dataclass(frozen=True)
class Call:
    """One request after the front door: who asks, and the query or the form."""

    request: Request
    user: str
    params: Mapping[str, str]
    files: Mapping[str, tuple[str, bytes]]
    """Part name → (file name, content)."""
    too_large: bool

    def flag(self, name: str) -> bool:
        return self.params.get(name, "").lower() in {"true", "yes", "1"}

    def checked(self, name: str, description: str) -> str:
        """A parameter that must be there and hold no forbidden character (§3)."""
        value = self.params.get(name)
        if reason := invalid(value):
            raise refuse(description, f"'{name}' {reason}")
        assert value is not None
        return value

    def system(
        self, cluster: Cluster, description: str, unknown: tuple[str, str] = OTHERS_UNKNOWN
    ) -> System:
        name = self.request.headers.get("x-machine-name")
        if name is None:
            raise refuse("No machine name given")
        try:
            return cluster.systems[name]
        except KeyError:
            header, text = unknown
            raise refuse(description, text, headers={header: text}) from None


Handler = Callable[[Call], Awaitable[Response]]


class Service:
    """Gives handlers their lock, latency and user, and turns refusals into answers."""

    def __init__(self, prefix: str, tokens: Tokens, latency: float) -> None:
        self.prefix = prefix
        self.lock = trio.Lock()
        self._tokens = tokens
        self._latency = latency

    def route(self, path: str, method: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            params, files, too_large = await read_parameters(request)
            try:
                async with self.lock:
                    await trio.sleep(self._latency)
                    user = self._tokens.user_of(request)
                    return await handler(Call(request, user, params, files, too_large))
            except Refused as refusal:
                return refusal.response

        return Route(f"{self.prefix}{path}", endpoint, methods=[method])


def query_of(request: Request) -> dict[str, str]:
    """Bytes that are no UTF-8 stay percent-encoded, literally (§3), as werkzeug leaves them."""
    pairs = parse_qsl(
        request.scope["query_string"].decode("latin-1"),
        keep_blank_values=True,
        errors="surrogateescape",
    )
    found: dict[str, str] = {}
    for name, value in pairs:
        literal = re.sub("[\udc80-\udcff]", lambda bad: f"%{ord(bad[0]) - 0xDC00:02X}", value)
        found.setdefault(name, literal)
    return found


async def read_parameters(
    request: Request,
) -> tuple[dict[str, str], dict[str, tuple[str, bytes]], bool]:
    """GET: the query; else the form. Read before the lock: nginx buffers bodies for the server."""
    if request.method in {"GET", "HEAD"}:
        return query_of(request), {}, False
    if int(request.headers.get("content-length", "0")) > BODY_LIMIT:
        async for _ in request.stream():
            pass
        return {}, {}, True
    params: dict[str, str] = {}
    files: dict[str, tuple[str, bytes]] = {}
    async with request.form() as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files[name] = (value.filename or "", await value.read())
            else:
                params.setdefault(name, value)
    return params, files, False
