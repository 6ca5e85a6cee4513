"""v2's traps that a single recording cannot show: quotes, sessions, connections, jobs, drift."""

from __future__ import annotations

import http.client
import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from sim_process import Simulator, running_simulator
from t0_sim2_client import (
    DEADLINE,
    JOBS,
    OPS,
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
    stage_up,
    state,
    submit,
    tidy,
    until,
    upload,
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


# -- quotes: the trap is real, the fence stays


@pytest.mark.parametrize("call", ["stat", "mkdir", "chmod", "upload", "download", "rm"])
def test_a_quote_in_a_path_runs_commands(sim: Simulator, here: Path, call: str) -> None:
    name = f"a'; touch canary-{call}; 'b"
    if call == "upload":
        upload(sim, str(here), name, b"x")
    elif call in {"stat", "download"}:
        sim.v2("GET", f"{OPS}/{call}", {"path": f"{here}/{name}"})
    elif call == "rm":
        sim.v2("DELETE", f"{OPS}/rm", {"path": f"{here}/{name}"})
    else:
        method = "PUT" if call == "chmod" else "POST"
        body = {"path": f"{here}/{name}", "mode": "600"}
        sim.v2(method, f"{OPS}/{call}", body=body)
    assert (sim.home / f"canary-{call}").exists()
    assert any(f"canary-{call}" in line for line in sim.injections())


@pytest.mark.parametrize(
    "command",
    ["rm -rf {home}", "touch /tmp/f7tfs-outside", "echo x > {home}/f", "bash", "touch `id`",
     "touch $(id)", "touch -r /etc/passwd {home}/g", "timeout 1 cat /etc/passwd",
     "timeout 1 rm -rf /tmp/f7tfs-none", "cd", "exec"],
)  # fmt: skip
def test_what_else_a_quote_would_run_is_noted_and_not_run(sim: Simulator, command: str) -> None:
    keep = sim.home / "keep"
    put(sim, keep, b"")
    line = command.format(home=sim.home)
    status, _, body = sim.v2("GET", f"{OPS}/stat", {"path": f"{sim.home}/a'; {line}; '"})
    if command not in {"cd", "exec"}:
        assert status == 500, body
        assert "does not run this" in body["message"], body
        assert line in sim.injections()[-1]
    assert keep.exists()
    assert not (sim.home / "f").exists() and not (sim.home / "g").exists()
    assert not Path("/tmp/f7tfs-outside").exists()


def test_an_odd_quote_is_a_syntax_error_and_two_of_them_make_a_wrong_tree(
    sim: Simulator, here: Path
) -> None:
    status, _, body = sim.v2("GET", f"{OPS}/stat", {"path": f"{here}/it's"})
    assert (status, "unexpected EOF" in body["message"]) == (500, True)
    wish = {"path": f"{here}/it's", "parent": True}
    assert sim.v2("POST", f"{OPS}/mkdir", body=wish)[::2] == (201, {"output": None})
    (wrong,) = os.listdir(here)
    assert (
        wrong == "its && timeout 1 ls -l --quoting-style=c --time-style=+%Y-%m-%dT%H:%M:%S -d -- "
    )
    assert sim.v2("POST", f"{OPS}/mkdir", body={"path": f"{here}/it'\\''s"})[0] == 201
    assert (here / "it's").is_dir()


def test_nothing_leaves_the_root(sim: Simulator, here: Path) -> None:
    out = here / "out"
    out.symlink_to("/etc")
    own(sim, out)
    for call, path in (("ls", f"{out}/"), ("head", f"{out}/passwd"), ("download", f"{out}/passwd")):
        assert sim.v2("GET", f"{OPS}/{call}", {"path": path})[0] == 403
    assert upload(sim, str(out), "f", b"x")[0] == 403
    here_file = put(sim, here / "f", b"x")
    wish = {"path": here_file, "linkPath": "/tmp/f7tfs-outside"}
    assert sim.v2("POST", f"{OPS}/symlink", body=wish)[0] == 403
    job = move(sim, "mv", here_file, "/tmp/f7tfs-outside")
    assert ended(sim, job) == "COMPLETED"
    assert "Permission denied" in logs(job)[1]
    assert not Path("/tmp/f7tfs-outside").exists()
    job = stage_up(sim, "/tmp/f7tfs-outside", b"x")
    assert ended(sim, job) == "COMPLETED"
    assert "Permission denied" in logs(job)[1]
    assert not Path("/tmp/f7tfs-outside").exists()


# -- connections, sessions, systems


def raw(sim: Simulator, connection: http.client.HTTPConnection, call: str, **query: str) -> int:
    headers = {"Authorization": f"Bearer {sim.token()}"}
    connection.request("GET", f"{call}?{urlencode(query)}", headers=headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def test_after_an_unhandled_500_the_connection_is_gone(sim: Simulator) -> None:
    connection = http.client.HTTPConnection(urlsplit(sim.url).netloc, timeout=10)
    assert raw(sim, connection, f"{OPS}/stat", path=str(sim.home)) == 200
    before = connection.sock
    assert raw(sim, connection, f"{OPS}/stat", path=str(sim.home)) == 200
    assert connection.sock is before
    assert raw(sim, connection, f"{OPS}/stat") == 400  # no path: asyncio.run() in a foreign loop
    with pytest.raises((ConnectionError, http.client.BadStatusLine)):
        raw(sim, connection, f"{OPS}/stat", path=str(sim.home))
    connection.close()
    sim.system_state("cluster", "refused")
    try:
        status, headers, body = sim.v2("GET", f"{OPS}/stat", {"path": str(sim.home)})
        assert (status, body["message"]) == (500, "(111, 'Connection refused')")
        assert body["user"] is None and "x-request-id" not in headers
        status, _, body = sim.v2("GET", JOBS)
        assert (status, body["message"]) == (500, "Error executing Slurm command.")
        sim.system_state("cluster", "down")
        assert sim.v2("GET", f"{OPS}/stat", {"path": str(sim.home)})[0] == 503
    finally:
        sim.system_state("cluster", "up")


def fifo(sim: Simulator, place: Path) -> str:
    os.mkfifo(place / "fifo")
    return str(own(sim, place / "fifo"))


def test_more_sessions_than_sshd_gives() -> None:
    with (
        running_simulator(api="v2", max_sessions=2, command_limit=1.5) as narrow,
        ThreadPoolExecutor(2) as pool,
    ):
        path = fifo(narrow, narrow.home)

        def blocked() -> int:
            """A looker-on may have taken its session: then once more."""
            return int(
                until(
                    lambda: (
                        (found := narrow.v2("GET", f"{OPS}/view", {"path": path})[0]) != 424
                        and found
                    ),
                    "never a free session",
                )
            )

        both = [pool.submit(blocked) for _ in range(2)]
        _, _, body = until(
            lambda: (a := narrow.v2("GET", f"{OPS}/stat", {"path": path}))[0] == 424 and a,
            "never too many sessions",
        )
        assert body["message"] == "Unable to open a new SSH channel."
        assert [one.result(DEADLINE) for one in both] == [408, 408]
        assert narrow.v2("GET", f"{OPS}/stat", {"path": path})[0] == 200


def test_a_nul_takes_the_connection_from_everybody(sim: Simulator, here: Path) -> None:
    path = fifo(sim, here)
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(sim.v2, "GET", f"{OPS}/view", {"path": path})

        def gone() -> bool:
            status, _, body = sim.v2("GET", f"{OPS}/ls", {"path": f"{here}/\0"})
            assert (status, body["message"]) == (424, "Unable to establish SSH connection.")
            return blocked.done()

        until(gone, "the other call goes on")
        assert blocked.result()[0] in {424, 408}


def test_tokens_with_less_than_thirty_seconds(sim: Simulator) -> None:
    for lifetime, wanted in ((25, 401), (35, 200)):
        token = sim.mint(lifetime=lifetime)
        status, headers, _ = sim.v2("GET", "/status/systems", token=token)
        assert status == wanted
        assert headers.get("auth-token", token) == token  # it comes back, to be logged by mistake


def test_both_dialects_over_one_folder() -> None:
    with running_simulator(api="both", start_delay=0) as both:
        assert both.v2_url == f"{both.url}/v2"
        assert both.api("POST", "/utilities/mkdir", {"targetPath": f"{both.home}/d"})[0] == 201
        _, _, body = both.v2("GET", f"{OPS}/ls", {"path": str(both.home)})
        assert [entry["name"] for entry in body["output"]] == ["d"]
        assert both.v2("GET", f"{OPS.upper()}/STAT", {"path": f"{both.home}/d"})[0] == 200
        submit(both, "true", name="from-v2")
        _, _, task = both.api("GET", "/compute/acct")
        assert both.wait_task(task["task_id"], "200")["data"][0]["name"] == "from-v2"
        assert both.request("GET", "/filesystem/cluster/ops/ls")[0] == 400  # Kong's "Invalid"
        assert both.calls()["calls"]["GET /v2/filesystem/cluster/ops/ls"] == 1


def test_faults_see_json_bodies(sim: Simulator, here: Path) -> None:
    where = f"path={here}/faulty"
    sim.faults([{"match": f"POST {OPS}/mkdir", "where": where, "action": {"status": 503}}])
    assert sim.v2("POST", f"{OPS}/mkdir", body={"path": f"{here}/fine"})[0] == 201
    assert sim.v2("POST", f"{OPS}/mkdir", body={"path": f"{here}/faulty"})[0] == 503
    sim.faults([{"match": "object-store PUT", "action": {"status": 500}}])
    made = offer(sim, f"{here}/x", 1)
    link = made["transferDirectives"]["partsUploadUrls"][0]
    assert [sim.request("PUT", link, body=b"x")[0] for _ in range(2)] == [500, 200]
    ident = made["transferJob"]["jobId"]
    assert sim.v2("DELETE", f"{JOBS}/{ident}")[0] == 204
    assert sim.calls()["calls"][f"DELETE {JOBS}/{{id}}"] >= 1


# -- ops


def test_an_empty_upload_is_408_and_the_file_is_there(sim: Simulator, here: Path) -> None:
    put(sim, here / "old", b"content")
    for name in ("old", "new"):
        assert upload(sim, str(here), name, b"")[0] == 408
        assert (here / name).read_bytes() == b""


def test_an_upload_keeps_inode_mode_and_links(sim: Simulator, here: Path) -> None:
    path = here / "f"
    put(sim, path, b"long content")
    path.chmod(0o600)
    os.link(path, here / "twin")
    inode = path.stat().st_ino
    assert upload(sim, str(here), "f", b"short") == (204, None)
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o600)
    assert (here / "twin").read_bytes() == b"short"


def test_a_login_node_in_another_time_zone() -> None:
    with running_simulator(api="v2", time_zone="Asia/Tokyo", start_delay=0) as tokyo:
        path = tokyo.home / "f"
        put(tokyo, path, b"x")
        os.utime(path, (1700000000, 1700000000))  # 2023-11-14T22:13:20Z
        _, _, body = tokyo.v2("GET", f"{OPS}/ls", {"path": str(path)})
        assert body["output"][0]["lastModified"] == "2023-11-15T07:13:20"
        _, _, body = tokyo.v2("GET", f"{OPS}/stat", {"path": str(path)})
        assert body["output"]["mtime"] == 1700000000
        job = move(tokyo, "mv", str(path), f"{path}2")
        assert ended(tokyo, job) == "COMPLETED"
        assert " JST " in logs(job)[0]


def test_what_a_tar_can_do(sim: Simulator, here: Path) -> None:
    """TAR.md: links, times, empty files, relative symlinks; a non-empty folder is refused."""
    put(sim, here / "a", b"A")
    put(sim, here / "b", b"B")
    assert extract(sim, here, ("b", tarfile.LNKTYPE, "a", b"")) == 204
    assert (here / "b").stat().st_ino == (here / "a").stat().st_ino
    assert extract(sim, here, ("c", tarfile.LNKTYPE, "missing", b"")) == 404
    assert extract(sim, here, ("it's", tarfile.REGTYPE, "", b"")) == 204
    assert (here / "it's").stat().st_mtime == 1500000000
    assert extract(sim, here, ("l", tarfile.SYMTYPE, "a", b"")) == 204
    assert os.readlink(here / "l") == "a"
    for name in ("full", "empty"):
        folder(sim, here / name)
    put(sim, here / "full/f", b"")
    assert extract(sim, here, ("full", tarfile.SYMTYPE, "a", b"")) == 400
    assert (here / "full/f").exists()
    assert extract(sim, here, ("empty", tarfile.SYMTYPE, "a", b"")) == 204
    assert (here / "empty").is_symlink()


# -- compute


def test_sacct_lags() -> None:
    with running_simulator(api="v2", acct_lag=1.0, start_delay=0, kill_wait=0.2) as late:
        ident = submit(late, "sleep 30", name="mine")
        job = until(lambda: (j := look(late, ident))["tasks"] and j, "it does not start")
        assert (job["name"], job["status"]["state"]) == ("allocation", "PENDING")
        assert job["tasks"][0]["status"]["state"] == "RUNNING"
        assert (job["partition"], job["workingDirectory"], job["time"]["limit"]) == ("", "", None)
        job = until(lambda: (j := look(late, ident))["name"] == "mine" and j, "it lags for ever")
        assert job["status"]["state"] == "RUNNING"
        assert late.v2("DELETE", f"{JOBS}/{ident}")[0] == 204
        job = look(late, ident)
        assert job["name"] == "allocation"
        assert job["status"]["state"].startswith("CANCELLED by ")


def test_one_pipe_spoils_the_list(sim: Simulator) -> None:
    with running_simulator(api="v2", start_delay=0, min_job_age=0.3) as other:
        good = submit(other, "true", name="good")
        assert ended(other, good) == "COMPLETED"
        _, _, body = other.v2("GET", JOBS)
        assert [job["name"] for job in body["jobs"]] == ["good"]
        submit(other, "true", name="a|b")
        status, _, body = other.v2("GET", JOBS)
        assert (status, body["message"]) == (500, "Error executing Slurm command.")
        _, _, body = other.v2("GET", JOBS, {"name": "good"})
        assert [job["jobId"] for job in body["jobs"]] == [good]
        # slurmctld forgets, accounting does not
        until(lambda: other.v2("GET", f"{JOBS}/{good}/metadata")[0] == 404, "never forgotten")
        assert state(other, good) == "COMPLETED"
        assert other.v2("GET", JOBS, token=other.token("firecrest-other"))[2] == {"jobs": []}


def test_a_job_that_is_not_found_at_first() -> None:
    with running_simulator(api="v2", start_delay=0, job_hidden=0.5) as shy:
        ident = submit(shy, "true")
        assert shy.v2("GET", f"{JOBS}/{ident}")[0] == 404
        until(lambda: shy.v2("GET", f"{JOBS}/{ident}")[0] == 200, "never found")


def test_environment_output_and_failure(sim: Simulator, here: Path) -> None:
    ident = submit(
        sim,
        'echo "$A $B"; echo no >&2; exit 4',
        workingDirectory=str(here),
        env={"A": "x,y", "B": "1 2"},
        standardOutput="out-%j",
        standardError="err-%j",
    )
    assert ended(sim, ident) == "FAILED"
    assert look(sim, ident)["status"]["exitCode"] == 4
    assert (here / f"out-{ident}").read_text() == "x 1 2\n"
    assert (here / f"err-{ident}").read_text() == "no\n"


# -- the spellings of other releases


def test_before_2_4() -> None:
    with running_simulator(api="v2", v2_version="2.3.0", start_delay=0, ingest_sleep=0.1) as old:
        _, _, told = old.v2("GET", "/status/systems")
        assert all("dataOperation" not in system for system in told["systems"])
        wish = {"source_path": str(old.home), "fileName": "f", "fileSize": 3}
        status, _, made = old.v2("POST", f"{TRANSFER}/upload", body=wish)
        assert status == 201
        assert set(made) == {
            "transferJob", "partsUploadUrls", "completeMultipartUploadUrl", "maxPartSize",
        }  # fmt: skip
        assert isinstance(made["transferJob"]["jobId"], int)
        made["completeUploadUrl"] = made["completeMultipartUploadUrl"]
        assert complete(old, made, b"abc") == 200
        assert ended(old, made["transferJob"]) == "COMPLETED"
        assert (old.home / "f").read_bytes() == b"abc"
        _, _, made = old.v2("POST", f"{TRANSFER}/download", body={"source_path": f"{old.home}/f"})
        assert set(made) == {"transferJob", "downloadUrl"}


def test_2_4_and_2_6() -> None:
    with running_simulator(api="v2", v2_version="2.4.2", start_delay=0) as middle:
        wish = {"path": f"{middle.home}/f", "transfer_directives": {"transfer_method": "s3",
                "file_size": 1}}  # fmt: skip
        _, _, made = middle.v2("POST", f"{TRANSFER}/upload", body=wish)
        assert set(made["transferDirectives"]) == {
            "transfer_method", "parts_upload_urls", "complete_upload_url", "max_part_size",
        }  # fmt: skip
        job = {"workingDirectory": str(middle.home), "script": "#!/bin/bash\ntrue\n"}
        assert isinstance(middle.v2("POST", JOBS, body={"job": job})[2]["jobId"], int)
    with running_simulator(api="v2", v2_version="2.6.0") as new:
        _, _, who = new.v2("GET", "/status/cluster/userinfo")
        assert "group" not in who and who["groups"][0]["default"] is True
        _, _, told = new.v2("GET", "/status/systems")
        kinds = {health["serviceType"] for health in told["systems"][0]["servicesHealth"]}
        assert kinds == {"scheduler", "ssh", "filesystem", "external_storage"}


def test_the_announcement_has_the_recorded_form(sim: Simulator) -> None:
    told = sim.v2("GET", "/status/systems")[2]["systems"]
    assert [system["name"] for system in told] == [
        "cluster", "cluster-utf8", "cluster-acct", "cluster-streamer", "cluster-down",
    ]  # fmt: skip
    assert told[1]["dataOperation"]["data_transfer"]["multipart"]["max_part_size"] == 8388608
    assert "{account}" in told[2]["dataOperation"]["datatransfer_jobs_directives"][-1]
    assert told[0]["fileSystems"][0]["path"] == str(sim.root / "home")
    assert not any(health["healthy"] for health in told[4]["servicesHealth"])
    assert json.dumps(told)
