"""`f7tfs simulate`: a simulated cluster, for trying and testing."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from f7tfs.cli.exits import Exit, Failure


def _listen(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", value, re.ASCII)
    if match is None or int(match[2]) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT")
    return match[1].strip("[]"), int(match[2])


@click.command("simulate")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder that the cluster's files live in.",
)
@click.option("--listen", callback=_listen, default="127.0.0.1:0", show_default=True)
@click.option("--api", type=click.Choice(["v1", "v2", "both"]), default="v1", show_default=True)
@click.option(
    "--latency",
    type=click.FloatRange(min=0),
    help="Seconds that every API call takes longer.",
)
@click.option(
    "--staging-interval",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds between two looks of the server at staged uploads (60, as real ones).",
)
@click.option(
    "--ingest-sleep",
    type=click.FloatRange(min=0, min_open=True),
    help="v2: seconds between two looks of an ingest job for its object (60, as real ones).",
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    help="Jobs that run at a time (2; where v2 is served, 16: its transfers are jobs).",
)
@click.option("--user", metavar="NAME", help="Account that runs commands and jobs; as root only.")
def command(
    root: Path,
    listen: tuple[str, int],
    api: str,
    latency: float | None,
    staging_interval: float | None,
    ingest_sleep: float | None,
    slots: int | None,
    user: str | None,
) -> None:
    """Serve a simulated cluster over a local folder.

    Prints one JSON line when it is ready (with `--api both`, v2 is at its firecrest_v2_url), and
    serves until SIGTERM. It listens on loopback unless told otherwise: whoever reaches it runs
    commands as you.
    """
    given: dict[str, Any] = {
        "root": root,
        "host": listen[0],
        "port": listen[1],
        "api": api,
        "latency": latency,
        "staging_interval": staging_interval,
        "ingest_sleep": ingest_sleep,
        "slots": slots,
        "user": user,
    }
    try:
        import trio

        from f7tfs.sim import SimOptions, serve
        from f7tfs.sim.options import SimError
    except ImportError as error:  # it says which package is missing
        raise Failure(Exit.UNSPECIFIED, str(error)) from None
    options = SimOptions(**{key: value for key, value in given.items() if value is not None})
    try:
        trio.run(functools.partial(serve, options, ready=_announce))
    except SimError as error:
        raise Failure(Exit.UNSPECIFIED, str(error)) from None
    except OSError as error:
        raise Failure(Exit.UNSPECIFIED, f"{listen[0]}:{listen[1]}: {error.strerror}") from None


def _announce(about: Mapping[str, Any]) -> None:
    click.echo(json.dumps(about))
    sys.stdout.flush()
