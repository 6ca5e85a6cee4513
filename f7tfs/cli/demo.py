"""`f7tfs demo`: the main job, shown with unmodified tools on a simulated cluster.

Every line that begins with "$" is really run, and every "✓" is really compared: the far side is
read in the simulator's folder, not through the mount.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import click

from f7tfs.cli.exits import Exit, Failure
from f7tfs.cli.stage import DemoFailed, Stage, stage

_STAGING_INTERVAL = 2.0  # seconds; real servers look every 60 s and more
_SIZES = {"small.dat": 3_000, "medium.dat": 4 << 20, "large.dat": 64 << 20}
_TRAIN = """\
#!/bin/bash
#SBATCH --job-name=train
for step in 1 2 3 4 5; do
    echo "step $step of 5"
    sleep 1
done
sha256sum < incoming/medium.dat
echo finished
"""
_FOREVER = """\
#!/bin/bash
#SBATCH --job-name=forever
sleep 1000
"""


@click.command("demo")
@click.option("--api", type=click.Choice(["v1", "v2"]), default="v1", show_default=True)
@click.option(
    "--stay",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[MOUNTPOINT]",
    help="Stay mounted at the end, to play with, until Ctrl-C or `f7tfs umount`.",
)
def command(api: str, stay: str | None) -> None:
    """Mount a simulated cluster and show files and jobs with ordinary tools."""
    if shutil.which("bash") is None:
        raise Failure(Exit.UNSPECIFIED, "the demo needs bash")
    began = time.monotonic()
    with stage(stay or None) as on:
        ready = on.start_cluster(api, _STAGING_INTERVAL)
        home = _furnish(on, ready)
        on.say(f"A simulated cluster serves FirecREST {api} at {ready['firecrest_url']}")
        on.show(f"f7tfs mount {shlex.quote(_remote(ready, home))} mnt", deadline=60)
        on.check(on.is_mounted(), "the mount serves")
        about = json.loads(on.run("cat mnt/.f7tfs/status.json"))["mount"]
        on.check(about["dialect"] == api, f"it found out that the server speaks {api}")
        _look(on)
        _copy_in(on, home)
        _copy_out(on, home)
        _edit(on, home)
        _rename_and_remove(on, home)
        _job(on)
        _cancel(on)
        if stay is not None:
            _stay(on, _remote(ready, home))
        else:
            _unmount(on)
        checks = on.checks
    click.secho(
        f"\nAll held: {checks} checks in {time.monotonic() - began:.0f} s, nothing left behind.",
        bold=True,
    )


def _remote(ready: dict[str, Any], home: Path) -> str:
    return f"{ready['system']}:{home}"


def _furnish(on: Stage, ready: dict[str, Any]) -> Path:
    """What the user already has on the cluster; and local files to copy there."""
    home = Path(ready["scratch"])
    (home / "results" / "run 1").mkdir(parents=True)
    (home / "incoming").mkdir()
    (home / "archive").mkdir()
    (home / "notes.txt").write_text("alpha: to be measured\n")
    (home / "results" / "run 1" / "summary.csv").write_text("step,loss\n1,0.93\n2,0.41\n")
    (on.work / "here").mkdir()
    (on.work / "back").mkdir()
    for name, size in _SIZES.items():
        _fill(home / "results" / name, size)
        _fill(on.work / "here" / name, size)
    (on.work / "here" / "train.sh").write_text(_TRAIN)
    (on.work / "here" / "forever.sh").write_text(_FOREVER)
    return home


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for begin in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - begin)))


def _sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path}: {error.strerror}"


def _look(on: Stage) -> None:
    on.say("Directories")
    listing = on.show("ls -la mnt/")
    on.check(all(name in listing for name in ("results", "notes.txt", "jobs")), "all is listed")
    on.show("ls -l mnt/results")
    tree = on.show("find mnt/results")
    on.check("mnt/results/run 1/summary.csv" in tree, "a name with a space is found")


def _copy_in(on: Stage, home: Path) -> None:
    on.say("Files to the cluster")
    on.show("cp here/*.dat mnt/incoming/")
    on.show("f7tfs sync mnt", deadline=90)
    on.show("sha256sum here/*.dat")
    for name in _SIZES:
        same = _sum(on.work / "here" / name) == _sum(home / "incoming" / name)
        on.check(same, f"{name}: the cluster has the same sha256")


def _copy_out(on: Stage, home: Path) -> None:
    on.say("Files from the cluster")
    on.show("cat 'mnt/results/run 1/summary.csv'")
    on.show("cp mnt/results/*.dat back/", deadline=90)
    on.show("sha256sum back/*.dat")
    for name in _SIZES:
        same = _sum(home / "results" / name) == _sum(on.work / "back" / name)
        on.check(same, f"{name}: the copy has the sha256 of the cluster's file")


def _edit(on: Stage, home: Path) -> None:
    on.say("Editing in place")
    notes = home / "notes.txt"
    on.show("sed -i 's/alpha/beta/' mnt/notes.txt")
    on.show("cat mnt/notes.txt")
    on.show("f7tfs sync mnt", deadline=60)
    on.check(notes.read_text() == "beta: to be measured\n", "the cluster has what sed wrote")
    editor = _editor()
    if editor is None:
        click.echo("  (skipped: neither vim nor ex is installed)")
        return
    on.show(editor)
    on.show("f7tfs sync mnt", deadline=60)
    on.check(notes.read_text() == "beta: measured, 42\n", "the cluster has what the editor saved")


def _editor() -> str | None:
    for vim in ("vim", "vim.tiny", "vim.basic", "nvim"):
        if shutil.which(vim):
            return f"{vim} -u NONE -es -c 's/to be measured/measured, 42/' -c wq mnt/notes.txt"
    if shutil.which("ex"):
        return r"printf 's/to be measured/measured, 42/\nwq\n' | ex -s mnt/notes.txt"
    return None


def _rename_and_remove(on: Stage, home: Path) -> None:
    on.say("Renaming and removing")
    on.show("mkdir mnt/archive/2026 && mv mnt/notes.txt mnt/archive/2026/")
    on.show("rm mnt/incoming/small.dat")
    on.show("f7tfs sync mnt")
    on.check(
        (home / "archive/2026/notes.txt").is_file() and not (home / "notes.txt").exists(),
        "the cluster renamed the file",
    )
    on.check(not (home / "incoming" / "small.dat").exists(), "the cluster removed the file")
    on.check((home / "incoming" / "medium.dat").exists(), "and nothing else")


# Jobs.


def _submit(on: Stage, name: str) -> str:
    """Drop a script; returns the number of its job."""
    before = _numbers(on)
    on.show(f"cp here/{name} mnt/jobs/")
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if new := _numbers(on) - before:
            on.check(len(new) == 1, f"one job was submitted: {', '.join(new)}")
            return new.pop()
        time.sleep(0.3)
    raise DemoFailed(f"mnt/jobs/ shows no job for {name}")


def _numbers(on: Stage) -> set[str]:
    return {name for name in on.run("ls mnt/jobs").split() if name.isdecimal()}


def _state(on: Stage, job: str) -> str:
    status = on.run(f"cat mnt/jobs/{job}/status", exits=None)
    match = re.search(r"^state:\s*(\w+)", status, re.MULTILINE | re.IGNORECASE)
    return match[1] if match else ""


def _watch(on: Stage, job: str, wanted: set[str], deadline: float) -> str:
    """Show each new state until one of `wanted`."""
    click.secho(f"$ while sleep 0.3; do grep state: mnt/jobs/{job}/status; done | uniq", fg="cyan")
    end, last = time.monotonic() + deadline, ""
    while time.monotonic() < end:
        state = _state(on, job)
        if state and state != last:
            click.echo(f"  state: {state}")
            last = state
        if state in wanted:
            return state
        time.sleep(0.3)
    said = on.run(f"cat mnt/jobs/{job}/status", exits=None).strip().splitlines()[-1:]
    raise DemoFailed(
        f"job {job} was {last or 'not shown'} after {deadline:.0f} s: {' '.join(said)}"
    )


def _job(on: Stage) -> None:
    on.say("A job: drop the script into jobs/")
    on.show("cat here/train.sh")
    job = _submit(on, "train.sh")
    _watch(on, job, {"RUNNING", "COMPLETED"}, deadline=30)
    on.until(f"cat mnt/jobs/{job}/stdout", "step", deadline=30)
    output = on.follow(f"tail -n +1 -f mnt/jobs/{job}/stdout", "finished", deadline=40)
    on.check("step 5 of 5" in output, "stdout was followed while the job ran")
    on.check(_sum(on.work / "here/medium.dat") in output, "the job read the file that was copied")
    state = _watch(on, job, {"COMPLETED", "FAILED", "CANCELLED"}, deadline=40)
    on.show(f"cat mnt/jobs/{job}/status")
    on.check(state == "COMPLETED", f"job {job} is COMPLETED")


def _cancel(on: Stage) -> None:
    on.say("Another job: cancelled by rm")
    job = _submit(on, "forever.sh")
    _watch(on, job, {"PENDING", "RUNNING"}, deadline=30)
    on.show("rm mnt/jobs/forever.sh")
    state = _watch(on, job, {"COMPLETED", "FAILED", "CANCELLED"}, deadline=40)
    on.check(state == "CANCELLED", f"job {job} is CANCELLED")


# The end.


def _unmount(on: Stage) -> None:
    on.say("The end")
    on.show("f7tfs status mnt")
    on.show("f7tfs umount mnt", deadline=150)
    on.check(not on.is_mounted(), "unmounted")
    on.check(not os.listdir(on.mountpoint), "the mountpoint is an empty directory again")


def _stay(on: Stage, remote: str) -> None:
    click.secho(f"\n{remote} is mounted at {on.mountpoint}", bold=True)
    click.echo("Its far side is the folder above. Ctrl-C here, or f7tfs umount, ends it.")
    try:
        while on.is_mounted():
            time.sleep(0.5)
    except KeyboardInterrupt:
        click.echo()
