"""What is told and when, on a real Redis and database; and that a hang costs no hint."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from worker import app, ticker
from worker.gauges import Held
from worker.journal import PAGE, Nearing, Page, Row, pack
from worker.keeper import Keeper
from worker.record import record
from worker.settings import WorkerSettings, load_settings
from worker.state import KEEPING, Keys, shard_of
from worker.store.database import now, reading
from worker.store.integrations import create_integration, get, set_status, suspend
from worker.store.models import IdempotencyKey, Integration, Notification
from worker.store.projects import create_project

SHARDS = 2
SHARD = shard_of("prj_a", SHARDS)


@pytest.fixture
def settings(events_redis: Any, empty_database: Engine) -> WorkerSettings:
    port = events_redis.connection_pool.connection_kwargs["port"]
    return load_settings(
        {},
        redis_url=f"redis://127.0.0.1:{port}/0",
        database_url=str(empty_database.url),
        shards=SHARDS,
        secret_keys="k" * 32,
    )


@pytest.fixture
def pipeline(empty_database: Engine) -> str:
    with empty_database.begin() as connection:
        create_project(connection, "A", "prj_a")
        made = create_integration(
            connection, "prj_a", title="CRM", slug="braze", platform="iOS", actor="test"
        )
        set_status(connection, made.id, 1, "test")
    return made.id


@pytest.fixture
def held() -> list[Held]:
    return []


@pytest.fixture
def keeper(
    settings: WorkerSettings, events_redis: Any, held: list[Held], pipeline: str
) -> Iterator[Keeper]:
    made = Keeper(settings, events_redis, lambda: held)
    yield made
    made.engine.dispose()


def told(engine: Engine) -> list[tuple[str, dict[str, Any]]]:
    table = Notification.table()
    with reading(engine) as connection:
        rows = connection.execute(select(table.c.kind, table.c.payload).order_by(table.c.id))
        return [(kind, json.loads(payload)) for kind, payload in rows]


def kinds(engine: Engine) -> list[str]:
    return [kind.removeprefix("integration.") for kind, _ in told(engine)]


def suspend_it(engine: Engine, pipeline: str, at: datetime | None = None) -> None:
    with engine.begin() as connection:
        epoch = get(connection, pipeline).epoch
        assert suspend(
            connection, pipeline, epoch, message="no", reason="unauthorized", at=at or now()
        )


def activate(engine: Engine, pipeline: str) -> None:
    with engine.begin() as connection:
        set_status(connection, pipeline, 1, "test")


def journal(redis: Any, page: Page) -> None:
    redis.xadd(Keys(SHARD).journal, {PAGE: pack(page)})


def deliver(redis: Any, engine: Engine, pipeline: str, at: datetime | None = None) -> None:
    """Record a delivery as the loop journals it."""
    ms = int((at or now()).timestamp() * 1000)
    row = Row(pipeline, "prj_a", "e", "trial_started", "delivered", "", "", 200, 1, ms, ms, "1-1")
    journal(redis, Page([row]))
    record(redis, engine, SHARDS)


def test_recovery_is_told_once_it_delivers_after_its_activation(
    keeper: Keeper, events_redis: Any, empty_database: Engine, pipeline: str
) -> None:
    engine = empty_database
    deliver(events_redis, engine, pipeline)
    keeper.look()
    assert kinds(engine) == []

    suspend_it(engine, pipeline)
    deliver(events_redis, engine, pipeline)  # was still in flight
    keeper.look()
    activate(engine, pipeline)
    keeper.look()
    assert kinds(engine) == ["suspended"], "active again, and nothing delivered since"

    events_redis.xadd(Keys(SHARD).lane(pipeline), {"e": "{}", "t": "1"})
    deliver(events_redis, engine, pipeline)
    for _ in range(3):
        keeper.look()
    assert kinds(engine) == ["suspended", "recovered"]
    assert told(engine)[-1][1] == {"waiting": 1, "slug": "braze", "title": "CRM"}

    suspend_it(engine, pipeline)
    activate(engine, pipeline)
    deliver(events_redis, engine, pipeline, now() + timedelta(milliseconds=1))  # it is cut to ms
    keeper.look()
    assert kinds(engine) == ["suspended", "recovered"] * 2, "each time anew"


def test_half_of_a_threshold_is_told_once_an_hour_and_its_end(
    keeper: Keeper, events_redis: Any, empty_database: Engine, pipeline: str
) -> None:
    for minutes in (90, 80, 20):
        ms = int((now() - timedelta(minutes=minutes)).timestamp() * 1000)
        used = "3 of 5 refused rounds in a row"
        journal(events_redis, Page(nearing=[Nearing(pipeline, ms, used, "401 from Braze: no")]))
        record(events_redis, empty_database, SHARDS)
    assert kinds(empty_database) == ["nearing", "nearing"]
    assert told(empty_database)[0][1]["used"] == used

    with empty_database.begin() as connection:
        hour_ago = now() - timedelta(hours=2)
        connection.execute(update(Integration.table()).values(updated_at=hour_ago))
    deliver(events_redis, empty_database, pipeline)
    keeper.look()
    keeper.look()
    assert kinds(empty_database) == ["nearing", "nearing", "recovered"]


def test_held_events_near_expiry_are_told_once_a_day(
    keeper: Keeper, held: list[Held], empty_database: Engine, pipeline: str
) -> None:
    held[:] = [Held(pipeline, 70, "time", 0.79), Held(pipeline, 70, "number", 0.1)]
    keeper.look()
    assert kinds(empty_database) == []
    held[0] = Held(pipeline, 71, "time", 0.83)
    for _ in range(3):
        keeper.look()
    ((kind, payload),) = told(empty_database)
    assert kind == "integration.expiring"
    assert (payload["used"], payload["limit"], payload["waiting"]) == (83, "time", 71)


def test_what_is_said_of_a_deleted_pipeline_is_nothing(
    keeper: Keeper, held: list[Held], empty_database: Engine, pipeline: str
) -> None:
    from worker.store.integrations import delete

    with empty_database.begin() as connection:
        delete(connection, pipeline, "test")
    held[:] = [Held(pipeline, 1, "time", 0.99)]
    keeper.look()
    assert kinds(empty_database) == []


def test_of_several_keepers_one_acts_and_another_follows(
    keeper: Keeper, events_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(Keeper, "look", lambda _self: looked.append(1))
    events_redis.set(KEEPING, "node-2")
    keeper.step()
    assert looked == []
    assert events_redis.get(KEEPING) == b"node-2", "it is left to whose it is"
    events_redis.delete(KEEPING)  # the other one hung, and its time ran out
    keeper.step()
    assert looked == [1]
    assert not events_redis.exists(KEEPING)


def test_answers_to_idempotency_keys_are_forgotten_after_a_day(
    keeper: Keeper, empty_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = IdempotencyKey.table()
    answer = {"project_id": "prj_a", "digest": "", "status": 201, "body": "{}"}
    ages = {"old": timedelta(hours=25), "young": timedelta(hours=23)}
    with empty_database.begin() as connection:
        for key, age in ages.items():
            connection.execute(insert(table).values(**answer, key=key, created_at=now() - age))
    monkeypatch.setattr("worker.keeper.PRUNE_SECONDS", 0.0)
    keeper.step()
    with reading(empty_database) as connection:
        assert connection.execute(select(table.c.key)).scalars().all() == ["young"]


def test_a_database_that_hangs_delays_no_hint(
    settings: WorkerSettings, events_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper hangs in its pruning; hints go on, for the ticker asks no database at all."""
    free, hung = threading.Event(), threading.Event()
    hints: list[None] = []

    def hang(*_: Any) -> None:
        hung.set()
        free.wait(60)

    monkeypatch.setattr("worker.keeper.prune", hang)
    monkeypatch.setattr("worker.keeper.PRUNE_SECONDS", 0.0)
    monkeypatch.setattr("worker.keeper.SECONDS", 0.01)
    monkeypatch.setattr(ticker, "SECONDS", 0.01)
    monkeypatch.setattr(ticker, "hint_drain", lambda: hints.append(None))
    monkeypatch.setattr(app, "idle_children", lambda: 1)
    keeper, ticking = Keeper(settings, events_redis), ticker.Ticker()
    keeper.start()
    ticking.start()
    try:
        assert hung.wait(30)
        before = len(hints)
        wait_until(lambda: len(hints) >= before + 10)
        assert not free.is_set()
    finally:
        ticking.stop()
        keeper.stop()
        free.set()
        keeper.join(30)
        ticking.join(30)
        keeper.engine.dispose()
    assert not hasattr(ticker, "make_engine")


def wait_until(what: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)
