"""Dead letters sent again: accounted, once, and only where something can come of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import OperationalError

from tests.faults.proxy import Proxy
from tests.stack import PROJECT, Stack, eventually
from worker import replay as module
from worker.audit import balance
from worker.intake import IntakeFull
from worker.journal import PAGE, Page, pack
from worker.replay import DELETED, NO_INTEGRATION, OFF, REPLAYED, choose, replay
from worker.sample import events
from worker.state import Keys, shard_of
from worker.store import integrations, projects
from worker.store.database import now, reading
from worker.store.models import AuditRow, DeadLetter

SHARDS = 32
KEYS = Keys(shard_of(PROJECT, SHARDS))


@pytest.fixture
def redis(events_redis: Any) -> Any:
    return events_redis


@pytest.fixture
def engine(empty_database: Engine) -> Engine:
    """A database with the project."""
    with empty_database.begin() as connection:
        projects.create_project(connection, "Test", PROJECT)
    return empty_database


@pytest.fixture
def hook(engine: Engine) -> str:
    """An active integration."""
    with engine.begin() as connection:
        made = integrations.create_integration(
            connection, PROJECT, title="Hook", slug="webhooks", platform="iOS", actor="test"
        )
        integrations.set_status(connection, made.id, 1, "test")
    return made.id


def letter(engine: Engine, **fields: Any) -> int:
    values = {"project_id": PROJECT, "reason": "bad_request", "body": b"{}", "created_at": now()}
    with engine.begin() as connection:
        made = connection.execute(
            insert(DeadLetter).values(values | fields).returning(DeadLetter.id)
        )
        return int(made.scalar_one())


def replayed(engine: Engine) -> set[int]:
    table = DeadLetter.table()
    with reading(engine) as connection:
        query = select(table.c.id).where(table.c.replayed_at.is_not(None))
        return set(connection.execute(query).scalars())


def test_letters_go_to_the_end_of_their_lane_as_new_deliveries(
    redis: Any, engine: Engine, hook: str
) -> None:
    redis.xadd(KEYS.lane(hook), {"e": b"first", "t": 1})
    redis.hincrby(KEYS.tally, f"{hook}|accepted", 1)
    redis.xadd(KEYS.journal, {PAGE: pack(Page(accepted={hook: 1}))})
    redis.zadd(KEYS.due, {hook: 5})
    ids = [letter(engine, integration_id=hook, body=body) for body in (b"second", b"third")]
    *_, last = replay(redis, engine, SHARDS, ids)
    assert (last.replayed, last.refused, last.total) == (2, 0, 2)
    lane = redis.xrange(KEYS.lane(hook))
    assert [fields[b"e"] for _, fields in lane] == [b"first", b"second", b"third"]
    at = redis.time()[0]
    assert all(at - int(fields[b"t"]) // 1000 <= 60 for _, fields in lane[1:])
    assert redis.zscore(KEYS.due, hook) == 5  # an earlier wait stands
    assert redis.hget(KEYS.grown, hook) == b"2"
    (line,) = balance(redis, engine, SHARDS).lines
    assert (line.accepted, line.waiting, line.missing) == (3, 3, 0)
    assert replayed(engine) == set(ids)
    with reading(engine) as connection:
        row = connection.execute(
            select(AuditRow.table()).where(AuditRow.action == "deadletters.replay")
        ).one()
    assert (row.integration_id, json.loads(row.after)) == (hook, {"replayed": 2})


def test_what_nothing_would_come_of_is_refused_with_the_reason(engine: Engine, hook: str) -> None:
    with engine.begin() as connection:
        paused, deleted = (
            integrations.create_integration(
                connection, PROJECT, title=title, slug="webhooks", platform="iOS", actor="test"
            ).id
            for title in ("paused", "deleted")
        )
        integrations.delete(connection, deleted, "test")
    good = letter(engine, integration_id=hook)
    ids = [
        good,
        letter(engine, integration_id=paused),
        letter(engine, integration_id=deleted),
        letter(engine, reason="malformed", project_id=None),
        letter(engine, integration_id=hook, replayed_at=now()),
    ]
    with reading(engine) as connection:
        chosen = choose(connection, ids=ids)
        assert chosen.ids == [good]
        assert chosen.kinds == {(hook, "bad_request"): 1}
        assert chosen.refused == {OFF: 1, DELETED: 1, NO_INTEGRATION: 1, REPLAYED: 1}
        assert choose(connection, integration_id=hook).ids == [good]
        assert choose(connection, reason="malformed").ids == []
        assert choose(connection, project_id="prj_other").ids == []
        assert set(choose(connection, ids=ids, force=True).ids) == {good, *ids[3:]}


def test_what_is_a_projects_by_its_own_word_is_not_its_to_send(engine: Engine) -> None:
    id_ = letter(engine, reason="poison", event_id="evt-1")
    with reading(engine) as connection:
        of_project = choose(connection, project_id=PROJECT, ids=[id_], force=True)
        assert (of_project.ids, of_project.refused) == ([], {NO_INTEGRATION: 1})
        assert choose(connection, ids=[id_]).refused == {NO_INTEGRATION: 1}
        assert choose(connection, ids=[id_], force=True).ids == [id_]


def test_an_integration_paused_meanwhile_gets_nothing(
    redis: Any, engine: Engine, hook: str
) -> None:
    ids = [letter(engine, integration_id=hook)]
    with engine.begin() as connection:
        integrations.set_status(connection, hook, 0, "test")
    *_, last = replay(redis, engine, SHARDS, ids)
    assert (last.replayed, last.refused) == (0, 1)
    assert not redis.exists(KEYS.lane(hook))
    assert replayed(engine) == set()


def test_a_letter_is_sent_once_by_two_replays(redis: Any, engine: Engine, hook: str) -> None:
    ids = [letter(engine, integration_id=hook)]
    *_, first = replay(redis, engine, SHARDS, ids)
    *_, second = replay(redis, engine, SHARDS, ids)
    assert (first.replayed, second.replayed, second.refused) == (1, 0, 1)
    assert redis.xlen(KEYS.lane(hook)) == 1


def test_a_letter_is_sent_once_though_the_client_asks_again(
    redis: Any, engine: Engine, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [letter(engine, integration_id=hook)]
    port = redis.connection_pool.connection_kwargs["port"]
    with Proxy(port) as link, Redis(port=link.port, protocol=2) as client:

        def lose_the_next_answer(_client: Any) -> None:
            client.ping()
            link.cut_after = 0

        monkeypatch.setattr(module, "check_room", lose_the_next_answer)
        *_, last = replay(client, engine, SHARDS, ids)
    assert (link.accepted, last.replayed) == (2, 1)
    assert redis.xlen(KEYS.lane(hook)) == 1
    assert redis.hget(KEYS.tally, f"{hook}|accepted") == b"1"


def test_a_crash_before_the_mark_loses_nothing(
    redis: Any, engine: Engine, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_connection: Connection, _ids: object, _at: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("the database went away"))

    ids = [letter(engine, integration_id=hook)]
    with monkeypatch.context() as patched:
        patched.setattr(module, "mark_replayed", fails)
        with pytest.raises(OperationalError):
            list(replay(redis, engine, SHARDS, ids))
    assert redis.xlen(KEYS.lane(hook)) == 1
    with reading(engine) as connection:
        assert choose(connection, integration_id=hook).ids == ids


def test_a_stopped_replay_leaves_the_rest(
    redis: Any, engine: Engine, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    ids = [letter(engine, integration_id=hook) for _ in range(5)]
    going = replay(redis, engine, SHARDS, ids)
    next(going)
    del going
    assert replayed(engine) == set(ids[:2])
    assert redis.xlen(KEYS.lane(hook)) == 2


def test_a_rate_is_kept(
    redis: Any, engine: Engine, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("worker.replay.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("worker.replay.time.sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    ids = [letter(engine, integration_id=hook) for _ in range(30)]
    for progress in replay(redis, engine, SHARDS, ids, rate=20):
        assert progress.replayed <= 20 * clock[0] + 2
    assert progress.replayed == 30
    assert clock[0] == pytest.approx(28 / 20, abs=0.2)


def test_malformed_ones_go_to_the_intake_as_they_are(redis: Any, engine: Engine) -> None:
    known = json.dumps({"project_id": PROJECT}).encode()
    ids = [letter(engine, project_id=None, body=body) for body in (known, b"\xff")]
    list(replay(redis, engine, SHARDS, ids, force=True))
    ((_, first),) = redis.xrange(KEYS.intake)
    ((_, second),) = redis.xrange(Keys(shard_of("", SHARDS)).intake)
    assert (first, second) == ({b"event": known}, {b"event": b"\xff"})
    assert replayed(engine) == set(ids)


def test_a_full_store_takes_none(redis: Any, engine: Engine, hook: str) -> None:
    ids = [letter(engine, integration_id=hook)]
    redis.config_set("maxmemory", redis.info("memory")["used_memory"])
    with pytest.raises(IntakeFull):
        list(replay(redis, engine, SHARDS, ids))
    assert replayed(engine) == set()


@pytest.mark.processes
def test_replayed_letters_are_delivered_by_the_owner_and_by_the_next_one(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        hook = stack.integration()
        worker = stack.worker()
        stack.fault("fail", slug="webhooks", status=413)
        sent = {event["id"] for event in events(10, project=PROJECT)}
        stack.publish(events(10, project=PROJECT))
        eventually(lambda: stack.recorded(hook) == {"rejected": 10}, why="all are rejected")
        stack.no_faults()
        with reading(stack.engine) as connection:
            ids = choose(connection, integration_id=hook).ids
        assert len(ids) == 10

        list(replay(stack.redis, stack.engine, stack.settings.shards, ids[:5]))
        eventually(lambda: len(stack.taken()) == 5, why="its owner notices")
        assert worker.process is not None
        worker.process.terminate()
        worker.process.wait()
        list(replay(stack.redis, stack.engine, stack.settings.shards, ids[5:]))
        stack.worker()
        eventually(lambda: len(stack.taken()) == 10, why="the next owner finds the rest")
        ended = {"rejected": 10, "delivered": 10}
        eventually(lambda: stack.recorded(hook) == ended, why="all are recorded")
        assert stack.taken() == dict.fromkeys(sent, 1)
        (line,) = stack.balance().lines
        assert (line.accepted, line.waiting) == (20, 0)
        assert line.ended == ended
        stack.publish(events(5, seed=2, project=PROJECT))
        eventually(lambda: len(stack.taken()) == 15, why="the lane is clear again")
