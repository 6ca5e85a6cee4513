"""Calls of v2 as tests make them: plain HTTP, and deadlines on everything."""

from __future__ import annotations

import io
import os
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim_process import Simulator

OPS = "/filesystem/cluster/ops"
TRANSFER = "/filesystem/cluster/transfer"
JOBS = "/compute/cluster/jobs"
DEADLINE = 20.0


def tidy(sim: Simulator) -> None:
    sim.clear_faults()
    sim.hold_jobs(False)


def fresh(sim: Simulator, name: str) -> Path:
    """A new folder of the cluster's user, named after a test."""
    plain = re.sub(r"\W", "-", name)
    return folder(sim, sim.home / f"{plain}-{len(os.listdir(sim.home))}")


def own(sim: Simulator, path: Path) -> Path:
    if os.getuid() == 0:
        owner = sim.home.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    return path


def folder(sim: Simulator, path: Path) -> Path:
    path.mkdir()
    return own(sim, path)


def put(sim: Simulator, path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(own(sim, path))


def until(what: Callable[[], Any], wish: str) -> Any:
    """The first true value; a file that is not there yet counts as false."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            found = what()
        except FileNotFoundError:
            found = None
        if found:
            return found
        assert time.monotonic() < end, wish
        time.sleep(0.01)


def upload(sim: Simulator, place: str, name: str, content: bytes) -> tuple[int, Any]:
    head = f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    status, _, body = sim.v2(
        "POST",
        f"{OPS}/upload",
        {"path": place},
        body=head.encode() + content + b"\r\n--B--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=B"},
    )
    return status, body


def stage_up(
    sim: Simulator, path: str, content: bytes, declared: int | None = None, system: str = "cluster"
) -> dict[str, Any]:
    """A transfer/upload with all its parts and its completion; the transferJob."""
    made = offer(sim, path, len(content) if declared is None else declared, system)
    complete(sim, made["transferDirectives"], content)
    return dict(made["transferJob"])


def offer(sim: Simulator, path: str, size: int, system: str = "cluster") -> dict[str, Any]:
    wish = {"path": path, "transferDirectives": {"transferMethod": "s3", "fileSize": size}}
    status, _, made = sim.v2("POST", f"/filesystem/{system}/transfer/upload", body=wish)
    assert status == 201, made
    return dict(made)


def complete(sim: Simulator, directives: dict[str, Any], content: bytes) -> int:
    step, parts = directives["maxPartSize"], ""
    for number, link in enumerate(directives["partsUploadUrls"], 1):
        piece = content[(number - 1) * step : number * step]
        status, headers, _ = sim.request("PUT", link, body=piece)
        assert status == 200
        parts += f"<Part><PartNumber>{number}</PartNumber><ETag>{headers['etag']}</ETag></Part>"
    text = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
    return sim.request("POST", directives["completeUploadUrl"], body=text.encode())[0]


def stage_down(sim: Simulator, path: str) -> tuple[dict[str, Any], str]:
    wish = {"path": path, "transferDirectives": {"transferMethod": "s3"}}
    status, _, made = sim.v2("POST", f"{TRANSFER}/download", body=wish)
    assert status == 201, made
    return made["transferJob"], made["transferDirectives"]["downloadUrl"]


def move(sim: Simulator, kind: str, path: str, target: str, **more: Any) -> dict[str, Any]:
    wish = {"path": path, "targetPath": target, **more}
    status, _, made = sim.v2("POST", f"{TRANSFER}/{kind}", body=wish)
    assert status == 201, made
    return dict(made["transferJob"])


def submit(sim: Simulator, script: str, **job: Any) -> str:
    wish = {"workingDirectory": str(sim.home), "script": f"#!/bin/bash\n{script}\n", **job}
    status, _, made = sim.v2("POST", JOBS, body={"job": wish})
    assert status == 201, made
    return str(made["jobId"])


def look(sim: Simulator, ident: Any) -> dict[str, Any]:
    status, _, body = sim.v2("GET", f"{JOBS}/{ident}")
    assert status == 200, body
    return dict(body["jobs"][0])


def state(sim: Simulator, ident: Any) -> str:
    return str(look(sim, ident)["status"]["state"])


def ended(sim: Simulator, job: dict[str, Any] | str) -> str:
    ident = job if isinstance(job, str) else job["jobId"]

    def final() -> str:
        now = state(sim, ident)
        return "" if now in {"PENDING", "RUNNING"} else now

    return str(until(final, f"job {ident} does not end"))


def logs(job: dict[str, Any]) -> tuple[str, str]:
    return tuple(Path(job["logs"][name]).read_text() for name in ("outputLog", "errorLog"))  # type: ignore[return-value]


def archive(*members: tuple[str, bytes, str, bytes]) -> bytes:
    """(name, kind, target, content) each."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, target, content in members:
            one = tarfile.TarInfo(name)
            one.type, one.linkname, one.size, one.mtime = kind, target, len(content), 1500000000
            tar.addfile(one, io.BytesIO(content))
    return made.getvalue()


def extract(sim: Simulator, place: Path, *members: tuple[str, bytes, str, bytes]) -> int:
    assert upload(sim, str(place), ".t", archive(*members))[0] == 204
    wish = {"path": f"{place}/.t", "targetPath": str(place), "compression": "none"}
    return sim.v2("POST", f"{OPS}/extract", body=wish)[0]
