"""Multipart uploads into the object store: presigned parts, then a completion (v2 FACTS §7)."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.objects import ObjectStore, xml_error
from f7tfs.sim.signing import Denied

_MIN_PART = 5 << 20
"""Of all parts but the last, as a real S3 wants it."""
_PART = re.compile(
    r"<Part>\s*(?:<PartNumber>(\d+)</PartNumber>\s*<ETag>(.*?)</ETag>"
    r"|<ETag>(.*?)</ETag>\s*<PartNumber>(\d+)</PartNumber>)",
    re.DOTALL,
)


@dataclass
class Part:
    path: Path
    size: int
    digest: bytes

    @property
    def etag(self) -> str:
        return self.digest.hex()


@dataclass
class Upload:
    bucket: str
    key: str
    parts: dict[int, Part] = field(default_factory=dict)


class Parts:
    def __init__(self, store: ObjectStore, prefix: str, small: bool) -> None:
        """`small`: whether parts below S3's least size may be put together (tests want it)."""
        self._store = store
        self._prefix = prefix
        self._small = small
        self._uploads: dict[str, Upload] = {}

    def routes(self) -> list[Route]:
        path = f"{self._prefix}/{{bucket}}/{{key:path}}"
        return [
            Route(path, self._put, methods=["PUT"]),
            Route(path, self._complete, methods=["POST"]),
        ]

    # -- what the transfer service does with it

    def begin(self, bucket: str, key: str, count: int) -> tuple[list[str], str]:
        """The parts' links, and the completion's."""
        ident = secrets.token_urlsafe(40)
        self._uploads[ident] = Upload(bucket, key)
        extra = {"uploadId": ident}
        links = [
            self._store.link(bucket, key, "PUT", extra | {"partNumber": str(number)})
            for number in range(1, count + 1)
        ]
        return links, self._store.link(bucket, key, "POST", extra)

    # -- HTTP

    def _find(self, request: Request) -> Upload | Response:
        try:
            self._store.check(request)
        except Denied as denial:
            return xml_error(403, denial.code, str(denial))
        upload = self._uploads.get(request.query_params.get("uploadId", ""))
        if upload is None or upload.key != request.path_params["key"]:
            return xml_error(
                404,
                "NoSuchUpload",
                "The specified upload does not exist. The upload ID may be invalid, or the upload "
                "may have been aborted or completed.",
            )
        return upload

    async def _put(self, request: Request) -> Response:
        self._store.traffic.methods["PUT"] += 1
        upload = self._find(request)
        if isinstance(upload, Response):
            await _read_all(request)
            return upload
        file = self._store.blank()
        md5 = hashlib.md5(usedforsecurity=False)
        size = 0
        try:
            with file:
                async for chunk in request.stream():
                    size += len(chunk)
                    self._store.traffic.bytes_in += len(chunk)
                    md5.update(chunk)
                    file.write(chunk)
        except ClientDisconnect:
            Path(file.name).unlink()
            return Response(status_code=400)
        promised = request.headers.get("content-length")
        if promised is not None and int(promised) != size:
            Path(file.name).unlink()
            return xml_error(400, "IncompleteBody", "The request body terminated unexpectedly")
        number = int(request.query_params["partNumber"])
        before = upload.parts.get(number)
        if before is not None:
            before.path.unlink(missing_ok=True)
        part = upload.parts[number] = Part(Path(file.name), size, md5.digest())
        return Response(headers={"ETag": f'"{part.etag}"'})

    async def _complete(self, request: Request) -> Response:
        self._store.traffic.methods["POST"] += 1
        upload = self._find(request)
        body = (await _read_all(request)).decode(errors="replace")
        if isinstance(upload, Response):
            return upload
        wanted = [(int(a or d), (b or c).strip()) for a, b, c, d in _PART.findall(body)]
        if not wanted:
            return xml_error(
                400,
                "MalformedXML",
                "The XML you provided was not well-formed or did not validate against our "
                "published schema",
            )
        if wanted != sorted(wanted):
            text = "The list of parts was not in ascending order."
            return xml_error(400, "InvalidPartOrder", text)
        parts = [upload.parts.get(number) for number, _ in wanted]
        for part, (_, etag) in zip(parts, wanted, strict=True):
            if part is None or part.etag != etag.replace("&quot;", "").strip('"'):
                text = (
                    "One or more of the specified parts could not be found.  The part may not "
                    "have been uploaded, or the specified entity tag may not match the part's "
                    "entity tag."
                )
                return xml_error(400, "InvalidPart", text)
        chosen = [part for part in parts if part is not None]
        if not self._small and any(part.size < _MIN_PART for part in chosen[:-1]):
            text = "Your proposed upload is smaller than the minimum allowed object size."
            return xml_error(400, "EntityTooSmall", text)
        etag = await self._join(upload, chosen)
        del self._uploads[request.query_params["uploadId"]]
        return _completed(upload, etag)

    async def _join(self, upload: Upload, parts: list[Part]) -> str:
        """The object appears whole; its ETag is no MD5 of it."""
        file = await trio.to_thread.run_sync(_concatenated, self._store, parts)
        with file:
            digests = b"".join(part.digest for part in parts)
            etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
            return self._store.adopt(upload.bucket, upload.key, file, etag).etag


def _concatenated(store: ObjectStore, parts: list[Part]) -> IO[bytes]:
    file = store.blank()
    for part in parts:
        with part.path.open("rb") as content:
            shutil.copyfileobj(content, file, 1 << 20)
        part.path.unlink()
    return file


def _completed(upload: Upload, etag: str) -> Response:
    key = escape(upload.key)
    body = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<CompleteMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Location>http://{upload.bucket}.s3.amazonaws.com/{key}</Location>"
        f"<Bucket>{upload.bucket}</Bucket><Key>{key}</Key><ETag>{etag}</ETag>"
        "</CompleteMultipartUploadResult>"
    )
    return Response(body, headers={"Content-Type": "application/xml"})


async def _read_all(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        return b""
