"""The API goes away and comes back under a real mount (docs/semantics.md, "Offline")."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Place
from mounting import Mount
from t3_scenarios import data_of, refused
from waits import wait_until

pytestmark = pytest.mark.simulator
QUICK = 1.0  # seconds: "well under a second"; a busy machine's slack is in it
OFFLINE = (" offline: ",)
HEARTBEATS = ("GET /status/parameters", "GET /status/systems")


class Timed:
    """The longest that anything in the block took."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self.longest = 0.0

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        began = time.monotonic()
        try:
            return self._mount.call(function, *arguments)
        finally:
            self.longest = max(self.longest, time.monotonic() - began)


@pytest.fixture(params=["v1", "v2"])
def apart(request: pytest.FixtureRequest, own_simulator: Callable[..., Place]) -> Iterator[Place]:
    """A simulator that may be stopped."""
    options = {"ingest_sleep": 2} if request.param == "v2" else {}
    yield own_simulator(api=request.param, **options)


def mount_at(place: Place, **options: Any) -> Mount:
    """Listings grow old at once, so that nothing but being offline serves them."""
    place.far(place.directory).mkdir("d")
    return place.mount(f"{place.directory}/d", listing_ttl=0, stale_max=0, patience=1.5, **options)


def fall_asleep(mount: Mount) -> None:
    """Use up the patience of one call, in which the mount finds out."""
    began = time.monotonic()
    mount.call(os.listdir, mount.path)
    assert time.monotonic() - began < 10
    assert mount.status()["online"] is False


def calls_of(mount: Mount) -> dict[str, int]:
    """What was sent, answered or not, without the looks whether the API is back."""
    calls = mount.status()["api"]["calls"]
    return {name: count for name, count in calls.items() if name not in HEARTBEATS}


def heartbeats_of(mount: Mount) -> int:
    calls = mount.status()["api"]["calls"]
    return sum(calls.get(name, 0) for name in HEARTBEATS)


def xattr(mount: Mount, name: str, key: str) -> str:
    return str(mount.call(os.getxattr, mount.path / name, f"user.f7tfs.{key}").decode())


def test_the_api_goes_and_comes_back(apart: Place) -> None:
    """Offline: "cached names and contents stay readable, writes queue, everything else fails fast
    with EHOSTUNREACH-class errors; recovery is by itself"."""
    simulator = apart.simulator
    assert simulator is not None
    with mount_at(apart) as mount:
        far = apart.far(f"{apart.directory}/d")
        far.write("cached", data_of(100_000))
        far.write("uncached", data_of(1000))
        far.mkdir("unknown")
        mount.start()
        mount.announce(*OFFLINE)
        assert mount.call((mount.path / "cached").read_bytes) == data_of(100_000)
        assert mount.status()["offline"] is None
        simulator.stop()
        fall_asleep(mount)

        tried = calls_of(mount)
        timed = Timed(mount)
        for _ in range(5):
            assert set(timed(os.listdir, mount.path)) == {"cached", "uncached", "unknown", "jobs"}
            assert timed(os.stat, mount.path / "uncached").st_size == 1000
            assert timed((mount.path / "cached").read_bytes) == data_of(100_000)
            refused(errno.EHOSTUNREACH, timed, (mount.path / "uncached").read_bytes)
            refused(errno.EHOSTUNREACH, timed, os.listdir, mount.path / "unknown")
            refused(errno.EHOSTUNREACH, timed, os.mkdir, mount.path / "new")
            refused(errno.ENOENT, timed, os.stat, mount.path / "absent")
        print(f"\noffline, the longest of 35 calls: {timed.longest * 1000:.0f} ms")
        assert timed.longest < QUICK
        assert xattr(mount, "cached", "state") == "cached"
        assert xattr(mount, "cached", "error") == "offline copy"
        assert xattr(mount, "uncached", "error") == xattr(mount, "unknown", "error") == "offline"
        text = mount.call((mount.path / ".f7tfs/status").read_text)
        assert "offline since" in text
        assert "f7tfs_offline 1" in mount.call((mount.path / ".f7tfs/metrics").read_text)
        for command in ("status", "top"):
            assert "offline since" in mount.f7tfs(command, str(mount.path)).stdout

        timed((mount.path / "written").write_bytes, b"offline")
        with open(mount.path / "cached", "r+b") as file:
            timed(os.pwrite, file.fileno(), b"changed", 0)
        assert timed((mount.path / "written").read_bytes) == b"offline"
        assert timed.longest < QUICK
        wait_until(lambda: mount.uploads()["pending"] == 2, "both are due")
        assert mount.log().count(" offline: ") == 1
        assert calls_of(mount) == tried, "while offline, nothing but looks is sent"

        simulator.start_again()
        mount.sync()
        wait_until(lambda: mount.status()["online"], "online again")
        assert far.read("written") == b"offline"
        assert far.read("cached") == b"changed" + data_of(100_000)[7:]
        assert mount.call((mount.path / "uncached").read_bytes) == data_of(1000)
        assert mount.call(os.listdir, mount.path / "unknown") == []
        assert mount.log().count("online again") == 1
        assert "f7tfs_offline 0" in mount.call((mount.path / ".f7tfs/metrics").read_text)
        assert far.names() == {"cached", "uncached", "unknown", "written"}  # no conflict copies
        mount.assert_quiet()


def test_a_server_that_hangs(own_simulator: Callable[..., Place]) -> None:
    """Offline: accepted connections without answers are confirmed by one look, then as above; who
    asked first is served from the cache as well."""
    place = own_simulator()
    simulator = place.simulator
    assert simulator is not None
    with mount_at(place, request_timeout=1) as mount:
        far = place.far(f"{place.directory}/d")
        far.write("cached", b"here")
        mount.start()
        mount.announce(*OFFLINE)
        assert mount.call((mount.path / "cached").read_bytes) == b"here"
        simulator.process.send_signal(signal.SIGSTOP)
        try:
            assert mount.call((mount.path / "cached").read_bytes) == b"here"
            assert not mount.status()["online"]
            timed = Timed(mount)
            assert timed((mount.path / "cached").read_bytes) == b"here"
            timed((mount.path / "new").write_bytes, b"later")
            assert timed.longest < QUICK
        finally:
            simulator.process.send_signal(signal.SIGCONT)
        mount.sync()
        assert far.read("new") == b"later"
        mount.assert_quiet()


def test_an_upload_that_was_under_way(own_simulator: Callable[..., Place]) -> None:
    """Offline: "writes queue", also one that had begun; and the mount finds out by itself, without
    anybody asking."""
    place = own_simulator(latency=0.1)
    simulator = place.simulator
    assert simulator is not None
    content = data_of(6 << 20)
    with mount_at(place) as mount:
        mount.start()
        mount.announce(*OFFLINE, "upload of .*; again in [12] s")  # what it met before the breaker
        mount.call((mount.path / "large").write_bytes, content)
        wait_until(lambda: mount.status()["uploads"]["items"][0]["state"] == "uploading", "begun")
        simulator.stop()
        wait_until(lambda: not mount.status()["online"], "the mount found out")
        tried = calls_of(mount)
        wait_until(lambda: heartbeats_of(mount) >= 3, "it looks whether the API is back")
        assert calls_of(mount) == tried
        simulator.start_again()
        mount.sync()
        far = place.far(f"{place.directory}/d")
        assert far.read("large") == content
        assert far.names() == {"large"}
        mount.assert_quiet()


def test_one_call_that_fails_is_not_offline(own_simulator: Callable[..., Place]) -> None:
    """Offline: "One slow endpoint is not offline": the look is answered, and the rest works."""
    place = own_simulator()
    simulator = place.simulator
    assert simulator is not None
    with mount_at(place) as mount:
        place.far(f"{place.directory}/d").write("file", b"x" * 1000)
        mount.start()
        mount.announce("getattr|open|lookup|opendir|readdir|download")
        assert mount.call((mount.path / "file").read_bytes) == b"x" * 1000
        simulator.faults([{"match": "GET /utilities/ls", "times": None, "action": {"status": 503}}])
        with pytest.raises(OSError):
            mount.call(os.listdir, mount.path)
        assert heartbeats_of(mount) == 2, "one at the start, and the look"
        assert mount.status()["online"] is True
        simulator.clear_faults()
        assert mount.call(os.listdir, mount.path)
        assert " offline: " not in mount.log()
