"""The balance: every accepted event x integration in one place, or the difference told."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.worker.store.rows import record_rows
from worker.audit import balance
from worker.journal import PAGE, Page, Row, pack
from worker.record import record
from worker.state import UNSHARDED, Keys
from worker.store.deliveries import last_recorded

SHARDS = 4
KEYS = Keys(1)
AT = datetime(2026, 1, 1, tzinfo=UTC)


def row(event: str, outcome: str = "delivered", integration: str = "c9VdLs3H") -> Row:
    ms = int(AT.timestamp() * 1000)
    return Row(
        integration, "prj", event, "trial_started", outcome, "", "", 200, 1, ms, ms, "1-1"
    )  # fmt: skip


def journal(redis: Any, *rows: Row, accepted: int) -> None:
    """Put a commit's page into the journal: what it accepted, and the ends it wrote."""
    page = Page(rows=list(rows), accepted={"c9VdLs3H": accepted})
    redis.xadd(KEYS.journal, {PAGE: pack(page)})


def tally(redis: Any, **counts: int) -> None:
    for what, count in counts.items():
        redis.hincrby(KEYS.tally, f"c9VdLs3H|{what}", count)


def test_nothing_is_balanced(events_redis: Any, empty_database: Engine) -> None:
    found = balance(events_redis, empty_database, SHARDS)
    assert (found.lines, found.dropped, found.unaccounted) == ([], {}, 0)


def test_each_place_an_event_may_be_is_counted(events_redis: Any, empty_database: Engine) -> None:
    tally(events_redis, accepted=7, delivered=3, rejected=1, skipped=1)
    events_redis.xadd(KEYS.lane("c9VdLs3H"), {"e": "{}", "t": 1})
    events_redis.xadd(KEYS.lane("c9VdLs3H"), {"e": "{}", "t": 2})
    events_redis.zadd(KEYS.due, {"c9VdLs3H": 1})
    ended = row("1"), row("2"), row("3", "rejected"), row("4", "skipped")
    journal(events_redis, *ended, accepted=6)
    tallies = {("c9VdLs3H", "accepted"): 1, ("c9VdLs3H", "delivered"): 1}
    assert record_rows(empty_database, 1, None, "0-1", tallies=tallies)
    events_redis.xadd(KEYS.intake, {"event": "{}"})
    events_redis.xadd(Keys(3).intake, {"event": "{}"})
    events_redis.xadd(UNSHARDED, {"event": "{}"})
    events_redis.hset(KEYS.tally, "*|duplicate", 2)
    events_redis.hset(Keys(3).tally, "*|duplicate", 1)

    found = balance(events_redis, empty_database, SHARDS)
    (line,) = found.lines
    assert (line.accepted, line.waiting, line.missing, line.unrecorded) == (7, 2, 0, 0)
    ways = {"accepted": 6, "delivered": 2, "rejected": 1, "skipped": 1, "expired": 0}
    assert line.in_journal == ways
    assert line.recorded["delivered"] == 1
    assert (found.intake, found.journal, found.dropped) == (3, 1, {"duplicate": 3})
    assert found.unaccounted == 0


@pytest.mark.parametrize(
    ("counted", "journalled", "off"),
    [
        ({"accepted": 3, "delivered": 1}, (3, 0), (3, 1)),  # two vanished, one was never journalled
        ({"accepted": 1}, (1, 0), (1, 0)),
        ({"accepted": 1, "delivered": 2}, (1, 2), (-1, 0)),  # ended twice
        ({"accepted": 2, "delivered": 2}, (1, 1), (0, 2)),  # a page of the journal is gone
    ],
)
def test_what_is_nowhere_is_missing(
    events_redis: Any,
    empty_database: Engine,
    counted: dict[str, int],
    journalled: tuple[int, int],
    off: tuple[int, int],
) -> None:
    tally(events_redis, **counted)
    accepted, delivered = journalled
    journal(events_redis, *(row(str(n)) for n in range(delivered)), accepted=accepted)
    found = balance(events_redis, empty_database, SHARDS)
    (line,) = found.lines
    assert (line.missing, line.unrecorded) == off
    assert found.unaccounted == abs(off[0]) + off[1]


def test_a_row_recorded_twice_is_seen(events_redis: Any, empty_database: Engine) -> None:
    tally(events_redis, accepted=1, delivered=1)
    tallies = {("c9VdLs3H", "accepted"): 1, ("c9VdLs3H", "delivered"): 2}
    record_rows(empty_database, 1, None, "0-1", tallies=tallies)
    assert balance(events_redis, empty_database, SHARDS).lines[0].missing == -1


def test_what_was_accepted_stays_known_when_redis_is_emptied(
    events_redis: Any, empty_database: Engine
) -> None:
    tallies = {("c9VdLs3H", "accepted"): 5, ("c9VdLs3H", "delivered"): 3}
    record_rows(empty_database, 1, None, "0-1", tallies=tallies)
    (line,) = balance(events_redis, empty_database, SHARDS).lines
    assert (line.missing, line.forgotten) == (2, 5)


def test_recording_moves_the_journal_and_keeps_the_balance(
    events_redis: Any, empty_database: Engine
) -> None:
    tally(events_redis, accepted=2, delivered=2)
    for event in ("1", "2"):
        journal(events_redis, row(event), accepted=1)
    assert balance(events_redis, empty_database, SHARDS).unaccounted == 0
    record(events_redis, empty_database, SHARDS)
    record(events_redis, empty_database, SHARDS)
    found = balance(events_redis, empty_database, SHARDS)
    assert (found.journal, found.unaccounted) == (0, 0)
    assert found.lines[0].recorded["delivered"] == 2


def test_a_commit_between_two_readings_is_not_taken_for_loss(
    events_redis: Any, empty_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally(events_redis, accepted=1, delivered=1)
    journal(events_redis, row("1"), accepted=1)

    def recorded_meanwhile(connection: Any, shards: Sequence[int]) -> dict[int, str]:
        marks = last_recorded(connection, shards)
        monkeypatch.setattr("worker.audit.last_recorded", last_recorded)
        record(events_redis, empty_database, SHARDS)
        return marks

    monkeypatch.setattr("worker.audit.last_recorded", recorded_meanwhile)
    assert balance(events_redis, empty_database, SHARDS).unaccounted == 0
