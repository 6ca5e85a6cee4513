"""`f7tfs systems`: what the URL offers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import click

from f7tfs.cli.exits import Exit, Failure, cause_of, code_of, sentence_of
from f7tfs.cli.settings import config_file_of, config_option, configuration, options_option

if TYPE_CHECKING:
    from f7tfs.api.port import FileSystem, SystemStatus
    from f7tfs.config import Config

_Row = dict[str, Any]


@click.command("systems")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document.")
@options_option
@config_option
def command(as_json: bool, options: tuple[str, ...], config_file: str | None) -> None:
    """List the systems behind the URL, with their health and file systems.

    Asks with the same variables and configuration as `f7tfs mount`.
    """
    from f7tfs.config import load_server

    file = config_file_of(config_file)
    config = configuration(lambda: load_server(options=options, config_file=file))
    try:
        import trio

        rows = trio.run(_ask, config)
    except BaseException as error:
        cause = cause_of(error)
        code = code_of(cause)
        if code in {Exit.INTERNAL, Exit.INTERRUPTED}:
            raise cause from None
        raise Failure(code, sentence_of(cause)) from None
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("the server offers no systems")
    else:
        _show(rows)


async def _ask(config: Config) -> list[_Row]:
    """A cluster is bound to one system, so each is asked for its file systems. A name that cannot
    be one is refused by the server's list of names."""
    import msgspec

    from f7tfs.api.connect import open_cluster, token_source
    from f7tfs.errors import UnknownSystem

    tokens = token_source(**msgspec.structs.asdict(config.credentials))

    async def ask(
        system: str, api: Literal["auto", "v1", "v2"], *, all_systems: bool
    ) -> tuple[str, list[SystemStatus], list[FileSystem]]:
        async with open_cluster(
            url=config.url,
            token_source=tokens,
            system=system,
            api=api,
            request_timeout=config.request_timeout,
            patience=config.patience,
        ) as (cluster, _):
            offered = await cluster.systems() if all_systems else []
            return cluster.capabilities.dialect, offered, await cluster.file_systems()

    first = config.system
    try:
        dialect, offered, found = await ask(first, config.api, all_systems=True)
    except UnknownSystem as error:
        if not error.known:
            return []
        first = error.known[0]
        dialect, offered, found = await ask(first, config.api, all_systems=True)
    rows = []
    for one in sorted(offered, key=lambda one: one.name):
        here = found
        if one.name.lower() != first.lower():
            api: Literal["v1", "v2"] = "v2" if dialect == "v2" else "v1"
            _, _, here = await ask(one.name, api, all_systems=False)
        rows.append(_row(one, dialect, here))
    return rows


def _row(status: SystemStatus, dialect: str, found: list[FileSystem]) -> _Row:
    # v2's description begins with the file systems, which have their own place.
    paths = {str(one.path) for one in found}
    parts = status.description.split("; ")
    return {
        "name": status.name,
        "available": status.available,
        "description": "; ".join(part for part in parts if not set(part.split(", ")) <= paths),
        "dialect": dialect,
        "file_systems": [
            {
                "path": one.path,
                "kind": one.kind,
                "default_work_directory": one.default_work_directory,
            }
            for one in found
        ],
    }


def _show(rows: list[_Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("SYSTEM", "HEALTH", "FILE SYSTEM", "TYPE"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        name, health = row["name"], "available" if row["available"] else "not available"
        for one in row["file_systems"] or [{"path": "", "kind": ""}]:
            table.add_row(name, health, one["path"], one["kind"])
            name = health = ""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(table)
    for row in rows:
        if not row["available"] and row["description"]:
            console.print(f"{row['name']}: {row['description']}")
