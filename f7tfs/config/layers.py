"""From TOML, environment and options to one frozen `Config`.

Precedence: options > environment > TOML ([systems.NAME] before the top level) > defaults. Every
value of every layer is checked, also those that another layer overrides, and all complaints come
at once, each naming its key and where it stands.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from f7tfs import errors
from f7tfs.config.shape import Config, Credentials, JobsOptions, ReadersOptions
from f7tfs.config.values import KEYS, READERS, read_boolean
from f7tfs.model import remote_path


class BadConfiguration(errors.InvalidArgument):
    """What is wrong with the configuration: one sentence for each fault, beginning with its key."""

    def __init__(self, complaints: Sequence[str]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = tuple(complaints)


# Names that pyfirecrest's users already have in their environment.
ENVIRONMENT = {
    "FIRECREST_URL": "url",
    "AUTH_TOKEN_URL": "token_url",
    "FIRECREST_CLIENT_ID": "client_id",
    "FIRECREST_CLIENT_SECRET": "client_secret",
    "FIRECREST_SYSTEM": "system",
    "FIRECREST_API_VERSION": "api",
    "FIRECREST_TOKEN_COMMAND": "token_command",
}
_VARIABLE_OF = {key: variable for variable, key in ENVIRONMENT.items()}

# What fstab's users and mount(8) pass to every file system: nothing for us to do.
_MOUNT_WORDS = """
    rw nosuid suid nodev dev noexec exec noatime atime relatime norelatime diratime nodiratime
    lazytime nolazytime strictatime nostrictatime auto noauto user nouser users group owner
    defaults _netdev nofail async comment
"""
_MOUNT_OPTIONS = frozenset(_MOUNT_WORDS.split())

# Which keys ask for a token in the same way; a higher layer's way replaces a lower layer's.
_WAYS = {
    "client_id": "client credentials",
    "client_secret": "client credentials",
    "token_command": "token_command",
    "token_file": "token_file",
}


# Key → (value, where it came from).
_Layer = dict[str, tuple[Any, str]]


def _read(layer: _Layer, key: str, raw: object, source: str, complaints: list[str]) -> None:
    read = READERS.get(key)
    if read is None:
        close = difflib.get_close_matches(key.replace("-", "_"), KEYS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        complaints.append(f"{key}: no such key ({source}){hint}")
        return
    try:
        layer[key] = (read(raw), source)
    except ValueError as error:
        shown = "the value given" if key == "client_secret" else repr(raw)
        complaints.append(f"{key}: {shown} is not {error} ({source})")


def _table(raw: Mapping[str, Any], source: str, complaints: list[str]) -> _Layer:
    """One TOML table with its [jobs] and [readers] below it."""
    layer: _Layer = {}
    for key, value in raw.items():
        if key in {"jobs", "readers"} and isinstance(value, Mapping):
            for name, below in value.items():
                _read(layer, f"{key}.{name}", below, source, complaints)
        else:
            _read(layer, key, value, source, complaints)
    return layer


def _toml_layers(path: Path, must_exist: bool, complaints: list[str]) -> dict[str, _Layer]:
    """Layers by system name; "" is the top level."""
    source = str(path)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if must_exist:
            complaints.append(f"config: {path} does not exist")
        return {}
    except OSError as error:
        complaints.append(f"config: {path} cannot be read ({error.strerror})")
        return {}
    try:
        raw = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        complaints.append(f"config: {path} is not TOML ({error})")
        return {}
    systems = raw.pop("systems", {})
    layers = {"": _table(raw, source, complaints)}
    if not isinstance(systems, Mapping):
        complaints.append(f"systems: needs tables like [systems.daint] ({source})")
        systems = {}
    for name, table in systems.items():
        if not isinstance(table, Mapping):
            complaints.append(f"systems.{name}: needs to be a table ({source})")
            continue
        layers[name] = _table(table, f"{source}, [systems.{name}]", complaints)
        if layers[name].pop("system", None):
            complaints.append(f"systems.{name}: may not hold the key system ({source})")
    if any("client_secret" in layer for layer in layers.values()) and path.stat().st_mode & 0o077:
        complaints.append(f"client_secret: others may read {path}; run: chmod 600 {path}")
    return layers


def _option_layer(options: Sequence[str], complaints: list[str]) -> _Layer:
    layer: _Layer = {}
    for word in (w for text in options for w in re.split(r"(?<!\\),", text)):
        key, equals, value = word.replace("\\,", ",").strip().partition("=")
        if not key or key in _MOUNT_OPTIONS or key.startswith(("x-", "X-")):
            continue
        if key == "ro":
            complaints.append("ro: read-only mounts are not offered yet")
        elif key == "client_secret":
            complaints.append(
                "client_secret: everybody sees the command line; use FIRECREST_CLIENT_SECRET "
                "or the configuration file"
            )
        elif not equals and (read := READERS.get(key)) and read is not read_boolean:
            complaints.append(f"{key}: needs a value, like -o {key}=… (-o)")
        else:
            _read(layer, key, value if equals else True, "-o", complaints)
    return layer


def default_config_file() -> Path:
    """Where the configuration is when neither --config nor F7TFS_CONFIG names it."""
    return Path(platformdirs.user_config_dir("f7tfs", appauthor=False)) / "config.toml"


def split_target(spec: str) -> tuple[str, str]:
    """System ("" where not said) and remote path of SYSTEM:/REMOTE/PATH or /REMOTE/PATH.

    Raises ValueError with a sentence when `spec` is not like that.
    """
    before, colon, after = spec.partition(":")
    system, path = (before, after) if colon and "/" not in before else ("", spec)
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"{spec!r} is not like SYSTEM:/REMOTE/PATH")
    if system:
        READERS["system"](system)
    return system, remote_path(path)


def _target(spec: str) -> tuple[str, str | None]:
    """Like `split_target`; a SYSTEM alone has no path."""
    if spec and "/" not in spec and ":" not in spec:
        try:
            return str(READERS["system"](spec)), None
        except ValueError:
            pass
    try:
        return split_target(spec)
    except ValueError:
        raise ValueError(f"{spec!r} is not like SYSTEM or SYSTEM:/REMOTE/PATH") from None


def check_target(spec: str) -> None:
    """Raises ValueError with a sentence unless `spec` names something that can be mounted."""
    _target(spec)


def _credentials(layers: Sequence[_Layer], merged: dict[str, Any], complaints: list[str]) -> Any:
    """The highest layer that names a way to get a token decides which way it is."""
    for layer in reversed(layers):
        keys = [key for key in _WAYS if key in layer and layer[key][0] is not None]
        ways = list(dict.fromkeys(_WAYS[key] for key in keys))
        if len(ways) > 1:
            source = layer[keys[0]][1]
            complaints.append(f"{keys[0]}: {' and '.join(ways)} exclude each other ({source})")
        if not ways:
            continue
        if ways[0] != "client credentials":
            return Credentials(**{keys[0]: merged[keys[0]]})
        break
    needed = ("token_url", "client_id", "client_secret")
    for key in needed:
        if merged.get(key) is None:
            way_out = ", or token_command" if key == "client_id" else ""
            complaints.append(f"{key}: missing; set {_VARIABLE_OF[key]}{way_out}")
    return Credentials(**{key: merged.get(key) for key in needed})


def load(
    spec: str,
    mountpoint: Path,
    *,
    options: Sequence[str] = (),
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration of a mount of `spec` (SYSTEM or SYSTEM:/REMOTE/PATH) at `mountpoint`.

    `options` are the texts given with -o. Raises BadConfiguration with all complaints.
    """
    try:
        system, path = _target(spec)
    except ValueError as error:
        raise BadConfiguration([f"remote path: {error}"]) from None
    return _load(system, path, mountpoint, options, config_file, environ)


def load_server(
    *,
    options: Sequence[str] = (),
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """What it takes to ask the server; `system` is "" unless something names one."""
    nowhere = Path("/")
    return _load("", None, nowhere, options, config_file, environ, needs_system=False)


def state_directories(
    *,
    options: Sequence[str] = (),
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[Path]:
    """Every state directory that some layer names, and the default one. Raises BadConfiguration
    for values that cannot be read; what is missing is not complained of."""
    complaints: list[str] = []
    named = config_file or (Path(environ["F7TFS_CONFIG"]) if environ.get("F7TFS_CONFIG") else None)
    toml = _toml_layers(named or default_config_file(), named is not None, complaints)
    layers = [*toml.values(), _option_layer(options, complaints)]
    if complaints:
        raise BadConfiguration(list(dict.fromkeys(complaints)))
    found = [Path(platformdirs.user_state_dir("f7tfs", appauthor=False))]
    found += [layer["state_directory"][0] for layer in layers if "state_directory" in layer]
    return list(dict.fromkeys(found))


def _load(
    system: str,
    path: str | None,
    mountpoint: Path,
    options: Sequence[str],
    config_file: Path | None,
    environ: Mapping[str, str],
    *,
    needs_system: bool = True,
) -> Config:
    complaints: list[str] = []
    named = config_file or (Path(environ["F7TFS_CONFIG"]) if environ.get("F7TFS_CONFIG") else None)
    toml = _toml_layers(named or default_config_file(), named is not None, complaints)
    environment: _Layer = {}
    for variable, key in ENVIRONMENT.items():
        if environ.get(variable):
            _read(environment, key, environ[variable], variable, complaints)
    above = [environment, _option_layer(options, complaints)]
    top = toml.get("", {})
    if not system:
        system = next((la["system"][0] for la in (*reversed(above), top) if "system" in la), "")
        if not system and needs_system and not complaints:
            complaints.append("system: missing; say SYSTEM:/REMOTE/PATH or set FIRECREST_SYSTEM")
    layers = [top, toml.get(system, {}) if system else {}, *above]

    merged: dict[str, Any] = {"hostname": socket.gethostname().split(".")[0] or "localhost"}
    for kind in ("cache", "state"):
        directory = getattr(platformdirs, f"user_{kind}_dir")("f7tfs", appauthor=False)
        merged[f"{kind}_directory"] = Path(directory)
    for layer in layers:
        merged |= {key: value for key, (value, _) in layer.items()}
    if merged.get("url") is None:
        complaints.append("url: missing; set FIRECREST_URL or url in the configuration file")
    credentials = _credentials(layers, merged, complaints)
    if complaints:
        raise BadConfiguration(list(dict.fromkeys(complaints)))

    own = {f.name for f in msgspec.structs.fields(Config)}

    def below(table: str) -> dict[str, Any]:
        return {
            key.removeprefix(f"{table}."): value
            for key, value in merged.items()
            if key.startswith(f"{table}.")
        }

    jobs, readers = JobsOptions(**below("jobs")), ReadersOptions(**below("readers"))
    merged = {key: value for key, value in merged.items() if key in own}
    merged |= {"system": system, "mountpoint": mountpoint}
    merged |= {"remote_path": path or "/", "whole_system": path is None}
    return Config(**merged, credentials=credentials, jobs=jobs, readers=readers)
