"""Ready only while events are read and delivered; and what anybody is told where it is not."""

from dataclasses import replace
from typing import Any

import fakeredis
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, text

from tests.worker.api.conftest import Client, Project, on_both
from worker.api import ready
from worker.api.ready import checks_of
from worker.state import GROUP, OWNERS, UNSHARDED, Keys

INTAKE = Keys(7).intake
LONG_AGO = "1767225600000-0"


@pytest.fixture
def redis(app: FastAPI) -> Any:
    """A Redis with a living worker, which the app finds."""
    redis: Any = fakeredis.FakeRedis()
    redis.info = lambda _section: {"used_memory": 1, "maxmemory": 0}  # it has no INFO of its own
    app.state.services = replace(app.state.services, redis=redis)
    app.state.checks = checks_of(app.state.services)
    redis.zadd(OWNERS, {"host:1:aaaa": redis.time()[0] * 1000 + 60_000})
    return redis


def why(client: Client) -> dict[str, str]:
    """Return the reasons, having looked at the answer's form."""
    answer = client.get("/readyz")
    body = answer.json()
    reasons: dict[str, str] = body.get("reasons", {})
    assert answer.status_code == (503 if reasons else 200)
    assert body["status"] == ("not ready" if reasons else "ready")
    assert reasons.keys() == {name for name, said in body["checks"].items() if said != "ok"}
    return reasons


@on_both
def test_alive_and_ready(client: Client, redis: Any) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    for path in ("/healthz", "/readyz"):
        assert client.request("HEAD", path).status_code == client.get(path).status_code
    answer = client.get("/readyz")
    assert answer.status_code == 200
    names = ("database", "redis", "keys", "workers", "intake", "room")
    assert answer.json() == {"status": "ready", "checks": dict.fromkeys(names, "ok")}


def test_what_failed_is_named_without_its_words(client: Client, app: FastAPI, redis: Any) -> None:
    def fails() -> None:
        raise RuntimeError("password=canary")

    app.state.checks["database"] = fails
    reasons = why(client)
    assert reasons.keys() == {"database"}
    assert "canary" not in str(reasons)


@on_both
def test_a_lost_key(
    client: Client, project: Project, engine: Engine, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = project.create()
    with engine.begin() as connection:
        connection.execute(text("UPDATE integrations SET settings = 'v1.0badkey0.AAAA'"))
    (reason,) = why(client).values()
    assert "settings of 1 integrations" in reason
    assert made["id"] not in reason
    assert made["id"] in caplog.text


@on_both
def test_a_database_that_is_not_migrated_says_what_to_type(
    client: Client, engine: Engine, redis: Any
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE integrations RENAME TO others"))
    try:
        assert "`onward migrate`" in why(client)["keys"]
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE others RENAME TO integrations"))


def test_redis_away(client: Client) -> None:
    assert why(client).keys() == {"redis", "workers", "intake", "room"}
    assert client.get("/healthz").status_code == 200


def test_no_worker_drains(client: Client, redis: Any) -> None:
    redis.zadd(OWNERS, {"host:1:aaaa": redis.time()[0] * 1000 - 1})  # its time is over
    assert why(client) == {"workers": "No worker drains: start `onward worker`, or look at its log"}


@pytest.mark.parametrize("stream", [INTAKE, UNSHARDED])
def test_nobody_has_ever_read(client: Client, redis: Any, stream: str) -> None:
    redis.xadd(stream, {"event": "{}"}, id=LONG_AGO)
    (reason,) = why(client).values()
    assert "unread in 1 of 33 intake streams" in reason


def test_a_backlog_that_is_read_is_ready(client: Client, redis: Any) -> None:
    for number in range(3):
        redis.xadd(INTAKE, {"event": "{}"}, id=LONG_AGO[:-1] + str(number + 1))
    redis.xgroup_create(INTAKE, GROUP, id="0")
    redis.xreadgroup(GROUP, "host:1:aaaa", {INTAKE: ">"}, count=1)
    assert why(client) == {}


def test_a_backlog_whose_reader_is_gone_is_not(
    client: Client, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        redis.xadd(INTAKE, {"event": "{}"}, id=LONG_AGO[:-1] + str(number + 1))
    redis.xgroup_create(INTAKE, GROUP, id="0")
    redis.xreadgroup(GROUP, "host:1:aaaa", {INTAKE: ">"}, count=1)
    monkeypatch.setattr(ready, "UNREAD_SECONDS", -1)  # the reader was here just now
    assert why(client).keys() == {"intake"}
    redis.xreadgroup(GROUP, "host:1:aaaa", {INTAKE: ">"}, count=1)
    assert why(client) == {}, "what was given out is not unread, however long it takes"


def test_fresh_events_may_wait_a_little(client: Client, redis: Any) -> None:
    redis.xadd(INTAKE, {"event": "{}"})
    assert why(client) == {}


def test_a_full_store_is_not(client: Client, redis: Any) -> None:
    memory = {"used_memory": 80, "maxmemory": 100}
    redis.info = lambda _section: memory
    (reason,) = why(client).values()
    assert "takes no events from 70% on" in reason
    memory["used_memory"] = 60
    assert why(client) == {}
