"""Resident memory while a file is read that is larger than the cache."""

from __future__ import annotations

from bench.figures import Figure
from bench.rig import GiB, MiB, Rig, data_process, peak_memory, rig_with_web_server, seconds


def peaks(made: Rig, size: int, cache_size: int) -> tuple[int, int]:
    """Of the daemon and of the data process, in bytes, after a file was read from end to end."""
    made.file("huge", size)
    with made.mount(cache_size=cache_size).start() as mount:
        dd = ["dd", f"if={mount.path / 'huge'}", "of=/dev/null", "bs=1M"]
        mount.call(seconds, dd, 600.0, deadline=600.0)
        mover = data_process(mount)
        assert mover, "the data process is not there"
        return peak_memory(mount.pid), peak_memory(mover)


def memory_row(rounds: int) -> list[Figure]:
    with rig_with_web_server() as made:
        daemon, mover = peaks(made, 10 * GiB, 2 * GiB)
    note = f"daemon {daemon / MiB:.0f}, data process {mover / MiB:.0f}"
    return [Figure("at most, both processes", (daemon + mover) / MiB, 150, "MiB", note=note)]
