"""The simulator against 844 recorded answers of the real server (FirecREST v2, 2.5.7).

Every record is either claimed, then its answer must be equal, or named in UNCLAIMED, with the
reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sim_process import running_simulator
from t0_sim2_compare import compare
from t0_sim2_replay import RECORDS, Replay
from t0_sim2_tree import build, restore

_OUTSIDE = "outside the folder that the simulated cluster lets anybody touch"
UNCLAIMED: dict[str, str] = {
    r"symlink\.linkpath_outside|xfer\.mv\.target_outside_filesystems.*": _OUTSIDE,
    r"xfer\.download\.outside_filesystems": _OUTSIDE,
    r"ls\.root_of_fs|ls\.show_hidden_home_job_logs": "lists more than the recorded one did",
    r"file\.bin": "what file(1) guesses depends on its version",
    r"checksum\.20MiB": "the recorded file's content is not known",
    r"checksum\.sparse1G": "whether 1 GiB is hashed in time is the machine's",
    r"view\.fifo_blocks": "the server races with its own timeout: 408 or 500; here always 408",
    r"chown\.bad_user": "coreutils 9.1 says 'invalid spec', older ones 'invalid user'",
    r"xfer\.streamer\.(download|upload|upload_own_client)(\..*)?": "no streamer in the simulator",
    r"xfer\.streamer\.(upload_existing|download_missing)": "no streamer in the simulator",
    r"stat\.maxsessions_exceeded": "24 requests at once: in t0_sim2_behaviour.py",
    r"xfer\.download\.(HEAD_on_get_url|expired_or_tampered_signature)": (
        "moto allowed it, a real S3 and the simulator answer 403"
    ),
    r"jobs\.get\.srun_steps": "the scheduler knows no steps but the batch",
    r"jobs\.get\.(running|just_cancelled|cancelled_pending)": (
        "sacct lagged: in t0_sim2_behaviour.py"
    ),
    r"jobs\.metadata\.older_than_MinJobAge|pyfirecrest\.job_metadata_old": (
        "after five minutes: in t0_sim2_behaviour.py"
    ),
    r"xfer\.upload\.empty_fileSize0\.(job_final|errorLog)": "root cancelled it after two minutes",
}
NEEDS_ROOT = (
    r"chmod\.not_owner|ls\.top|ls\.utf8_locale\.top|ls\.dir_with_locked_subdir|stat\.rootfile"
    r"|rm\.root_owned_in_own_dir|rm\.dir_with_foreign_nonempty_dir|stat\.chardev|ls\.special"
)
"""They need things that belong to another account than the cluster's user."""
HASTY = re.compile(
    r"checksum\.sparse40G_timeout|download\.(6MiB|sparse1G|sparse40G)|upload\.empty.*"
    r"|jobs\.submit\.(no_script|empty_script)|mkdir\.ok|jobs\.list\..*_ok"
    r"|jobs\.list\.(default_without_pipe_name|time_window_camel_ignored)|pyfirecrest\.job_info_all"
)
"""Played on a simulator whose commands have less than five seconds, and that runs no other job."""


def reason_not_claimed(name: str) -> str | None:
    if os.getuid() != 0 and re.fullmatch(NEEDS_ROOT, name):
        return "needs root to prepare"
    return next((why for names, why in UNCLAIMED.items() if re.fullmatch(names, name)), None)


CLAIMED = [n for n, record in enumerate(RECORDS) if reason_not_claimed(record["name"]) is None]


def jobs_are_done(replay: Replay) -> None:
    for ident in ("84", "86", "87", "88", "89", "90", "91", "92", "96"):
        replay.wait_job(ident)


def job_of_another(replay: Replay) -> None:
    body = {"job": {"workingDirectory": str(replay.sim.home), "script": "#!/bin/bash\nsleep 99\n",
                    "standardOutput": "/dev/null"}}  # fmt: skip
    status, _, made = replay.sim.v2("POST", "/compute/cluster/jobs", body=body, token=replay.other)
    assert status == 201, made
    replay.jobs["100"] = made["jobId"]


def running(ident: str) -> Callable[[Replay], None]:
    return lambda replay: replay.wait_job(ident, frozenset({"RUNNING"}))


def small_file(replay: Replay) -> None:
    """Its upload is not among the records."""
    path = replay.sim.home / "t/py/small"
    path.write_bytes(b"small\n")


def state(word: str) -> Callable[[Replay], None]:
    return lambda replay: replay.sim.system_state("cluster", word)


def some_job(replay: Replay) -> None:
    body = {"job": {"workingDirectory": str(replay.sim.home), "script": "#!/bin/bash\ntrue\n"}}
    status, _, made = replay.sim.v2("POST", "/compute/cluster/jobs", body=body)
    assert status == 201, made
    replay.jobs["1"] = made["jobId"]
    replay.wait_job("1")


BEFORE: dict[str, Callable[[Replay], None]] = {
    "xfer.upload.small": lambda replay: restore(replay.sim),
    "jobs.cancel.running": running("78"),
    "jobs.attach.ok": running("99"),
    "pyfirecrest.mv": small_file,
    "jobs.get.workdir_missing": jobs_are_done,
    "jobs.get.other_users_job": job_of_another,
    "jobs.stdout_via_view": lambda replay: replay.wait_job("77"),
    "ssh_down_unnoticed.stat": state("refused"),
    "ssh_down_unnoticed.recovered": state("up"),
}


@pytest.fixture(scope="module")
def replayed() -> Iterator[dict[int, list[str]]]:
    """All claimed records, played once in the recorded order; what differs, by record number."""
    found: dict[int, list[str]] = {}
    quick = {"api": "v2", "start_delay": 0, "slots": 40, "kill_wait": 0.2}
    with (
        running_simulator(ingest_sleep=0.1, **quick) as sim,
        running_simulator(command_limit=0.7, **quick) as hasty,
    ):
        build(sim)
        build(hasty, many=False)
        restore(hasty)
        main, other = Replay(sim, BEFORE), Replay(hasty, {})
        some_job(other)
        for number in CLAIMED:
            record = RECORDS[number]
            both = record["name"] == "mkdir.ok"
            replays = [other if HASTY.fullmatch(record["name"]) else main]
            if both:
                replays = [main, other]
            found[number] = []
            for replay in replays:
                try:
                    found[number] += compare(replay, record, replay.play(record))
                except Exception as error:
                    found[number].append(repr(error))
        yield found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", CLAIMED, ids=lambda n: f"{n}-{RECORDS[n]['name'][:60]}")
def test_record(replayed: dict[int, list[str]], number: int) -> None:
    assert not replayed[number], "\n".join(replayed[number])


def test_nothing_is_skipped_silently() -> None:
    """Each reason is in use, each name is claimed or reasoned, and most are claimed."""
    names = [record["name"] for record in RECORDS]
    for pattern in (*UNCLAIMED, *NEEDS_ROOT.split("|")):
        assert any(re.fullmatch(pattern, name) for name in names), f"{pattern} matches nothing"
    left = [name for name in names if reason_not_claimed(name) is not None]
    assert len(CLAIMED) + len(left) == len(RECORDS) == 844
    assert len(left) <= 45, left


def test_no_path_of_a_developer_in_the_data() -> None:
    text = (Path(__file__).parent / "data/v2/transcripts.jsonl").read_text()
    assert "/work/" not in text
