"""The gauges say how the whole service stands, on a real server and a real database."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis import Redis
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError

from worker import incidents, metrics
from worker.backlog import backlog
from worker.gauges import Gauges
from worker.incidents import Fare
from worker.notify import message_of
from worker.settings import WorkerSettings, load_settings
from worker.state import INCIDENTS, UNSHARDED, Keys, fares_of
from worker.store import notifications
from worker.store.database import make_engine, reading
from worker.store.integrations import create_integration, save_settings, set_status
from worker.store.models import Notification
from worker.store.projects import Receiver, create_project
from worker.store.schema import upgrade
from worker.store.secrets import keyring_of

SHARDS = 2
HOUR_MS = 3_600_000
KEY = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def redis(valkey: str) -> Iterator[Any]:
    with Redis.from_url(valkey, protocol=2) as client:
        client.flushall()
        yield client


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> WorkerSettings:
    made = load_settings(
        {}, redis_url=valkey, data_dir=str(tmp_path), shards=SHARDS, hold_seconds=36_000
    )
    upgrade(made.database_url)
    return made


@pytest.fixture
def engine(settings: WorkerSettings) -> Iterator[Engine]:
    made = make_engine(settings.database_url)
    yield made
    made.dispose()


@pytest.fixture
def suspended(engine: Engine) -> str:
    with engine.begin() as connection:
        create_project(connection, "A", "prj_a")
        made = create_integration(
            connection, "prj_a", title="T", slug="braze", platform="iOS", actor="test"
        )
        set_status(connection, made.id, 1, "test")
    from worker.store.integrations import suspend

    with engine.begin() as connection:
        assert suspend(
            connection, made.id, made.epoch, message="no", reason="unauthorized", at=made.created_at
        )
    return made.id


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def now_ms(redis: Any) -> int:
    seconds, micros = redis.time()
    return int(seconds * 1000 + micros // 1000)


def wait_in_lane(redis: Any, integration: str, accepted: int) -> None:
    keys = Keys(1)
    redis.xadd(keys.lane(integration), {"e": "{}", "t": accepted})
    redis.zadd(keys.due, {integration: accepted})


@pytest.fixture
def gauges(settings: WorkerSettings, redis: Any) -> Gauges:
    return Gauges(settings, redis, lambda _pid: True)


def test_shows_what_waits_where_and_since_when(redis: Any, gauges: Gauges) -> None:
    now = now_ms(redis)
    redis.xadd(UNSHARDED, {"event": "{}"}, id=f"{now - 90_000}-0")
    redis.xadd(Keys(0).intake, {"event": "{}"}, id=f"{now - 10_000}-0")
    redis.xadd(Keys(1).journal, {"p": b""}, id=f"{now - 30_000}-0")
    metrics.UNACCOUNTED.set(0)
    gauges._steps = 1  # no audit: the page above is none
    gauges.step()
    assert value("onward_backlog_events", where="intake") == 2
    assert value("onward_backlog_events", where="journal") == 1
    assert 1_000 < (value("onward_redis_backlog_bytes") or 0) < 100_000
    assert 90 <= (value("onward_intake_oldest_seconds") or 0) < 120
    assert 30 <= (value("onward_journal_oldest_seconds") or 0) < 60
    assert backlog(redis, SHARDS) == {"intake": 2, "lanes": 0, "journal": 1}


def test_an_empty_service_has_no_age(gauges: Gauges) -> None:
    gauges.step()
    assert value("onward_intake_oldest_seconds") == 0
    assert value("onward_journal_oldest_seconds") == 0
    assert value("onward_unaccounted_events") == 0


def test_shows_held_events_and_how_much_of_the_hold_is_used(
    redis: Any, gauges: Gauges, suspended: str
) -> None:
    wait_in_lane(redis, suspended, now_ms(redis) - 9 * HOUR_MS)
    wait_in_lane(redis, suspended, now_ms(redis))
    gauges.step()
    labels = {"provider": "braze", "state": "suspended"}
    assert value("onward_pipelines", **labels) == 1
    assert value("onward_waiting_events", **labels) == 2
    assert value("onward_waiting_oldest_seconds", **labels) == pytest.approx(32_400, abs=60)
    used = value("onward_hold_used_ratio", provider="braze", limit="time")
    assert used == pytest.approx(0.9, abs=0.01)
    assert value("onward_hold_used_ratio", provider="braze", limit="number") == 2 / 100_000

    redis.flushall()
    gauges.step()
    assert value("onward_waiting_events", **labels) == 0
    assert value("onward_hold_used_ratio", provider="braze", limit="time") == 0


def test_an_integrations_own_hold_counts_as_it_is_now(
    redis: Any, gauges: Gauges, settings: WorkerSettings, engine: Engine, suspended: str
) -> None:
    def hold_used(hours: int) -> float | None:
        given = {"api_key": KEY, "instance": "EU-01", "delivery": {"hold_seconds": hours * 3600}}
        with engine.begin() as connection:
            save_settings(connection, suspended, given, keyring_of(settings), actor="test")
        gauges.step()
        return value("onward_hold_used_ratio", provider="braze", limit="time")

    wait_in_lane(redis, suspended, now_ms(redis) - 9 * HOUR_MS)
    assert hold_used(90) == pytest.approx(0.1, abs=0.01)
    assert hold_used(45) == pytest.approx(0.2, abs=0.01)


def test_shows_what_is_gone_as_none(gauges: Gauges, suspended: str, engine: Engine) -> None:
    from worker.store.integrations import delete

    gauges.step()
    with engine.begin() as connection:
        delete(connection, suspended, "test")
    gauges.step()
    assert value("onward_pipelines", provider="braze", state="suspended") == 0


def test_the_database_away_leaves_the_gauges_of_redis_fresh(
    redis: Any, gauges: Gauges, engine: Engine
) -> None:
    gauges.step()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE integrations RENAME TO elsewhere")
    redis.xadd(UNSHARDED, {"event": "{}"})
    with pytest.raises(OperationalError):
        gauges.step()
    assert value("onward_backlog_events", where="intake") == 1
    now = now_ms(redis) / 1000
    assert value("onward_gauges_refreshed_timestamp_seconds") == pytest.approx(now, abs=60)


def test_memory_is_a_share_of_the_limit(redis: Any, gauges: Gauges) -> None:
    most = redis.info("memory")["used_memory"] * 4
    redis.config_set("maxmemory", most)
    try:
        gauges.step()
    finally:
        redis.config_set("maxmemory", 0)
    assert value("onward_redis_memory_ratio") == pytest.approx(0.25, abs=0.1)
    gauges.step()
    assert 0 < (value("onward_redis_memory_ratio") or 0) < 0.25


COUNTING = """
import sys
from worker import metrics
metrics.RECORDED.labels("deliveries").inc(int(sys.argv[1]))
metrics.LAG_SECONDS.labels("braze").observe(0.02)
metrics.LEASES.set(16)
"""


def test_a_dead_process_leaves_its_counts_and_no_gauge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def scraped() -> dict[str, float]:
        samples = [one for family in metrics.registry().collect() for one in family.samples]
        return {one.name: one.value for one in samples if "le" not in one.labels}

    for count in (2, 3, 5):
        subprocess.run([sys.executable, "-c", COUNTING, str(count)], check=True)
    before = scraped()
    assert (before["onward_recorded_rows_total"], before["onward_shards_held"]) == (10, 48)

    metrics.forget_dead(lambda _pid: True)
    assert scraped() == before

    for _ in range(2):
        metrics.forget_dead(lambda _pid: False)
        after = scraped()
        assert after["onward_recorded_rows_total"] == 10
        assert after["onward_delivery_lag_seconds_count"] == 3
        assert "onward_shards_held" not in after
    assert {path.name for path in tmp_path.iterdir()} == {"counter_dead.db", "histogram_dead.db"}


# --- incidents ----------------------------------------------------------------------------------


def fare_all(redis: Any, *, failing: int, well: int, ago_ms: int = 0) -> None:
    at = now_ms(redis) - ago_ms
    for number in range(failing + well):
        fare = Fare(f"prj_{number}", at, failing=number < failing)
        redis.hset(fares_of("adjust"), f"integ{number:03}", incidents.pack(fare))


def told(engine: Engine) -> list[str]:
    table = Notification.table()
    with reading(engine) as connection:
        return [row.kind for row in connection.execute(select(table).order_by(table.c.id))]


def texts(engine: Engine) -> list[str]:
    slack = Receiver("https://hooks.slack.com/services/T/B/x")
    with reading(engine) as connection:
        notices = notifications.unsent(connection, datetime.min.replace(tzinfo=UTC))
    return [json.loads(message_of(one, slack, 0)[0])["text"] for one in notices]


def test_an_incident_is_told_once_and_its_end_once(
    redis: Any, engine: Engine, gauges: Gauges
) -> None:
    fare_all(redis, failing=5, well=5)
    for _ in range(3):
        incidents.tell(redis, engine, ["adjust", "braze"])
    gauges.step()
    assert told(engine) == ["provider.incident"]
    assert value("onward_provider_incident", provider="adjust") == 1

    fare_all(redis, failing=0, well=10)
    incidents.tell(redis, engine, ["adjust", "braze"])
    assert told(engine) == ["provider.incident"], "it may come back at once"
    redis.hset(INCIDENTS, "adjust", now_ms(redis) - incidents.OVER_MS - 1)
    for _ in range(3):
        incidents.tell(redis, engine, ["adjust", "braze"])
    gauges.step()
    assert told(engine) == ["provider.incident", "provider.recovered"]
    assert texts(engine) == [
        "adjust fails for 5 of 10 pipelines in 5 projects.",
        "adjust works again.",
    ]
    assert value("onward_provider_incident", provider="adjust") == 0


def test_an_incident_is_told_though_the_client_asks_again(
    redis: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where no answer comes: the second says that nothing was changed."""
    fare_all(redis, failing=5, well=5)
    once = redis.hset

    def twice(*of: Any) -> Any:
        once(*of)
        return once(*of)

    monkeypatch.setattr(redis, "hset", twice)
    incidents.tell(redis, engine, ["adjust"])
    assert told(engine) == ["provider.incident"]


def test_few_projects_are_no_incident(redis: Any, engine: Engine) -> None:
    fare_all(redis, failing=4, well=0)
    incidents.tell(redis, engine, ["adjust"])
    assert told(engine) == []


def test_without_the_database_an_incident_is_told_later(
    redis: Any, engine: Engine, tmp_path: Path
) -> None:
    fare_all(redis, failing=6, well=0)
    away = make_engine(f"sqlite:///{tmp_path / 'none' / 'onward.db'}")
    with pytest.raises(OperationalError):
        incidents.tell(redis, away, ["adjust"])
    incidents.tell(redis, engine, ["adjust"])
    assert told(engine) == ["provider.incident"]
