"""Faults of the reading path that a review proved: each stays mended."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from doors import Door
from sim_process import Simulator
from t3_scenarios import data_of, refused
from waits import wait_until

MiB = 1 << 20

pytestmark = pytest.mark.simulator


def test_replaced_before_anything_arrived(
    door_with: Callable[..., Door], far: Any, simulator: Simulator
) -> None:
    """Reading: handles keep the version that they opened "as far as it is cached or staged, else
    ESTALE": the old handle never asks for its bytes by a name that is another file's now."""
    one = data_of(6 * MiB)
    two = bytes(reversed(one))
    far.write("big", one)
    far.age("big")
    door = door_with(listing_ttl=0.2, stale_max=0.2)
    door.announce(".")
    with door.open("big", os.O_RDONLY) as file:
        refusal = {"status": 400, "body": "{}"}
        match = "POST /storage/xfer-external/download"
        simulator.faults([{"match": match, "times": None, "action": refusal}])
        with pytest.raises(OSError):
            file.read(4096, 0)
        simulator.clear_faults()
        far.write("new", two)
        os.rename(far["new"], far["big"])
        wait_until(lambda: door.stat("big").ino != file.stat().ino, "the new inode")
        assert door.read("big") == two
        refused(errno.ESTALE, file.read, 4096, 0)
