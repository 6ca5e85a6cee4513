"""V2Cluster against recorded replies over real HTTP: what it asks, and what it makes of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from loopback import Answer, Asked, Drop, Loopback, Reset, json_answer, loopback
from t1_v2_replies import RECORDED

from f7tfs import errors
from f7tfs.api.auth import Grant, TokenSource
from f7tfs.api.http import ApiClient
from f7tfs.api.port import Phase, Ticket
from f7tfs.api.v2 import V2Cluster
from f7tfs.errors import F7tfsError
from f7tfs.model import JobState, RemotePath

HOME = RemotePath("/home/fireuser/t")
BASIC = RemotePath("/home/fireuser/t/basic.txt")
SCRIPT = b"#!/bin/bash\nsleep 1\n"


def recorded(name: str) -> Answer:
    record = RECORDED[name]
    headers = dict(record["response_headers"])
    if "response_json" in record:
        return Answer(record["status"], json.dumps(record["response_json"]).encode(), headers)
    return Answer(record["status"], record.get("response_text", "").encode(), headers)


class Script:
    """Answers by "METHOD /the/end/of/the/path": one, or several in their order, the last for
    ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer | type[Exception]]] = {}

    def on(self, call: str, *answers: Answer | str | type[Exception]) -> Script:
        self.answers[call] = [recorded(one) if isinstance(one, str) else one for one in answers]
        return self

    def __call__(self, asked: Asked) -> Answer:
        for call, answers in self.answers.items():
            method, _, end = call.partition(" ")
            if asked.method == method and re.fullmatch(".*" + end, asked.path):
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(answer, Answer):
                    return answer
                raise answer
        return json_answer({"errorType": "error", "message": "Not Found"}, 404)


def run(
    script: Callable[[Asked], Answer],
    body: Callable[[V2Cluster], Awaitable[Any]],
    *,
    system: str = "cluster",
    account: str | None = None,
    **options: Any,
) -> tuple[Any, Loopback]:
    with loopback(script) as server:

        async def main() -> Any:
            chosen: dict[str, Any] = {"patience": 0.4, "jitter": lambda: 0.0} | options
            async with ApiClient(server.url, TokenSource(_grant), **chosen) as client:
                return await body(V2Cluster(client, system, account=account))

        return trio.run(main), server


def fails(
    kind: type[F7tfsError],
    script: Callable[[Asked], Answer],
    body: Callable[[V2Cluster], Awaitable[Any]],
    **options: Any,
) -> tuple[F7tfsError, Loopback]:
    async def main(cluster: V2Cluster) -> F7tfsError:
        with pytest.raises(kind) as caught:
            await body(cluster)
        assert type(caught.value) is kind
        return caught.value

    error, server = run(script, main, **options)
    return error, server


# Names.


def test_listing() -> None:
    script = Script().on("GET /ops/ls", "ls.numericUid")
    found, server = run(script, lambda c: c.list_directory(HOME))
    assert [item.name for item in found] == ["a", "d.txt", "e", "f with space"]
    (asked,) = server.asked
    assert asked.path == "/filesystem/cluster/ops/ls"
    assert asked.query == {"path": HOME + "/", "showHidden": "true", "numericUid": "true"}


def test_reading_a_link() -> None:
    script = Script().on("GET /ops/ls", "ls.symlink_to_dir")
    link = RemotePath("/home/fireuser/t/links/todir")
    assert run(script, lambda c: c.read_link(link))[0] == "../tree"
    script = Script().on("GET /ops/ls", "ls.file")
    fails(errors.InvalidArgument, script, lambda c: c.read_link(BASIC))


def test_stat_follows_on_request() -> None:
    async def body(cluster: V2Cluster) -> None:
        await cluster.stat(BASIC)
        await cluster.stat(BASIC, follow=True)

    _, server = run(Script().on("GET /ops/stat", "stat.file"), body)
    assert [asked.query.get("dereference") for asked in server.asked] == [None, "true"]


def test_percent_and_plus_arrive() -> None:
    path = RemotePath("/h/50%+ é&b=c#d?e\n日")
    _, server = run(Script().on("GET /ops/stat", "stat.file"), lambda c: c.stat(path))
    assert server.asked[0].query["path"] == path


def test_changes_of_names() -> None:
    async def body(cluster: V2Cluster) -> None:
        await cluster.make_directory(HOME)
        await cluster.change_mode(BASIC, 0o755)
        await cluster.change_owner(BASIC, None, "project1")
        await cluster.symlink(BASIC, RemotePath("/h/l"))
        await cluster.remove(BASIC)
        await cluster.compress(HOME, RemotePath("/h/a.tar.gz"))
        await cluster.extract(RemotePath("/h/a.tar"), HOME)

    script = (
        Script()
        .on("POST /ops/mkdir", "mkdir.ok")
        .on("PUT /ops/chmod", "chmod.ok")
        .on("PUT /ops/chown", "chown.group_ok")
        .on("POST /ops/symlink", "symlink.ok")
        .on("DELETE /ops/rm", "rm.file")
        .on("POST /ops/compress", "compress.ok")
        .on("POST /ops/extract", "extract.ok")
    )
    _, server = run(script, body)
    bodies = [json.loads(asked.body) if asked.body else asked.query for asked in server.asked]
    assert bodies == [
        {"path": HOME, "parent": False},
        {"path": BASIC, "mode": "00755"},
        {"path": BASIC, "group": "project1"},
        {"path": BASIC, "linkPath": "/h/l"},
        {"path": BASIC},
        {"path": HOME, "targetPath": "/h/a.tar.gz", "compression": "gzip"},
        {"path": "/h/a.tar", "targetPath": HOME, "compression": "none"},
    ]
    assert server.asked[0].headers["content-type"] == "application/json"


def test_a_link_that_went_into_a_directory() -> None:
    script = Script().on("POST /ops/symlink", "symlink.link_is_dir")
    error, _ = fails(errors.Exists, script, lambda c: c.symlink(BASIC, HOME))
    assert "basic.txt" in str(error)


def test_a_link_to_outside_of_the_file_systems() -> None:
    script = Script().on("POST /ops/symlink", "symlink.target_outside")
    fails(errors.Unsupported, script, lambda c: c.symlink("/etc/passwd", HOME))


def test_checksums() -> None:
    script = Script().on("GET /checksum", "checksum.basic", "checksum.backslash_in_name")

    async def body(cluster: V2Cluster) -> list[str]:
        return [await cluster.checksum(BASIC), await cluster.checksum(RemotePath("/h/b\\s"))]

    sums, _ = run(script, body)
    assert [one[:4] for one in sums] == ["a948", "80a3"]
    assert {len(one) for one in sums} == {64}


def test_head_of_nothing_asks_nothing() -> None:
    async def body(cluster: V2Cluster) -> None:
        assert await cluster.head(BASIC, 0) == b""
        assert await cluster.head(BASIC, 7) == b"line 1\n"
        assert await cluster.tail(BASIC, 0) == b"hello world\n"

    script = Script().on("GET /head", "head.bytes7").on("GET /tail", "tail.skipHeading1")
    _, server = run(script, body)
    assert [asked.query.get("bytes") for asked in server.asked] == ["7", "1"]
    assert server.asked[1].query["skipHeading"] == "true"


def test_upload() -> None:
    path = RemotePath("/home/u/d r/é f;g=h%41")
    script = Script().on("POST /upload", "upload.new")
    _, server = run(script, lambda c: c.upload(path, b"\0bytes\r\n"))
    (asked,) = server.asked
    assert asked.query == {"path": "/home/u/d r"}
    assert 'name="file"; filename="é f;g=h%41"'.encode() in asked.body
    assert b"\0bytes\r\n" in asked.body


def test_whoami() -> None:
    script = Script().on("GET /status/cluster/userinfo", "userinfo")
    assert run(script, lambda c: c.whoami())[0].uid == 1501
    fails(
        errors.Unreachable,
        Script().on("GET /userinfo", "ssh_down_unnoticed.userinfo"),
        lambda c: c.whoami(),
    )


# Trouble on the way.


def test_questions_are_asked_again() -> None:
    script = Script().on(
        "GET /stat", "stat.maxsessions_exceeded", Reset, "ssh_down_unnoticed.stat", "stat.file"
    )
    stat, server = run(script, lambda c: c.stat(BASIC), patience=20)
    assert stat.size == 12
    assert len(server.asked) == 4


def test_a_slow_command_is_not_repeated() -> None:
    script = Script().on("GET /checksum", "checksum.sparse40G_timeout")
    _, server = fails(errors.Stalled, script, lambda c: c.checksum(BASIC), patience=20)
    assert len(server.asked) == 1


def test_changes_are_repeated_only_if_nothing_ran() -> None:
    script = Script().on(
        "POST /mkdir", "stat.maxsessions_exceeded", "ssh_unreachable.ls", "mkdir.ok"
    )
    _, server = run(script, lambda c: c.make_directory(HOME), patience=20)
    assert len(server.asked) == 3
    for answer, kind in (
        ("ls.path_with_nul", errors.OutcomeUnknown),
        ("upload.empty_timing", errors.CommandTimeout),
        (Drop, errors.OutcomeUnknown),
        ("mkdir.nonutf8_surrogate", errors.OutcomeUnknown),
    ):
        script = Script().on("POST /mkdir", answer)
        _, server = fails(kind, script, lambda c: c.make_directory(HOME), patience=20)
        assert len(server.asked) == 1


def test_a_connection_dropped_after_a_fault_costs_no_change() -> None:
    """uvicorn closes the connection after an unhandled 500, without saying so (FACTS §1)."""
    fault = RECORDED["mkdir.nonutf8_surrogate"]["response_json"]
    replies = [(500, json.dumps(fault).encode()), (204, b"")]
    opened = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal opened
        opened += 1
        async with stream:
            await stream.receive_some(65536)
            status, body = replies.pop(0)
            head = f"HTTP/1.1 {status} x\r\nf7t-timestamp: 1\r\n"
            if body:
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            await stream.send_all(head.encode() + b"\r\n" + body)
            await trio.sleep(0.02)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, serve, 0)
            port = listeners[0].socket.getsockname()[1]
            source = TokenSource(_grant)
            async with ApiClient(f"http://127.0.0.1:{port}", source, patience=0) as client:
                cluster = V2Cluster(client, "cluster")
                with pytest.raises(errors.OutcomeUnknown):
                    await cluster.make_directory(HOME)
                await cluster.remove(BASIC)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert opened == 2


async def _grant() -> Grant:
    return Grant("t", 300)


def test_at_most_six_calls_at_once() -> None:
    async def body(cluster: V2Cluster) -> float:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(cluster.stat, BASIC)
        return cluster._calls.api._limiter.total_tokens

    script = Script().on("GET /stat", "stat.file")
    assert run(script, body, parallel_calls=40)[0] == 6


# Transfers.

UP = Script().on("POST /transfer/upload", "xfer.upload.small")
DOWN = Script().on("POST /transfer/download", "xfer.download.small")
TARGET = RemotePath("/home/fireuser/t/up/small")


def test_an_upload_from_ticket_to_end() -> None:
    script = (
        Script()
        .on("POST /transfer/upload", "xfer.upload.multipart20MiB_8MiB_parts")
        .on(
            "GET /compute/cluster/jobs/2",
            "jobs.get.unknown",
            json_answer({"jobs": [{"jobId": 2, "status": {"state": "RUNNING"}}]}),
            "xfer.upload.multipart20MiB_8MiB_parts.job_final",
        )
    )

    async def body(cluster: V2Cluster) -> None:
        ticket = await cluster.stage_upload(TARGET, 20_971_537)
        assert (ticket.task_id, ticket.path) == ("2", TARGET)
        before = sum(cluster.calls.values())
        now = await cluster.progress(ticket)
        assert sum(cluster.calls.values()) == before, "the bytes must not wait for a look"
        for _ in range(3):
            assert now.phase is Phase.READY and now.parts is not None
            assert (len(now.parts.urls), now.parts.part_size) == (3, 8 << 20)
            assert "partNumber=2" in now.parts.urls[1]
            assert "partNumber" not in now.parts.complete_url
            now = await cluster.progress(ticket)
        assert now.phase is Phase.DONE
        assert [path.rpartition("/")[2][:26] for path in cluster.litter(ticket)] == [
            ".f7t_file_handling_job_0e0",
            ".f7t_file_handling_job_err",
        ]

    _, server = run(script, body)
    assert json.loads(server.asked[0].body) == {
        "path": TARGET,
        "transferDirectives": {"transferMethod": "s3", "fileSize": 20_971_537},
    }


def test_a_completed_upload_without_a_file() -> None:
    """COMPLETED, with its success line, into a directory that does not exist (FACTS §7)."""
    name = "xfer.upload.missing_dir"
    words = RECORDED[name + ".errorLog"]["response_json"]["output"]
    script = (
        Script()
        .on("POST /transfer/upload", name)
        .on("GET /jobs/12", name + ".job_final")
        .on("GET /ops/tail", json_answer({"output": {"content": words}}))
    )

    async def body(cluster: V2Cluster) -> None:
        ticket = await cluster.stage_upload(TARGET, 1)
        await cluster.progress(ticket)
        now = await cluster.progress(ticket)
        assert now.phase is Phase.DONE
        assert "nodir/f: No such file or directory" in str(now.error)

    run(script, body)


def test_a_failed_upload_tells_its_log() -> None:
    name = "xfer.upload.empty_declared_as_1_byte"
    script = (
        Script()
        .on("POST /transfer/upload", name)
        .on("GET /jobs/128", name + ".job_final")
        .on("GET /ops/tail", json_answer({"output": {"content": "x: Download failed: part 1\n"}}))
    )

    async def body(cluster: V2Cluster) -> None:
        ticket = await cluster.stage_upload(TARGET, 1)
        await cluster.progress(ticket)
        now = await cluster.progress(ticket)
        assert now.phase is Phase.FAILED
        assert now.error == "job 128 FAILED: x: Download failed: part 1"

    run(script, body)
    script.on("GET /ops/tail", "tail.missing")

    async def without(cluster: V2Cluster) -> None:
        ticket = await cluster.stage_upload(TARGET, 1)
        await cluster.progress(ticket)
        assert "never began" in str((await cluster.progress(ticket)).error)

    run(script, without)


def test_a_download() -> None:
    script = Script().on("POST /transfer/download", "xfer.download.small")
    running = json.loads(json.dumps(RECORDED["xfer.download.small.job_final"]["response_json"]))
    running["jobs"][0]["status"]["state"] = "PENDING"
    script.on("GET /jobs/33", json_answer(running), "xfer.download.small.job_final")

    async def body(cluster: V2Cluster) -> None:
        ticket = await cluster.stage_download(BASIC)
        lags = []
        for _ in range(3):
            now = await cluster.progress(ticket)
            assert now.phase is Phase.READY and now.link is not None
            assert now.link.startswith("http://staging.example/")
            lags.append(now.link_lags)
        assert lags == [True, True, False]

    run(script, body)


def test_a_failed_download() -> None:
    script = (
        Script()
        .on("POST /transfer/download", "xfer.download.noread")
        .on("GET /jobs/50", "xfer.download.noread.job_final")
        .on("GET /tail", json_answer({"output": {"content": "dd: Permission denied\n"}}))
    )

    async def body(cluster: V2Cluster) -> None:
        ticket = await cluster.stage_download(BASIC)
        await cluster.progress(ticket)
        now = await cluster.progress(ticket)
        assert now.phase is Phase.FAILED and "Permission denied" in str(now.error)

    run(script, body)


def test_tickets_of_other_days() -> None:
    """A job that the scheduler has forgotten: an upload is begun anew, a link speaks for itself."""

    async def body(cluster: V2Cluster) -> None:
        up = await cluster.stage_upload(TARGET, 13)
        down = await cluster.stage_download(BASIC)
        old_up, old_down = (
            Ticket(one.task_id, one.path, re.sub(r'"since":[\d.]+', '"since":5.0', one.details))
            for one in (up, down)
        )
        for ticket in (up, down):
            await cluster.progress(ticket)
        with pytest.raises(errors.NotFound):
            await cluster.progress(old_up)
        assert not (await cluster.progress(old_down)).link_lags
        for details in ("", "{}", "[]", '{"kind": "form"}'):
            with pytest.raises(errors.NotFound):
                await cluster.progress(Ticket("1", TARGET, details))
            assert cluster.litter(Ticket("1", TARGET, details)) == ()

    script = Script().on("GET /jobs/\\d+", "jobs.get.unknown")
    script.answers |= UP.answers | DOWN.answers
    run(script, body)


URLS = ["http://s/1", "http://s/2"]
JOB = {"jobId": 7, "logs": {"outputLog": "/h/o", "errorLog": "/h/e"}}


@pytest.mark.parametrize(
    "answer",
    [
        {
            "transferJob": JOB,
            "transferDirectives": {
                "partsUploadUrls": URLS,
                "completeUploadUrl": "http://s/c",
                "maxPartSize": 10,
            },
        },
        {
            "transferJob": JOB | {"jobId": "7"},
            "transferDirectives": {
                "parts_upload_urls": URLS,
                "complete_upload_url": "http://s/c",
                "max_part_size": 10,
            },
        },
        {
            "transferJob": JOB,
            "partsUploadUrls": URLS,
            "completeMultipartUploadUrl": "http://s/c",
            "maxPartSize": 10,
        },
        {
            "transfer_job": {"job_id": 7, "logs": {"output_log": "/h/o", "error_log": "/h/e"}},
            "transfer_directives": {
                "parts_upload_urls": URLS,
                "complete_upload_url": "http://s/c",
                "max_part_size": "10",
            },
        },
    ],
    ids=["2.5", "2.4", "before 2.4", "all snake"],
)
def test_tickets_in_every_spelling(answer: dict[str, Any]) -> None:
    async def body(cluster: V2Cluster) -> None:
        ticket = await cluster.stage_upload(TARGET, 13)
        assert ticket.task_id == "7"
        parts = (await cluster.progress(ticket)).parts
        assert parts is not None
        assert (parts.urls, parts.part_size, parts.complete_url) == (tuple(URLS), 10, "http://s/c")
        assert cluster.litter(ticket) == (), "those are no names of logs"

    run(Script().on("POST /transfer/upload", json_answer(answer, 201)), body)


@pytest.mark.parametrize("key", ["downloadUrl", "download_url"])
def test_links_in_every_spelling(key: str) -> None:
    answers: list[dict[str, Any]] = [
        {"transferJob": JOB, "transferDirectives": {key: "https://s/d"}},
        {"transferJob": JOB, key: "https://s/d"},
    ]
    for answer in answers:
        script = Script().on("POST /transfer/download", json_answer(answer, 201))

        async def body(cluster: V2Cluster) -> None:
            assert (await cluster.progress(await cluster.stage_download(BASIC))).link == (
                "https://s/d"
            )

        run(script, body)


def test_answers_without_what_they_are_for() -> None:
    script = Script().on("POST /transfer/.*", json_answer({"transferJob": JOB}, 201))
    fails(errors.ServerError, script, lambda c: c.stage_upload(TARGET, 5))
    fails(errors.ServerError, script, lambda c: c.stage_download(BASIC))
    script = Script().on("POST /transfer/mv", json_answer({}, 201))
    fails(errors.OutcomeUnknown, script, lambda c: c.move_by_job(BASIC, TARGET))


def test_a_move_is_done_when_its_log_says_so() -> None:
    moved = RECORDED["xfer.mv.ok.outputLog"]["response_json"]["output"]
    script = (
        Script()
        .on("POST /transfer/mv", "xfer.mv.ok")
        .on("GET /jobs/51", "jobs.get.unknown", "xfer.mv.ok.job_final")
        .on("GET /ops/tail", json_answer({"output": {"content": moved}}))
    )

    async def body(cluster: V2Cluster) -> list[Phase]:
        ticket = await cluster.move_by_job(BASIC, TARGET)
        return [(await cluster.progress(ticket)).phase for _ in range(2)]

    phases, server = run(script, body)
    assert phases == [Phase.QUEUED, Phase.DONE]
    assert json.loads(server.asked[0].body) == {"path": BASIC, "targetPath": TARGET}


def test_a_move_that_is_completed_and_failed() -> None:
    logs = [
        json_answer({"output": {"content": RECORDED[name]["response_json"]["output"]}})
        for name in ("xfer.mv.missing_source.outputLog", "xfer.mv.missing_source.errorLog")
    ]
    script = (
        Script()
        .on("POST /transfer/mv", "xfer.mv.missing_source")
        .on("GET /jobs/53", "xfer.mv.missing_source.job_final")
        .on("GET /ops/tail", *logs)
    )

    async def body(cluster: V2Cluster) -> None:
        now = await cluster.progress(await cluster.move_by_job(BASIC, TARGET))
        assert now.phase is Phase.FAILED
        assert now.error == (
            "job 53 COMPLETED: mv: cannot stat '/home/fireuser/t/mv/nope': "
            "No such file or directory"
        )

    run(script, body)


def test_a_move_whose_log_comes_late() -> None:
    moved = json_answer({"output": {"content": "x Files were successfully moved.\n"}})
    script = (
        Script()
        .on("POST /transfer/mv", "xfer.mv.ok")
        .on("GET /jobs/51", "xfer.mv.ok.job_final")
        .on("GET /ops/tail", "tail.missing", "tail.missing", moved)
    )

    async def body(cluster: V2Cluster) -> list[Phase]:
        ticket = await cluster.move_by_job(BASIC, TARGET)
        return [(await cluster.progress(ticket)).phase for _ in range(2)]

    assert run(script, body)[0] == [Phase.MOVING, Phase.DONE]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_withdrawing_an_upload(state: str) -> None:
    job = {"jobId": "1", "name": "IngressFileTransfer", "status": {"state": state}}
    script = (
        Script()
        .on("GET /jobs/1", json_answer({"jobs": [job]}))
        .on("DELETE /jobs/1", "jobs.cancel.ok")
        .on("DELETE /ops/rm", "rm.file", "rm.missing")
    )
    script.answers |= UP.answers

    async def body(cluster: V2Cluster) -> tuple[RemotePath, ...]:
        ticket = await cluster.stage_upload(TARGET, 13)
        await cluster.withdraw(ticket)
        return cluster.litter(ticket)

    logs, server = run(script, body)
    cancelled, *removed = [asked for asked in server.asked if asked.method == "DELETE"]
    assert cancelled.path == "/compute/cluster/jobs/1"
    assert [asked.query["path"] for asked in removed] == list(logs)


@pytest.mark.parametrize(
    ("name", "state", "cancelled"),
    [
        ("OutgressFileTransfer", "PENDING", True),
        ("OutgressFileTransfer", "RUNNING", False),
        ("OutgressFileTransfer", "COMPLETED", False),
        ("train-1a2b3c4d.sh", "PENDING", False),
    ],
)
def test_withdrawing_cancels_transfers_only(name: str, state: str, cancelled: bool) -> None:
    """Numbers are given again by a scheduler that lost its records; a download that runs would
    leave its copy of the file in the user's quota."""
    job = {"jobId": "33", "name": name, "partition": "p", "status": {"state": state}}
    script = Script().on("GET /jobs/33", json_answer({"jobs": [job]}))
    script.on("DELETE /.*", Answer(204))
    script.answers |= DOWN.answers

    async def body(cluster: V2Cluster) -> None:
        await cluster.withdraw(await cluster.stage_download(BASIC))

    _, server = run(script, body)
    assert ("DELETE /compute/cluster/jobs/33" in server.paths()) == cancelled


def test_accounts() -> None:
    script = Script().on("GET /status/systems", "systems")
    script.answers |= UP.answers

    async def upload(cluster: V2Cluster) -> None:
        await cluster.discover()
        await cluster.stage_upload(TARGET, 13)

    error, server = fails(errors.InvalidArgument, script, upload, system="cluster-acct")
    assert "jobs.account" in str(error)
    assert server.paths() == ["GET /status/systems"]
    _, server = run(script, upload, system="cluster-acct", account="project1")
    assert json.loads(server.asked[1].body)["account"] == "project1"
    fails(errors.Unsupported, script, upload, system="cluster-streamer")


def test_many_followers_share_their_looks() -> None:
    listed = RECORDED["jobs.list.cut"]["response_json"]
    script = Script().on("GET /jobs", json_answer(listed)).on("GET /jobs/\\d+", "jobs.get.unknown")

    async def body(cluster: V2Cluster) -> None:
        transfers = cluster._transfers
        async with trio.open_nursery() as nursery:
            for number in ("1", "51", "52", "53", "53", "1"):
                nursery.start_soon(transfers._rounds.observe, number)

    _, server = run(script, body)
    assert server.paths() == ["GET /compute/cluster/jobs"]


# Jobs.


def test_submission() -> None:
    script = (
        Script()
        .on("POST /compute/cluster/jobs", "jobs.submit.ok")
        .on("GET /jobs/77/metadata", "jobs.metadata.just_completed")
    )
    done, server = run(script, lambda c: c.submit(SCRIPT, "train-1a2b3c4d.sh", "project1", HOME))
    assert (done.job_id, done.stdout_path) == ("77", "/home/fireuser/t/jobs/out_77.txt")
    assert json.loads(server.asked[0].body) == {
        "job": {
            "name": "train-1a2b3c4d.sh",
            "workingDirectory": HOME,
            "script": SCRIPT.decode(),
            "account": "project1",
        }
    }


def test_a_submission_without_metadata() -> None:
    script = (
        Script().on("POST /jobs", "jobs.submit.ok").on("GET /metadata", "jobs.metadata.unknown")
    )
    done, _ = run(script, lambda c: c.submit(SCRIPT, "x", None, HOME))
    assert (done.job_id, done.stdout_path) == ("77", "")


def test_output_paths_that_were_cut_at_a_space() -> None:
    directory = RemotePath("/home/fireuser/t/tree/f with space")
    script = (
        Script()
        .on("POST /jobs", json_answer({"jobId": 89}, 201))
        .on("GET /jobs/89/metadata", "jobs.metadata.workdir_space")
    )
    done, _ = run(script, lambda c: c.submit(SCRIPT, "x", None, directory))
    assert (done.job_id, done.stdout_path, done.stderr_path) == ("89", "", "")


@pytest.mark.parametrize("script", [b"", b" \n", b"#!/bin/sh\n\xff", b"#!/bin/sh\n\0"])
def test_scripts_that_sbatch_would_wait_for_or_not_get(script: bytes) -> None:
    _, server = fails(errors.Rejected, Script(), lambda c: c.submit(script, "x", None, HOME))
    assert server.paths() == []


def test_a_submission_is_sent_once() -> None:
    for answer in (Reset, Drop, "jobs.submit.no_script", "ls.path_with_nul"):
        script = Script().on("POST /jobs", answer)
        kind = errors.CommandTimeout if answer == "jobs.submit.no_script" else errors.OutcomeUnknown
        _, server = fails(kind, script, lambda c: c.submit(SCRIPT, "x", None, HOME))
        assert len(server.asked) == 1


def test_transfers_are_marked() -> None:
    script = Script().on("GET /compute/cluster/jobs", "jobs.list.cut")

    async def body(cluster: V2Cluster) -> None:
        told = await cluster.jobs()
        assert [job.id for job in told if not job.is_transfer] == ["77", "78", "82"]
        assert any(job.is_transfer for job in told)
        assert [job.id for job in await cluster.accounting(["1"])] == ["1"]

    _, server = run(script.on("GET /jobs/1", "xfer.upload.small.job_final"), body)
    assert len(server.asked) == 2


def test_a_pipe_in_a_name_spoils_the_list() -> None:
    """The list of an hour, then nothing; and ids one by one (FACTS §9)."""
    script = (
        Script()
        .on("GET /compute/cluster/jobs", "jobs.list.default")
        .on("GET /jobs/77", "jobs.get.completed")
        .on("GET /jobs/90", "jobs.get.name_pipe")
        .on("GET /jobs/\\d+", "jobs.get.unknown")
    )
    _, server = fails(errors.QueueUnreadable, script, lambda c: c.jobs())
    assert [asked.query for asked in server.asked] == [{}, {"time_window": "1h"}]
    found, _ = run(script, lambda c: c.accounting(["77", "90", "3", "4"]))
    assert [(job.id, job.state) for job in found] == [("77", JobState.COMPLETED)]
    fails(errors.Unreachable, script, lambda c: c.accounting(["90"]))
    script.on("GET /compute/cluster/jobs", "jobs.list.default", "jobs.list.cut")
    assert run(script, lambda c: c.jobs())[0] is not None


def test_arrays() -> None:
    script = Script().on("GET /jobs/92", "jobs.get.array")
    found, server = run(script, lambda c: c.accounting(["92_1", "92_3"]))
    assert [job.id for job in found] == ["92_1", "92_2", "92_3"]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer", ["jobs.cancel.ok", "jobs.cancel.already_finished", "jobs.cancel.unknown"]
)
def test_cancelling(answer: str) -> None:
    _, server = run(Script().on("DELETE /jobs/78", answer), lambda c: c.cancel("78"))
    assert server.paths() == ["DELETE /compute/cluster/jobs/78"]


def test_cancelling_somebody_elses() -> None:
    script = Script().on("DELETE /jobs/100", "jobs.cancel.other_users_job")
    fails(errors.PermissionDenied, script, lambda c: c.cancel("100"))
