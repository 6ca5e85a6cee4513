"""How commands come to their configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from f7tfs.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from f7tfs.config import Config

options_option = click.option(
    "options",
    "-o",
    metavar="KEY=VALUE[,…]",
    multiple=True,
    help="Any key of the configuration file, e.g. -o cache_size=5GiB,jobs.account=g12.",
)
config_option = click.option(
    "config_file",
    "--config",
    type=click.Path(),
    help="TOML file, instead of F7TFS_CONFIG or the user's config.toml.",
)


def config_file_of(given: str | None) -> Path | None:
    """The file that --config or F7TFS_CONFIG names."""
    chosen = given or os.environ.get("F7TFS_CONFIG")
    return Path(chosen).expanduser().absolute() if chosen else None


def state_directories(options: tuple[str, ...], config_file: str | None) -> list[Path]:
    """Where journals may be, according to all layers; Failure with every complaint. What else the
    configuration lacks does not matter: it may be of a cluster that is gone."""
    from f7tfs.config import BadConfiguration, state_directories

    try:
        return state_directories(options=options, config_file=config_file_of(config_file))
    except BadConfiguration as error:
        raise Failure(Exit.CONFIGURATION, "\n".join(error.complaints)) from None


def configuration(load: Callable[[], Config]) -> Config:
    """What `load` makes of all layers; Failure with every complaint."""
    from f7tfs.config import BadConfiguration

    try:
        return load()
    except BadConfiguration as error:
        raise Failure(Exit.CONFIGURATION, "\n".join(error.complaints)) from None
