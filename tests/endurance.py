"""Long runs that try to lose something: `scripts/endure model|kills|moves [--api v2] [--seed N]`.

- model: random operations against a model of a file system, in rounds of a thousand; a round is a
  daemon (or the tree without a kernel) with remounts, and every tenth one a mount with kill -9.
- kills: kill -9 at random moments during mixed writes, and what close() acknowledged is counted.
- moves: `cp a b; rm a` while the API fails in between; never neither.

Each prints its figures; the status is 1 if anything was lost. A failure prints its seed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import Place, place_of, tree_door
from doors import MountDoor
from farside import SimFarSide
from mounting import Mount
from sim_process import running_simulator
from t6_model import Player, holds
from zygote import Zygote

ROUND = 1000  # operations of the model between two fresh directories
NOISE = ("stay in the journal", "never closed", "again in", "removing ", "offline", "E[A-Z]+")


class Stage:
    """A simulator of one dialect and a zygote, for as many mounts as are wanted."""

    def __init__(self, place: Place, zygote: Zygote) -> None:
        self.place = place
        self.zygote = zygote
        self.used: Path | None = None

    def directory(self) -> tuple[str, SimFarSide]:
        name = f"e-{uuid.uuid4().hex[:10]}"
        self.place.far(self.place.directory).mkdir(name)
        far = self.place.far(f"{self.place.directory}/{name}")
        assert isinstance(far, SimFarSide)
        self.used = far.place
        return f"{self.place.directory}/{name}", far

    def mount(self, directory: str, **options: Any) -> Mount:
        options = {"writeback_delay": 0.05, "jobs.enabled": "false", **options}
        mount = self.place.mount(directory, zygote=self.zygote, **options)
        mount.announce(*NOISE)
        return mount


# The model.


def model(stage: Stage, count: int, seed: int) -> bool:
    began, played, failures = time.monotonic(), 0, 0
    done: dict[str, int] = {}
    for number in range((count + ROUND - 1) // ROUND):
        steps = min(ROUND, count - played)
        name = f"{seed}-{number}"
        through_kernel = number % 10 == 9
        try:
            player = (kernel_round if through_kernel else tree_round)(stage, name, steps)
        except Exception:
            failures += 1
            print(f"round {name} ({'mount' if through_kernel else 'tree'}) FAILED", flush=True)
            traceback.print_exc()
            tell_what_was_asked(stage)
        else:
            for operation, times in player.done.items():
                done[operation] = done.get(operation, 0) + times
        played += steps
        rate = played / (time.monotonic() - began)
        print(f"{played} operations, {failures} differences, {rate:.0f}/s", flush=True)
    print(", ".join(f"{name} {times}" for name, times in sorted(done.items())))
    return failures == 0


def tell_what_was_asked(stage: Stage) -> None:
    """What the cluster has in the directory that was used last, and the calls that led there."""
    simulator, used = stage.place.simulator, stage.used
    assert simulator is not None
    if used is not None:
        print(*sorted(str(one.relative_to(used)) for one in used.rglob("*")), sep="\n  ")
        for one in simulator.log(150):
            words = {key: value.replace(str(used), "") for key, value in one["params"].items()}
            print(f"{one['time']:.3f} {one['method']} {one['path']} {one['status']} {words}")
    sys.stdout.flush()


def tree_round(stage: Stage, name: str, steps: int) -> Player:
    directory, far = stage.directory()
    with (
        tempfile.TemporaryDirectory() as folder,
        tree_door(stage.place, directory, Path(folder), writeback_delay=0.05) as door,
    ):
        player = Player(door, random.Random(name), far)
        player.play(steps, [player.remount], every=50)
        door.sync()
        player.compare()
        holds(far, player.model)
        return player


def kernel_round(stage: Stage, name: str, steps: int) -> Player:
    directory, far = stage.directory()
    with stage.mount(directory) as mount:
        mount.start()
        door = MountDoor(mount)
        player = Player(door, random.Random(name), far)
        player.play(steps, [player.remount, player.crash, player.crash], every=50)
        door.sync()
        player.compare()
        holds(far, player.model)
        mount.assert_nothing_left()
        assert mount.unmount_plainly() == 0
        assert far.all_litter() == []
        return player


# kill -9 at random moments.


class Writer(threading.Thread):
    """Writes in its own directory until the mount is gone. `sure` is what was acknowledged; of
    the file it was at when it died, `perhaps` tells what may be there as well."""

    def __init__(self, place: Path, sure: dict[str, bytes], seed: str) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.sure = sure
        self.perhaps: dict[str, list[bytes | None]] = {}
        self.chance = random.Random(seed)
        self.acknowledged = 0

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.chance.choice([self.small, self.small, self.many, self.big, self.append,
                                    self.rename, self.save, self.remove])()  # fmt: skip

    def some(self) -> str | None:
        return self.chance.choice(sorted(self.sure)) if self.sure else None

    def put(self, name: str, content: bytes) -> None:
        # While it is written, any beginning of it may be there.
        self.perhaps[name] = [self.sure.get(name), content]
        fd = os.open(self.place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        done = False
        try:
            os.write(fd, content)
        finally:
            try:
                os.close(fd)
                done = True
            finally:
                if done:
                    self.settle(name, content)

    def settle(self, name: str, content: bytes | None) -> None:
        if content is None:
            self.sure.pop(name, None)
        else:
            self.sure[name] = content
            self.acknowledged += len(content)
        self.perhaps.pop(name, None)

    def small(self) -> None:
        content = self.chance.randbytes(self.chance.randrange(20_000))
        self.put(f"small-{self.chance.randrange(20)}", content)

    def many(self) -> None:
        for number in range(10):
            self.put(f"many-{number}", self.chance.randbytes(self.chance.randrange(3000)))

    def big(self) -> None:
        if self.chance.random() < 0.2:
            self.put(f"big-{self.chance.randrange(2)}", self.chance.randbytes(5_500_000))

    def append(self) -> None:
        if (name := self.some()) is None or name.startswith("big"):
            return
        more = self.chance.randbytes(700)
        old = self.sure[name]
        self.perhaps[name] = [old, old + more]
        fd = os.open(self.place / name, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, more)
        finally:
            os.close(fd)
        self.settle(name, old + more)

    def rename(self) -> None:
        if (name := self.some()) is None:
            return
        target = f"{name.split('-')[0]}-{self.chance.randrange(20)}"
        if target == name:
            return
        content = self.sure[name]
        self.perhaps[name] = [content, None]
        self.perhaps[target] = [self.sure.get(target), content]
        os.rename(self.place / name, self.place / target)
        self.settle(name, None)
        self.settle(target, content)

    def save(self) -> None:
        if (name := self.some()) is None:
            return
        content = self.chance.randbytes(self.chance.randrange(9000))
        beside = f".goutputstream-{self.chance.randrange(10**6):06}"
        self.put(beside, content)
        self.perhaps[name] = [self.sure.get(name), content]
        self.perhaps[beside] = [content, None]
        os.rename(self.place / beside, self.place / name)
        self.settle(beside, None)
        self.settle(name, content)

    def remove(self) -> None:
        if (name := self.some()) is None:
            return
        self.perhaps[name] = [self.sure[name], None]
        os.unlink(self.place / name)
        self.settle(name, None)

    def judge(self, read: Callable[[str], bytes | None], names: set[str]) -> list[str]:
        """What is not as it was acknowledged; `read` tells a file's content."""
        wrong = []
        for name in {*self.sure, *self.perhaps, *names}:
            found = read(name)
            if name in self.perhaps:
                before, after = self.perhaps[name]
                is_begun = found is not None and after is not None and after.startswith(found)
                if found not in (before, after) and not is_begun:
                    wrong.append(f"{name}: neither what it was nor what it was to be")
            elif found != self.sure.get(name):
                original = self.sure.get(name.partition(".conflict-")[0])
                beside = f", beside {told(original)}" if ".conflict-" in name else ""
                wrong.append(
                    f"{name}: {told(found)} instead of {told(self.sure.get(name))}{beside}"
                )
        return wrong


def told(content: bytes | None) -> str:
    if content is None:
        return "nothing"
    return f"{len(content)} bytes ({hashlib.sha256(content).hexdigest()[:8]})"


def kills(stage: Stage, count: int, seed: int) -> bool:
    chance, lost, acknowledged = random.Random(seed), 0, 0
    directory, far = stage.directory()
    sure: list[dict[str, bytes]] = [{} for _ in range(3)]
    for number in range(len(sure)):
        far.mkdir(f"w{number}")
    with stage.mount(directory) as mount:
        mount.start()
        for kill in range(1, count + 1):
            writers = [
                Writer(mount.path / f"w{number}", known, f"{seed}-{kill}-{number}")
                for number, known in enumerate(sure)
            ]
            for one in writers:
                one.start()
            time.sleep(chance.uniform(0.05, 1.2))  # the moment itself is what is random
            os.kill(mount.pid, signal.SIGKILL)
            mount.kill()
            for one in writers:
                one.join(20)
                assert not one.is_alive(), "a writer hangs in a dead mount"
                acknowledged += one.acknowledged
            mount.start()
            for number, one in enumerate(writers):
                place = mount.path / f"w{number}"

                def read(name: str, place: Path = place) -> bytes | None:
                    try:
                        return mount.call((place / name).read_bytes)
                    except FileNotFoundError:
                        return None

                names = set(mount.call(os.listdir, place))
                for complaint in one.judge(read, names):
                    lost += 1
                    print(f"kill {kill}, w{number}/{complaint}", flush=True)
                now = {name: read(name) for name in names}
                one.sure.clear()
                one.sure.update({name: content for name, content in now.items() if content})
                for name in [name for name, content in now.items() if not content]:
                    mount.call(os.unlink, place / name)
            if kill % 10 == 0 or kill == count:
                mount.sync(deadline=120.0)
                for number, known in enumerate(sure):
                    there = {
                        name: far.read(f"w{number}/{name}") for name in far.names(f"w{number}")
                    }
                    if there != known:
                        lost += 1
                        tell_difference(kill, f"w{number}", there, known, mount.log())
                print(f"{kill} kills, {acknowledged} bytes acknowledged, {lost} lost", flush=True)
    return lost == 0


def tell_difference(
    kill: int, folder: str, there: dict[str, bytes], known: dict[str, bytes], log: str
) -> None:
    for name in sorted({*there, *known}):
        found, wanted = there.get(name), known.get(name)
        if found != wanted:
            print(f"kill {kill}, {folder}/{name}: {told(found)} there, {told(wanted)} here")
            lines = [line for line in log.splitlines() if f"{folder}/{name}" in line]
            print(*lines[-20:], sep="\n", flush=True)


# cp a b; rm a.


def moves(stage: Stage, count: int, seed: int) -> bool:
    chance, neither, simulator = random.Random(seed), 0, stage.place.simulator
    assert simulator is not None
    directory, far = stage.directory()
    actions: list[tuple[str, dict[str, Any]]] = [
        ("connection lost", {"drop": "before"}),
        ("reply lost", {"drop": "after"}),
        ("503", {"status": 503}),
        ("502", {"status": 502, "body": "Bad Gateway"}),
        ("429", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("offline", {"drop": "before"}),
    ]
    tally: dict[str, int] = {}
    with stage.mount(directory, patience=1) as mount:
        mount.start()
        for number in range(count):
            content = chance.randbytes(chance.choice([100, 20_000]))
            folder = f"m{number}"
            far.mkdir(folder)
            far.write(f"{folder}/a", content)
            what, action = actions[number % len(actions)]
            mount.refresh()
            mount.run(f"cat mnt/{folder}/a >/dev/null")
            rule = {"match": "*", "skip": 0 if what == "offline" else chance.randrange(12),
                    "times": None if what == "offline" else chance.choice([1, 1, 2, 5]),
                    "action": action}  # fmt: skip

            def here(name: str, folder: str = folder) -> bytes | None:
                place = far[f"{folder}/{name}"]
                return place.read_bytes() if place.exists() else None

            simulator.faults([rule])
            done = mount.run(
                f"cp mnt/{folder}/a mnt/{folder}/b && rm mnt/{folder}/a", timeout=60, check=False
            )
            crashed = chance.random() < 0.15
            if crashed:
                mount.kill()
            simulator.clear_faults()
            if crashed:
                mount.start()
            watch_until = time.monotonic() + 30.0
            good = True
            while time.monotonic() < watch_until:
                b, a = here("b"), here("a")
                good = good and content in (a, b)
                if mount.uploads()["pending"] == 0 and not mount.status()["removals"]["pending"]:
                    break
                time.sleep(0.02)
            with contextlib.suppress(OSError):
                mount.sync()
            if not good or content not in (here("a"), here("b")):
                neither += 1
                print(f"move {number} ({what}): NEITHER; {done.stderr}", flush=True)
            ended = "moved" if here("a") is None and here("b") == content else "copied or kept"
            tally[f"{what}: {ended}"] = tally.get(f"{what}: {ended}", 0) + 1
            if number % 20 == 19:
                print(f"{number + 1} moves, {neither} with neither", flush=True)
    for words, times in sorted(tally.items()):
        print(f"{words} {times}")
    return neither == 0


RUNS: dict[str, tuple[Callable[[Stage, int, int], bool], int]] = {
    "model": (model, 100_000),
    "kills": (kills, 200),
    "moves": (moves, 200),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--count", type=int, help="operations, kills or moves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--api", choices=("v1", "v2"), default="v1")
    given = parser.parse_args()
    run, usual = RUNS[given.run]
    count = given.count or usual
    options: dict[str, Any] = {"staging_interval": 0.3}
    if given.api == "v2":
        options = {"api": "v2", "ingest_sleep": 1}
    began = time.monotonic()
    with running_simulator(**options) as simulator, Zygote() as zygote:
        good = run(Stage(place_of(simulator), zygote), count, given.seed)
    took = time.monotonic() - began
    words = "nothing lost" if good else "FAILED"
    print(f"{given.run} on {given.api}, seed {given.seed}: {count} in {took:.0f} s: {words}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
