"""Replaying a recorded request against the simulator, and comparing the two answers.

A recording is played in its own order on one simulator. Names, ids and addresses of the recording
are translated on the way in, and those of the simulator back on the way out, so that everything
else must be equal to the letter.
"""

from __future__ import annotations

import base64
import grp
import json
import pwd
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from sim_process import Simulator
from t0_sim_tree import UPLOADED_SCRIPTS

RECORDS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "data/v1/transcripts.jsonl").read_text().splitlines()
]
HOME = "/home/test1"
MAX_SENT = 6400000
"""Of a recorded 150 MB upload only so much is sent; the answers do not depend on it."""
DEADLINE = 30.0
_STATE = re.compile(r"-task-state-(\d+)$")
_WORD = re.compile(r'(?<![0-9a-f:])(?<!"status":")\d{3}(?![0-9a-f])')
"""A number that may be a job's id: no part of a hash, of a time, or a task's status."""
ABSENT = {"acl.txt"}
"""Recorded with setfacl, which is not everywhere."""
_NUMBERS = {"atime", "ctime", "mtime", "dev", "ino", "uid", "gid", "nlink", "size"}
_DISPENSABLE = {"x-amzn-requestid"}


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = dict(headers)
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Replay:
    def __init__(self, sim: Simulator, before: Mapping[str, Callable[[Simulator], None]]) -> None:
        self.sim = sim
        self._before = before
        self._tasks: dict[str, str] = {}
        """Recorded task id → ours."""
        self._jobs: dict[str, str] = {}
        self._seen: dict[str, int] = {}
        """How far each task's history was followed, by our id."""
        self._states: dict[str, dict[str, Any]] = {}
        self._tokens = {
            "Bearer <TOKEN>": sim.token(),
            "Bearer <EXPIRED TOKEN>": sim.mint(lifetime=-10),
            "Bearer <TOKEN OF A USER UNKNOWN ON THE CLUSTER>": sim.token("firecrest-unknown"),
            "Bearer <TOKEN WITHOUT SCOPE firecrest>": sim.mint(scope="profile email"),
        }
        head, _, signature = self._tokens["Bearer <TOKEN>"].rpartition(".")
        self._tokens["Bearer <TOKEN SIGNED BY ANOTHER KEY>"] = f"{head}.{signature[::-1]}"
        self._other = sim.token("firecrest-other")
        account = sim.home.stat()
        self.user = pwd.getpwuid(account.st_uid).pw_name
        self.group = grp.getgrgid(account.st_gid).gr_name

    # -- out

    def _translate(self, text: str, record: dict[str, Any]) -> str:
        root = str(self.sim.root)
        text = text.replace("/home/test2", f"{root}/home/test2").replace(HOME, str(self.sim.home))
        text = re.sub(r"^/(forbidden|etc)\b", rf"{root}/\1", text)
        for recorded, ours in self._tasks.items():
            text = text.replace(recorded, ours)
        if record["name"].startswith(("job", "acct", "xfer-internal")):
            text = _WORD.sub(lambda found: self._jobs.get(found[0], found[0]), text)
        return text

    def _parameters(self, given: Any, record: dict[str, Any]) -> dict[str, str]:
        found = {k: self._translate(v, record) for k, v in (given or {}).items()}
        if record["path"].endswith("/chown"):
            ids = {"1503": (str(self.sim.home.stat().st_uid), str(self.sim.home.stat().st_gid))}
            names = {"test1": (self.user, self.group), "test2": ("daemon", "daemon")}
            for position, name in enumerate(("owner", "group")):
                if name in found:
                    known = (ids | names).get(found[name])
                    found[name] = known[position] if known else found[name]
        return found

    def _send(self, record: dict[str, Any]) -> Answer:
        sim, path = self.sim, record["path"]
        headers = {k: self._translate(v, record) for k, v in record["request_headers"].items()}
        bearer = record["request_headers"].get("Authorization")
        if record.get("as_user") == "test2":
            headers["Authorization"] = f"Bearer {self._other}"
        elif bearer in self._tokens:
            headers["Authorization"] = f"Bearer {self._tokens[bearer]}"
        path = path.replace("http://utilities-without-wrapper.example", "/utilities")
        path = self._translate(path, record) if "targetPath=" not in path else path
        query = self._parameters(record["query"], record)
        form = self._parameters(record.get("form"), record)
        if path.startswith("http://auth.example"):
            path = sim.info["auth_token_url"]
            good = form["client_secret"] == "secret1"
            form["client_id"] = sim.info["client_id"]
            form["client_secret"] = sim.info["client_secret"] if good else "nope"
        elif path.startswith("http://staging.example"):
            path, query, form = self._staging(record)
        elif "targetPath=" in path:
            path = path.replace(HOME, quote(str(sim.home)))
        if query:
            path += f"?{urlencode(query)}"
        body = None
        if record.get("files"):
            body, kind = multipart(form, record["files"])
            headers["Content-Type"] = kind
        elif record.get("form") is not None:
            body = urlencode(form).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        return Answer(*sim.request(record["method"], path, body=body, headers=headers))

    def _staging(self, record: dict[str, Any]) -> tuple[str, dict[str, str], dict[str, str]]:
        """Our own link or form stands for the recorded one."""
        recorded = next(ident for ident in self._tasks if ident in json.dumps(record))
        if self._tasks[recorded] not in self._states:
            wanted = "111" if record["method"] == "POST" else "117"
            state = self._find(self._tasks[recorded], wanted)
            assert state is not None
            self._states[self._tasks[recorded]] = state
        data = self._states[self._tasks[recorded]]["data"]
        if record["method"] == "POST":
            parameters = data["msg"]["parameters"]
            return urlsplit(parameters["url"]).path, {}, parameters["data"]
        link = urlsplit(data["url"])
        return f"{link.path}?{link.query}", {}, {}

    # -- one record

    def play(self, record: dict[str, Any]) -> list[str]:
        """What differs between the recorded answer and the simulator's; empty if nothing does."""
        name = record["name"]
        if name in self._before:
            self._before[name](self.sim)
        found = _STATE.search(name)
        if found:
            state = self._reach(record, found[1])
            if state is None:
                return [f"task never came to {found[1]}"]
            answer = Answer(
                200, {"content-type": "application/json"}, json.dumps({"task": state}).encode()
            )
        else:
            answer = self._send(record)
            self._learn_task(record, answer)
        return self._compare(record, answer)

    def _learn_task(self, record: dict[str, Any], answer: Answer) -> None:
        recorded = record.get("response_json")
        if isinstance(recorded, dict) and "task_id" in recorded and answer.status < 300:
            self._tasks[recorded["task_id"]] = answer.json["task_id"]

    def _reach(self, record: dict[str, Any], status: str) -> dict[str, Any] | None:
        """The next time that the task is in this state; sweeps the staging area if need be."""
        state = self._find(self._tasks[record["path"].rpartition("/")[2]], status)
        if state is not None:
            self._learn_job(record, state)
        return state

    def _find(self, ident: str, status: str) -> dict[str, Any] | None:
        end = time.monotonic() + DEADLINE
        while True:
            states = self.sim.states(ident)
            for position in range(self._seen.get(ident, 0), len(states)):
                if states[position]["status"] == status:
                    self._seen[ident] = position
                    if "parameters" in str(states[position]) or "url" in str(states[position]):
                        self._states[ident] = states[position]
                    return states[position]
            if time.monotonic() > end:
                return None
            if status in {"112", "113", "114", "115"}:
                self.sim.sweep()
            else:
                time.sleep(0.01)

    def _learn_job(self, record: dict[str, Any], state: dict[str, Any]) -> None:
        recorded = record["response_json"]["task"]["data"]
        if isinstance(recorded, dict) and "result" in recorded and state["status"] == "200":
            self._jobs[recorded["jobid"]] = state["data"]["jobid"]

    # -- back

    def _back(self, text: str, record: dict[str, Any]) -> str:
        sim = self.sim
        text = text.replace(f"{sim.url}/s3/{sim.user}", "http://staging.example/test1")
        text = text.replace(str(sim.home), HOME)
        for folder in ("home", "scratch", "forbidden", "etc"):
            text = text.replace(f"{sim.root}/{folder}", f"/{folder}")
        for recorded, ours in self._tasks.items():
            text = text.replace(ours, recorded)
        if record["name"].startswith(("job", "acct", "xfer-internal", "tasks")):
            back = {ours: recorded for recorded, ours in self._jobs.items()}
            text = _WORD.sub(lambda found: back.get(found[0], found[0]), text)
        return text

    def _compare(self, record: dict[str, Any], answer: Answer) -> list[str]:
        wrong: list[str] = []
        if record["status"] != answer.status:
            wrong.append(f"status {answer.status}, recorded {record['status']}: {answer.body!r}")
        recorded_headers = record["response_headers"]
        kind = recorded_headers["content-type"].split(";")[0]
        ours = answer.headers.get("content-type", "").split(";")[0]
        if ours != kind and answer.status != 204:
            wrong.append(f"content-type {ours}, recorded {kind}")
        names = {
            name
            for name in {*recorded_headers, *answer.headers}
            if name.startswith("x-") or name in {"content-disposition", "content-range", "allow"}
        }
        for name in sorted(names - _DISPENSABLE):
            here = self._back(answer.headers.get(name, "(none)"), record)
            there = recorded_headers.get(name, "(none)")
            if neutral(here) != neutral(there):
                wrong.append(f"{name}: {here}, recorded {there}")
        return wrong + self._compare_bodies(record, answer)

    def _compare_bodies(self, record: dict[str, Any], answer: Answer) -> list[str]:
        if "response_json" in record and record["response_json"] is not None:
            if "application/json" not in answer.headers.get("content-type", ""):
                return [f"no JSON: {answer.body[:200]!r}"]
            here = json.loads(self._back(answer.body.decode(), record))
            there = record["response_json"]
            return differences(self._people(here), there, record)
        if "response_text" in record:
            here = self._back(answer.body.decode(errors="replace"), record)
            if neutral(here) != neutral(record["response_text"]):
                return [f"body {here!r}, recorded {record['response_text']!r}"]
        size = record["response_headers"].get("content-length")
        binary = "response_size" in record or "response_text" not in record
        if size and binary and int(size) != len(answer.body):
            return [f"{len(answer.body)} bytes, recorded {size}"]
        return []

    def _people(self, value: Any) -> Any:
        """Our account is their test1."""
        if isinstance(value, dict):
            value = {k: self._people(v) for k, v in value.items()}
            account = self.sim.home.stat()
            users = {self.user: "test1", str(account.st_uid): "1503", "other": "test2"}
            groups = {self.group: "test1", str(account.st_gid): "1503"}
            for key, names in (("user", users), ("group", groups)):
                if isinstance(value.get(key), str):
                    value[key] = names.get(value[key], value[key])
            return value
        if isinstance(value, list):
            return [self._people(item) for item in value]
        if isinstance(value, str):
            if value == self.user:
                return "test1"
            owner = f"{self.user}:{self.group}"
            value = value.replace(f" {self.user} {self.group} ", " test1 test1 ")
            value = value.replace(f"'{self.user}'", "'test1'")
            return value.replace(f" {owner}", " test1:test1").replace(
                f"CANCELLED by {self.sim.home.stat().st_uid}", "CANCELLED by 1503"
            )
        return value


SHAPE = re.compile(
    r"^(jobs-list-.*-task-state-200|acct.*-task-state-200|job-quick-acct.*-task-state-200"
    r"|job-dir-ls|whoami-groups|status-parameters|status-systems|ls-recursive-.*|ls-unsorted.*)$"
)
"""Of these the keys and types must agree: their values depend on time or on the machine."""
LOOSE = {"job_data_out", "job_data_err", "cert"}


def differences(here: Any, there: Any, record: dict[str, Any], where: str = "") -> list[str]:
    """Where two JSON values differ, their neutral forms considered."""
    shape = bool(SHAPE.match(record["name"]))
    key = where.rpartition(".")[2].partition("[")[0]
    if isinstance(there, dict) and isinstance(here, dict):
        if set(here) != set(there) and not (shape and key in {"data", "tasks"}):
            return [f"{where}: keys {sorted(here)}, recorded {sorted(there)}"]
        both = [name for name in there if name in here]
        return [d for k in both for d in differences(here[k], there[k], record, f"{where}.{k}")]
    if isinstance(there, list) and isinstance(here, list):
        if shape:
            return differences(here[0], there[0], record, f"{where}[0]") if here and there else []
        if "response_truncated" in record:
            here = here[:5] + here[-2:]
        there = [e for e in there if not (isinstance(e, dict) and e.get("name") in ABSENT)]
        if len(here) != len(there):
            return [f"{where}: {len(here)} items, recorded {len(there)}: {here} / {there}"]
        pairs = zip(here, there, strict=True)
        return [
            d for n, (a, b) in enumerate(pairs) for d in differences(a, b, record, f"{where}[{n}]")
        ]
    if type(here) is not type(there):
        return [f"{where}: {here!r}, recorded {there!r}"]
    if shape or key in LOOSE:
        return []
    if key in _NUMBERS and record["path"].endswith("/stat"):
        fixed = key in {"size", "nlink"} or (key in {"mtime", "atime"} and there < 1790000000)
        if not fixed or (key in {"size", "nlink"} and "dir" in record["name"]):
            return []
    if isinstance(there, str) and "response_truncated" in record:
        here = here[: len(there)]
    if isinstance(there, str) and neutral(here) == neutral(there):
        return []
    return [] if here == there else [f"{where}: {here!r}, recorded {there!r}"]


_NEUTRAL = (
    (re.compile(r"20(?:2[5-9])-\d\d-\d\dT\d\d:\d\d:\d\d"), "<TIME>"),
    (re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ [\d:]{8} \w+ 20\d\d"), "<DATE>"),
    (re.compile(r"\b20\d{6}T\d{6}Z\b"), "<STAMP>"),
    (re.compile(r"STAGING_KEY(/|%2F)\d{8}"), "<KEY>"),
    (re.compile(r"\beyJ[\w+/=.-]+|<TOKEN>"), "<BASE64>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<SIGNATURE>"),
    (re.compile(r"<RequestId>.*?</HostId>"), "<IDS>"),
    (re.compile(r"tar: [^:]*: Cannot write: Broken pipe"), ""),  # or not: tar and gzip race
    (re.compile(r"d{200}"), "<D>"),
)


def neutral(value: Any) -> Any:
    """Without what is different each time: dates, signatures, policies."""
    if not isinstance(value, str):
        return value
    for pattern, word in _NEUTRAL:
        value = pattern.sub(word, value)
    return value


def multipart(form: Mapping[str, str], files: Mapping[str, Any]) -> tuple[bytes, str]:
    """Fields in order, then the files; file names as raw UTF-8, as requests sends them."""
    mark = "sim-replay-boundary"
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in form.items()
    ]
    for name, file in files.items():
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"'
        content = b"x" * min(file["size"], MAX_SENT)
        if file["size"] and file["filename"] in UPLOADED_SCRIPTS and file["size"] < 1000:
            content = UPLOADED_SCRIPTS[file["filename"]].encode()
        parts.append(f'{head}; filename="{file["filename"]}"\r\n\r\n'.encode() + content + b"\r\n")
    return b"".join(parts) + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


def test_records_are_whole() -> None:
    """818 records, as recorded, and base64 bodies that decode."""
    assert len(RECORDS) == 818
    assert all({"name", "method", "path", "status"} <= set(record) for record in RECORDS)
    for record in RECORDS:
        base64.b64decode(record.get("response_base64", ""), validate=True)
