"""Flask's send_file: the download's headers (v1 FACTS §4 download, §3)."""

from __future__ import annotations

import html
import re
import unicodedata
from urllib.parse import quote

from starlette.responses import Response

from f7tfs.sim.ranges import Unsatisfiable, byte_range
from f7tfs.sim.replies import gunicorn_page

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def attachment(name: str, content: bytes, wanted: str | None) -> Response:
    disposition = f"attachment; {_filename(name)}"
    if "\x7f" in disposition:  # gunicorn refuses to send it
        shown = html.escape(repr(repr(disposition)))
        return gunicorn_page(400, "Bad Request", f"Invalid HTTP Header: {shown}")
    headers = {"Content-Disposition": disposition, "Accept-Ranges": "bytes"}
    kind = "application/octet-stream"
    try:
        span = byte_range(wanted, len(content))
    except Unsatisfiable:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(content)}"})
    if span is None:
        return Response(content, 200, headers, kind)
    start, end = span
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    return Response(content[start:end], 206, headers, kind)


def _filename(name: str) -> str:
    try:
        name.encode("ascii")
        return f"filename={_quoted(name)}"
    except UnicodeEncodeError:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        encoded = quote(name, safe="!#$&+-.^_`|~")
        return f"filename={_quoted(plain)}; filename*=UTF-8''{encoded}"


def _quoted(text: str) -> str:
    if _TOKEN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
