"""kill -9 *at* every named crash point of a write (docs/decisions/0007), by the daemon itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mounting import Mount, MountFailed

from f7tfs.faultpoints import VARIABLE

pytestmark = pytest.mark.simulator


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("upload.provn", "there is no fault point 'upload.provn'; did you mean upload.proven?"),
        ("upload.proven:0", "'0' is not a number of times, 1 or more"),
        ("upload.proven:", "'' is not a number of times, 1 or more"),
    ],
)
def test_an_unknown_point_is_refused(
    mount_with: Callable[..., Mount], words: str, complaint: str
) -> None:
    """docs/architecture.md: a test that arms a misspelt point cannot pass."""
    mount = mount_with(start=False)
    mount.environment[VARIABLE] = words
    mount.announce(VARIABLE)
    with pytest.raises(MountFailed) as caught:
        mount.start()
    assert (caught.value.code, caught.value.message) == (3, f"{VARIABLE}: {complaint}")
