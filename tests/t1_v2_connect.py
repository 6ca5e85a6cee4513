"""Which dialect a URL serves, in how many calls."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import trio
from loopback import Answer, Asked, Loopback, json_answer, loopback
from t1_connect import PARAMETERS
from t1_v2_replies import RECORDED

from f7tfs.api.auth import Grant, TokenSource
from f7tfs.api.connect import open_cluster
from f7tfs.api.port import Capabilities
from f7tfs.errors import Unauthorized, UnknownSystem, Unreachable

SYSTEMS = RECORDED["systems"]["response_json"]
NOT_FOUND = RECORDED["unknown_route"]["response_json"]


def v2(asked: Asked) -> Answer:
    """The unknown route answers before anybody looks at a token; names of systems are not case
    sensitive, like the whole path."""
    if asked.path.lower().endswith("/status/systems"):
        return json_answer(SYSTEMS, f7t_appversion="2.5.7")
    return json_answer(NOT_FOUND, 404, f7t_appversion="2.5.7")


def v1(asked: Asked) -> Answer:
    if asked.path.endswith("/status/parameters"):
        return json_answer(PARAMETERS)
    return json_answer({"description": "List of systems", "out": []})


def opened(behaviour: Any, **options: Any) -> tuple[Capabilities, Loopback]:
    async def fetch() -> Grant:
        return Grant("secret-token", 300)

    async def main(url: str) -> Capabilities:
        chosen: dict[str, Any] = {"system": "cluster", "patience": 0.3, "request_timeout": 3}
        async with open_cluster(url=url, token_source=TokenSource(fetch), **(chosen | options)) as (
            cluster,
            _,
        ):
            return cluster.capabilities

    with loopback(behaviour) as server:
        return trio.run(main, server.url), server


def test_v2_is_recognised_by_its_answer_to_v1s_question() -> None:
    found, server = opened(v2)
    assert (found.dialect, found.version) == ("v2", "2.5.7")
    assert server.paths() == ["GET /status/parameters", "GET /status/systems"]


def test_v2_behind_a_gateway_that_answers_unknown_routes() -> None:
    def gateway(asked: Asked) -> Answer:
        if asked.path == "/status/systems":
            return json_answer(SYSTEMS)
        return json_answer({"message": "no Route matched with those values"}, 404)

    assert opened(gateway)[0].dialect == "v2"


def test_an_explicit_dialect_costs_one_call() -> None:
    found, server = opened(v2, api="v2", system="CLUSTER-utf8")
    assert found.dialect == "v2"
    assert server.paths() == ["GET /status/systems"]
    found, server = opened(v1, api="v1")
    assert (found.dialect, server.paths()) == ("v1", ["GET /status/parameters"])
    assert opened(v1)[0].dialect == "v1"


def test_the_wrong_explicit_dialect() -> None:
    with pytest.raises(Unreachable, match="speaks FirecREST v2") as caught:
        opened(v2, api="v1")
    assert "\n" not in str(caught.value)
    with pytest.raises(Unreachable, match="not answer as FirecREST v2") as caught:
        opened(v1, api="v2")
    assert "\n" not in str(caught.value)


def test_an_unknown_system() -> None:
    with pytest.raises(UnknownSystem, match="'nosuch'") as caught:
        opened(v2, system="nosuch")
    assert "cluster-utf8" in caught.value.known


@pytest.mark.parametrize("api", ["auto", "v2"])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>Welcome", {"Content-Type": "text/html"}),
        Answer(404, b"<html>Not Found"),
        Answer(302, headers={"Location": "https://login.example/"}),
        json_answer([1, 2]),
        json_answer(NOT_FOUND, 404),
        Answer(502),
        Answer(503),
    ],
    ids=["html", "404", "redirect", "list", "v2 elsewhere", "502", "503"],
)
def test_no_firecrest_behind_the_url(api: str, answer: Answer) -> None:
    with pytest.raises(Unreachable) as caught:
        opened(lambda asked: answer, api=api)
    assert "http://127.0.0.1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_systems_that_are_no_list() -> None:
    with pytest.raises(Unreachable, match="no systems"):
        opened(lambda asked: json_answer({"systems": {}}), api="v2")


def test_a_refused_token_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """v2 echoes it in a header of its 401 (FACTS §1)."""
    caplog.set_level(logging.DEBUG)

    def refusing(asked: Asked) -> Answer:
        body = json.dumps(RECORDED["auth.garbage"]["response_json"]).encode()
        return Answer(401, body, {"auth-token": asked.headers["authorization"].split()[1]})

    with pytest.raises(Unauthorized) as caught:
        opened(refusing)
    assert "secret-token" not in caplog.text + str(caught.value) + repr(caught.value)
