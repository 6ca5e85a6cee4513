"""The job that puts pieces together: its script is run by a real bash (docs/decisions/0009)."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from f7tfs import errors
from f7tfs.api.v2_join import Joins, Plan, script_of
from f7tfs.model import RemotePath, remote_path

ONE, TWO = b"first piece\n", b"\0second"
DIGEST = hashlib.sha256(ONE + TWO).hexdigest()
AWKWARD = ["plain", "two  words", "$(touch canary)", "`touch canary`", '"; touch canary; "', "a\nb"]


def prepared(folder: Path, digest: str = DIGEST) -> Plan:
    names = [folder / ".f7tfs-0a-1b-0", folder / ".f7tfs-0a-1b-1"]
    for path, content in zip(names, (ONE, TWO), strict=True):
        path.write_bytes(content)
    return Plan(pieces=tuple(map(str, names)), sha256=digest, since=0.0)


def run(folder: Path, plan: Plan, target: Path) -> subprocess.CompletedProcess[str]:
    script = script_of(plan, remote_path(str(target)), ["#SBATCH --nodes=1"])
    Path(plan.output).write_bytes(b"")  # as sbatch makes it
    return subprocess.run(
        ["bash"], input=script.decode(), cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", AWKWARD)
def test_it_writes_in_place_and_clears_up(tmp_path: Path, name: str) -> None:
    """Writing: "In place instead of by rename": inode, mode and links stay. Names are only text."""
    target = tmp_path / name
    target.write_bytes(b"old and longer than what comes, so that it must be cut")
    target.chmod(0o640)
    before = target.stat()
    done = run(tmp_path, prepared(tmp_path), target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert target.read_bytes() == ONE + TWO
    assert (target.stat().st_ino, target.stat().st_mode) == (before.st_ino, before.st_mode)
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_a_wrong_sum_is_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, prepared(tmp_path, "0" * 64), tmp_path / "file")
    assert (done.returncode, done.stdout) == (1, "its checksum differs\n")


def test_a_missing_piece_is_a_failure(tmp_path: Path) -> None:
    plan = prepared(tmp_path)
    Path(plan.pieces[1]).unlink()
    done = run(tmp_path, plan, tmp_path / "file")
    assert done.returncode != 0
    assert "No such file" in done.stderr
    assert Path(plan.pieces[0]).exists(), "the others stay until we remove them"


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        ("/d/.f7tfs-0a-0", "/e/.f7tfs-0a-1"),
        ("/d/file",),
        ("/d/.f7tfs-0a-0; touch canary",),
        ("/d/.f7tfs-0a 0",),
    ],
)
def test_only_names_of_ours_are_pieces(pieces: tuple[str, ...]) -> None:
    joins = Joins.__new__(Joins)  # planning needs nothing of it
    with pytest.raises(errors.InvalidArgument):
        joins.plan([RemotePath(one) for one in pieces], remote_path("/d/file"), DIGEST)


def test_a_target_that_no_call_carries_is_refused() -> None:
    joins = Joins.__new__(Joins)
    with pytest.raises(errors.NameNotSupported):
        joins.plan([remote_path("/d/.f7tfs-0a-0")], remote_path("/d/it's"), DIGEST)
