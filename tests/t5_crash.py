"""Crashes, lost replies and bad networks: nothing that was closed is ever lost, nothing is done
twice (SEMANTICS, tenet 1; HABITS 9). Crash points are made by holding an API call in the simulator
and killing the daemon there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Place, leave_tidy
from mounting import Mount, MountFailed
from sim_process import Simulator
from t3_scenarios import data_of, refused
from waits import wait_until

pytestmark = pytest.mark.simulator
SMALL, BIG = data_of(20_000), data_of(6_000_000)
NETWORK = r"again in|not submitted yet|is known whether|Unreachable|EHOSTUNREACH|removing .*: "


def hold(simulator: Simulator, match: str, *, skip: int = 0, where: str = "") -> int:
    """One matching request gets no answer until the daemon is gone."""
    rule = {"match": match, "where": where, "skip": skip, "action": {"hang": True}}
    return simulator.faults([rule])[0]


def reached(simulator: Simulator, ident: int, what: str) -> None:
    wait_until(lambda: simulator.fired().get(ident), f"the daemon to reach {what}")


def put(mount: Mount, name: str, content: bytes) -> None:
    (mount.folder / "source").write_bytes(content)
    mount.run(["cp", str(mount.folder / "source"), str(mount.path / name)])


def finish(mount: Mount, far: Any, wanted: dict[str, bytes]) -> None:
    """After a remount: all of it arrives, and nothing else is there."""
    mount.sync()
    assert far.names() == set(wanted)
    for name, content in wanted.items():
        assert far.read(name) == content, name
        assert mount.call((mount.path / name).read_bytes) == content
    leave_tidy(mount)
    assert far.all_litter() == []


# kill -9.


@pytest.mark.parametrize("content", [b"", SMALL, BIG], ids=["empty", "small", "staged"])
def test_kill_right_after_cp(mount: Mount, far: Any, content: bytes) -> None:
    """Must show: "`kill -9` of the daemon right after `cp` returned, remount: the file arrives"."""
    put(mount, "file", content)
    mount.kill()
    mount.start()
    assert mount.call((mount.path / "file").read_bytes) == content
    finish(mount, far, {"file": content})


# (size, call that is held, target). Each file has a directory of its own, by whose name its call is
# told; a daemon makes four calls at once, so three are held together. What cannot be told apart
# has a daemon of its own.
CRASH_POINTS = {
    # One by one: small new files that come together go in one archive.
    "small-upload": [("small", "POST /utilities/upload", "new")],
    "small-stat": [("small", "GET /utilities/stat", "new")],
    "small-rename": [("small", "PUT /utilities/rename", "new")],
    "small-existing": [
        ("small", "POST /utilities/upload", "existing"),
        ("small", "GET /utilities/stat", "existing"),
        ("small", "PUT /utilities/rename", "existing"),
    ],
    "staged": [
        ("staged", "POST /storage/xfer-external/upload", "new"),
        ("staged", "GET /utilities/checksum", "new"),
        ("staged", "PUT /utilities/rename", "new"),
    ],
    "staged-existing": [("staged", "PUT /utilities/rename", "existing")],
    "tasks": [("staged", "GET /tasks", "new")],
    "object-store": [("staged", "object-store POST", "new")],
}


def own(call: str, folder: str) -> str:
    """What tells a call about our temporary in one directory, where anything does."""
    if call.startswith(("GET /tasks", "object-store")):
        return ""
    return f"{folder}&" if call.endswith("utilities/upload") else f"{folder}/.f7tfs-"


@pytest.mark.parametrize("points", CRASH_POINTS)
def test_kill_during_an_upload(mount: Mount, far: Any, simulator: Simulator, points: str) -> None:
    """Writing: "A crash at any point is resumed or repeated from the journal"."""
    cases = CRASH_POINTS[points]
    wanted: dict[str, bytes] = {}
    held: dict[int, str] = {}
    for number, (size, _, target) in enumerate(cases):
        folder = f"at-{number}"
        far.mkdir(folder)
        if target == "existing":
            far.write(f"{folder}/file", b"old")
        wanted[f"{folder}/file"] = SMALL if size == "small" else BIG
    mount.run("cat mnt/*/file; ls -l mnt/*")  # what is there is known
    for number, (_, call, _) in enumerate(cases):
        held[hold(simulator, call, where=own(call, f"at-{number}"))] = f"{call} of {number}"
    for name, content in wanted.items():
        put(mount, name, content)
    for ident, what in held.items():
        reached(simulator, ident, what)
    for name, (_, _, target) in zip(wanted, cases, strict=True):
        if target == "existing":
            assert far.read(name) == b"old"  # nobody sees half of it
    mount.kill()
    simulator.clear_faults()
    mount.start()
    mount.sync()
    for name, content in wanted.items():
        assert far.names(name.partition("/")[0]) == {"file"}
        assert far.read(name) == content, name
        assert mount.call((mount.path / name).read_bytes) == content
    assert far.names() == {name.partition("/")[0] for name in wanted}
    leave_tidy(mount)
    assert far.all_litter() == []


@pytest.mark.parametrize("call", ["POST /utilities/upload", "PUT /utilities/rename"])
def test_kill_after_the_call_was_executed(
    mount: Mount, far: Any, simulator: Simulator, call: str
) -> None:
    """Writing: "a remote equal to what we journaled just before publishing (lost reply)" is no
    conflict; the next start finds its own work."""
    far.write("file", b"old")
    rule = {"match": call, "where": ".f7tfs-", "action": {"drop": "after"}}
    (ident,) = simulator.faults([rule])
    mount.announce(NETWORK)
    put(mount, "file", SMALL)
    reached(simulator, ident, call)
    mount.kill()
    simulator.clear_faults()
    mount.start()
    finish(mount, far, {"file": SMALL})


def test_kill_with_a_renamed_and_a_removed_file(mount: Mount, far: Any) -> None:
    """Writing: what happened to names while they were pending is journaled, too."""
    far.write("old", b"old")
    mount.run(
        "cd mnt; echo one >a; mv a b; echo two >c; rm c; cp old copy; rm old; mkdir d; echo x >d/x"
    )
    mount.kill()
    mount.start()
    mount.sync()
    assert far.names() == {"b", "copy", "d"}
    assert (far.read("b"), far.read("copy"), far.read("d/x")) == (b"one\n", b"old", b"x\n")
    leave_tidy(mount)


def test_a_file_that_was_never_closed_is_set_aside(mount: Mount, far: Any) -> None:
    """docs/decisions/0007: what nobody closed is not uploaded, and not deleted either."""
    mount.announce("never closed")
    fd = mount.call(os.open, mount.path / "file", os.O_WRONLY | os.O_CREAT)
    mount.call(os.write, fd, b"half")
    mount.kill()
    refused(errno.ENOTCONN, os.close, fd)
    mount.start()
    mount.sync()
    assert far.names() == set()
    aside = [file for file in mount.spool_files() if file.parent.name == "unclosed"]
    assert [file.read_bytes() for file in aside] == [b"half"]


def test_fsync_survives_a_kill(mount: Mount, far: Any) -> None:
    """Writing: "`fsync` = durable in the local journal"."""
    fd = mount.call(os.open, mount.path / "file", os.O_WRONLY | os.O_CREAT)
    mount.call(os.write, fd, b"synced")
    mount.call(os.fsync, fd)
    mount.kill()
    refused(errno.ENOTCONN, os.close, fd)
    mount.start()
    finish(mount, far, {"file": b"synced"})


# Orderly ends.


def test_a_plain_unmount_loses_nothing(mount_with: Callable[..., Mount], far: Any) -> None:
    """Unmount: "A plain `fusermount3 -u` … loses nothing"."""
    mount = mount_with(writeback_delay=60)
    mount.announce("stay in the journal")
    put(mount, "file", SMALL)
    assert mount.unmount_plainly() == 0
    assert far.names() == set()
    mount.start()
    finish(mount, far, {"file": SMALL})


def test_umount_waits_and_now_does_not(mount_with: Callable[..., Mount], far: Any) -> None:
    """Unmount: "`f7tfs umount` waits for pending uploads …; `--now` leaves them"."""
    mount = mount_with(writeback_delay=60)
    mount.announce("stay in the journal")
    put(mount, "one", SMALL)
    done = mount.umount("--now")
    assert done.returncode == 0
    assert "1 file" in done.stderr
    assert far.names() == set()
    mount.start()
    put(mount, "two", b"two")
    assert mount.umount().returncode == 0
    assert (far.read("one"), far.read("two")) == (SMALL, b"two")
    mount.assert_nothing_left()


def test_sigterm_drains(mount_with: Callable[..., Mount], far: Any) -> None:
    """Unmount: "SIGTERM and systemd stop drain for a bounded time"."""
    mount = mount_with(writeback_delay=60)
    put(mount, "file", SMALL)
    assert mount.terminate() == 0
    assert far.read("file") == SMALL
    assert not mount.is_mounted
    mount.assert_nothing_left()


def test_a_second_daemon_is_refused(mount: Mount, directory: str, place: Place) -> None:
    """Writing: "One daemon per journal, by a lock": exit 11, and the first goes on."""
    with place.mount(directory) as other:
        other.environment["XDG_STATE_HOME"] = mount.environment["XDG_STATE_HOME"]
        with pytest.raises(MountFailed) as caught:
            other.start()
        assert caught.value.code == 11
        assert "\n" not in caught.value.message.strip()
    put(mount, "file", b"x")
    mount.sync()


def test_a_damaged_journal_is_set_aside(mount: Mount, far: Any) -> None:
    """Writing: a journal that cannot be read is set aside whole with its spool, and reported."""
    put(mount, "before", b"x")
    mount.sync()
    assert mount.unmount_plainly() == 0
    folder = mount.journal_directory()
    for name in ("journal.sqlite-wal", "journal.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "journal.sqlite").write_bytes(b"not a database" * 1000)
    (folder / "spool" / ("a" * 32)).write_bytes(b"precious bytes")
    mount.announce("journal cannot be used")
    mount.start()
    aside = [one for one in folder.iterdir() if one.name.startswith("journal.set-aside")]
    assert len(aside) == 1
    assert (aside[0] / "journal.sqlite").read_bytes().startswith(b"not a database")
    assert (aside[0] / "spool" / ("a" * 32)).read_bytes() == b"precious bytes"
    put(mount, "after", b"y")
    mount.sync()
    assert far.names() == {"before", "after"}


# Lost replies: executed, and nobody was told.


@pytest.fixture(scope="module")
def kept_mount(session_place: Place) -> Iterator[Mount]:
    """One daemon for tests that need no fresh one."""
    with session_place.mount(session_place.directory) as mount:
        mount.start()
        before = mount.descriptors()
        yield mount
        leave_tidy(mount, before)


@pytest.fixture
def kept(kept_mount: Mount) -> Iterator[Mount]:
    kept_mount.announce(NETWORK)
    yield kept_mount
    kept_mount.sync()
    kept_mount.assert_nothing_left()
    kept_mount.assert_quiet()


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize(
    ("call", "command", "names"),
    [
        ("POST /utilities/mkdir", "mkdir mnt/new", {"file", "dir", "new"}),
        ("PUT /utilities/rename", "mv mnt/file mnt/new", {"new", "dir"}),
        ("DELETE /utilities/rm", "rm mnt/file", {"dir"}),
        ("PUT /utilities/chmod", "chmod 640 mnt/file", {"file", "dir"}),
        ("POST /utilities/symlink", "ln -s file mnt/new", {"file", "dir", "new"}),
        ("POST /utilities/extract", "rmdir mnt/dir", {"file"}),
        ("DELETE /utilities/rm", "rmdir mnt/dir", {"file"}),
        ("POST /utilities/upload", "rmdir mnt/dir", {"file"}),
    ],
)
def test_lost_replies(
    kept: Mount,
    place: Place,
    far: Any,
    simulator: Simulator,
    call: str,
    command: str,
    names: set[str],
    how: str,
) -> None:
    """Metadata: "No call that changes something is ever resent blindly: after a lost reply …
    first look …, then decide". The user sees success, once."""
    folder = os.path.relpath(far.directory, place.directory)
    far.write("file", b"content", 0o600)
    far.mkdir("dir")
    kept.refresh()
    kept.run(f"ls -l mnt/{folder}")
    (ident,) = simulator.faults([{"match": call, "action": {"drop": how}}])
    kept.run(command.replace("mnt/", f"mnt/{folder}/"))
    assert simulator.fired()[ident] == 1
    assert far.names() == names
    for name in names & {"file", "new"}:
        if far.exists(name) and not far.is_directory(name) and command[:2] != "ln":
            assert far.read(name) == b"content"
    if "chmod" in command:
        assert far.mode("file") == 0o640
    if command.startswith("ln"):
        assert far.readlink("new") == "file"


@pytest.mark.parametrize("how", ["before", "after"])
def test_lost_replies_of_an_upload(mount: Mount, far: Any, simulator: Simulator, how: str) -> None:
    """Writing: right bytes, one file, no litter, whatever reply was lost."""
    cases = [
        (SMALL, "POST /utilities/upload"),
        (SMALL, "PUT /utilities/rename"),
        (SMALL, "PUT /utilities/chmod"),
        (BIG, "POST /storage/xfer-external/upload"),
        (BIG, "object-store POST"),
        (BIG, "PUT /utilities/rename"),
    ]
    mount.announce(NETWORK)
    idents = []
    for number, (_, call) in enumerate(cases):
        far.mkdir(f"lost-{number}")
        far.write(f"lost-{number}/file", b"old", 0o600)
        rule = {"match": call, "where": own(call, f"lost-{number}"), "action": {"drop": how}}
        (ident,) = simulator.faults([rule])
        idents.append(ident)
    for number, (content, _) in enumerate(cases):
        put(mount, f"lost-{number}/file", content)
        mount.run(f"chmod 604 mnt/lost-{number}/file")
    mount.sync()
    fired = simulator.fired()
    assert [fired[ident] for ident in idents] == [1] * len(idents)
    for number, (content, _) in enumerate(cases):
        folder = f"lost-{number}"
        assert far.names(folder) == {"file"}
        assert far.read(f"{folder}/file") == content
        assert far.mode(f"{folder}/file") == 0o604
    leave_tidy(mount)
    assert far.all_litter() == []


# Errors of the API and of the object store.


@pytest.mark.parametrize(
    "action",
    [
        {"status": 500, "body": "oops"},
        {"status": 502, "body": "Bad Gateway"},
        {"status": 503},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"status": 401, "body": '{"message": "Unauthorized"}'},
        {"status": 408},
    ],
    ids=lambda action: str(action["status"]),
)
def test_a_few_bad_answers(
    mount: Mount, far: Any, simulator: Simulator, action: dict[str, Any]
) -> None:
    """Failure: transient → again; 401 once with a fresh token; the bytes arrive."""
    mount.announce(NETWORK)
    far.write("theirs", b"theirs")
    times = 1 if action["status"] in {401, 408} else 2
    if action["status"] != 500:  # v1 answers 500 to what is wrong for good (v1 FACTS §2)
        simulator.faults([{"match": "*", "times": times, "action": action}])
    assert mount.call((mount.path / "theirs").read_bytes) == b"theirs"
    simulator.faults([{"match": "POST /utilities/upload", "times": times, "action": action}])
    put(mount, "file", SMALL)
    mount.sync()
    assert far.read("file") == SMALL
    assert far.names() == {"file", "theirs"}


@pytest.mark.parametrize(
    "action", [{"status": 403, "body": "<Error/>"}, {"truncate": 100_000}, {"drop": "before"}],
    ids=["403", "cut", "dropped"],
)  # fmt: skip
def test_a_bad_object_store(
    mount: Mount, far: Any, simulator: Simulator, action: dict[str, Any]
) -> None:
    """Reading, Failure: "expired link → new task"; cut connections are resumed or repeated."""
    mount.announce(NETWORK)
    far.write("down", BIG)
    simulator.faults(
        [
            {"match": "object-store GET", "times": 2, "action": action},
            {"match": "object-store POST", "times": 2, "action": action},
        ]
    )
    put(mount, "up", BIG)  # it travels while the other is read
    assert mount.call((mount.path / "down").read_bytes) == BIG
    mount.sync()
    assert far.read("up") == BIG


def test_the_api_is_away_for_a_while(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator
) -> None:
    """Offline: "cached names and contents stay readable, writes queue, everything else fails fast
    with EHOSTUNREACH-class errors; recovery is by itself"."""
    far.write("known", b"known")
    far.write("unknown", b"unknown")
    mount = mount_with(patience=1, listing_ttl=30)
    mount.announce(NETWORK, "EHOSTUNREACH", "EAGAIN", "EIO", " offline: ")
    assert mount.call((mount.path / "known").read_bytes) == b"known"
    simulator.faults([{"match": "*", "times": None, "action": {"drop": "before"}}])
    mount.call((mount.path / "queued").write_bytes, SMALL)
    assert mount.call((mount.path / "queued").read_bytes) == SMALL
    assert mount.call((mount.path / "known").read_bytes) == b"known"
    assert set(mount.call(os.listdir, mount.path)) == {"jobs", "known", "unknown", "queued"}
    with pytest.raises(OSError) as caught:
        mount.call((mount.path / "unknown").read_bytes, deadline=15)
    assert caught.value.errno == errno.EHOSTUNREACH
    wait_until(lambda: mount.uploads()["items"][0]["error"], "the status to tell why")
    simulator.clear_faults()
    mount.sync()
    assert far.read("queued") == SMALL
    assert mount.call((mount.path / "unknown").read_bytes) == b"unknown"


def test_cp_while_the_api_is_away(
    mount_with: Callable[..., Mount], far: Any, simulator: Simulator
) -> None:
    """Offline: "writes queue", also through cp, which opens with O_EXCL."""
    mount = mount_with(patience=1)
    mount.announce(NETWORK, "EHOSTUNREACH", " offline: ")
    mount.run("ls mnt")
    simulator.faults([{"match": "*", "times": None, "action": {"drop": "before"}}])
    put(mount, "queued", SMALL)
    simulator.clear_faults()
    mount.sync()
    assert far.read("queued") == SMALL


def test_short_lived_tokens(own_simulator: Callable[..., Place]) -> None:
    """Failure: tokens that expire all the time are renewed; nobody notices."""
    place = own_simulator(token_lifetime=1)
    far = place.far(place.directory)
    with place.mount(place.directory) as mount:
        mount.start()
        for number in range(4):
            put(mount, f"file-{number}", BIG if number == 2 else SMALL)
            mount.sync()
            wait_until(lambda: _expired(place), "the token to expire", 10)
        assert far.read("file-2") == BIG
        assert far.names() == {f"file-{n}" for n in range(4)}
        mount.assert_quiet()


def _expired(place: Place) -> bool:
    """A token made when this was first asked is no longer accepted."""
    simulator = place.simulator
    assert simulator is not None
    token = _tokens.setdefault(simulator.url, simulator.mint(lifetime=1))
    status, _, _ = simulator.api("GET", "/status/parameters", token=token)
    if status == 401:
        del _tokens[simulator.url]
        return True
    return False


_tokens: dict[str, str] = {}


# What needs a person.


@pytest.mark.parametrize("how", ["removed", "forbidden"])
def test_a_stuck_upload(mount_with: Callable[..., Mount], far: Any, how: str) -> None:
    """Failure: "*stuck*: content stays readable in the mount and safe in the spool, the reason is
    in the xattr, `f7tfs status`, the log"; umount does not lose it; retry brings it."""
    far.mkdir("dir")
    mount = mount_with(writeback_delay=60)
    mount.announce("is stuck", "stay in the journal", "EIO")
    put(mount, "dir/file", SMALL)
    if how == "removed":
        far.remove("dir")
    else:
        far.chmod("dir", 0o555)
    refused(errno.EIO, mount.sync)
    (item,) = mount.uploads()["items"]
    assert item["state"] == "stuck"
    assert item["error"]
    assert mount.call((mount.path / "dir/file").read_bytes) == SMALL
    assert mount.call(os.getxattr, mount.path / "dir/file", "user.f7tfs.state") == b"stuck"
    assert mount.call(os.getxattr, mount.path / "dir/file", "user.f7tfs.error")
    assert "stuck" in mount.f7tfs("status", str(mount.path)).stdout
    done = mount.umount()
    assert done.returncode == 12, done.stderr
    assert "dir/file" in done.stderr
    assert mount.is_mounted
    mount.restart()
    assert mount.call((mount.path / "dir/file").read_bytes) == SMALL
    if how == "removed":
        far.mkdir("dir")
    else:
        far.chmod("dir", 0o755)
    mount.call((mount.path / ".f7tfs/retry").write_text, "\n")
    mount.sync()
    assert far.read("dir/file") == SMALL
    leave_tidy(mount)


def test_a_full_quota(mount: Mount, far: Any, simulator: Simulator) -> None:
    """Failure: a full quota is permanent: stuck at once, and a retry brings it."""
    mount.announce("is stuck", "EIO: stuck")
    words = '{"description": "x", "error": "cat: write error: Disk quota exceeded"}'
    action = {"status": 400, "body": words, "headers": {"X-Error": "Disk quota exceeded",
              "Content-Type": "application/json"}}  # fmt: skip
    simulator.faults([{"match": "POST /utilities/upload", "times": None, "action": action}])
    put(mount, "file", SMALL)
    refused(errno.EIO, mount.sync)
    (item,) = mount.uploads()["items"]
    assert item["state"] == "stuck"
    assert "quota" in item["error"].lower()
    simulator.clear_faults()
    mount.call((mount.path / ".f7tfs/retry").write_text, "\n")
    mount.sync()
    assert far.read("file") == SMALL


def test_a_full_quota_under_a_staged_upload(mount: Mount, far: Any, simulator: Simulator) -> None:
    """Where v1 and v2 differ: v1's 115 comes without a word and is tried again by the server: the
    reason shows, the content is kept, and it heals by itself once there is room."""
    simulator.room(1 << 20)
    try:
        put(mount, "file", BIG)
        wait_until(lambda: "115" in (mount.uploads()["items"][0]["error"] or ""), "the reason")
        (item,) = mount.uploads()["items"]
        assert "quota or disk full" in item["error"]
        assert item["state"] == "uploading"
        assert b"115" in mount.call(os.getxattr, mount.path / "file", "user.f7tfs.error")
        assert "115" in mount.f7tfs("status", str(mount.path)).stdout
        assert mount.call((mount.path / "file").read_bytes) == BIG
        assert [one.read_bytes() for one in mount.spool_files()] == [BIG]
        assert far.names() == set()
    finally:
        simulator.room(None)
    finish(mount, far, {"file": BIG})


def test_a_task_that_somebody_invalidates(own_simulator: Callable[..., Place]) -> None:
    """Failure: "a transfer that somebody cancels … is tried again with a new one". The old task
    heals all the same (v1 FACTS §6), under a name that nobody uses any more."""
    place = own_simulator(staging_interval=3600)
    far, simulator = place.far(place.directory), place.simulator
    assert simulator is not None

    def posts() -> int:
        return int(simulator.calls()["object_store"]["POST"])

    with place.mount(place.directory) as mount:
        mount.start()
        mount.announce("again in")
        put(mount, "file", BIG)
        simulator.room(0)

        def failed() -> list[str]:
            simulator.sweep()  # 115, once the object is there
            tasks = simulator.api("GET", "/tasks")[2]["tasks"]
            return [one for one, task in tasks.items() if task["status"] == "115"]

        (ident,) = wait_until(failed, "the server to fail")
        status, _, _ = simulator.api(
            "POST", "/storage/xfer-external/invalidate", headers={"X-Task-Id": ident}
        )
        assert status == 201
        wait_until(lambda: posts() == 2, "the next attempt")
        assert "somebody cancelled its transfer" in mount.log()
        simulator.room(None)

        def arrived() -> bool:
            simulator.sweep()  # both are brought: the old one heals
            return not mount.uploads()["items"]

        wait_until(arrived, "the next attempt to arrive")
        assert far.read("file") == BIG
        assert far.names() == {"file"}
        mount.restart()
        wait_until(
            lambda: not [one for one in far.litter() if not far.is_directory(one)],
            "the healed temporary to be swept",
        )
        mount.assert_quiet()
