"""What v2's routes carry, and that nothing else leaves: a canary that the far side would show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from loopback import Answer, Asked, json_answer, loopback

from f7tfs.api.auth import Grant, TokenSource
from f7tfs.api.http import ApiClient
from f7tfs.api.port import Route
from f7tfs.api.v2 import V2Cluster
from f7tfs.api.v2_names import carries, carries_job, log_of_transfer
from f7tfs.errors import InvalidArgument, NameNotSupported, Unsupported
from f7tfs.model import RemotePath

PLAIN = "/home/u/plain-1_a.b"
EVERYWHERE = [PLAIN, "/h/a,b:c@d%e+f=g~h", "/h/日本é", "/h/-dash"]
COMMANDS = [
    "/h/a b",
    '/h/d"q',
    "/h/b\\s",
    "/h/$(id)",
    "/h/`id`",
    "/h/a;b&c|d<e>f(g)*?!#",
    "/h/new\nline",
]
NOWHERE = ["/h/it's", "/h/nul\0", "/h/\udcff", ""]


@pytest.mark.parametrize("path", EVERYWHERE)
def test_names_for_every_route(path: str) -> None:
    assert all(carries(path, route) for route in Route)
    assert carries_job(path)


@pytest.mark.parametrize("path", COMMANDS)
def test_names_for_commands_only(path: str) -> None:
    assert carries(path, Route.COMMAND)
    assert not carries(path, Route.STAGED_DOWNLOAD)


@pytest.mark.parametrize("path", NOWHERE)
def test_names_for_no_route(path: str) -> None:
    assert not any(carries(path, route) for route in Route)
    assert not carries_job(path)


@pytest.mark.parametrize("letter", list("&<>'\"$`\\\n\r\t\0"))
def test_staged_uploads(letter: str) -> None:
    assert not carries(f"/h/a{letter}b", Route.STAGED_UPLOAD)
    assert carries("/h/a b;c(d)*é", Route.STAGED_UPLOAD)


@pytest.mark.parametrize("letter", list("&<>'\"$`\\\n \t;|()*?[]{}!#^\u00a0\u3000"))
def test_staged_downloads(letter: str) -> None:
    assert not carries(f"/h/a{letter}b", Route.STAGED_DOWNLOAD)


def test_a_tilde_behind_a_colon_is_expanded() -> None:
    assert not carries("/h/a:~root/b", Route.STAGED_DOWNLOAD)


@pytest.mark.parametrize("letter", list("&<>'\"\n\0"))
def test_moving_jobs(letter: str) -> None:
    assert not carries_job("/h/a", f"/h/a{letter}b")
    assert carries_job("/h/$HOME;x y")


# Logs are removed by a call that removes trees.

LOG = "/home/u/.f7t_file_handling_job_917c7da8-4ec7-4e79-a0bd-a13278f3473c.log"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/home/u",
        "",
        None,
        7,
        LOG[1:],
        LOG + "/",
        LOG + "/..",
        "/home/u/../" + LOG.rpartition("/")[2],
        LOG.replace(".log", ""),
        LOG.replace("home", "it's"),
        "/home/u/thesis.log",
    ],
)
def test_only_logs_are_litter(path: object) -> None:
    assert log_of_transfer(path) is None


def test_logs() -> None:
    assert log_of_transfer(LOG) == LOG
    error = LOG.replace("job_", "job_error_")
    assert log_of_transfer(error) == error


# Nothing is sent, but for the one question what the server does with such names.

CANARY = RemotePath("/home/u/'; touch canary; '")
AWKWARD = RemotePath("/home/u/a;touch canary")


def sent_by(body: Callable[[V2Cluster], Awaitable[Any]]) -> list[str]:
    async def fetch() -> Grant:
        return Grant("t", 300)

    def behave(asked: Asked) -> Answer:
        if ".f7tfs-probe-" not in asked.query.get("path", ""):
            return Answer(204)
        (word,) = shlex.split(f"'{asked.query['path']}'")  # what an unescaped server's shell reads
        assert re.fullmatch(r"(/[a-z]+)+/\.f7tfs-probe-[0-9a-f]+x[0-9a-f]+", word), word
        assert asked.path == "/filesystem/cluster/ops/stat" and asked.method == "GET"
        text = f"stat: cannot statx '{word}': No such file or directory"
        said = f"Remote process failed with exit status:1 and error message:{text}"
        return json_answer({"errorType": "error", "message": said}, 404)

    with loopback(behave) as server:

        async def main() -> None:
            async with ApiClient(server.url, TokenSource(fetch)) as client:
                await body(V2Cluster(client, "cluster", account="a"))

        trio.run(main)
    probes = [asked for asked in server.asked if ".f7tfs-probe-" in asked.query.get("path", "")]
    assert len(probes) <= 1
    return [f"{asked.method} {asked.path}" for asked in server.asked if asked not in probes]


FINE = RemotePath(PLAIN)
Call = Callable[[V2Cluster], Awaitable[Any]]
REFUSED: dict[str, Call] = {
    "ls": lambda c: c.list_directory(CANARY),
    "stat": lambda c: c.stat(CANARY),
    "readlink": lambda c: c.read_link(CANARY),
    "mkdir": lambda c: c.make_directory(CANARY),
    "rm": lambda c: c.remove(CANARY),
    "chmod": lambda c: c.change_mode(CANARY, 0o644),
    "chown": lambda c: c.change_owner(CANARY, "u", None),
    "symlink": lambda c: c.symlink(PLAIN, CANARY),
    "symlink target": lambda c: c.symlink(CANARY, FINE),
    "checksum": lambda c: c.checksum(CANARY),
    "compress": lambda c: c.compress(CANARY, RemotePath("/h/a.tar")),
    "compress into": lambda c: c.compress(FINE, RemotePath(CANARY + ".tar")),
    "extract": lambda c: c.extract(RemotePath("/h/a.tar"), CANARY),
    "extract backslash": lambda c: c.extract(RemotePath("/h/a.tar"), RemotePath("/h/a\\nb")),
    "compress backslash": lambda c: c.compress(RemotePath("/h/a\\nb"), RemotePath("/h/a.tar")),
    "download": lambda c: c.download(CANARY),
    "head": lambda c: c.head(CANARY, 5),
    "tail": lambda c: c.tail(CANARY, 5),
    "upload": lambda c: c.upload(CANARY, b"x"),
    "upload below": lambda c: c.upload(RemotePath(CANARY + "/x"), b"x"),
    "upload dquote": lambda c: c.upload(RemotePath('/h/a"b'), b"x"),
    "upload newline": lambda c: c.upload(RemotePath("/h/a\nb"), b"x"),
    "upload backslash": lambda c: c.upload(RemotePath("/h/a\\b"), b"x"),
    "stage download": lambda c: c.stage_download(CANARY),
    "stage awkward download": lambda c: c.stage_download(AWKWARD),
    "stage upload": lambda c: c.stage_upload(CANARY, 5),
    "stage upload $": lambda c: c.stage_upload(RemotePath("/h/$(touch canary)"), 5),
    "stage upload `": lambda c: c.stage_upload(RemotePath("/h/`touch canary`"), 5),
    "mv": lambda c: c.move_by_job(CANARY, FINE),
    "mv to": lambda c: c.move_by_job(FINE, CANARY),
    "submit": lambda c: c.submit(b"#!/bin/sh\n", "x", None, CANARY),
    "submit |": lambda c: c.submit(b"#!/bin/sh\n", "a|b", None, FINE),
    "submit '": lambda c: c.submit(b"#!/bin/sh\n", "a'b", None, FINE),
    "nul": lambda c: c.stat(RemotePath("/h/a\0b")),
    "not utf-8": lambda c: c.stat(RemotePath("/h/a\udcff")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_canary_never_leaves(name: str) -> None:
    async def body(cluster: V2Cluster) -> None:
        with pytest.raises(NameNotSupported):
            await REFUSED[name](cluster)

    assert sent_by(body) == []


ARGUMENTS: dict[str, Call] = {
    "chown": lambda c: c.change_owner(FINE, "u'; touch canary; '", None),
    "chown option": lambda c: c.change_owner(FINE, None, "--reference=/etc/shadow"),
    "account": lambda c: c.submit(b"#!/bin/sh\n", "x", "a'; touch canary; '", FINE),
    "archive": lambda c: c.extract(RemotePath("/h/a.zip"), FINE),
    "root": lambda c: c.remove(RemotePath("/")),
    "cancel": lambda c: c.cancel("1; touch canary"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_nor_do_other_arguments(name: str) -> None:
    async def body(cluster: V2Cluster) -> None:
        with pytest.raises(InvalidArgument):
            await ARGUMENTS[name](cluster)

    assert sent_by(body) == []


UNSUPPORTED: dict[str, Call] = {
    "rename": lambda c: c.rename(FINE, RemotePath("/h/b")),
    "copy": lambda c: c.copy(FINE, RemotePath("/h/b")),
    "tree": lambda c: c.list_tree(FINE),
    "relative link": lambda c: c.symlink("../x", FINE),
    "empty upload": lambda c: c.upload(FINE, b""),
    "empty staged upload": lambda c: c.stage_upload(FINE, 0),
    "checksum of a name with a space": lambda c: c.checksum(RemotePath("/h/a b")),
    "one element of an array": lambda c: c.cancel("92_1"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_v2_cannot_do_costs_no_call(name: str) -> None:
    async def body(cluster: V2Cluster) -> None:
        with pytest.raises(Unsupported):
            await UNSUPPORTED[name](cluster)

    assert sent_by(body) == []
