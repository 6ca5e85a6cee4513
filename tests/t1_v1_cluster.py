"""V1Cluster against the simulator, method by method, over real HTTP."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from sim_process import Simulator, running_simulator

from f7tfs.api.connect import open_cluster, token_source
from f7tfs.api.port import Cluster, Phase, Progress, Route, Ticket
from f7tfs.api.staging import StagingArea
from f7tfs.errors import (
    CommandTimeout,
    Exists,
    F7tfsError,
    InvalidArgument,
    IsADirectory,
    NameNotSupported,
    NotADirectory,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    Rejected,
    ServerError,
    Stalled,
    TooLarge,
    TooManyLinks,
    Unauthorized,
    UnknownSystem,
    Unreachable,
    Unsupported,
)
from f7tfs.model import Job, JobState, Kind, RemotePath, join, remote_path


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with running_simulator(staging_interval=0.3, command_limit=1) as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def no_faults_left(sim: Simulator) -> Iterator[None]:
    sim.reset_calls()
    yield
    sim.clear_faults()


@pytest.fixture
def home(sim: Simulator, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on the cluster, as the local path that it really is."""
    path = sim.home / re.sub(r"\W+", "-", request.node.name)
    path.mkdir()
    return path


HOME = remote_path("/")  # v1 has no use for a directory


def own(sim: Simulator) -> None:
    """Give what the test made to the user as whom the cluster runs commands."""
    owner = sim.home.stat()
    for directory, _, files in os.walk(sim.home):
        for name in [".", *files]:
            os.chown(
                os.path.join(directory, name), owner.st_uid, owner.st_gid, follow_symlinks=False
            )


def faults(sim: Simulator, *rules: dict[str, Any]) -> None:
    sim.faults(list(rules))


def calls(sim: Simulator) -> dict[str, int]:
    return dict(sim.calls()["calls"])


@asynccontextmanager
async def cluster_of(sim: Simulator, **options: Any) -> AsyncIterator[tuple[Cluster, StagingArea]]:
    source = token_source(
        token_url=sim.info["auth_token_url"],
        client_id=sim.info["client_id"],
        client_secret=sim.info["client_secret"],
    )
    chosen: dict[str, Any] = {"system": sim.system, "patience": 1.5, "request_timeout": 10.0}
    async with open_cluster(url=sim.url, token_source=source, **(chosen | options)) as opened:
        yield opened


def on_cluster(
    sim: Simulator, body: Callable[[Cluster, StagingArea], Awaitable[Any]], **options: Any
) -> Any:
    async def main() -> Any:
        async with cluster_of(sim, **options) as (cluster, staging):
            own(sim)
            sim.reset_calls()
            return await body(cluster, staging)

    return trio.run(main)


def at(home: Path, *names: str) -> RemotePath:
    return remote_path(os.path.join(str(home), *names))


def fails(
    sim: Simulator, kind: type[F7tfsError], call: Callable[[Cluster], Awaitable[Any]]
) -> F7tfsError:
    async def body(cluster: Cluster, _: StagingArea) -> F7tfsError:
        with pytest.raises(kind) as caught:
            await call(cluster)
        assert type(caught.value) is kind
        return caught.value

    found: F7tfsError = on_cluster(sim, body)
    return found


# Who and what.


def test_discovery(sim: Simulator) -> None:
    async def body(cluster: Cluster, _: StagingArea) -> None:
        limits = cluster.capabilities
        assert (limits.dialect, limits.direct_download_limit) == ("v1", 3_932_157)
        assert limits.version.startswith("1.")
        systems = {system.name: system.available for system in await cluster.systems()}
        assert systems[sim.system]
        identity = await cluster.whoami()
        assert (identity.uid, identity.gid) == (sim.home.stat().st_uid, sim.home.stat().st_gid)
        assert identity.groups[identity.group] == identity.gid

    on_cluster(sim, body)


def test_an_unknown_system(sim: Simulator) -> None:
    async def body(cluster: Cluster, _: StagingArea) -> None:
        raise AssertionError

    with pytest.raises(UnknownSystem) as caught:
        on_cluster(sim, body, system="nosuch")
    assert sim.system in caught.value.known


# Names.


def test_listings(sim: Simulator, home: Path) -> None:
    (home / "sub" / "deep").mkdir(parents=True)
    (home / "sub" / "empty").mkdir()
    (home / "a").write_bytes(b"12345")
    os.chmod(home / "a", 0o1751)
    os.utime(home / "a", (1_600_000_000, 1_600_000_000))
    (home / ".hidden").touch()
    (home / "sub" / "deep" / "x").touch()
    (home / "to_dir").symlink_to("sub")
    (home / "dangling").symlink_to("sp ace -> x")

    async def body(cluster: Cluster, _: StagingArea) -> None:
        found = {item.name: item for item in await cluster.list_directory(at(home))}
        assert set(found) == {"sub", "a", ".hidden", "to_dir", "dangling"}
        a = found["a"]
        assert (a.kind, a.size, a.permissions) == (Kind.FILE, 5, 0o1751)
        assert a.local_mtime == 1_600_000_000  # the simulator's first system lives in UTC
        assert (found["to_dir"].kind, found["to_dir"].target) == (Kind.SYMLINK, "sub")
        assert found["dangling"].target == "sp ace -> x"
        through = await cluster.list_directory(at(home, "to_dir"))
        assert sorted(item.name for item in through) == ["deep", "empty"]
        assert await cluster.list_directory(at(home, "sub", "empty")) == []
        tree = await cluster.list_tree(at(home))
        assert {f"{directory}/{item.name}" for directory, item in tree} == {
            "/a", "/sub", "sub/deep", "sub/empty", "sub/deep/x", "/.hidden", "/to_dir", "/dangling",
        }  # fmt: skip
        assert await cluster.read_link(at(home, "to_dir")) == "sub"
        assert await cluster.read_link(at(home, "dangling")) == "sp ace -> x"

    on_cluster(sim, body)
    for name in ("a", "a/b"):
        fails(sim, NotADirectory, lambda cluster, name=name: cluster.list_directory(at(home, name)))
    fails(sim, NotFound, lambda cluster: cluster.list_directory(at(home, "no")))
    fails(sim, NotFound, lambda cluster: cluster.list_directory(at(home, "dangling")))
    fails(sim, InvalidArgument, lambda cluster: cluster.read_link(at(home, "a")))
    fails(sim, InvalidArgument, lambda cluster: cluster.read_link(at(home, "sub")))


def test_odd_names_in_listings(sim: Simulator, home: Path) -> None:
    doubtful = ["new\nline", "tab\tx", "esc\x1b[31m", "latin1-\udce9"]
    certain = [" lead", "trail ", "a -> b", 'dq"uote', "back\\slash", "semi;colon", "two  sp", "ü☃"]
    for name in doubtful + certain:
        (home / name).touch()

    async def body(cluster: Cluster, _: StagingArea) -> None:
        found = {item.name: item.ambiguous for item in await cluster.list_directory(at(home))}
        assert found == dict.fromkeys(doubtful, True) | dict.fromkeys(certain, False)
        for name in doubtful + certain:
            path = join(at(home), name)
            if cluster.carries(path, Route.COMMAND):
                assert (await cluster.stat(path)).size == 0
            else:
                with pytest.raises(NameNotSupported):
                    await cluster.stat(path)

    on_cluster(sim, body)
    assert len(calls(sim)) == 2  # one listing; the refused stats never left
    on_cluster(sim, lambda cluster, _: cluster.list_directory(at(home)), system="cluster2")


def test_posix_locale_names(sim: Simulator, home: Path) -> None:
    (home / "ünï☃").touch()

    async def body(cluster: Cluster, _: StagingArea) -> None:
        (item,) = await cluster.list_directory(at(home))
        assert (item.name, item.ambiguous) == ("ünï☃", True)
        assert (await cluster.stat(join(at(home), item.name))).size == 0

    on_cluster(sim, body, system="cluster2")


@pytest.mark.parametrize("name", ["No such file", "cannot open.log"])
def test_a_poisoned_directory_can_be_listed(sim: Simulator, home: Path, name: str) -> None:
    (home / name).write_bytes(b"x")
    (home / "new\nline").touch()

    async def body(cluster: Cluster, _: StagingArea) -> None:
        found = {item.name: item.size for item in await cluster.list_directory(at(home))}
        assert found == {name: 1, "new\nline": 0}

    on_cluster(sim, body)


def test_stat(sim: Simulator, home: Path) -> None:
    (home / "file").write_bytes(b"123")
    (home / "link").symlink_to("file")
    (home / "loop").symlink_to("loop")

    async def body(cluster: Cluster, _: StagingArea) -> None:
        found, real = await cluster.stat(at(home, "file")), (home / "file").stat()
        assert (found.ino, found.size, found.mode) == (real.st_ino, 3, real.st_mode)
        assert (found.mtime, found.ctime) == (int(real.st_mtime), int(real.st_ctime))
        assert (await cluster.stat(at(home, "link"))).kind is Kind.SYMLINK
        assert (await cluster.stat(at(home, "link"), follow=True)).ino == real.st_ino

    on_cluster(sim, body)
    fails(sim, NotFound, lambda cluster: cluster.stat(at(home, "no")))
    fails(sim, NotADirectory, lambda cluster: cluster.stat(at(home, "file", "x")))
    fails(sim, TooManyLinks, lambda cluster: cluster.stat(at(home, "loop"), follow=True))


def test_directories_and_renames(sim: Simulator, home: Path) -> None:
    (home / "a").write_bytes(b"a")
    (home / "b").write_bytes(b"b")

    async def body(cluster: Cluster, _: StagingArea) -> None:
        await cluster.make_directory(at(home, "d ü"))
        assert (home / "d ü").is_dir()
        await cluster.rename(at(home, "a"), at(home, "b"))
        assert (home / "b").read_bytes() == b"a"
        await cluster.copy(at(home, "b"), at(home, "c 100% +&x".replace("&", "")))
        assert (home / "c 100% +x").read_bytes() == b"a"
        await cluster.change_mode(at(home, "b"), 0o640)
        assert (home / "b").stat().st_mode & 0o7777 == 0o640
        os.chmod(home / "d ü", 0o2755)
        await cluster.change_mode(at(home, "d ü"), 0o755)
        assert (home / "d ü").stat().st_mode & 0o7777 == 0o755
        await cluster.symlink("b", at(home, "l"))
        assert os.readlink(home / "l") == "b"
        await cluster.remove(at(home, "l"))
        assert not (home / "l").is_symlink()
        assert (home / "b").exists()
        await cluster.remove(at(home, "d ü"))
        assert not (home / "d ü").exists()
        digest = hashlib.sha256(b"a").hexdigest()
        assert await cluster.checksum(at(home, "b")) == digest

    on_cluster(sim, body)
    assert set(calls(sim).values()) <= {1, 2}
    (home / "d").mkdir()
    fails(sim, Exists, lambda cluster: cluster.make_directory(at(home, "d")))
    fails(sim, NotFound, lambda cluster: cluster.make_directory(at(home, "no", "d")))
    fails(sim, NotADirectory, lambda cluster: cluster.make_directory(at(home, "b", "d")))
    fails(sim, NotADirectory, lambda cluster: cluster.rename(at(home, "d"), at(home, "b")))
    fails(sim, NotFound, lambda cluster: cluster.rename(at(home, "no"), at(home, "x")))
    fails(sim, InvalidArgument, lambda cluster: cluster.rename(at(home, "b"), at(home, "b")))
    fails(sim, NotFound, lambda cluster: cluster.remove(at(home, "no")))
    fails(sim, Exists, lambda cluster: cluster.symlink("x", at(home, "b")))
    fails(sim, IsADirectory, lambda cluster: cluster.checksum(at(home, "d")))


def test_names_that_are_never_sent(sim: Simulator, home: Path) -> None:
    """SEMANTICS "Names": EINVAL before anything is sent; what the site does with two spaces "is
    probed once … with a `stat` of a name that cannot exist"."""
    good, bad = at(home, "x"), at(home, "two  spaces")

    async def body(cluster: Cluster, _: StagingArea) -> None:
        calls: list[Awaitable[Any]] = [
            cluster.list_directory(bad),
            cluster.list_tree(bad),
            cluster.stat(bad),
            cluster.read_link(bad),
            cluster.make_directory(bad),
            cluster.rename(bad, good),
            cluster.rename(good, bad),
            cluster.copy(good, bad),
            cluster.remove(bad),
            cluster.change_mode(bad, 0o600),
            cluster.change_owner(bad, None, "g"),
            cluster.symlink("a;b", good),
            cluster.symlink("", good),
            cluster.symlink("a", bad),
            cluster.checksum(bad),
            cluster.compress(bad, good),
            cluster.extract(good, bad),
            cluster.download(bad),
            cluster.download(at(home, "del\x7f")),
            cluster.head(bad, 1),
            cluster.tail(bad, 1),
            cluster.upload(bad, b""),
            cluster.stage_download(at(home, "one space")),
            cluster.stage_upload(bad, 1),
            cluster.submit(b"#!/bin/sh\n", "a;b.sh", None, HOME),
            cluster.submit(b"#!/bin/sh\n", "../x.sh", None, HOME),
        ]
        for call in calls:
            with pytest.raises(NameNotSupported):
                await call

    on_cluster(sim, body)
    assert calls(sim) == {"GET /utilities/stat": 1}
    (probe,) = [one["params"]["targetPath"] for one in sim.log() if one["path"].endswith("/stat")]
    assert probe.startswith(f"{home}/.f7tfs-probe-"), probe


def test_archives(sim: Simulator, home: Path) -> None:
    (home / "d").mkdir()
    (home / "d" / "f").write_bytes(b"in")
    (home / "out").mkdir()

    async def body(cluster: Cluster, _: StagingArea) -> None:
        await cluster.compress(at(home, "d"), at(home, "d.tar.gz"))
        await cluster.extract(at(home, "d.tar.gz"), at(home, "out"))

    on_cluster(sim, body)
    assert [path.read_bytes() for path in (home / "out").rglob("f")] == [b"in"]
    fails(sim, Unsupported, lambda cluster: cluster.extract(at(home, "d", "f"), at(home, "out")))


# Content.


@pytest.mark.parametrize("content", [b"", b"text\n", bytes(range(256)) * 100])
def test_small_content(sim: Simulator, home: Path, content: bytes) -> None:
    async def body(cluster: Cluster, _: StagingArea) -> None:
        path = at(home, "sp ace % ü☃.bin")
        await cluster.upload(path, content)
        assert (home / "sp ace % ü☃.bin").read_bytes() == content
        assert await cluster.download(path) == content

    on_cluster(sim, body)
    assert calls(sim) == {"POST /utilities/upload": 1, "GET /utilities/download": 1}


def test_the_limits_are_the_real_ones(sim: Simulator, home: Path) -> None:
    async def body(cluster: Cluster, _: StagingArea) -> None:
        limits = cluster.capabilities
        full = os.urandom(limits.direct_download_limit)
        (home / "down").write_bytes(full)
        assert await cluster.download(at(home, "down")) == full
        (home / "down").write_bytes(full + b"1")
        with pytest.raises(TooLarge):
            await cluster.download(at(home, "down"))
        await cluster.upload(at(home, "up"), b"x" * limits.direct_upload_limit)
        with pytest.raises(TooLarge):
            await cluster.upload(at(home, "up2"), b"x" * (limits.direct_upload_limit + 1))

    on_cluster(sim, body, request_timeout=30.0)
    assert not (home / "up2").exists()


def test_uploads_that_fail(sim: Simulator, home: Path) -> None:
    (home / "d").mkdir()
    fails(sim, NotFound, lambda cluster: cluster.upload(at(home, "no", "f"), b""))
    fails(sim, IsADirectory, lambda cluster: cluster.upload(at(home, "d"), b""))
    fails(sim, NotFound, lambda cluster: cluster.download(at(home, "no")))
    fails(sim, IsADirectory, lambda cluster: cluster.download(at(home, "d")))


def test_heads_and_tails(sim: Simulator, home: Path) -> None:
    text = "ünï\r\n\0 text\n\n"
    raw = text.encode()
    (home / "t").write_bytes(raw)

    async def body(cluster: Cluster, _: StagingArea) -> None:
        path = at(home, "t")
        assert await cluster.head(path, 2) == raw[:2]
        assert await cluster.head(path, 1000) == raw
        assert await cluster.head(path, 0) == b""
        assert await cluster.tail(path, 2) == raw[2:]
        assert await cluster.tail(path, 0) == raw
        assert await cluster.tail(path, len(raw)) == b""
        with pytest.raises(Unsupported):
            await cluster.head(path, 1)  # half a character

    on_cluster(sim, body)


async def awaited(cluster: Cluster, ticket: Ticket, *phases: Phase) -> Progress:
    with trio.fail_after(20):
        while True:
            progress = await cluster.progress(ticket)
            if progress.phase in phases:
                return progress
            await trio.sleep(0.05)


def test_a_staged_download(sim: Simulator, home: Path) -> None:
    content = os.urandom(3_000_000)
    (home / "big").write_bytes(content)

    async def body(cluster: Cluster, staging: StagingArea) -> None:
        ticket = await cluster.stage_download(at(home, "big"))
        progress = await awaited(cluster, ticket, Phase.READY)
        assert progress.path == at(home, "big")
        assert progress.link is not None
        found = bytearray()
        result = await staging.fetch(progress.link, found.extend)
        assert (bytes(found), result.total_size) == (content, len(content))
        found.clear()
        await staging.fetch(progress.link, found.extend, start=2_999_990, length=100)
        assert bytes(found) == content[-10:]
        await cluster.withdraw(ticket)
        await cluster.withdraw(ticket)
        assert (await cluster.progress(ticket)).phase is Phase.WITHDRAWN

    on_cluster(sim, body)
    fails(sim, NotFound, lambda cluster: cluster.stage_download(at(home, "no")))
    fails(sim, IsADirectory, lambda cluster: cluster.stage_download(at(home)))


@pytest.mark.parametrize("size", [0, 5, 2_500_000])
def test_a_staged_upload(sim: Simulator, home: Path, size: int) -> None:
    content = os.urandom(size)

    async def body(cluster: Cluster, staging: StagingArea) -> None:
        path = at(home, "new ü.bin")
        ticket = await cluster.stage_upload(path, size)
        ready = await awaited(cluster, ticket, Phase.READY)
        assert ready.form is not None
        assert ready.path == path
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            await staging.send_form(ready.form, file.fileno(), size)
        done = await awaited(cluster, ticket, Phase.DONE, Phase.FALTERING)
        assert (done.phase, done.path) == (Phase.DONE, path)

    on_cluster(sim, body)
    assert (home / "new ü.bin").read_bytes() == content


def test_many_transfers_share_their_polls(sim: Simulator, home: Path) -> None:
    async def body(cluster: Cluster, _: StagingArea) -> None:
        tickets = [await cluster.stage_upload(at(home, f"f{n}"), 1) for n in range(5)]
        sim.reset_calls()
        async with trio.open_nursery() as nursery:
            for ticket in tickets:
                nursery.start_soon(cluster.progress, ticket)

    on_cluster(sim, body)
    assert calls(sim) == {"GET /tasks": 1}


def test_staged_transfers_that_fail(sim: Simulator, home: Path) -> None:
    (home / "gone").mkdir()
    fails(sim, NotFound, lambda cluster: cluster.stage_upload(at(home, "no", "f"), 1))
    fails(sim, TooLarge, lambda cluster: cluster.stage_upload(at(home, "f"), 1 << 50))

    async def body(cluster: Cluster, staging: StagingArea) -> None:
        ticket = await cluster.stage_upload(at(home, "gone", "f"), 1)
        ready = await awaited(cluster, ticket, Phase.READY)
        assert ready.form is not None
        (home / "gone").rmdir()
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
            file.flush()
            await staging.send_form(ready.form, file.fileno(), 1)
        await awaited(cluster, ticket, Phase.FALTERING)
        (home / "gone").mkdir()
        own(sim)  # FACTS §6: 115 is not final
        await awaited(cluster, ticket, Phase.DONE)
        with pytest.raises(NotFound):
            await cluster.progress(Ticket("deadbeef", at(home, "x")))

    on_cluster(sim, body)
    assert (home / "gone" / "f").read_bytes() == b"x"


# Jobs.


def test_a_job(sim: Simulator) -> None:
    script = b"#!/bin/sh\n#SBATCH --job-name=mine\necho out; sleep 60\n"

    async def body(cluster: Cluster, _: StagingArea) -> None:
        submitted = await cluster.submit(script, "tag-1234.sh", None, HOME)
        assert submitted.script_path.endswith("/tag-1234.sh")
        assert submitted.stdout_path

        async def mine() -> Job | None:
            found = {job.id: job for job in await cluster.jobs()}
            return found.get(submitted.job_id)

        with trio.fail_after(30):
            while (job := await mine()) is None or job.state is not JobState.RUNNING:
                pass
        assert job.name in {"mine", ""}  # "": the accounting has only begun to know it
        assert (await cluster.job_paths(job)) == submitted
        tag = "tag-1234.sh"
        assert await cluster.submitted_as({tag, "another.sh"}) == {tag: submitted}
        # An id that nobody knows does not hide the others.
        both = await cluster.accounting([submitted.job_id, "99999999"])
        assert [job.id for job in both] == [submitted.job_id]
        assert await cluster.accounting([]) == []
        await cluster.cancel(submitted.job_id)
        with trio.fail_after(30):
            while (job := await mine()) is None or job.state is not JobState.CANCELLED:
                pass
        assert (await cluster.job_paths(job)).stdout_path == ""
        await cluster.cancel(submitted.job_id)
        await cluster.cancel("99999999")
        assert await cluster.accounting(["99999999"]) == []
        for wrong in ("abc", "92_[1-3]", "92+0"):
            with pytest.raises(InvalidArgument):
                await cluster.cancel(wrong)

    on_cluster(sim, body)


def test_what_a_look_at_the_jobs_costs(sim: Simulator) -> None:
    """FACTS §9: the queue costs three commands a job, the accounting two for all of them."""
    sim.hold_jobs(True)

    async def body(cluster: Cluster, _: StagingArea) -> None:
        made = [await cluster.submit(b"#!/bin/sh\n", f"x-{n}.sh", None, HOME) for n in range(5)]
        array = b"#!/bin/sh\n#SBATCH --array=1-3\n"
        (await cluster.submit(array, "array.sh", None, HOME))
        sim.reset_calls()
        told = {job.id: job for job in await cluster.jobs()}
        assert {one.job_id for one in made} <= set(told)
        assert calls(sim) == {"GET /compute/acct": 1, "GET /tasks/{id}": 1}
        told = {job.id: job for job in await cluster.jobs(reasons=True)}
        assert told[made[0].job_id].state is JobState.PENDING
        log = [(one["path"], one["params"]) for one in sim.log(20)]
        assert ("/compute/jobs", {"userJobs": "false"}) in log
        for one in made:
            await cluster.cancel(one.job_id)

    try:
        on_cluster(sim, body)
    finally:
        sim.hold_jobs(False)


def test_a_site_without_accounting(sim: Simulator) -> None:
    body_text = '{"description": "no", "error": "Slurm accounting storage is disabled"}'
    answer = {"status": 400, "headers": {"Content-Type": "application/json"}, "body": body_text}
    (ident,) = sim.faults([{"match": "GET /compute/acct", "times": None, "action": answer}])

    async def body(cluster: Cluster, _: StagingArea) -> None:
        made = await cluster.submit(b"#!/bin/sh\nsleep 60\n", "x.sh", None, HOME)
        told = {job.id: job for job in await cluster.jobs()}
        assert told[made.job_id].script_path.endswith("/x.sh")
        await cluster.cancel(made.job_id)

    on_cluster(sim, body)
    assert sim.fired()[ident]


def test_a_refused_job(sim: Simulator) -> None:
    found = fails(
        sim, Rejected, lambda cluster: cluster.submit(b"no shebang\n", "x.sh", None, HOME)
    )
    assert "batch script" in str(found)


# Trouble.


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_reply_is_not_resent(sim: Simulator, home: Path, when: str) -> None:
    """SEMANTICS "Metadata": no call that changes something is ever resent blindly."""
    (home / "a").touch()
    faults(
        sim,
        {"match": "POST /utilities/mkdir", "action": {"drop": when}},
        {"match": "PUT /utilities/rename", "action": {"drop": when}},
        {"match": "DELETE /utilities/rm", "action": {"drop": when}},
        {"match": "POST /utilities/upload", "action": {"drop": when}},
        {"match": "POST /compute/jobs/upload", "action": {"drop": when}},
        {"match": "POST /storage/xfer-external/upload", "action": {"drop": when}},
    )

    async def body(cluster: Cluster, _: StagingArea) -> None:
        calls: list[Awaitable[Any]] = [
            cluster.make_directory(at(home, "d")),
            cluster.rename(at(home, "a"), at(home, "b")),
            cluster.remove(at(home, "b")),
            cluster.upload(at(home, "u"), b"x"),
            cluster.submit(b"#!/bin/sh\n", "x.sh", None, HOME),
            cluster.stage_upload(at(home, "s"), 1),
        ]
        for call in calls:
            with pytest.raises(OutcomeUnknown):
                await call

    on_cluster(sim, body)
    assert set(calls(sim).values()) == {1}
    assert (home / "d").exists() == (when == "after")


def test_a_submission_whose_outcome_cannot_be_seen(sim: Simulator) -> None:
    faults(sim, {"match": "GET /tasks", "times": None, "action": {"status": 500}})
    fails(
        sim,
        OutcomeUnknown,
        lambda cluster: cluster.submit(b"#!/bin/sh\ntrue\n", "x.sh", None, HOME),
    )
    assert calls(sim)["POST /compute/jobs/upload"] == 1


def test_a_dying_worker_at_a_submission(sim: Simulator) -> None:
    faults(sim, {"match": "POST /compute/jobs/upload", "action": {"status": 500}})
    fails(sim, OutcomeUnknown, lambda cluster: cluster.submit(b"#!/bin/sh\n", "x.sh", None, HOME))


def test_reads_survive_a_bad_moment(sim: Simulator, home: Path) -> None:
    faults(
        sim,
        {"match": "GET /utilities/ls", "action": {"drop": "before"}},
        {"match": "GET /utilities/ls", "action": {"status": 503}},
        {"match": "GET /utilities/ls", "action": {"status": 429, "headers": {"Retry-After": "0"}}},
        {"match": "GET /utilities/download", "action": {"truncate": 100}},
    )
    (home / "f").write_bytes(b"x" * 1000)

    async def body(cluster: Cluster, _: StagingArea) -> None:
        assert [item.name for item in await cluster.list_directory(at(home))] == ["f"]
        assert await cluster.download(at(home, "f")) == b"x" * 1000

    on_cluster(sim, body, patience=10.0)
    assert calls(sim) == {"GET /utilities/ls": 4, "GET /utilities/download": 2}


def test_rate_limits(sim: Simulator, home: Path) -> None:
    limited = {"status": 429, "headers": {"Retry-After": "1"}, "body": "{}"}
    faults(sim, {"match": "POST /utilities/mkdir", "action": limited})
    on_cluster(sim, lambda cluster, _: cluster.make_directory(at(home, "d")))
    assert calls(sim) == {"POST /utilities/mkdir": 2}

    async def limited_stat(cluster: Cluster, _: StagingArea) -> None:
        faults(
            sim, {"match": "GET /utilities", "action": limited | {"headers": {"Retry-After": "30"}}}
        )
        with pytest.raises(RateLimited) as caught:
            await cluster.stat(at(home))
        assert caught.value.retry_after == 30

    on_cluster(sim, limited_stat)


def test_a_401_costs_one_new_token(sim: Simulator, home: Path) -> None:
    refused = {"status": 401, "body": '{"description": "JWT token has expired"}'}
    faults(sim, {"match": "POST /utilities/mkdir", "action": refused})
    on_cluster(sim, lambda cluster, _: cluster.make_directory(at(home, "d")))
    assert calls(sim) == {"POST /utilities/mkdir": 2}
    faults(sim, {"match": "GET /utilities", "times": None, "action": refused})
    fails(sim, Unauthorized, lambda cluster: cluster.stat(at(home)))


def test_a_502_for_one_request_only(sim: Simulator, home: Path) -> None:
    """FACTS §2: an unclassified error with a non-ASCII path kills the worker."""
    name = "ü☃"
    (home / name).symlink_to(name)
    fails(sim, ServerError, lambda cluster: cluster.stat(at(home, name), follow=True))
    (home / "f").touch()
    fails(
        sim, OutcomeUnknown, lambda cluster: cluster.change_owner(at(home, "f"), "nobodyxx", None)
    )


def test_the_command_limit(sim: Simulator, home: Path) -> None:
    os.mkfifo(home / "fifo")
    fails(sim, Stalled, lambda cluster: cluster.checksum(at(home, "fifo")))
    text = "Command has finished with timeout signal"
    cut = {"status": 400, "headers": {"X-Timeout": text}, "body": f'{{"error": "{text}"}}'}
    faults(sim, {"match": "POST /utilities/extract", "action": cut})
    fails(sim, CommandTimeout, lambda cluster: cluster.extract(at(home, "a.tar"), at(home)))


def test_a_wrong_login(sim: Simulator) -> None:
    source = token_source(
        token_url=sim.info["auth_token_url"], client_id=sim.info["client_id"], client_secret="no"
    )

    async def main() -> None:
        async with open_cluster(url=sim.url, token_source=source, system=sim.system):
            pass

    with pytest.raises(Unauthorized, match="refused the login"):
        trio.run(main)


def test_a_down_cluster(sim: Simulator, home: Path) -> None:
    async def body(cluster: Cluster, _: StagingArea) -> None:
        with pytest.raises(Unreachable):
            await cluster.stat(at(home))
        with pytest.raises(Unreachable):
            await cluster.submit(b"#!/bin/sh\n", "x.sh", None, HOME)
        with pytest.raises(Unreachable):
            await cluster.stage_download(at(home, "f"))

    on_cluster(sim, body, system="downcluster")
