"""Drops of ten kinds while replies are lost, gateways fail and the daemon is killed: as many jobs
at the scheduler as there are accepted drops, exactly (SEMANTICS "jobs/", Once).

`F7TFS_DROPS=1000 pytest tests/t5_jobs_faults.py` is the long version.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import place_of
from mounting import Mount
from queues import Queue, drops
from sim_process import running_simulator
from waits import wait_until

pytestmark = pytest.mark.simulator
DROPS = int(os.environ.get("F7TFS_DROPS", "30"))
GOOD = "#!/bin/sh\n#SBATCH --time=1\ntrue\n"
BAD = ("#!/bin/sh\n#SBATCH -p nosuch\ntrue\n", "no shebang\n", "#!/bin/sh\r\ntrue\r\n")
KINDS = {
    "cp": "cp s.sh mnt/jobs/$N",
    "cp -p": "cp -p s.sh mnt/jobs/$N",
    "mv": "cp s.sh t.sh; mv t.sh mnt/jobs/$N",
    "redirection": "cat s.sh > mnt/jobs/$N",
    "two commands": "(head -1 s.sh; tail -n +2 s.sh) > mnt/jobs/$N",
    "tee": "cat s.sh | tee mnt/jobs/$N >/dev/null",
    "dd": "dd if=s.sh of=mnt/jobs/$N bs=7 status=none",
    "rsync": "cp s.sh $N; rsync -a $N mnt/jobs/",
    "gio": "gio copy s.sh mnt/jobs/$N",
    "rename": "cd mnt/jobs; cp ../../s.sh .goutputstream-ABCDEF; mv .goutputstream-ABCDEF $N",
}
FAULTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "lost reply": {"drop": "after"},
    "cut before": {"drop": "before"},
    "500": {"status": 500, "body": "worker died"},
    "502": {"status": 502, "body": "bad gateway"},
    "503": {"status": 503, "body": "away"},
}
WEIGHTS = (60, 14, 8, 6, 6, 6)


@pytest.mark.timeout(120 + 3 * DROPS)
@pytest.mark.parametrize("api", ["v1", "v2"])
def test_exactly_the_accepted_drops_are_jobs(api: str, capsys: Any) -> None:
    rng = random.Random(6)
    with running_simulator(api=api, staging_interval=1, start_delay=0, slots=8) as simulator:
        queue, place = Queue(simulator), place_of(simulator)
        options = {"jobs.poll_interval": 1, "patience": 3, "log_level": "info"}
        with place.mount(place.directory, **options).start() as mount:
            mount.announce(".")
            plan = [_drop(mount, queue, rng, number) for number in range(DROPS)]
            simulator.clear_faults()
            mount.kill()
            mount.start()
            _settle(mount)
            _compare(mount, queue, plan, api, capsys)


def _drop(mount: Mount, queue: Queue, rng: random.Random, number: int) -> tuple[str, str, int]:
    """(name, what was done to it, exit status of the dropping command)"""
    name = f"x{number}.sh"
    kind = list(KINDS)[number % len(KINDS)]
    fault = rng.choices(list(FAULTS), WEIGHTS)[0]
    is_bad = rng.random() < 0.08
    Path(mount.folder / "s.sh").write_text(rng.choice(BAD) if is_bad else GOOD)
    action = FAULTS[fault]
    if action is not None:
        queue.simulator.faults([{"match": queue.post, "action": action}])
    done = mount.run(KINDS[kind], timeout=40, check=False, environment={"N": name})
    if number % 11 == 7:
        mount.kill()
        mount.start()
    queue.simulator.clear_faults()
    return name, f"{kind}, {fault}{', bad' if is_bad else ''}", done.returncode


def _settle(mount: Mount) -> None:
    """Nothing is on its way any more, and what can be found out is found out."""
    wait_until(
        lambda: not {one["state"] for one in drops(mount).values()} & {"held", "sending"},
        "the last submissions", 90,
    )  # fmt: skip

    def unknown() -> set[str]:
        return {name for name, one in drops(mount).items() if one["state"] == "unknown"}

    def were_looked_for() -> bool:
        mount.run("ls mnt/jobs >/dev/null")
        return all((mount.path / "jobs" / f"{name}.status").exists() for name in unknown())

    wait_until(were_looked_for, "the looks", 60)


def _compare(
    mount: Mount, queue: Queue, plan: list[tuple[str, str, int]], api: str, capsys: Any
) -> None:
    told = drops(mount)
    jobs = set(queue.jobs())

    def linked() -> set[str]:
        return {one["id"] for one in drops(mount).values() if one["state"] == "submitted"}

    wait_until(lambda: linked() == jobs, f"{len(jobs)} jobs, {len(linked())} accepted", 60)
    told = drops(mount)
    counts = Counter(told[name]["state"] for name, _, _ in plan if name in told)
    assert sum(counts.values()) == len(plan), [one for one in plan if one[0] not in told]
    for name, done, status in plan:
        state = told[name]["state"]
        if state == "refused":
            assert "bad" in done
            assert mount.call((mount.path / "jobs" / f"{name}.error").read_text).strip()
        elif state == "unknown":
            assert told[name]["error"], (name, done)
            no_job = ("cut", "500", "502", "503", "bad")  # nothing was made, and nobody can know
            assert any(word in done for word in no_job), (name, done)
        else:
            assert state == "submitted", (name, done, state)
        if status != 0:
            assert state == "refused", f"{name} ({done}): close() failed and there is a job"
    with capsys.disabled():
        print(f"\n{api}: {len(plan)} drops: {dict(counts)}; {len(jobs)} jobs at the scheduler")
