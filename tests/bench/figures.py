"""A row of the table, and the figures that it is judged by."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured number. `bar` is what it must reach: at most that, or `at_least`."""

    what: str
    value: float
    bar: float
    unit: str = ""
    at_least: bool = False
    note: str = ""

    @property
    def passes(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    @property
    def measured(self) -> str:
        return f"{self.value:.4g} {self.unit}".rstrip()

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bar:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Row:
    """`measure(rounds)`: how often what is noisy is measured; counts are taken once."""

    name: str
    what: str
    measure: Callable[[int], Sequence[Figure]]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], digits: str = ".2f") -> str:
    """All of them, for the note."""
    return " ".join(f"{value:{digits}}" for value in sorted(values))
