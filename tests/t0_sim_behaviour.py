"""What the recordings cannot show: faults, jobs that run, staging that grows, a clean end."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sim_process import Simulator, command, running_simulator
from t0_sim_replay import multipart

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with running_simulator(staging_interval=3600, kill_wait=0.5) as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "sim" in request.fixturenames:
        request.getfixturevalue("sim").clear_faults()


def put(sim: Simulator, name: str, content: bytes) -> str:
    """A file of the cluster's user."""
    path = sim.home / name
    path.write_bytes(content)
    if os.getuid() == 0:
        owner = sim.home.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
    return str(path)


def upload(sim: Simulator, name: str, content: bytes) -> tuple[int, dict[str, str], bytes]:
    file = {"file": {"filename": name, "size": 0}}
    body, kind = multipart({"targetPath": str(sim.home)}, file)
    body = body.replace(b"\r\n\r\n\r\n--", b"\r\n\r\n" + content + b"\r\n--")
    headers = {
        "Authorization": f"Bearer {sim.token()}",
        "X-Machine-Name": "cluster",
        "Content-Type": kind,
    }
    return sim.request("POST", "/utilities/upload", body=body, headers=headers)


def offer(sim: Simulator, target: str, source: str = "f") -> tuple[str, dict[str, Any]]:
    """The id and the form of an external upload."""
    params = {"targetPath": target, "sourcePath": source}
    status, _, body = sim.api("POST", "/storage/xfer-external/upload", params)
    assert status == 201, body
    task = sim.wait_task(body["task_id"], "111")
    return body["task_id"], task["data"]["msg"]["parameters"]


def post_form(sim: Simulator, form: dict[str, Any], content: bytes, **changed: str) -> int:
    file = {"file": {"filename": "f", "size": 0}}
    body, kind = multipart({**form["data"], **changed}, file)
    body = body.replace(b"\r\n\r\n\r\n--sim", b"\r\n\r\n" + content + b"\r\n--sim")
    status, _, _ = sim.request("POST", form["url"], body=body, headers={"Content-Type": kind})
    return status


def stage(sim: Simulator, path: str) -> str:
    status, _, body = sim.api("POST", "/storage/xfer-external/download", {"sourcePath": path})
    assert status == 201, body
    return str(sim.wait_task(body["task_id"], "117")["data"]["url"])


def submit(sim: Simulator, script: str, name: str = "job.sh") -> dict[str, Any]:
    path = put(sim, name, script.encode())
    _, _, body = sim.api("POST", "/compute/jobs/path", {"targetPath": path})
    return sim.wait_task(body["task_id"], "200", "400")


def accounted(sim: Simulator, ident: str, deadline: float = 15.0) -> dict[str, str]:
    """The row of sacct once the job has ended."""
    end = time.monotonic() + deadline
    while True:
        _, _, body = sim.api("GET", "/compute/acct", {"jobs": ident})
        row: dict[str, str] = sim.wait_task(body["task_id"], "200")["data"][0]
        if row["state"] not in {"PENDING", "RUNNING"}:
            return row
        assert time.monotonic() < end, row
        time.sleep(0.02)


def queued(sim: Simulator, ident: str) -> dict[str, Any]:
    _, _, body = sim.api("GET", "/compute/jobs", {"jobs": ident})
    task = sim.wait_task(body["task_id"], "200", "400")
    assert task["status"] == "200", task
    return dict(task["data"])


# -- scripted faults


def test_a_status_is_answered_instead_and_only_as_often_as_asked(sim: Simulator) -> None:
    path = str(sim.home / "faulty")
    action = {"status": 503, "headers": {"Retry-After": "7"}, "body": "later"}
    rule = {"match": "POST /utilities/mkdir", "where": "faulty", "skip": 1, "action": action}
    (ident,) = sim.faults([rule])
    assert sim.api("POST", "/utilities/mkdir", {"targetPath": path})[0] == 201
    status, headers, body = sim.api("POST", "/utilities/mkdir", {"targetPath": path, "p": "1"})
    assert (status, headers["retry-after"], body) == (503, "7", b"later")
    assert sim.api("POST", "/utilities/mkdir", {"targetPath": path, "p": "1"})[0] == 201
    assert sim.fired() == {ident: 1}


@pytest.mark.parametrize(("when", "made"), [("before", False), ("after", True)])
def test_a_dropped_connection(sim: Simulator, when: str, made: bool) -> None:
    name = f"dropped-{when}"
    sim.faults([{"match": "POST /utilities/mkdir", "where": name, "action": {"drop": when}}])
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        sim.api("POST", "/utilities/mkdir", {"targetPath": str(sim.home / name)})
    assert (sim.home / name).is_dir() is made


def test_hang_ends_when_the_rules_are_cleared(sim: Simulator) -> None:
    sim.faults([{"match": "GET /tasks", "action": {"hang": True}}])
    with pytest.raises(TimeoutError):
        sim.request(
            "GET", "/tasks", headers={"Authorization": f"Bearer {sim.token()}"}, timeout=0.3
        )
    assert sim.api("GET", "/tasks")[0] == 200


def test_a_truncated_object(sim: Simulator) -> None:
    link = stage(sim, put(sim, "long.bin", b"x" * 3000000))
    sim.faults([{"match": "object-store GET", "action": {"truncate": 1000}}])
    with pytest.raises(http.client.IncompleteRead) as cut:
        sim.request("GET", link)
    assert len(cut.value.partial) == 1000
    assert len(sim.request("GET", link)[2]) == 3000000


def test_token_faults_and_bad_rules(sim: Simulator) -> None:
    sim.faults([{"match": "token", "action": {"status": 500}}])
    with pytest.raises(RuntimeError, match="500"):
        sim.token()
    with pytest.raises(RuntimeError, match="unknown keys"):
        sim.faults([{"macth": "*", "action": {"status": 500}}])


def test_calls_are_counted_by_endpoint_and_the_log_holds_no_secret(sim: Simulator) -> None:
    sim.reset_calls()
    sim.api("GET", "/tasks/deadbeef")
    sim.api("GET", "/utilities/stat", {"targetPath": str(sim.home)})
    counted = sim.calls()
    assert counted["calls"] == {"GET /tasks/{id}": 1, "GET /utilities/stat": 1}
    assert (counted["total"], counted["tokens"]) == (2, 2)
    assert sim.info["client_secret"] not in str(sim.log())
    assert sim.log(1)[0]["params"] == {"targetPath": str(sim.home)}


# -- utilities


def test_upload_writes_in_place(sim: Simulator) -> None:
    """FACTS §4: the inode, the mode and the links stay."""
    path = put(sim, "place.txt", b"old and long")
    os.chmod(path, 0o640)
    os.link(path, sim.home / "place2.txt")
    before = os.stat(path)
    assert upload(sim, "place.txt", b"new")[0] == 201
    after = os.stat(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, 3)
    assert (sim.home / "place2.txt").read_bytes() == b"new"


def test_nothing_outside_the_root_is_touched(sim: Simulator, tmp_path: Path) -> None:
    """The fence: by the text of a path, by its parent, by a link at its end."""
    outside = sim.root.parent / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    (outside / "kept").write_text("kept")
    (sim.home / "escape").symlink_to(outside)
    for path in (outside, f"{sim.home}/../../../outside", sim.home / "escape/kept"):
        status, headers, _ = sim.api("DELETE", "/utilities/rm", {"targetPath": str(path)})
        assert status == 400
        assert "x-permission-denied" in headers
    sim.api("DELETE", "/utilities/rm", {"targetPath": f"{sim.home}/escape/"})
    assert (outside / "kept").read_text() == "kept"
    assert sim.api("DELETE", "/utilities/rm", {"targetPath": f"{sim.home}/escape"})[0] == 204
    assert (outside / "kept").exists()


def test_a_slow_command_is_ended() -> None:
    with running_simulator(command_limit=0.2) as quick:
        os.mkfifo(quick.home / "pipe")
        os.chmod(quick.home / "pipe", 0o666)
        path = str(quick.home / "pipe")
        status, headers, body = quick.api("GET", "/utilities/checksum", {"targetPath": path})
        assert (status, headers["x-timeout"]) == (400, body["error"])


def test_services_take_one_request_at_a_time() -> None:
    """FACTS §1: two calls to one service queue, two services work side by side."""
    with running_simulator(latency=0.4) as slow:
        token = slow.token()
        one, two = (_clock_two(slow, token, paths) for paths in (("/tasks", "/tasks"), None))
        assert one >= 0.8 > two


def _clock_two(slow: Simulator, token: str, paths: tuple[str, str] | None) -> float:
    begin = time.monotonic()
    connections = []
    for path in paths or ("/tasks", "/status/systems"):
        connection = http.client.HTTPConnection(urlsplit(slow.url).netloc, timeout=20)
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        connections.append(connection)
    for connection in connections:
        assert connection.getresponse().read()
        connection.close()
    return time.monotonic() - begin


# -- a tar is a list of instructions (TAR.md)


def _archive(*members: tuple[str, bytes, str]) -> bytes:
    """Members: name, type, and content or link name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, what in members:
            member = tarfile.TarInfo(name)
            member.type, member.mtime, member.mode = kind, 1000000000, 0o600
            if kind == tarfile.REGTYPE:
                member.size = len(what)
                archive.addfile(member, io.BytesIO(what.encode()))
            else:
                member.linkname = what
                archive.addfile(member)
    return file.getvalue()


def _extract(sim: Simulator, *members: tuple[str, bytes, str]) -> int:
    assert upload(sim, "a.tar.gz", _archive(*members))[0] == 201
    params = {"sourcePath": str(sim.home / "a.tar.gz"), "targetPath": str(sim.home)}
    return sim.api("POST", "/utilities/extract", params)[0]


def test_tar_sets_modes_and_times_and_makes_hard_links(sim: Simulator) -> None:
    assert _extract(sim, ("tar/a&b", tarfile.REGTYPE, "hi")) == 201
    found = (sim.home / "tar/a&b").stat()
    assert (found.st_mode & 0o777, found.st_mtime) == (0o600, 1000000000)
    assert _extract(sim, ("tar/alias", tarfile.LNKTYPE, "tar/a&b")) == 201
    assert (sim.home / "tar/alias").stat().st_ino == found.st_ino


def test_tar_removes_an_empty_directory_and_refuses_a_full_one(sim: Simulator) -> None:
    """The refusal's curly quotes become a 502 (TAR.md)."""
    for name in ("tar2/empty", "tar2/full/inside"):
        sim.api("POST", "/utilities/mkdir", {"targetPath": str(sim.home / name), "p": "1"})
    assert _extract(sim, ("tar2/empty", tarfile.SYMTYPE, "x")) == 201
    assert (sim.home / "tar2/empty").is_symlink()
    assert _extract(sim, ("tar2/full", tarfile.SYMTYPE, "x")) == 502
    assert (sim.home / "tar2/full/inside").is_dir()
    assert (
        _extract(
            sim,
            ("tar2/one", tarfile.REGTYPE, "1"),
            ("tar2/full", tarfile.REGTYPE, "2"),
            ("tar2/three", tarfile.REGTYPE, "3"),
        )
        == 400
    )
    assert (sim.home / "tar2/one").exists()
    assert (sim.home / "tar2/three").exists()


# -- the staging area


def test_upload_arrives_at_a_sweep_and_not_before(sim: Simulator) -> None:
    ident, form = offer(sim, str(sim.home / "staged"))
    sim.sweep()
    assert sim.states(ident)[-1]["status"] == "111"
    assert post_form(sim, form, b"content") == 204
    assert sim.states(ident)[-1]["status"] == "111"
    sim.sweep()
    assert [state["status"] for state in sim.states(ident)][2:] == ["111", "112", "113", "114"]
    assert (sim.home / "staged").read_bytes() == b"content"


def test_an_interval_does_it_as_well() -> None:
    with running_simulator(staging_interval=0.05) as quick:
        ident, form = offer(quick, str(quick.home / "staged"))
        assert post_form(quick, form, b"content") == 204
        quick.wait_task(ident, "114")


def test_the_form_is_checked(sim: Simulator) -> None:
    """As a real S3 does: signature, key, and nothing that the policy does not name."""
    _, form = offer(sim, str(sim.home / "checked"))
    assert post_form(sim, form, b"x", **{"x-amz-signature": "0" * 64}) == 403
    assert post_form(sim, form, b"x", key="elsewhere/f") == 403
    assert post_form(sim, form, b"x", acl="public-read") == 403
    body, kind = multipart(form["data"], {})
    status, _, _ = sim.request("POST", form["url"], body=body, headers={"Content-Type": kind})
    assert status == 400


def test_links_are_checked_and_are_snapshots(sim: Simulator) -> None:
    path = put(sim, "snap", b"before")
    link = stage(sim, path)
    Path(path).write_bytes(b"after!")
    status, headers, content = sim.request("GET", link)
    assert (status, content) == (200, b"before")
    assert sim.request("GET", link)[1]["etag"] == headers["etag"]
    assert stage(sim, path) != link
    assert sim.request("HEAD", link)[0] == 403
    assert sim.request("GET", link[:-1] + ("0" if link[-1] != "0" else "1"))[0] == 403
    assert sim.request("GET", link.partition("?")[0])[0] == 403
    for wanted, status, data in (
        ("bytes=2-3", 206, b"fo"), ("bytes=4-", 206, b"re"), ("bytes=-2", 206, b"re"),
        ("bytes=0-99", 206, b"before"),
    ):  # fmt: skip
        assert sim.request("GET", link, headers={"Range": wanted})[::2] == (status, data)
    assert sim.request("GET", link, headers={"Range": "bytes=6-"})[0] == 416


def test_links_expire_and_old_versions_give_them_bare() -> None:
    with running_simulator(object_store_expiry=0.2, server_version="1.13.0") as old:
        path = put(old, "f", b"x")
        _, _, body = old.api("POST", "/storage/xfer-external/download", {"sourcePath": path})
        link = old.wait_task(body["task_id"], "117")["data"]
        assert isinstance(link, str)
        end = time.monotonic() + 10
        while (status := old.request("GET", link)[0]) != 403:
            assert status == 200
            assert time.monotonic() < end


def test_links_may_lead_to_another_server(tmp_path: Path) -> None:
    """What that server is to serve lies where the link's path says."""
    elsewhere, state = "http://127.0.0.1:9", tmp_path / "state"
    with running_simulator(link_origin=elsewhere, state=state) as sim:
        link = stage(sim, put(sim, "file", b"content"))
        assert link.startswith(f"{elsewhere}/s3/{sim.user}/")
        path = urlsplit(link).path.removeprefix("/s3/")
        assert (state / "served" / path).read_bytes() == b"content"
        _, form = offer(sim, str(sim.home / "upload"))
        assert post_form(sim, form, b"x") == 204  # these stay here
        sim.sweep()
        assert [f.name for f in (state / "served").rglob("*") if f.is_file()] == ["file"]


def test_forms_may_lead_to_another_server() -> None:
    """For measuring: it tells what arrived there, and the sweep takes that for an object."""
    elsewhere = "http://127.0.0.1:9"
    with running_simulator(form_origin=elsewhere) as sim:
        ident, form = offer(sim, str(sim.home / "upload"))
        assert form["url"] == f"{elsewhere}/s3/{sim.user}"
        sim.arrived(sim.user, form["data"]["key"], 1234)
        sim.sweep()
        sim.wait_task(ident, "114")
        assert (sim.home / "upload").read_bytes() == bytes(1234)


def test_staging_is_held(sim: Simulator) -> None:
    path = put(sim, "held", b"x")
    sim.hold_staging(True)
    began = time.time()
    _, _, body = sim.api("POST", "/storage/xfer-external/download", {"sourcePath": path})
    ident = body["task_id"]
    sim.wait_task(ident, "116")
    assert [state["status"] for state in sim.states(ident)] == ["100", "116"]
    sim.hold_staging(False)
    sim.wait_task(ident, "117")
    assert began < sim.staged_at(ident) <= time.time()


def test_an_object_is_gone_after_114(sim: Simulator) -> None:
    ident, form = offer(sim, str(sim.home / "once"))
    post_form(sim, form, b"x")
    _, _, body = sim.api("GET", "/tasks", {"tasks": ident})
    link = body["tasks"][ident]["data"]["msg"]["download_url"]
    assert sim.request("GET", link)[0] == 200
    sim.sweep()
    status, _, text = sim.request("GET", link)
    assert status == 404
    assert b"NoSuchKey" in text


def test_a_form_that_breaks_off_leaves_no_object(sim: Simulator) -> None:
    ident, form = offer(sim, str(sim.home / "broken"))
    body, kind = multipart(form["data"], {"file": {"filename": "f", "size": 100000}})
    connection = http.client.HTTPConnection(urlsplit(form["url"]).netloc, timeout=10)
    connection.putrequest("POST", urlsplit(form["url"]).path)
    connection.putheader("Content-Type", kind)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:60000])
    connection.close()
    sim.sweep()
    assert sim.states(ident)[-1]["status"] == "111"


# -- jobs


def test_a_job_runs_with_its_directives(sim: Simulator) -> None:
    (sim.home / "elsewhere").mkdir()
    (sim.home / "elsewhere").chmod(0o777)
    script = (
        "#!/bin/bash\n#SBATCH --job-name=named --output=%x-%j.log\n"
        f"#SBATCH -D {sim.home}/elsewhere\n#SBATCH --time=00:10:00\n"
        "echo $SLURM_JOB_NAME $PWD; echo bad >&2; exit 3\n#SBATCH --error=ignored\n"
    )
    data = submit(sim, script)["data"]
    row = accounted(sim, data["jobid"])
    assert (row["state"], row["exit_code"], row["name"]) == ("FAILED", "3:0", "named")
    log = sim.home / f"elsewhere/named-{data['jobid']}.log"
    assert data["job_file_out"] == data["job_file_err"] == str(log)
    assert log.read_text() == f"named {sim.home}/elsewhere\nbad\n"
    assert queued(sim, data["jobid"]) == {}


def test_an_old_queue_forgets() -> None:
    with running_simulator(min_job_age=0, slots=1) as forgetful:
        ident = submit(forgetful, "#!/bin/sh\ntrue\n")["data"]["jobid"]
        accounted(forgetful, ident)
        _, _, body = forgetful.api("GET", "/compute/jobs", {"jobs": ident})
        task = forgetful.wait_task(body["task_id"], "200", "400")
        assert task["data"] == "slurm_load_jobs error: Invalid job id specified"


def test_slots_time_limit_and_cancel() -> None:
    with running_simulator(slots=1, kill_wait=0.3) as small:
        first = submit(small, "#!/bin/sh\n#SBATCH --time=0:01\nsleep 600\n")["data"]["jobid"]
        second = submit(small, "#!/bin/bash\ntrap '' TERM\nsleep 600 & wait\n")["data"]["jobid"]
        row = queued(small, second)["0"]
        assert (row["state"], row["nodelist"], row["time"]) == ("PENDING", "(Resources)", "N/A")
        assert accounted(small, first)["state"] == "TIMEOUT"
        assert "DUE TO TIME LIMIT" in (small.home / f"slurm-{first}.out").read_text()
        end = time.monotonic() + 10
        while queued(small, second)["0"]["state"] != "RUNNING":
            assert time.monotonic() < end
        _, _, body = small.api("DELETE", f"/compute/jobs/{second}")
        text = f"scancel: Terminating job {second}"
        assert small.wait_task(body["task_id"], "200")["data"] == text
        assert accounted(small, second)["state"].startswith("CANCELLED by ")
        third = submit(small, "#!/bin/sh\ntrue\n")["data"]["jobid"]  # the slot is free again
        assert accounted(small, third)["state"] == "COMPLETED"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo hi\n", "This does not look like a batch script."),
        ("#!/bin/sh\r\necho hi\r\n", r"Batch script contains DOS line breaks (\r\n)"),
        ("#!/bin/sh\n#SBATCH -p no\n", "invalid partition specified: no"),
        ("#!/bin/sh\n#SBATCH --time=soon\n", "Invalid --time specification"),
    ],
)
def test_refusals(sim: Simulator, script: str, words: str) -> None:
    task = submit(sim, script)
    assert task["status"] == "400"
    assert f"sbatch: error: {words}" in task["data"]


def test_an_internal_transfer_hides_its_failure(sim: Simulator) -> None:
    """FACTS §8: COMPLETED 0:0, and the truth in the job's stderr."""
    params = {"sourcePath": str(sim.home / "nope"), "targetPath": str(sim.home / "f9")}
    _, _, body = sim.api("POST", "/storage/xfer-internal/cp", params)
    data = sim.wait_task(body["task_id"], "200")["data"]
    row = accounted(sim, data["jobid"])
    assert (row["state"], row["exit_code"], row["partition"]) == ("COMPLETED", "0:0", "xfer")
    errors = Path(data["job_file_err"]).read_text()
    assert f"/cp: cannot stat '{sim.home}/nope': No such file or directory\n" in errors
    assert "srun: error: localhost: task 0: Exited with exit code 1\n" in errors
    lines = Path(data["job_file_out"]).read_text().splitlines()
    assert lines[0] == "Trace ID:"
    assert lines[1].startswith("cp-job started on ")
    assert lines[2].startswith("cp-job finished on ")


def test_an_internal_transfer_works(sim: Simulator) -> None:
    params = {"sourcePath": put(sim, "c1", b"copied"), "targetPath": str(sim.home / "c2")}
    _, _, body = sim.api("POST", "/storage/xfer-internal/cp", params)
    accounted(sim, sim.wait_task(body["task_id"], "200")["data"]["jobid"])
    assert (sim.home / "c2").read_bytes() == b"copied"


# -- the end


def test_the_end_takes_jobs_and_objects_along() -> None:
    with running_simulator() as ending:
        script = "#!/bin/bash\nset -m\nsleep 600 & echo $! > pid\nwait\n"
        submit(ending, script)
        end = time.monotonic() + 10
        while not (text := _read(ending.home / "pid")):
            assert time.monotonic() < end
        stage(ending, put(ending, "f", b"x"))
        # a client that hangs on must not keep it
        idle = http.client.HTTPConnection(urlsplit(ending.url).netloc)
        idle.connect()
        assert ending.stop() == 0
        idle.close()
        end = time.monotonic() + 5
        while _alive(int(text)):
            assert time.monotonic() < end, "a job outlived the simulator"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_start_that_cannot_be_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    argv = command(tmp_path / "it's", user=None)
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("f7tfs.sim: ")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_a_folder_that_nobody_reaches(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    argv = command(tmp_path / "cluster", user="nobody")
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "nobody cannot reach" in ended.stderr


def test_a_missing_package_is_named() -> None:
    code = "import sys; sys.modules['hypercorn'] = None; from f7tfs.sim import SimOptions, serve"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert "ImportError: the simulator needs the package 'hypercorn" in ended.stderr
