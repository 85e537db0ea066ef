"""The application on an empty database (SQLite, or `on_both`), with two projects."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from sqlalchemy import Engine

from tests.worker.store.databases import KINDS, migrated
from worker.api.app import create_app
from worker.api.auth import RateLimit
from worker.settings import WorkerSettings
from worker.store.projects import add_key, create_project

ADMIN_KEY = "admin-key-for-tests"
NO_REDIS = "redis://127.0.0.1:1/0"
NEW = {"title": "Growth", "integration": "amplitude", "target_platform": "iOS"}


on_both = pytest.mark.parametrize("engine", KINDS, indirect=True)  # what rests on the database


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with migrated(getattr(request, "param", "sqlite"), tmp_path) as engine:
        yield engine


@dataclass(frozen=True)
class Keys:
    """What opens what."""

    live: str
    test: str
    sdk: str
    other: str  # of another project
    admin: str = ADMIN_KEY


@pytest.fixture
def keys(engine: Engine) -> Keys:
    with engine.begin() as connection:
        first = create_project(connection, "A", "prj_a")
        other = create_project(connection, "B", "prj_b")
        sdk = add_key(connection, "prj_a", kind="sdk")
    return Keys(first.secret_key, first.test_key, sdk, other.secret_key)


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> FastAPI:
    given = {"data_dir": tmp_path, "admin_key": ADMIN_KEY, "redis_url": NO_REDIS}
    settings = WorkerSettings.model_validate(given)
    return create_app(settings, engine=engine, limit=RateLimit(rate=0.001, burst=1000))


class Client:
    """Calls an app without a server; may be used by several threads at once."""

    def __init__(self, portal: BlockingPortal, app: FastAPI) -> None:
        transport = httpx.ASGITransport(app=app)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://onward.test")
        self._portal = portal

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._portal.call(partial(self._http.request, method, path, **more))

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def client(portal: BlockingPortal, app: FastAPI) -> Client:
    return Client(portal, app)


class Project:
    """A client that carries a key."""

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self.key = key

    def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.key}", **more.pop("headers", {})}
        if body is not None:
            more["json"] = body
        return self._client.request(method, path, headers=headers, **more)

    def create(self, **changes: Any) -> Any:
        answer = self("POST", "/v4/integrations", {**NEW, **changes})
        assert answer.status_code == 201, answer.text
        return answer.json()


@pytest.fixture
def project(client: Client, keys: Keys) -> Project:
    return Project(client, keys.live)


@pytest.fixture
def other(client: Client, keys: Keys) -> Project:
    return Project(client, keys.other)


@pytest.fixture
def admin(client: Client, keys: Keys) -> Project:
    return Project(client, keys.admin)
