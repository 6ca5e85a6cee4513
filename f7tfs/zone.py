"""The cluster's wall clock: listings carry local time without a zone (v1 FACTS §4, v2 FACTS §3).

Only a `stat` tells the epoch, so the zone is learnt from pairs (wall clock, epoch) of one file.
One pair leaves many zones possible; where they disagree about a time that is to be shown, one more
pair is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import zoneinfo
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path

log = logging.getLogger("f7tfs.zone")

QUARTER = 900  # all zones in use today differ from UTC by multiples of 15 minutes
LARGEST_OFFSET = 15 * 3600
DAY = 86400


@functools.cache
def _all_zones() -> tuple[tzinfo, ...]:
    """This machine's own zone first, then UTC, then every other."""
    names = zoneinfo.available_timezones()
    local = _local_zone_name()
    first = [zoneinfo.ZoneInfo(local)] if local in names and local is not None else []
    return (*first, UTC, *(zoneinfo.ZoneInfo(name) for name in sorted(names)))


def _local_zone_name() -> str | None:
    """The IANA name of this machine's zone, from the link that systems keep at /etc/localtime."""
    try:
        parts = Path("/etc/localtime").resolve().parts
        return "/".join(parts[parts.index("zoneinfo") + 1 :])
    except (OSError, ValueError):
        return None


def _epoch(wall_clock: int, zone: tzinfo) -> int:
    """The hour that a zone repeats in autumn is read as its first occurrence."""
    try:
        naive = datetime(1970, 1, 1) + timedelta(seconds=wall_clock)
        return int(naive.replace(tzinfo=zone).timestamp())
    except (OverflowError, ValueError):
        return wall_clock


class ClusterZone:
    """Turns the cluster's wall clock into epoch seconds; configured by an IANA name, or learnt.
    `lessons` are those of an earlier mount: a wrong one is corrected by the next stat."""

    def __init__(self, name: str | None = None, lessons: Iterable[str | int] = ()) -> None:
        self._candidates: list[tzinfo] = [zoneinfo.ZoneInfo(name)] if name else []
        self._is_configured = name is not None
        if not self._is_configured:
            known = zoneinfo.available_timezones()
            for lesson in lessons:
                if isinstance(lesson, int) and abs(lesson) <= LARGEST_OFFSET:
                    self._candidates.append(timezone(timedelta(seconds=lesson)))
                elif lesson in known:
                    self._candidates.append(zoneinfo.ZoneInfo(lesson))

    @classmethod
    def remembered(cls, file: Path, name: str | None) -> ClusterZone:
        """With what an earlier mount learnt and wrote to `file`; without, if there is none."""
        lessons: object = None
        with contextlib.suppress(OSError, ValueError):
            lessons = json.loads(file.read_bytes())
        known = lessons if isinstance(lessons, list) else []
        return cls(name, [one for one in known if isinstance(one, str | int)])

    def remember(self, file: Path) -> None:
        """What was learnt, for later mounts: names of the zones that are possible, or an offset in
        seconds. Losing it costs a stat."""
        if self._is_configured:
            return
        lessons = [
            zone.key
            if isinstance(zone, zoneinfo.ZoneInfo)
            else int((zone.utcoffset(None) or timedelta()).total_seconds())
            for zone in self._candidates
        ]
        with contextlib.suppress(OSError):
            file.write_text(json.dumps(lessons))

    @property
    def is_known(self) -> bool:
        return bool(self._candidates)

    def epoch(self, wall_clock: int) -> int:
        """Epoch seconds of a wall clock time given as if it were UTC."""
        return _epoch(wall_clock, self._candidates[0] if self._candidates else UTC)

    def doubtful(self, wall_clocks: Iterable[int]) -> int | None:
        """One of these times about which the zones that are still possible disagree."""
        if len(self._candidates) < 2:
            return None
        for wall_clock in {each // DAY: each for each in wall_clocks}.values():
            shown = self.epoch(wall_clock)
            if any(_epoch(wall_clock, zone) != shown for zone in self._candidates):
                return wall_clock
        return None

    def observe(self, wall_clock: int, epoch: int) -> bool:
        """Learn from one file's two times. True if times read so far must be read again."""
        offset = wall_clock - epoch
        if self._is_configured or offset % QUARTER or abs(offset) > LARGEST_OFFSET:
            return False
        was_known, before = self.is_known, self._candidates[0] if self._candidates else UTC
        fitting = [
            zone for zone in self._candidates or _all_zones() if _epoch(wall_clock, zone) == epoch
        ]
        # Nothing fits: a clock without a zone's rules, or the wrong lesson before. Begin anew.
        self._candidates = (
            fitting
            or [zone for zone in _all_zones() if _epoch(wall_clock, zone) == epoch]
            or [timezone(timedelta(seconds=offset))]
        )
        if self._candidates[0] is before:
            return False
        log.info("the cluster's clock is read as %s", self._candidates[0])
        return was_known or _epoch(wall_clock, before) != epoch
