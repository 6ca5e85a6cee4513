"""The object store: presigned GET, form POST, nothing else (v1 FACTS §6, §7).

Strict where the recorded moto was not: signatures and expiry are checked, HEAD on a GET link is
403, as on a real S3.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote, urlsplit
from xml.sax.saxutils import escape

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from f7tfs.sim.multipart import FormParser, Malformed, boundary_of
from f7tfs.sim.ranges import Unsatisfiable, byte_range
from f7tfs.sim.signing import Denied, Signer

CHUNK = 1 << 20
_HASHED = 8 << 20
"""Bigger objects get an ETag that is no MD5, with a dash, as multipart uploads have."""
_MAX_OBJECT = 5 << 30


@dataclass
class Traffic:
    bytes_in: int = 0
    bytes_out: int = 0
    methods: dict[str, int] = field(default_factory=lambda: {"GET": 0, "POST": 0, "PUT": 0})


@dataclass(frozen=True)
class Stored:
    path: Path
    size: int
    etag: str
    modified: float


class ObjectStore:
    def __init__(
        self,
        folder: Path,
        base: str,
        expiry: float,
        *,
        served: tuple[Path, str] | None = None,
        forms: str | None = None,
    ) -> None:
        """`base`: the store's address up to the bucket, e.g. http://127.0.0.1:80/s3. `served`: a
        folder that gets every object as BUCKET/KEY, and the origin of the web server that GET
        links lead to instead. `forms`: the origin of the one that forms lead to."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._served = served
        self._folder = folder
        self._origin = "{0.scheme}://{0.netloc}".format(urlsplit(base))
        self._forms = forms or self._origin
        self._host = urlsplit(base).netloc
        self._prefix = urlsplit(base).path
        self._signer = Signer(expiry)
        self._objects: dict[tuple[str, str], Stored] = {}
        self.traffic = Traffic()

    # -- what the storage service does with it

    def form(self, bucket: str, key: str) -> tuple[str, dict[str, str]]:
        return f"{self._forms}{self._prefix}/{bucket}", self._signer.form(bucket, key)

    def link(
        self, bucket: str, key: str, method: str = "GET", extra: Mapping[str, str] | None = None
    ) -> str:
        path = quote(f"{self._prefix}/{bucket}/{key}", safe="/-_.~")
        if self._served is not None and method == "GET":
            origin = self._served[1]
            return self._signer.link(origin, urlsplit(origin).netloc, path, method, extra)
        return self._signer.link(self._origin, self._host, path, method, extra)

    def check(self, request: Request) -> None:
        """Denied, unless the request's link was signed for its method and is not too old."""
        raw = request.scope["raw_path"].decode("latin-1")
        path = quote(unquote(raw), safe="/-_.~")
        host = request.headers.get("host", "")
        self._signer.check_link(request.method, host, path, request.url.query)

    def check_form(self, bucket: str, fields: Mapping[str, str]) -> None:
        self._signer.check_form(bucket, fields)

    def find(self, bucket: str, key: str) -> Stored | None:
        return self._objects.get((bucket, key))

    def holds(self, bucket: str, prefix: str) -> bool:
        return any(b == bucket and key.startswith(prefix) for b, key in self._objects)

    def blank(self) -> IO[bytes]:
        """A file to fill and then `adopt`; closing it without that throws it away."""
        return tempfile.NamedTemporaryFile(dir=self._folder, delete=False)

    def adopt(self, bucket: str, key: str, file: IO[bytes], md5: str | None = None) -> Stored:
        """Make a filled file an object, at once and whole. `md5`: its ETag, if it is known."""
        file.flush()
        path = Path(file.name)
        status = path.stat()
        if md5 is None and status.st_size <= _HASHED:
            md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        etag = md5 or f"{hashlib.md5(path.name.encode()).hexdigest()}-{status.st_size >> 23}"
        self.delete(bucket, key)
        stored = Stored(path, status.st_size, f'"{etag}"', status.st_mtime)
        self._objects[bucket, key] = stored
        if self._served is not None:
            place = self._served[0] / bucket / key
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(path)
        return stored

    def adopt_hole(self, bucket: str, key: str, size: int) -> Stored:
        """An object that another server took in for this one: its size, not its bytes."""
        with self.blank() as file:
            file.truncate(size)
            return self.adopt(bucket, key, file)

    def delete(self, bucket: str, key: str) -> None:
        stored = self._objects.pop((bucket, key), None)
        if stored is not None:
            stored.path.unlink(missing_ok=True)
            if self._served is not None:
                (self._served[0] / bucket / key).unlink(missing_ok=True)

    # -- HTTP

    def routes(self) -> list[Route]:
        return [
            Route(f"{self._prefix}/{{bucket}}", self._post, methods=["POST"]),
            Route(f"{self._prefix}/{{bucket}}/{{key:path}}", self._get, methods=["GET", "HEAD"]),
        ]

    async def _get(self, request: Request) -> Response:
        self.traffic.methods["GET"] += 1
        try:
            self.check(request)
        except Denied as denial:
            return xml_error(403, denial.code, str(denial))
        bucket, key = request.path_params["bucket"], request.path_params["key"]
        stored = self.find(bucket, key)
        if stored is None:
            return xml_error(404, "NoSuchKey", "The specified key does not exist.", {"Key": key})
        headers = {
            "ETag": stored.etag,
            "Last-Modified": formatdate(stored.modified, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        wanted = request.headers.get("range")
        try:
            span = byte_range(wanted, stored.size)
        except Unsatisfiable:
            return xml_error(
                416,
                "InvalidRange",
                "The requested range is not satisfiable",
                {"ActualObjectSize": str(stored.size), "RangeRequested": wanted or ""},
            )
        start, end = span or (0, stored.size)
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size}"
        headers["Content-Length"] = str(end - start)
        return StreamingResponse(
            self._content(stored.path, start, end),
            206 if span else 200,
            headers,
            "binary/octet-stream",
        )

    async def _content(self, path: Path, start: int, end: int) -> AsyncIterator[bytes]:
        # opened here: an object that is deleted meanwhile stays readable to the end
        with path.open("rb") as file:
            while start < end:
                data = os.pread(file.fileno(), min(CHUNK, end - start), start)
                if not data:
                    return
                start += len(data)
                self.traffic.bytes_out += len(data)
                yield data

    async def _post(self, request: Request) -> Response:
        self.traffic.methods["POST"] += 1
        if int(request.headers.get("content-length", "0")) > _MAX_OBJECT:
            return xml_error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum")
        incoming = Incoming(self, request.path_params["bucket"])
        try:
            parser = FormParser(
                boundary_of(request.headers.get("content-type", "")),
                incoming.open,
                incoming.write,
            )
            async for chunk in request.stream():
                self.traffic.bytes_in += len(chunk)
                if incoming.problem is None:
                    try:
                        parser.feed(chunk)
                    except (Denied, Malformed, UnicodeDecodeError) as problem:
                        incoming.problem = problem  # read on: the client is still sending
            if incoming.problem is None and not parser.complete:
                incoming.problem = Malformed("The body ended too early.")
            if isinstance(incoming.problem, Denied):
                return xml_error(403, incoming.problem.code, str(incoming.problem))
            if incoming.problem is not None:
                return xml_error(400, "MalformedPOSTRequest", str(incoming.problem))
            etag = incoming.finish()
        except Malformed as problem:
            return xml_error(400, "MalformedPOSTRequest", str(problem))
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            incoming.close()
        return Response(status_code=204, headers={"ETag": etag})


class Incoming:
    """The file of one form post, on its way to the disk."""

    def __init__(self, store: ObjectStore, bucket: str) -> None:
        self._store = store
        self._bucket = bucket
        self._key = ""
        self._file: IO[bytes] | None = None
        self._size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.problem: Exception | None = None

    def open(self, fields: Mapping[str, str]) -> None:
        self._store.check_form(self._bucket, fields)
        self._key = fields["key"]
        self._file = self._store.blank()

    def write(self, data: memoryview) -> None:
        assert self._file is not None
        if self._size <= _HASHED:
            self._md5.update(data)
        self._size += len(data)
        self._file.write(data)

    def finish(self) -> str:
        assert self._file is not None
        file, self._file = self._file, None
        with file:
            digest = self._md5.hexdigest() if self._size <= _HASHED else None
            return self._store.adopt(self._bucket, self._key, file, digest).etag

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)


def xml_error(
    status: int, code: str, message: str, details: Mapping[str, str] | None = None
) -> Response:
    inner = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in (details or {}).items())
    body = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>{inner}"
        "<RequestId>SIM</RequestId><HostId>SIM</HostId></Error>"
    )
    return Response(body, status, {"Content-Type": "application/xml"})
