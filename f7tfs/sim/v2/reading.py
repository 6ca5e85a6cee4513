"""/filesystem/{system}/ops, the calls that change nothing (v2 FACTS §3, §4)."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.v2.listing import LS, entries
from f7tfs.sim.v2.replies import ApiError, reply
from f7tfs.sim.v2.service import Call, Service
from f7tfs.sim.v2.systems import MAX_OPS

_STAT = ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "atime", "ctime", "mtime")
_STAT_FORMAT = "%f %i %d %h %u %g %s %X %Z %Y"


def done(output: Any, status: int = 200) -> Response:
    return reply({"output": output}, status)


class Reading:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._shell = service.shell
        self._limit = f"timeout {service.cluster.options.command_limit:g}"

    def routes(self) -> list[Route]:
        found = []
        for name in ("ls", "stat", "file", "checksum", "head", "tail", "view", "download"):
            path = f"/filesystem/{{system}}/ops/{name}"
            found.append(self._service.route(path, "GET", getattr(self, name), checks_path=True))
        return found

    async def _run(self, call: Call, tool: str, command: str, follows: bool = True) -> str:
        template = f"{self._limit} {command}"
        result = await self._shell.run(
            call.place, call.user, template, call.raw_path, follows=follows, tool=tool
        )
        return result.text

    async def ls(self, call: Call) -> Response:
        flags = {
            "A": call.flag("showHidden"),
            "n": call.flag("numericUid"),
            "R": call.flag("recursive"),
            "L": call.flag("dereference"),
        }
        options = "".join(f" -{letter}" for letter, wanted in flags.items() if wanted)
        text = await self._run(call, "ls", f"{LS}{options} -- {{0}}", follows=False)
        return done(entries(text, recursive=flags["R"]))

    async def stat(self, call: Call) -> Response:
        follows = call.flag("dereference")
        dereference = " --dereference" if follows else ""
        command = f"stat{dereference} --format='{_STAT_FORMAT}' -- {{0}}"
        mode, *numbers = (await self._run(call, "stat", command, follows)).split()
        values = [int(mode, 16), *(int(float(number)) for number in numbers)]
        return done(dict(zip(_STAT, values, strict=True)))

    async def file(self, call: Call) -> Response:
        if shutil.which("file") is None:
            return done(await self._guess(call))
        text = await self._run(call, "file", "file -b -- {0}", follows=False)
        return done(text.strip())

    async def _guess(self, call: Call) -> str:
        """For machines without file(1): the same words for what tests look at."""
        names = {"d": "directory", "p": "fifo (named pipe)", "s": "socket"}
        try:
            text = await self._run(call, "file", f"{LS} -d -- {{0}}", follows=False)
        except ApiError as error:
            if error.status == 404:
                return f"cannot open `{call.raw_path}' (No such file or directory)"
            raise
        entry = entries(text)[0]
        if entry["type"] == "l":
            return f"symbolic link to {entry['linkTarget']}"
        if entry["type"] != "-":
            return names.get(entry["type"], "data")
        if entry["size"] == "0":
            return "empty"
        try:
            content = await self._run(call, "file", "head --bytes=4096 -- {0}")
        except ApiError as error:
            if error.status == 403:
                return "regular file, no read permission"
            raise
        return "ASCII text" if content.isascii() else "data"

    async def checksum(self, call: Call) -> Response:
        text = await self._run(call, "sha256sum", "sha256sum -- {0}")
        words = text.split()
        if len(words) != 2:  # a name with a space (checksum_command.py:47)
            raise ApiError(500, f"Invalid output: {text} ")
        return done({"algorithm": "SHA256", "checksum": words[0]})

    async def head(self, call: Call) -> Response:
        size, lines = self._amounts(call)
        skip = call.flag("skipTrailing")
        sign = "-" if skip else ""
        option, unit, amount = "", "lines", 10
        if size:  # 0 counts as not given (head_command.py:30)
            option, unit, amount = f" --bytes='{sign}{size}'", "bytes", size
        elif lines:
            option, amount = f" --lines='{sign}{lines}'", lines
        elif size == 0:
            amount = 0
        content = await self._run(call, "head", f"head{option} -- {{0}}")
        return done(_content(content, unit, 0, -amount if skip else amount))

    async def tail(self, call: Call) -> Response:
        size, lines = self._amounts(call)
        skip = call.flag("skipHeading")
        sign = "+" if skip else ""
        option, unit, start = "", "lines", 10
        if size:
            option, unit = f" --bytes='{sign}{size}'", "bytes"
            start = size if skip else -size
        elif lines:
            option, start = f" --lines='{sign}{lines}'", lines if skip else -lines
        elif size == 0:
            start = 0
        content = await self._run(call, "tail", f"tail{option} -- {{0}}")
        return done(_content(content, unit, start, -1))

    def _amounts(self, call: Call) -> tuple[int | None, int | None]:
        size, lines = call.number("bytes"), call.number("lines")
        if size is not None and lines is not None:
            raise ApiError(400, "Only one of `bytes` or `lines` can be specified.")
        return size, lines

    async def view(self, call: Call) -> Response:
        """Reads up to twice `size`, and cuts the decoded text by characters (§4)."""
        size, offset = call.number("size"), call.number("offset")
        size, offset = MAX_OPS if size is None else size, offset or 0
        if size <= 0:
            raise ApiError(400, "`size` value must be an integer value greater than 0")
        if size > MAX_OPS:
            raise ApiError(400, f"`size` value must be less than {MAX_OPS} bytes")
        if offset < 0:
            text = "`offset` value must be an integer value equal or greater than 0"
            raise ApiError(400, text)
        command = f"dd if={{0}} bs={size} skip={offset // size} count=2"
        text = await self._run(call, "dd", command)
        start = offset % size
        return done(text[start : start + size])

    async def download(self, call: Call) -> Response:
        text = await self._run(call, "base64", "base64 --wrap=0 -- {0}")
        return Response(base64.b64decode(text), media_type="application/octet-stream")


def _content(text: str, unit: str, start: int, end: int) -> Mapping[str, Any]:
    return {"content": text, "contentType": unit, "startPosition": start, "endPosition": end}
