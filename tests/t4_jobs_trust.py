"""jobs/ on real mounts of both dialects: what became of a lost reply, who names and who walks, what
a look costs, and the commands. SEMANTICS "jobs/", docs/decisions/0015."""

from __future__ import annotations

import errno
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, place_of
from mounting import Mount
from queues import Queue, drops
from sim_process import running_simulator
from waits import wait_until

pytestmark = pytest.mark.simulator
LONG = "#!/bin/bash\n#SBATCH --job-name=long\necho started\nsleep 300\n"
QUICK = "#!/bin/bash\necho hello\n"
MANY = int(os.environ.get("F7TFS_JOBS", "60"))
"""Jobs in the queue of the test that counts calls; the issue says 500."""


@pytest.fixture(scope="module", params=["v1", "v2"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    options = {"api": request.param, "staging_interval": 1, "ingest_sleep": 2, "kill_wait": 0.3}
    with running_simulator(**options, start_delay=0, slots=8, acct_lag=1.0) as simulator:
        yield place_of(simulator)


@pytest.fixture
def queue(place: Place) -> Iterator[Queue]:
    assert place.simulator is not None
    place.simulator.clear_faults()
    place.simulator.reset_calls()
    yield Queue(place.simulator)
    place.simulator.clear_faults()
    place.simulator.hold_jobs(False)


@pytest.fixture
def mounted(
    place: Place, queue: Queue, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Mount]]:
    """Mounts of a fresh directory with options; what runs at the end is cancelled."""
    name = f"d-{os.urandom(5).hex()}"
    place.far(place.directory).mkdir(name)
    made: list[Mount] = []

    def start(**options: Any) -> Mount:
        words = {"jobs.poll_interval": 0.3, **options}
        mount = place.mount(f"{place.directory}/{name}", **words).start()
        made.append(mount)
        (mount.folder / "long.sh").write_text(LONG)
        (mount.folder / "quick.sh").write_text(QUICK)
        return mount

    yield start
    for mount in made:
        try:
            mount.assert_quiet()
        finally:
            mount.remove()
    for job_id in dict.fromkeys(
        one.partition("_")[0]
        for one, state in queue.jobs().items()
        if state in {"RUNNING", "PENDING"}
    ):
        queue.cancel(job_id)


def job_of(mount: Mount, name: str) -> str:
    return mount.call(os.getxattr, mount.path / "jobs" / name, "user.f7tfs.job_id").decode()


def about(mount: Mount, ident: str) -> dict[str, str]:
    text = mount.call((mount.path / "jobs" / ident / "status.json").read_text)
    return dict(json.loads(text))


def until(mount: Mount, ident: str, *states: str) -> None:
    wait_until(lambda: about(mount, ident)["state"].split()[0] in states, f"{ident}: {states}")


def text_of(mount: Mount, name: str) -> str:
    return mount.call((mount.path / "jobs" / name).read_text)


# Lost replies.


def test_all_unknown_drops_are_looked_for_by_one_call(
    mounted: Callable[..., Mount], queue: Queue
) -> None:
    """Once, and the API is spared: v1's look lists every task of the user (v1 FACTS §5)."""
    mount = mounted(patience=2)
    mount.announce("not known whether")
    simulator = queue.simulator
    simulator.faults([{"match": queue.post, "times": None, "action": {"drop": "before"}}])
    for number in range(12):
        mount.run(f"cp quick.sh mnt/jobs/{number}.sh")
    wait_until(lambda: {one["state"] for one in drops(mount).values()} == {"unknown"}, "unknown")
    simulator.clear_faults()
    mount.kill()
    simulator.reset_calls()
    mount.start()

    def looks() -> list[dict[str, Any]]:
        if queue.dialect == "v1":
            paths, narrowed = {"/tasks"}, "tasks"
        else:
            paths, narrowed = {f"/compute/{simulator.system}/jobs"}, "id"
        return [
            one
            for one in simulator.log(1000)
            if one["method"] == "GET" and one["path"] in paths and narrowed not in one["params"]
        ]

    wait_until(lambda: len(looks()) >= 3, "three looks")
    assert len(looks()) <= 5
    assert {one["state"] for one in drops(mount).values()} == {"unknown"}


def test_a_lost_reply_is_found_out_without_anybody_looking(
    mounted: Callable[..., Mount], queue: Queue
) -> None:
    """Once: "the tag is looked for, also without anybody looking"."""
    mount = mounted()
    mount.announce("not known whether")
    before = set(queue.jobs())
    queue.simulator.faults([{"match": queue.post, "action": {"drop": "after"}}])
    mount.run("cp long.sh mnt/jobs/long.sh")
    wait_until(lambda: drops(mount)["long.sh"]["state"] == "submitted", "the drop to be linked")
    assert {drops(mount)["long.sh"]["id"]} == set(queue.jobs()) - before
    assert queue.posts() == 1


def test_an_unknown_drop_is_no_dead_end(mounted: Callable[..., Mount], queue: Queue) -> None:
    """Once: "state UNKNOWN … Never sent twice"; Cancel: "`rm` of an UNKNOWN drop gives it up"."""
    mount = mounted()
    mount.announce("not known whether", "is cancelled if one turns up")
    before = set(queue.jobs())
    queue.simulator.faults([{"match": queue.post, "action": {"drop": "before"}}])
    mount.run("cp long.sh mnt/jobs/long.sh")
    text = text_of(mount, "long.sh.status")
    assert "state: UNKNOWN" in text
    assert "rm long.sh" in text
    assert "long.sh.status" in mount.call(os.listdir, mount.path / "jobs")
    mount.run("rm mnt/jobs/long.sh")
    assert not set(mount.call(os.listdir, mount.path / "jobs")) & {"long.sh", "long.sh.status"}
    mount.run("cp long.sh mnt/jobs/long.sh")
    assert {job_of(mount, "long.sh")} == set(queue.jobs()) - before
    assert queue.posts() == 2  # the first was cut before it was executed, the second was asked for


def test_a_job_that_turns_up_after_its_drop_was_removed(
    mounted: Callable[..., Mount], queue: Queue
) -> None:
    """Decision 0015: "if a job with its tag turns up within an hour, it is cancelled", also by
    the next daemon."""
    mount = mounted()
    mount.announce("not known whether", "is cancelled if one turns up", "could not be asked")
    before = set(queue.jobs())
    queue.simulator.faults(
        [
            {"match": queue.post, "action": {"drop": "after"}},
            {**queue.look, "times": None, "action": {"status": 500, "body": "{}"}},
        ]
    )
    mount.run("cp long.sh mnt/jobs/long.sh", timeout=40)
    assert drops(mount)["long.sh"]["state"] == "unknown"
    mount.run("rm mnt/jobs/long.sh", timeout=40)
    (job,) = wait_until(lambda: set(queue.jobs()) - before, "the job that nobody was told of")
    assert queue.cancels() == 0
    mount.kill()
    queue.simulator.clear_faults()
    mount.start()
    wait_until(lambda: queue.jobs()[job] == "CANCELLED", "the job to be cancelled", 30)
    assert queue.posts() == 1


def test_candidates_are_shown_and_not_taken(mounted: Callable[..., Mount], queue: Queue) -> None:
    """Once: "a match by owner, name and time never links a job: candidates are shown"."""
    if queue.dialect == "v2":
        pytest.skip("the job's name is the tag there: it always decides")
    mount = mounted()
    mount.announce("not known whether")
    queue.simulator.faults([{"match": queue.post, "action": {"drop": "before"}}])
    mount.run("cp long.sh mnt/jobs/long.sh")
    (theirs,) = queue.submit(LONG)  # the same name, the same user, at the same time
    wait_until(lambda: f"candidate: {theirs} long" in text_of(mount, "long.sh.status"), "it")
    mount.run("rm mnt/jobs/long.sh", check=False)
    mount.announce("is cancelled if one turns up")
    assert about(mount, theirs)["state"] in {"RUNNING", "PENDING"}
    assert queue.cancels() == 0


def test_a_refusal_that_close_could_not_tell(mounted: Callable[..., Mount]) -> None:
    """When: "The script stands in `NAME.error` as well: it is nowhere else"."""
    mount = mounted()
    mount.announce("was refused")
    mount.run("(echo no shebang; /bin/true; echo more) > mnt/jobs/x.sh")
    text = wait_until(lambda: text_of(mount, "x.sh.error"), "the reason")
    assert "#!" in text
    assert "no shebang\nmore\n" in text
    mount.restart()
    assert "no shebang\nmore\n" in text_of(mount, "x.sh.error")  # it is on the disk
    mount.run("rm mnt/jobs/x.sh.error")
    assert "x.sh.error" not in mount.call(os.listdir, mount.path / "jobs")


# Who names, and who walks.


def test_rm_r_of_a_jobs_directory(mounted: Callable[..., Mount], queue: Queue) -> None:
    """Cancel: "`rm -r jobs/4711` cancel the job. Already over = success, without a call"."""
    mount = mounted()
    mount.run("cp long.sh mnt/jobs/long.sh; cp quick.sh mnt/jobs/quick.sh")
    long, quick = job_of(mount, "long.sh"), job_of(mount, "quick.sh")
    until(mount, long, "RUNNING")
    until(mount, quick, "COMPLETED")
    mount.run(f"rm -r mnt/jobs/{long}")
    wait_until(lambda: queue.jobs()[long] == "CANCELLED", "the cancel")
    assert queue.cancels() == 1
    mount.run(f"rm -rf mnt/jobs/{quick}")
    assert queue.cancels() == 1
    for _ in range(2):
        names = set(mount.call(os.listdir, mount.path / "jobs"))
        assert not names & {long, quick}
        assert {"long.sh", "quick.sh"} <= names
        mount.restart()
    mount.run("rm mnt/jobs/long.sh mnt/jobs/quick.sh")
    assert queue.cancels() == 1


def test_a_file_of_a_jobs_directory_alone(mounted: Callable[..., Mount], queue: Queue) -> None:
    """Decision 0015: a plain `rm jobs/4711/status` is EPERM, an rmdir ENOTEMPTY; what was hidden
    without an rmdir shows again."""
    mount = mounted()
    mount.run("cp long.sh mnt/jobs/long.sh")
    ident = job_of(mount, "long.sh")
    until(mount, ident, "RUNNING")
    place = mount.path / "jobs" / ident
    for action, number in ((os.rmdir, errno.ENOTEMPTY), (os.unlink, errno.EPERM)):
        with pytest.raises(OSError) as caught:
            mount.call(action, place if action is os.rmdir else place / "status")
        assert caught.value.errno == number
    mount.run(f"find mnt/jobs/{ident} -mindepth 1 -name status -delete")
    assert "status" not in mount.call(os.listdir, place)
    assert queue.jobs()[ident] in {"RUNNING", "PENDING"}
    wait_until(lambda: "status" in mount.call(os.listdir, place), "it to show again", 20)


WALKS = [
    "rm -rf mnt/*/*",
    "find mnt -name '*.sh' -exec rm {} \\;",
    "find mnt -name '*.sh' -exec rm {} +",
    "find mnt -type f | xargs rm -f",
    "cp /bin/rm rclone; ./rclone -f mnt/jobs/long.sh",
    "python3 -c 'import shutil; shutil.rmtree(\"mnt\", ignore_errors=True)'",
    "mkdir empty; rsync -a --delete empty/ mnt/",
]


@pytest.mark.parametrize("walk", WALKS)
def test_walks(mounted: Callable[..., Mount], queue: Queue, walk: str) -> None:
    """Cancel: "A walk from above … cancels nothing"."""
    mount = mounted()
    mount.announce("EIO")
    mount.run("mkdir mnt/data; echo x > mnt/data/file.sh; cp long.sh mnt/jobs/long.sh")
    ident = job_of(mount, "long.sh")
    until(mount, ident, "RUNNING")
    mount.run(walk, check=False)
    assert queue.cancels() == 0
    assert queue.jobs()[ident] in {"RUNNING", "PENDING"}
    assert {"long.sh", ident} <= set(mount.call(os.listdir, mount.path / "jobs"))


@pytest.mark.parametrize(
    "named",
    ["rm mnt/jobs/*.sh", "cd mnt/jobs && rm long.sh", "gio remove mnt/jobs/long.sh",
     "python3 -c 'import os; os.unlink(\"mnt/jobs/long.sh\")'",
     "python3 -c 'import shutil; shutil.rmtree(\"mnt/jobs/'$JOB'\")'",
     "gio trash mnt/jobs/long.sh && exit 1; rm -r mnt/jobs/$JOB"],
)  # fmt: skip
def test_named(mounted: Callable[..., Mount], queue: Queue, named: str) -> None:
    """Decision 0015: "Everything else names"; `gio trash` is refused, so that managers delete."""
    mount = mounted()
    mount.run("cp long.sh mnt/jobs/long.sh")
    ident = job_of(mount, "long.sh")
    until(mount, ident, "RUNNING")
    mount.run(named, environment={"JOB": ident})
    wait_until(lambda: queue.jobs()[ident] == "CANCELLED", "the cancel")


def test_a_refused_cancel(mounted: Callable[..., Mount], queue: Queue) -> None:
    """Cancel: "A refused cancel is EACCES with the scheduler's words"."""
    mount = mounted()
    mount.run("cp long.sh mnt/jobs/long.sh")
    ident = job_of(mount, "long.sh")
    words = "scancel: error: Kill job error on job id 1: Access/permission denied"
    body = {"errorType": "error", "message": "Unexpected Slurm command response. exit_status:210 "
            f"std_err:{words}\n"}  # fmt: skip
    answer = {"status": 500, "headers": {"Content-Type": "application/json"}}
    if queue.dialect == "v1":
        body = {"description": "no", "error": "User does not have permission to cancel job"}
        answer = {"status": 400, "headers": {"Content-Type": "application/json",
                                             "X-Permission-Denied": "no"}}  # fmt: skip
    match = f"DELETE {queue.post.partition(' ')[2].removesuffix('/upload')}"
    queue.simulator.faults(
        [{"match": match, "times": 2, "action": {**answer, "body": json.dumps(body)}}]
    )
    done = mount.run("rm mnt/jobs/long.sh", check=False)
    assert "Permission denied" in done.stderr
    said = mount.call(os.getxattr, mount.path / "jobs/long.sh", "user.f7tfs.error").decode()
    assert "permission" in said
    done = mount.run(f"rm -r mnt/jobs/{ident}", check=False)
    assert "Permission denied" in done.stderr
    assert about(mount, ident)["state"] in {"RUNNING", "PENDING"}
    mount.run(f"rm -r mnt/jobs/{ident}")


# What drops are submitted with.


def test_defaults_and_who_wins(mounted: Callable[..., Mount], place: Place) -> None:
    """ "From `#SBATCH` lines, else the drop's xattrs, else those set on jobs/, else `[jobs]`"."""
    mount = mounted(**{"jobs.name": "mine", "jobs.partition": "xfer"})
    mount.run("cp quick.sh mnt/jobs/a.sh")
    assert about(mount, job_of(mount, "a.sh"))["name"] == "mine"
    text = text_of(mount, "a.sh")
    assert "#SBATCH --partition=xfer\n" in text
    mount.call(os.setxattr, mount.path / "jobs", "user.f7tfs.partition", b"part01")
    mount.run("cp quick.sh mnt/jobs/b.sh")
    assert "#SBATCH --partition=part01\n" in text_of(mount, "b.sh")
    mount.call(os.setxattr, mount.folder / "quick.sh", "user.f7tfs.name", b"carried")
    mount.run("cp -a quick.sh mnt/jobs/c.sh")
    assert about(mount, job_of(mount, "c.sh"))["name"] == "carried"
    far = place.far(mount.remote_path)
    far.mkdir("sub")
    script = f"#!/bin/sh\n#SBATCH -J own -p part01\n#SBATCH --chdir={mount.remote_path}/sub\npwd\n"
    (mount.folder / "own.sh").write_text(script)
    mount.run("cp own.sh mnt/jobs/own.sh")
    ident = job_of(mount, "own.sh")
    until(mount, ident, "COMPLETED")
    assert text_of(mount, "own.sh") == script
    assert about(mount, ident)["name"] == "own"
    wait_until(lambda: text_of(mount, f"{ident}/stdout") == f"{mount.remote_path}/sub\n", "pwd")
    with pytest.raises(OSError) as caught:
        mount.call(os.setxattr, mount.path / "jobs", "user.f7tfs.account", b"a;b")
    assert caught.value.errno == errno.EINVAL


def test_the_key_that_a_refusal_names(mounted: Callable[..., Mount], queue: Queue) -> None:
    """close(): "with the key to set where an account … is what nobody set"."""
    mount = mounted()
    mount.announce("was refused", "^\\(set")
    words = "sbatch: error: Batch job submission failed: Invalid account"
    if queue.dialect == "v1":
        answer = {"status": 200, "body": json.dumps({"task": {"status": "400", "data": words}})}
        match = "GET /tasks"
    else:
        text = f"Unexpected Slurm command response. exit_status:1 std_err:{words}\n"
        answer = {"status": 500, "body": json.dumps({"errorType": "error", "message": text})}
        match = queue.post
    answer["headers"] = {"Content-Type": "application/json"}
    queue.simulator.faults([{"match": match, "action": answer}])
    done = mount.run("cp quick.sh mnt/jobs/x.sh", check=False)
    assert "Invalid argument" in done.stderr
    assert "set jobs.account" in text_of(mount, "x.sh.error")


def test_arrays(mounted: Callable[..., Mount], queue: Queue) -> None:
    """jobs/: "an array as a whole (status and script), and its elements"."""
    mount = mounted()
    script = "#!/bin/bash\n#SBATCH --array=1-3 -J arr\necho element $SLURM_ARRAY_TASK_ID\n"
    (mount.folder / "arr.sh").write_text(script + "[[ $SLURM_ARRAY_TASK_ID != 2 ]]\n")
    mount.run("cp arr.sh mnt/jobs/arr.sh")
    ident = job_of(mount, "arr.sh")
    until(mount, ident, "FAILED")
    whole = about(mount, ident)
    assert whole["elements"] == "1 FAILED, 2 COMPLETED"
    assert (whole["name"], whole["exit_code"]) == ("arr", "1:0")
    assert set(mount.call(os.listdir, mount.path / "jobs" / ident)) == {
        "status", "status.json", "script",
    }  # fmt: skip
    for n, state in ((1, "COMPLETED"), (2, "FAILED"), (3, "COMPLETED")):
        assert about(mount, f"{ident}_{n}")["state"] == state
        wait_until(lambda n=n: text_of(mount, f"{ident}_{n}/stdout") == f"element {n}\n", "output")
    mount.run(f"rm -r mnt/jobs/{ident}")
    left = mount.call(os.listdir, mount.path / "jobs")
    assert "arr.sh" in left
    assert not [name for name in left if name.startswith(ident)]  # no elements without it


def test_a_job_is_never_shown_going_backwards(mounted: Callable[..., Mount]) -> None:
    """Board: "No job is shown going backwards while the accounting lags"; it has a name all the
    time."""
    mount = mounted()
    mount.run("sed 's/300/3/' long.sh > mnt/jobs/long.sh")
    ident = job_of(mount, "long.sh")
    seen: list[str] = []

    def is_over() -> bool:
        now = about(mount, ident)
        assert now["name"] == "long"
        if now["state"] != (seen or [""])[-1]:
            seen.append(now["state"])
        return now["state"] == "COMPLETED"

    wait_until(is_over, "the end", 30)
    assert seen in (["PENDING", "RUNNING", "COMPLETED"], ["RUNNING", "COMPLETED"])


# What it costs.


def test_what_looking_costs(mounted: Callable[..., Mount], queue: Queue, capsys: Any) -> None:
    """ "500 jobs in the queue: `ls jobs/`, `cat jobs/*/status` cost ≤ 3 API calls (v2; on v1 what
    the dialect makes possible, printed)". F7TFS_JOBS=500 for all of them."""
    queue.simulator.hold_jobs(True)
    theirs = queue.submit("#!/bin/sh\ntrue\n", MANY)
    mount = mounted(**{"jobs.poll_interval": 2})
    queue.simulator.reset_calls()
    began = time.monotonic()
    listed = mount.run("ls mnt/jobs", timeout=60).stdout.split()
    assert set(theirs) <= set(listed)
    text = mount.run("cat mnt/jobs/*/status", timeout=120).stdout
    took = time.monotonic() - began
    assert text.count("PENDING") >= MANY
    calls = {call: n for call, n in queue.simulator.calls()["calls"].items() if "token" not in call}
    with capsys.disabled():
        print(f"\n{queue.dialect}: ls and cat of {MANY} jobs: {took:.1f} s, calls {calls}")
    total = sum(calls.values())
    refreshes = 1 + took // 2
    assert total <= (3 if took < 4 else refreshes) or queue.dialect == "v1"
    assert queue.dialect == "v2" or calls.get("GET /compute/jobs", 0) <= 1 + took // 30
    for job_id in theirs:
        queue.cancel(job_id)


def test_following_costs(mounted: Callable[..., Mount], queue: Queue, capsys: Any) -> None:
    """Follow: `tail -f` shows lines within the poll interval + 1 s (median); nothing is staged;
    once the job is over nothing is asked any more."""
    interval = 1.0
    mount = mounted(**{"jobs.poll_interval": interval})
    lines = 8
    (mount.folder / "talk.sh").write_text(
        f"#!/bin/bash\nfor n in $(seq {lines}); do date +%s.%N; sleep 1.3; done\n"
    )
    mount.run("cp talk.sh mnt/jobs/talk.sh")
    ident = job_of(mount, "talk.sh")
    queue.simulator.reset_calls()
    began = time.monotonic()
    tail = subprocess.Popen(
        ["tail", "-n", "+1", "-f", f"mnt/jobs/{ident}/stdout"], cwd=mount.folder,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    late = []
    try:
        assert tail.stdout is not None
        for _ in range(lines):
            late.append(-float(tail.stdout.readline()) + time.time())
        spent = time.monotonic() - began
        calls = queue.simulator.calls()["calls"]
        until(mount, ident, "COMPLETED")
        wait_until(lambda: _is_quiet(queue, 3.0), "the questions to end", 40)
    finally:
        tail.kill()
        tail.wait()
    total = sum(n for call, n in calls.items() if "token" not in call)
    with capsys.disabled():
        print(
            f"\n{queue.dialect}: tail -f of a job that writes every 1.3 s, interval {interval} s: "
            f"latency median {statistics.median(late):.2f} s, worst {max(late):.2f} s; "
            f"{total * 60 / spent:.0f} API calls a minute {calls}"
        )
    assert statistics.median(late) <= interval + 1.0
    assert not [call for call in calls if "xfer" in call or "transfer" in call]


def _is_quiet(queue: Queue, seconds: float) -> bool:
    before = queue.simulator.calls()["total"]
    time.sleep(seconds)
    return bool(queue.simulator.calls()["total"] == before)


# The commands.


def test_the_commands(mounted: Callable[..., Mount], queue: Queue, tmp_path: Path) -> None:
    """`f7tfs submit --wait`: the exit code is the job's success; jobs and cancel."""
    mount = mounted()
    mount.announce("was refused", "^sbatch: ")
    at = ("--mount", str(mount.path))
    good, bad = tmp_path / "good.sh", tmp_path / "bad.sh"
    good.write_text(QUICK)
    done = mount.f7tfs("submit", str(good), *at, "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    ident = done.stdout.strip()
    assert queue.jobs()[ident] == "COMPLETED"
    bad.write_text("#!/bin/sh\nexit 3\n")
    done = mount.f7tfs("submit", str(bad), *at, "--wait")
    assert done.returncode == 21
    assert "FAILED, exit code 3:0" in done.stderr
    bad.write_text("#!/bin/sh\n#SBATCH -p nosuch\n")
    done = mount.f7tfs("submit", str(bad), *at, "--name", "worse.sh")
    assert done.returncode == 20
    assert "nosuch" in done.stderr
    bad.write_text(LONG)
    done = mount.f7tfs("submit", str(bad), *at)
    long = done.stdout.strip()
    until(mount, long, "RUNNING")
    table = mount.f7tfs("jobs", str(mount.path)).stdout
    assert f"{long}" in table
    assert "RUNNING" in table
    told = json.loads(mount.f7tfs("jobs", str(mount.path), "--json").stdout)
    assert {ident, long} <= {job["id"] for job in told["jobs"]}
    assert mount.f7tfs("cancel", long, *at).returncode == 0
    wait_until(lambda: queue.jobs()[long] == "CANCELLED", "the cancel")
    done = mount.f7tfs("cancel", "999999", "../mnt", *at)
    assert done.returncode != 0
    done = mount.f7tfs("cancel", "999999", *at)
    assert (done.returncode, "no such job" in done.stderr) == (1, True)


def test_ctrl_c_of_a_waiting_submit(mounted: Callable[..., Mount], tmp_path: Path) -> None:
    """`f7tfs submit --wait`: "Ctrl-C ends the waiting, not the job", and it says so."""
    mount = mounted()
    script = tmp_path / "long.sh"
    script.write_text(LONG)
    process = subprocess.Popen(
        [sys.executable, "-m", "f7tfs", "submit", str(script), "--mount", str(mount.path),
         "--wait"],
        env=mount.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    ident = wait_until(lambda: job_of(mount, "long.sh"), "the job")
    until(mount, ident, "RUNNING")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == ident
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"f7tfs cancel {ident}" in complaint
    assert about(mount, ident)["state"] == "RUNNING"


# The barrier.


def test_a_job_finds_its_large_input_whole(
    mounted: Callable[..., Mount], place: Place, capsys: Any
) -> None:
    """Barrier: "a job never starts without its inputs". F7TFS_INPUT_MB=200 for the issue's size."""
    size = int(os.environ.get("F7TFS_INPUT_MB", "12")) << 20
    mount = mounted()
    data = os.urandom(1 << 20) * (size >> 20)
    (mount.folder / "input").write_bytes(data)
    (mount.folder / "use.sh").write_text("#!/bin/sh\nsha256sum input > result\nls | wc -l\n")
    began = time.monotonic()
    mount.run("cp input mnt/input; cp use.sh mnt/jobs/use.sh", timeout=120)
    closed = time.monotonic() - began
    ident = wait_until(lambda: job_of(mount, "use.sh"), "the submission", 300)
    until(mount, ident, "COMPLETED")
    far = place.far(mount.remote_path)
    assert far.sha256("input") in far.read("result").decode()
    with capsys.disabled():
        took = time.monotonic() - began
        print(f"\n{size >> 20} MiB of input: closed after {closed:.1f} s, job over at {took:.1f} s")
