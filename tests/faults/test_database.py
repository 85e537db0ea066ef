"""The database: locked, gone, frozen, there only later. Delivery goes on; the record follows."""

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import make_url

from tests.faults.proxy import Proxy
from tests.faults.scene import NOISE, Make, Scene
from tests.faults.test_upstreams import says
from tests.stack import PROJECT, eventually, family
from tests.worker.store.databases import postgres_url
from worker.sandbox.upstreams import webhooks
from worker.state import CHANGES
from worker.supervisor import onward

pytestmark = pytest.mark.processes
OLD_KEY, NEW_KEY = "the key of last year, long and random", "the key of this year, long and random"


def postgres_processes() -> list[psutil.Process]:
    """Return the server's processes."""
    folder = Path(str(make_url(postgres_url()).query["host"]))
    (pid_file,) = folder.glob("**/postmaster.pid")
    return family(int(pid_file.read_text().split()[0]))


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


CONFLICT = """
CREATE SEQUENCE conflicts;
CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('conflicts') <= 3 THEN RAISE EXCEPTION 'conflict' USING ERRCODE = '{code}'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER conflict BEFORE INSERT ON deliveries FOR EACH STATEMENT EXECUTE FUNCTION conflict();
"""


@pytest.mark.slow
@pytest.mark.row(24, "database gives our transaction up, 3 times")
@pytest.mark.parametrize(
    "code", ["40P01", "40001", "57P01"], ids=["deadlock", "serialization", "terminated"]
)
def test_a_transaction_that_is_given_up(
    scene: Make, postgres: tuple[str, Proxy, str], code: str
) -> None:
    url, _, _ = postgres
    with scene(database=url) as s:
        hook = s.hook("a")
        s.sql(CONFLICT.format(code=code))
        worker = s.worker()
        s.send(300)
        s.reached(300)
        eventually(lambda: s.recorded(hook).get("delivered") == 300, 60, "recorded")
        assert s.number("SELECT last_value FROM conflicts") >= 4
        assert worker.running
        s.check()


@pytest.mark.slow
@pytest.mark.row(22, "database frozen for 20 s: deliveries take no longer")
def test_a_frozen_database_costs_no_time(scene: Make, postgres: tuple[str, Proxy, str]) -> None:
    url, _, _ = postgres
    with scene(database=url) as s:
        hooks = [s.hook("a"), s.hook("b")]
        s.worker()
        with s.load(rate=100):
            s.moving(1_000)
            since = s.now()
            s.moving(2_000)
            with s.frozen(postgres_processes()):
                frozen = s.now()
                s.moving(4_000)
                thawed = s.now()
            s.moving(200)
        s.check(ordered=True)
        assert thawed - frozen > timedelta(seconds=15)
        usual = s.p99(hooks, since, frozen)
        assert s.p99(hooks, frozen, thawed) < 1.5 * usual + NOISE


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
        s.redis.xadd(CHANGES, {"p": PROJECT})  # it cannot be read what was changed
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
        api = s.api(ONWARD_DATABASE_URL=through)
        s.send(200)
        eventually(lambda: "refused" in s.log(worker.name), 60, "it says what is missing")
        assert "database" in api.faults()
        assert s.arrived() == 0
        assert worker.running
        link.open()
        s.check()
        eventually(lambda: not api.faults(), 60, "ready")


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


@pytest.mark.slow
@pytest.mark.row(40, "keys rotated under load")
def test_keys_are_rotated(scene: Make) -> None:
    with scene({"ONWARD_SECRET_KEYS": OLD_KEY}) as s:
        s.hook("a"), s.hook("b")
        workers = [s.worker()]
        with s.load():
            s.moving(50)
            for keys in (f"{NEW_KEY},{OLD_KEY}", NEW_KEY):
                workers.append(s.worker(ONWARD_SECRET_KEYS=keys))
                s.stop(workers.pop(0))
                s.moving(50)
                environ = {**s.environ(), "ONWARD_SECRET_KEYS": keys}
                rotate = onward("secrets", "rotate", "--json")
                told = json.loads(subprocess.check_output(rotate, env=environ))
                assert told["rotated"] == (2 if OLD_KEY in keys else 0)
                s.moving(50)
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row(40, "a worker lacks the key: held until it has it")
def test_a_key_that_is_not_known(scene: Make) -> None:
    with scene({"ONWARD_SECRET_KEYS": OLD_KEY}) as s:
        hook = s.hook("a")
        worker = s.worker(ONWARD_SECRET_KEYS=NEW_KEY)
        api = s.api(ONWARD_SECRET_KEYS=NEW_KEY)
        s.send(100)
        eventually(lambda: s.state(hook).active == 2, 60, "suspended")
        assert api.faults() == {"keys"}
        assert "key" in (s.state(hook).last_error_message or "")
        s.stop(worker)
        s.worker()
        s.activate(hook)
        (accounts,) = s.check(flips=1, ordered=True).values()
        assert accounts.count("delivered") == 100
