"""The console on an empty database and a Redis of its own, and somebody with a browser."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from sqlalchemy import Engine

from tests.worker.store.rows import record_rows
from worker.api.app import create_app
from worker.settings import WorkerSettings
from worker.state import Keys, shard_of
from worker.store import integrations, projects

ADMIN_KEY = "admin-key-for-tests"
PROJECT = "prj_test"
AT = datetime(2026, 6, 1, 11, 20, 36, tzinfo=UTC)
KEYS = Keys(shard_of(PROJECT, 32))


@pytest.fixture
def app(empty_database: Engine, valkey: str, events_redis: Any, tmp_path: Path) -> FastAPI:
    given = {"data_dir": tmp_path, "admin_key": ADMIN_KEY, "redis_url": valkey}
    settings = WorkerSettings.model_validate(given)
    with empty_database.begin() as connection:
        projects.create_project(connection, "Test", PROJECT)
    made = create_app(settings, engine=empty_database)
    made.state.services = replace(made.state.services, redis=events_redis)
    return made


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


class Browser:
    """Keeps cookies, and fills in forms as they were given."""

    def __init__(self, portal: BlockingPortal, app: FastAPI, base: str = "http://o.test") -> None:
        transport = httpx.ASGITransport(app=app)
        self.http = httpx.AsyncClient(transport=transport, base_url=base)
        self._portal = portal

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._portal.call(partial(self.http.request, method, path, **more))

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self("GET", path, params=query or None)

    def token(self, path: str = "/console/integrations") -> str:
        found = re.search(r'name="token" value="(\w+)"', self.get(path).text)
        assert found
        return found[1]

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self("POST", path, data={"token": self.token(), **fields})

    def sign_in(self, key: str = ADMIN_KEY, **fields: str) -> httpx.Response:
        return self("POST", "/console/sign-in", data={"token": self.token(), "key": key, **fields})


@pytest.fixture
def stranger(portal: BlockingPortal, app: FastAPI) -> Browser:
    return Browser(portal, app)


@pytest.fixture
def operator(portal: BlockingPortal, app: FastAPI) -> Browser:
    browser = Browser(portal, app)
    assert browser.sign_in().status_code == 303
    return browser


@pytest.fixture
def hook(empty_database: Engine) -> str:
    """An active integration."""
    return made(empty_database, "Our backend")


def made(engine: Engine, title: str, slug: str = "webhooks", status: int = 1) -> str:
    with engine.begin() as connection:
        row = integrations.create_integration(
            connection, PROJECT, title=title, slug=slug, platform="iOS", actor="test"
        )
        integrations.set_status(connection, row.id, status, "test")
    return row.id


def suspended(engine: Engine, integration_id: str, message: str) -> None:
    with engine.begin() as connection:
        assert integrations.suspend(
            connection, integration_id, 0, message=message, reason="unauthorized", at=AT
        )


def recorded(engine: Engine, integration_id: str, letters: int = 1, **changes: Any) -> None:
    """Record one delivery, of event `e1`, and dead letters of events `d0` …"""
    ids = {"integration_id": integration_id, "project_id": PROJECT, "event_name": "trial_started"}
    row = {**ids, "event_id": "e1", "outcome": "delivered", "status": 200, "attempts": 1}
    letter = {**ids, "reason": "bad_request", "message": "no", "created_at": AT, "status": 400}
    letter |= {"request": "POST https://x/ ***", "response": "400 no"} | changes
    assert record_rows(
        engine, 0, None, "1",
        deliveries=[{**row, "accepted_at": AT, "finished_at": AT}],
        dead_letters=[
            {**letter, "event_id": f"d{n}", "body": b'{"id":"d%d","user_id":"QON_1"}' % n}
            for n in range(letters)
        ],
    )  # fmt: skip


def waits(redis: Any, integration_id: str, count: int, at: datetime = AT) -> None:
    for number in range(count):
        body = b'{"id":"w%d","user_id":"QON_1","event_name":"trial_started"}' % number
        redis.xadd(KEYS.lane(integration_id), {"e": body, "t": int(at.timestamp() * 1000)})
    redis.zadd(KEYS.due, {integration_id: 1})
