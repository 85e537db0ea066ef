"""Failures → when to try again. Pure: the random number and the clock come from the caller."""

from collections.abc import Sequence
from datetime import timedelta

JITTER = 0.2  # ± 20 %, so that pipelines that failed together do not come back together
LONGEST = timedelta(hours=24)


def delay(schedule: Sequence[float], failures: int, chance: float) -> float:
    """Return the seconds to wait after `failures` (≥ 1) failures; `chance` is in [0, 1)."""
    base = schedule[min(failures, len(schedule)) - 1]
    return base * (1 + JITTER * (2 * chance - 1))


def wait_after(
    schedule: Sequence[float], failures: int, asked: timedelta | None, chance: float
) -> float:
    """Return the seconds to wait: what the upstream asked for if longer, at most a day."""
    wait = delay(schedule, failures, chance)
    if asked is not None:
        wait = max(wait, min(asked, LONGEST).total_seconds())
    return wait
