"""Pure: what a pipeline's rounds mean for it. (state, round) → state.

A round is one pass over what a pipeline had in flight together. Failures are counted per round,
never per event: a thousand events that meet a dead upstream are one failure.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

import msgspec

Verdict = Literal["go_on", "back_off", "pause", "suspend"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How many failures in a row suspend a pipeline."""

    retry: int = 10
    credential: int = 5
    reject: int = 20


@dataclass(frozen=True, slots=True)
class Health:
    """Consecutive failures of a pipeline in its epoch; a delivery sets all to zero.

    `probation`: re-activated and nothing delivered since; the next refusal suspends at once.
    `excused`: a failed round was put down to its events, and nothing delivered since.
    """

    failures: int = 0
    refusals: int = 0
    rejections: int = 0
    probation: bool = False
    excused: bool = False


WELL = Health()


class Round(msgspec.Struct, frozen=True):
    """What came of one round. `asked` is the longest wait an upstream asked for."""

    delivered: int = 0
    rejected: int = 0
    failed: bool = False
    refused: bool = False
    throttled: bool = False
    gone: bool = False
    asked: timedelta | None = None

    @property
    def well(self) -> bool:
        """Whether the upstream had nothing to complain of but events."""
        return not (self.failed or self.refused or self.throttled or self.gone)

    def __add__(self, other: "Round") -> "Round":
        """Return both as one."""
        asked = max((r.asked for r in (self, other) if r.asked), default=None)
        return Round(
            self.delivered + other.delivered,
            self.rejected + other.rejected,
            self.failed or other.failed,
            self.refused or other.refused,
            self.throttled or other.throttled,
            self.gone or other.gone,
            asked,
        )


def share_used(health: Health, limits: Thresholds) -> tuple[float, str]:
    """Return how much of the nearest threshold is used (1: suspended), and that in words."""
    counts = (
        (health.refusals, limits.credential, "refused rounds"),
        (health.failures, limits.retry, "failed rounds"),
        (health.rejections, limits.reject, "events rejected"),
    )
    count, most, what = max(counts, key=lambda one: one[0] / one[1])
    return count / most, f"{count} of {most} {what} in a row"


def after_round(
    health: Health, round_: Round, limits: Thresholds, *, again: bool = False
) -> tuple[Health, Verdict]:
    """Return the state after `round_`, and what the pipeline does next.

    `again`: all that failed had failed before. Where others were delivered since, that is put down
    to these events, once: if what follows fails too, it is the upstream.
    """
    if round_.gone:
        return health, "suspend"
    if round_.delivered:
        return WELL, "pause" if round_.throttled else "go_on"
    health = replace(health, rejections=health.rejections + round_.rejected)
    if round_.rejected and health.rejections >= limits.reject:
        return health, "suspend"
    if round_.refused:
        health = replace(health, failures=health.failures + 1, refusals=health.refusals + 1)
        enough = (
            health.probation
            or health.refusals >= limits.credential
            or health.failures >= limits.retry
        )
        return health, "suspend" if enough else "back_off"
    if round_.failed:
        if again and health == WELL:
            return replace(health, excused=True), "go_on"
        health = replace(health, failures=health.failures + 1)
        return health, "suspend" if health.failures >= limits.retry else "back_off"
    return health, "pause" if round_.throttled else "go_on"
