"""Health, metrics, limits, faults of our own, and the description of it all."""

import socket
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI
from openapi_spec_validator import validate
from sqlalchemy import Engine

from tests.worker.api.conftest import NEW, Client, Keys, Project, on_both
from worker.api.app import create_app
from worker.api.auth import RateLimit
from worker.api.server import make_server
from worker.settings import WorkerSettings
from worker.store.projects import list_keys, revoke_key


def test_metrics(client: Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "onward_suspensions" in answer.text


def test_every_answer_carries_the_security_headers(client: Client) -> None:
    for path in ("/healthz", "/nowhere", "/v4/integrations"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store"


def test_a_fault_of_ours_tells_nothing(
    client: Client, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr("worker.store.integrations.list_of", fails)
    answer = project("GET", "/v4/integrations")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "unknown_error"
    assert "canary" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_without_its_database_it_asks_to_come_again(portal: BlockingPortal, tmp_path: Path) -> None:
    given = {"data_dir": tmp_path, "secret_keys": "any"}
    settings = WorkerSettings.model_validate(
        given | {"database_url": "postgresql://nobody@127.0.0.1:1/none"}
    )
    client = Client(portal, create_app(settings))
    answer = client.get("/v4/integrations", headers={"Authorization": "Bearer sk_x"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "storage_error"
    assert answer.json()["error"]["type"] == "internal"
    assert int(answer.headers["Retry-After"]) > 0


def test_a_key_that_asks_too_often_waits(
    portal: BlockingPortal, engine: Engine, keys: Keys, tmp_path: Path
) -> None:
    settings = WorkerSettings.model_validate({"data_dir": tmp_path})
    slow = create_app(settings, engine=engine, limit=RateLimit(rate=0.001, burst=2))
    client = Client(portal, slow)
    mine, theirs = Project(client, keys.live), Project(client, keys.other)
    assert [mine("GET", "/v4/integrations").status_code for _ in range(3)] == [200, 200, 429]
    answer = mine("POST", "/v4/integrations", NEW)
    assert answer.json()["error"]["code"] == "too_many_requests"
    assert int(answer.headers["Retry-After"]) > 0
    assert theirs("GET", "/v4/integrations").status_code == 200


def test_the_bucket_fills_again() -> None:
    at = [0.0]
    limit = RateLimit(rate=2, burst=2, clock=lambda: at[0])
    assert [limit.wait("k") for _ in range(3)] == [0.0, 0.0, 0.5]
    at[0] = 0.5
    assert limit.wait("k") == 0.0
    assert limit.wait("k") > 0
    at[0] = 100.0
    assert [limit.wait("k") > 0 for _ in range(3)] == [False, False, True]


@on_both
def test_a_revoked_key_opens_nothing(project: Project, engine: Engine) -> None:
    assert project("GET", "/v4/integrations").status_code == 200
    with engine.begin() as connection:
        revoke_key(connection, "prj_a", list_keys(connection, "prj_a")[0].id)
    assert project("GET", "/v4/integrations").status_code == 401


@on_both
def test_use_of_a_key_is_remembered(project: Project, engine: Engine) -> None:
    project("GET", "/v4/integrations")
    with engine.begin() as connection:
        assert list_keys(connection, "prj_a")[0].last_used_at is not None


def test_the_description_is_valid_and_whole(client: Client) -> None:
    found = client.get("/openapi.json").json()
    validate(found)
    assert found["openapi"].startswith("3.1")
    v4 = {path: set(item) for path, item in found["paths"].items() if path.startswith("/v4")}
    assert v4 == {
        "/v4/integrations": {"get", "post"},
        "/v4/integrations/meta": {"get"},
        "/v4/integrations/{integration_id}": {"get", "delete"},
        "/v4/integrations/{integration_id}/status": {"post"},
    }
    create = found["paths"]["/v4/integrations"]["post"]
    assert set(create["responses"]) == {
        "201", "400", "401", "403", "408", "409", "413", "415", "429", "500", "503",
    }  # fmt: skip
    assert create["security"] == [{"secret_key": []}]
    assert create["requestBody"]["content"]["application/json"]["schema"]["examples"] == [
        {"title": "Growth dashboards", "integration": "mixpanel", "target_platform": "Stripe"}
    ]
    assert found["components"]["schemas"]["IntegrationObject"]["examples"][0]["id"] == "c9VdLs3H"
    assert "HTTPValidationError" not in found["components"]["schemas"]


@on_both
def test_every_route_of_a_project_needs_its_key(
    client: Client, project: Project, other: Project
) -> None:
    theirs = project.create()["id"]
    described = client.get("/openapi.json").json()["paths"]
    routes = [(m.upper(), p) for p in described for m in described[p] if p[:4] in {"/v4/", "/ops"}]
    assert len(routes) > 15
    for method, path in routes:
        url = path.replace("{integration_id}", theirs).replace("{letter_id}", "1")
        assert client.request(method, url, json={}).status_code == 401, (method, path)
        if "{" in path:
            body = {"status": 1} if path.endswith("/status") else {}
            assert other(method, url, body).status_code == 404, (method, path)


def test_served_for_real(app: FastAPI, keys: Keys) -> None:
    server = make_server(app, 0)
    assert server.config.host == "127.0.0.1"
    listener = socket.create_server(("127.0.0.1", 0))
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {keys.live}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            assert client.post("/v4/integrations", json=NEW).status_code == 201
            answer = client.get("/v4/integrations")
            assert len(answer.json()["data"]) == 1
            assert "server" not in answer.headers
            assert client.head("/v4/integrations").status_code == 405
    finally:
        server.should_exit = True
        thread.join()
