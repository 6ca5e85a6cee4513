"""Renames whose outcome comes late or is lost: jobs that wait, and replies that nobody gets."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from conftest import Place
from mounting import Mount
from sim_process import Simulator
from t3_scenarios import refused
from t5_conflicts import sides_of
from waits import wait_until

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(180)]
TRANSFERS = ".f7t_file_handling"


class Scene:
    """A v2 mount with a clean and a dirty file in `top/dir`, whose `mv` job does not begin. (The
    kernel locks `top` meanwhile: a name in it that it has not seen yet is looked up afterwards.)"""

    def __init__(self, mount: Mount, far: Any, simulator: Simulator) -> None:
        self.mount, self.far, self.simulator = mount, far, simulator
        mount.call((mount.path / "top/dir/dirty").write_bytes, b"dirty")
        simulator.hold_jobs(True)
        self.process = subprocess.Popen(["mv", "dir", "moved"], cwd=mount.path / "top")
        wait_until(
            lambda: [one["job"] for one in mount.status()["renames"]] not in ([], [""]),
            "the job that renames",
        )
        assert self.job_states() == ["PENDING"]

    def job_states(self) -> list[str]:
        _, _, answer = self.simulator.v2("GET", f"/compute/{self.simulator.system}/jobs", {})
        jobs = answer["jobs"] or []
        states = [one["status"]["state"] for one in jobs if one["name"] == "MoveFiles"]
        return [state.partition(" by ")[0] for state in states]

    def is_at(self, name: str) -> None:
        """Both files are in this directory, here and on the cluster, and nothing else is."""
        self.mount.sync()
        top = self.mount.path / "top"
        assert set(self.mount.call(os.listdir, top)) == {name}
        assert set(self.mount.call(os.listdir, top / name)) == {"clean", "dirty"}
        assert self.far.names("top") == {name}
        assert self.far.read(f"top/{name}/clean") == b"clean"
        assert self.far.read(f"top/{name}/dirty") == b"dirty"
        assert self.mount.uploads()["items"] == []
        wait_until(lambda: not self.logs(), "the jobs' logs to go")

    def logs(self) -> list[str]:
        return [one for one in os.listdir(self.simulator.home) if one.startswith(TRANSFERS)]


@pytest.fixture
def scene(own_simulator: Callable[..., Place]) -> Iterator[Scene]:
    place = own_simulator(api="v2")
    far, simulator = sides_of(place)
    far.mkdir("two")
    for name in ("two/old", "two/gone"):
        far.write(name, b"x")
    far.mkdir("top")
    far.mkdir("top/dir")
    far.write("top/dir/clean", b"clean")
    with place.mount(place.directory, writeback_delay=30) as mount:
        mount.start()
        made = Scene(mount, far, simulator)
        try:
            yield made
        finally:
            made.process.kill()
            simulator.hold_jobs(False)
            made.process.wait(30)


def test_a_mv_that_waits_for_its_job_can_be_interrupted(scene: Scene) -> None:
    """Metadata: "directories by the `mv` job, waited for interruptibly". Then the job is taken
    back, and nothing has happened."""
    scene.mount.announce("not known whether")
    scene.process.send_signal(signal.SIGINT)
    assert scene.process.wait(5) != 0
    wait_until(lambda: scene.job_states() == ["CANCELLED"], "the job to be taken back")
    scene.simulator.hold_jobs(False)
    scene.is_at("dir")


def test_nothing_else_waits_for_the_job_of_a_mv(scene: Scene) -> None:
    mount, far = scene.mount, scene.far
    mount.call(os.rename, mount.path / "two/old", mount.path / "two/new")
    mount.call(os.unlink, mount.path / "two/gone")  # behind the dirty file: its upload waits
    mount.call(os.listdir, mount.path / "two")
    mount.call((mount.path / "two/made").write_bytes, b"z")
    assert scene.process.poll() is None
    told = mount.f7tfs("status", str(mount.path)).stdout
    assert re.search(r"renaming +top/dir → top/moved +\(for .*, job \d+\)", told)
    assert "renaming" in mount.call((mount.path / ".f7tfs/status").read_text)
    scene.simulator.hold_jobs(False)
    assert scene.process.wait(30) == 0
    mount.sync()
    assert far.names("two") == {"new", "made"}
    scene.is_at("moved")


def test_a_kill_while_the_job_waits(scene: Scene) -> None:
    """The next start takes the job back: else the directory would change its name at some time,
    and what is written meanwhile with it."""
    scene.mount.kill()
    scene.process.wait(30)
    scene.mount.start()
    assert scene.job_states() == ["CANCELLED"]
    scene.simulator.hold_jobs(False)
    scene.is_at("dir")


def test_a_kill_after_the_job_has_run(scene: Scene) -> None:
    scene.mount.kill()
    scene.process.wait(30)
    scene.simulator.hold_jobs(False)
    wait_until(lambda: scene.job_states() == ["COMPLETED"], "the job")
    scene.mount.start()
    scene.is_at("moved")


def test_a_job_whose_submission_nobody_knows_of_is_not_submitted_twice(
    own_simulator: Callable[..., Place],
) -> None:
    """The second mv would fail, as the first has moved the directory, and what is dirty in it would
    stay behind."""
    place = own_simulator(api="v2")
    far, simulator = sides_of(place)
    far.mkdir("dir")
    with place.mount(place.directory, writeback_delay=30) as mount:
        mount.start()
        mount.announce("not known whether")
        mount.call((mount.path / "dir/dirty").write_bytes, b"dirty")
        submission = f"POST /filesystem/{simulator.system}/transfer/mv"
        (ident,) = simulator.faults([{"match": submission, "action": {"drop": "after"}}])
        process = subprocess.run(["mv", "dir", "moved"], cwd=mount.path, timeout=60, check=False)
        assert simulator.fired().get(ident)
        mount.sync()
        assert simulator.calls()["calls"][submission] == 1
        assert (process.returncode, far.names(), far.names("moved")) in (
            (0, {"moved"}, {"dirty"}),  # the job was over at the look after the lost reply
            (1, {"moved"}, {"dirty"}),
        )


class Lost:
    """A v1 mount that does not know whether `dir` became `moved` (it did): the reply may be lost,
    and the looks afterwards are, until `clear_faults`. Below it, `gone` is removed here and waits
    for the upload of `dirty`, and `stays` is open."""

    away: ClassVar = {
        "match": "GET /utilities/stat",
        "where": "moved",
        "times": None,
        "action": {"drop": "before"},
    }

    def __init__(self, mount: Mount, far: Any, simulator: Simulator, reply: str) -> None:
        self.mount, self.far, self.simulator = mount, far, simulator
        mount.announce("EHOSTUNREACH", "EIO", "offline", "not known", "again in", "be asked")
        mount.call((mount.path / "dir/dirty").write_bytes, b"dirty")
        mount.call(os.unlink, mount.path / "dir/gone")
        self.file = mount.call(os.open, mount.path / "dir/stays", os.O_RDWR)
        rename = {"match": "PUT /utilities/rename", "times": 1, "action": {"drop": "after"}}
        looks = {**self.away, "skip": 1}  # not the one before it
        simulator.faults([looks] if reply == "heard" else [looks, rename])
        with pytest.raises(OSError):
            mount.call(os.rename, mount.path / "dir", mount.path / "moved", deadline=60)

    def is_moved(self) -> None:
        self.mount.sync()
        assert self.far.names() == {"moved"}
        assert self.far.names("moved") == {"dirty", "stays"}
        assert self.far.read("moved/dirty") == b"dirty"
        assert set(self.mount.call(os.listdir, self.mount.path)) == {"moved", "jobs"}
        assert set(self.mount.call(os.listdir, self.mount.path / "moved")) == {"dirty", "stays"}


@pytest.fixture
def lost(request: pytest.FixtureRequest, own_simulator: Callable[..., Place]) -> Iterator[Lost]:
    reply = getattr(request, "param", "lost")
    place = own_simulator()
    far, simulator = sides_of(place)
    far.mkdir("dir")
    for name in ("dir/gone", "dir/stays"):
        far.write(name, b"old")
    with place.mount(place.directory, writeback_delay=30, patience=1) as mount:
        yield Lost(mount.start(), far, simulator, reply)


@pytest.mark.parametrize("lost", ["lost", "heard"], indirect=True)
def test_a_lost_outcome_is_found_out_by_the_running_daemon(lost: Lost) -> None:
    """Once the cluster answers again, what is dirty and what is open goes along."""
    mount = lost.mount
    lost.simulator.clear_faults()
    lost.is_moved()
    mount.call(os.write, lost.file, b"new")
    mount.call(os.close, lost.file)
    mount.sync()
    assert lost.far.read("moved/stays") == b"new"


def test_names_whose_rename_is_not_known(lost: Lost) -> None:
    """Nothing is made, removed or renamed there: it would be lost with what became of the rename.
    Elsewhere all goes on, also removals that wait for an upload."""
    mount, names = lost.mount, lost.mount.path / "dir"
    attempts: list[tuple[Any, ...]] = [
        (os.rename, names / "stays", mount.path / "other"),
        (os.unlink, names / "dirty"),
        (os.mkdir, names / "new"),
        ((names / "created").write_bytes, b"x"),
    ]
    with ThreadPoolExecutor(len(attempts)) as threads:
        for refusal in [threads.submit(refused, errno.EBUSY, *one) for one in attempts]:
            refusal.result(60)
    for name in ("elsewhere", "pending"):
        mount.call((mount.path / name).write_bytes, b"x")
    mount.call(os.unlink, mount.path / "elsewhere")
    lost.simulator.clear_faults()
    mount.sync()
    mount.call(os.unlink, mount.path / "pending")
    lost.is_moved()


def test_a_look_that_fails_does_not_make_a_rename_fail(own_simulator: Callable[..., Place]) -> None:
    """The cluster has renamed, and the server fails at the stat afterwards: what is dirty below
    goes along, and what was removed stays removed."""
    place = own_simulator()
    far, simulator = sides_of(place)
    far.mkdir("dir")
    far.write("dir/gone", b"old")
    with place.mount(place.directory, writeback_delay=30) as mount:
        mount.start()
        mount.announce("not known", "EIO")
        mount.call((mount.path / "dir/dirty").write_bytes, b"dirty")
        mount.call(os.unlink, mount.path / "dir/gone")
        fault = {**Lost.away, "skip": 1, "times": 1, "action": {"status": 500}}
        (ident,) = simulator.faults([fault])
        with contextlib.suppress(OSError):
            mount.call(os.rename, mount.path / "dir", mount.path / "moved")
        assert simulator.fired().get(ident)
        mount.sync()
        assert far.names() == {"moved"}
        assert far.names("moved") == {"dirty"}


@pytest.mark.parametrize(
    "when", ["dirty before", "written since", "opened since", "written, and a kill"]
)
def test_what_a_lost_rename_replaced(own_simulator: Callable[..., Place], when: str) -> None:
    """A dirty file that was renamed over does not come back; what was written there after the
    rename had failed was acknowledged, and stays beside."""
    place = own_simulator()
    far, simulator = sides_of(place)
    for name in ("file", "moved"):
        far.write(name, b"old")
        far.age(name)
    with place.mount(place.directory, writeback_delay=1, patience=1) as mount:
        mount.start()
        mount.announce("EHOSTUNREACH", "EIO", "offline", "not known", "written after it was")
        mount.announce("never closed")
        if when == "opened since":
            mount.call((mount.path / "moved").read_bytes)  # else it cannot be opened offline
        else:
            target = mount.call(os.open, mount.path / "moved", os.O_WRONLY | os.O_TRUNC)
            mount.call(os.write, target, b"replaced")
            mount.call(os.fsync, target)
        mount.call((mount.path / "file").write_bytes, b"from file")
        rename = {"match": "PUT /utilities/rename", "times": 1, "action": {"drop": "after"}}
        simulator.faults([rename, {**Lost.away, "skip": 1}])
        with pytest.raises(OSError):
            mount.call(os.rename, mount.path / "file", mount.path / "moved", deadline=60)
        if when == "opened since":
            target = mount.call(os.open, mount.path / "moved", os.O_WRONLY | os.O_TRUNC)
        if when != "dirty before":
            mount.call(os.write, target, b", and more")
        mount.call(os.close, target)
        if when == "written, and a kill":
            mount.call(os.utime, mount.path / "moved", (1e9, 1e9))  # as cp -p does
            mount.kill()
        simulator.clear_faults()
        if when == "written, and a kill":
            mount.start()
        mount.sync()
        assert far.read("moved") == b"from file"
        besides = [far.read(one) for one in far.names() - {"moved"}]
        assert (
            besides
            == {
                "dirty before": [],
                "written since": [b"replaced, and more"],
                "opened since": [b", and more"],
                "written, and a kill": [b"replaced, and more"],
            }[when]
        )


def test_what_is_written_to_the_target_waits_for_the_outcome(
    own_simulator: Callable[..., Place],
) -> None:
    """`mv file target || cat new > target`, while the mv still waits its turn at the server: the
    new content is not published under the name before that, or the late mv would take it away."""
    place = own_simulator()
    far, simulator = sides_of(place)
    for name in ("file", "moved"):
        far.write(name, b"old")
        far.age(name)
    options: dict[str, Any] = {"writeback_delay": 0.1, "patience": 0.3, "request_timeout": 1}
    with place.mount(place.directory, **options) as mount:
        mount.start()
        mount.announce("EHOSTUNREACH", "EIO", "offline", "not known", "written after it was")
        mount.announce("changed on the cluster", "the local version is", "ETIMEDOUT", "again in")
        mount.call((mount.path / "moved").read_bytes)
        late = {"match": "PUT /utilities/rename", "times": 1, "action": {"delay": 4.5}}
        (ident, _) = simulator.faults([late, {**Lost.away, "skip": 1}])
        with pytest.raises(OSError):
            mount.call(os.rename, mount.path / "file", mount.path / "moved", deadline=60)
        assert simulator.fired().get(ident)
        simulator.clear_faults()
        mount.call((mount.path / "moved").write_bytes, b"new")
        wait_until(lambda: "file" not in far.names(), "the late mv")
        mount.sync()
        assert b"new" in [far.read(one) for one in far.names()]
