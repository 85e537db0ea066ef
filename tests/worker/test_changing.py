"""Who changes an integration tells the delivery loops, once it is kept and whatever Redis does."""

import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
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


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Where nobody answers, and nobody even listens yet."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        yield made


@pytest.fixture(params=["refuses", "hangs", "spoilt", "full", "sentinel refuses", "sentinel hangs"])
def away(
    request: pytest.FixtureRequest, valkey: str, events_redis: Any, server: socket.socket
) -> str:
    """The URL of a Redis that takes no word of it."""
    if request.param == "spoilt":
        events_redis.set(CHANGES, "spoilt")
        return valkey
    if request.param == "full":
        events_redis.config_set("maxmemory", 1)
        return valkey
    if request.param.endswith("hangs"):
        server.listen()
    place = f"127.0.0.1:{server.getsockname()[1]}/0"
    sentinel = request.param.startswith("sentinel")
    return f"sentinel://{place}?name=onward" if sentinel else f"redis://{place}"


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> set[float | None]:
    """How long sockets may wait (s); None: for ever."""
    found: set[float | None] = set()
    settimeout = socket.socket.settimeout

    def noted(made: socket.socket, seconds: float | None) -> None:
        found.add(seconds)
        settimeout(made, seconds)

    monkeypatch.setattr(socket.socket, "settimeout", noted)
    return found


def callers(server: socket.socket) -> int:
    """Return how many called a server that has answered none."""
    count = 0
    with suppress(OSError):  # no more, or it does not listen
        while True:
            server.accept()[0].close()
            count += 1
    return count


def test_a_change_is_kept_whatever_redis_does(
    empty_database: Engine,
    hook: str,
    *,
    away: str,
    server: socket.socket,
    timeouts: set[float | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        changing(empty_database, load_settings({}, redis_url=away)) as connection,
    ):
        integrations.set_status(connection, hook, 1, "op")
    assert callers(server) <= 2
    assert timeouts == {TELL_SECONDS}
    with reading(empty_database) as connection:
        assert integrations.get(connection, hook).active == 1
    (said,) = caplog.messages
    assert said.startswith("Saved, but Redis did not take word of it")
