"""Faults a fake upstream is told to play: which calls, and what happens to them."""

from dataclasses import dataclass
from itertools import count
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from worker.sandbox.upstream import Call

Mode: TypeAlias = Literal[
    "ok", "refuse", "throttle", "fail", "hang", "reset", "half", "slow", "cut"
]  # fmt: skip
MODES: dict[Mode, str] = {
    "ok": "answers as usual; clears a fault, or excepts calls from a wider one",
    "refuse": "refuses the credentials, in the upstream's own words",
    "throttle": "asks to slow down (`seconds`: its Retry-After)",
    "fail": "answers `status` (default 500)",
    "hang": "takes the request and never answers (`seconds`: hangs up then)",
    "reset": "breaks the connection off before answering",
    "half": "every other call fails with `status` (default 500), the rest pass",
    "slow": "answers as usual after `seconds` (default 1)",
    "cut": "takes the events, then breaks off in the middle of its answer",
}


class Fault(BaseModel):
    """One fault: for the calls of `slug`, to `host`, that contain `match` (all that are given).

    `match` is text in the path, the headers or the body: it singles out one integration. With
    `count` it ends after so many calls.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode
    slug: str | None = None
    host: str | None = None
    match: str | None = None
    seconds: float | None = Field(None, ge=0, le=86_400)
    status: int = Field(500, ge=200, le=599)
    count: int | None = Field(None, ge=1)

    @property
    def target(self) -> tuple[str | None, str | None, str | None]:
        """What it is for: a later fault for the same replaces it."""
        return self.slug, self.host, self.match

    def hits(self, slug: str, call: Call) -> bool:
        """Whether it is for this call."""
        return (
            self.slug in (None, slug)
            and self.host in (None, call.host)
            and (self.match is None or _contains(call, self.match))
        )


def _contains(call: Call, text: str) -> bool:
    return (
        text in call.target
        or any(text in value for value in call.headers.values())
        or text.encode() in call.body
    )


@dataclass
class _Rule:
    fault: Fault
    hits: "count[int]"
    left: int | None


class Faults:
    """The faults in force; the latest that is for a call decides."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []

    def add(self, fault: Fault) -> None:
        """Put `fault` in force, instead of an earlier one for the same calls."""
        self._rules = [rule for rule in self._rules if rule.fault.target != fault.target]
        self._rules.insert(0, _Rule(fault, count(), fault.count))

    def clear(self) -> None:
        """End every fault."""
        self._rules.clear()

    def all(self) -> list[Fault]:
        """Return the faults in force, the deciding first."""
        return [rule.fault for rule in self._rules]

    def of(self, slug: str, call: Call) -> Fault | None:
        """Return the fault to play for this call, counting it; None: answer as usual."""
        for rule in self._rules:
            if not rule.fault.hits(slug, call):
                continue
            number = next(rule.hits)
            if rule.left is not None:
                rule.left -= 1
                if rule.left == 0:
                    self._rules.remove(rule)
            passes = rule.fault.mode == "ok" or (rule.fault.mode == "half" and number % 2 == 1)
            return None if passes else rule.fault
        return None
