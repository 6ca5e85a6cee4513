"""The import rule of docs/architecture.md, executable: calls go down, results come up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from f7tfs.faultpoints import POINTS

PACKAGE = Path(__file__).parent.parent / "f7tfs"

# Lower floors first; a part may import only parts that stand before it (or its own).
FLOORS = [
    {"errors", "model", "__init__"},
    {"zone", "clock", "faultpoints"},
    {"content", "api"},
    {"walks", "waypoints", "listings", "meanings"},
    {"flights"},
    {"catalog"},
    {"transfers"},
    {"tree"},
    {"jobs", "control"},
    {"operations"},
    {"config", "service"},
    {"view"},
    {"mount"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, floor in enumerate(FLOORS) for part in floor}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, whether at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_parts(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("f7tfs.")}


def outside(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    part = part_of(path)
    if part == "sim":
        assert own_parts(path) <= {"sim"}, "the simulator is a second implementation"
        return
    allowed_sim = part == "cli"
    for other in own_parts(path) - {part}:
        if other == "sim":
            assert allowed_sim, f"{path} imports the simulator"
        elif other == "__version__":
            continue
        else:
            assert RANK[other] < RANK[part], f"{part} must not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_owners(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    used, own = outside(path), own_parts(path)
    if "pyfuse3" in used:
        assert relative == "operations.py"
    if "httpx" in used:
        assert relative == "api/http.py"
    if {"content", "api"} <= own:
        assert part_of(path) in {"transfers", "mount"}


def test_modules_stay_readable() -> None:
    """Past 500 lines a module is split by concept."""
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in MODULES
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_fault_points_are_known() -> None:
    """Every fault point that is compiled in is listed, and none is listed in vain."""
    found: list[str] = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "reached":
                found += [
                    each.value
                    for argument in node.args
                    for each in ast.walk(argument)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ]
    assert set(found) == set(POINTS)
