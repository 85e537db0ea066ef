"""One acts at a time; whoever hangs ends nobody else's turn."""

from typing import Any

import pytest

from worker.turn import Turn

KEY, MS = "turn", 60_000


@pytest.fixture
def turns(events_redis: Any) -> list[Turn]:
    return [Turn(events_redis, KEY, MS) for _ in range(2)]


def test_one_at_a_time(turns: list[Turn], events_redis: Any) -> None:
    one, other = turns
    assert one.take()
    assert not other.take()
    events_redis.pexpire(KEY, 10_000)
    assert one.keep()
    assert events_redis.pttl(KEY) > 10_000
    one.end()
    assert other.take()


def test_after_a_turn_nobody_has_one_for_a_while(turns: list[Turn], events_redis: Any) -> None:
    one, other = turns
    assert one.take()
    one.end(10_000)
    assert 0 < events_redis.pttl(KEY) <= 10_000
    assert not other.take()
    assert not one.take()


def test_a_turn_that_lapsed_is_not_ours(turns: list[Turn], events_redis: Any) -> None:
    one, other = turns
    assert one.take()
    events_redis.delete(KEY)  # as if it had lapsed
    assert other.take()
    assert not one.keep()
    one.end()
    assert other.keep()
    assert not one.take(), "nor is the turn of another of the same node"
    assert other.keep()
