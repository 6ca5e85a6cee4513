"""/utilities: each call is one shell command under a time limit (v1 FACTS §4)."""

from __future__ import annotations

import base64
import os
import re
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from f7tfs.sim import listing
from f7tfs.sim.attachment import attachment
from f7tfs.sim.classify import header_of, invalid
from f7tfs.sim.cluster import OUTPUT_LIMIT, Cluster, Outcome, System
from f7tfs.sim.replies import Refused, flask_page, refuse, reply
from f7tfs.sim.service import BODY_LIMIT, UTILITIES_UNKNOWN, Call, Service
from f7tfs.sim.tokens import Tokens

UNKNOWN_USER = "Authentication failed: transport shut down or saw EOF"

# What each command says where it may not go; also the words of the fence around the root.
_DENIALS = {
    "ls": "ls: cannot open directory '{path}': Permission denied",
    "stat": "stat: cannot statx '{path}': Permission denied",
    "fsize": "stat: cannot statx '{path}': Permission denied",
    "file": "cannot open `{path}' (Permission denied)",
    "checksum": "sha256sum: {path}: Permission denied",
    "head": "head: cannot open '{path}' for reading: Permission denied",
    "tail": "tail: cannot open '{path}' for reading: Permission denied",
    "base64": "base64: {path}: Permission denied",
    "upload": "{shell}: {path}: Permission denied",
    "mkdir": "mkdir: cannot create directory {open}{path}{close}: Permission denied",
    "rename": "mv: cannot stat '{path}': Permission denied",
    "copy": "cp: cannot stat '{path}': Permission denied",
    "rm": "rm: cannot remove '{path}': Permission denied",
    "chmod": "chmod: changing permissions of '{path}': Operation not permitted",
    "chown": "chown: changing ownership of '{path}': Operation not permitted",
    "symlink": "ln: failed to create symbolic link '{path}': Permission denied",
    "compress": "tar: {path}: Cannot open: Permission denied",
    "extract": "tar: {path}: Cannot open: Permission denied",
}
# These act on a link itself, not on what it points to.
_ON_LINKS = {"ls", "stat", "file", "rename", "rm", "symlink"}


class Utilities:
    def __init__(self, cluster: Cluster, tokens: Tokens, latency: float) -> None:
        self._cluster = cluster
        self._service = Service("/utilities", tokens, latency)

    def routes(self) -> list[Route]:
        route = self._service.route
        return [
            route("/ls", "GET", self.ls),
            route("/stat", "GET", self.stat),
            route("/file", "GET", self.file),
            route("/checksum", "GET", self.checksum),
            route("/head", "GET", self.head),
            route("/tail", "GET", self.tail),
            route("/view", "GET", self.view),
            route("/whoami", "GET", self.whoami),
            route("/download", "GET", self.download),
            route("/upload", "POST", self.upload),
            route("/mkdir", "POST", self.mkdir),
            route("/rename", "PUT", self.rename),
            route("/copy", "POST", self.copy),
            route("/rm", "DELETE", self.rm),
            route("/chmod", "PUT", self.chmod),
            route("/chown", "PUT", self.chown),
            route("/symlink", "POST", self.symlink),
            route("/compress", "POST", self.compress),
            route("/extract", "POST", self.extract),
            route("/status", "GET", self.status),
        ]

    # -- what all have in common

    def _system(self, call: Call, operation: str) -> System:
        return call.system(self._cluster, f"Error on {operation} operation", UTILITIES_UNKNOWN)

    async def _run(
        self,
        call: Call,
        operation: str,
        command: str,
        paths: tuple[str, ...] = (),
        stdin: bytes = b"",
        follows: bool | None = None,
    ) -> str:
        """The command's output, or the refusal that its failure becomes."""
        system = self._system(call, operation)
        for path in paths:
            if self._cluster.fenced(
                call.user, path, follows=operation not in _ON_LINKS if follows is None else follows
            ):
                raise failure(operation, self._denial(system, operation, path))
        if call.user not in self._cluster.users:
            outcome = Outcome(error=UNKNOWN_USER, code=1)
        else:
            outcome = await self._cluster.run(system, call.user, command, stdin=stdin)
        if outcome.failed:
            raise failure(operation, outcome)
        return outcome.output

    def _denial(self, system: System, operation: str, path: str) -> Outcome:
        wrapped = self._cluster.options.collapse_spaces
        text = _DENIALS[operation].format(
            path=path,
            shell="/ssh_command_wrapper.sh: line 70" if wrapped else "bash: line 1",
            open="‘" if system.utf8 else "'",  # noqa: RUF001 (GNU's own quotes)
            close="’" if system.utf8 else "'",  # noqa: RUF001
        )
        return Outcome(error=text, code=1)

    def _path(self, call: Call, operation: str, name: str = "targetPath") -> str:
        self._system(call, operation)
        return call.checked(name, f"Error on {operation} operation")

    # -- reading

    async def ls(self, call: Call) -> Response:
        path = self._path(call, "ls")
        recursive = call.flag("recursive")
        plain = call.flag("unsorted") or call.flag("notListing")
        options = "-1" if plain else "-l"
        options += "".join(
            letter
            for name, letter in (
                ("unsorted", "f"),
                ("showhidden", "A"),
                ("numericUid", "n" if not plain else ""),
                ("recursive", "R"),
                ("followLinks", "L"),
            )
            if call.flag(name)
        )
        command = f"ls {options} --quoting-style=c --time-style=+%Y-%m-%dT%H:%M:%S -- '{path}'"
        text = await self._run(call, "ls", command, (path,), follows=call.flag("followLinks"))
        output: list[Any] = (
            listing.names(text) if plain else listing.entries(text, recursive=recursive)
        )
        return reply({"description": "List of contents", "output": page(call, output)})

    async def stat(self, call: Call) -> Response:
        name = "sourcePath" if "targetPath" not in call.params else "targetPath"
        name = name if name in call.params else "targetPath"
        path = self._path(call, "stat", name)
        follow = call.flag("dereference")
        text = await self._run(
            call,
            "stat",
            f"stat {'-L ' if follow else ''}-c '%f %i %d %h %u %g %s %X %Y %Z' -- '{path}'",
            (path,),
            follows=follow,
        )
        mode, *numbers = text.split()
        names = ("ino", "dev", "nlink", "uid", "gid", "size", "atime", "mtime", "ctime")
        output = {"mode": int(mode, 16)} | dict(zip(names, map(int, numbers), strict=True))
        return reply({"description": "Success to stat file.", "output": output})

    async def file(self, call: Call) -> Response:
        path = self._path(call, "file")
        text = await self._run(call, "file", f"file -b -- '{path}'", (path,))
        return done("file", text.rstrip("\n"))

    async def checksum(self, call: Call) -> Response:
        path = self._path(call, "checksum")
        text = await self._run(call, "checksum", f"sha256sum -- '{path}'", (path,))
        return done("checksum", text.split()[0].lstrip("\\"))

    async def head(self, call: Call) -> Response:
        return await self._part(call, "head", "-" if call.flag("skip_ending") else "")

    async def tail(self, call: Call) -> Response:
        return await self._part(call, "tail", "+" if call.flag("skip_beginning") else "")

    async def _part(self, call: Call, operation: str, sign: str) -> Response:
        path = self._path(call, operation)
        description = f"Error on {operation} operation"
        amounts = {name: call.params[name] for name in ("bytes", "lines") if name in call.params}
        if len(amounts) == 2:
            raise refuse(description, "Can not specify both 'bytes' and 'lines'")
        option = "".join(f"--{name}='{sign}{call.checked(name, description)}' " for name in amounts)
        command = f"{operation} {option}-- '{path}'"
        if "grep" in call.params:
            command += f" | grep -F -- '{call.checked('grep', description)}'"
        try:
            text = await self._run(call, operation, command, (path,))
        except Refused as refusal:
            if "grep" in call.params and refusal.response.headers.get("x-error") == "":
                raise no_match(operation) from None
            raise
        return done(operation, text)

    async def view(self, call: Call) -> Response:
        path = self._path(call, "view")
        if await self._size(call, path) > OUTPUT_LIMIT:
            raise size_limit("Failed to view file content")
        return await self.head(call)  # and so only the first ten lines

    async def _size(self, call: Call, path: str) -> int:
        return int(await self._run(call, "fsize", f"stat -L -c '%s' -- '{path}'", (path,)))

    async def download(self, call: Call) -> Response:
        self._system(call, "download")
        if "sourcePath" not in call.params:
            return flask_page(500)
        path = call.checked("sourcePath", "Error on fsize operation")
        size = await self._size(call, path)
        if size > OUTPUT_LIMIT:
            raise size_limit("Failed to download file")
        content = b""
        if size > 0:  # a FIFO or device has size 0 and is "empty"
            text = await self._run(call, "base64", f"base64 --wrap=0 -- '{path}'", (path,))
            content = base64.b64decode(text)
        return attachment(os.path.basename(path), content, call.request.headers.get("range"))

    async def whoami(self, call: Call) -> Response:
        if not call.flag("groups"):
            text = await self._run(call, "whoami", "whoami")
            output: object = text.strip()
        else:
            text = await self._run(call, "whoami", "id")
            fields = dict(field.split("=", 1) for field in text.split() if "=" in field)
            output = {
                "user": identities(fields["uid"])[0],
                "group": identities(fields["gid"])[0],
                "groups": identities(fields["groups"]),
            }
        return reply({"description": "User information", "output": output})

    # -- writing

    async def upload(self, call: Call) -> Response:
        self._system(call, "upload")
        if call.too_large:
            raise refuse(f"Failed to upload file. The file is over {BODY_LIMIT} bytes", status=413)
        folder = call.checked("targetPath", "Error on upload operation")
        name, content = call.files.get("file", ("", b""))
        if name == "":
            raise refuse("Failed to upload file", "No file in query")
        if reason := invalid(name):
            raise refuse("Failed to upload file", f"Filename {reason}")
        path = f"{folder}/{name}"
        await self._run(call, "upload", f"cat > '{path}'", (path,), content)
        return reply({"description": "File upload successful", "output": ""}, 201)

    async def mkdir(self, call: Call) -> Response:
        path = self._path(call, "mkdir")
        option = "-p " if "p" in call.params else ""  # even p=false
        await self._run(call, "mkdir", f"mkdir {option}-- '{path}'", (path,))
        return done("mkdir", "", 201)

    async def rename(self, call: Call) -> Response:
        return await self._two(call, "rename", "mv --force --", 200)

    async def copy(self, call: Call) -> Response:
        return await self._two(call, "copy", "cp --force -dR --preserve=all --", 201)

    async def _two(self, call: Call, operation: str, command: str, status: int) -> Response:
        source = self._path(call, operation, "sourcePath")
        target = self._path(call, operation)
        await self._run(
            call, operation, f"{command} '{source}' '{target}'", (source, target), follows=False
        )
        return done(operation, "", status)

    async def rm(self, call: Call) -> Response:
        path = self._path(call, "rm")
        await self._run(call, "rm", f"rm -r --interactive=never -- '{path}'", (path,))
        return Response(status_code=204)

    async def chmod(self, call: Call) -> Response:
        path = self._path(call, "chmod")
        mode = call.checked("mode", "Error on chmod operation")
        text = await self._run(call, "chmod", f"chmod -v -- '{mode}' '{path}'", (path,))
        return done("chmod", text.rstrip("\n"))

    async def chown(self, call: Call) -> Response:
        path = self._path(call, "chown")
        owner, group = call.params.get("owner", ""), call.params.get("group", "")
        if not owner and not group:
            raise refuse("Error in chown operation", "group or owner must be set")
        for name, value in (("owner", owner), ("group", group)):
            if value and (reason := invalid(value)):
                raise refuse("Error on chown operation", f"'{name}' {reason}")
        text = await self._run(call, "chown", f"chown -v -- '{owner}:{group}' '{path}'", (path,))
        return done("chown", text.rstrip("\n"))

    async def symlink(self, call: Call) -> Response:
        self._system(call, "symlink")
        link = call.params.get("linkPath")
        if reason := invalid(link):
            raise refuse("Failed to create symlink", f"'linkPath' value {reason}")
        assert link is not None
        target = self._path(call, "symlink")
        await self._run(call, "symlink", f"ln -s -- '{target}' '{link}'", (link,))
        return done("symlink", "", 201)

    async def compress(self, call: Call) -> Response:
        source = self._path(call, "compress", "sourcePath")
        target = self._path(call, "compress")
        option = "--dereference " if call.flag("dereference") else ""
        folder, name = os.path.split(os.path.normpath(source))
        command = f"tar {option}-czf '{target}' -C '{folder or '.'}' -- '{name}'"
        await self._run(call, "compress", command, (source, target))
        return done("compress", "", 201)

    async def extract(self, call: Call) -> Response:
        source = self._path(call, "extract", "sourcePath")
        target = self._path(call, "extract")
        command = extract_command(source, target, call.params.get("type", "auto"))
        if command is None:
            raise refuse("Error on extract operation", f"Unsupported file format in {source}.")
        await self._run(call, "extract", command, (source, target))
        return done("extract", "", 201)

    async def status(self, call: Call) -> Response:
        return reply({"success": "ack"})


def extract_command(source: str, target: str, kind: str) -> str | None:
    """The `type` field or else the name decides; pyfirecrest's `extension` is ignored."""
    kinds = {
        ".zip": f"unzip -q '{source}' -d '{target}'",
        ".tar": f"tar -xf '{source}' -C '{target}'",
        ".tgz": f"tar -xzf '{source}' -C '{target}'",
        ".gz": f"tar -xzf '{source}' -C '{target}'",
        ".bz2": f"tar -xjf '{source}' -C '{target}'",
    }
    if kind == "auto":
        return next((command for end, command in kinds.items() if source.endswith(end)), None)
    return kinds.get(kind)


def done(operation: str, output: str, status: int = 200) -> Response:
    what = "file or directory" if operation in {"chmod", "chown"} else "file"
    return reply({"description": f"Success to {operation} {what}.", "output": output}, status)


def failure(operation: str, outcome: Outcome) -> Refused:
    # the certificator's refusal of an overlong command arrives as the word None (§3)
    text = "None" if outcome.error is None else outcome.error
    name, value = header_of(text, outcome.code)
    body = {"description": f"Error on {operation} operation", "error": outcome.error}
    return Refused(reply(body, 400, {name: value}))


def size_limit(description: str) -> Refused:
    return refuse(description, headers={"X-Size-Limit": "File exceeds size limit"})


def no_match(operation: str) -> Refused:
    text = "pattern not found"
    return refuse(f"Error on {operation} operation with grep", text, 404, {"X-Not-Found": text})


def page(call: Call, items: list[Any]) -> list[Any]:
    """pageSize and pageNumber (from 1); a page out of range is the whole list (:279-281)."""
    try:
        size, number = int(call.params["pageSize"]), int(call.params["pageNumber"])
    except (KeyError, ValueError):
        return items
    start = (number - 1) * size
    return items[start : start + size] if size > 0 and 0 <= start < len(items) else items


def identities(text: str) -> list[dict[str, str]]:
    """`1503(test1),1511(f7tproj)` of id(1)."""
    found = re.findall(r"(\d+)(?:\(([^)]*)\))?", text)
    return [{"id": number, "name": name or number} for number, name in found]
