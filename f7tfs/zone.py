"""The cluster's wall clock: listings carry local time without a zone (v1 FACTS §4, v2 FACTS §3).

Only a `stat` tells the epoch, so the zone is learnt from pairs (wall clock, epoch) of one file.
"""

from __future__ import annotations

import logging
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

log = logging.getLogger("f7tfs.zone")

QUARTER = 900  # all zones in use today differ from UTC by multiples of 15 minutes
LARGEST_OFFSET = 15 * 3600


def _local_zone_name() -> str | None:
    """The IANA name of this machine's zone, from the link that systems keep at /etc/localtime."""
    try:
        parts = Path("/etc/localtime").resolve().parts
        return "/".join(parts[parts.index("zoneinfo") + 1 :])
    except (OSError, ValueError):
        return None


class ClusterZone:
    """Turns the cluster's wall clock into epoch seconds.

    Configured by an IANA name, or learnt: `observe` takes a pair of which both sides belong to
    one unchanged file, and picks a zone that explains every pair seen so far. This machine's own
    zone is tried first, then UTC, then all others, then the bare offset.
    """

    def __init__(self, name: str | None = None) -> None:
        self._configured = name is not None
        self._zone: tzinfo = zoneinfo.ZoneInfo(name) if name else UTC
        self._samples: dict[int, int] = {}  # offset in seconds → one wall clock time that had it
        self.is_known = self._configured

    def epoch(self, wall_clock: int) -> int:
        """Epoch seconds of a wall clock time given as if it were UTC. The hour that a zone
        repeats in autumn is read as its first occurrence."""
        try:
            naive = datetime(1970, 1, 1) + timedelta(seconds=wall_clock)
            return int(naive.replace(tzinfo=self._zone).timestamp())
        except (OverflowError, ValueError):
            return wall_clock

    def observe(self, wall_clock: int, epoch: int) -> bool:
        """Learn from one file's two times. True if times read so far must be read again."""
        offset = wall_clock - epoch
        if self._configured or offset % QUARTER or abs(offset) > LARGEST_OFFSET:
            return False
        changed = not self.is_known or self.epoch(wall_clock) != epoch
        self.is_known = True
        if not changed:
            return False
        self._samples[offset] = wall_clock
        for zone in self._candidates():
            self._zone = zone
            if all(self.epoch(wall) == wall - off for off, wall in self._samples.items()):
                break
        else:
            self._zone = _fixed(offset)
        log.info("the cluster's clock is read as %s", self._zone)
        return True

    def _candidates(self) -> Iterator[tzinfo]:
        local = _local_zone_name()
        if local in zoneinfo.available_timezones():
            yield zoneinfo.ZoneInfo(local)
        yield UTC
        if len(self._samples) == 1:  # one sample cannot tell a zone from its offset
            yield _fixed(next(iter(self._samples)))
        for name in sorted(zoneinfo.available_timezones()):
            yield zoneinfo.ZoneInfo(name)


def _fixed(offset: int) -> tzinfo:
    from datetime import timezone

    return timezone(timedelta(seconds=offset))
