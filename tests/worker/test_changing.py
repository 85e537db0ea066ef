"""Who changes an integration tells the delivery loops, once it is kept and whatever Redis does."""

import logging
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from worker.changing import TELL_SECONDS, changing
from worker.settings import WorkerSettings, load_settings
from worker.state import CHANGES
from worker.store import integrations
from worker.store.database import reading
from worker.store.projects import create_project
from worker.store.secrets import KeyRing

RING = KeyRing.of("a passphrase of this test")
URL = {"url": "https://customer.example/onward"}


@pytest.fixture
def settings(valkey: str) -> WorkerSettings:
    return load_settings({}, redis_url=valkey)


@pytest.fixture
def hook(empty_database: Engine) -> str:
    """A paused integration; nobody was told of it."""
    with empty_database.begin() as connection:
        create_project(connection, "A", "prj_a")
        return integrations.create_integration(
            connection, "prj_a", title="A", slug="webhooks", platform="iOS", actor="op"
        ).id


def told(redis: Any) -> list[bytes]:
    return [fields[b"p"] for _, fields in redis.xrange(CHANGES)]


def test_each_change_is_told_of_once(
    empty_database: Engine, settings: WorkerSettings, hook: str, events_redis: Any
) -> None:
    with changing(empty_database, settings) as connection:
        integrations.save_settings(connection, hook, URL, RING, actor="op")
        integrations.set_status(connection, hook, 1, "op")
        assert told(events_redis) == [], "nobody can see it yet"
    assert told(events_redis) == [b"prj_a"]
    with changing(empty_database, settings) as connection:
        integrations.roll_secret(connection, hook, RING, keep=timedelta(0), actor="op")
    with changing(empty_database, settings) as connection:
        integrations.delete(connection, hook, "op")
    assert told(events_redis) == [b"prj_a"] * 3


def test_what_changes_nothing_is_not_told_of(
    empty_database: Engine, settings: WorkerSettings, hook: str, events_redis: Any
) -> None:
    def fail() -> None:
        with changing(empty_database, settings) as connection:
            integrations.set_status(connection, hook, 1, "op")
            raise RuntimeError

    with changing(empty_database, settings) as connection:
        integrations.set_status(connection, hook, 0, "op")
    with pytest.raises(RuntimeError):
        fail()
    with reading(empty_database) as connection:
        assert integrations.get(connection, hook).active == 0
    assert told(events_redis) == []


@pytest.fixture(params=["refuses", "hangs", "spoilt", "full", "sentinel refuses", "sentinel hangs"])
def away(request: pytest.FixtureRequest, valkey: str, events_redis: Any) -> Iterator[str]:
    """The URL of a Redis that takes no word of it."""
    if request.param == "spoilt":
        events_redis.set(CHANGES, "spoilt")
        yield valkey
        return
    if request.param == "full":
        events_redis.config_set("maxmemory", 1)
        yield valkey
        return
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param.endswith("hangs"):
            server.listen()
        place = f"127.0.0.1:{server.getsockname()[1]}/0"
        sentinel = request.param.startswith("sentinel")
        yield f"sentinel://{place}?name=onward" if sentinel else f"redis://{place}"


def test_a_change_is_kept_whatever_redis_does(
    empty_database: Engine, hook: str, away: str, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with (
        caplog.at_level(logging.WARNING),
        changing(empty_database, load_settings({}, redis_url=away)) as connection,
    ):
        integrations.set_status(connection, hook, 1, "op")
    assert time.monotonic() - began < 2 * TELL_SECONDS + 1
    with reading(empty_database) as connection:
        assert integrations.get(connection, hook).active == 1
    (said,) = caplog.messages
    assert said.startswith("Saved, but Redis did not take word of it")
