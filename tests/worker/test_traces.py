"""Traces of a real loop on a real store: an event's spans hang together; none unasked."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy import Engine

from providers.kit import Request, Response
from tests.drained import drained
from worker import traces
from worker.directory import Directory
from worker.drain import Drain
from worker.intake import publish
from worker.record import record
from worker.sample import events, integration
from worker.settings import load_settings
from worker.state import Keys, State
from worker.store.database import now
from worker.store.projects import create_project
from worker.store.secrets import keyring_of
from worker.traces import Traces, trace_id

COUNT = 8


class Upstream:
    """Fails its first request, takes the rest."""

    def __init__(self) -> None:
        self.calls = 0

    async def send(self, request: Request, *, pool: str, timeout: float) -> Response:  # noqa: ASYNC109
        self.calls += 1
        return Response(503 if self.calls == 1 else 200, {}, b"{}", now())

    async def close(self) -> None:
        pass


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    traces.on = Traces(SimpleSpanProcessor(exporter), 1.0)
    yield exporter
    traces.stop()


def deliver(redis: Any, engine: Engine) -> None:
    port = redis.connection_pool.connection_kwargs["port"]
    settings = load_settings(
        {},
        redis_url=f"redis://127.0.0.1:{port}/0",
        database_url=str(engine.url),
        shards=1,
        secret_keys="k" * 32,
        retry_schedule="0.1",
    )
    with engine.begin() as connection:
        create_project(connection, "A", "prj_a")
        integration(connection, settings, "prj_a", "webhooks", "Hook")
    publish(redis, events(COUNT, project="prj_a"), 1)

    async def drain() -> None:
        directory = Directory(engine, keyring_of(settings), settings)
        directory.refresh()
        async with AsyncRedis.from_url(settings.redis_url, protocol=2) as client:
            journalled: Any = redis

            def done() -> bool:
                tally = journalled.hgetall(Keys(0).tally)
                return any(
                    name.endswith(b"|delivered") and int(count) == COUNT
                    for name, count in tally.items()
                )

            loop = Drain(settings, directory, Upstream(), State(client), done)
            await drained(loop, 30)

    asyncio.run(drain())
    record(redis, engine, 1)


def test_an_events_spans_are_one_trace(
    spans: InMemorySpanExporter, events_redis: Any, empty_database: Engine
) -> None:
    deliver(events_redis, empty_database)

    by_trace: dict[int, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        assert span.context
        by_trace.setdefault(span.context.trace_id, []).append(span)
    assert by_trace.keys() == {
        trace_id("prj_a", event["id"]) for event in events(COUNT, project="prj_a")
    }
    outcomes = set()
    for found in by_trace.values():
        intake, *attempts, last = sorted(found, key=lambda one: one.end_time or 0)
        assert (intake.name, last.name) == ("intake", "record")
        assert intake.parent is None
        assert intake.context
        assert {one.name for one in attempts} == {"attempt"}
        for one in (*attempts, last):
            assert one.parent
            assert one.parent.span_id == intake.context.span_id
            assert (one.end_time or 0) >= (one.start_time or 0)
        outcomes |= {(one.attributes or {})["onward.outcome"] for one in attempts}
        assert (attempts[-1].attributes or {})["http.response.status_code"] == 200
    assert outcomes == {"retry", "delivered"}


def test_a_share_is_traced_and_every_process_takes_the_same(spans: InMemorySpanExporter) -> None:
    some = [
        Traces(SimpleSpanProcessor(spans), 0.1),
        Traces(SimpleSpanProcessor(spans), 0.1),
    ]
    taken = [{n for n in range(5_000) if one._traced("prj_a", f"evt-{n}")} for one in some]
    assert taken[0] == taken[1]
    assert 400 < len(taken[0]) < 600
    none = Traces(SimpleSpanProcessor(spans), 0.0)
    assert not any(none._traced("prj_a", f"evt-{n}") for n in range(1_000))


def test_it_is_off_by_default_and_then_neither_sdk_nor_exporter_is_loaded() -> None:
    code = (
        "import sys; from worker import traces, router, attempt, record, settings, state; "
        "traces.start(settings.load_settings({})); "
        "assert traces.on is None; "
        "unasked = ('opentelemetry.sdk.', 'opentelemetry.exporter'); "
        "loaded = [name for name in sys.modules if name.startswith(unasked)]; "
        "assert not any(sys.modules[name] for name in loaded), loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("program", ["worker.api.app", "worker.cli.overview", "worker.sandbox.app"])
def test_what_is_kept_out_is_missed_by_no_program(program: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {program}"], check=True, timeout=60)


def test_without_the_extra_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    traces.start(load_settings({}, otlp_url="http://127.0.0.1:1/v1/traces"))
    assert traces.on is None
    assert "onward[otel]" in caplog.text
