"""The one error shape of v2, its headers, and the two kinds of 500 (v2 FACTS §1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

DROP = "x-sim-drop"
"""Marks a reply after which the gate closes the connection, as uvicorn does (§1)."""


class ApiError(Exception):
    """A request that ends here. `user` is filled in by the front door."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "error",
        caused_by: list[str] | None = None,
        fields: list[dict[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
        drop: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.caused_by = caused_by
        self.fields = fields
        self.headers = dict(headers or {})
        self.drop = drop

    def reply(self, user: str | None) -> Response:
        data = None if self.fields is None else {"fields": self.fields}
        body = {
            "errorType": self.kind,
            "message": self.message,
            "causedBy": self.caused_by,
            "data": data,
            "user": user,
        }
        headers = dict(self.headers)
        if user is not None:
            headers["f7t-authusername"] = user
        if self.drop:
            headers[DROP] = "1"
        return reply(body, self.status, headers)


class Unhandled(Exception):
    """An exception that nobody in the server catches: 500 with its `args` as text (§1)."""

    def reply(self) -> Response:
        return ApiError(500, str(self.args), drop=True).reply(None)


def reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(
        text.encode(errors="replace"), status, dict(headers or {}), media_type="application/json"
    )


def no_content() -> Response:
    """204 that claims to be JSON: a naive .json() of it raises (§1)."""
    return Response(status_code=204, headers={"content-type": "application/json"})


def invalid(
    kind: str, location: tuple[str | int, ...], message: str, given: object = None
) -> ApiError:
    """pydantic's complaint: 400, not 422, and a text that nobody should parse (§1)."""
    detail = f"{{'type': '{kind}', 'loc': {location!r}, 'msg': '{message}', 'input': {given!r}}}"
    # the field's name is the location's second element: "job" for job.workingDirectory
    field = {"location": location[0], "name": location[1], "message": message}
    text = f"1 validation error:\n  {detail}".lower()
    return ApiError(400, text, kind="validation", fields=[field])


def missing(*location: str | int) -> ApiError:
    return invalid("missing", location, "Field required")
