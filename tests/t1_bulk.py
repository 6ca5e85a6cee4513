"""When small files go in an archive, and when to look again: plain arithmetic on their states."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from f7tfs.transfers.bulk import Bulk

NOW, LONGEST = 1000.0, 20.0


@pytest.fixture(scope="module")
def bulk() -> Bulk:
    cluster = SimpleNamespace(capabilities=SimpleNamespace(direct_upload_limit=5 << 20))
    return Bulk(cast(Any, cluster), *[cast(Any, None)] * 6)


def file(
    due: float, *, attempts: int = 0, owed_since: float | None = None, is_hurried: bool = False
) -> Any:
    return SimpleNamespace(
        due=due, attempts=attempts, owed_since=owed_since, is_hurried=is_hurried, size=10, path="/f"
    )


files = st.builds(
    file,
    st.floats(NOW - 100, NOW + 100),
    attempts=st.integers(0, 2),
    owed_since=st.none() | st.floats(NOW - 100, NOW),
    is_hurried=st.booleans(),
)


@given(st.lists(files, min_size=1, max_size=5))
def test_a_look_that_takes_nothing_is_followed_by_one_later(bulk: Bulk, waiting: list[Any]) -> None:
    """A time in the past would be looking for ever; one that is too late would be a hang."""
    if bulk.cut(waiting, now=NOW, longest=LONGEST):
        return
    again = bulk.next_cut(waiting, now=NOW, longest=LONGEST)
    assert NOW < again < float("inf")
    assert bulk.cut(waiting, now=again, longest=LONGEST) or again < max(one.due for one in waiting)


def test_what_failed_neither_goes_before_its_time_nor_keeps_others_waiting(bulk: Bulk) -> None:
    failed = file(NOW + 60, attempts=3, owed_since=NOW - 90)
    ready = [file(NOW), file(NOW - 1)]
    assert set(map(id, bulk.cut([failed, *ready], now=NOW, longest=LONGEST))) == set(map(id, ready))
    young = [file(NOW + 2), file(NOW + 1)]
    assert bulk.next_cut([failed, *young], now=NOW, longest=LONGEST) == NOW + 2
