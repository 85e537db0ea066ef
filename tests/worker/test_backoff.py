"""When to try again: the schedule, its jitter, and what the upstream asks for."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.backoff import delay, wait_after

SCHEDULE = (5.0, 30.0, 120.0, 300.0)
DAY = 86_400.0
schedules = st.lists(st.floats(0.1, DAY), min_size=1, max_size=9)
chances = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("failures", "base"), [(1, 5), (2, 30), (3, 120), (4, 300), (5, 300), (1000, 300)]
)
@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.8), (0.25, 0.9), (0.5, 1.0), (0.75, 1.1)])
def test_delay(failures: int, base: float, chance: float, factor: float) -> None:
    assert delay(SCHEDULE, failures, chance) == pytest.approx(base * factor)


@settings(deadline=None)
@given(schedules, st.integers(1, 50), chances)
def test_delay_is_within_a_fifth_of_the_schedule(
    schedule: list[float], failures: int, chance: float
) -> None:
    base = schedule[min(failures, len(schedule)) - 1]
    assert 0.8 * base <= delay(schedule, failures, chance) <= 1.2 * base


@settings(deadline=None)
@given(schedules, st.integers(1, 50), chances, chances)
def test_other_chances_give_other_delays(
    schedule: list[float], failures: int, one: float, other: float
) -> None:
    waits = sorted((delay(schedule, failures, chance), chance) for chance in (one, other))
    assert [chance for _, chance in waits] == sorted((one, other))  # later with a greater chance


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, 30),
        (timedelta(0), 30),
        (timedelta(seconds=-90), 30),
        (timedelta(seconds=29), 30),
        (timedelta(seconds=31), 31),
        (timedelta(hours=24), DAY),
        (timedelta(hours=24, seconds=1), DAY),
        (timedelta.max, DAY),
    ],
)
def test_what_the_upstream_asks_for(asked: timedelta | None, seconds: float) -> None:
    assert wait_after(SCHEDULE, 2, asked, 0.5) == seconds


@settings(deadline=None)
@given(schedules, st.integers(1, 50), st.none() | st.timedeltas(), chances)
def test_never_sooner_than_the_schedule_and_no_later_than_asked_or_a_day(
    schedule: list[float], failures: int, asked: timedelta | None, chance: float
) -> None:
    wait = wait_after(schedule, failures, asked, chance)
    own = delay(schedule, failures, chance)
    assert wait >= own
    if asked is not None:
        assert wait >= min(asked.total_seconds(), DAY)
        assert wait in (own, DAY, asked.total_seconds())
    assert wait <= max(own, DAY)
