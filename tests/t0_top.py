"""`f7tfs top`: rates, order and room, from what the status says."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from f7tfs.cli.mounts import Dead, Mount, Status
from f7tfs.cli.top import Meter, screen, transfers_of

MIB = 1 << 20
MOUNT = Mount("/mnt/daint", "daint:/scratch/me", "fuse.f7tfs")


def status(
    downloads: dict[str, int] | None = None,
    uploads: list[dict[str, Any]] | None = None,
    calls: int = 0,
) -> Status:
    """`downloads`: bytes that are here, by path, of 100 MiB each."""
    flights = [
        {"path": path, "state": "downloading", "size": 100 * MIB, "done": done}
        for path, done in (downloads or {}).items()
    ]
    items = [{"junk": False, "error": None, "sent": 0, "size": 1, **one} for one in uploads or []]
    pending = sum(one["state"] in {"pending", "uploading"} for one in items)
    return {
        "mount": {"remote_path": "/scratch/me"},
        "online": True,
        "transfers": flights,
        "uploads": {"pending": pending, "stuck": 0, "items": items},
        "removals": {"pending": 0, "items": []},
        "cache": {"bytes": 0, "limit": 20 * 1024 * MIB},
        "api": {"total": calls},
    }


def test_a_rename_that_waits_for_its_job_is_shown() -> None:
    said = status()
    said["renames"] = [{"name": "a", "to": "b", "job": "17", "since": 0.0}]
    (row,) = [line for line in shown(said, Meter()) if "a → b" in line]
    assert row.split()[-4:] == ["→", "b", "(job", "17)"]


def shown(said: Any, meter: Meter, height: int | None = None) -> list[str]:
    out = Console(width=200, record=True, file=io.StringIO())
    out.print(screen(MOUNT, said, meter, height=height))
    return [line.rstrip() for line in out.export_text().splitlines()]


def test_rates_are_those_of_the_last_looks() -> None:
    meter = Meter()
    for second in range(20):  # 1 MiB in each second, then 3
        done = second * MIB if second < 10 else (3 * second - 20) * MIB
        meter.note(float(second), status({"/scratch/me/a": done}, calls=2 * second))
    lines = shown(status({"/scratch/me/a": 37 * MIB}, calls=38), meter)
    assert "down 3.0 MiB/s   up 0 B/s   API 120 calls a minute, 38 in all" in lines
    (row,) = [line for line in lines if line.endswith("  a")]
    assert row.split() == [
        "↓",
        "downloading",
        "100.0",
        "MiB",
        "37",
        "%",
        "3.0",
        "MiB/s",
        "21",
        "s",
        "a",
    ]


def test_what_begins_ends_or_begins_anew_makes_no_rate() -> None:
    meter = Meter()
    meter.note(0.0, status({"/scratch/me/ends": 50 * MIB, "/scratch/me/anew": 90 * MIB}))
    meter.note(1.0, status({"/scratch/me/anew": 0, "/scratch/me/begins": 40 * MIB}))
    assert meter.rate(meter.known) == 0
    meter.note(2.0, status({"/scratch/me/anew": 2 * MIB, "/scratch/me/begins": 40 * MIB}))
    assert meter.rate(meter.known) == MIB


def test_one_look_is_no_rate() -> None:
    meter = Meter()
    assert (meter.rate(["x"]), meter.calls()) == (0.0, 0.0)
    meter.note(5.0, status(calls=7))
    assert (meter.rate(["x"]), meter.calls()) == (0.0, 0.0)


def test_what_is_under_way_stands_first_and_what_waits_says_why() -> None:
    uploads = [
        {"name": "later", "state": "pending", "awaited_by": ["run.sh"]},
        {"name": "odd\nname", "state": "stuck", "error": "upload: /x: Permission denied"},
        {"name": "now", "state": "uploading", "sent": 1},
        {"name": ".x.swp", "state": "held", "junk": True},
    ]
    said = status({"/scratch/me/dir/in": 0}, uploads)
    assert [one.name for one in transfers_of(said)] == ["dir/in", "now", "odd\nname", "later"]
    lines = shown(said, Meter())
    assert any(line.endswith(r"odd\nname  (Permission denied)") for line in lines)
    assert any(line.endswith("later  (run.sh waits for it)") for line in lines)


def test_no_more_lines_than_there_is_room() -> None:
    uploads = [{"name": f"file-{n:03}", "state": "pending"} for n in range(100)]
    lines = shown(status(uploads=uploads), Meter(), height=24)
    assert len(lines) <= 23
    kept = sum("file-" in line for line in lines)
    assert lines[-1] == f"… and {100 - kept} more"


def test_nothing_and_nobody() -> None:
    assert "nothing is under way" in shown(status(), Meter())
    assert shown(Dead("/mnt/daint"), Meter()) == ["/mnt/daint  daint:/scratch/me  daemon gone"]
