"""What sbatch reads in a script, and the words with which it refuses one (v1 FACTS §9)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

PARTITIONS = ("part01", "xfer")
NODES = 16
"""The cluster has so many; a job that wants more waits for ever, as on a real one."""

_NO_SHEBANG = (
    "sbatch: error: This does not look like a batch script.  The first",
    "sbatch: error: line must start with #! followed by the path to an interpreter.",
    "sbatch: error: For instance: #!/bin/sh",
)
_DOS = (
    r"sbatch: error: Batch script contains DOS line breaks (\r\n)",
    r"sbatch: error: instead of expected UNIX line breaks (\n).",
)
_FEATURES = {"f7t"}
_LONG = {
    "J": "job-name",
    "o": "output",
    "e": "error",
    "p": "partition",
    "t": "time",
    "D": "chdir",
    "N": "nodes",
    "n": "ntasks",
    "d": "dependency",
    "a": "array",
    "A": "account",
    "C": "constraint",
    "H": "hold",
}
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?$")


class SbatchError(Exception):
    """sbatch's stderr; as text its lines are glued together, as FirecREST v1 glues them."""

    def __init__(self, *lines: str) -> None:
        super().__init__("".join(lines))
        self.stderr = "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class Directives:
    """Times in seconds; None = not said."""

    interpreter: tuple[str, ...]
    name: str | None = None
    output: str | None = None
    error: str | None = None
    chdir: str | None = None
    partition: str = PARTITIONS[0]
    limit: float | None = None
    nodes: int = 1
    ntasks: int = 1
    dependency: str | None = None
    array: tuple[int, ...] = ()
    hold: bool = False
    account: str | None = None


def read(script: bytes, given: Mapping[str, str] | None = None) -> Directives:
    """`given` are the options of the command line: they win over the script's."""
    if not script.startswith(b"#!"):
        raise SbatchError(*_NO_SHEBANG)
    if b"\r\n" in script:
        raise SbatchError(*_DOS)
    lines = script.decode(errors="replace").split("\n")
    interpreter = tuple(lines[0][2:].split(maxsplit=1))
    if not interpreter:
        raise SbatchError(*_NO_SHEBANG)
    said: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith("#SBATCH"):
            said.update(_options(line.removeprefix("#SBATCH")))
        elif line.strip() and not line.lstrip().startswith("#"):
            break  # directives after the first command are comments
    said.update(given or {})
    partition = said.get("partition", PARTITIONS[0])
    if partition not in PARTITIONS:
        raise SbatchError(
            f"sbatch: error: invalid partition specified: {partition}",
            "sbatch: error: Batch job submission failed: Invalid partition name specified",
        )
    if not set(said.get("constraint", "f7t").split("&")) <= _FEATURES:
        text = "sbatch: error: Batch job submission failed: Invalid feature specification"
        raise SbatchError(text)
    return Directives(
        interpreter,
        said.get("job-name"),
        said.get("output"),
        said.get("error"),
        said.get("chdir"),
        partition,
        _limit(said.get("time")),
        _number(said, "nodes"),
        _number(said, "ntasks"),
        said.get("dependency"),
        _array(said.get("array")),
        "hold" in said,
        said.get("account"),
    )


def _options(text: str) -> dict[str, str]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return {}
    found: dict[str, str] = {}
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals and words and not words[0].startswith("-"):
                value = words.pop(0)
            found[name] = value
        elif word.startswith("-") and word[1:2] in _LONG:
            value = word[2:] or (words.pop(0) if words else "")
            found[_LONG[word[1]]] = value
    return found


def _limit(text: str | None) -> float | None:
    """minutes | minutes:seconds | hours:minutes:seconds | days-hours[:minutes[:seconds]]"""
    if text is None:
        return None
    found = _TIME.match(text)
    if found is None:
        raise SbatchError("sbatch: error: Invalid --time specification")
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def _number(said: dict[str, str], name: str) -> int:
    found = re.match(r"\d+", said.get(name, "1"))
    if found is None:
        raise SbatchError(f"sbatch: error: invalid number of {name} (-{name[0]} {said[name]})")
    return int(found[0])


def _array(text: str | None) -> tuple[int, ...]:
    indices: list[int] = []
    for part in (text or "").partition("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found is None:
            if text:
                raise SbatchError("sbatch: error: Batch job submission failed: Invalid job array")
            continue
        first, last, step = (int(n) if n else None for n in found.groups())
        assert first is not None
        indices += range(first, (first if last is None else last) + 1, step or 1)
    return tuple(indices)
