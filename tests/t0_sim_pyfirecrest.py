"""pyfirecrest, a client that knows nothing of us, against the simulator."""

from __future__ import annotations

import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import firecrest
import pytest
from firecrest import v1
from sim_process import Simulator, running_simulator

DEADLINE = 20.0
MACHINE = "cluster"
T = TypeVar("T")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with running_simulator(staging_interval=0.1, kill_wait=0.3) as running:
        yield running


@pytest.fixture(scope="module")
def client(sim: Simulator) -> v1.Firecrest:
    keys = firecrest.ClientCredentialsAuth(
        sim.info["client_id"], sim.info["client_secret"], sim.info["auth_token_url"]
    )
    made = v1.Firecrest(firecrest_url=sim.url, authorization=keys)
    made.polling_sleep_times = [0.02] * 500
    made.timeout = DEADLINE
    return made


def within(work: Callable[..., T], *arguments: object, **named: object) -> T:
    """The library polls without an end of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments, **named).result(DEADLINE)


def test_parameters_and_systems(client: v1.Firecrest) -> None:
    names = {system["system"] for system in within(client.all_systems)}
    assert names == {"cluster", "cluster2", "downcluster"}
    general = within(client.parameters)["general"]
    assert {"FIRECREST_VERSION": "1.16.6"}.items() <= {
        g["name"]: g["value"] for g in general
    }.items()


def test_files(client: v1.Firecrest, sim: Simulator, tmp_path: Path) -> None:
    folder = f"{sim.home}/files"
    within(client.mkdir, MACHINE, folder)
    within(client.simple_upload, MACHINE, io.BytesIO(b"hello\n"), folder, "ünï.txt")
    (entry,) = within(client.list_files, MACHINE, folder)
    assert (entry["name"], entry["size"], entry["type"]) == ("ünï.txt", "6", "-")
    path = f"{folder}/ünï.txt"
    assert within(client.stat, MACHINE, path)["size"] == 6
    within(client.simple_download, MACHINE, path, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"hello\n"
    within(client.mv, MACHINE, path, f"{folder}/moved")
    assert within(client.head, MACHINE, f"{folder}/moved") == "hello\n"
    within(client.chmod, MACHINE, f"{folder}/moved", "600")
    within(client.symlink, MACHINE, "moved", f"{folder}/link")
    names = [entry["name"] for entry in within(client.list_files, MACHINE, folder)]
    assert names == ["link", "moved"]
    within(client.simple_delete, MACHINE, folder)
    assert not Path(folder).exists()
    assert within(client.whoami, MACHINE) == sim.user


def test_errors_have_the_headers_that_it_knows(client: v1.Firecrest, sim: Simulator) -> None:
    with pytest.raises(firecrest.HeaderException):
        within(client.stat, MACHINE, f"{sim.home}/nope")
    with pytest.raises(firecrest.HeaderException):
        within(client.list_files, "nosuch", str(sim.home))


@pytest.mark.skipif(shutil.which("curl") is None, reason="pyfirecrest runs the server's curl line")
def test_external_upload(client: v1.Firecrest, sim: Simulator, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"0123456789" * 700000)
    upload = within(client.external_upload, MACHINE, str(tmp_path / "big.bin"), str(sim.home))
    upload._sleep_time = itertools.cycle([0.02])
    within(upload.finish_upload)
    end = sim.wait_task(upload.task_id, "114")
    assert end["data"]["target"] == f"{sim.home}/big.bin"
    assert (sim.home / "big.bin").stat().st_size == 7000000
    assert within(lambda: upload.status) == "114"
    assert not within(lambda: upload.in_progress)


def test_external_download(client: v1.Firecrest, sim: Simulator, tmp_path: Path) -> None:
    (sim.home / "far.bin").write_bytes(b"far" * 1000000)
    download = within(client.external_download, MACHINE, f"{sim.home}/far.bin")
    download._sleep_time = itertools.cycle([0.02])
    within(download.finish_download, str(tmp_path / "near.bin"))
    assert (tmp_path / "near.bin").read_bytes() == b"far" * 1000000
    within(download.invalidate_object_storage_link)
    # it reads the list, which shows the old record for a while yet (FACTS §5)
    assert within(lambda: download.status) == "117"
    assert sim.wait_task(download.task_id, "302")["data"] == ""


def test_submit_poll_and_cancel(client: v1.Firecrest, sim: Simulator) -> None:
    script = "#!/bin/bash\n#SBATCH --job-name=quick\necho hi $WHO\n"
    made = within(client.submit, MACHINE, script_str=script, env_vars={"WHO": "you"})
    rows = within(_until_ended, client, made["jobid"])
    assert (rows["state"], rows["name"]) == ("COMPLETED", "quick")
    assert Path(made["job_file_out"]).read_text() == "hi you\n"
    long = within(client.submit, MACHINE, script_str="#!/bin/bash\nsleep 600\n")
    (active,) = within(client.poll_active, MACHINE, [long["jobid"]])
    assert active["jobid"] == str(long["jobid"])
    assert "Terminating" in within(client.cancel, MACHINE, long["jobid"])
    assert within(_until_ended, client, long["jobid"])["state"].startswith("CANCELLED")
    assert within(client.poll_active, MACHINE) == []
    with pytest.raises(firecrest.FirecrestException, match="does not look like a batch script"):
        within(client.submit, MACHINE, script_str="echo no shebang\n")


def _until_ended(client: v1.Firecrest, ident: int) -> dict[str, str]:
    while True:
        (row,) = client.poll(MACHINE, [ident])
        if row["state"] not in {"PENDING", "RUNNING"}:
            return dict(row)
