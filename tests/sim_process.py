"""The simulator in a process of its own, for any test: `with running_simulator() as sim:`.

Plain stdlib HTTP with deadlines, so that no test depends on a client of ours to talk to it. The
folder is not pytest's tmp_path: that is 0700, and the cluster's commands may run as nobody.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

START_DEADLINE = 30.0
STOP_DEADLINE = 15.0
HTTP_TIMEOUT = 60.0


class Simulator:
    """A running simulator and the knobs under /_sim."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        info: dict[str, str],
        argv: Sequence[str] = (),
    ) -> None:
        self.process = process
        self.info = info
        self._argv = list(argv)
        self.url = info["firecrest_url"]
        self.v2_url = info.get("firecrest_v2_url", "")
        """Of the v2 server, if there is one: with api="v2" and api="both"."""
        self.root = Path(info["root"])
        self.home = Path(info["home"])
        self.scratch = Path(info["scratch"])
        self.system = info["system"]
        self.user = info["user"]

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = HTTP_TIMEOUT,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body; `path` may be a whole URL of this server."""
        parts = urlsplit(path)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=timeout)
        try:
            connection.request(method, target, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content
        finally:
            connection.close()

    def _control(self, method: str, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        status, _, content = self.request(method, f"/_sim/{path}", body=body)
        if status != 200:
            raise RuntimeError(f"/_sim/{path}: {status} {content!r}")
        return json.loads(content)

    def token(self, client_id: str | None = None) -> str:
        """A token of the token endpoint; client_id "firecrest-other" is another user."""
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id or self.info["client_id"],
            "client_secret": self.info["client_secret"],
        }
        status, _, content = self.request(
            "POST",
            self.info["auth_token_url"],
            body=urlencode(form).encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        if status != 200:
            raise RuntimeError(f"no token: {status} {content!r}")
        return str(json.loads(content)["access_token"])

    def mint(self, **claims: Any) -> str:
        """Any token: user, lifetime (may be negative), scope."""
        return str(self._control("POST", "token", claims)["access_token"])

    def api(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        token: str | None = None,
        machine: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """An API call with query or urlencoded form; JSON is decoded, other bodies are bytes."""
        sent = {"Authorization": f"Bearer {token or self.token()}"}
        sent["X-Machine-Name"] = machine or self.system
        sent |= dict(headers or {})
        encoded = urlencode(dict(params or {}))
        body = None
        if method == "GET" and encoded:
            path = f"{path}?{encoded}"
        elif method != "GET":
            sent["Content-Type"] = "application/x-www-form-urlencoded"
            body = encoded.encode()
        status, answered, content = self.request(method, path, body=body, headers=sent)
        if answered.get("content-type", "").startswith("application/json"):
            return status, answered, json.loads(content)
        return status, answered, content

    def v2(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        body: Any = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """A v2 call with a query and perhaps a JSON body; JSON is decoded, 204 is None."""
        sent = {"Authorization": f"Bearer {token or self.token()}", **(headers or {})}
        path = f"{urlsplit(self.v2_url).path}{path}"
        if params:
            path += f"?{urlencode(params)}"
        content = None
        if isinstance(body, bytes):
            content = body
        elif body is not None:
            content = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        status, answered, raw = self.request(method, path, body=content, headers=sent)
        if answered.get("content-type", "").startswith("application/json"):
            return status, answered, json.loads(raw) if raw else None
        return status, answered, raw

    def system_state(self, name: str, state: str) -> None:
        """Of v2's login nodes: up, refused (not noticed yet) or down (503)."""
        self._control("POST", "system", {"name": name, "state": state})

    def hold_jobs(self, held: bool) -> None:
        """While they are held, no job starts."""
        self._control("POST", "jobs", {"hold": held})

    def refuse_links(self, refuse: str | None = "EPERM", *, across: bool = False) -> None:
        """The cluster's file system makes no hard links, until faults are cleared."""
        self._control("POST", "links", {"refuse": refuse, "across": across})

    def uplink(self, rate: float | None) -> None:
        """Bytes per second that all clients together can send; None: as fast as it goes."""
        self._control("POST", "uplink", {"rate": rate})

    def room(self, left: int | None, words: str = "Disk quota exceeded") -> None:
        """How many bytes staged uploads may still write on the cluster; None: all they like."""
        self._control("POST", "room", {"left": left, "words": words})

    def arrived(self, bucket: str, key: str, size: int) -> None:
        """An object is at the web server that forms lead to."""
        self._control("POST", "objects", {"bucket": bucket, "key": key, "size": size})

    def hold_staging(self, held: bool) -> None:
        """While it is held, v1's downloads stay at 116."""
        self._control("POST", "staging", {"hold": held})

    def injections(self) -> list[str]:
        """Commands that a path would have run besides the v2 server's own."""
        return list(self._control("GET", "injections")["injections"])

    def wait_task(self, ident: str, *states: str, deadline: float = 20.0) -> dict[str, Any]:
        """Poll a task until it is in one of the states; the record."""
        token, end = self.token(), time.monotonic() + deadline
        while True:
            _, _, body = self.api("GET", f"/tasks/{ident}", token=token)
            task: dict[str, Any] = body["task"]
            if task["status"] in states:
                return task
            if time.monotonic() > end:
                raise TimeoutError(f"task {ident} is at {task['status']}, not at {states}")
            time.sleep(0.01)

    def calls(self) -> dict[str, Any]:
        return dict(self._control("GET", "calls"))

    def reset_calls(self) -> None:
        self._control("POST", "calls/reset", {})

    def log(self, last: int = 100) -> list[dict[str, Any]]:
        return list(self._control("GET", f"log?last={last}")["log"])

    def faults(self, rules: list[dict[str, Any]]) -> list[int]:
        """See f7tfs.sim.faults for the rules."""
        return list(self._control("POST", "faults", rules)["ids"])

    def fired(self) -> dict[int, int]:
        return {rule["id"]: rule["fired"] for rule in self._control("GET", "faults")["faults"]}

    def clear_faults(self) -> None:
        self._control("DELETE", "faults")

    def sweep(self) -> None:
        """Look for staged uploads now, and wait for what that began."""
        self._control("POST", "sweep", {})

    def states(self, ident: str) -> list[dict[str, Any]]:
        """All that GET /tasks/{id} would have shown so far; some states last milliseconds."""
        return list(self._control("GET", f"tasks/{ident}")["states"])

    def start_again(self) -> None:
        """After `stop`: the same cluster's disk at the same address. Earlier tokens, tasks and
        staged objects are gone, as after a restart of the real services."""
        assert self.process.poll() is not None, "it runs"
        assert self.process.stdout is not None
        self.process.stdout.close()
        address = urlsplit(self.url).netloc
        self.process = subprocess.Popen(
            [*self._argv, "--listen", address, "--client-secret", self.info["client_secret"]],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        info = _ready_line(self.process)
        assert info["firecrest_url"] == self.url, info
        self.info = info

    def staged_at(self, ident: str) -> float:
        """When a download's link was ready (epoch)."""
        task = self._control("GET", f"tasks/{ident}")
        moments = dict(zip((s["status"] for s in task["states"]), task["times"], strict=True))
        return float(moments["117"])

    def stop(self) -> int:
        """SIGTERM, then the exit status; killed if it does not go."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def command(root: Path, **options: Any) -> list[str]:
    """`latency=0.1` becomes `--latency 0.1`, `no_wrapper=True` becomes `--no-wrapper`."""
    options.setdefault("user", "nobody" if os.getuid() == 0 else None)
    argv = [sys.executable, "-m", "f7tfs.sim", "--root", str(root)]
    for name, value in options.items():
        if value is None or value is False:
            continue
        argv.append("--" + name.replace("_", "-"))
        if value is not True:
            argv.append(str(value))
    return argv


@contextmanager
def running_simulator(**options: Any) -> Iterator[Simulator]:
    """Start one in a fresh folder, stop it and remove the folder at the end."""
    folder = Path(tempfile.mkdtemp(prefix="f7tfs-sim-"))
    process: subprocess.Popen[bytes] | None = None
    simulator: Simulator | None = None
    try:
        folder.chmod(0o711)
        argv = command(folder / "cluster", **options)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
        simulator = Simulator(process, _ready_line(process), argv)
        yield simulator
        simulator.stop()
    finally:
        if simulator is not None:
            process = simulator.process
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        _remove(folder)


def _ready_line(process: subprocess.Popen[bytes]) -> dict[str, str]:
    assert process.stdout is not None
    end = time.monotonic() + START_DEADLINE
    line = b""
    while not line.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise TimeoutError("the simulator did not get ready")
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            raise RuntimeError(f"the simulator ended with status {process.wait(5)}")
        line += data
    return dict(json.loads(line))


def _remove(folder: Path) -> None:
    """Also what has modes that forbid it to its owner."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            place = os.path.join(path, name)
            if not os.path.islink(place):
                os.chmod(place, 0o700)
    shutil.rmtree(folder)
