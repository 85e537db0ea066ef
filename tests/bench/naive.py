"""The baseline: what is built first. A Celery task for every delivery, httpx, a row each."""

import hashlib
import hmac
import json
import os
import sqlite3
import sys
import time
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
from celery import Celery

from tests.bench.events import Source
from tests.bench.rig import Measured, Rig, Worker, progress, until
from worker.supervisor import Part

PROCESSES = 2
INSERT = "INSERT INTO naive_deliveries (event_id, url, status, at) VALUES ({0}, {0}, {0}, {0})"
TABLE = (
    "CREATE TABLE IF NOT EXISTS naive_deliveries (event_id TEXT, url TEXT, status INTEGER, at REAL)"
)

app = Celery("naive", broker=os.environ.get("NAIVE_BROKER", "memory://"))
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


@cache
def _client() -> httpx.Client:
    return httpx.Client(timeout=30)


@cache
def _database() -> tuple[Any, str]:
    url = os.environ["ONWARD_DATABASE_URL"]
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(urlsplit(url).path[1:], timeout=30)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection, INSERT.format("?")
    return psycopg.connect(url.replace("+psycopg", "")), INSERT.format("%s")


@app.task(name="naive.deliver", ignore_result=True)  # type: ignore[untyped-decorator]
def deliver(url: str, event: dict[str, Any]) -> None:
    """Send one event, signed, and write its row."""
    body = json.dumps(event).encode()
    signature = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "X-Signature": signature}
    answer = _client().post(url, content=body, headers=headers)
    answer.raise_for_status()
    connection, statement = _database()
    connection.execute(statement, (event["id"], url, answer.status_code, time.time()))
    connection.commit()


def measure(rig: Rig, count: int, path: str = "naive") -> Measured:
    """Queue `count` deliveries to 50 hosts, start the workers, and measure them."""
    environment = {**rig.environment, "NAIVE_BROKER": rig.settings.redis_url[:-1] + "3"}
    with rig.engine.begin() as connection:
        connection.exec_driver_sql(TABLE)
    app.conf.broker_url = environment["NAIVE_BROKER"]
    source = Source(["naive"])
    with app.connection_for_write() as connection:
        for number in range(count):
            event = json.loads(source.next()[1])
            deliver.apply_async((rig.url(number % 50, path), event), connection=connection)
    rig.seen(reset=True)
    command = [sys.executable, "-m", "celery", "-A", "tests.bench.naive", "worker"]
    options = ["--pool", "prefork", "--concurrency", str(PROCESSES), "--loglevel", "ERROR"]
    part = Part("naive", [*command, *options, "--without-gossip", "--without-mingle"], environment)
    rig.start(part)
    try:
        return _watched(rig, Worker(rig, part), count, path)
    finally:
        rig.stop(part)


def _watched(rig: Rig, worker: Worker, count: int, path: str) -> Measured:
    def taken() -> int:
        return int(rig.seen()["requests"].get(path, 0))

    until(taken, "the first delivery")
    first, cpu, began = taken(), worker.cpu(), time.monotonic()
    progress(taken, count)
    seconds = time.monotonic() - began
    return Measured(count - first, seconds, worker.cpu() - cpu, seen=rig.seen())
