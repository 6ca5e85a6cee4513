"""What makes a dropped file a batch script, what its #SBATCH lines say, and what is added to it.
Pure text work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import msgspec

from f7tfs.errors import InvalidArgument, Rejected
from f7tfs.tree.temporaries import is_temporary

LIMIT = 5 << 20  # bytes; above it v1 answers 413 (v1 FACTS §9)
_BACKUP = re.compile(r".*~|.*\.bak|.*\.orig", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+=:,/-]*")

# Key of the configuration → sbatch's option for it, long and short.
OPTIONS = {
    "account": ("account", "A"),
    "partition": ("partition", "p"),
    "reservation": ("reservation", ""),
    "working_directory": ("chdir", "D"),
    "name": ("job-name", "J"),
}
_LONG_OF = {short: option for option, short in OPTIONS.values() if short}


class Wishes(msgspec.Struct, frozen=True):
    """What a drop is submitted with, where its script says nothing. "" is nothing."""

    account: str = ""
    partition: str = ""
    reservation: str = ""
    working_directory: str = ""
    name: str = ""

    def over(self, other: Wishes) -> Wishes:
        """These, and the other's where these say nothing."""
        mine = msgspec.structs.asdict(self)
        return Wishes(**{key: mine[key] or getattr(other, key) for key in mine})

    def with_one(self, key: str, value: str) -> Wishes:
        """Raises InvalidArgument for a key or a value that cannot stand in an #SBATCH line."""
        if key not in OPTIONS:
            raise InvalidArgument(f"{key} is not one of {', '.join(OPTIONS)}")
        if key == "working_directory":
            if value and not (value.startswith("/") and value.isprintable()):
                raise InvalidArgument(f"{key} needs an absolute path: {value!r}")
        elif value and not _PLAIN.fullmatch(value):
            raise InvalidArgument(f"not a {key}: {value!r}")
        return msgspec.structs.replace(self, **{key: value})


class Prepared(msgspec.Struct, frozen=True):
    """A script as it goes to the scheduler, and what goes beside it: `account` is "" where the
    script names one itself; `directory` and `name` are the script's own where it has them;
    `missing` are the keys of options that nobody set."""

    content: bytes
    account: str
    directory: str
    name: str
    missing: tuple[str, ...]


def is_ordinary(name: str) -> bool:
    """Whether a file of this name is submitted: not hidden, not a temporary, not a backup."""
    if name.startswith(".") or _BACKUP.fullmatch(name):
        return False
    return not is_temporary(name, lambda _: True)


def check(script: bytes) -> None:
    """Refuse what the scheduler would refuse anyway. Raises Rejected with one sentence."""
    if not script.startswith(b"#!"):
        raise Rejected("this is no batch script: its first line must begin with #!")
    if b"\r\n" in script:
        raise Rejected("the script has DOS line ends (CR LF): convert it with dos2unix")
    if len(script) > LIMIT:
        raise Rejected(f"the script has {len(script)} bytes; the limit is {LIMIT}")


def options_of(script: bytes) -> dict[str, str]:
    """sbatch's long options of the #SBATCH lines; lines after the first command are comments."""
    found: dict[str, str] = {}
    for line in script.decode(errors="surrogateescape").split("\n")[1:]:
        if line.startswith("#SBATCH"):
            found |= _options_in(line.removeprefix("#SBATCH"))
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return found


def _options_in(text: str) -> dict[str, str]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return {}
    found = {}
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals and words and not words[0].startswith("-"):
                value = words.pop(0)
            found[name] = value
        elif word.startswith("-") and word[1:2] in _LONG_OF:
            found[_LONG_OF[word[1]]] = word[2:] or (words.pop(0) if words else "")
    return found


def prepare(script: bytes, wishes: Wishes) -> Prepared:
    """What a script says itself is never changed; the rest goes into #SBATCH lines after its
    shebang, except what travels beside the script on both wires (account), or has to on one (v2's
    working directory). v1 runs an uploaded script in a directory of its own (v1 FACTS §9), hence
    --chdir."""
    said = options_of(script)
    lines = {
        option: value
        for key, (option, _) in OPTIONS.items()
        if (value := getattr(wishes, key)) and option not in said and key != "account"
    }
    directory = said.get("chdir") or wishes.working_directory
    if not directory.startswith("/"):
        directory = f"{wishes.working_directory}/{directory}"
    return Prepared(
        content=_with_lines(script, lines),
        account="" if "account" in said else wishes.account,
        directory=directory,
        name=said.get("job-name") or wishes.name,
        missing=tuple(
            key
            for key, (option, _) in OPTIONS.items()
            if option not in said and not getattr(wishes, key)
        ),
    )


def _with_lines(script: bytes, lines: Mapping[str, str]) -> bytes:
    if not lines:
        return script
    shebang, newline, rest = script.partition(b"\n")
    text = "".join(f"#SBATCH --{name}={_quoted(value)}\n" for name, value in lines.items())
    return shebang + (newline or b"\n") + text.encode(errors="surrogateescape") + rest


def _quoted(value: str) -> str:
    """As sbatch reads it."""
    return f'"{value}"' if any(letter.isspace() for letter in value) else value
