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


async def follow(
    cluster: Cluster,
    ticket: Ticket,
    until: Callable[[Progress], bool],
    *,
    stall_timeout: float,
    seen: Callable[[Progress], None] | None = None,
) -> Progress:
    """Look at a transfer until `until` holds. Raises Stalled after `stall_timeout` seconds without
    a change of its state, and whatever `Cluster.progress` raises."""
    last, changed, looks = "", trio.current_time(), 0
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
        await trio.sleep(pause(looks))
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
