"""The database: locked, gone, frozen, there only later. Delivery goes on; the record follows."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.proxy import Proxy
from tests.faults.scene import Make, Scene
from tests.faults.test_upstreams import says
from tests.stack import eventually
from worker.sandbox.upstreams import webhooks

pytestmark = pytest.mark.processes


@contextmanager
def locked(s: Scene) -> Iterator[None]:
    """Keep SQLite's writers' lock."""
    connection = sqlite3.connect(s.folder / "onward.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.row(24, "database locked for longer than a writer waits")
def test_a_locked_database_delays_only_the_record(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        s.worker()
        with locked(s):
            s.send(300)
            eventually(lambda: s.arrived() == 300, 60, "delivery goes on")
            eventually(lambda: "locked" in s.log("worker-0"), 60, "a writer gave up")
            assert s.recorded(hook) == {}
            s.send(100)
            eventually(lambda: s.arrived() == 400, 60, "and on")
        s.check()


@pytest.mark.slow
@pytest.mark.row(21, "database gone: delivery goes on, a suspension follows")
@pytest.mark.parametrize("fault", ["refused", "frozen"])
def test_the_database_is_away(scene: Make, postgres: tuple[str, Proxy, str], fault: str) -> None:
    url, link, through = postgres
    with scene({"ONWARD_CREDENTIAL_THRESHOLD": "2"}, database=url) as s:
        good, bad = s.hook("a"), s.hook("b")
        s.worker(ONWARD_DATABASE_URL=through)
        s.send(100)
        s.reached(200)
        link.silent = fault == "frozen"
        if fault == "refused":
            link.close()
            link.reset()
        s.fault("refuse", slug="webhooks", host="b.customer.example")
        s.send(300)
        eventually(lambda: len(s.taken_by(good)) == 400, 60, "delivery goes on")
        assert s.state(bad).active == 1
        link.silent = False
        if fault == "refused":
            link.open()
        eventually(lambda: s.state(bad).active == 2, 60, "the suspension follows")
        s.no_faults()
        s.activate(bad)
        s.check(ordered=True, flips=1)


@pytest.mark.slow
@pytest.mark.row(23, "database not there when the worker starts")
def test_started_without_a_database(scene: Make, postgres: tuple[str, Proxy, str]) -> None:
    url, link, through = postgres
    with scene(database=url) as s:
        s.hook("a")
        link.close()
        worker = s.begin(ONWARD_DATABASE_URL=through)
        s.send(200)
        eventually(lambda: "refused" in s.log(worker.name), 60, "it says what is missing")
        assert s.arrived() == 0
        assert worker.running
        link.open()
        s.check()


@pytest.mark.slow
@pytest.mark.row(87, "an upstream echoes the secret, NUL and line breaks in its error")
def test_an_upstream_echoes_secrets(scene: Make, postgres: tuple[str, Proxy, str]) -> None:
    url, _, _ = postgres
    words = f"no\0t you:\r\n{webhooks.TOKEN} \u202e {webhooks.SECRET}".encode()
    head = b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(words)
    with scene({"ONWARD_RETRY_THRESHOLD": "4"}, database=url) as s, Proxy(s.sandbox_port) as link:
        hook = s.hook("a")
        s.worker(ONWARD_UPSTREAM=f"http://127.0.0.1:{link.port}")
        link.play = says(head + words)
        s.send(20)
        for due in (lambda: s.state(hook).delivery_error_count, lambda: s.state(hook).active == 2):
            eventually(due, 60, "told of, before and after its suspension")
            told = s.state(hook).last_error_message or ""
            assert told.startswith("500 from Webhooks: no t you: ")
            assert webhooks.TOKEN not in told
            assert webhooks.SECRET[-20:] not in told
            assert told.isprintable()
        link.play = None
        s.activate(hook)
        s.check(flips=1)


@pytest.mark.slow
@pytest.mark.row(5, "kill -9 between the commit and its record: one row each")
def test_killed_before_the_record(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        worker = s.worker()
        with locked(s):
            s.send(300)
            eventually(lambda: s.arrived() == 300, 60, "delivered")
            eventually(lambda: s.balance().intake == 0, 60, "and committed")
            s.kill_all(worker)
        s.again(worker)
        s.check(duplicates=0)


@pytest.mark.slow
@pytest.mark.row(40, "settings that cannot be decrypted: held, told of, released once mended")
def test_unreadable_settings(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        s.sql("UPDATE integrations SET settings = 'spoilt' WHERE id = :id", id=hook)
        s.worker()
        s.send(100)
        eventually(lambda: s.state(hook).active == 2, 60, "suspended")
        assert s.state(hook).last_error_message
        name = s.receivers[hook][1]
        s.settings_of(hook, {**webhooks.upstream.settings, "url": f"https://{name}/onward"})
        s.activate(hook)
        s.check(flips=1, ordered=True)
