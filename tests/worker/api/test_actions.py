"""/ops/v1: what sends. Against the sandbox's upstreams."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import pytest
from fastapi import FastAPI
from redis import Redis
from sqlalchemy import Engine

from tests.worker.api.conftest import ADMIN_KEY, Project
from tests.worker.store.rows import record_rows
from worker.api import actions
from worker.api.app import create_app
from worker.api.auth import RateLimit
from worker.intake import IntakeFull
from worker.sandbox.upstreams.amplitude import KEY
from worker.settings import WorkerSettings
from worker.state import Keys, shard_of
from worker.store.database import reading
from worker.store.dead_letters import list_dead_letters

OPS = "/ops/v1"
AT = datetime(2026, 6, 1, 11, 20, 36, tzinfo=UTC)
WRONG = "f" * 32


@pytest.fixture(scope="module")
def redis(valkey: str) -> Iterator[Redis]:
    """A real server: sending again is a script."""
    with Redis.from_url(valkey, protocol=2) as client:
        yield client


@pytest.fixture
def fault(sandbox: str) -> Iterator[Callable[..., None]]:
    def play(**what: Any) -> None:
        httpx.post(f"{sandbox}/_sandbox/faults", json=what).raise_for_status()

    yield play
    httpx.delete(f"{sandbox}/_sandbox/faults").raise_for_status()


@pytest.fixture
def app(engine: Engine, tmp_path: Path, sandbox: str, redis: Redis) -> FastAPI:
    settings = WorkerSettings.model_validate(
        {"data_dir": tmp_path, "admin_key": ADMIN_KEY, "upstream": sandbox, "attempt_timeout": 5}
    )
    app = create_app(settings, engine=engine, limit=RateLimit(0))
    redis.flushall()
    app.state.services = replace(app.state.services, redis=redis)
    return app


@pytest.fixture
def made(project: Project) -> str:
    """The id of an integration with Amplitude that would do."""
    id_: str = project.create()["id"]
    assert project("PUT", f"{OPS}/integrations/{id_}/settings", {"api_key": KEY}).is_success
    return id_


# --- test events and checks ------------------------------------------------------------------


def test_a_test_event_is_sent_and_told_masked(project: Project, made: str) -> None:
    answer = project("POST", f"{OPS}/integrations/{made}/test")
    told = answer.json()
    assert (told["object"], told["integration_id"]) == ("test", made)
    assert (told["outcome"], told["event"][:5]) == ("delivered", "test-")
    (request,) = told["requests"]
    assert request["url"] == "https://api2.amplitude.com/2/httpapi"
    assert request["response"]["status"] == 200
    assert KEY not in answer.text
    row = project("GET", f"{OPS}/audit?integration={made}").json()["data"][0]
    assert (row["action"], row["after"]["outcome"]) == ("integration.test", "delivered")


def test_a_refusal_is_an_answer_too(project: Project, made: str) -> None:
    project("PUT", f"{OPS}/integrations/{made}/settings", {"api_key": WRONG})
    for what in ("test", "check"):
        answer = project("POST", f"{OPS}/integrations/{made}/{what}")
        assert answer.status_code == 200
        assert (answer.json()["outcome"], answer.json()["reason"]) == (
            "misconfigured", "unauthorized"
        )  # fmt: skip
        assert WRONG not in answer.text


def test_without_settings_nothing_is_sent(project: Project) -> None:
    made = project.create()["id"]
    told = project("POST", f"{OPS}/integrations/{made}/test").json()
    assert (told["outcome"], told["requests"]) == ("misconfigured", [])
    assert "Amplitude settings are not set" in told["message"]


def test_a_check_sends_no_event(project: Project, made: str) -> None:
    told = project("POST", f"{OPS}/integrations/{made}/check").json()
    assert (told["object"], told["outcome"], told["event"]) == ("check", "delivered", None)
    assert '"events":[]' in told["requests"][0]["body"].replace(" ", "")


def test_not_every_provider_can_be_asked(project: Project) -> None:
    made = project.create(integration="posthog")["id"]
    answer = project("POST", f"{OPS}/integrations/{made}/check")
    assert answer.status_code == 404
    assert "Send a test event" in answer.json()["error"]["message"]
    url = f"{OPS}/integrations/{made}/settings?check=1"
    saved = project("PUT", url, {"project_api_key": "phc_" + "a" * 43, "region": "eu"})
    assert (saved.status_code, saved.json().get("check", "")) == (200, None), saved.text


def test_settings_may_be_proven_before_they_are_saved(
    project: Project, made: str, fault: Callable[..., None]
) -> None:
    url = f"{OPS}/integrations/{made}/settings"
    before = project("GET", url).json()
    refused = project("PUT", url + "?check=1", {"api_key": WRONG})
    assert refused.status_code == 400
    (detail,) = refused.json()["error"]["details"]
    assert (detail["field"], "Invalid API key" in detail["message"]) == ("settings", True)
    assert WRONG not in refused.text
    assert project("GET", url).json() == before
    saved = project("PUT", url + "?check=1", {**before["settings"], "use_batch_endpoint": True})
    assert saved.json()["check"]["outcome"] == "delivered"
    assert project("GET", url).json()["settings"]["use_batch_endpoint"] is True
    fault(mode="fail", slug="amplitude")
    unsure = project("PUT", url + "?check=1", {"api_key": WRONG})
    assert (unsure.status_code, unsure.json()["check"]["outcome"]) == (200, "retry")


def test_a_hanging_upstream_costs_the_others_nothing(
    project: Project, other: Project, app: FastAPI, made: str, fault: Callable[..., None]
) -> None:
    fault(mode="hang", slug="amplitude")
    url = f"{OPS}/integrations/{made}/test"
    with ThreadPoolExecutor(2) as pool:
        hanging = [pool.submit(project, "POST", url) for _ in range(2)]
        until = time.monotonic() + 60
        while app.state.services.busy._taken["prj_a"] < 2:
            assert time.monotonic() < until
        crowded = project("POST", url)
        assert crowded.status_code == 429
        assert int(crowded.headers["Retry-After"]) > 0
        assert project("GET", "/v4/integrations").status_code == 200
        theirs = other.create(integration="webhooks")["id"]
        assert other("POST", f"{OPS}/integrations/{theirs}/test").status_code == 200
        told = [one.result().json() for one in hanging]
    assert [(t["outcome"], t["reason"]) for t in told] == [("retry", "timeout")] * 2
    assert app.state.services.busy._taken["prj_a"] == 0


def test_private_addresses_are_as_closed_to_tests_as_to_deliveries(
    engine: Engine, project: Project, app: FastAPI, tmp_path: Path
) -> None:
    app.state.services = replace(
        app.state.services, settings=WorkerSettings.model_validate({"data_dir": tmp_path})
    )
    made = project.create(integration="webhooks")["id"]
    url = f"{OPS}/integrations/{made}/settings"
    assert project("PUT", url, {"url": "https://127.0.0.1/"}).status_code == 400
    assert project("PUT", url, {"url": "https://localtest.invalid/"}).status_code == 200
    told = project("POST", f"{OPS}/integrations/{made}/test").json()
    assert told["outcome"] in {"misconfigured", "retry"}
    assert told["requests"][0]["response"] is None


# --- dead letters ----------------------------------------------------------------------------


@pytest.fixture
def letters(engine: Engine, made: str, project: Project) -> list[int]:
    """The ids of three dead letters of the active integration, oldest first."""
    project("POST", f"/v4/integrations/{made}/status", {"status": 1})
    fields = {"integration_id": made, "project_id": "prj_a", "event_name": "trial_started"}
    more = {"message": "no", "created_at": AT, "status": 400}
    rows = [
        {**fields, **more, "event_id": f"e{n}", "reason": reason, "body": b'{"id":"e"}'}
        for n, reason in enumerate(("bad_request", "bad_request", "too_old"))
    ]
    assert record_rows(engine, 0, None, "1", deliveries=[], dead_letters=rows)
    with reading(engine) as connection:
        return sorted(row.id for row in list_dead_letters(connection))


def lane(app: FastAPI, made: str) -> int:
    services = app.state.services
    keys = Keys(shard_of("prj_a", services.settings.shards))
    length: int = services.redis.xlen(keys.lane(made))
    return length


def test_replay_counts_first_and_then_sends_once(
    project: Project, app: FastAPI, made: str, letters: list[int]
) -> None:
    url = f"{OPS}/deadletters/replay"
    wanted = {"integration": made, "reason": "bad_request"}
    told = project("POST", url, {**wanted, "dry_run": True}).json()
    assert told == {
        "object": "replay",
        "chosen": 2,
        "kinds": [{"integration_id": made, "reason": "bad_request", "count": 2}],
        "left_out": [],
        "replayed": 0,
        "has_more": False,
    }
    assert lane(app, made) == 0
    assert project("POST", url, wanted).json() == {**told, "replayed": 2}
    assert lane(app, made) == 2
    again = project("POST", url, {"ids": letters}).json()
    assert (again["replayed"], again["left_out"]) == (
        1, [{"why": "was replayed before", "count": 2}]
    )  # fmt: skip
    assert project("POST", url, {"ids": letters, "force": True}).json()["replayed"] == 3
    row = project("GET", f"{OPS}/audit").json()["data"][0]
    assert (row["action"], row["after"]) == ("deadletters.replay", {"replayed": 3})


def test_a_replay_that_takes_long_goes_on_in_the_next_request(
    project: Project, app: FastAPI, made: str, letters: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "REPLAY_SECONDS", -1)
    url, wanted = f"{OPS}/deadletters/replay", {"all": True, "rate": 10.0, "force": True}
    told, total = project("POST", url, wanted).json(), 0
    while told["has_more"]:
        total += told["replayed"]
        told = project("POST", url, {**wanted, "after": told["next_after"]}).json()
    assert total + told["replayed"] == len(letters) == lane(app, made)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"ids": []}, "ids"),
        ({"ids": ["1"]}, "ids.0"),
        ({"ids": [0]}, "ids.0"),
        ({"all": 1}, "all"),
        ({"all": True, "rate": 0}, "rate"),
        ({"reason": "A"}, "reason"),
        ({"integration": "a/b"}, "integration"),
    ],
)
def test_a_faulty_choice_is_named(project: Project, body: Any, field: str) -> None:
    answer = project("POST", f"{OPS}/deadletters/replay", body)
    assert answer.status_code == 400
    assert [row["field"] for row in answer.json()["error"]["details"]] == [field]


@pytest.mark.parametrize("body", [{"ids": [10**9]}, {"integration": "abcdefgh"}])
def test_what_is_not_there_is_not_replayed(project: Project, body: Any) -> None:
    assert project("POST", f"{OPS}/deadletters/replay", body).status_code == 404


def test_letters_of_others_are_not_there(
    other: Project, app: FastAPI, made: str, letters: list[int]
) -> None:
    url = f"{OPS}/deadletters/replay"
    named: list[dict[str, Any]] = [{"ids": letters}, {"integration": made}]
    every: dict[str, Any] = {"all": True}
    for body in (*named, {**named[1], "force": True}, {**every, "project": "prj_a"}):
        assert other("POST", url, body).status_code == 404
    for body in (every, {**every, "force": True}):
        assert other("POST", url, body).json()["chosen"] == 0
    assert lane(app, made) == 0


def test_a_full_redis_takes_no_replays(
    project: Project, letters: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_redis: Any) -> None:
        raise IntakeFull(9, 10)

    monkeypatch.setattr("worker.replay.check_room", full)
    answer = project("POST", f"{OPS}/deadletters/replay", {"all": True})
    assert answer.status_code == 503
    assert json.loads(answer.text)["error"]["code"] == "storage_error"


def test_without_redis_it_says_so(project: Project, app: FastAPI, letters: list[int]) -> None:
    away = fakeredis.FakeRedis(connected=False)
    app.state.services = replace(app.state.services, redis=away)
    answer = project("POST", f"{OPS}/deadletters/replay", {"all": True})
    assert answer.status_code == 503
    assert "Redis" in answer.json()["error"]["message"]
