"""/filesystem/{system}/ops, the calls that change something (v2 FACTS §5)."""

from __future__ import annotations

import base64
import os
import re

from starlette.datastructures import UploadFile
from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim.v2.listing import LS, one
from f7tfs.sim.v2.reading import done
from f7tfs.sim.v2.replies import ApiError, invalid, missing, no_content
from f7tfs.sim.v2.service import Call, Service
from f7tfs.sim.v2.shell import Result, failed
from f7tfs.sim.v2.systems import MAX_OPS

COMPRESSION = {"none": "", "bzip2": "j", "gzip": "z", "xz": "J"}
_WORD = re.compile(r"[A-Za-z0-9_.,+=-]*")
_PATTERN = re.compile(r"[^'\0\n]*")


class Writing:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._shell = service.shell
        self._limit = f"timeout {service.cluster.options.command_limit:g}"

    def routes(self) -> list[Route]:
        methods = {"chmod": "PUT", "chown": "PUT", "rm": "DELETE"}
        found = []
        for name in ("mkdir", "chmod", "chown", "symlink", "upload", "rm", "compress", "extract"):
            path = f"/filesystem/{{system}}/ops/{name}"
            method = methods.get(name, "POST")
            handler = getattr(self, name)
            found.append(self._service.route(path, method, handler, checks_path=True))
        return found

    async def _run(
        self, call: Call, tool: str, command: str, *more: str, follows: bool = True
    ) -> Result:
        paths = (call.raw_path, *more)
        return await self._shell.run(
            call.place, call.user, f"{self._limit} {command}", *paths, follows=follows, tool=tool
        )

    def _shown(self, command: str, shows: str = "{0}") -> str:
        """A command, and the `ls` of what it made: two occurrences of the path."""
        return f"{command} && {self._limit} {LS} -d -- {shows}"

    async def mkdir(self, call: Call) -> Response:
        parents = "-p" if call.truth("parent") else ""
        command = self._shown(f"mkdir {parents} -- {{0}}")
        return done(one((await self._run(call, "mkdir", command, follows=False)).text), 201)

    async def chmod(self, call: Call) -> Response:
        mode = _word(call.text("mode"), "chmod: invalid mode: ")
        command = self._shown(f"chmod -v '{mode}' -- {{0}}")
        return done(one((await self._run(call, "chmod", command)).text))

    async def chown(self, call: Call) -> Response:
        owner, group = call.optional_text("owner") or "", call.optional_text("group") or ""
        whose = f"{_word(owner, 'chown: invalid spec: ')}:{_word(group, 'chown: invalid group: ')}"
        command = self._shown(f"chown -v '{whose}' -- {{0}}")
        return done(one((await self._run(call, "chown", command)).text))

    async def symlink(self, call: Call) -> Response:
        """`path` is the target and must be absolute; only it is checked (§5)."""
        link = call.text("linkPath")
        if "'" not in link and not self._shell.inside(call.user, link):
            text = f"ln: failed to create symbolic link '{link}': Permission denied"
            raise failed(Result(1, b"", text))
        command = self._shown("ln -s -- {0} {1}", "{1}")
        result = await self._run(call, "ln", command, link, follows=False)
        return done(one(result.text), 201)

    async def rm(self, call: Call) -> Response:
        """Of anything, and always with all that is in it."""
        await self._run(call, "rm", "rm -r --interactive=never -- {0}", follows=False)
        return no_content()

    async def upload(self, call: Call) -> Response:
        async with call.request.form() as form:
            file = form.get("file")
            if file is None:
                raise missing("body", "file")
            if not isinstance(file, UploadFile):
                text = "Value error, Expected UploadFile, received: <class 'str'>"
                raise invalid("value_error", ("body", "file"), text)
            name, content = file.filename or "", await file.read()
        if len(content) > MAX_OPS:
            raise ApiError(413, "File to upload is too large.")
        target = f"{call.raw_path}/{name}"
        # `if stdin:` is false for an empty one: the command waits for an end that never comes
        await self._shell.run(
            call.place,
            call.user,
            f"{self._limit} base64 -d > {{0}}",
            target,
            tool="bash",
            stdin=_encoded(content),
        )
        return no_content()

    async def compress(self, call: Call) -> Response:
        target = call.text("targetPath")
        letter = COMPRESSION[compression_of(call)]
        self._fence(call, "tar", target)
        folder, name = os.path.split(call.raw_path.rstrip("/"))
        pattern = call.optional_text("matchPattern")
        links = "h" if call.truth("dereference") else ""
        if pattern is None:
            command = f"tar -c{letter}{links}f {{2}} -C {{0}} -- {{1}}"
        elif not _PATTERN.fullmatch(pattern) or "'" in call.raw_path + target:
            raise failed(Result(126, b"", "the simulator does not run this"))
        else:  # always gzip
            command = (
                f"find {{0}}/{{1}} -type f -regex '{pattern}' -printf '%P\\0' | {self._limit} "
                f"tar -cz{links}f {{2}} -C {{0}}/{{1}} --null --no-recursion --files-from=-"
            )
        await self._shell.run(
            call.place, call.user, f"{self._limit} {command}", folder, name, target,
            follows=False, tool="tar",
        )  # fmt: skip
        return no_content()

    async def extract(self, call: Call) -> Response:
        target = call.text("targetPath")
        letter = COMPRESSION[compression_of(call)]
        self._fence(call, "tar", target)
        await self._run(call, "tar", f"tar -x{letter}f {{0}} -C {{1}}", target)
        return no_content()

    def _fence(self, call: Call, tool: str, path: str) -> None:
        if "'" not in path and not self._shell.inside(call.user, path, follows=True):
            raise failed(Result(2, b"", f"{tool}: {path}: Cannot open: Permission denied"))


def compression_of(call: Call) -> str:
    kind = call.optional_text("compression") or "gzip"
    if kind not in COMPRESSION:
        text = "Input should be 'none', 'bzip2', 'gzip' or 'xz'"
        raise invalid("enum", ("body", "compression"), text, kind)
    return kind


def _word(text: str, complaint: str) -> str:
    """A mode or an owner. What the shell would read otherwise is not run."""
    if _WORD.fullmatch(text):
        return text
    raise failed(Result(1, b"", f"{complaint}'{text}'"))


def _encoded(content: bytes) -> bytes | None:
    return base64.b64encode(content) or None
