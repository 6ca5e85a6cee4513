"""What makes two answers of v2 equal: everything but times, inodes and signatures."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from t0_sim2_replay import ABSENT, HOME, UID, USER, Answer, Replay, digest

HEADERS = (
    "content-type",
    "allow",
    "location",
    "www-authenticate",
    "content-range",
    "accept-ranges",
)
PRESENT = ("auth-token", "f7t-authusername", "f7t-timestamp", "f7t-appversion", "x-request-id",
           "x-correlation-id", "etag")  # fmt: skip
"""Headers that must be there or not, whatever they say."""
SHAPE = re.compile(
    r"systems|liveness|userinfo.*|nodes|token\..*|jobs\.list\..*|pyfirecrest\.(systems|server_version"
    r"|userinfo|job_info_all|list_files)|jobs\.get\.immediately_after_submit"
)
"""Of these the keys and types must agree: the values are the machine's or the moment's."""
_LOOSE = {"ino", "dev", "uid", "gid", "ctime", "elapsed", "priority", "start", "end"}
_CUT = re.compile(
    r"(?s)(.*)<cut from the transcript: (\d+) characters in all, sha256 of utf-8 (\w+)"
)
_NEUTRAL = (
    (re.compile(r"20(?:2[5-9])-\d\d-\d\dT\d\d:\d\d:\d\d"), "<TIME>"),
    (re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ [\d:]{8} \w+ 20\d\d"), "<DATE>"),
    (re.compile(r"X-Amz-[^\"]*|uploadId=[\w-]+"), "<SIGNED>"),
    (re.compile(r"<RequestId>.*?</HostId>"), "<IDS>"),
    (re.compile(r"ETag: [0-9a-f]{32}|<ETag>.*?</ETag>"), "<ETAG>"),
    (re.compile(r"tmp/[0-9a-f-]{36}/"), "tmp/<UUID>/"),
    (re.compile(r"timeout \d+(\.\d+)?"), "timeout <N>"),
    (re.compile(r"job\d{5}/"), "job<N>/"),
    (re.compile(r"tar: [^:\n]*: Cannot write: Broken pipe\n"), ""),  # or not: tar and gzip race
    (re.compile(r"bytes copied, .*"), "bytes copied"),
    (re.compile(r"(?:\[INFO\] Uploading part \d+\.\.\.\n)+"), "<UPLOADING>"),  # they race
    (re.compile(r", \d+, \d+, 'surrogates"), ", 'surrogates"),
)


def neutral(text: str) -> str:
    for expression, word in _NEUTRAL:
        text = expression.sub(word, text)
    return text


def compare(replay: Replay, record: dict[str, Any], answer: Answer) -> list[str]:
    wrong = []
    if record["status"] != answer.status:
        wrong.append(f"status {answer.status}, recorded {record['status']}: {answer.body[:300]!r}")
    recorded = record["response_headers"]
    for name in HEADERS:
        here, there = answer.headers.get(name, ""), recorded.get(name, "")
        if name == "content-type" and "staging" in record["path"]:
            continue
        if replay.back(here).split(";")[0] != there.split(";")[0]:
            wrong.append(f"{name}: {here!r}, recorded {there!r}")
    for name in PRESENT:
        if (name in answer.headers) != (name in recorded):
            wrong.append(f"{name}: {name in answer.headers}, recorded {name in recorded}")
    named = answer.headers.get("f7t-authusername")
    if recorded.get("f7t-authusername") == USER and named != replay.user:
        wrong.append(f"f7t-authusername: {named}")
    return wrong + _bodies(replay, record, answer)


def _bodies(replay: Replay, record: dict[str, Any], answer: Answer) -> list[str]:
    if record.get("response_json") is not None:
        try:
            here = json.loads(answer.body)
        except ValueError:
            return [f"no JSON: {answer.body[:200]!r}"]
        return Comparison(replay, record).values(here, record["response_json"], "")
    if "response_sha256" in record and not re.search("20MiB|tar", record["path"] + record["name"]):
        if "staging" in record["path"]:
            return _size(record, answer)
        if hashlib.sha256(answer.body).hexdigest() != record["response_sha256"]:
            return [f"{len(answer.body)} other bytes than the recorded {record['response_bytes']}"]
    if "response_text" in record:
        here = neutral(replay.back(answer.body.decode(errors="replace")))
        there = neutral(record["response_text"]).replace(
            "http://fireuser.", f"http://{replay.user}."
        )
        there = there.replace("<Bucket>fireuser", f"<Bucket>{replay.user}")
        if here != there:
            return [f"body {here!r}, recorded {there!r}"]
    return []


def _size(record: dict[str, Any], answer: Answer) -> list[str]:
    here, there = len(answer.body), record["response_bytes"]
    return [] if here == there else [f"{here} bytes, recorded {there}"]


class Comparison:
    def __init__(self, replay: Replay, record: dict[str, Any]) -> None:
        self._replay = replay
        self._record = record
        self._shape = bool(SHAPE.fullmatch(record["name"].partition("#")[0]))

    def values(self, here: Any, there: Any, where: str) -> list[str]:
        if isinstance(there, dict) and isinstance(here, dict):
            return self._objects(here, there, where)
        if isinstance(there, list) and isinstance(here, list):
            return self._lists(here, there, where)
        key = where.rpartition(".")[2]
        if self._shape:
            same = type(here) is type(there) or None in (here, there)
            return [] if same else [f"{where}: {here!r}, recorded {there!r}"]
        if type(here) is not type(there):
            return [f"{where}: {here!r}, recorded {there!r}"]
        if key in _LOOSE or here == there:
            return []
        if key in {"atime", "mtime"} and there > 1790000000:
            return []
        if isinstance(there, str):
            return self._texts(here, there, where)
        return [f"{where}: {here!r}, recorded {there!r}"]

    def _objects(self, here: dict[str, Any], there: dict[str, Any], where: str) -> list[str]:
        if where == ".healthcheckRuns":
            return []
        if set(here) != set(there):
            return [f"{where}: keys {sorted(here)}, recorded {sorted(there)}"]
        if there.get("errorType") == "validation":
            # its text is the server's source path and Python's repr: nobody may parse it
            here, there = ({**one, "message": one["message"][:19]} for one in (here, there))
        if there.get("name") == "allocation" or _undecided(there):
            # sacct lagged when it was recorded: only the end is sure
            if there["status"]["state"] == "PENDING":
                return []
            return self.values(here["status"], there["status"], f"{where}.status")
        names = list(there)
        if there.get("type") == "d" or str(there.get("linkTarget") or "").startswith("/"):
            names.remove("size")
        if _is_stat(there) and (there["mode"] >> 12 == 4 or "broken" in self._record["name"]):
            names = [name for name in names if name not in {"size", "nlink", "atime", "mtime"}]
        return [d for k in names for d in self.values(here[k], there[k], f"{where}.{k}")]

    def _lists(self, here: list[Any], there: list[Any], where: str) -> list[str]:
        if self._shape:
            return self.values(here[0], there[0], f"{where}[0]") if here and there else []
        if there and isinstance(there[-1], str) and "cut from the transcript" in there[-1]:
            count = int(there[-1].split()[0].strip("<")) + len(there) - 1
            if len(here) != count:
                return [f"{where}: {len(here)} items, recorded {count}"]
            here, there = here[: len(there) - 1], there[:-1]
        there = [e for e in there if not (isinstance(e, dict) and e.get("name") in ABSENT)]
        if len(here) != len(there):
            return [f"{where}: {len(here)} items, recorded {len(there)}: {here} / {there}"]
        pairs = enumerate(zip(here, there, strict=True))
        return [d for n, (a, b) in pairs for d in self.values(a, b, f"{where}[{n}]")]

    def _texts(self, here: str, there: str, where: str) -> list[str]:
        cut = _CUT.match(there)
        if cut is not None:
            same = len(here) == int(cut[2]) and digest(here).startswith(cut[3])
            return [] if same else [f"{where}: another text of {len(here)} characters"]
        key = where.rpartition(".")[2]
        here = neutral(self._people(self._replay.back(here), key))
        there = neutral(self._people(there, key))
        return [] if here == there else [f"{where}: {here!r}, recorded {there!r}"]

    def _people(self, text: str, key: str) -> str:
        replay = self._replay
        users = {replay.user: USER, replay.ids[0]: UID, "nokeyuser": "unknown", "firesrv": "other"}
        if key == "user":
            return users.get(text, text)
        if key == "group":
            known = {replay.group: USER, replay.ids[1]: UID, "project1": USER}
            return known.get(text, text)
        text = text.replace("user:nokeyuser", "user:unknown")
        text = re.sub(rf"CANCELLED by {replay.ids[0]}\b", f"CANCELLED by {UID}", text)
        return text.replace(f"{HOME}.", HOME)


def _undecided(there: dict[str, Any]) -> bool:
    """A job that was recorded before it started: ours may have started."""
    status = there.get("status")
    return isinstance(status, dict) and (status.get("state"), status.get("stateReason")) == (
        "PENDING",
        "None",
    )


def _is_stat(value: dict[str, Any]) -> bool:
    return "mode" in value and "ino" in value
