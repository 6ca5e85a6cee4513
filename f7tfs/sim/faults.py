"""Scripted faults: POST /_sim/faults takes a JSON list of rules.

A rule: {"match": ..., "where": ..., "skip": 0, "times": 1, "action": {...}}

- `match`: "POST /utilities/rename" = method and path prefix; "*" = any request but /_sim;
  "object-store GET", "object-store POST", "token" likewise.
- `where` (optional): text that must occur in `path?name=value&name=value`, made of the decoded
  query and form fields; files count as name=filename.
- `skip` matching requests pass unharmed, then `times` ones are hit (null = for ever).
- `action`, one of
    {"status": 503, "headers": {...}, "body": "..."}   answered instead, nothing is executed
    {"drop": "before"}       the connection is cut, nothing is executed
    {"drop": "after"}        executed, the reply is lost with the connection
    {"delay": seconds}       executed after that time (before the service's lock)
    {"hang": true}           no answer until the client goes away or the rules are cleared
    {"truncate": nbytes}     executed, the connection is cut after so many bytes of the body

The answer is {"ids": [...]}; GET tells {"faults": [{"id", "match", "seen", "fired"}, ...]};
DELETE clears all. The first rule that hits a request is the only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

ACTIONS = ("status", "drop", "delay", "hang", "truncate")


@dataclass
class Fault:
    id: int
    match: str
    where: str
    skip: int
    times: int | None
    action: Mapping[str, Any]
    seen: int = 0
    fired: int = 0
    cleared: trio.Event = field(default_factory=trio.Event)

    def hits(self, labels: tuple[str, str], text: str) -> bool:
        """Count a request, and say whether this fault is for it."""
        kind, place = labels
        if self.match != "*" and kind != self.match and not place.startswith(self.match):
            return False
        if self.where not in text:
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.fired >= self.times):
            return False
        self.fired += 1
        return True


class Faults:
    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._next = 1

    def add(self, rules: Any) -> list[int]:
        """ValueError says in words what is wrong with a rule; then none is taken."""
        if not isinstance(rules, list):
            raise ValueError("a JSON list of rules is wanted")  # noqa: TRY004 (becomes a 400)
        made: list[Fault] = []
        for rule in rules:
            unknown = set(rule) - {"match", "where", "skip", "times", "action"}
            if unknown:
                raise ValueError(f"unknown keys in a rule: {', '.join(sorted(unknown))}")
            action = rule.get("action")
            if not isinstance(action, dict) or not any(name in action for name in ACTIONS):
                raise ValueError(f"a rule needs an action, one of {', '.join(ACTIONS)}")
            made.append(
                Fault(
                    self._next + len(made),
                    str(rule.get("match", "*")),
                    str(rule.get("where") or ""),
                    int(rule.get("skip", 0)),
                    None if rule.get("times", 1) is None else int(rule.get("times", 1)),
                    action,
                )
            )
        self._next += len(made)
        self._rules += made
        return [rule.id for rule in made]

    def report(self) -> list[dict[str, Any]]:
        return [
            {"id": rule.id, "match": rule.match, "seen": rule.seen, "fired": rule.fired}
            for rule in self._rules
        ]

    def clear(self) -> None:
        for rule in self._rules:
            rule.cleared.set()
        self._rules.clear()

    def choose(self, labels: tuple[str, str], text: str) -> Fault | None:
        return next((rule for rule in self._rules if rule.hits(labels, text)), None)
