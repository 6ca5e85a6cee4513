"""v2's staged transfers and the jobs that move: what COMPLETED does not mean (v2 FACTS §7, §8)."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sim_process import Simulator, running_simulator
from t0_sim2_client import (
    JOBS,
    TRANSFER,
    complete,
    ended,
    extract,
    folder,
    fresh,
    logs,
    look,
    move,
    offer,
    own,
    put,
    stage_down,
    stage_up,
    state,
    tidy,
    until,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with running_simulator(
        api="v2", start_delay=0, ingest_sleep=0.4, command_limit=1, kill_wait=0.3
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "sim" in request.fixturenames:
        tidy(request.getfixturevalue("sim"))


@pytest.fixture
def here(sim: Simulator, request: pytest.FixtureRequest) -> Path:
    return fresh(sim, request.node.name)


# -- staged uploads


def test_the_sixty_second_trap(sim: Simulator, here: Path) -> None:
    sim.hold_jobs(True)
    fast = stage_up(sim, f"{here}/fast", b"fast")
    sim.hold_jobs(False)
    assert ended(sim, fast) == "COMPLETED"
    made = offer(sim, f"{here}/slow", 4)
    job = made["transferJob"]
    until(lambda: "Waiting till" in logs(job)[0], "the job does not look for its object")
    begin = time.monotonic()
    assert complete(sim, made["transferDirectives"], b"slow") == 200
    assert state(sim, job["jobId"]) == "RUNNING"
    assert ended(sim, job) == "COMPLETED"
    assert time.monotonic() - begin < 5
    assert look(sim, job["jobId"])["time"]["limit"] == 900
    assert [(here / name).read_bytes() for name in ("fast", "slow")] == [b"fast", b"slow"]


def test_completed_and_its_success_line_prove_nothing(sim: Simulator, here: Path) -> None:
    for path in (f"{here}/missing/f", f"{here}/closed/f"):
        if "closed" in path:
            folder(sim, here / "closed").chmod(0o555)
        job = stage_up(sim, path, b"data")
        assert ended(sim, job) == "COMPLETED"
        output, error = logs(job)
        assert "File was successfully downloaded" in output and error
        assert not Path(path).exists()


def test_what_an_ingest_does_to_its_target_and_a_sibling(sim: Simulator, here: Path) -> None:
    path = here / "f"
    put(sim, path, b"old")
    path.chmod(0o750)
    os.link(path, here / "twin")
    put(sim, here / "f.1", b"innocent")
    assert ended(sim, stage_up(sim, str(path), b"new")) == "COMPLETED"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o644)
    assert (here / "twin").read_bytes() == b"old"
    assert not (here / "f.1").exists()
    (here / "link").symlink_to("twin")
    own(sim, here / "link")
    assert ended(sim, stage_up(sim, f"{here}/link", b"file")) == "COMPLETED"
    assert not (here / "link").is_symlink()
    assert (here / "twin").read_bytes() == b"old"


def test_names_that_an_ingest_damages(sim: Simulator, here: Path) -> None:
    wanted = {"a&b": "a&amp;b", "it's": "it&#39;s", 'q"x': "q&#34;x", "a b": "a b", "ü": "ü"}
    jobs = [stage_up(sim, f"{here}/{name}", b"x") for name in wanted]
    assert {ended(sim, job) for job in jobs} == {"COMPLETED"}
    assert sorted(os.listdir(here)) == sorted(wanted.values())


def test_an_empty_file_cannot_be_staged(sim: Simulator, here: Path) -> None:
    path = here / "f"
    put(sim, path, b"precious")
    made = offer(sim, str(path), 0)
    assert made["transferDirectives"]["partsUploadUrls"] == []
    assert complete(sim, made["transferDirectives"], b"") == 400
    assert sim.v2("DELETE", f"{JOBS}/{made['transferJob']['jobId']}")[0] == 204
    assert ended(sim, made["transferJob"]).startswith("CANCELLED by ")
    assert path.read_bytes() == b"precious"
    job = stage_up(sim, str(path), b"", declared=1)
    assert ended(sim, job) == "FAILED"
    assert not path.exists()
    assert b"InvalidRange" in (here / "f.1").read_bytes()


def test_parts(here: Path, sim: Simulator) -> None:
    with running_simulator(api="v2", start_delay=0, ingest_sleep=0.1, part_size=4) as small:
        path = f"{small.home}/f"
        made = offer(small, path, 10)
        directives = made["transferDirectives"]
        assert (len(directives["partsUploadUrls"]), directives["maxPartSize"]) == (3, 4)
        assert complete(small, directives, b"0123456789") == 200
        assert ended(small, made["transferJob"]) == "COMPLETED"
        assert Path(path).read_bytes() == b"0123456789"
    big = offer(sim, f"{here}/b", 9 << 20, "cluster-utf8")["transferDirectives"]
    links = big["partsUploadUrls"]
    assert len(links) == 2
    assert sim.request("PUT", links[0].replace("partNumber=1", "partNumber=7"), body=b"x")[0] == 403
    assert sim.request("GET", links[0])[0] == 403  # signed for PUT
    etags = [sim.request("PUT", link, body=b"x")[1]["etag"] for link in links]
    part = "<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>"

    def finish(*parts: str) -> tuple[int, bytes]:
        text = f"<CompleteMultipartUpload>{''.join(parts)}</CompleteMultipartUpload>"
        return sim.request("POST", big["completeUploadUrl"], body=text.encode())[::2]

    status, body = finish(part.format(1, '"wrong"'))
    assert (status, b"InvalidPart" in body) == (400, True)
    status, body = finish(part.format(2, etags[1]), part.format(1, etags[0]))
    assert (status, b"InvalidPartOrder" in body) == (400, True)
    status, body = finish(part.format(1, etags[0]), part.format(2, etags[1]))
    assert (status, b"EntityTooSmall" in body) == (400, True)


def test_an_ingest_that_is_cancelled_writes_nothing(sim: Simulator, here: Path) -> None:
    made = offer(sim, f"{here}/f", 1)
    ident = made["transferJob"]["jobId"]
    until(lambda: state(sim, ident) == "RUNNING", "the job does not start")
    assert sim.v2("DELETE", f"{JOBS}/{ident}")[0] == 204
    assert ended(sim, ident).startswith("CANCELLED by ")
    assert complete(sim, made["transferDirectives"], b"x") == 200
    assert os.listdir(here) == []


# -- staged downloads


def test_a_download_link_is_404_until_the_job_is_done(sim: Simulator, here: Path) -> None:
    path = put(sim, here / "f", b"0123456789")
    sim.hold_jobs(True)
    job, link = stage_down(sim, path)
    status, _, body = sim.request("GET", link)
    assert (status, b"NoSuchKey" in body) == (404, True)
    sim.hold_jobs(False)
    until(lambda: sim.request("GET", link)[0] == 200, "the object does not come")
    status, headers, body = sim.request("GET", link, headers={"Range": "bytes=2-4"})
    assert (status, body, headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert headers["etag"].endswith('-1"')
    assert ended(sim, job) == "COMPLETED"
    assert "Multipart file upload successfully completed" in logs(job)[0]
    put(sim, here / "f", b"changed")
    assert sim.request("GET", link)[2] == b"0123456789"  # a snapshot
    assert (sim.home / "tmp").is_dir()  # it stays


@pytest.mark.parametrize("name", ["a b", "x;touch canary-d", "a&b", "it's", "$(touch canary-d)"])
def test_names_that_a_download_would_run(sim: Simulator, here: Path, name: str) -> None:
    extracted = extract(sim, here, (name, tarfile.REGTYPE, "", b"x"))
    assert extracted == 204
    path = f"{here}/" + name.replace("'", "'\\''")
    job, link = stage_down(sim, path)
    assert ended(sim, job) == "FAILED"
    assert look(sim, job["jobId"])["status"]["exitCode"] == 34
    assert logs(job)[1].endswith("file_not_found\n")
    assert sim.request("GET", link)[0] == 404
    assert not (sim.home / "canary-d").exists()


def test_downloads_that_fail_only_in_their_job(sim: Simulator, here: Path) -> None:
    empty, closed = put(sim, here / "empty", b""), put(sim, here / "closed", b"x")
    Path(closed).chmod(0)
    for path, code in ((empty, 70), (closed, 70), (str(here), 34)):
        job, _ = stage_down(sim, path)
        assert ended(sim, job) == "FAILED"
        assert look(sim, job["jobId"])["status"]["exitCode"] == code
    wish = {"path": f"{here}/none", "transferDirectives": {"transferMethod": "s3"}}
    assert sim.v2("POST", f"{TRANSFER}/download", body=wish)[0] == 404


# -- jobs that move


def test_a_failed_move_ends_completed(sim: Simulator, here: Path) -> None:
    job = move(sim, "mv", f"{here}/none", f"{here}/x")
    assert ended(sim, job) == "COMPLETED"
    output, error = logs(job)
    assert "Files were successfully" not in output
    assert "cannot stat" in error and "exit code:0 error: \n" in error
    source = put(sim, here / "a", b"a")
    target = here / "b"
    put(sim, target, b"b")
    target.chmod(0o444)
    job = move(sim, "mv", source, str(target))
    assert ended(sim, job) == "COMPLETED"
    assert "Files were successfully moved." in logs(job)[0]
    assert target.read_bytes() == b"a"


def test_each_transfer_leaves_two_logs_in_the_home(sim: Simulator, here: Path) -> None:
    def litter() -> set[str]:
        return {name for name in os.listdir(sim.home) if name.startswith(".f7t_file_handling_job")}

    before = litter()
    job = move(sim, "cp", put(sim, here / "a", b"a"), f"{here}/b")
    assert ended(sim, job) == "COMPLETED"
    new = litter() - before
    assert {str(sim.home / name) for name in new} == set(job["logs"].values())


def test_an_account_that_the_system_wants(sim: Simulator, here: Path) -> None:
    wish = {"path": put(sim, here / "a", b""), "targetPath": f"{here}/b"}
    path = "/filesystem/cluster-acct/transfer/cp"
    status, _, body = sim.v2("POST", path, body=wish)
    assert (status, body["message"]) == (400, "Account parameter is required on this system.")
    assert sim.v2("POST", path, body=wish | {"account": "project1"})[0] == 201
