"""jobs/ on a real mount: a drop is one job, once; `rm` of the dropped name cancels it, and nothing
else does."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from mounting import Mount
from sim_process import Simulator
from t3_scenarios import data_of, refused
from waits import wait_until

pytestmark = pytest.mark.simulator
QUICK = "#!/bin/bash\n#SBATCH --job-name=quick\necho hello from $SLURM_JOB_ID\necho trouble >&2\n"
LONG = "#!/bin/bash\n#SBATCH --job-name=long\necho started\nsleep 300\n"


@pytest.fixture
def jobs(mount_with: Callable[..., Mount], simulator: Simulator) -> Any:
    """A mount that looks at the scheduler often. At the end no job of the test runs on."""
    mount = mount_with(**{"jobs.poll_interval": 0.2})
    (mount.folder / "quick.sh").write_text(QUICK)
    (mount.folder / "long.sh").write_text(LONG)
    _before.clear()
    _before.update(accounting(simulator))
    simulator.reset_calls()
    yield mount
    simulator.clear_faults()
    for job in new_jobs(simulator):
        if job["state"] in {"RUNNING", "PENDING"}:
            simulator.api("DELETE", f"/compute/jobs/{job['jobid']}")


_before: set[str] = set()
"""Jobs of earlier tests on the same simulator."""


def accounting(simulator: Simulator) -> dict[str, Any]:
    """Every job that the scheduler ever had, by id."""
    _, _, body = simulator.api("GET", "/compute/acct")
    task = simulator.wait_task(body["task_id"], "200", "400")
    rows = task["data"]
    return {row["jobid"]: row for row in rows} if isinstance(rows, list) else {}


def submissions(simulator: Simulator) -> int:
    return int(simulator.calls()["calls"].get("POST /compute/jobs/upload", 0))


def new_jobs(simulator: Simulator) -> list[dict[str, Any]]:
    """The scheduler's own list of this test's jobs."""
    rows = accounting(simulator)
    return [row for ident, row in rows.items() if ident not in _before]


def job_of(mount: Mount, name: str) -> str:
    return mount.call(os.getxattr, mount.path / "jobs" / name, "user.f7tfs.job_id").decode()


def state(mount: Mount, ident: str) -> str:
    text = mount.call((mount.path / "jobs" / ident / "status.json").read_text)
    return str(json.loads(text)["state"])


def until(mount: Mount, ident: str, *states: str) -> None:
    wait_until(lambda: state(mount, ident) in states, f"job {ident} to be {states}")


DROPS = {
    "cp": "cp quick.sh mnt/jobs/x.sh",
    "cp -p": "cp -p quick.sh mnt/jobs/x.sh",
    "mv": "mv quick.sh mnt/jobs/x.sh",
    "redirection": "cat quick.sh > mnt/jobs/x.sh",
    "two commands": "(head -1 quick.sh; tail -n +2 quick.sh) > mnt/jobs/x.sh",
    "many commands": "(head -1 quick.sh; /bin/true; tail -n +2 quick.sh) >mnt/jobs/x.sh",
    "tee": "cat quick.sh | tee mnt/jobs/x.sh >/dev/null",
    "dd": "dd if=quick.sh of=mnt/jobs/x.sh bs=7 status=none",
    "vim": "vim -u NONE -es quick.sh -c 'w mnt/jobs/x.sh' -c 'q!'",
    "rsync": "cp quick.sh x.sh; rsync -a x.sh mnt/jobs/",
    "gio": "gio copy quick.sh mnt/jobs/x.sh",
    "here-document": "cat > mnt/jobs/x.sh <<'X'\n" + QUICK + "X",
}  # fmt: skip


@pytest.mark.parametrize("how", list(DROPS))
def test_a_drop_is_exactly_one_job(jobs: Mount, simulator: Simulator, how: str) -> None:
    """Drop: "`cp`, `mv`, drag and drop, an editor's save, a shell redirection": submit once."""
    jobs.run(DROPS[how])
    wait_until(lambda: submissions(simulator) == 1, "the submission", 10)
    wait_until(lambda: new_jobs(simulator)[0]["state"] == "COMPLETED", "the job to end")
    ident = job_of(jobs, "x.sh")
    until(jobs, ident, "COMPLETED")
    assert submissions(simulator) == 1
    assert new_jobs(simulator)[0]["jobid"] == ident
    assert QUICK.splitlines()[-1] in jobs.call((jobs.path / "jobs/x.sh").read_text)
    names = jobs.call(os.listdir, jobs.path / "jobs")
    assert {"x.sh", ident} <= set(names)
    assert not [name for name in names if name.endswith(".error")]


def test_a_jobs_directory(jobs: Mount, far: Any) -> None:
    """jobs/: status, status.json, script, stdout and stderr."""
    script = QUICK.replace("--job-name=quick", "--job-name=quick --error=errors.txt")
    (jobs.folder / "two.sh").write_text(script)
    jobs.run("cp two.sh mnt/jobs/two.sh")
    ident = job_of(jobs, "two.sh")
    until(jobs, ident, "COMPLETED")
    place = jobs.path / "jobs" / ident
    assert set(jobs.call(os.listdir, place)) == {
        "status", "status.json", "script", "stdout", "stderr",
    }  # fmt: skip
    wait_until(
        lambda: jobs.call((place / "stdout").read_text) == f"hello from {ident}\n", "the output"
    )
    assert jobs.call((place / "stderr").read_text) == "trouble\n"
    text = jobs.call((place / "status").read_text)
    assert f"id: {ident}" in text
    assert "COMPLETED" in text
    about = json.loads(jobs.call((place / "status.json").read_text))
    assert about["id"] == ident
    assert about["name"] == "quick"
    assert jobs.call((place / "script").read_text).endswith("echo trouble >&2\n")
    for name in ("status", "stdout", "new"):
        refused_for(jobs, {errno.EPERM, errno.EACCES}, os.open, place / name,
                    os.O_WRONLY | os.O_CREAT)  # fmt: skip
    assert "errors.txt" in far.names()  # the working directory is the mount's


def refused_for(mount: Mount, numbers: set[int], *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        mount.call(*arguments)
    assert caught.value.errno in numbers, caught.value


def test_following_the_output(jobs: Mount) -> None:
    """Follow: `tail -f` shows what a running job writes."""
    (jobs.folder / "follow.sh").write_text(
        "#!/bin/bash\nfor n in 1 2 3 4 5 6; do echo line $n; sleep 0.4; done; echo last\n"
    )
    jobs.run("cp follow.sh mnt/jobs/")
    ident = job_of(jobs, "follow.sh")
    until(jobs, ident, "RUNNING", "COMPLETED")
    done = jobs.run(
        f"timeout 15 sh -c 'tail -n +1 -f mnt/jobs/{ident}/stdout | sed /last/q'", check=False
    )
    assert done.stdout.split("\n")[:7] == [f"line {n}" for n in range(1, 7)] + ["last"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no shebang\n", "#!"),
        ("#!/bin/bash\r\necho x\r\n", ""),
        ("#!/bin/bash\n#SBATCH --partition=nosuch\ntrue\n", "partition"),
    ],
    ids=["no shebang", "CRLF", "partition"],
)
def test_refused_scripts(jobs: Mount, simulator: Simulator, script: str, words: str) -> None:
    """close() errors: EINVAL; the reason goes to `NAME.error`."""
    jobs.announce("was refused", "^sbatch: ")
    (jobs.folder / "bad.sh").write_text(script)
    done = jobs.run("cp bad.sh mnt/jobs/bad.sh", check=False)
    assert done.returncode != 0
    assert "Invalid argument" in done.stderr
    reason = jobs.call((jobs.path / "jobs/bad.sh.error").read_text)
    assert words in reason
    assert len(reason) > 10
    assert new_jobs(simulator) == [] or words == "partition"
    assert submissions(simulator) == (1 if words == "partition" else 0)
    assert not jobs.call(os.path.exists, jobs.path / "jobs/bad.sh")
    jobs.run("cp quick.sh mnt/jobs/bad.sh")  # a better one of the same name ends the complaint
    until(jobs, job_of(jobs, "bad.sh"), "COMPLETED")
    assert "bad.sh.error" not in jobs.call(os.listdir, jobs.path / "jobs")


def test_rm_cancels(jobs: Mount, simulator: Simulator) -> None:
    """Cancel: "`rm` of a dropped name cancels its job"."""
    jobs.run("cp long.sh mnt/jobs/long.sh")
    ident = job_of(jobs, "long.sh")
    until(jobs, ident, "RUNNING")
    jobs.run("rm mnt/jobs/long.sh")
    wait_until(lambda: accounting(simulator)[ident]["state"].startswith("CANCELLED"), "the end")
    assert not jobs.call(os.path.exists, jobs.path / "jobs/long.sh")
    wait_until(lambda: state(jobs, ident) == "CANCELLED", "the state")


def test_rm_of_what_is_over(jobs: Mount) -> None:
    """Cancel: "Already over = success"."""
    jobs.run("cp quick.sh mnt/jobs/quick.sh")
    until(jobs, job_of(jobs, "quick.sh"), "COMPLETED")
    jobs.run("rm mnt/jobs/quick.sh")
    assert "quick.sh" not in jobs.call(os.listdir, jobs.path / "jobs")


WALKS = [
    "rm -r mnt/jobs",
    "rm -rf mnt/*",
    "rm -rf mnt/jobs",
    "find mnt/jobs -delete",
    "find mnt -type f -delete",
    "mkdir empty; rsync -r --delete empty/ mnt/jobs/",
    "python3 -c 'import shutil; shutil.rmtree(\"mnt/jobs\", ignore_errors=True)'",
]


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_cancels_nothing(jobs: Mount, simulator: Simulator, walk: str) -> None:
    """Cancel: "A walk from above (`rm -rf mnt/*`, `rsync --delete`) cancels nothing", nor does it
    take the only copy of a script that was refused."""
    jobs.announce("was refused")
    jobs.run("cp long.sh mnt/jobs/long.sh")
    jobs.run("echo no shebang >bad.sh; mv bad.sh mnt/jobs/", check=False)
    ident = job_of(jobs, "long.sh")
    until(jobs, ident, "RUNNING")
    jobs.run(walk, check=False)
    assert "DELETE /compute/jobs/{id}" not in simulator.calls()["calls"]
    assert accounting(simulator)[ident]["state"] == "RUNNING"
    assert state(jobs, ident) == "RUNNING"
    assert jobs.call(os.path.exists, jobs.path / "jobs/long.sh")
    assert b"no shebang" in jobs.call((jobs.path / "jobs/bad.sh.error").read_bytes)


def test_what_jobs_refuses(jobs: Mount, simulator: Simulator) -> None:
    """Cancel, Follow: rmdir jobs, mkdir, symlink, link, rename out: EPERM."""
    jobs.run("cp long.sh mnt/jobs/long.sh; echo x >mnt/file")
    ident = job_of(jobs, "long.sh")
    until(jobs, ident, "RUNNING")
    place = jobs.path / "jobs"
    refused(errno.ENOTEMPTY, jobs.call, os.rmdir, place / ident)
    for action in (
        (os.unlink, place / ident / "status"), (os.rmdir, place),
        (os.mkdir, place / "new"), (os.symlink, "x", place / "link"),
        (os.link, jobs.path / "file", place / "link.sh"), (os.mkdir, place / ".Trash-0"),
        (os.rename, place / "long.sh", jobs.path / "stolen.sh"),
        (os.rename, place / ident, place / "other"), (os.rename, place, jobs.path / "other"),
        (os.mkfifo, place / "fifo"),
    ):  # fmt: skip
        refused_for(jobs, {errno.EPERM, errno.EACCES, errno.EXDEV}, *action)
    refused(errno.EPERM, jobs.call, os.rename, place / "long.sh", jobs.path / "stolen.sh")
    done = jobs.run("mv mnt/jobs/long.sh mnt/stolen.sh", check=False)
    assert done.returncode != 0
    assert state(jobs, ident) == "RUNNING"
    assert accounting(simulator)[ident]["state"] == "RUNNING"
    assert submissions(simulator) == 1


def test_what_never_submits(jobs: Mount, simulator: Simulator) -> None:
    """Drop: "touch, chmod and an unmodified open never submit. Hidden, temporary and backup names
    are never submitted"; chmod and utimens on a dropped name succeed."""
    jobs.run(
        "touch mnt/jobs/empty.sh; : > mnt/jobs/nothing.sh; cp quick.sh mnt/jobs/.hidden.sh;"
        "cp quick.sh mnt/jobs/x.sh~; cp quick.sh mnt/jobs/x.bak; cp quick.sh mnt/jobs/.x.sh.swp"
    )
    assert submissions(simulator) == 0
    jobs.run("cp quick.sh mnt/jobs/x.sh")
    jobs.run(
        "touch mnt/jobs/x.sh; chmod +x mnt/jobs/x.sh; touch -d 2001-01-01 mnt/jobs/x.sh;"
        'cat mnt/jobs/x.sh >/dev/null; python3 -c \'open("mnt/jobs/x.sh", "r+").close()\''
    )
    until(jobs, job_of(jobs, "x.sh"), "COMPLETED")
    assert submissions(simulator) == 1


def test_a_mv_inside_jobs_submits_under_the_last_name(jobs: Mount, simulator: Simulator) -> None:
    """FUSE.md, gio save: a temporary renamed to an ordinary name is one drop."""
    jobs.run("cp quick.sh mnt/jobs/.goutputstream-ABCDEF; "
             "mv mnt/jobs/.goutputstream-ABCDEF mnt/jobs/saved.sh")  # fmt: skip
    until(jobs, job_of(jobs, "saved.sh"), "COMPLETED")
    assert submissions(simulator) == 1


def test_the_same_name_again(jobs: Mount, simulator: Simulator) -> None:
    """Drop: "Dropping the same name again submits again; the name then means the newer job, the
    older stays as its number"."""
    jobs.run("cp quick.sh mnt/jobs/x.sh")
    first = job_of(jobs, "x.sh")
    jobs.run("cp long.sh mnt/jobs/x.sh")
    second = job_of(jobs, "x.sh")
    assert first != second
    assert submissions(simulator) == 2
    assert {first, second, "x.sh"} <= set(jobs.call(os.listdir, jobs.path / "jobs"))
    until(jobs, first, "COMPLETED")
    jobs.run("rm mnt/jobs/x.sh")
    wait_until(lambda: accounting(simulator)[second]["state"].startswith("CANCELLED"), "the end")


def test_the_barrier(jobs: Mount, far: Any, simulator: Simulator) -> None:
    """Barrier: "a job never starts without its inputs"."""
    content = data_of(6_000_000)
    (jobs.folder / "input").write_bytes(content)
    (jobs.folder / "use.sh").write_text("#!/bin/bash\nsha256sum input small > result\n")
    jobs.run("cp input mnt/input; echo small > mnt/small; cp use.sh mnt/jobs/use.sh")
    ident = wait_until(lambda: job_of(jobs, "use.sh"), "the inputs to be there", 30)
    until(jobs, ident, "COMPLETED")
    result = far.read("result").decode()
    assert far.sha256("input") in result
    assert far.sha256("small") in result


def test_a_stuck_input_holds_the_job(jobs: Mount, far: Any, simulator: Simulator) -> None:
    """Barrier: "close returns 0, and the drop shows HELD … A stuck upload holds it and is named";
    a remount goes on waiting; rm of a held drop costs no call."""
    jobs.announce("is stuck", "stay in the journal", "not submitted yet", "EIO: stuck", ": stuck",
                  "files are not there")  # fmt: skip
    far.mkdir("dir")
    jobs.run("ls mnt/dir")
    far.chmod("dir", 0o555)
    jobs.run("echo x > mnt/dir/input", check=False)
    far.chmod("dir", 0o755)
    simulator.faults([{"match": "POST /utilities/upload", "times": None, "action": {
        "status": 400, "body": '{"description": "x", "error": "Disk quota exceeded"}',
        "headers": {"Content-Type": "application/json"}}}])  # fmt: skip
    jobs.run("echo x > mnt/input; cp quick.sh mnt/jobs/held.sh", timeout=30)
    assert submissions(simulator) == 0
    drop = next(d for d in jobs.status()["jobs"]["dropped"] if d["name"] == "held.sh")
    assert drop["state"] == "held"
    wait_until(lambda: "input" in next(
        d for d in jobs.status()["jobs"]["dropped"] if d["name"] == "held.sh")["error"],
        "the reason")  # fmt: skip
    jobs.restart()
    assert submissions(simulator) == 0
    simulator.clear_faults()
    jobs.call((jobs.path / ".f7tfs/retry").write_text, "\n")
    wait_until(lambda: submissions(simulator) == 1, "the submission")
    until(jobs, wait_until(lambda: job_of(jobs, "held.sh"), "the number"), "COMPLETED")


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_lost_reply_of_the_submission(jobs: Mount, simulator: Simulator, how: str) -> None:
    """Once: "Unknown outcome … → close returns 0, state UNKNOWN, reconciled by the tag …. Never
    sent twice"."""
    jobs.announce("not known whether", "not submitted yet")
    simulator.faults([{"match": "POST /compute/jobs/upload", "action": {"drop": how}}])
    jobs.run("cp long.sh mnt/jobs/long.sh")
    if how == "before":
        assert submissions(simulator) == 1
        return
    (job,) = wait_until(lambda: new_jobs(simulator), "the job that nobody was told of")
    jobs.run("ls mnt/jobs")

    def linked() -> bool:
        jobs.call(os.listdir, jobs.path / "jobs")
        drops = jobs.status()["jobs"]["dropped"]
        return drops[0]["state"] == "submitted" and drops[0]["id"] == job["jobid"]

    wait_until(linked, "the drop to be linked to its job")
    assert submissions(simulator) == 1
    jobs.run("rm mnt/jobs/long.sh")
    wait_until(
        lambda: accounting(simulator)[job["jobid"]]["state"].startswith("CANCELLED"), "the end"
    )


@pytest.mark.parametrize("moment", ["before", "after"])
def test_kill_during_the_submission(jobs: Mount, simulator: Simulator, moment: str) -> None:
    """Once: "The record is journaled *before* the call": after kill -9 there is never a second
    job."""
    jobs.announce("not known whether", "not submitted yet")
    match = "POST /compute/jobs/upload" if moment == "before" else "GET /tasks"
    (ident,) = simulator.faults([{"match": match, "times": None, "action": {"hang": True}}])
    fd = jobs.call(os.open, jobs.path / "jobs/long.sh", os.O_WRONLY | os.O_CREAT)
    jobs.call(os.write, fd, LONG.encode())
    closer = threading.Thread(target=lambda: _close(fd), daemon=True)
    closer.start()
    wait_until(lambda: simulator.fired().get(ident), f"the daemon to wait for {match}")
    jobs.kill()
    closer.join(10)
    simulator.clear_faults()
    jobs.start()
    jobs.run("ls mnt/jobs; cat mnt/jobs/long.sh")
    if moment == "after":
        (job,) = wait_until(lambda: new_jobs(simulator), "the job that nobody was told of")

        def linked() -> bool:
            jobs.call(os.listdir, jobs.path / "jobs")
            return bool(jobs.status()["jobs"]["dropped"][0]["id"] == job["jobid"])

        wait_until(linked, "the drop to be linked to its job")
    assert submissions(simulator) == 1


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass


def test_dropped_names_survive_a_remount(jobs: Mount, simulator: Simulator) -> None:
    """Follow: "a dropped name until it is removed"."""
    jobs.run("cp long.sh mnt/jobs/long.sh")
    ident = job_of(jobs, "long.sh")
    jobs.restart()
    assert job_of(jobs, "long.sh") == ident
    assert jobs.call((jobs.path / "jobs/long.sh").read_text).endswith("sleep 300\n")
    jobs.run("rm mnt/jobs/long.sh")
    wait_until(lambda: accounting(simulator)[ident]["state"].startswith("CANCELLED"), "the end")
    assert submissions(simulator) == 1


def test_somebody_elses_submission_is_shown(jobs: Mount, far: Any, simulator: Simulator) -> None:
    """jobs/: "one directory per job of the user, whoever submitted it"."""
    far.write("theirs.sh", LONG.encode(), 0o755)
    _, _, body = simulator.api(
        "POST", "/compute/jobs/path", {"targetPath": f"{far.directory}/theirs.sh"}
    )
    task = simulator.wait_task(body["task_id"], "200")
    ident = str(task["data"]["jobid"])
    wait_until(lambda: ident in jobs.call(os.listdir, jobs.path / "jobs"), "the job to show")
    until(jobs, ident, "RUNNING")
