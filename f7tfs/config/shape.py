"""The structs of the configuration. Times in seconds, sizes in bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

GiB = 1 << 30


class Credentials(msgspec.Struct, frozen=True):
    """How to get a token. Exactly one way is set: client credentials, a command that prints a
    token, or a file that holds one."""

    token_url: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    token_command: str | None = None
    token_file: Path | None = None

    def __repr__(self) -> str:
        return f"Credentials(client_id={self.client_id!r}, …)"


class JobsOptions(msgspec.Struct, frozen=True, kw_only=True):
    enabled: bool = True
    barrier: Literal["all", "off"] = "all"
    account: str | None = None
    partition: str | None = None
    reservation: str | None = None
    name: str | None = None  # of jobs whose script has none
    working_directory: str | None = None  # None: the remote path; of a whole system, home
    poll_interval: float = 2.0  # while somebody looks
    poll_interval_idle: float = 60.0
    transfers: bool = False  # show FirecREST's own jobs as well


class ReadersOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Globs of process names. What the desktops and distributions of today run."""

    crawlers: tuple[str, ...] = (
        "*thumbnail*", "tumblerd", "*-thumb", "ffmpegthumbs*", "zeitgeist*", "tracker-extract*",
        "localsearch-ext*", "baloo_file_ext*",
    )  # fmt: skip
    indexers: tuple[str, ...] = (
        "updatedb*", "plocate*", "mlocate*", "slocate*", "localsearch*", "tracker-*",
        "baloo_file*", "recollindex", "nepomuk*", "strigi*", "beagled",
    )  # fmt: skip
    # Backup tools that open with O_NOATIME, always or by an option.
    noatime: tuple[str, ...] = (
        "borg*", "restic", "rsync", "tar", "gtar", "bsdtar", "bup*", "kopia", "duplicity",
        "rdiff-backup*", "attic", "tarsnap", "dar", "star", "bacula-fd", "bareos-fd", "dsmc",
        "git*",
    )  # fmt: skip
    heads: int = 12  # a minute


class Config(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    credentials: Credentials
    system: str
    remote_path: str
    whole_system: bool = False  # no path was named: the file systems that the server announces
    mountpoint: Path
    api: Literal["auto", "v1", "v2"] = "auto"

    # Where things live on this machine.
    cache_directory: Path
    state_directory: Path  # spool and journal: survives everything
    log_file: Path | None = None  # None: stderr

    # Metadata.
    listing_ttl: float = 30.0
    stale_max: float = 300.0
    timezone: str | None = None  # IANA name of the cluster's zone; None: learnt

    # Content.
    cache_size: int = 20 * GiB
    cache_min_free: int = 1 * GiB
    stall_timeout: float = 300.0
    stage_limit: int | None = None

    # Writing.
    writeback_delay: float = 2.0
    temp_hold: float = 600.0
    fsync: Literal["local", "cluster"] = "local"
    on_conflict: Literal["keep-both", "overwrite"] = "keep-both"
    drain_timeout: float = 60.0  # how long a stop waits for uploads
    hostname: str = "localhost"  # goes into conflict names

    # The network.
    request_timeout: float = 30.0
    parallel_transfers: int = 4
    patience: float = 20.0  # how long calls that change nothing are retried before EHOSTUNREACH

    # The kernel.
    allow_other: bool = False
    subtype: str = "f7tfs"
    debug_fuse: bool = False
    umask: int | None = None

    log_level: str = "info"
    jobs: JobsOptions = JobsOptions()
    readers: ReadersOptions = ReadersOptions()

    @property
    def cluster_key(self) -> str:
        """Names what belongs to one system behind one URL."""
        return _digest(self.url, self.system)

    @property
    def cluster_cache(self) -> Path:
        """Where clean content of this cluster is kept; shared by its mounts."""
        return self.cache_directory / self.cluster_key

    def journal_directory(self, remote_user: str) -> Path:
        """Where spool and journal live: keyed by URL, system, remote user and remote path, and
        never by the mountpoint, so that a mount elsewhere finds what an earlier one left."""
        return self.state_directory / self.cluster_key / _digest(remote_user, self.remote_path)


def _digest(*parts: str) -> str:
    whole = "\0".join(parts).encode(errors="surrogateescape")
    return hashlib.sha256(whole).hexdigest()[:20]
