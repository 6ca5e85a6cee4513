"""The ASGI layer in front of everything: counts, logs, and injects scripted faults."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import trio

from f7tfs.sim.faults import Fault, Faults
from f7tfs.sim.tokens import TOKEN_PATH

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DROP_MARK = (b"x-sim-drop", b"1")
"""A header that is not sent: the connection is closed after the reply (v2 FACTS §1)."""
_LOG_LENGTH = 10000
_KEPT_BODY = 6 << 20
"""Bigger bodies are not looked into."""
_SECRET = {"client_secret", "access_token", "policy", "x-amz-signature", "X-Amz-Signature"}
_PART_NAME = re.compile(rb'\bname="([^"]*)"')
_PART_FILE = re.compile(rb'filename="([^"]*)"')
_IDS = (
    (re.compile(r"^/tasks/(?!status$)[^/]+$"), "/tasks/{id}"),
    (re.compile(r"^/compute/jobs/(?!upload$|path$)[^/]+$"), "/compute/jobs/{id}"),
    (re.compile(r"^((?:/v2)?/compute/[^/]+/jobs)/[^/]+"), r"\1/{id}"),
    (re.compile(r"^/status/(services|systems|filesystems)/[^/]+$"), r"/status/\1/{id}"),
)


class Uplink:
    """The line that all clients send over, API and object store alike."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """Bytes per second, all requests together; None = as fast as it goes."""
        self._free = 0.0

    def narrowed(self, receive: Receive) -> Receive:
        """Hands a body on no faster than the line would have carried it."""

        async def slowly() -> Message:
            message = await receive()
            if self.rate is not None and message["type"] == "http.request":
                start = max(self._free, trio.current_time())
                self._free = start + len(message.get("body", b"")) / self.rate
                await trio.sleep_until(self._free)
            return message

        return slowly


class Gate:
    def __init__(self, app: App, cut: Callable[[Scope], Awaitable[None]]) -> None:
        """`cut(scope)` closes the connection that a request came on."""
        self._app = app
        self._cut = cut
        self.faults = Faults()
        self.uplink = Uplink()
        self.calls: Counter[str] = Counter()
        self.tokens = 0
        self.log: deque[dict[str, Any]] = deque(maxlen=_LOG_LENGTH)

    def reset(self) -> None:
        self.calls.clear()
        self.tokens = 0
        self.log.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path.startswith("/_sim/"):
            await self._app(scope, receive, send)
            return
        receive = self.uplink.narrowed(receive)
        method: str = scope["method"]
        place = f"{method} {path}"
        if path.startswith("/s3/"):
            kind = f"object-store {method}"
            fields: list[tuple[str, str]] = []
        else:
            kind = "token" if path == TOKEN_PATH else place
            receive, body = await _read_ahead(receive)
            fields = _fields_of(scope, body)
        fields = parse_qsl(scope["query_string"].decode("latin-1"), True) + fields
        self._count(kind, path, method)
        entry: dict[str, Any] = {
            "method": method,
            "path": path,
            "params": {k: v[:300] for k, v in fields if k not in _SECRET},
            "status": None,
            "time": time.time(),
        }
        self.log.append(entry)
        text = f"{path}?" + "&".join(f"{name}={value}" for name, value in fields)
        fault = self.faults.choose((kind, place), text)
        drop = False

        async def noted(message: Message) -> None:
            nonlocal drop
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
                drop = DROP_MARK in message["headers"]
                kept = [pair for pair in message["headers"] if pair != DROP_MARK]
                message = {**message, "headers": kept}
            await send(message)

        if fault is None:
            await self._app(scope, receive, noted)
        else:
            entry["fault"] = fault.id
            await self._strike(fault, scope, receive, noted)
        if drop:
            await self._cut(scope)

    def _count(self, kind: str, path: str, method: str) -> None:
        if kind == "token":
            self.tokens += 1
        elif not kind.startswith("object-store"):
            for pattern, normal in _IDS:
                path = pattern.sub(normal, path)
            self.calls[f"{method} {path}"] += 1

    async def _strike(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        action = fault.action
        if "delay" in action:
            await trio.sleep(float(action["delay"]))
        if "hang" in action:
            await _until_gone(receive, fault.cleared)
            await self._cut(scope)
        elif "status" in action:
            await _drain(receive)
            headers = [
                (name.lower().encode(), value.encode())
                for name, value in action.get("headers", {}).items()
            ]
            body = str(action.get("body", "")).encode()
            headers.append((b"content-length", str(len(body)).encode()))
            start = {"type": "http.response.start", "status": action["status"]}
            await send(start | {"headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif action.get("drop") == "before":
            await self._cut(scope)
        elif action.get("drop") == "after":
            await self._app(scope, receive, _nowhere)
            await self._cut(scope)
        elif "truncate" in action:
            await self._truncated(scope, receive, send, int(action["truncate"]))
        else:
            await self._app(scope, receive, send)

    async def _truncated(self, scope: Scope, receive: Receive, send: Send, left: int) -> None:
        async def partial(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.start":
                await send(message)
            elif left >= 0:
                body = message.get("body", b"")
                await send({**message, "body": body[:left], "more_body": True})
                left -= len(body)
                if left < 0:
                    await self._cut(scope)

        await self._app(scope, receive, partial)
        await self._cut(scope)


async def _nowhere(message: Message) -> None:
    """The reply that nobody gets."""


async def _drain(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return


async def _until_gone(receive: Receive, cleared: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await cleared.wait()
        nursery.cancel_scope.cancel()


async def _read_ahead(receive: Receive) -> tuple[Receive, bytes]:
    """The body, if it is not too big, and a receive() that gives all of it once more."""
    messages: deque[Message] = deque()
    size = 0
    while size < _KEPT_BODY:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.popleft() if messages else await receive()

    return again, body


def _fields_of(scope: Scope, body: bytes) -> list[tuple[str, str]]:
    """Names and values of a form or a JSON object, for the log and the faults; file parts by
    their file name."""
    headers = dict(scope["headers"])
    kind: bytes = headers.get(b"content-type", b"")
    if kind.startswith(b"application/json"):
        return _fields_of_json(body)
    if kind.startswith(b"application/x-www-form-urlencoded"):
        return parse_qsl(body.decode(errors="replace"), True)
    if not kind.startswith(b"multipart/form-data") or b"boundary=" not in kind:
        return []
    fields = []
    boundary = b"--" + kind.partition(b"boundary=")[2].strip(b'"')
    for part in body.split(boundary)[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        name, file = _PART_NAME.search(head), _PART_FILE.search(head)
        if name:
            value = file[1] if file else content.removesuffix(b"\r\n")[:4096]
            fields.append((name[1].decode(errors="replace"), value.decode(errors="replace")))
    return fields


def _fields_of_json(body: bytes) -> list[tuple[str, str]]:
    """Those of inner objects as well, by their own names."""
    try:
        value = json.loads(body)
    except ValueError:
        return []
    fields: list[tuple[str, str]] = []
    objects = [value] if isinstance(value, dict) else []
    while objects:
        for name, inner in objects.pop().items():
            if isinstance(inner, dict):
                objects.append(inner)
            else:
                fields.append((name, inner if isinstance(inner, str) else json.dumps(inner)))
    return fields
