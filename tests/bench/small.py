"""Many small files: what it costs until they are verified on the cluster, in API calls."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from t4_bulk import grow

from bench.figures import Figure
from bench.rig import rig


def small_files_row(rounds: int) -> list[Figure]:
    return [_copied(api) for api in ("v1", "v2")]


def _copied(api: str) -> Figure:
    with tempfile.TemporaryDirectory() as folder, rig(api=api) as made:
        source = Path(folder) / "source"
        grow(source, 20, 50)
        with made.mount(writeback_delay=2).start() as mount:
            made.simulator.reset_calls()
            began = time.monotonic()
            mount.run(f"cp -r {source} mnt/copy", timeout=120)
            took = time.monotonic() - began
            mount.sync(deadline=120)
            whole = time.monotonic() - began
            counted = made.simulator.calls()["calls"]
        far = made.directory / "copy"
        assert sum(one.is_file() for one in far.rglob("*")) == 1000
    note = ", ".join(f"{call.split('/')[-1]} {number}" for call, number in counted.items())
    return Figure(
        f"API calls, {api}, mkdirs included",
        sum(counted.values()),
        80,
        note=f"cp {took:.1f} s, all there after {whole:.1f} s; {note}",
    )
