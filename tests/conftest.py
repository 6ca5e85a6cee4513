"""Fixtures for everything that needs a cluster: the simulator, or with --live a real FirecREST.

`--live` takes the server from the environment (FIRECREST_URL, AUTH_TOKEN_URL, FIRECREST_CLIENT_ID,
FIRECREST_CLIENT_SECRET, FIRECREST_SYSTEM) and works in F7TFS_LIVE_DIR; tests that need to look
inside the server, or to disturb it, are marked `simulator` and skipped then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Door, MountDoor, TreeDoor
from farside import FarSide, LiveFarSide, SimFarSide
from mounting import Credentials, Mount
from sim_process import Simulator, running_simulator

from f7tfs.config import load

STAGING_INTERVAL = 0.3  # seconds; the recorded server's default of 60 would be our run time


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--api",
        choices=("v1", "v2"),
        default="v1",
        help="the dialect that the shared simulator speaks",
    )
    parser.addoption(
        "--live",
        action="store_true",
        help="run the mount scenarios against the FirecREST that the environment names",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "simulator: looks inside the cluster or disturbs it; skipped with --live"
    )
    config.addinivalue_line("markers", "v1: counts v1's calls or proves v1's facts")


LIVE_FILES = ("t3_scenarios", "t4_tools")  # beginnings of names
_WANTED = (
    "FIRECREST_URL", "AUTH_TOKEN_URL", "FIRECREST_CLIENT_ID", "FIRECREST_CLIENT_SECRET",
    "FIRECREST_SYSTEM", "F7TFS_LIVE_DIR",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--api") == "v2":
        for item in items:
            if item.get_closest_marker("v1"):
                item.add_marker(pytest.mark.skip(reason="proves a fact of v1"))
    if not config.getoption("--live"):
        return
    missing = [name for name in _WANTED if not os.environ.get(name)]
    if missing:
        raise pytest.UsageError(f"--live needs {', '.join(missing)} in the environment")
    for item in items:
        if not item.path.name.startswith(LIVE_FILES):
            item.add_marker(pytest.mark.skip(reason="not one of the scenarios that --live runs"))
        elif item.get_closest_marker("simulator"):
            item.add_marker(pytest.mark.skip(reason="needs to look inside the cluster"))


class Place:
    """A FirecREST and a directory on it where tests may do as they like."""

    def __init__(
        self,
        credentials: Credentials,
        system: str,
        directory: str,
        far: Callable[[str], FarSide],
        simulator: Simulator | None,
    ) -> None:
        self.credentials = credentials
        self.system = system
        self.directory = directory
        self.far = far
        self.simulator = simulator

    def mount(self, directory: str, **options: Any) -> Mount:
        system = options.pop("system", self.system)
        environment = options.pop("environment", None)
        zygote = options.pop("zygote", None)
        return Mount(
            f"{system}:{directory}",
            self.credentials,
            options=options,
            environment=environment,
            zygote=zygote,
        )


def credentials_of(simulator: Simulator) -> Credentials:
    info = simulator.info
    return Credentials(
        info["firecrest_url"], info["auth_token_url"], info["client_id"], info["client_secret"]
    )


def place_of(simulator: Simulator) -> Place:
    owner = simulator.scratch.stat()
    return Place(
        credentials_of(simulator),
        simulator.system,
        str(simulator.scratch),
        lambda directory: SimFarSide(Path(directory), owner.st_uid, owner.st_gid),
        simulator,
    )


@pytest.fixture(scope="session")
def shared_simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    options: dict[str, Any] = {"staging_interval": STAGING_INTERVAL, "kill_wait": 0.3}
    if request.config.getoption("--api") == "v2":
        # Two seconds instead of the recorded sixty for an ingest job that came too early.
        options |= {"api": "v2", "ingest_sleep": 2}
    with running_simulator(**options) as running:
        yield running


@pytest.fixture
def simulator(shared_simulator: Simulator) -> Iterator[Simulator]:
    """The session's simulator, with fresh counters and no faults."""
    shared_simulator.clear_faults()
    shared_simulator.reset_calls()
    yield shared_simulator
    shared_simulator.clear_faults()


@pytest.fixture
def own_simulator() -> Iterator[Callable[..., Place]]:
    """Simulators with options of the test's choice: `own_simulator(token_lifetime=2)`."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Place:
            options.setdefault("staging_interval", STAGING_INTERVAL)
            return place_of(stack.enter_context(running_simulator(**options)))

        yield start


@pytest.fixture(scope="session")
def session_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if not request.config.getoption("--live"):
        yield place_of(request.getfixturevalue("shared_simulator"))
        return
    environ = os.environ
    credentials = Credentials(
        environ["FIRECREST_URL"], environ["AUTH_TOKEN_URL"],
        environ["FIRECREST_CLIENT_ID"], environ["FIRECREST_CLIENT_SECRET"],
    )  # fmt: skip
    system, work = environ["FIRECREST_SYSTEM"], environ["F7TFS_LIVE_DIR"].rstrip("/")
    base = LiveFarSide(credentials, system, work)
    name = f"f7tfs-tests-{uuid.uuid4().hex[:8]}"
    base.mkdir(name)
    try:
        yield Place(
            credentials,
            system,
            f"{work}/{name}",
            lambda directory: LiveFarSide(credentials, system, directory),
            None,
        )
    finally:
        base.remove(name)


@pytest.fixture
def place(session_place: Place, request: pytest.FixtureRequest) -> Place:
    if session_place.simulator is not None:
        request.getfixturevalue("simulator")
    return session_place


@pytest.fixture
def directory(place: Place) -> str:
    """A fresh remote directory."""
    name = f"d-{uuid.uuid4().hex[:10]}"
    place.far(place.directory).mkdir(name)
    return f"{place.directory}/{name}"


@pytest.fixture
def far(place: Place, directory: str) -> Any:
    """What the cluster holds in `directory`. SimFarSide, or LiveFarSide with --live."""
    return place.far(directory)


@pytest.fixture
def mount_with(place: Place, directory: str) -> Iterator[Callable[..., Mount]]:
    """Mounts of `directory` with options, removed at the end; their logs must be silent."""
    with contextlib.ExitStack() as stack:
        made: list[Mount] = []

        def start(remote: str = directory, *, start: bool = True, **options: Any) -> Mount:
            made.append(stack.enter_context(place.mount(remote, **options)))
            return made[-1].start() if start else made[-1]

        yield start
        for one in made:
            one.assert_quiet()


@pytest.fixture
def mount(mount_with: Callable[..., Mount]) -> Iterator[Mount]:
    """A mount of `directory`. At the end: everything can be uploaded, nothing is left behind, no
    descriptor is leaked, the log is silent."""
    one = mount_with()
    before = one.descriptors()
    yield one
    if one.is_running and one.is_mounted:
        leave_tidy(one, before)


def leave_tidy(one: Mount, before: list[str] | None = None) -> None:
    """Sync, look for leaks, unmount, look for leftovers."""
    one.sync()
    one.assert_nothing_left()
    if before is not None:
        more = [link for link in one.descriptors() if not link.startswith("socket")]
        fewer = [link for link in before if not link.startswith("socket")]
        extra = list(more)
        for link in fewer:
            if link in extra:
                extra.remove(link)
        assert not [x for x in extra if "f7tfs-output-" not in x], f"descriptors leaked: {extra}"
    assert one.unmount_plainly() == 0
    assert not one.is_mounted


# The scenario suite's two doors.


@pytest.fixture(scope="session")
def _kept_mount(session_place: Place) -> Iterator[Callable[[], Mount]]:
    """One mount for all scenarios: start-up costs a second. A new one if a test broke it."""
    current: list[Mount] = []

    def get() -> Mount:
        if current and not (current[0].is_running and current[0].is_mounted):
            current.pop().remove()
        if not current:
            current.append(session_place.mount(session_place.directory).start())
        return current[0]

    yield get
    for one in current:
        one.remove()


@pytest.fixture(params=["tree", "mount"])
def door(
    request: pytest.FixtureRequest, place: Place, directory: str, tmp_path: Path
) -> Iterator[Door]:
    """The tree itself, and a real mount: the same scenarios through both."""
    if request.param == "tree":
        with tree_door(place, directory, tmp_path) as made:
            yield made
        return
    kept: Mount = request.getfixturevalue("_kept_mount")()
    kept.announced.clear()
    kept.trouble()
    kept.refresh()
    if place.simulator is not None:
        place.simulator.reset_calls()
    through = MountDoor(kept, directory.rpartition("/")[2])
    yield through
    if kept.is_running and kept.is_mounted:
        try:
            through.sync()
            kept.assert_nothing_left()
        except BaseException:
            kept.kill()  # the next test gets another one
            raise
    through.assert_quiet()


@contextlib.contextmanager
def tree_door(place: Place, directory: str, folder: Path, **options: Any) -> Iterator[TreeDoor]:
    # Without jobs/, so that its root holds what the cluster's directory holds.
    words = {"writeback_delay": 0.2, "jobs.enabled": "false", **options}
    home = Path(tempfile.mkdtemp(prefix="f7tfs-tree-"))
    words |= {"state_directory": home / "state", "cache_directory": home / "cache"}
    config = load(
        f"{place.system}:{directory}",
        folder / "nowhere",
        options=[",".join(f"{key}={value}" for key, value in words.items())],
        config_file=None,
        environ={**place.credentials.environment, "HOME": str(home)},
    )
    made = TreeDoor(config)
    try:
        if place.simulator is not None:
            place.simulator.reset_calls()
        yield made
        made.sync()
        made.assert_quiet()
    finally:
        made.remove()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["tree", "mount"])
def door_with(
    request: pytest.FixtureRequest,
    place: Place,
    directory: str,
    mount_with: Callable[..., Mount],
    tmp_path: Path,
) -> Iterator[Callable[..., Door]]:
    """Both doors with options: `door_with(listing_ttl=0.3)`."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Door:
            if request.param == "tree":
                return stack.enter_context(tree_door(place, directory, tmp_path, **options))
            options = {"jobs.enabled": "false", **options}
            return MountDoor(mount_with(directory, **options))

        yield make
