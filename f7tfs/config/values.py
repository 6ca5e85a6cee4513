"""Reading single values of the configuration.

Each reader takes what TOML or a command line gives, and raises ValueError with what was meant.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from f7tfs.config.shape import Config, Credentials, JobsOptions, ReadersOptions

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b?)", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|min|m|h|d)?", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def parse_size(value: object) -> int:
    """Bytes from 1048576, "1MiB", "1M" (binary like GNU tools) or "1MB" (decimal)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size like 20GiB")
    number, prefix, unit = match[1], match[2].lower(), match[3].lower()
    step = 1000 if prefix and unit == "b" else 1024
    return int(float(number) * step ** " kmgtp".index(prefix or " "))


def parse_duration(value: object) -> float:
    """Seconds from 30, 1.5, "30s", "500ms", "5min", "2h"."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value) and value >= 0:
            return float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _SECONDS[(match[2] or "s").lower()]
    raise ValueError("a duration like 30s or 5min")


def _positive_duration(value: object) -> float:
    if (seconds := parse_duration(value)) <= 0:
        raise ValueError("a duration above zero, like 30s")
    return seconds


def read_boolean(value: object) -> bool:
    word = str(value).lower()
    if word in {"true", "yes", "on", "1"}:
        return True
    if word in {"false", "no", "off", "0"}:
        return False
    raise ValueError("true or false")


def _count(value: object) -> int:
    text = str(value)
    if (
        isinstance(value, bool)
        or not (text.isascii() and text.isdecimal())
        or not 1 <= int(text) <= 64
    ):
        raise ValueError("a number from 1 to 64")
    return int(text)


def _rate(value: object) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()) or int(text) > 6000:
        raise ValueError("a number from 0 to 6000")
    return int(text)


def _process_names(default: tuple[str, ...]) -> Callable[[object], tuple[str, ...]]:
    """Globs, as a list or between spaces. They take the place of the default ones, or with a first
    "+" come to them; "none" are none."""

    def read(value: object) -> tuple[str, ...]:
        words = value.split() if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(one, str) for one in words):
            raise ValueError("a list of process names like tumblerd or *thumbnailer*")
        for word in words:
            if not word or "/" in word or not word.isprintable() or " " in word:
                raise ValueError("a list of process names (no paths), like tumblerd")
        if words == ["none"]:
            return ()
        return (*default, *words[1:]) if words[:1] == ["+"] else tuple(words)

    return read


def _umask(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
        return value
    if isinstance(value, str) and re.fullmatch(r"(0o)?0?[0-7]{1,3}", value):
        return int(value.removeprefix("0o"), 8)
    raise ValueError("an octal mask like 077")


def _path(value: object) -> Path:
    if isinstance(value, str) and value.startswith(("/", "~")) and "\0" not in value:
        path = Path(value).expanduser()
        if path.is_absolute():
            return path
    raise ValueError("an absolute path, or one that begins with ~/")


def _text(value: object) -> str:
    if isinstance(value, str) and value.strip() and not any(ord(c) < 32 for c in value):
        return value
    raise ValueError("a text")


def _url(value: object) -> str:
    text = _text(value).strip().rstrip("/")
    try:
        parts = urlsplit(text)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if not port_is_fine or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("a URL like https://firecrest.example.org")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("a URL without user, query or fragment")
    return text


def _api(value: object) -> str:
    """FIRECREST_API_VERSION holds "1.16.0" or "2" at some sites."""
    word = str(value).lower().removeprefix("v").split(".")[0]
    found = {"1": "v1", "2": "v2", "auto": "auto"}.get(word)
    if found is None:
        raise ValueError("auto, v1 or v2")
    return found


def _system(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
        return value
    raise ValueError("the name of a system, like daint")


def _log_level(value: object) -> str:
    if str(value).lower() not in {"debug", "info", "warning", "error"}:
        raise ValueError("debug, info, warning or error")
    return str(value).lower()


_SPECIAL: dict[str, Callable[[object], Any]] = {
    "url": _url,
    "token_url": _url,
    "api": _api,
    "system": _system,
    "log_level": _log_level,
    "umask": _umask,
    "parallel_transfers": _count,
    "readers.heads": _rate,
    "request_timeout": _positive_duration,
    "stall_timeout": _positive_duration,
    "jobs.poll_interval": _positive_duration,
    "jobs.poll_interval_idle": _positive_duration,
}
_BY_TYPE: dict[Any, Callable[[object], Any]] = {
    bool: read_boolean,
    int: parse_size,
    float: parse_duration,
    Path: _path,
    str: _text,
}


_NOT_KEYS = {"credentials", "remote_path", "whole_system", "mountpoint", "jobs", "readers"}


def _choice(words: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            raise ValueError(" or ".join(words))
        return str(value)

    return read


def _optional(read: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value == "none" else read(value)


def _readers() -> dict[str, Callable[[object], Any]]:
    """Key → reader, for every key that a user may set, from the fields of the structs."""
    found: dict[str, Callable[[object], Any]] = {}
    structs: tuple[tuple[str, type[msgspec.Struct]], ...] = (
        ("", Config),
        ("", Credentials),
        ("jobs.", JobsOptions),
        ("readers.", ReadersOptions),
    )
    for prefix, struct in structs:
        defaults = {field.name: field.default for field in msgspec.structs.fields(struct)}
        for name, annotation in typing.get_type_hints(struct).items():
            key = prefix + name
            if key in _NOT_KEYS:
                continue
            arguments = typing.get_args(annotation)
            is_union = typing.get_origin(annotation) in {types.UnionType, typing.Union}
            if key in _SPECIAL:
                read = _SPECIAL[key]
            elif typing.get_origin(annotation) is tuple:
                read = _process_names(defaults[name])
            elif typing.get_origin(annotation) is Literal:
                read = _choice(arguments)
            else:
                read = _BY_TYPE[arguments[0] if is_union else annotation]
            found[key] = _optional(read) if is_union else read
    return found


READERS = _readers()
KEYS = tuple(READERS)
