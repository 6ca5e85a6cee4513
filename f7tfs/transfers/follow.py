"""Looking after a transfer that the server carries out."""

from __future__ import annotations

from collections.abc import Callable

import trio

from f7tfs.api.port import Cluster, Phase, Progress, Ticket
from f7tfs.api.strerror import kind_by_end
from f7tfs.errors import Cancelled, F7tfsError, StagingFailed, Stalled
from f7tfs.model import RemotePath

POLLS = (0.2, 0.3, 0.5, 1.0, 2.0)  # seconds between looks; the last one repeats


def pause(looks: int) -> float:
    """How long to wait after this many looks."""
    return POLLS[min(looks, len(POLLS) - 1)]


def staging_pause(waited: float) -> float:
    """How long to wait before the next look at a staging that somebody reads from, after `waited`
    seconds: results come from a quarter of a second on (v1 FACTS §5), and a look costs the server
    next to nothing, so the reader waits a tenth longer than the server took, at most."""
    return min(2.0, max(0.03, waited / 10)) if waited else 0.2


async def follow(
    cluster: Cluster,
    ticket: Ticket,
    until: Callable[[Progress], bool],
    *,
    stall_timeout: float,
    seen: Callable[[Progress], None] | None = None,
    is_awaited: bool = False,
) -> Progress:
    """Look at a transfer until `until` holds. `is_awaited`: a reader waits for it, so look often.
    Raises Stalled after `stall_timeout` seconds without a change of its state, and whatever
    `Cluster.progress` raises."""
    began = changed = trio.current_time()
    last, looks = "", 0
    while True:
        progress = await cluster.progress(ticket)
        if seen is not None:
            seen(progress)
        if until(progress):
            return progress
        now = trio.current_time()
        if progress.raw != last:
            last, changed = progress.raw, now
        elif now - changed > stall_timeout:
            raise Stalled(f"{ticket.path}: the server shows state {last} for {stall_timeout:.0f} s")
        waited = trio.current_time() - began if looks else 0.0
        await trio.sleep(staging_pause(waited) if is_awaited else pause(looks))
        looks += 1


def staging_failed(path: RemotePath, progress: Progress) -> F7tfsError:
    return StagingFailed(f"{path}: state {progress.raw}: {progress.error or 'no reason given'}")


def upload_failed(path: RemotePath, progress: Progress) -> F7tfsError:
    """Cancelled where somebody took the transfer away, else what the server's words say."""
    words = progress.error or f"state {progress.raw}: no reason given"
    if progress.phase is Phase.WITHDRAWN:
        return Cancelled(f"{path}: somebody cancelled its transfer ({words})")
    return kind_of(words)(f"{path}: {words}")


def kind_of(words: str) -> type[F7tfsError]:
    """What the words of a job's log say; its lines are joined by " · "."""
    for line in words.split(" · "):
        kind = kind_by_end(line)
        if kind is not None:
            return kind
    return StagingFailed
