"""The environment that leads to a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis


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
