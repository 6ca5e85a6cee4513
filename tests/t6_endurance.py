"""The short versions of scripts/endure: what tries to lose something by chance."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import place_of
from endurance import Stage, kills, moves
from sim_process import running_simulator
from zygote import Zygote

pytestmark = [pytest.mark.simulator, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with running_simulator(staging_interval=0.3) as simulator, Zygote() as zygote:
        yield Stage(place_of(simulator), zygote)


def test_kills_at_random_moments(stage: Stage) -> None:
    """Tenet 1: "Nothing that an application was told is written is ever lost"."""
    assert kills(stage, 4, seed=11)


def test_cp_and_rm_over_a_failing_api(stage: Stage) -> None:
    """Metadata: "`cp a b; rm a` must never end with neither"."""
    assert moves(stage, 6, seed=11)
