"""The front door of v2: whose token, which system, what is asked (v2 FACTS §1)."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.cluster import Cluster
from f7tfs.sim.tokens import Expired, Tokens
from f7tfs.sim.v2.replies import ApiError, Unhandled, invalid, missing, reply
from f7tfs.sim.v2.shell import Shell
from f7tfs.sim.v2.systems import Place, Systems

MIN_TOKEN_TTL = 30.0
_NO_PATH = "Unable to decode request and retreive the required path or source_path parameter."
_TRUE = {"true", "1", "yes", "on", "t", "y"}
_FALSE = {"false", "0", "no", "off", "f", "n"}


def snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)


@dataclass(frozen=True)
class Call:
    """One request after the front door. `body` is the JSON object, or empty."""

    request: Request
    user: str
    place: Place
    body: dict[str, Any]

    # -- the query

    def flag(self, name: str) -> bool:
        text = self.request.query_params.get(name, "false").lower()
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise invalid(
            "bool_parsing",
            ("query", name),
            "Input should be a valid boolean, unable to interpret input",
            text,
        )

    def number(self, name: str) -> int | None:
        text = self.request.query_params.get(name)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            raise invalid(
                "int_parsing",
                ("query", name),
                "Input should be a valid integer, unable to parse string as an integer",
                text,
            ) from None

    # -- the body: camelCase or snake_case (§1)

    def given(self, name: str) -> Any:
        return given(self.body, name)

    def text(self, name: str) -> str:
        """A field that must be there, as a string."""
        if name not in self.body and snake(name) not in self.body:
            raise missing("body", name)
        return self._string(name)

    def optional_text(self, name: str) -> str | None:
        return None if self.given(name) is None else self._string(name)

    def _string(self, name: str) -> str:
        value = self.given(name)
        if not isinstance(value, str):
            raise invalid("string_type", ("body", name), "Input should be a valid string", value)
        return value

    def truth(self, name: str) -> bool:
        return bool(self.given(name))

    @property
    def raw_path(self) -> str:
        """`path`, `sourcePath` or `source_path`, of the query or the body, unchecked."""
        found = path_of(self.request, self.body)
        if found is None:
            raise missing("body", "sourcePath")
        return found


def given(body: dict[str, Any], name: str) -> Any:
    return body.get(name, body.get(snake(name)))


def path_of(request: Request, body: dict[str, Any]) -> str | None:
    for source in (request.query_params, body):
        for name in ("path", "sourcePath", "source_path"):
            value = source.get(name)
            if isinstance(value, str):
                return value
    return None


Handler = Callable[[Call], Awaitable[Response]]


class Service:
    """Gives handlers their user, system and body, and turns refusals into answers."""

    def __init__(self, cluster: Cluster, tokens: Tokens, systems: Systems, shell: Shell) -> None:
        self.cluster = cluster
        self.systems = systems
        self.shell = shell
        self._tokens = tokens
        self._loop = trio.Lock()
        """The server's one event loop, as far as a transfer request blocks it (§7)."""

    # -- routes

    def route(
        self,
        path: str,
        method: str,
        handler: Handler,
        *,
        checks_path: bool = False,
        service: str = "ssh",
        blocks: bool = False,
    ) -> Route:
        """`path` with `{system}`. `checks_path`: the request must name one, in a file system."""

        async def endpoint(request: Request) -> Response:
            user: str | None = None
            try:
                body = await read_body(request)
                async with self._loop:
                    if blocks:
                        await trio.sleep(self.cluster.options.transfer_cost)
                await trio.sleep(self.cluster.options.latency)
                user = self.user_of(request)
                place = self.systems.usable(str(request.path_params["system"]), service)
                self._check_account(user)
                if checks_path:
                    self._check_path(request, place, body)
                return await handler(Call(request, user, place, body))
            except ApiError as error:
                return error.reply(user)
            except Unhandled as error:
                return error.reply()
            except ClientDisconnect:
                return Response(status_code=400)

        return route(path, method, endpoint)

    def plain_route(self, path: str, handler: Callable[[str], dict[str, Any]]) -> Route:
        """A GET that names no system; `handler` gets the user."""

        async def endpoint(request: Request) -> Response:
            await trio.sleep(self.cluster.options.latency)
            try:
                return reply(handler(self.user_of(request)))
            except ApiError as error:
                return error.reply(None)

        return route(path, "GET", endpoint)

    def _check_path(self, request: Request, place: Place, body: dict[str, Any]) -> None:
        path = path_of(request, body)
        if path is None:
            # asyncio.run() in a foreign loop: a GET leaves a broken connection behind (§1)
            raise ApiError(400, _NO_PATH, drop=request.method == "GET")
        self.systems.check_path(place, path)

    def _check_account(self, user: str) -> None:
        if user not in self.cluster.users:
            raise ApiError(500, str((f"No SSH credentials found for user:{user}",)))

    # -- tokens

    def user_of(self, request: Request) -> str:
        """Who asks. A refused token comes back in a header (§1)."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise ApiError(401, "Not authenticated", headers={"www-authenticate": "Bearer"})
        echo = {"auth-token": token}
        try:
            user, expiry = self._tokens.verified(token)
        except Expired:
            raise ApiError(401, "Access token expired", headers=echo) from None
        except ValueError:
            raise ApiError(401, "Access token is invalid.", headers=echo) from None
        if expiry - time.time() < MIN_TOKEN_TTL:
            text = "Access token expires too soon (less than 30s remaining)."
            raise ApiError(401, text, headers=echo)
        return user


def route(path: str, method: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """FastAPI's routes answer GET without HEAD."""
    made = Route(path, endpoint, methods=[method])
    made.methods = {method}
    return made


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object; a body that is no JSON is refused before anything else is looked at."""
    kind = request.headers.get("content-type", "")
    if request.method == "GET" or not kind.startswith("application/json"):
        return {}
    raw = await request.body()
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except ValueError as mistake:
        position = getattr(mistake, "pos", 0)
        raise invalid("json_invalid", ("body", position), "JSON decode error") from None
    return body if isinstance(body, dict) else {}


def stamped(headers: list[tuple[bytes, bytes]], sent: dict[bytes, bytes]) -> None:
    """What every reply carries; ids that the client gave come back (§1)."""
    headers.append((b"f7t-timestamp", str(time.time()).encode()))
    headers.append((b"f7t-appversion", b"2.x.x"))
    if (b"x-sim-drop", b"1") in headers and not any(k == b"f7t-authusername" for k, _ in headers):
        return  # an unhandled 500 lacks them
    for name in (b"x-request-id", b"x-correlation-id"):
        headers.append((name, sent.get(name, uuid.uuid4().hex.encode())))
