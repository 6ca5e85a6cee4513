"""From a URL to a cluster: one clear sentence for every wrong URL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from loopback import Answer, Asked, free_port, json_answer, loopback

from f7tfs.api.auth import Grant, TokenSource
from f7tfs.api.connect import open_cluster, token_source
from f7tfs.api.port import Capabilities
from f7tfs.errors import Unauthorized, UnknownSystem, Unreachable

LINES = (Path(__file__).parent / "data" / "v1_replies.jsonl").read_text().splitlines()
RECORDED = {record["name"]: record for record in map(json.loads, LINES[1:])}
PARAMETERS = RECORDED["status-parameters"]["response_json"]
SYSTEMS = RECORDED["status-systems"]["response_json"]


def opened(url: str, **options: Any) -> Capabilities:
    async def fetch() -> Grant:
        return Grant("t", 300)

    async def main() -> Capabilities:
        chosen: dict[str, Any] = {"system": "cluster", "patience": 0.3, "request_timeout": 3}
        async with open_cluster(url=url, token_source=TokenSource(fetch), **(chosen | options)) as (
            cluster,
            _,
        ):
            assert cluster.system == "cluster"
            return cluster.capabilities

    return trio.run(main)


def by_path(**answers: Answer) -> Callable[[Asked], Answer]:
    def behaviour(asked: Asked) -> Answer:
        return answers.get(asked.path.rpartition("/")[2], Answer(404, b"<html>Not Found"))

    return behaviour


def test_one_call_opens_a_cluster() -> None:
    with loopback(by_path(parameters=json_answer(PARAMETERS))) as server:
        found = opened(server.url + "/api/v1/")
    assert (found.dialect, found.version) == ("v1", "1.16.6")
    assert server.paths() == ["GET /api/v1/status/parameters"]


def test_parameters_that_name_no_systems() -> None:
    old = {"description": "d", "out": {"utilities": PARAMETERS["out"]["utilities"]}}
    answers = by_path(parameters=json_answer(old), systems=json_answer(SYSTEMS))
    with loopback(answers) as server:
        assert opened(server.url).version == ""
    assert server.paths() == ["GET /status/parameters", "GET /status/systems"]


def test_an_unknown_system() -> None:
    answers = by_path(parameters=json_answer(PARAMETERS), systems=json_answer(SYSTEMS))
    with loopback(answers) as server, pytest.raises(UnknownSystem, match="'nosuch'") as caught:
        opened(server.url, system="nosuch")
    assert caught.value.known == ("cluster", "cluster2", "downcluster")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>Welcome", {"Content-Type": "text/html"}),
        Answer(404, b"<html>Not Found"),
        Answer(302, headers={"Location": "https://login.example/"}),
        json_answer({"message": "Invalid"}, 400),
        json_answer([1, 2]),
        Answer(502),
        Answer(503),
    ],
    ids=["html", "404", "redirect", "kong", "list", "502", "503"],
)
def test_no_firecrest_behind_the_url(answer: Answer) -> None:
    with loopback(lambda asked: answer) as server, pytest.raises(Unreachable) as caught:
        opened(server.url)
    assert server.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_behind_the_url() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=url):
        opened(url)
    for odd in ("ftp://host", "host.example", "http://"):
        with pytest.raises(Unreachable):
            opened(odd)


def test_refused_logins() -> None:
    no = json_answer({"message": "Unauthorized"}, 401)
    with loopback(lambda asked: no) as server, pytest.raises(Unauthorized):
        opened(server.url)


def test_one_way_to_log_in(tmp_path: Path) -> None:
    assert "token file" in repr(token_source(token_file=tmp_path / "t"))
    assert "token command" in repr(token_source(token_command="echo secret"))
    source = token_source(token_url="http://t", client_id="me", client_secret="hidden")
    assert "hidden" not in repr(source)
    with pytest.raises(ValueError, match="no complete way"):
        token_source(client_id="me")
