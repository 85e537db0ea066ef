"""The service against its own description: every check of schemathesis, on every operation."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.worker.api.conftest import ADMIN_KEY
from tests.worker.store.databases import migrated
from worker.api.app import create_app
from worker.api.ready import checks_of
from worker.settings import WorkerSettings
from worker.state import OWNERS
from worker.store.database import make_engine
from worker.store.integrations import create_integration
from worker.store.projects import create_project

GIVEN = {"secret_keys": "any", "admin_key": ADMIN_KEY, "api_rate": 0}
APP = create_app(WorkerSettings.model_validate(GIVEN), engine=make_engine("sqlite://"))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


class Redis(fakeredis.FakeRedis):
    """What the service asks of Redis, room among it."""

    def info(self, section: str | None = None, *_: Any, **__: Any) -> dict[str, int]:
        assert section == "memory"
        return {"used_memory": 1, "maxmemory": 0}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The key of a project with an integration, on a database that the app works with from now."""
    folder: Path = tmp_path_factory.mktemp("api")
    with migrated("sqlite", folder) as engine:
        with engine.begin() as connection:
            made = create_project(connection, "A", "prj_a")
            create_integration(
                connection, "prj_a", title="T", slug="webhooks", platform="iOS", actor="t"
            )
        redis = Redis()
        redis.zadd(OWNERS, {"host:1:aaaa": redis.time()[0] * 1000 + 3_600_000})
        APP.state.services = replace(APP.state.services, engine=engine, redis=redis)
        APP.state.checks = checks_of(APP.state.services)
        yield made.secret_key


@SCHEMA.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
def test_every_answer_is_as_described(case: Any, key: str) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {key}"})
