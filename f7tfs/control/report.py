"""What the mount is doing, as one dictionary: `.f7tfs/status.json`, and its readings for people
and for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import trio

from f7tfs.content.cache import Cache
from f7tfs.content.spool import Spool, SpoolEntry, State
from f7tfs.model import RemotePath
from f7tfs.transfers.download import Downloads
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.submit import Submissions
from f7tfs.transfers.unsettled import Unsettled, job_of
from f7tfs.tree.readers import Readers, Tally

_IN_LABELS = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})  # Prometheus's escapes
_WORDS = {State.OPEN: "dirty", State.QUEUED: "pending"}


class Report:
    """Collects; changes nothing."""

    def __init__(
        self,
        about: Mapping[str, Any],
        spool: Spool,
        cache: Cache,
        downloads: Downloads,
        removals: Removals,
        unsettled: Unsettled,
        submissions: Submissions,
        calls: Callable[[], Mapping[str, int]],
        offline: Callable[[], tuple[float | None, str]],
        readers: Readers,
        *,
        root: RemotePath,
    ) -> None:
        self._root = root
        self._readers = readers
        self._offline = offline
        self._about = dict(about)
        self._spool = spool
        self._cache = cache
        self._downloads = downloads
        self._removals = removals
        self._unsettled = unsettled
        self._submissions = submissions
        self._calls = calls

    def build(self) -> dict[str, Any]:
        calls = dict(self._calls())
        since, reason = self._offline()
        return {
            "mount": self._about,
            "online": since is None,
            "offline": None if since is None else {"since": since, "reason": reason},
            "uploads": self._uploads(),
            "removals": self._removals_left(),
            "renames": self._renames_unsettled(),
            "set_aside": [str(place) for place in self._spool.set_aside()],
            "transfers": self.transfers(),
            "jobs": self._jobs(),
            "cache": {
                "bytes": self._cache.used,
                "files": len(self._cache),
                "limit": self._cache.limit,
            },
            "readers": {
                name: msgspec.structs.asdict(tally) for name, tally in self._readers.tallies.items()
            },
            "api": {"calls": calls, "total": sum(calls.values())},
        }

    def _uploads(self) -> dict[str, Any]:
        items = [self._upload(entry) for entry in self._spool]
        owed = [item for item in items if item["state"] in {"pending", "uploading"}]
        return {
            "pending": len(owed),
            "bytes": sum(item["size"] for item in owed),
            "stuck": sum(item["state"] == "stuck" for item in items),
            "held": sum(item["state"] == "held" and not item["junk"] for item in items),
            "open": sum(item["state"] == "dirty" for item in items),
            "items": items,
        }

    def _upload(self, entry: SpoolEntry) -> dict[str, Any]:
        """`name` is below the mount, `path` on the cluster; times are epoch seconds. `base` is
        the version on the cluster that the changes began from. `unwritten`: it was closed, and
        the journal did not take it (`error` says why)."""
        return {
            "id": entry.id,
            "path": entry.path,
            "name": self._below(entry.path),
            "state": _WORDS.get(entry.state, entry.state.value),
            "size": entry.size,
            "sent": entry.sent if entry.state is State.UPLOADING else 0,
            "error": entry.error,
            "since": entry.created,
            "modified": entry.mtime_ns / 1e9,
            "permissions": entry.permissions,
            "attempts": entry.attempts,
            "next_try": self._next_try(entry),
            "open": entry.openers > 0,
            "unwritten": entry.is_unwritten and entry.refused != 0,
            "junk": entry.is_junk,
            "in_place": entry.in_place,
            "base": None if entry.base is None else [entry.base.size, entry.base.mtime],
            "awaited_by": [drop.name for drop in self._submissions.held_behind(entry)],
        }

    def _next_try(self, entry: SpoolEntry) -> float | None:
        waits = entry.state in {State.QUEUED, State.HELD} and not entry.is_running
        if not waits or entry.is_junk or self._offline()[0] is not None:
            return None
        return time.time() + max(0.0, entry.due - trio.current_time())

    def _below(self, path: str) -> str:
        return path[len(self._root.rstrip("/")) + 1 :]

    def _removals_left(self) -> dict[str, Any]:
        items = [
            {"path": one.path, "name": self._below(one.path), "is_directory": one.is_directory}
            for one in self._removals.within(RemotePath("/"))
        ]
        return {"pending": len(items), "items": items}

    def _renames_unsettled(self) -> list[dict[str, Any]]:
        """`job`: the number of the job that does it, "" without one."""
        return [
            {
                "path": one.source,
                "name": self._below(one.source),
                "to": self._below(one.target),
                "since": one.since,
                "job": job_of(one),
            }
            for one in self._unsettled
        ]

    def transfers(self) -> list[dict[str, Any]]:
        return [
            {
                "path": flight.content.path,
                "direction": "download",
                "state": flight.state,
                "size": flight.content.size,
                "done": flight.content.held.total,
                "since": flight.since,
            }
            for flight in self._downloads.flights
        ]

    def _jobs(self) -> dict[str, Any]:
        drops = self._submissions.drops.shown()
        return {
            "dropped": [
                {"name": one.name, "state": one.state, "id": one.job_id, "error": one.error}
                for one in drops
            ],
            "held": sum(one.state == "held" for one in drops),
            "unknown": sum(one.state == "unknown" for one in drops),
        }

    def text(self) -> str:
        """For people: `cat .f7tfs/status`."""
        report = self.build()
        about, uploads = report["mount"], report["uploads"]
        lines = [
            f"{about['system']}:{about['remote_path']} on {about['mountpoint']}"
            f" (FirecREST {about['dialect']}, pid {about['pid']},"
            f" up {time.time() - about['since']:.0f} s)",
            *_offline_line(report["offline"]),
            f"uploads: {uploads['pending']} pending ({uploads['bytes']} bytes),"
            f" {uploads['stuck']} stuck, {uploads['held']} held, {uploads['open']} open",
            f"removals: {report['removals']['pending']} pending",
            *(_renaming_line(one) for one in report["renames"]),
            *(f"set aside: {place}" for place in report["set_aside"]),
            f"downloads: {len(report['transfers'])} under way",
            f"cache: {report['cache']['files']} files, {report['cache']['bytes']} bytes",
            f"api: {report['api']['total']} calls",
        ]
        for name, one in report["readers"].items():
            lines.append(
                f"held off: {name}: {one['opens']} opens, {one['reads_refused']} reads and"
                f" {one['listings_refused']} listings refused"
            )
        for item in uploads["items"]:
            if item["error"]:
                lines.append(f"{item['state']}: {item['path']}: {item['error']}")
        for drop in report["jobs"]["dropped"]:
            if drop["state"] != "submitted":
                lines.append(f"job {drop['name']}: {drop['state']}: {drop['error']}")
        return "\n".join(lines) + "\n"

    def metrics(self) -> str:
        """Prometheus text format."""
        report = self.build()
        uploads = report["uploads"]
        values = {
            "f7tfs_offline": int(not report["online"]),
            "f7tfs_offline_since_seconds": (report["offline"] or {"since": 0})["since"],
            "f7tfs_uploads_pending": uploads["pending"],
            "f7tfs_uploads_pending_bytes": uploads["bytes"],
            "f7tfs_uploads_stuck": uploads["stuck"],
            "f7tfs_uploads_held": uploads["held"],
            "f7tfs_removals_pending": report["removals"]["pending"],
            "f7tfs_downloads": len(report["transfers"]),
            "f7tfs_cache_bytes": report["cache"]["bytes"],
            "f7tfs_cache_files": report["cache"]["files"],
        }
        lines = [f"# TYPE {name} gauge\n{name} {value}" for name, value in values.items()]
        lines.append("# TYPE f7tfs_api_calls_total counter")
        for call, count in sorted(report["api"]["calls"].items()):
            lines.append(f'f7tfs_api_calls_total{{call="{call}"}} {count}')
        for what in msgspec.structs.fields(Tally):
            lines.append(f"# TYPE f7tfs_reader_{what.name}_total counter")
            for name, tally in sorted(self._readers.tallies.items()):
                label = name.translate(_IN_LABELS)
                count = getattr(tally, what.name)
                lines.append(f'f7tfs_reader_{what.name}_total{{process="{label}"}} {count}')
        return "\n".join(lines) + "\n"


def _renaming_line(one: Mapping[str, Any]) -> str:
    by = f" by job {one['job']}" if one["job"] else ""
    return f"renaming: {one['path']} to {one['to']}{by}"


def _offline_line(offline: Mapping[str, Any] | None) -> list[str]:
    if offline is None:
        return []
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(offline["since"]))
    return [f"offline since {clock} ({time.time() - offline['since']:.0f} s): {offline['reason']}"]
