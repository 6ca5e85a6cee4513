"""What reading costs, in counts: bytes that leave the object store, API calls, requests that reach
the daemon. The whole table with its ratios is `./scripts/bench`; these are the same measurements,
smaller."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bench.memory import peaks
from bench.names import calls_of_a_walk, calls_of_sniffing
from bench.ranges import one_block, staged_already
from bench.rig import GiB, KiB, MiB, Rig, read_at
from bench.stuck import CAT, HANDLES_IT, beside_stuck_readers, until_ctrl_c_ends
from bench.warm import asked_by_reread, calls_of_reread_after_remount
from sim_process import Simulator

pytestmark = [pytest.mark.simulator, pytest.mark.v1]


@pytest.fixture
def made(simulator: Simulator, directory: str) -> Rig:
    return Rig(simulator, Path(directory))


def test_one_block_of_a_large_file(made: Rig) -> None:
    """Reading: "a 4 KiB read at offset 900 MiB of a 1 TiB file fetches one block, not the file"."""
    assert one_block(made, GiB, 900 * MiB) <= 8 * MiB


def test_a_link_is_kept_over_a_remount(made: Rig) -> None:
    """Reading: "its link is reused over opens and remounts while the fingerprint holds"."""
    with staged_already(made, 64 * MiB) as (mount, kept, _):
        for _ in range(2):
            kept.restore()
            mount.start()
            source = (made.directory / "large").read_bytes()[5 * MiB : 6 * MiB]
            assert mount.call(read_at, mount.path / "large", 5 * MiB, MiB) == source
            assert mount.umount("--now").returncode == 0


def test_the_daemon_is_not_asked_again(made: Rig) -> None:
    """Reading: "content in the local cache under the same fingerprint → … kernel page cache
    kept"."""
    assert min(asked_by_reread(made, 64 * MiB, 3)) < 64 * KiB


def test_calls_of_a_cached_file_after_a_remount(made: Rig) -> None:
    """Metadata: "One directory listing is one API call, and it answers every lookup, stat, access
    and readdir in it". The first one of a mount takes a stat, to learn the cluster's clock."""
    calls = calls_of_reread_after_remount(made, 16 * MiB)
    assert calls in ({"GET /utilities/ls": 1}, {"GET /utilities/ls": 1, "GET /utilities/stat": 1})


def test_memory_does_not_grow_with_the_file(made: Rig) -> None:
    """Must show: "resident memory while reading a 10 GiB file ≤ 150 MiB"."""
    assert sum(peaks(made, GiB, 256 * MiB)) < 150 * MiB


def test_a_tree_walk(made: Rig) -> None:
    """Metadata: "A tree walk (`find`, `du`, `ls -R`) on v1 is recognised and prefetched"."""
    assert calls_of_a_walk(made, 50, 4) <= 10


@pytest.mark.skipif(shutil.which("gio") is None, reason="there is no gio on this machine")
def test_a_file_manager_stages_nothing(made: Rig) -> None:
    """Sniffers and crawlers: a reader that opened with O_NOATIME "causes neither staging nor a
    download"."""
    listings, stagings, _ = calls_of_sniffing(made, 20, 8 * MiB)
    assert (listings, stagings) == (1, 0)


def test_forty_stuck_readers(made: Rig) -> None:
    """Tenet 2: "One slow file never slows another". The bar itself, 50 ms, is scripts/bench's."""
    stats, reads = beside_stuck_readers(made, 40, 10)
    assert max(stats) < 1
    assert max(reads) < 1


@pytest.mark.parametrize("command", [CAT, HANDLES_IT], ids=["cat", "handler"])
def test_ctrl_c(made: Rig, command: tuple[str, ...]) -> None:
    """Waits: "ends with EINTR as soon as the caller has a signal pending"."""
    assert max(until_ctrl_c_ends(made, 3, command)) < 1.5
