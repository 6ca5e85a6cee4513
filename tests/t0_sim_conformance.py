"""The simulator against 818 recorded answers of the real server (FirecREST v1, 1.16.6).

Every record is either claimed, then its answer must be equal, or named in UNCLAIMED, with the
reason.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sim_process import Simulator, running_simulator
from t0_sim_replay import RECORDS, Replay
from t0_sim_tree import big_folder, build, no_wrapper_tree

_OUTSIDE = "outside the folder that the simulated cluster lets anybody touch"
_GROUPS = "the account has no second group to give a file to"
UNCLAIMED: dict[str, str] = {
    r"ls-dev.*|xfer-download-dev-null.*|ls-root|ls-proc-self|stat-device|stat-root": _OUTSIDE,
    r"rename-cross-fs-shm": _OUTSIDE,
    r"ls-70000-files.*": "takes seconds to prepare and proves no more than the 20,000",
    r"ls-relative-dot": "the home holds more than the recorded one did",
    r"chown-group-own-secondary|chown-owner-self": _GROUPS,
    r"file-bin": "what file(1) guesses depends on its version",
    r"staging-HEAD-of-the-GET-link": "moto allowed it, a real S3 and the simulator answer 403",
    r"staging-GET-unknown-key": "moto does not check signatures, the simulator does: 403",
    r"jobs-list-with-array-task-state-200": "the array's elements start at once",
    r"jobs-list-userJobs-false-task-state-200": "it lists left-overs of earlier recordings",
    r"xfer-internal-rsync-job-std(err|out)": "rsync may not be installed",
    r"xfer-internal-cp-not-found-source-job-stderr": "two lines in another order, as srun likes",
}
NEEDS_ROOT = (
    r"chmod-not-owner|rm-root-owned-dir|chown-group-foreign|chown-owner-other"
    r"|ls-all-types|ls-relative-path|ls-dotdot|ls-20000-files.*"
)
"""They need things that belong to another account than the cluster's user."""


def reason_not_claimed(name: str) -> str | None:
    if os.getuid() != 0 and re.fullmatch(NEEDS_ROOT, name):
        return "needs root to prepare"
    return next((why for names, why in UNCLAIMED.items() if re.fullmatch(names, name)), None)


CLAIMED = [n for n, record in enumerate(RECORDS) if reason_not_claimed(record["name"]) is None]


def chmod(name: str, mode: int) -> Callable[[Simulator], None]:
    return lambda sim: (sim.home / name).chmod(mode)


def gone(sim: Simulator) -> None:
    (sim.home / "w/x/gone").rmdir()


def gone_again(sim: Simulator) -> None:
    folder = sim.home / "w/x/gone"
    folder.mkdir()
    owner = sim.home.stat()
    if os.getuid() == 0:
        os.chown(folder, owner.st_uid, owner.st_gid)


def jobs_are_done(sim: Simulator) -> None:
    """Wait until nothing waits or runs but what never ends by itself."""
    end = time.monotonic() + 20
    while True:
        _, _, body = sim.api("GET", "/compute/jobs")
        rows = sim.wait_task(body["task_id"], "200")["data"].values()
        if all(row["nodes"] == "9999" for row in rows):
            return
        assert time.monotonic() < end, rows
        time.sleep(0.02)


def tasks_of_the_other_are_done(sim: Simulator) -> None:
    end = time.monotonic() + 20
    while True:
        _, _, body = sim.api("GET", "/tasks", token=sim.token("firecrest-other"))
        if all(task["status"] != "100" for task in body["tasks"].values()):
            return
        assert time.monotonic() < end, body


BEFORE: dict[str, Callable[[Simulator], None]] = {
    "xfer-upload-ok-1MB-task-state-113": gone,
    "xfer-upload-dir-vanishes-retry-task-state-113": gone_again,
    "xfer-upload-invalidate-115-task-state-113": chmod("w/x/ro2", 0o644),
    "tasks-of-test2": tasks_of_the_other_are_done,
    "job-cancel-array": jobs_are_done,
    "xfer-internal-cp-job-stderr": jobs_are_done,
    "jobs-list-completed-job": jobs_are_done,
    "job-quick-acct-completed": jobs_are_done,
    "job-quick-stdout": jobs_are_done,
    "ls-20000-files": big_folder,
}


@pytest.fixture(scope="module")
def replayed() -> Iterator[dict[int, list[str]]]:
    """All claimed records, played once in the recorded order; what differs, by record number."""
    found: dict[int, list[str]] = {}
    with (
        running_simulator(
            staging_interval=3600, command_limit=2.5, worker_timeout=1.5, slots=4
        ) as sim,
        running_simulator(no_wrapper=True) as plain,
    ):
        build(sim)
        no_wrapper_tree(plain)
        main, other = Replay(sim, BEFORE), Replay(plain, {})
        for number in CLAIMED:
            record = RECORDS[number]
            replay = other if record["name"].startswith("nowrapper") else main
            try:
                found[number] = replay.play(record)
            except Exception as error:
                found[number] = [repr(error)]
        yield found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", CLAIMED, ids=lambda n: f"{n}-{RECORDS[n]['name'][:60]}")
def test_record(replayed: dict[int, list[str]], number: int) -> None:
    assert not replayed[number], "\n".join(replayed[number])


def test_nothing_is_skipped_silently() -> None:
    """Each reason is in use, each name is claimed or reasoned, and most are claimed."""
    names = [record["name"] for record in RECORDS]
    for pattern in UNCLAIMED:
        assert any(re.fullmatch(pattern, name) for name in names), f"{pattern} matches nothing"
    left = [name for name in names if reason_not_claimed(name) is not None]
    assert len(CLAIMED) + len(left) == len(RECORDS) == 818
    assert len(left) <= 40, left


def test_no_path_of_a_developer_in_the_data() -> None:
    text = (Path(__file__).parent / "data/v1/transcripts.jsonl").read_text()
    assert "/work/" not in text
