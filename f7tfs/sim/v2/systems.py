"""The systems that v2 announces, their health, and how their form drifted (v2 FACTS §1, §12)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from f7tfs.sim.cluster import Cluster, System
from f7tfs.sim.options import SimOptions
from f7tfs.sim.v2.replies import ApiError

MAX_OPS = 5242880
"""max_ops_file_size: of an upload, inclusive; of a command's output, exclusive (§2)."""
ACCOUNT = "project1"
_PARTS = 1 << 30
_SMALL_PARTS = 8 << 20
_DIRECTIVES = ("#SBATCH --nodes=1", "#SBATCH --time=0-00:15:00")
JOB_LIMIT = 900.0
"""Seconds; what the second directive says."""


@dataclass
class Place:
    """A system and what the prober thinks of it."""

    system: System
    part_size: int = _PARTS
    method: str = "s3"
    directives: tuple[str, ...] = _DIRECTIVES
    state: str = "up"
    """"up"; "refused" = down, the prober has not noticed; "down" = it has."""

    @property
    def name(self) -> str:
        return self.system.name

    @property
    def wants_account(self) -> bool:
        return any("{account}" in line for line in self.directives)


@dataclass(frozen=True)
class Dialect:
    """The release that is simulated: which spellings and shapes it has (§12)."""

    version: tuple[int, ...]

    @classmethod
    def of(cls, options: SimOptions) -> Dialect:
        return cls(tuple(int(part) for part in options.v2_version.split(".")[:3]))

    @property
    def camel(self) -> bool:
        return self.version >= (2, 5, 0)

    @property
    def text_ids(self) -> bool:
        return self.version >= (2, 5, 0)

    @property
    def has_directives(self) -> bool:
        return self.version >= (2, 4, 0)

    @property
    def has_data_operation(self) -> bool:
        return self.version >= (2, 5, 0)

    @property
    def plain_user(self) -> bool:
        """2.6.0: userinfo without the primary group, groups with `default`."""
        return self.version >= (2, 6, 0)

    @property
    def storage_health(self) -> str:
        return "external_storage" if self.version >= (2, 6, 0) else "s3"

    def job_id(self, number: str) -> str | int:
        return int(number) if not self.text_ids and number.isdigit() else number


class Systems:
    def __init__(self, cluster: Cluster, url: str) -> None:
        options = cluster.options
        self.dialect = Dialect.of(options)
        self._storage = url
        self._cluster = cluster
        zone = {"TZ": options.time_zone}
        mounted = (str(cluster.root / "home"), str(cluster.root / "scratch"))
        self.filesystems = mounted
        plain = zone  # sshd hands no LANG on: the POSIX locale (§3)
        utf8 = {"LANG": "C.UTF-8", **zone}
        acct = (*_DIRECTIVES, "#SBATCH --account={account}")
        places = [
            Place(System("cluster", "login.example:2322", plain, mounted)),
            Place(System("cluster-utf8", "login.example:2323", utf8, mounted), _SMALL_PARTS),
            Place(System("cluster-acct", "login.example:2322", plain, mounted), directives=acct),
            Place(
                System("cluster-streamer", "login.example:2322", plain, mounted), method="streamer"
            ),
            Place(System("cluster-down", "login.example:2399", plain, mounted), state="down"),
        ]
        if options.part_size is not None:
            for place in places:
                place.part_size = options.part_size
        self._places = {place.name: place for place in places}

    def names(self) -> list[str]:
        return list(self._places)

    def find(self, name: str) -> Place:
        place = self._places.get(name.lower())
        if place is None:
            raise ApiError(404, "System not found")
        return place

    def usable(self, name: str, service: str = "ssh") -> Place:
        """503 once the prober knows; a refused connection is found out by the call itself."""
        place = self.find(name)
        if place.state == "down":
            raise ApiError(
                503,
                f"The {service} service for the requested system ({place.name}) is unhealthy.",
            )
        return place

    def check_path(self, place: Place, path: str) -> None:
        """Of all paths of a request, only `path` is looked at (§1)."""
        if not path.startswith("/"):
            raise ApiError(400, f"The provided path ({path}) is not an absolute path.")
        plain = os.path.normpath(path)
        if not any(plain == one or plain.startswith(f"{one}/") for one in self.filesystems):
            raise ApiError(
                400,
                f"The provided path ({plain}) does not match any of the defined filesystem paths "
                f"for the requested system ({place.name}).",
            )

    # -- what /status says

    def announcement(self) -> dict[str, Any]:
        return {"systems": [self._announce(place) for place in self._places.values()]}

    def liveness(self) -> dict[str, Any]:
        now = _iso(time.time())
        return {"healthcheckRuns": dict.fromkeys(self._places, now), "lastUpdate": 0}

    def _announce(self, place: Place) -> dict[str, Any]:
        host, _, port = place.system.address.partition(":")
        now = _iso(time.time())
        told = {
            "name": place.name,
            "ssh": {
                "host": host,
                "port": int(port),
                "proxyHost": None,
                "proxyPort": None,
                "maxClients": 500,
                "timeout": {
                    "connection": 5,
                    "login": 5,
                    "commandExecution": int(self._cluster.options.command_limit),
                    "idleTimeout": 60,
                    "keepAlive": 5,
                },
            },
            "scheduler": {
                "type": "slurm",
                "connectionMode": "ssh",
                "version": "22.05.8",
                "apiUrl": None,
                "apiVersion": None,
                "timeout": 10,
            },
            "servicesHealth": self._health(place, now),
            "probing": {
                "services": {
                    "ssh": {"timeout": 5},
                    "filesystem": {"timeout": 5},
                    "scheduler": {"timeout": 5},
                    "s3": {"timeout": 20},
                },
                "intervalCheck": 30,
            },
            "lastHealthCheck": now,
            "fileSystems": [
                {
                    "path": path,
                    "dataType": "users" if number == 0 else "scratch",
                    "defaultWorkDir": number == 0,
                }
                for number, path in enumerate(self.filesystems)
            ],
        }
        if self.dialect.has_data_operation:
            told["dataOperation"] = self._data_operation(place)
        return told

    def _health(self, place: Place, now: str) -> list[dict[str, Any]]:
        good = place.state != "down"

        def one(kind: str, message: str | None = None) -> dict[str, Any]:
            return {
                "serviceType": kind,
                "lastChecked": now,
                "latency": 0.16 if good else None,
                "healthy": good,
                "message": message if good else "Unable to establish SSH connection.",
            }

        ping = "[{'mode': 'primary', 'hostname': 'vm', 'pinged': 'UP'}]"
        found = [one("scheduler", ping), one("ssh")]
        found += [one("filesystem") | {"path": path} for path in self.filesystems]
        if place.method == "s3":
            found.append(one(self.dialect.storage_health))
        return found

    def _data_operation(self, place: Place) -> dict[str, Any]:
        """Camel case and snake case side by side: the server's own mix (§1)."""
        transfer: dict[str, Any] = {"serviceType": place.method, "name": f"{place.method}-storage"}
        if place.method == "s3":
            transfer |= {
                "privateUrl": "**********",
                "publicUrl": self._storage,
                "accessKeyId": "**********",
                "secretAccessKey": "**********",
                "region": "us-east-1",
                "ttl": int(self._cluster.options.object_store_expiry),
                "tenant": None,
                "multipart": {
                    "use_split": False,
                    "max_part_size": place.part_size,
                    "parallel_runs": 3,
                    "tmp_folder": "tmp",
                },
                "bucketLifecycleConfiguration": {"days": 10},
            }
        return {
            "datatransfer_jobs_directives": list(place.directives),
            "max_ops_file_size": MAX_OPS,
            "data_transfer": transfer,
        }


@dataclass
class Injections:
    """Commands that a client's path would have run besides the server's own."""

    seen: list[str] = field(default_factory=list)


def _iso(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(moment))
