"""Paths between single quotes without escaping: what the shell would make of them (v2 FACTS §2).

The trap and the injection are real, the fence stays: a command line in which a path's quotes pair
up runs only if every simple command in it is the server's own utility on paths inside the folder,
or one of the harmless ones that tests use as canaries (`touch` inside the folder, `echo`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

UTILITIES = {
    "base64", "chmod", "chown", "dd", "file", "head", "ln", "ls", "mkdir", "rm", "sha256sum",
    "stat", "tail", "tar",
}  # fmt: skip
_PLAIN = re.compile(r"[A-Za-z0-9_./,:@%+=-]|[^\x00-\x7f]")
_NAME = re.compile(r"[A-Za-z0-9_]{0,3}")


class Unterminated(Exception):
    """bash finds the end of the line inside a quotation."""


class Unsafe(Exception):
    """It would be run by a real server, and is not run here."""


@dataclass
class Line:
    """The simple commands of a line, as words; redirection targets apart."""

    commands: list[list[str]]
    targets: list[str]


def lex(command: str) -> Line:
    """bash's reading, as far as it is needed; Unsafe for everything beyond."""
    commands: list[list[str]] = [[]]
    targets: list[str] = []
    word: list[str] | None = None
    to_target = False
    position = 0

    def end() -> None:
        nonlocal word, to_target
        if word is None:
            return
        (targets if to_target else commands[-1]).append("".join(word))
        word, to_target = None, False

    while position < len(command):
        char = command[position]
        position += 1
        if char == "'":
            close = command.find("'", position)
            if close < 0:
                raise Unterminated
            word = (word or []) + [command[position:close]]
            position = close + 1
        elif char == "\\" and position < len(command):
            word = (word or []) + [command[position]]
            position += 1
        elif char == " ":
            end()
        elif char == ">":
            end()
            to_target = True
        elif char == ";" or command.startswith("&&", position - 1):
            end()
            commands.append([])
            position += char == "&"
        elif _PLAIN.fullmatch(char):
            word = (word or []) + [char]
        else:
            raise Unsafe(command)
    end()
    return Line(commands, targets)


def judge(command: str, template: str, inside: Callable[[str], bool]) -> bool:
    """Whether the line runs more commands than the template. Unsafe, Unterminated.

    `template` is the same line made of a harmless path, `inside` the fence.
    """
    line, plain = lex(command), lex(template)
    known = {word for words in plain.commands for word in words}
    if len(line.targets) != len(plain.targets):
        raise Unsafe(command)
    for path in line.targets:
        if not _allowed(path, inside):
            raise Unsafe(command)
    for words in line.commands:
        if not _harmless(words, known, inside):
            raise Unsafe(command)
    own = [words[:3] for words in plain.commands]
    return any(words[:3] not in own for words in line.commands)


def _harmless(words: list[str], known: set[str], inside: Callable[[str], bool]) -> bool:
    if not words:
        return False
    if words[0] == "echo":
        return True
    if words[0] == "touch":
        return all(_allowed(word, inside) for word in words[1:])
    if words[0] == "timeout":
        return (
            len(words) > 2
            and words[2] in UTILITIES
            and all(
                word in known or _allowed(word.removeprefix("if="), inside) for word in words[3:]
            )
        )
    # a name that no program has: "command not found"
    return len(words) == 1 and bool(_NAME.fullmatch(words[0])) and not shutil.which(words[0] or "?")


def _allowed(word: str, inside: Callable[[str], bool]) -> bool:
    """Relative names stand in the home."""
    return not word.startswith("-") and inside(word)
