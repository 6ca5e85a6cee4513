"""What the simulator can be told, with the defaults of the recorded server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class SimError(Exception):
    """The simulator cannot start; the message is the one sentence for the user."""


def plain_number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


@dataclass(frozen=True)
class SimOptions:
    """Times are seconds. `root` is the only place the simulated cluster lets anybody touch."""

    root: Path
    host: str = "127.0.0.1"
    port: int = 0
    """0 = any free port."""
    api: str = "v1"
    user: str | None = None
    """Account that runs commands and jobs; another than our own only when we are root."""
    state: Path | None = None
    """Where staged objects live; None = a temporary directory, removed at exit."""
    server_version: str = "1.16.6"
    """FIRECREST_VERSION of /status/parameters; below 1.14 task 117 holds the bare link (§7)."""
    latency: float = 0.0
    """Added to each API call while it holds its service's lock (§1: one request at a time)."""
    command_limit: float = 5.0
    """UTILITIES_TIMEOUT."""
    worker_timeout: float = 30.0
    """gunicorn kills the storage worker that hangs on a FIFO after this time (§7)."""
    staging_interval: float = 60.0
    """F7T_STORAGE_POLLING_INTERVAL: how often staged uploads are looked for (§6)."""
    object_store_expiry: float = 604800.0
    """F7T_STORAGE_TEMPURL_EXP_TIME of forms and links."""
    link_origin: str | None = None
    """http://HOST:PORT of a web server that answers the GET links instead of the simulator: it
    serves `state`/served at /s3. Signatures, expiry, faults and counters do not exist there."""
    form_origin: str | None = None
    """http://HOST:PORT of a web server that v1's forms lead to instead of the simulator; it says
    what arrived by POST /_sim/objects."""
    token_lifetime: float = 300.0
    client_secret: str | None = None
    """Of all clients, so that a server that is started again knows them; None = a new one."""
    slots: int | None = None
    """Jobs that run at the same time; None = 2, and 16 where v2 is served (its transfers are jobs,
    and some sleep)."""
    min_job_age: float = 300.0
    """Slurm forgets a finished job after this time; until then squeue --jobs says nothing (§9)."""
    kill_wait: float = 2.0
    """From SIGTERM to SIGKILL when a job is cancelled (Slurm's default is 30)."""
    acct_lag: float = 0.0
    """How long sacct shows name "allocation", user root after a job's start and end (§9)."""
    start_delay: float | None = None
    """From the submission of a job to its start; None = 0, and 1 where v2 is served: who uploads
    faster than that escapes the ingest job's sleep (v2 FACTS §7)."""
    collapse_spaces: bool = True
    """Run commands through the site's shell wrapper, which folds runs of spaces (§3)."""

    v2_version: str = "2.5.7"
    """Which release's spellings v2 has (v2 FACTS §12); the header says 2.x.x whatever it is."""
    ingest_sleep: float = 60.0
    """How long an ingest job sleeps between two looks for its object (v2 FACTS §7)."""
    escape_quotes: bool = False
    """Escape a `'` in the paths of commands, as no recorded server does (v2 FACTS §2)."""
    max_sessions: int = 10
    """sshd's MaxSessions, for each user and login node; one more is 424 (v2 FACTS §2)."""
    time_zone: str = "UTC"
    """Of v2's login nodes: their `ls` shows local time (v2 FACTS §3)."""
    part_size: int | None = None
    """Of v2's staged uploads; None = 1 GiB, 8 MiB on cluster-utf8."""
    transfer_cost: float = 0.0
    """How long a transfer request of v2 blocks the server's one event loop (recorded: 0.3)."""
    job_hidden: float = 0.0
    """How long v2 answers 404 for a job after its submission (v2 FACTS §7)."""

    @property
    def serves_v1(self) -> bool:
        return self.api in {"v1", "both"}

    @property
    def serves_v2(self) -> bool:
        return self.api in {"v2", "both"}

    @property
    def job_slots(self) -> int:
        return self.slots if self.slots is not None else 16 if self.serves_v2 else 2

    @property
    def job_delay(self) -> float:
        return self.start_delay if self.start_delay is not None else float(self.serves_v2)

    @property
    def expiry_text(self) -> str:
        """As /status/parameters says it: whole seconds without a point."""
        return plain_number(self.object_store_expiry)

    @property
    def bare_link(self) -> bool:
        version = tuple(int(part) for part in self.server_version.split(".")[:2])
        return version < (1, 14)
