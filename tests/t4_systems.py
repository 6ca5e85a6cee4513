"""What the URL offers, and the mount of a whole system, for both dialects."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from conftest import credentials_of
from mounting import Mount, MountFailed
from sim_process import Simulator, running_simulator
from waits import wait_until

from f7tfs.catalog import Catalog
from f7tfs.cli.exits import Exit
from f7tfs.errors import NotFound
from f7tfs.model import Identity, RemotePath, remote_path
from f7tfs.zone import ClusterZone

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no usable /dev/fuse"
)
SCRIPT = b"#!/bin/bash\npwd\n"


@pytest.fixture(scope="module", params=["v1", "v2"])
def served(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    with running_simulator(
        api=request.param, staging_interval=0.3, ingest_sleep=0.3, start_delay=0
    ) as simulator:
        yield simulator


@pytest.fixture
def whole(served: Simulator) -> Iterator[Mount]:
    with Mount(served.system, credentials_of(served)) as mount:
        yield mount.start()


def dialect_of(simulator: Simulator) -> str:
    return "v2" if simulator.v2_url else "v1"


def inside(mount: Mount, place: Path) -> Path:
    """Where a directory of the cluster is in a mount of the whole system."""
    return mount.path / place.relative_to("/")


def refused(mount: Mount, number: int, function: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        mount.call(function, *arguments)
    assert caught.value.errno == number, caught.value


def look(mount: Mount, path: Path) -> os.stat_result:
    return mount.call(os.stat, path)


# f7tfs systems.


def test_systems(served: Simulator) -> None:
    with Mount(served.system, credentials_of(served)) as nowhere:
        done = nowhere.f7tfs("systems", "--json")
        assert done.returncode == 0 and not done.stderr, done.stderr
        rows = {row["name"]: row for row in json.loads(done.stdout)}
        assert list(rows) == sorted(rows) and served.system in rows
        assert {row["dialect"] for row in rows.values()} == {dialect_of(served)}
        mine = rows[served.system]
        assert mine["available"] is True
        home, scratch = served.home.parent, served.scratch.parent
        assert [one["path"] for one in mine["file_systems"]] == [str(home), str(scratch)]
        assert all(one["kind"] for one in mine["file_systems"])
        ill = rows["cluster-down" if dialect_of(served) == "v2" else "downcluster"]
        assert ill["available"] is False and ill["description"] and ill["file_systems"]
        assert str(home) not in mine["description"]
        if dialect_of(served) == "v2":
            assert [one["default_work_directory"] for one in mine["file_systems"]] == [True, False]
        else:
            assert len(rows["cluster2"]["file_systems"]) == 1

        table = nowhere.f7tfs("systems")
        assert table.returncode == 0 and not table.stderr
        lines = table.stdout.splitlines()
        assert lines[0].split()[:2] == ["SYSTEM", "HEALTH"]
        assert any(line.split()[:1] == [served.system] for line in lines)
        assert str(scratch) in table.stdout and "not available" in table.stdout


def test_one_system_is_named(served: Simulator) -> None:
    """FIRECREST_SYSTEM changes nothing; one that the server does not know does not matter."""
    for name in (served.system, "no-such-system"):
        with Mount(
            served.system, credentials_of(served), environment={"FIRECREST_SYSTEM": name}
        ) as nowhere:
            done = nowhere.f7tfs("systems", "--json")
            assert done.returncode == 0, done.stderr
            assert served.system in {row["name"] for row in json.loads(done.stdout)}


def test_refusals(served: Simulator) -> None:
    wrong = {"FIRECREST_CLIENT_SECRET": "wrong"}
    nobody = {"FIRECREST_URL": "http://127.0.0.1:9"}
    other = {"FIRECREST_API_VERSION": "v1" if dialect_of(served) == "v2" else "v2"}
    for environment, code in (
        (wrong, Exit.CREDENTIALS),
        (nobody, Exit.UNREACHABLE),
        (other, Exit.UNREACHABLE),
        ({"FIRECREST_URL": ""}, Exit.CONFIGURATION),
    ):
        with Mount(served.system, credentials_of(served), environment=environment) as nowhere:
            done = nowhere.f7tfs("systems", "-o", "patience=1s")
            assert done.returncode == code, (environment, done.stderr)
            assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("f7tfs: ")
            assert not done.stdout


# f7tfs mount SYSTEM MOUNTPOINT.


def test_only_the_way_to_the_file_systems_is_shown(served: Simulator, whole: Mount) -> None:
    assert sorted(whole.call(os.listdir, whole.path)) == sorted({"jobs", served.root.parts[1]})
    step = whole.path
    for part in served.root.parts[1:]:
        step /= part
        found = look(whole, step)
        assert stat.S_IMODE(found.st_mode) == 0o555 and stat.S_ISDIR(found.st_mode)
    assert sorted(whole.call(os.listdir, step)) == ["home", "scratch"]
    assert whole.call(os.listdir, step.parent) == [step.name]
    refused(whole, errno.ENOENT, os.stat, whole.path / "etc")
    refused(whole, errno.ENOENT, os.stat, step / "other")
    assert sorted(whole.call(os.listdir, step / "home")) == sorted(os.listdir(served.home.parent))
    whole.assert_quiet()


def test_nothing_is_created_on_the_way(served: Simulator, whole: Mount) -> None:
    before = sorted(os.listdir(served.root))
    for directory in (whole.path, inside(whole, served.root)):
        refused(whole, errno.EACCES, os.mkdir, directory / "new")
        refused(whole, errno.EACCES, (directory / "new").write_bytes, b"x")
        refused(whole, errno.EACCES, os.symlink, "target", directory / "new")
    home = inside(whole, served.home.parent)
    refused(whole, errno.EACCES, os.rmdir, home)
    refused(whole, errno.EACCES, os.rename, home, home.with_name("new"))
    refused(whole, errno.EACCES, _require_write, home.parent)
    assert sorted(os.listdir(served.root)) == before
    whole.assert_quiet()


def test_the_way_itself_is_never_changed(served: Simulator, whole: Mount) -> None:
    """Metadata: what is only on the way is refused here, as a directory of somebody else's in a
    read-only one; no call is sent."""
    change_the_way(served, whole)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be root on the cluster")
@pytest.mark.parametrize("api", ["v1", "v2"])
def test_not_even_by_root(api: str) -> None:
    with (
        running_simulator(api=api, user="root") as simulator,
        Mount(simulator.system, credentials_of(simulator)) as mount,
    ):
        change_the_way(simulator, mount.start())
        refused(mount, errno.EACCES, os.mkdir, inside(mount, simulator.root) / "new")


def change_the_way(simulator: Simulator, mount: Mount) -> None:
    root, home = inside(mount, simulator.root), inside(mount, simulator.home)
    mount.call(os.listdir, home)  # what is there is known
    look(mount, root / "scratch")
    before, mode = mount.status()["api"]["total"], simulator.root.stat().st_mode
    for directory in (mount.path, root):
        refused(mount, errno.EPERM, os.chmod, directory, 0o700)
        refused(mount, errno.EPERM, os.utime, directory, (1, 1))
        refused(mount, errno.EPERM, os.chown, directory, 12345, 12345)
    for one in (root, root / "home"):
        refused(mount, errno.EACCES, os.rmdir, one)
        refused(mount, errno.EACCES, os.rename, one, one.with_name("other"))
    refused(mount, errno.EACCES, os.rename, root / "scratch", home / "other")
    refused(mount, errno.EACCES, os.rename, home, root / "other")
    refused(mount, errno.EACCES, _require_write, root)
    assert mount.status()["api"]["total"] == before
    assert simulator.root.stat().st_mode == mode
    assert sorted(os.listdir(simulator.root)) == ["home", "scratch"]
    mount.assert_quiet()


def _require_write(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "not writable", str(path))


def test_looking_at_the_way_costs_no_calls(served: Simulator, whole: Mount) -> None:
    whole.call(os.listdir, inside(whole, served.root))
    before = whole.status()["api"]["total"]
    step = whole.path
    for part in served.root.parts[1:]:
        step /= part
        look(whole, step)
        whole.call(os.listdir, step)
    refused(whole, errno.ENOENT, os.stat, whole.path / "nothing")
    assert whole.status()["api"]["total"] == before


def test_everything_below_works(served: Simulator, whole: Mount) -> None:
    content = os.urandom(200_000)
    home, scratch = inside(whole, served.home), inside(whole, served.scratch)
    whole.run(["mkdir", "-p", str(scratch / "deep" / "er")])
    whole.call((scratch / "deep" / "er" / "file").write_bytes, content)
    whole.sync()
    assert (served.scratch / "deep" / "er" / "file").read_bytes() == content
    whole.run(["mv", str(scratch / "deep" / "er" / "file"), str(home / "moved")])
    whole.sync()
    assert (served.home / "moved").read_bytes() == content
    assert whole.call((home / "moved").read_bytes) == content
    whole.call(os.symlink, str(served.home / "moved"), scratch / "link")
    whole.call(os.symlink, "../deep", scratch / "deep" / "relative")
    assert whole.call((scratch / "link").read_bytes) == content
    whole.run(["rm", "-r", str(scratch / "deep"), str(scratch / "link"), str(home / "moved")])
    whole.sync()
    assert not os.listdir(served.scratch)
    done = whole.umount()
    assert done.returncode == 0, done.stderr
    ours = [p for p in served.root.rglob("*") if p.name.startswith((".f7tfs-", ".f7t_file"))]
    assert not ours
    whole.assert_quiet()


def test_jobs_work_at_home(served: Simulator, whole: Mount) -> None:
    whole.call((whole.path / "jobs" / "where.sh").write_bytes, SCRIPT)

    def output() -> bytes:
        found = [name for name in whole.call(os.listdir, whole.path / "jobs") if name.isdecimal()]
        if not found:
            return b""
        try:
            return whole.call((whole.path / "jobs" / found[0] / "stdout").read_bytes)
        except OSError:
            return b""

    wait_until(lambda: bool(output().strip()), "the job's output", 25.0)
    assert output().decode().strip() == str(served.home)


def test_status_and_the_journal(served: Simulator, whole: Mount) -> None:
    status = json.loads(whole.f7tfs("status", str(whole.path), "--json").stdout)
    assert status["mount"]["remote_path"] == "/"
    assert status["mount"]["dialect"] == dialect_of(served)
    told = whole.f7tfs("status", str(whole.path)).stdout
    assert re.search(rf"^remote +{served.system}:/$", told, re.MULTILINE)
    late = inside(whole, served.scratch) / "late"
    whole.call(late.write_bytes, b"kept")
    whole.kill()
    whole.start()
    assert whole.call(late.read_bytes) == b"kept"
    assert whole.umount().returncode == 0
    assert (served.scratch / "late").read_bytes() == b"kept"
    (served.scratch / "late").unlink()


def test_a_file_system_that_is_not_there(served: Simulator) -> None:
    """It is left out; the others serve."""
    hidden = served.scratch.parent.with_name("elsewhere")
    served.scratch.parent.rename(hidden)
    try:
        with Mount(served.system, credentials_of(served)) as mount:
            mount.start()
            assert mount.call(os.listdir, inside(mount, served.root)) == ["home"]
            refused(mount, errno.ENOENT, os.stat, inside(mount, served.scratch.parent))
            assert mount.umount().returncode == 0
    finally:
        hidden.rename(served.scratch.parent)


def test_a_file_system_that_is_a_symlink(served: Simulator) -> None:
    real = served.scratch.parent.with_name("elsewhere")
    served.scratch.parent.rename(real)
    served.scratch.parent.symlink_to("elsewhere")
    try:
        with Mount(served.system, credentials_of(served)) as mount:
            mount.start()
            place = inside(mount, served.scratch)
            assert stat.S_ISDIR(mount.call(os.lstat, place.parent).st_mode)
            mount.call((place / "file").write_bytes, b"through")
            mount.sync()
            assert (served.scratch / "file").read_bytes() == b"through"
            mount.call(os.unlink, place / "file")
            assert mount.umount().returncode == 0
    finally:
        served.scratch.parent.unlink()
        real.rename(served.scratch.parent)


@pytest.mark.parametrize("served", ["v1"], indirect=True)
def test_v1_without_file_systems(served: Simulator) -> None:
    """An old server has no such call: the parameters name them too. None at all is one sentence."""
    place, nothing = "GET /status/filesystems", {"description": "", "out": []}
    served.faults([{"match": place, "times": None, "action": {"status": 404, "body": "{}"}}])
    try:
        with Mount(served.system, credentials_of(served)) as mount:
            mount.start()
            assert mount.call(os.listdir, inside(mount, served.root)) == ["home", "scratch"]
            assert mount.umount().returncode == 0
        served.clear_faults()
        answer = {"status": 200, "body": json.dumps(nothing)}
        answer |= {"headers": {"content-type": "application/json"}}
        served.faults([{"match": place, "times": None, "action": answer}])
        with Mount(served.system, credentials_of(served)) as mount:
            with pytest.raises(MountFailed) as caught:
                mount.start()
            assert caught.value.code == Exit.REMOTE_PATH
            assert f"say {served.system}:/PATH" in caught.value.message
            assert mount.f7tfs("systems").returncode == 0
    finally:
        served.clear_faults()


def test_file_systems_in_one_another() -> None:
    """What lies in an announced file system is the cluster's, also when it is announced itself."""

    class Asked(Exception):
        pass

    class Stub:
        async def stat(self, path: str, *, follow: bool = False) -> Any:
            raise Asked(path)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            identity = Identity("me", 1000, "us", 1000, {"us": 1000})
            anchors = tuple(map(remote_path, ("/a/b", "/a/b/c/d", "/z")))

            def catalog(*anchors: RemotePath) -> Catalog:
                zone = ClusterZone("UTC")
                return Catalog(
                    cast(Any, Stub()), nursery, identity=identity, zone=zone,
                    ttl=30, stale_max=300, anchors=anchors,
                )  # fmt: skip

            found = catalog(*anchors)
            way = await found.attributes(remote_path("/a"))
            assert way.is_directory and way.permissions == 0o555
            with pytest.raises(NotFound):
                await found.attributes(remote_path("/q"))
            assert found.is_known_absent(remote_path("/q"))
            assert not found.is_known_absent(remote_path("/a/b/c"))
            for path in ("/a/b", "/z"):
                with pytest.raises(Asked):
                    await found.attributes(remote_path(path))
            with pytest.raises(Asked):  # no way to show: all is real
                await catalog(remote_path("/"), *anchors).root_attributes(remote_path("/"))

    trio.run(main)


def test_unknown_and_ill_systems(served: Simulator) -> None:
    ill = "cluster-down" if dialect_of(served) == "v2" else "downcluster"
    for name, code in (("no-such-system", Exit.SYSTEM), (ill, Exit.UNREACHABLE)):
        with Mount(name, credentials_of(served), options={"patience": "1s"}) as mount:
            with pytest.raises(MountFailed) as caught:
                mount.start()
            assert caught.value.code == code, caught.value.message
