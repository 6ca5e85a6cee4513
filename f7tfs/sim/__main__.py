"""`python -m f7tfs.sim --root DIR`: one JSON line when ready, then serves until a signal."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import trio

from f7tfs.sim.options import SimError, SimOptions


def parse(arguments: list[str] | None = None) -> SimOptions:
    parser = argparse.ArgumentParser(prog="python -m f7tfs.sim", description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, required=True, help="the folder that is the cluster's disk")
    add("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    add("--api", default="v1", choices=["v1", "v2", "both"])
    add("--user", help="account for commands and jobs (root only)")
    add("--state", type=Path, help="where staged objects live (default: temporary)")
    add("--client-secret", metavar="TEXT", help="of all clients (default: a new one)")
    add(
        "--link-origin",
        metavar="URL",
        help="GET links lead to this web server, which serves STATE/served as /s3 "
        "(for measuring: it checks no signatures, counts nothing, knows no faults)",
    )
    add("--form-origin", metavar="URL", help="v1's forms lead to this web server, for measuring")
    add("--server-version", metavar="X.Y.Z")
    for name, words in (
        ("latency", "added to each API call"),
        ("command-limit", "time limit of utilities' commands"),
        ("worker-timeout", "when a hanging storage worker dies"),
        ("staging-interval", "how often staged uploads are looked for"),
        ("object-store-expiry", "lifetime of links and forms"),
        ("token-lifetime", "lifetime of tokens"),
        ("min-job-age", "how long the queue remembers finished jobs"),
        ("kill-wait", "from SIGTERM to SIGKILL of a cancelled job"),
        ("acct-lag", "how long accounting lags behind"),
        ("start-delay", "from a job's submission to its start"),
        ("ingest-sleep", "v2: between two looks of an ingest job for its object"),
        ("transfer-cost", "v2: how long a transfer request blocks all others"),
        ("job-hidden", "v2: how long a job is not found after its submission"),
    ):
        add(f"--{name}", type=float, metavar="SECONDS", help=words)
    add("--v2-version", metavar="X.Y.Z", help="v2: whose spellings to use")
    add("--max-sessions", type=int, help="v2: simultaneous commands of a user")
    add("--time-zone", metavar="NAME", help="v2: of the login nodes")
    add("--part-size", type=int, metavar="BYTES", help="v2: of staged uploads")
    add("--slots", type=int, help="jobs that run at the same time")
    add("--escape-quotes", action="store_true", default=None, help="v2: in paths of commands")
    add("--no-wrapper", dest="collapse_spaces", action="store_false", default=None)
    given = vars(parser.parse_args(arguments))
    host, _, port = given.pop("listen").rpartition(":")
    if not port.isdigit():
        parser.error("--listen wants HOST:PORT")
    known = {one.name for one in fields(SimOptions)}
    values = {name: value for name, value in given.items() if value is not None}
    assert set(values) <= known
    return SimOptions(host=host or "127.0.0.1", port=int(port), **values)


def announce(facts: dict[str, str]) -> None:
    print(json.dumps(facts), flush=True)


def main() -> int:
    options = parse()
    try:
        from f7tfs.sim import serve  # late: a missing package is to be one sentence as well
    except ImportError as missing:
        print(f"f7tfs.sim: {missing}", file=sys.stderr)
        return 2
    try:
        trio.run(partial(serve, options, ready=announce))
    except SimError as error:
        print(f"f7tfs.sim: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
