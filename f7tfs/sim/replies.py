"""The bodies that Flask, gunicorn, nginx and Kong put around the services' JSON (v1 FACTS §1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

_FLASK = {
    404: (
        "Not Found",
        "The requested URL was not found on the server. If you entered the URL manually please "
        "check your spelling and try again.",
    ),
    405: ("Method Not Allowed", "The method is not allowed for the requested URL."),
    500: (
        "Internal Server Error",
        "The server encountered an internal error and was unable to complete your request. "
        "Either the server is overloaded or there is an error in the application.",
    ),
}


class Refused(Exception):
    """A request that ends here with this answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Flask's jsonify. A header that is not latin-1 kills the worker: nginx says 502 (§2)."""
    try:
        for value in (headers or {}).values():
            value.encode("latin-1")
    except UnicodeEncodeError:
        return bad_gateway()
    text = json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n"
    return Response(text, status, dict(headers or {}), "application/json")


def refuse(
    description: str | None,
    error: str | None = None,
    status: int = 400,
    headers: Mapping[str, str] | None = None,
) -> Refused:
    body = {"description": description, "error": error}
    return Refused(reply({k: v for k, v in body.items() if v is not None}, status, headers))


def flask_page(status: int, headers: Mapping[str, str] | None = None) -> Response:
    title, words = _FLASK[status]
    return Response(
        f"<!doctype html>\n<html lang=en>\n<title>{status} {title}</title>\n"
        f"<h1>{title}</h1>\n<p>{words}</p>\n",
        status,
        dict(headers or {}),
        "text/html",
    )


def gunicorn_page(status: int, title: str, detail: str = "") -> Response:
    return Response(
        f"<html>\n  <head>\n    <title>{title}</title>\n  </head>\n  <body>\n"
        f"    <h1><p>{title}</p></h1>\n    {detail}\n  </body>\n</html>\n",
        status,
        {"Content-Type": "text/html"},
    )


def bad_gateway() -> Response:
    return Response(
        "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
        "<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx/1.22.1</center>\r\n"
        "</body>\r\n</html>\r\n",
        502,
        {"Content-Type": "text/html"},
    )


def kong_invalid() -> Response:
    return reply({"message": "Invalid"}, 400)
