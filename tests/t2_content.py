"""The spool, the journal, the cache and the times overlay, with real files and nothing else."""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from f7tfs.content import spool as spool_module
from f7tfs.content.cache import Cache, _boot_id
from f7tfs.content.cachefile import Snapshot
from f7tfs.content.disk import Disk, copy_bytes, sha256_of, write_all
from f7tfs.content.extents import Extents
from f7tfs.content.journal import Journal, LitterRecord, TimesRecord, UploadRecord
from f7tfs.content.spool import ALLOWED, Spool, State
from f7tfs.content.times import Times
from f7tfs.errors import Busy, NoLocalSpace
from f7tfs.model import Fingerprint, RemotePath

PATH = RemotePath("/remote/file")


class Box:
    """A journal and a spool in a folder, opened again at will."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.folder, "key")
        self.spool = Spool(self.folder, self.journal, Disk())
        self.spool.load(set())

    def close(self) -> None:
        self.spool.close()
        self.journal.close()

    def again(self) -> None:
        self.close()
        self.open()

    def file(self, path: RemotePath = PATH, content: bytes = b"content") -> Any:
        entry = self.spool.new(path, base=None, permissions=0o640)
        self.spool.enter(entry)
        entry.write(0, content)
        return entry

    def run(self, function: Any, *arguments: Any) -> Any:
        return trio.run(function, *arguments)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "journal")
    yield made
    made.close()


# The spool.


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_the_table_of_states(box: Box, before: State, after: State) -> None:
    """HABITS 7: one gatekeeper; what the table does not allow is a bug and says so."""
    entry = box.file()
    entry.state = before
    if after is before or after in ALLOWED[before]:
        box.spool.move(entry, after)
        assert entry.state is after
    else:
        with pytest.raises(AssertionError):
            box.spool.move(entry, after)
        assert entry.state is before
    entry.state = State.OPEN


def test_nothing_leaves_gone() -> None:
    """A verified or unlinked file never comes back."""
    assert ALLOWED[State.GONE] == set()
    assert set(ALLOWED) == set(State)
    assert all(State.GONE in after for before, after in ALLOWED.items() if before != State.GONE)


def test_a_committed_file_comes_back(box: Box) -> None:
    """Writing: "the bytes are fsynced in the local spool with a journal record"."""
    base = Fingerprint(size=3, mtime=4, ino=5, ctime=6)
    entry = box.spool.new(PATH, base=base, permissions=0o640)
    box.spool.enter(entry)
    entry.write(0, b"content")
    entry.mtime_ns = 123_456_789
    entry.temporary = RemotePath("/remote/.f7tfs-x")
    entry.ticket, entry.form_sent = "task", True
    box.run(box.spool.commit, entry)
    box.spool.move(entry, State.QUEUED)
    box.spool.check()
    box.again()
    (back,) = box.spool
    assert (back.id, back.path, back.base, back.permissions) == (entry.id, PATH, base, 0o640)
    assert (back.mtime_ns, back.temporary) == (123_456_789, "/remote/.f7tfs-x")
    assert (back.ticket, back.form_sent, back.state) == ("task", True, State.QUEUED)
    assert os.pread(back.fd, 100, 0) == b"content"
    assert back.size == 7
    box.spool.check()


@pytest.mark.parametrize(("held", "stuck"), [(True, None), (False, "quota")])
def test_states_that_survive(box: Box, held: bool, stuck: str | None) -> None:
    """Held and stuck files are still that after a restart, with their reason."""
    entry = box.file()
    box.run(box.spool.commit, entry)
    entry.hold = held
    box.spool.move(entry, State.HELD if held else State.QUEUED)
    if stuck:
        entry.error = stuck
        box.spool.move(entry, State.STUCK)
    box.run(box.spool.save, entry)
    box.again()
    (back,) = box.spool
    assert back.state is (State.HELD if held else State.STUCK)
    assert back.error == stuck


def test_a_file_that_nobody_closed_is_set_aside(box: Box) -> None:
    """docs/decisions/0007: not uploaded, not deleted; an empty one is nothing."""
    box.file(PATH, b"half")
    box.file(RemotePath("/remote/empty"), b"")
    box.again()
    assert list(box.spool) == []
    aside = list((box.folder / "spool" / "unclosed").iterdir())
    assert [file.read_bytes() for file in aside] == [b"half"]


def test_a_spool_file_without_record_was_finished(box: Box) -> None:
    """A crash between dropping the record and removing the file leaves rubbish, not work."""
    entry = box.file()
    box.run(box.spool.commit, entry)
    box.run(box.spool.drop_record, entry)
    box.again()
    assert list(box.spool) == []
    assert [f for f in (box.folder / "spool").iterdir() if f.is_file()] == []


def test_an_unlinked_file_lives_while_it_is_used(box: Box) -> None:
    """Open handles keep the bytes; then file and descriptor are gone."""
    entry = box.file()
    box.spool.use(entry)
    box.run(box.spool.commit, entry)
    box.spool.unlink(entry)
    assert box.spool.at(PATH) is None
    assert os.pread(entry.fd, 100, 0) == b"content"
    fd = entry.fd
    box.spool.leave(entry)
    with pytest.raises(OSError):
        os.fstat(fd)
    assert not box.spool.file_of(entry.id).exists()


def test_a_commit_after_the_unlink_brings_nothing_back(box: Box) -> None:
    """fsync of an unlinked file leaves no record."""
    entry = box.file()
    box.spool.use(entry)
    box.spool.unlink(entry)
    box.run(box.spool.commit, entry)
    box.spool.leave(entry)
    assert box.journal.load(UploadRecord) == []


def test_retarget_and_finding(box: Box) -> None:
    """One entry a path; children and subtrees are found by it."""
    one = box.file(RemotePath("/d/one"))
    box.file(RemotePath("/d/sub/two"))
    box.file(RemotePath("/dd/three"))
    assert {name for name, _ in box.spool.children(RemotePath("/d"))} == {"one"}
    assert {e.path for e in box.spool.within(RemotePath("/d"))} == {"/d/one", "/d/sub/two"}
    box.spool.retarget(one, RemotePath("/d/new"))
    assert box.spool.at(RemotePath("/d/one")) is None
    assert box.spool.at(RemotePath("/d/new")) is one
    with pytest.raises(AssertionError):
        box.spool.retarget(one, RemotePath("/dd/three"))


def test_a_full_disk_refuses_before_it_accepts(box: Box) -> None:
    """Space: "writing reserves before it accepts"."""
    with pytest.raises(NoLocalSpace):
        box.spool.reserve(1 << 60)
    box.spool.reserve(1 << 10)
    assert spool_module.RESERVE > 0


def test_others_may_fill_the_disk_meanwhile(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space: "writing reserves before it accepts", and looks again before what was found free can
    be gone: a quarter of what stays free is written without a look, at most."""
    RESERVE, MiB = spool_module.RESERVE, 1 << 20
    free = [RESERVE + 40 * MiB]
    monkeypatch.setattr(spool_module, "free_space", lambda path: free[0])
    box.spool.reserve(MiB)
    free[0] = RESERVE - 1
    written = 0
    with pytest.raises(NoLocalSpace):
        while True:
            box.spool.reserve(MiB)
            written += MiB
    assert written == RESERVE // 4
    free[0] = RESERVE + MiB  # and of little that is left, no more than that
    box.spool.reserve(MiB)
    free[0] -= MiB
    with pytest.raises(NoLocalSpace):
        box.spool.reserve(MiB)


def test_the_disk_begins_before_the_close(box: Box) -> None:
    """Writing: close() of a large file waits for the end of the writing only; a file that is gone
    meanwhile is no trouble."""
    entry = box.file()
    entry.write(0, bytes(1 << 20))
    assert entry.unflushed >= 1 << 20
    box.run(box.spool.write_back, entry)
    assert (entry.unflushed, entry.users) == (0, 0)
    box.spool.unlink(entry)
    box.run(box.spool.write_back, entry)


def test_parts_survive_with_the_bytes_they_are_of(box: Box) -> None:
    """Parts at the object store are known after a restart; of a file that was written to since, the
    attempt is over. Another ticket has no parts."""
    for touched in (False, True):
        entry = box.file(RemotePath(f"/{touched}"))
        entry.temporary, entry.ticket = RemotePath("/t"), "ticket"
        entry.attempt_version = entry.version
        entry.parts[2] = '"etag"'
        box.run(box.spool.commit, entry)
        box.run(box.spool.save, entry)
        if touched:
            os.pwrite(entry.fd, b"x", 0)
    box.again()
    same, other = (box.spool.at(RemotePath(f"/{touched}")) for touched in (False, True))
    assert same is not None and other is not None
    assert (same.parts, same.attempt_version) == ({2: '"etag"'}, same.version)
    assert other.attempt_version != other.version
    same.ticket = "ticket"
    assert same.parts
    same.ticket = "another"
    assert not same.parts


# The journal.


def test_one_daemon_per_journal(box: Box) -> None:
    """Writing: "One daemon per journal, by a lock"."""
    with pytest.raises(Busy):
        Journal(box.folder, "key")


def test_all_or_nothing(box: Box) -> None:
    """A write puts and drops in one transaction; the same id replaces."""
    records = [LitterRecord(id=f"/{n}") for n in range(3)]
    box.run(lambda: box.journal.write(*records))
    box.run(
        lambda: box.journal.write(
            LitterRecord(id="/1", until=5.0), drop=((LitterRecord, "/0"), (LitterRecord, "/9"))
        )
    )
    box.again()
    assert box.journal.load(LitterRecord) == [LitterRecord(id="/1", until=5.0), records[2]]


def test_a_record_is_durable_when_write_returns(box: Box) -> None:
    """SQLite is told to sync at every commit, and a second reader sees the record at once."""
    box.run(lambda: box.journal.write(LitterRecord(id="/x")))
    with sqlite3.connect(box.folder / "journal.sqlite") as other:
        assert other.execute("SELECT id FROM records").fetchall() == [("/x",)]
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


# The cache.


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path / "cache", Disk(), limit=1000, min_free=0)
    yield made
    made.close()


def fill(cache: Cache, path: str, content: bytes, mtime: int = 1, *, racy: bool = False) -> Any:
    file = cache.create(RemotePath(path), Fingerprint(size=len(content), mtime=mtime))
    cache.pin(file)
    cache.promise(file, len(content), must=True)
    cache.write(file, 0, content)
    file.is_racy = racy
    cache.finish(file, synced=True)
    cache.unpin(file)
    cache.check()
    return file


def find(cache: Cache, path: str, size: int, mtime: int = 1) -> Any:
    return cache.find(RemotePath(path), Fingerprint(size=size, mtime=mtime))


def seen(cache: Cache, content: Any, offset: int, length: int) -> bytes:
    """What a reader gets."""
    cache.pin(content)
    try:
        return bytes(content.read(offset, length))
    finally:
        cache.unpin(content)


def reopened(cache: Cache) -> Cache:
    cache.close()
    return Cache(cache._directory, Disk(), limit=1000, min_free=0)


def test_content_is_found_under_its_fingerprint_only(cache: Cache) -> None:
    """Reading: "content in the local cache under the same fingerprint"."""
    fill(cache, "/f", b"12345")
    assert seen(cache, find(cache, "/f", 5), 1, 3) == b"234"
    assert find(cache, "/f", 5, mtime=2) is None
    assert find(cache, "/f", 6) is None
    assert find(cache, "/g", 5) is None
    exact = Fingerprint(size=5, mtime=1, ino=7, ctime=8)
    assert cache.find(RemotePath("/f"), exact) is not None  # agrees on what both sides have


def test_a_newer_version_takes_the_place(cache: Cache) -> None:
    """Cache: one version of a path; who pinned the old one reads on."""
    old = fill(cache, "/f", b"old", 1)
    cache.pin(old)
    fill(cache, "/f", b"new!", 2)
    assert find(cache, "/f", 3, 1) is None
    assert seen(cache, find(cache, "/f", 4, 2), 0, 10) == b"new!"
    assert old.read(0, 10) == b"old"
    cache.unpin(old)
    assert old.fd == -1
    assert len(cache) == 1


def test_the_least_recently_used_goes_first(cache: Cache) -> None:
    """Space: clean cache is evicted, what is pinned never."""
    fill(cache, "/a", bytes(400))
    fill(cache, "/b", bytes(400))
    assert find(cache, "/a", 400)
    fill(cache, "/c", bytes(400))
    assert find(cache, "/b", 400) is None
    assert find(cache, "/a", 400) is not None
    assert cache.used == 800
    cache.pin(find(cache, "/a", 400))
    cache.pin(find(cache, "/c", 400))
    fill(cache, "/d", bytes(400))
    assert find(cache, "/a", 400) is not None
    assert find(cache, "/c", 400) is not None
    assert len(list(cache._directory.glob("*.json"))) == len(cache)


def part(cache: Cache, path: str, size: int, *ranges: tuple[int, bytes]) -> Any:
    """A file of which only some ranges are here."""
    file = cache.create(RemotePath(path), Fingerprint(size=size, mtime=1))
    cache.pin(file)
    for offset, data in ranges:
        cache.promise(file, len(data))
        cache.write(file, offset, data)
    cache.check()
    return file


def test_only_trusted_content_survives(cache: Cache) -> None:
    """Reading: a file "changed within 2 s of its observation … is not trusted for later mounts"."""
    fill(cache, "/kept", b"kept")
    fill(cache, "/racy", b"racy", racy=True)
    again = reopened(cache)
    assert seen(again, find(again, "/kept", 4), 0, 9) == b"kept"
    assert find(again, "/racy", 4) is None
    assert len(list(again._directory.iterdir())) == 2
    again.close()


def test_racy_is_meant_in_the_servers_time(tmp_path: Path) -> None:
    """Reading: "in the server's time"; here it runs an hour behind this machine's."""
    hour_ago = int(time.time()) - 3600
    cache = Cache(tmp_path, Disk(), limit=1000, min_free=0, now=lambda: time.time() - 3600)
    for name, mtime in (("/just changed", hour_ago - 1), ("/at rest", hour_ago - 60)):
        content = cache.create(RemotePath(name), Fingerprint(size=4, mtime=mtime))
        assert content.is_racy == (name == "/just changed")
    cache.close()


def test_ranges_survive_with_their_link(cache: Cache) -> None:
    """Reading: ranges land in a sparse file; "its link is reused over opens and remounts"."""
    file = part(cache, "/partial", 100, (10, b"abcdef"), (50, b"xyz"))
    file.snapshot = Snapshot("http://link", "ticket", 1.0, 100)
    cache.unpin(file)
    again = reopened(cache)
    back = find(again, "/partial", 100)
    assert [*back.held] == [(10, 16), (50, 53)]
    assert seen(again, back, 11, 3) == b"bcd"
    assert back.has(50, 3)
    assert not back.has(50, 4)
    assert not back.is_complete
    assert back.snapshot == file.snapshot
    assert again.used == 9
    again.check()
    again.close()


def test_what_was_not_synced_ends_with_the_machine(cache: Cache) -> None:
    """A power cut can keep a label and lose the bytes: such content is not trusted."""
    fill(cache, "/synced", b"synced")
    part(cache, "/partial", 100, (10, b"abcdef"))
    loose = fill(cache, "/loose", b"loose")
    loose.is_synced = False
    cache.label(loose)
    cache._boot = "another run of the machine"
    for label in cache._directory.glob("*.json"):
        label.write_bytes(label.read_bytes().replace(_boot_id().encode(), b"before"))
    again = reopened(cache)
    assert seen(again, find(again, "/synced", 6), 0, 9) == b"synced"
    assert find(again, "/loose", 5) is None
    assert find(again, "/partial", 100) is None
    again.close()


def test_the_room_is_made_before_bytes_are_asked_for(cache: Cache) -> None:
    """Issue 4: "size limit … enforced at admission": what is promised counts."""
    file = cache.create(PATH, Fingerprint(size=5 << 20, mtime=1))
    cache.pin(file)
    fill(cache, "/old", bytes(300))
    cache.promise(file, 900)
    assert find(cache, "/old", 300) is None
    assert cache.used == 900
    with pytest.raises(NoLocalSpace):
        cache.promise(file, 2 << 20)
    cache.promise(file, 1 << 20, must=True)  # what somebody waits for: nobody waits for room
    cache.release(file, 900 + (1 << 20))
    cache.check()
    assert cache.used == 0


def test_an_open_file_gives_way_far_from_its_readers(tmp_path: Path) -> None:
    """Issue 4: a file larger than the cache is read through it; "two readers cannot dead-lock each
    other out of space"."""
    block = 1 << 20
    cache = Cache(tmp_path / "cache", Disk(), limit=8 * block, min_free=0)
    size = 1000 * block
    one = cache.create(RemotePath("/one"), Fingerprint(size=size, mtime=1))
    two = cache.create(RemotePath("/two"), Fingerprint(size=size, mtime=1))
    for file in (one, two):
        cache.pin(file)
        file.snapshot = Snapshot("http://link", "ticket", 1.0, size)
    for index in range(20):
        for file in (one, two):
            at = index * block
            file.readers["me"] = at
            cache.promise(file, block)
            cache.write(file, at, bytes([index]) * block)
            assert file.read(at, 3) == bytes([index]) * 3
            cache.check()
            assert cache.used <= 9 * block
            assert os.fstat(file.fd).st_blocks * 512 <= 10 * block
    cache.close()


def test_a_file_that_grew_counts_again_once_it_is_proven(cache: Cache) -> None:
    """Reading: "same inode and only grown → … only the new tail is fetched"."""
    for unchanged in (True, False):
        file = cache.create(PATH, Fingerprint(size=6, mtime=1, ino=5))
        cache.pin(file)
        cache.promise(file, 6)
        cache.write(file, 0, b"abcdef")
        longer = Fingerprint(size=9, mtime=2, ino=5)
        assert cache.shorter(PATH, longer) is file
        assert cache.shorter(PATH, Fingerprint(size=9, mtime=2, ino=6)) is None
        assert cache.shorter(PATH, Fingerprint(size=5, mtime=2, ino=5)) is None
        cache.grow(file, longer)
        assert not file.has(0, 1)
        assert cache.find(PATH, longer) is file
        cache.check()
        cache.prove(file, unchanged=unchanged)
        assert file.has(0, 6) is unchanged
        assert cache.used == (6 if unchanged else 0)
        cache.check()
        cache.unpin(file)
        cache.forget(PATH)


def test_what_can_never_fit_evicts_nothing(cache: Cache) -> None:
    """Space: refused before anything gives way."""
    for name in "abcde":
        fill(cache, f"/{name}", bytes(150))
    with pytest.raises(NoLocalSpace):
        cache.make_room(5000)
    assert len(cache) == 5


def test_a_part_of_a_racy_file_is_not_trusted(cache: Cache) -> None:
    """Reading: "changed within 2 s of its observation … not trusted for later mounts", also when
    only a part of it is here."""
    file = cache.create(PATH, Fingerprint(size=100, mtime=int(time.time())))
    cache.pin(file)
    cache.promise(file, 5)
    cache.write(file, 0, b"abcde")
    file.snapshot = Snapshot("http://link", "ticket", 1.0, 100)
    cache.unpin(file)
    again = reopened(cache)
    assert again.find(PATH, file.fingerprint) is None
    again.close()


def test_growth_of_what_is_not_here_needs_no_proof(cache: Cache) -> None:
    """Reading, growth: with nothing to compare there is nothing to doubt; a second growth still
    doubts what the first one did."""
    file = cache.create(PATH, Fingerprint(size=3, mtime=1, ino=5))
    cache.pin(file)
    cache.grow(file, Fingerprint(size=6, mtime=2, ino=5))
    assert file.unproven is None
    cache.promise(file, 6)
    cache.write(file, 0, b"abcdef")
    for size in (9, 12):
        cache.grow(file, Fingerprint(size=size, mtime=size, ino=5))
        assert not file.has(0, 1)
        cache.check()
    cache.prove(file, unchanged=True)
    assert file.has(0, 6)
    cache.unpin(file)


@pytest.mark.parametrize("seed", range(5))
def test_extents_against_a_set_of_bytes(seed: int) -> None:
    """The block map says of every byte what a plain set says."""
    dice, extents, plain = random.Random(seed), Extents(), set[int]()
    for _ in range(500):
        start = dice.randrange(60)
        end = start + dice.randrange(12)
        some = set(range(start, end))
        if dice.random() < 0.6:
            assert extents.add(start, end) == len(some - plain)
            plain |= some
        else:
            assert extents.discard(start, end) == len(some & plain)
            plain -= some
        assert extents.total == len(plain)
        assert {at for first, last in extents for at in range(first, last)} == plain
        ranges = [*extents]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))
        assert extents.holds(start, end) is (some <= plain)
        missing = {at for first, last in extents.gaps(start, end) for at in range(first, last)}
        assert missing == some - plain
        inside = {at for first, last in extents.within(start, end) for at in range(first, last)}
        assert inside == some & plain


def test_a_cache_file_of_wrong_size_is_not_trusted(cache: Cache) -> None:
    """Losing the cache costs time, never data; a damaged one costs no wrong bytes."""
    file = fill(cache, "/f", b"12345").file
    os.truncate(file, 3)
    again = reopened(cache)
    assert find(again, "/f", 5) is None
    assert not file.exists()
    again.close()


def test_renames_move_content_and_labels(cache: Cache) -> None:
    """Our own rename keeps what is cached, below a directory, too, over a restart."""
    fill(cache, "/d/one", b"one")
    fill(cache, "/d/sub/two", b"two")
    fill(cache, "/other", b"other")
    cache.rename(RemotePath("/d"), RemotePath("/e"))
    cache.check()
    again = reopened(cache)
    assert seen(again, find(again, "/e/one", 3), 0, 9) == b"one"
    assert seen(again, find(again, "/e/sub/two", 3), 0, 9) == b"two"
    assert find(again, "/d/one", 3) is None
    assert find(again, "/other", 5) is not None
    again.close()


def test_adopting_a_spool_file(cache: Cache, tmp_path: Path) -> None:
    """Writing: "the spool file becomes the clean cached copy, without a download"."""
    source = tmp_path / "spool-file"
    source.write_bytes(b"written")
    fd = os.open(source, os.O_RDWR)
    fingerprint = Fingerprint(size=7, mtime=5, ino=9)

    async def adopt() -> Any:
        return await cache.adopt(source, fd, PATH, fingerprint)

    adopted = trio.run(adopt)
    os.close(fd)
    assert seen(cache, adopted, 0, 10) == b"written"
    assert not source.exists()
    again = reopened(cache)
    assert again.find(PATH, fingerprint) is not None
    again.close()


def test_readers_wait_for_growth(cache: Cache) -> None:
    """HABITS 5: the event to wait on is published before the bytes."""
    file = cache.create(PATH, Fingerprint(size=10, mtime=1))
    cache.pin(file)
    found: list[bytes] = []

    async def reader() -> None:
        while not file.has(0, 10):
            await file.grown.wait()
        found.append(file.read(0, 10))

    async def main() -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader)
                cache.promise(file, 10)
                for at, some in ((5, b"56789"), (0, b"01234")):
                    await trio.lowlevel.checkpoint()
                    cache.write(file, at, some)

    trio.run(main)
    assert found == [b"0123456789"]


# Times.


def test_times_hold_until_the_remote_file_changes(box: Box) -> None:
    """Times: the overlay is keyed by (path, remote mtime, remote size), and survives."""
    remote = Fingerprint(size=5, mtime=100, ino=1, ctime=2)
    times = Times(box.journal)
    assert times.mtime_ns(PATH, remote) == 100 * 10**9
    box.run(times.set, PATH, remote, 42)
    box.again()
    times = Times(box.journal)
    assert times.mtime_ns(PATH, remote) == 42
    assert times.mtime_ns(PATH, Fingerprint(size=5, mtime=100)) == 42
    assert times.mtime_ns(PATH, Fingerprint(size=5, mtime=101)) == 101 * 10**9
    assert times.mtime_ns(PATH, Fingerprint(size=6, mtime=100)) == 100 * 10**9


def test_times_go_with_a_rename_and_end_with_an_unlink(box: Box) -> None:
    """Times: below a directory, too; what was at the target is forgotten."""
    remote = Fingerprint(size=1, mtime=1)
    times = Times(box.journal)
    for name, value in (("/d/a", 11), ("/d/s/b", 12), ("/e", 13), ("/dd", 14)):
        box.run(times.set, RemotePath(name), remote, value)
    box.run(times.rename, RemotePath("/d"), RemotePath("/e"))
    box.run(times.forget, RemotePath("/dd"))
    box.again()
    again = Times(box.journal)
    assert again.mtime_ns(RemotePath("/e/a"), remote) == 11
    assert again.mtime_ns(RemotePath("/e/s/b"), remote) == 12
    assert {one.id for one in box.journal.load(TimesRecord)} == {"/e/a", "/e/s/b"}


# The disk.


def test_copying_and_hashing(tmp_path: Path) -> None:
    """Whole files, past one chunk, only as many bytes as asked for."""
    content = os.urandom((1 << 20) + 12345)
    (tmp_path / "a").write_bytes(content)
    source = os.open(tmp_path / "a", os.O_RDONLY)
    target = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    copy_bytes(source, target, len(content) - 1)
    assert (tmp_path / "b").read_bytes() == content[:-1]
    assert sha256_of(source) != sha256_of(target)
    write_all(target, content[-1:], len(content) - 1)
    assert sha256_of(source) == sha256_of(target)
    os.close(source)
    os.close(target)


def test_a_disk_that_is_full() -> None:
    """Errors: ENOSPC comes as it is."""
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        write_all(fd, b"x", 0)
    os.close(fd)
