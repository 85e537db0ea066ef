"""Whose turn it is to record, and what a turn moves, on a real Redis and database."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from worker.journal import PAGE, Page, Row, pack
from worker.recorder import Recorder
from worker.settings import load_settings
from worker.state import RECORDING, Keys
from worker.store.database import reading
from worker.store.models import Delivery

SHARDS = 2


@pytest.fixture
def recorders(events_redis: Any, empty_database: Engine) -> Iterator[list[Recorder]]:
    """Those of two workers."""
    settings = load_settings({}, database_url=str(empty_database.url), shards=SHARDS)
    made = [Recorder(settings, events_redis) for _ in range(2)]
    yield made
    for recorder in made:
        recorder.engine.dispose()


@pytest.fixture
def recorded(empty_database: Engine) -> Any:
    def count() -> int:
        with reading(empty_database) as connection:
            found: int = connection.execute(select(func.count(Delivery.table().c.id))).scalar_one()
        return found

    return count


def journal(redis: Any, event: str) -> None:
    row = Row("int_a", "prj_a", event, "trial_started", "delivered", "", "", 200, 1, 1, 2, "1-1")
    redis.xadd(Keys(1).journal, {PAGE: pack(Page([row]))})


def test_a_turn_moves_what_there_is_and_leaves_some_time_to_come(
    recorders: list[Recorder], events_redis: Any, recorded: Any
) -> None:
    one, other = recorders
    journal(events_redis, "e1")
    one.step()
    assert (recorded(), events_redis.xlen(Keys(1).journal)) == (1, 0)
    assert 0 < events_redis.pttl(RECORDING) <= 450, "so long nobody has the next one"

    journal(events_redis, "e2")
    other.step()
    assert recorded() == 1
    events_redis.delete(RECORDING)
    other.step()
    assert recorded() == 2


def test_what_cannot_be_recorded_stays(
    recorders: list[Recorder], events_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise ConnectionError("no database")

    monkeypatch.setattr("worker.recorder.record", refuse)
    journal(events_redis, "e1")
    with pytest.raises(ConnectionError, match="no database"):
        recorders[0].step()
    assert events_redis.xlen(Keys(1).journal) == 1
    assert events_redis.pttl(RECORDING) <= 450, "it is tried again soon"
