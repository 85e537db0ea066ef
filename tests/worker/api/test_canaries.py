"""No secret of any integration is left in anything the process writes, whatever an upstream says.

Every provider's every secret is a canary of its own. Upstreams that say all they were sent, in
every form, answer deliveries in the worker's own loop; then all that can be seen is searched.
"""

import asyncio
import gc
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy import Engine

from providers.kit import InvalidSettings, Request, Response, dump_text, read_settings
from tests.drained import drained
from tests.worker.api.conftest import ADMIN_KEY, Project
from tests.worker.canaries import forms, needles, planted, secrets_of, values
from worker import metrics, trial
from worker.api.app import create_app
from worker.api.auth import RateLimit
from worker.directory import Directory
from worker.drain import Drain
from worker.intake import publish
from worker.preview import explain, preview, rehearse
from worker.record import record
from worker.registry import all_providers
from worker.sample import events
from worker.settings import WorkerSettings
from worker.state import State
from worker.store.database import reading
from worker.store.integrations import config_rows
from worker.store.secrets import keyring_of
from worker.transport import TransportError

SLUGS = list(all_providers())
CANARIES = {slug: planted(slug) for slug in SLUGS}
TOKEN = "ya29.canary-access-token-0123456789"
STATUSES = (200, 400, 401, 403, 404, 413, 429, 500, 0, 410)
ANSWERS = [(500, 495), (400, 1985), *((status, 0) for status in STATUSES)]  # status, characters


class Echo:
    """A transport whose upstreams say what they were sent, and every secret in every form."""

    def __init__(self) -> None:
        self.status = 200
        self.pad = 0  # characters before it: where a message is cut, a secret is cut
        self.said: dict[str, str] = {}  # by pool
        self.called: set[str] = set()

    async def send(self, request: Request, *, pool: str, timeout: float) -> Response:  # noqa: ASYNC109  the interface's
        if "token" in request.url and b"grant_type" in request.body:
            granted = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            return self._answer(200, dump_text(granted))
        self.called.add(pool)
        if self.status == 0:
            raise TransportError("reset", "the upstream closed the connection")
        heard = f"{request.method} {request.url} {request.headers} {request.body!r}"
        words = f"{'.' * self.pad}{self.said[pool]} {heard}"
        if self.status % 2:  # some speak JSON, under the names upstreams use
            names = ("error", "message", "error_message", "description", "code", "status", "detail")
            return self._answer(self.status, dump_text(dict.fromkeys(names, words)))
        return self._answer(self.status, words)

    def _answer(self, status: int, body: str) -> Response:
        return Response(status, {"x-said": body[:2000]}, body.encode()[:65_536], datetime.now(UTC))

    async def close(self) -> None:
        pass


@pytest.fixture
def settings(tmp_path: Path, valkey: str) -> WorkerSettings:
    return WorkerSettings.model_validate(
        {
            "data_dir": tmp_path,
            "redis_url": valkey,
            "admin_key": ADMIN_KEY,
            "shards": 1,
            "retry_schedule": (0.05,),
            "retry_threshold": 1000,
            "credential_threshold": 1000,
            "reject_threshold": 1000,
            "event_attempts": 3,
        }
    )


@pytest.fixture
def app(settings: WorkerSettings, engine: Engine) -> FastAPI:
    return create_app(settings, engine=engine, limit=RateLimit(0))


@pytest.fixture
def redis(valkey: str) -> Iterator[Redis]:
    with Redis.from_url(valkey, protocol=2) as redis:
        redis.flushall()
        yield redis


@pytest.fixture
def made(project: Project) -> dict[str, str]:
    """Slug → id of an active integration with canaries."""
    ids = {}
    for slug in SLUGS:
        ids[slug] = id_ = project.create(integration=slug, target_platform="iOS")["id"]
        url = f"/ops/v1/integrations/{id_}"
        saved = project("PUT", url + "/settings", CANARIES[slug])
        assert saved.status_code == 200, (slug, saved.text)
        assert project("POST", url + "/status", {"status": 1}).status_code == 200
    return ids


def batch(number: int) -> list[dict[str, Any]]:
    """Return events with all that the providers ask for; new ones for each number."""
    some = list(events(2, seed=number, project="prj_a"))
    for event, attributed in zip(some, (True, False), strict=True):
        event["event_name"] = "trial_started"
        event["revenue"] = None
        event["properties"] |= trial.PROPERTIES
        event["asa_attribution"] = trial.ATTRIBUTION if attributed else None
    return some


def search(found: dict[str, str]) -> None:
    """Fail where a canary is in any of these texts, naming both, with what is around it."""
    leaks = {
        (slug, name): text[max(0, text.index(needle) - 80) : text.index(needle) + 40]
        for slug, canaries in CANARIES.items()
        for value in values(canaries, slug)
        for needle in needles(value)
        for name, text in found.items()
        if needle in text
    }
    leaks |= {("token", name): "" for name, text in found.items() if TOKEN in text}
    assert not leaks


@dataclass(frozen=True)
class Worker:
    """The worker's own loop and recorder, with upstreams that echo."""

    engine: Engine
    settings: WorkerSettings
    redis: Redis
    echo: Echo

    def deliver(self, number: int, status: int, pad: int) -> None:
        """Publish events, send them until every active upstream was asked, and record."""
        self.echo.status, self.echo.pad = status, pad
        publish(self.redis, batch(number), 1)
        asyncio.run(self._drain())
        gc.collect()  # what redis-py loses of a connection cancelled in the making: now, not later
        record(self.redis, self.engine, 1)

    async def _drain(self) -> None:
        directory = Directory(self.engine, keyring_of(self.settings), self.settings)
        directory.refresh()
        directory.start()
        with reading(self.engine) as connection:
            asked = {row.id for row in config_rows(connection) if row.active == 1}
        self.echo.called.clear()
        async with AsyncRedis.from_url(self.settings.redis_url, protocol=2) as redis:
            done = partial(asked.issubset, self.echo.called)
            drain = Drain(self.settings, directory, self.echo, State(redis), done)
            try:
                async with asyncio.timeout(60):
                    await drained(drain, 20)
            finally:
                directory.stop()

    def dump(self) -> str:
        """Return all that Redis holds."""
        redis: Any = self.redis
        readers = {
            b"stream": redis.xrange,
            b"hash": redis.hgetall,
            b"string": redis.get,
            b"zset": lambda key: redis.zrange(key, 0, -1),
            b"set": redis.smembers,
            b"list": lambda key: redis.lrange(key, 0, -1),
        }
        return str([(key, readers[redis.type(key)](key)) for key in redis.scan_iter()])


@pytest.fixture
def worker(
    engine: Engine, settings: WorkerSettings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> Worker:
    echo = Echo()
    monkeypatch.setattr(trial, "make_transport", lambda _settings: echo)
    return Worker(engine, settings, redis, echo)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see `deliver`
def test_nothing_that_is_written_holds_a_secret(
    worker: Worker, made: dict[str, str], project: Project, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    for slug, id_ in made.items():
        worker.echo.said[id_] = " ".join(f for v in values(CANARIES[slug], slug) for f in forms(v))
    seen: dict[str, str] = {}
    for number, (status, pad) in enumerate(ANSWERS):
        worker.deliver(number, status, pad)
        told = _told(made, project)
        seen |= {f"{status} after {pad}: {name}": text for name, text in told.items()}
    seen |= {
        "redis": worker.dump(),
        "database": "".join(
            p.read_bytes().decode("latin-1") for p in tmp_path.glob("migrated.db*")
        ),
        "metrics": metrics.exposition().decode(),
        "log": caplog.text,
    }
    search(seen)
    letters = str([text for name, text in seen.items() if name.endswith("letters")])
    for looked_at, there in (
        ("redis", "trial_started"), ("database", "dead_letters"), ("metrics", "outcome"),
        ("log", "HTTP Request"),
    ):  # fmt: skip
        assert there in seen[looked_at], "what is searched is what is there"
    assert all(letters.count(id_) for id_ in made.values() if id_ != made["searchads"])
    assert "***" in letters


def _told(made: dict[str, str], project: Project) -> dict[str, str]:
    """Return what API and tests tell."""
    told = {"tests": str(_tries(made, project))}
    for id_ in made.values():
        told[f"dossier {id_}"] = project("GET", f"/ops/v1/integrations/{id_}").text
        told[f"settings {id_}"] = project("GET", f"/ops/v1/integrations/{id_}/settings").text
    for path in ("v4/integrations", "ops/v1/deliveries", "ops/v1/audit", "ops/v1/integrations"):
        told[path] = project("GET", f"/{path}").text
    letters = project("GET", "/ops/v1/deadletters?limit=200").json()["data"]
    told["letters"] = str(
        [project("GET", f"/ops/v1/deadletters/{letter['id']}").text for letter in letters]
    )
    return told


def _tries(made: dict[str, str], project: Project) -> list[str]:
    urls = [
        f"/ops/v1/integrations/{id_}/{what}" for id_ in made.values() for what in ("test", "check")
    ]
    return [project("POST", url).text for url in urls]


@pytest.mark.parametrize("slug", SLUGS)
def test_preview_and_explain_hold_no_secret(slug: str) -> None:
    raw = [dump_text(event).encode() for event in batch(1)]
    rehearsal = rehearse(slug, CANARIES[slug], raw)
    seen = {"preview": str(preview(rehearsal)), "settings": repr(rehearsal.settings)}
    words = " ".join(form for value in values(CANARIES[slug], slug) for form in forms(value))
    for status in STATUSES:
        for body in (words, dump_text({"error": words, "message": words}), "." * 495 + words):
            told = explain(rehearsal, Response(status, {}, body.encode()))
            seen[f"explain {status}"] = seen.get(f"explain {status}", "") + str(told)
    search(seen)


@pytest.mark.parametrize("slug", SLUGS)
def test_what_is_wrong_with_settings_is_said_without_them(slug: str, project: Project) -> None:
    provider = all_providers()[slug]
    for name in secrets_of(slug):
        for wrong in (f"{CANARIES[slug][name]}\r\nX-A: b", [CANARIES[slug][name]], "\u00e4"):
            given = {**CANARIES[slug], name: wrong}
            try:
                read_settings(provider.title, provider.settings, given, {})
            except InvalidSettings as error:
                search({"traceback": "".join(traceback.format_exception(error)), "e": repr(error)})
            id_ = project.create(integration=slug)["id"]
            answer = project("PUT", f"/ops/v1/integrations/{id_}/settings", given)
            search({"answer": answer.text})
