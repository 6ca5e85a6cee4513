"""kill -9 *at* every named crash point of a write (docs/decisions/0007), by the daemon itself.

One row a scene: what is on the cluster before, what is done in the mount, what must be there
afterwards, and the points at which the daemon ends on the way. After each end the next daemon
shows, at once, what may be there; and after a sync the cluster has just that.

On v2 the suite tries what is another way there; F7TFS_CRASH_POINTS=all tries every point.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from conftest import STAGING_INTERVAL, Place, place_of
from farside import SimFarSide
from mounting import Mount, MountFailed
from sim_process import running_simulator
from t3_scenarios import data_of
from waits import wait_until
from zygote import Zygote

from f7tfs.faultpoints import POINTS, VARIABLE

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(120)]
SMALL, BIG = data_of(20_000), data_of(6_000_000)
Files = dict[str, bytes | None]  # None: a directory


class Scene(NamedTuple):
    """`act` is a shell script with $D the directory in the mount, $FAR the same on the cluster,
    $SMALL and $BIG files to copy. `after` is the outcome if it ended well; if it did not, `before`
    or `after` or one of `or_else`. Points with @v1 or @v2 are passed by this dialect only; the
    ones with a + are tried on v2 also in the suite."""

    name: str
    points: str
    act: str
    before: Files
    after: Files
    or_else: tuple[Files, ...] = ()
    modes: dict[str, int] = {}  # noqa: RUF012 (never changed)
    linked: str = ""  # a second name of "file" on the cluster
    trouble: str = "again in|never closed|the local version is|is not what we made there"


SCENES = [
    Scene(
        "new",
        "spool.created spool.synced spool.recorded spool.named upload.journaled upload.sent"
        " upload.proven upload.expected +rename.linked@v2 +upload.renamed upload.record-dropped"
        " upload.adopted",
        "cp $SMALL $D/file",
        {},
        {"file": SMALL},
    ),
    Scene(
        "many",
        "archive.expected +archive.brought +archive.extracted +archive.removed",
        "cd $D; tee 1 2 3 4 5 6 <$SMALL >/dev/null",  # closed at once, so that they go together
        {},
        {str(n): SMALL for n in range(1, 7)},
    ),
    Scene(
        "again",
        "upload.moded upload.expected +rename.linked@v2 +upload.renamed"
        " upload.record-dropped",
        "cp $SMALL $D/file",
        {"file": b"old"},
        {"file": SMALL},
        modes={"file": 0o755},
    ),
    Scene(
        "private",
        "upload.private",
        "cp $SMALL $D/file",
        {"file": b"old"},
        {"file": SMALL},
        modes={"file": 0o600},
    ),
    Scene(
        "staged",
        "+upload.ticket-given +upload.ticket-recorded upload.form-sent@v1"
        " +upload.part-recorded@v2 +upload.parts-sent@v2"
        " +upload.sending-recorded upload.sent upload.proven +upload.renamed",
        "cp $BIG $D/file",
        {"file": b"old"},
        {"file": BIG},
    ),
    Scene(
        "written twice",
        "spool.recorded:2 upload.record-dropped",
        "cp $SMALL $D/file; cp $BIG $D/file",
        {},
        {"file": BIG},
        ({"file": SMALL}, {"file": b""}),
    ),
    Scene(
        "conflict",
        "conflict.expected +conflict.renamed",
        "exec 3>$D/file; cat $SMALL >&3; echo theirs, and longer >>$FAR/file; exec 3>&-",
        {"file": b"old"},
        {"file": b"oldtheirs, and longer\n", "file.conflict": SMALL},
    ),
    Scene(
        "in place",
        "in-place.journaled in-place.sent in-place.proven upload.record-dropped",
        "cp $SMALL $D/file",
        {"file": b"old", "other": b"old"},
        {"file": SMALL, "other": SMALL},
        linked="other",
    ),
    Scene(
        "in place, staged",
        "in-place.journaled@v1 upload.ticket-recorded@v1 upload.form-sent@v1 in-place.sent@v1"
        " +pieces.named@v2 +pieces.sent@v2 +pieces.join-recorded@v2 +pieces.joined@v2"
        " +pieces.forgotten@v2 in-place.proven",
        "cp $BIG $D/file",
        {"file": b"old", "other": b"old"},
        {"file": BIG, "other": BIG},
        linked="other",
    ),
    Scene(
        "copied and removed",
        "removal.buried upload.expected +upload.renamed removal.removed removal.ended",
        "cp $D/file $D/copy; rm $D/file",
        {"file": SMALL},
        {"copy": SMALL},
        ({"file": SMALL, "copy": SMALL},),
    ),
    Scene(
        "removed and made again",
        "removal.exhumed spool.created:2 spool.synced:2 spool.recorded:2 spool.named:2",
        "cp $SMALL $D/other; rm $D/file; touch $MNT/../removed; cp $SMALL $D/file",
        {"file": b"old"},
        {"other": SMALL, "file": SMALL},
        ({"other": SMALL},),
    ),
    Scene(
        "removed, made again and removed",
        "removal.buried:2 discard.unlinked",
        "cp $SMALL $D/other; rm $D/file; cp $SMALL $D/file; rm $D/file",
        {"file": b"old"},
        {"other": SMALL},
        ({"other": SMALL, "file": SMALL},),
    ),
    Scene(
        "removed, made again and renamed",
        "rename.moved +rename.linked@v2 rename.recorded",
        "cp $SMALL $D/other; rm $D/file; cp $SMALL $D/file; mv $D/file $D/name",
        {"file": b"old"},
        {"other": SMALL, "name": SMALL},
        ({"other": SMALL, "file": SMALL},),
    ),
    Scene(
        "removed, and another renamed there",
        "+rename.moved +rename.linked@v2",
        "cp $SMALL $D/other; rm $D/name; mv $D/file $D/name",
        {"file": b"moved", "name": b"old"},
        {"other": SMALL, "name": b"moved"},
        ({"other": SMALL, "file": b"moved"},),
    ),
    Scene(
        "removed, and the directory renamed",
        "+rename.submitted@v2 +rename.moved",
        "cp $SMALL $D/other; rm $D/dir/gone; mv $D/dir $D/name",
        {"dir": None, "dir/gone": b"old", "dir/stays": b"stays"},
        {"other": SMALL, "name": None, "name/stays": b"stays"},
        ({"other": SMALL, "dir": None, "dir/stays": b"stays"},),
    ),
    Scene(
        "new and renamed",
        "rename.recorded",
        "cp $SMALL $D/file; mv $D/file $D/name",
        {},
        {"name": SMALL},
        ({"file": SMALL},),
    ),
    Scene(
        "saved as editors do",
        "rename.recorded discard.unlinked discard.record-dropped",
        "cp $SMALL $D/file; cp $BIG $D/.goutputstream-XXXXXX; mv $D/.goutputstream-XXXXXX $D/file",
        {"file": b"old"},
        {"file": BIG},
        ({"file": SMALL, ".goutputstream-XXXXXX": BIG},),
    ),
    Scene(
        "written and renamed",
        "+rename.moved +rename.linked@v2 rename.recorded",
        "cp $SMALL $D/file; mv $D/file $D/name",
        {"file": b"old"},
        {"name": SMALL},
        ({"file": SMALL},),
    ),
    Scene(
        "renamed over a dirty file",
        "+rename.moved rename.recorded discard.unlinked discard.record-dropped",
        "cp $SMALL $D/name; cp $BIG $D/file; mv $D/file $D/name",
        {"file": b"old", "name": b"older"},
        {"name": BIG},
        ({"file": BIG, "name": SMALL},),
    ),
    Scene(
        "renamed, nothing written",
        "rename.moved +rename.linked@v2",
        "mv $D/file $D/name",
        {"file": b"old"},
        {"name": b"old"},
    ),
    Scene(
        "backed up",
        "alias.journaled +alias.renamed",
        "mv $D/file $D/file~; cp $SMALL $D/file",
        {"file": b"old"},
        {"file": SMALL, "file~": b"old"},
        ({"file~": b"old"},),
    ),
    Scene(
        "directory renamed",
        "+rename.submitted@v2 +rename.moved rename.recorded rename.recorded:2",
        "cp $SMALL $D/dir/one; cp $BIG $D/dir/two; mv $D/dir $D/name",
        {"dir": None, "dir/one": b"old"},
        {"name": None, "name/one": SMALL, "name/two": BIG},
        ({"dir": None, "dir/one": SMALL, "dir/two": BIG},),
    ),
    Scene(
        "rmdir",
        "rmdir.marker-journaled +rmdir.marked +rmdir.unmarked",
        "rmdir $D/dir",
        {"dir": None},
        {},
    ),
    Scene(
        "rmdir behind a removal",
        "rmdir.marker-journaled rmdir.marked removal.ended:2",
        "cp $D/dir/file $D/copy; rm $D/dir/file; rmdir $D/dir",
        {"dir": None, "dir/file": SMALL},
        {"copy": SMALL},
    ),
    Scene(
        "written and removed",
        "discard.unlinked discard.record-dropped",
        "cp $SMALL $D/file; rm $D/file",
        {},
        {},
        ({"file": SMALL},),
    ),
]  # fmt: skip


class Stage(NamedTuple):
    """A cluster of one dialect, and a mount of it that is started again and again."""

    dialect: str
    place: Place
    far: SimFarSide
    mount: Mount

    def arm(self, point: str | None) -> None:
        """Start a daemon that ends at `point`."""
        self.mount.kill()
        self.mount.environment.pop(VARIABLE, None)
        if point is not None:
            self.mount.environment[VARIABLE] = point
        self.mount.start()

    def reach(self, point: str) -> None:
        """The daemon got there, and is no more."""
        process = self.mount.process
        assert process is not None
        wait_until(lambda: process.poll() is not None, f"the daemon to reach {point}", 20.0)
        assert process.returncode == -signal.SIGKILL, self.mount.log()[-3000:]
        self.mount.kill()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


@pytest.fixture(scope="module", params=["v1", "v2"])
def stage(request: pytest.FixtureRequest, zygote: Zygote) -> Iterator[Stage]:
    options: dict[str, Any] = {"staging_interval": STAGING_INTERVAL}
    if request.param == "v2":
        options = {"api": "v2", "ingest_sleep": 1}
    with running_simulator(**options) as simulator:
        place = place_of(simulator)
        far = place.far(place.directory)
        assert isinstance(far, SimFarSide)
        with place.mount(place.directory, zygote=zygote) as mount:
            (mount.folder / "small").write_bytes(SMALL)
            (mount.folder / "big").write_bytes(BIG)
            mount.announce("stay in the journal")
            yield Stage(request.param, place, far, mount)
            mount.kill()
            mount.start()
            mount.sync()
            assert mount.unmount_plainly() == 0
            assert far.all_litter() == []


def rows() -> Iterator[Any]:
    everything = os.environ.get("F7TFS_CRASH_POINTS") == "all"
    for scene in SCENES:
        for word in scene.points.split():
            point, _, dialect = word.lstrip("+").partition("@")
            for each in (dialect,) if dialect else ("v1", "v2"):
                if each == "v1" or everything or word.startswith("+"):
                    ident = f"{scene.name.replace(' ', '-')}-{point}"
                    yield pytest.param(each, scene, point, id=f"{each}-{ident}")


@pytest.mark.parametrize(("stage", "scene", "point"), list(rows()), indirect=["stage"])
def test_a_kill_at(stage: Stage, scene: Scene, point: str) -> None:
    """Writing: "A crash at any point is resumed or repeated from the journal"; what close() or
    rename() acknowledged is there, what they did not is there whole or not at all."""
    folder = re.sub(r"\W+", "-", f"{scene.name} {point}")
    mount, far = stage.mount, stage.far
    far.mkdir(folder)
    for name, content in scene.before.items():
        if name == scene.linked:
            os.link(far[f"{folder}/file"], far[f"{folder}/{name}"])
        elif content is None:
            far.mkdir(f"{folder}/{name}")
        else:
            far.write(f"{folder}/{name}", content, scene.modes.get(name, 0o644))
            far.age(f"{folder}/{name}")
    stage.arm(point)
    done = mount.run(
        f"set -e; {scene.act}",
        check=False,
        environment={
            "D": str(mount.path / folder),
            "FAR": str(far[folder]),
            "SMALL": str(mount.folder / "small"),
            "BIG": str(mount.folder / "big"),
        },
    )
    stage.reach(point)
    mount.announce(scene.trouble)
    stage.arm(None)
    shown = seen(mount.path / folder, mount)
    allowed = [scene.after] if done.returncode == 0 else [scene.before, scene.after]
    allowed += scene.or_else if done.returncode else ()
    pending = {**scene.after, scene.linked: scene.before[scene.linked]} if scene.linked else {}
    assert shown in [*allowed, pending], f"{done.stderr}\n{mount.log()[-3000:]}"
    mount.sync()
    kept = seen(far[folder])
    assert kept in allowed
    assert seen(mount.path / folder, mount) == kept
    for name, mode in scene.modes.items():
        assert far.mode(f"{folder}/{name}") == mode
    if scene.linked:
        assert far.stat(f"{folder}/file").st_nlink == 2
    wait_until(lambda: not litter(far[folder]), f"no litter in {folder}")
    mount.assert_nothing_left()
    mount.assert_quiet()
    mount.kill()


def seen(folder: Path, mount: Mount | None = None) -> Files:
    """What is in a directory and below, without names of our own; a conflict's is cut short."""

    def walk() -> Files:
        found: Files = {}
        for path, folders, files in os.walk(folder):
            below = os.path.relpath(path, folder)
            for name in (*folders, *files):
                place = Path(path) / name
                shown = re.sub(r"\.conflict-.*", ".conflict", os.path.normpath(f"{below}/{name}"))
                if not name.startswith(".f7tfs-"):
                    found[shown] = None if place.is_dir() else content_of(place)
        return found

    return walk() if mount is None else mount.call(walk)


def content_of(place: Path) -> bytes:
    try:
        return place.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:  # its other name was just written in place
            raise
        return place.read_bytes()


def litter(folder: Path) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names if ".f7tfs-" in name]


# Submissions.

SCRIPT = "#!/bin/bash\necho hello\n"


@pytest.mark.parametrize("stage", ["v1", "v2"], indirect=True)
@pytest.mark.parametrize(
    ("point", "jobs", "state"),
    [
        ("submit.stored", 0, None),
        ("submit.recorded", 1, "submitted"),
        ("submit.sending", 0, "unknown"),
        ("submit.sent", 1, "submitted"),
        ("submit.settled", 1, "submitted"),
    ],
)
def test_a_kill_at_a_submission(stage: Stage, point: str, jobs: int, state: str | None) -> None:
    """Once: "The record is journaled *before* the call …": never two jobs, and never one that
    nobody asked for."""
    mount, simulator = stage.mount, stage.place.simulator
    assert simulator is not None
    name = f"{point.replace('.', '-')}.sh"
    (mount.folder / "script").write_text(SCRIPT)
    simulator.reset_calls()
    stage.arm(point)
    done = mount.run(f"cp script mnt/jobs/{name}", check=False)
    assert done.returncode != 0
    stage.reach(point)
    mount.announce("known whether", "which job", "never closed")
    stage.arm(None)

    def drop() -> str | None:
        mount.call(os.listdir, mount.path / "jobs")
        found = {one["name"]: one["state"] for one in mount.status()["jobs"]["dropped"]}
        return found.get(name)

    wait_until(lambda: drop() == state, f"the drop to be {state}")
    calls = simulator.calls()["calls"]
    assert sum(calls.get(call, 0) for call in SUBMISSIONS) == jobs
    mount.assert_quiet()
    mount.kill()


SUBMISSIONS = ("POST /compute/jobs/upload", "POST /compute/cluster/jobs")


def labels(mount: Mount) -> set[str]:
    """Paths of what the cache would show to a later mount."""
    found = (mount.folder / "cache").rglob("*.json")
    return {msgspec.json.decode(one.read_bytes())["path"] for one in found}


@pytest.mark.parametrize("stage", ["v1", "v2"], indirect=True)
@pytest.mark.parametrize("point", ["upload.expected", "upload.renamed"])
def test_the_cache_has_no_older_version(stage: Stage, point: str) -> None:
    """Reading: "a later fingerprint is never attached to earlier bytes". Two versions of one second
    and one size have the same fingerprint: the older one may not be found after a crash."""
    mount, far, name = stage.mount, stage.far, f"cached {point}"
    stage.arm(None)
    mount.call((mount.path / name).write_bytes, SMALL)
    mount.sync()
    assert str(far[name]) in labels(mount)
    stage.arm(point)
    mount.call((mount.path / name).write_bytes, SMALL[::-1])
    stage.reach(point)
    assert str(far[name]) not in labels(mount)
    stage.arm(None)
    mount.announce("again in|never closed")
    mount.sync()
    assert mount.call((mount.path / name).read_bytes) == far.read(name) == SMALL[::-1]
    mount.kill()


# The points themselves.


def test_every_point_is_tried() -> None:
    tried = {re.sub(r"^\+|[:@].*$", "", one) for scene in SCENES for one in scene.points.split()}
    assert tried | {one for one in POINTS if one.startswith("submit.")} == set(POINTS)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("upload.provn", "there is no fault point 'upload.provn'; did you mean upload.proven?"),
        ("upload.proven:0", "'0' is not a number of times, 1 or more"),
        ("upload.proven:", "'' is not a number of times, 1 or more"),
    ],
)
def test_an_unknown_point_is_refused(
    mount_with: Callable[..., Mount], words: str, complaint: str
) -> None:
    """docs/architecture.md: a test that arms a misspelt point cannot pass."""
    mount = mount_with(start=False)
    mount.environment[VARIABLE] = words
    mount.announce(VARIABLE)
    with pytest.raises(MountFailed) as caught:
        mount.start()
    assert (caught.value.code, caught.value.message) == (3, f"{VARIABLE}: {complaint}")
