"""The frozen configuration of one mount, and how it is built whole at start.

`shape` holds the structs, `values` reads single values ("20GiB", "5min"), `layers` puts TOML,
environment and options together.
"""

from f7tfs.config.layers import (
    BadConfiguration,
    check_target,
    default_config_file,
    load,
    load_server,
    split_target,
    state_directories,
)
from f7tfs.config.shape import Config, Credentials, GiB, JobsOptions

__all__ = [
    "BadConfiguration",
    "Config",
    "Credentials",
    "GiB",
    "JobsOptions",
    "check_target",
    "default_config_file",
    "load",
    "load_server",
    "split_target",
    "state_directories",
]
