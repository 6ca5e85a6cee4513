"""pyfirecrest's v2 client, which knows nothing of us, against the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import firecrest
import pytest
from firecrest import v2
from firecrest.v2._sync import Client
from sim_process import Simulator, running_simulator

DEADLINE = 20.0
SYSTEM = "cluster"
T = TypeVar("T")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with running_simulator(
        api="v2", start_delay=0.05, ingest_sleep=0.1, command_limit=1, kill_wait=0.3
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(sim: Simulator) -> v2.Firecrest:
    keys = firecrest.ClientCredentialsAuth(
        sim.info["client_id"], sim.info["client_secret"], sim.info["auth_token_url"]
    )
    made = v2.Firecrest(firecrest_url=sim.v2_url, authorization=keys)
    made.timeout = DEADLINE
    return made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own pauses between two looks grow to 64 s."""

    def short() -> Iterator[float]:
        while True:
            yield 0.02

    monkeypatch.setattr(Client, "sleep_generator", short)


def within(work: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """The library polls without an end of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments, **named).result(DEADLINE)


def test_systems_and_user(client: v2.Firecrest, sim: Simulator) -> None:
    names = [system["name"] for system in within(client.systems)]
    assert names[:2] == ["cluster", "cluster-utf8"]
    assert within(client.userinfo, SYSTEM)["user"]["name"] == sim.user
    assert within(client.server_version) == "2"  # of "2.x.x": it cannot be learned (FACTS §1)
    assert within(client.partitions, SYSTEM)[0]["name"] == "part01"


def test_files(client: v2.Firecrest, sim: Simulator, tmp_path: Path) -> None:
    folder = f"{sim.home}/files"
    within(client.mkdir, SYSTEM, folder)
    (tmp_path / "f").write_bytes(b"hello\n")
    within(client.upload, SYSTEM, str(tmp_path / "f"), folder, "small", blocking=True)
    (entry,) = within(client.list_files, SYSTEM, folder)
    assert (entry["name"], entry["size"], entry["type"]) == ("small", "6", "-")
    path = f"{folder}/small"
    assert within(client.stat, SYSTEM, path)["size"] == 6
    assert within(client.view, SYSTEM, path) == "hello\n"
    assert within(client.head, SYSTEM, path, num_bytes=2)["content"] == "he"
    digest = within(client.checksum, SYSTEM, path)
    assert digest["checksum"].startswith("5891b5b522d5df")
    within(client.chmod, SYSTEM, path, "600")
    assert Path(path).stat().st_mode & 0o777 == 0o600
    within(client.symlink, SYSTEM, path, f"{folder}/link")
    within(client.download, SYSTEM, path, str(tmp_path / "got"), blocking=True)
    assert (tmp_path / "got").read_bytes() == b"hello\n"
    within(client.compress, SYSTEM, folder, f"{sim.home}/files.tgz")
    within(client.rm, SYSTEM, folder)
    within(client.extract, SYSTEM, f"{sim.home}/files.tgz", str(sim.home))
    assert Path(path).read_bytes() == b"hello\n"
    with pytest.raises(firecrest.FirecrestException):
        within(client.stat, SYSTEM, f"{folder}/none")


def test_staged_both_ways(client: v2.Firecrest, sim: Simulator, tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192  # 2 MiB: more than it sends directly
    (tmp_path / "big").write_bytes(content)
    within(client.upload, SYSTEM, str(tmp_path / "big"), str(sim.home), "big", blocking=True)
    assert (sim.home / "big").read_bytes() == content
    within(client.download, SYSTEM, f"{sim.home}/big", str(tmp_path / "back"), blocking=True)
    assert (tmp_path / "back").read_bytes() == content


def test_a_missing_folder_reads_as_success(
    client: v2.Firecrest, sim: Simulator, tmp_path: Path
) -> None:
    """The trap of FACTS §7, into which this client steps."""
    (tmp_path / "big").write_bytes(b"x" * (2 << 20))
    missing = f"{sim.home}/missing"
    within(client.upload, SYSTEM, str(tmp_path / "big"), missing, "big", blocking=True)
    assert not Path(missing).exists()


def test_jobs_that_move(client: v2.Firecrest, sim: Simulator, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"moved\n")
    within(client.upload, SYSTEM, str(tmp_path / "f"), str(sim.home), "m1", blocking=True)
    within(client.mv, SYSTEM, f"{sim.home}/m1", f"{sim.home}/m2", blocking=True)
    within(client.cp, SYSTEM, f"{sim.home}/m2", f"{sim.home}/m3", blocking=True)
    within(client.rm, SYSTEM, f"{sim.home}/m2", blocking=True)
    assert sorted(path.name for path in sim.home.glob("m?")) == ["m3"]
    assert (sim.home / "m3").read_bytes() == b"moved\n"
    with pytest.raises(Exception, match=r"(?i)transfer|job"):
        within(client.mv, SYSTEM, f"{sim.home}/none", f"{sim.home}/m4", blocking=True)


def test_submit_poll_and_cancel(client: v2.Firecrest, sim: Simulator) -> None:
    script = "#!/bin/bash\n#SBATCH --job-name=quick\necho hi $WHO\n"
    home = str(sim.home)
    made = within(client.submit, SYSTEM, home, script_str=script, env_vars={"WHO": "you"})
    within(client.wait_for_job, SYSTEM, made["jobId"])
    (job,) = within(client.job_info, SYSTEM, made["jobId"])
    assert (job["status"]["state"], job["name"]) == ("COMPLETED", "sbatch")
    (data,) = within(client.job_metadata, SYSTEM, made["jobId"])
    assert Path(data["standardOutput"]).read_text() == "hi you\n"
    long = within(client.submit, SYSTEM, home, script_str="#!/bin/bash\nsleep 600\n")
    within(client.cancel_job, SYSTEM, long["jobId"])
    within(client.wait_for_job, SYSTEM, long["jobId"])
    (job,) = within(client.job_info, SYSTEM, long["jobId"])
    assert job["status"]["state"].startswith("CANCELLED")
    assert len(within(client.job_info, SYSTEM)) >= 2
    with pytest.raises(firecrest.FirecrestException, match="does not look like a batch script"):
        within(client.submit, SYSTEM, home, script_str="echo no shebang\n")
