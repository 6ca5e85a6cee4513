"""Replaying a recorded v2 request against the simulator, and comparing the two answers.

Played in the recorded order. Names, ids and addresses of the recording are translated on the way
in, and those of the simulator back on the way out; everything else must be equal.
"""

from __future__ import annotations

import grp
import hashlib
import json
import pwd
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from sim_process import Simulator
from t0_sim2_tree import archive

RECORDS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "data/v2/transcripts.jsonl").read_text().splitlines()
]
HOME, USER, UID = "/home/fireuser", "fireuser", "1501"
STAGING = "http://staging.example"
DEADLINE = 30.0
ABSENT = {"acl"}
"""Recorded with setfacl, which is not everywhere."""
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_JOB_IN_REQUEST = re.compile(r"(/jobs/|afterok:|out_|slurm-)(\d+)")
_JOB_IN_ANSWER = re.compile(r"((?<![\w.-])|out_|err_|slurm-|ü_)(\d{3})(?![\da-f-])")
_SYSTEMS = {"cluster-ms10": "cluster", "cluster-2411": "cluster"}
_FINAL = {"COMPLETED", "FAILED", "TIMEOUT"}


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = dict(headers)
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Replay:
    def __init__(self, sim: Simulator, before: Mapping[str, Callable[[Replay], None]]) -> None:
        self.sim = sim
        self._before = before
        self.jobs: dict[str, str] = {}
        """Recorded job id → ours."""
        self._uuids: dict[str, str] = {}
        self._links: dict[str, Any] = {}
        """Recorded staging path → our directives."""
        self._etags: dict[str, dict[int, str]] = {}
        self._early: dict[str, Answer] = {}
        """What a download's link answered right after it was made."""
        self.token = sim.token()
        self.other = sim.token("firecrest-other")
        head, _, signature = self.token.rpartition(".")
        self._tokens = {
            "auth.none": None,
            "auth.basic": "Basic Zm9vOmJhcg==",
            "auth.garbage": "Bearer garbage",
            "auth.expired": f"Bearer {sim.mint(lifetime=-10)}",
            "auth.expires_in_20s": f"Bearer {sim.mint(lifetime=20)}",
            "auth.user_without_ssh_key": f"Bearer {sim.token('firecrest-unknown')}",
            "auth.bad_signature": f"Bearer {head}.{signature[::-1]}",
        }
        account = sim.home.stat()
        self.user = pwd.getpwuid(account.st_uid).pw_name
        self.group = grp.getgrgid(account.st_gid).gr_name
        self.ids = (str(account.st_uid), str(account.st_gid))
        with tempfile.TemporaryDirectory() as folder:
            self._tar = archive(Path(folder))

    # -- out

    def translate(self, text: str) -> str:
        text = text.replace(HOME, str(self.sim.home))
        text = re.sub(r"(?<![\w/])/(home|scratch)\b(?!/)", rf"{self.sim.root}/\1", text)
        for recorded, ours in self._uuids.items():
            text = text.replace(recorded, ours)
        return _JOB_IN_REQUEST.sub(lambda m: m[1] + self.jobs.get(m[2], m[2]), text)

    def _structure(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self._structure(v) for k, v in value.items()}
        if isinstance(value, str):
            return self.translate(value)
        return value

    def _people(self, body: Any) -> Any:
        """For chown: our account's names and numbers."""
        names = {"project1": self.group, UID: self.ids[0], "1510": self.ids[1]}
        return {k: names.get(v, v) if k in {"owner", "group"} else v for k, v in body.items()}

    def send(self, record: dict[str, Any]) -> Answer:
        name, path = record["name"], record["path"]
        if path.startswith(STAGING):
            return self._stage(record)
        if path.startswith("http://auth.example"):
            return self._ask_token(record)
        headers = {k: v for k, v in record["request_headers"].items() if k.lower() == "range"}
        bearer = self._tokens.get(name, f"Bearer {self.token}")
        if bearer:
            headers["Authorization"] = bearer
        for recorded, ours in _SYSTEMS.items():
            path = path.replace(f"/{recorded}/", f"/{ours}/")
        path = self.translate(path)
        query = record["query"]
        if isinstance(query, str):
            path += "?" + query.replace(HOME, quote(str(self.sim.home)))
        elif query:
            path += "?" + urlencode({k: self.translate(str(v)) for k, v in query.items()})
        body = self._body(record, headers)
        return Answer(*self.sim.request(record["method"], path, body=body, headers=headers))

    def _body(self, record: dict[str, Any], headers: dict[str, str]) -> bytes | None:
        body = record["body"]
        kind = record["request_headers"].get("content-type", "")
        if kind.startswith("multipart/"):
            headers["Content-Type"] = "multipart/form-data; boundary=BOUND"
            if isinstance(body, str):
                return body.encode("latin-1") if body.startswith("--BOUND") else b""
            return self._multipart(body["multipart"]["file"])
        if body in (None, ""):
            return None
        headers["Content-Type"] = kind
        if isinstance(body, dict):
            body = self._structure(body)
            if "/chown" in record["path"]:
                body = self._people(body)
            return json.dumps(body).encode()
        return self.translate(body).encode("utf-8", "surrogatepass")

    def _multipart(self, file: dict[str, Any]) -> bytes:
        content = file["content"].encode()
        if content.startswith(b"<"):
            is_tar = file["filename"].endswith(".tar")
            content = self._tar if is_tar else b"x" * file["bytes"]
        name = file["filename"]
        escaped = name.replace("\\", "\\\\").replace('"', "%22").replace("\n", "%0A")
        said = f'; filename="{escaped}"' if name else ""
        head = f'--BOUND\r\nContent-Disposition: form-data; name="file"{said}\r\n\r\n'
        return head.encode() + content + b"\r\n--BOUND--\r\n"

    def _ask_token(self, record: dict[str, Any]) -> Answer:
        info = self.sim.info
        form = {
            "grant_type": "client_credentials",
            "client_id": info["client_id"],
            "client_secret": info["client_secret"],
        }
        headers = {"Content-Type": record["request_headers"]["content-type"]}
        body = urlencode(form).encode()
        return Answer(*self.sim.request("POST", info["auth_token_url"], body=body, headers=headers))

    def _stage(self, record: dict[str, Any]) -> Answer:
        """Our own link stands for the recorded one."""
        path = record["path"]
        directives = self._links[path]
        headers = {k: v for k, v in record["request_headers"].items() if k.lower() == "range"}
        if record["method"] == "PUT":
            number = int(parse_qs(record["query"])["partNumber"][0])
            size = int((re.findall(r"\d+", record["body"]) or ["0"])[0])
            return self._put(path, number, b"y" * size)
        if record["method"] == "POST":
            body = record["body"]
            if "<Part>" in body:
                for number in range(1, body.count("<Part>") + 1):
                    if number not in self._etags.get(path, {}):
                        self._put(path, number, b"y" * (2 << 20))
                parts = "".join(
                    f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
                    for number, etag in sorted(self._etags[path].items())
                )
                body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
            link = directives["completeUploadUrl"]
            return Answer(*self.sim.request("POST", link, body=body.encode()))
        if record["name"].endswith("get_before_ready"):
            return self._early[path]
        return Answer(
            *self.sim.request(record["method"], directives["downloadUrl"], headers=headers)
        )

    def _put(self, path: str, number: int, content: bytes) -> Answer:
        link = self._links[path]["partsUploadUrls"][number - 1]
        answer = Answer(*self.sim.request("PUT", link, body=content))
        self._etags.setdefault(path, {})[number] = answer.headers.get("etag", "")
        return answer

    # -- one record

    def play(self, record: dict[str, Any]) -> Answer:
        """The simulator's answer; that to a job's state once the job is where it was recorded."""
        hook = self._before.get(record["name"])
        if hook is not None:
            hook(self)
        staging = record["path"].endswith("/transfer/download")
        if staging:
            self.sim.hold_jobs(True)  # its link is looked at before the job is done
        answer = self.send(record)
        recorded = record.get("response_json")
        one = re.search(r"/jobs/\d+$", record["path"])
        if one and is_job(recorded) and recorded["jobs"][0]["status"]["state"] != "PENDING":
            answer = self._ended(record, answer)
        if isinstance(recorded, dict) and answer.status < 300 and answer.body:
            self._learn(recorded, answer)
        if staging:
            self.sim.hold_jobs(False)
        return answer

    def _ended(self, record: dict[str, Any], answer: Answer) -> Answer:
        end = time.monotonic() + DEADLINE
        while answer.status in {200, 404}:
            states = {job["status"]["state"].split()[0] for job in answer.json["jobs"]}
            if not states & {"PENDING", "RUNNING"}:
                break
            assert time.monotonic() < end, answer.body
            time.sleep(0.01)
            answer = self.send(record)
        return answer

    def wait_job(self, recorded: str, wanted: frozenset[str] = frozenset()) -> None:
        """Until the job, or each element of the array, has ended, or is in one of these states."""
        end = time.monotonic() + DEADLINE
        while True:
            path = f"/compute/cluster/jobs/{self.jobs[recorded]}"
            status, _, body = self.sim.v2("GET", path, token=self.token)
            if status != 200:
                return
            states = {job["status"]["state"] for job in body["jobs"]}
            if states <= wanted or not states & {"PENDING", "RUNNING"}:
                return
            assert time.monotonic() < end, body
            time.sleep(0.01)

    def _learn(self, recorded: dict[str, Any], answer: Answer) -> None:
        ours = answer.json
        if "jobId" in recorded:
            self.jobs[recorded["jobId"]] = ours["jobId"]
        if "transferJob" not in recorded:
            return
        self.jobs[recorded["transferJob"]["jobId"]] = ours["transferJob"]["jobId"]
        theirs = _UUID.findall(json.dumps(recorded))
        for one, other in zip(theirs, _UUID.findall(json.dumps(ours)), strict=True):
            self._uuids[one] = other
        directives = recorded.get("transferDirectives") or {}
        link = directives.get("downloadUrl") or directives.get("completeUploadUrl")
        if link:
            parts = urlsplit(link)
            path = f"{parts.scheme}://{parts.netloc}{parts.path}"
            self._links[path] = ours["transferDirectives"]
            if "downloadUrl" in directives:
                early = self.sim.request("GET", ours["transferDirectives"]["downloadUrl"])
                self._early[path] = Answer(*early)

    # -- back

    def back(self, text: str) -> str:
        sim = self.sim
        for recorded, ours in self._uuids.items():
            text = text.replace(ours, recorded)
        text = text.replace(f"{sim.url}/s3/{sim.user}", f"{STAGING}/{USER}")
        text = text.replace(f"{sim.url}/s3", STAGING)
        text = text.replace(sim.url, "http://firecrest.example").replace(str(sim.home), HOME)
        text = text.replace(f"({sim.root})", "(/)")
        for folder in ("home", "scratch", "nowhere"):
            text = text.replace(f"{sim.root}/{folder}", f"/{folder}")
        back = {ours: recorded for recorded, ours in self.jobs.items()}
        text = _JOB_IN_ANSWER.sub(lambda m: m[1] + back.get(m[2], m[2]), text)
        return re.sub(r"job\d{5}/", "job<N>/", text)


def is_job(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("jobs")) and "status" in value["jobs"][0]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
