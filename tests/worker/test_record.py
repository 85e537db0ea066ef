"""From the journal to the database: all shards at once, and one that is spoilt by itself."""

from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from providers.kit import dump_text
from worker.journal import PAGE, Page, Row, pack
from worker.record import record
from worker.state import Keys
from worker.store.database import reading
from worker.store.deliveries import last_recorded
from worker.store.models import Delivery

SHARDS = 4


def journal(redis: Any, shard: int, *events: str, at: int = 1_767_225_600_000) -> str:
    page = Page([
        Row("c9VdLs3H", "prj", event, "trial_started", "delivered", "", "", 200, 1, at, at, "1-1")
        for event in events
    ])  # fmt: skip
    entry: bytes = redis.xadd(Keys(shard).journal, {PAGE: pack(page)})
    return entry.decode()


def rows(engine: Engine) -> int:
    with reading(engine) as connection:
        return connection.execute(select(func.count(Delivery.table().c.id))).scalar() or 0


def test_all_shards_are_recorded_and_trimmed(events_redis: Any, empty_database: Engine) -> None:
    journal(events_redis, 0, "a", "b")
    journal(events_redis, 3, "c")
    last = journal(events_redis, 3, "d")

    assert record(events_redis, empty_database, SHARDS) == 4

    assert rows(empty_database) == 4
    assert [events_redis.xlen(Keys(shard).journal) for shard in range(SHARDS)] == [0, 0, 0, 0]
    with reading(empty_database) as connection:
        assert last_recorded(connection, range(SHARDS))[3] == last
    assert record(events_redis, empty_database, SHARDS) == 0


def test_what_was_recorded_and_not_yet_trimmed_adds_no_row(
    events_redis: Any, empty_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal(events_redis, 1, "a")
    with monkeypatch.context() as patch:
        patch.setattr("worker.record._trim", lambda *_: None)  # killed in between
        record(events_redis, empty_database, SHARDS)
    assert events_redis.xlen(Keys(1).journal) == 1
    journal(events_redis, 1, "b")

    record(events_redis, empty_database, SHARDS)

    assert rows(empty_database) == 2
    assert events_redis.xlen(Keys(1).journal) == 0


@pytest.mark.parametrize("spoil", [None, b"\xc1", b"\x91\x91\x9c\xa1\x80"])
def test_a_spoilt_journal_keeps_no_other_back(
    events_redis: Any, empty_database: Engine, spoil: bytes | None
) -> None:
    if spoil is None:
        events_redis.set(Keys(0).journal, "not a stream")
    else:
        events_redis.xadd(Keys(0).journal, {PAGE: spoil})
    journal(events_redis, 2, "a", "b")

    assert record(events_redis, empty_database, SHARDS) == 2
    assert rows(empty_database) == 2


def test_a_suspension_that_is_wanted_outlives_the_end_of_the_last(
    events_redis: Any, empty_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes late of it, as what a link held while it was away does."""
    wish = {"epoch": 1, "reason": "refused", "message": "401", "at": 1_767_225_600_000}
    first, second = dump_text(wish), dump_text(wish | {"epoch": 3})
    writes, late = events_redis.execute_command, list[Any]()

    def execute(*command: Any, **options: Any) -> Any:
        if command[0] in {"HDEL", "EVAL"}:
            late.append(command)
        return writes(*command, **options)

    events_redis.hset(Keys(0).wanted, "c9VdLs3H", first)
    with monkeypatch.context() as patch:
        patch.setattr(events_redis, "execute_command", execute)
        record(events_redis, empty_database, SHARDS)
    assert not events_redis.exists(Keys(0).wanted)
    events_redis.hset(Keys(0).wanted, "c9VdLs3H", second)
    for command in late:
        writes(*command)
    assert events_redis.hget(Keys(0).wanted, "c9VdLs3H") == second.encode()


def test_who_records_is_told_of_each_transaction_and_when_it_is_the_last(
    events_redis: Any, empty_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.record.PAGES", 2)
    for event in "abcde":
        journal(events_redis, 0, event)
    told: list[tuple[bool, int]] = []

    record(
        events_redis, empty_database, SHARDS,
        lambda is_last: told.append((is_last, events_redis.xlen(Keys(0).journal))),
    )  # fmt: skip

    assert told == [(False, 5), (False, 3), (True, 1)]
