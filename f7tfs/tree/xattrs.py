"""The extended attributes of the cluster's files: `user.f7tfs.state` and what belongs to it."""

from __future__ import annotations

import json

from f7tfs.content.spool import SpoolEntry, State
from f7tfs.model import RemotePath

SHA256 = "user.f7tfs.sha256"  # asks the cluster, hence never among those that are listed
STATE_WORDS = {
    State.OPEN: "dirty",
    State.HELD: "held",
    State.QUEUED: "dirty",
    State.UPLOADING: "uploading",
    State.STUCK: "stuck",
    State.GONE: "cached",
}


def attributes_of_entry(path: RemotePath, entry: SpoolEntry) -> dict[str, str]:
    """Of a dirty file."""
    found = {"user.f7tfs.remote_path": str(path), "user.f7tfs.state": STATE_WORDS[entry.state]}
    if entry.error:
        found["user.f7tfs.error"] = entry.error
    if entry.ticket:
        found["user.f7tfs.task"] = str(json.loads(entry.ticket).get("task_id", ""))
    if entry.state is State.UPLOADING:
        found["user.f7tfs.progress"] = f"{entry.sent}/{entry.size}"
    return found


def attributes_of_clean(
    path: RemotePath, is_cached: bool | None, is_offline: bool
) -> dict[str, str]:
    """Of what is on the cluster; `is_cached` is None for what is no file. Offline, nobody knows
    whether the cluster still has the same."""
    found = {"user.f7tfs.remote_path": str(path)}
    if is_cached is not None:
        found["user.f7tfs.state"] = "cached" if is_cached else "remote"
    if is_offline:
        found["user.f7tfs.error"] = "offline copy" if is_cached else "offline"
    return found
