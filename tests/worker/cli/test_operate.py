"""`status`, `why`, `audit` and `deadletters replay`, as an operator types them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
from redis import Redis
from sqlalchemy import Engine, insert, update

from tests.worker.cli.run import Ran, run
from tests.worker.store.rows import record_rows
from worker.journal import PAGE, Page, Row, pack
from worker.lane import Tried
from worker.settings import load_settings
from worker.state import OWNERS, Keys, shard_of
from worker.store import integrations, projects
from worker.store.database import make_engine, now
from worker.store.models import DeadLetter, Delivery, Integration
from worker.store.schema import upgrade

PROJECT = "prj_lumen"
KEYS = Keys(shard_of(PROJECT, 32))
EVENT = {"id": "evt-1", "project_id": PROJECT, "platform": "iOS"}
Command = Callable[..., Ran]


@pytest.fixture
def onward(redis: Redis, capsys: pytest.CaptureFixture[str]) -> Command:
    upgrade(load_settings().database_url)
    return lambda *arguments: run(capsys, *arguments)


@pytest.fixture
def engine(onward: Command) -> Engine:
    made = make_engine(load_settings().database_url)
    with made.begin() as connection:
        projects.create_project(connection, "Lumen", PROJECT)
    return made


@pytest.fixture
def make(engine: Engine) -> Callable[..., str]:
    """Make an integration in a state, an hour old."""

    def made(active: int = 1, platform: str = "iOS", project: str = PROJECT) -> str:
        with engine.begin() as connection:
            one = integrations.create_integration(
                connection, project, title="Hook", slug="webhooks", platform=platform, actor="test"
            )
            if active:
                integrations.set_status(connection, one.id, 1, "test")
            if active == 2:
                words = {"message": "401 from Webhooks: no", "reason": "unauthorized"}
                integrations.suspend(connection, one.id, 0, **words, at=now())
            table = Integration.table()
            connection.execute(
                update(table).where(table.c.id == one.id).values(created_at=now() - HOUR)
            )
        return one.id

    return made


HOUR = timedelta(hours=1)
IN_2100_MS = 4_102_444_800_000


def recorded(engine: Engine, integration: str, outcome: str = "delivered", **fields: Any) -> None:
    values = {
        "integration_id": integration,
        "project_id": PROJECT,
        "event_id": "evt-1",
        "event_name": "trial_started",
        "outcome": outcome,
        "accepted_at": now(),
        "finished_at": now(),
    }
    with engine.begin() as connection:
        connection.execute(insert(Delivery).values(values | fields))


def fails(engine: Engine, integration: str) -> None:
    table = Integration.table()
    with engine.begin() as connection:
        connection.execute(
            update(table)
            .where(table.c.id == integration)
            .values(delivery_error_count=3, first_error_at=now(), last_error_message="503 busy")
        )


def letter(engine: Engine, **fields: Any) -> int:
    values = {"project_id": PROJECT, "reason": "bad_request", "body": b"{}", "created_at": now()}
    with engine.begin() as connection:
        made = insert(DeadLetter).values(values | fields).returning(DeadLetter.id)
        return int(connection.execute(made).scalar_one())


def waits(redis: Redis, integration: str, event: dict[str, Any] = EVENT) -> None:
    redis.xadd(KEYS.lane(integration), {"e": json.dumps(event), "t": 1_767_225_600_000})
    redis.zadd(KEYS.due, {integration: 1_767_225_660_000})
    redis.hincrby(KEYS.tally, f"{integration}|accepted", 1)


# --- status -------------------------------------------------------------------------------------


def test_status_names_the_suspended_first_and_what_to_do(
    onward: Command, redis: Redis, make: Callable[..., str]
) -> None:
    make()
    suspended = make(2)
    waits(redis, suspended)
    redis.zadd(OWNERS, {"vm:1:a": 9_999_999_999_999, "vm:2:gone": 1})
    redis.set(KEYS.lease, "vm:1:a")
    told = onward("status", "--json").json
    assert told["workers"] == ["vm:1:a"]
    assert told["shards"] == {"led": 1, "of": 32}
    assert told["backlog"] == {"intake": 0, "journal": 0, "lanes": 1}
    assert told["integrations"] == {"active": 1, "suspended": 1, "paused": 0}
    (trouble,) = told["suspended"]
    assert (trouble["integration"], trouble["waiting"]) == (suspended, 1)
    assert trouble["oldest_since"] == "2026-01-01T00:00:00Z"
    assert trouble["message"] == "401 from Webhooks: no"
    assert f"onward integrations activate {suspended}" in trouble["what_to_do"]
    assert "{" not in trouble["what_to_do"]
    text = onward("status").out
    assert text.index("401 from Webhooks: no") < text.index("1 active, 1 suspended")
    assert suspended in text


def test_status_says_when_nobody_works_and_who_fails(
    onward: Command, engine: Engine, make: Callable[..., str], redis: Redis
) -> None:
    failing = make()
    fails(engine, failing)
    for number in range(6):  # a provider's incident
        value = f"1|{redis.time()[0] * 1000}|prj_{number}"
        redis.hset("onward:fares:webhooks", f"integration{number}", value)
    text = onward("status").out
    assert "NO WORKER" in text
    assert "503 busy" in text
    assert "INCIDENT  webhooks: 6 of 6 pipelines fail, in 6 projects" in text
    told = onward("status", "--json").json
    assert told["failing"][0]["integration"] == failing
    assert told["incidents"]["webhooks"] == {"failing": 6, "of": 6, "projects": 6}


def test_status_tells_the_next_attempt_of_what_waits_or_that_it_is_now(
    onward: Command, engine: Engine, make: Callable[..., str], redis: Redis
) -> None:
    failing = make()
    fails(engine, failing)

    def told() -> tuple[str | None, bool, bool]:
        (trouble,) = onward("status", "--json").json["failing"]
        text = onward("status").out
        return trouble["next_attempt_at"], "01-01 00:00:00Z" in text, " now " in text

    redis.zadd(KEYS.due, {failing: IN_2100_MS})
    assert told() == (None, False, False), "nothing waits for it"
    waits(redis, failing)
    assert told() == (None, False, True)
    redis.zadd(KEYS.due, {failing: IN_2100_MS})
    assert told() == ("2100-01-01T00:00:00Z", True, False)


# --- why ----------------------------------------------------------------------------------------


def test_why_tells_where_an_event_went_and_why_not_elsewhere(
    onward: Command, engine: Engine, make: Callable[..., str], redis: Redis
) -> None:
    went, held, android, paused = make(), make(2), make(platform="Android"), make(0)
    with engine.begin() as connection:
        projects.create_project(connection, "Other", "prj_other")
    foreign = make(project="prj_other")
    recorded(engine, went)
    number = letter(engine, integration_id=went, event_id="evt-1")
    waits(redis, held)
    with engine.begin() as connection:
        late = integrations.create_integration(
            connection, PROJECT, title="late", slug="webhooks", platform="iOS", actor="test"
        ).id
    told = onward("why", "evt-1", "--json").json
    assert [one["integration_id"] for one in told["deliveries"]] == [went]
    assert [one["id"] for one in told["dead_letters"]] == [number]
    (place,) = told["waiting"]
    assert (place["integration_id"], place["where"]) == (held, "lane")
    assert "suspended" in place["why"]
    assert told["absent"].keys() == {android, paused, late}
    assert "iOS, and this integration takes Android" in told["absent"][android]
    assert "after the event came" in told["absent"][late]
    assert foreign not in told["absent"]
    text = onward("why", "evt-1").out
    for part in (went, "held", f"deadletters show {number}", "takes Android"):
        assert part in text


def test_why_tells_what_an_event_waits_for(
    onward: Command, make: Callable[..., str], redis: Redis
) -> None:
    one = make()
    waits(redis, one)
    assert "sent in its turn" in onward("why", "evt-1").out
    redis.zadd(KEYS.due, {one: 4_102_444_800_000})
    assert "its pipeline waits until 2100-01-01 00:00:00Z" in onward("why", "evt-1").out
    ((lane_id, _),) = cast("Any", redis.xrange(KEYS.lane(one)))
    tried = msgspec.msgpack.encode(Tried(attempts=3, due=4_102_448_400_000))
    redis.hset(KEYS.tries(one), lane_id, tried)
    told = onward("why", "evt-1").out
    assert "after 3 attempts it waits by itself until 2100-01-01 01:00:00Z" in told


def test_why_knows_a_malformed_event(
    onward: Command, engine: Engine, make: Callable[..., str]
) -> None:
    hook = make()
    number = letter(engine, reason="malformed", event_id="evt-3")
    text = onward("why", "evt-3").out
    assert f"Dead letter {number}: malformed" in text
    assert onward("why", "evt-3", hook, "--json").json["absent"] == {
        hook: "it reached no integration: see its dead letter"
    }


def test_why_knows_who_was_paused_when_the_event_came(
    onward: Command, engine: Engine, make: Callable[..., str]
) -> None:
    went, since_activated, since_paused = make(), make(), make(0)
    recorded(engine, went, accepted_at=datetime.now(UTC) - HOUR / 2)
    with engine.begin() as connection:
        integrations.set_status(connection, since_paused, 1, "test")
    told = onward("why", "evt-1", "--json").json["absent"]
    assert "paused when the event came" in told[since_activated]
    assert "paused when the event came" in told[since_paused]
    only = onward("why", "evt-1", since_paused, "--json")
    assert only.json["deliveries"] == []
    assert only.json["absent"].keys() == {since_paused}


def test_why_tells_until_when_a_pipeline_waits_and_of_no_moment_that_has_passed(
    onward: Command, make: Callable[..., str], redis: Redis
) -> None:
    hook = make()
    waits(redis, hook)
    assert "until" not in onward("why", "evt-1").out
    redis.zadd(KEYS.due, {hook: IN_2100_MS})
    assert "its pipeline waits until 2100-01-01 00:00:00Z" in onward("why", "evt-1").out


def test_why_looks_into_the_intake_and_the_journal(
    onward: Command, make: Callable[..., str], redis: Redis
) -> None:
    one = make()
    redis.xadd(KEYS.intake, {"event": json.dumps(EVENT)})
    redis.xadd(KEYS.intake, {"event": b'{"id": "evt-1", \xff'})
    redis.xadd(KEYS.intake, {"event": json.dumps({**EVENT, "id": "evt-10"})})
    told = onward("why", "evt-1", "--json").json
    assert [place["where"] for place in told["waiting"]] == ["intake"]
    assert "waits in the intake" in told["absent"][one]
    redis.delete(KEYS.intake)
    end = Row(
        one, PROJECT, "evt-1", "trial_started", "skipped", "off", "paused", None, 0, 1, 2, "1-1"
    )  # fmt: skip
    redis.xadd(KEYS.journal, {PAGE: pack(Page(rows=[end]))})
    told = onward("why", "evt-1", "--json").json
    assert [row["outcome"] for row in told["not_yet_recorded"]] == ["skipped"]
    assert told["absent"] == {}


def test_why_of_an_event_without_trace_names_what_leaves_none(
    onward: Command, engine: Engine, redis: Redis
) -> None:
    redis.hset(KEYS.tally, "*|unrouted", 3)
    ran = onward("why", "evt-1")
    assert ran.code == 1
    assert "3 events had no active integration" in ran.out
    assert onward("why", "evt-1", "Zk40QwTe").err.startswith("onward: No integration")


# --- audit --------------------------------------------------------------------------------------


def test_audit_balances_or_fails_with_what_is_off(
    onward: Command, make: Callable[..., str], redis: Redis
) -> None:
    one = make()
    waits(redis, one)
    redis.xadd(KEYS.journal, {PAGE: pack(Page(accepted={one: 1}))})
    good = onward("audit", "--json")
    assert (good.code, good.json["unaccounted"]) == (0, 0)
    (line,) = good.json["integrations"]
    assert (line["title"], line["slug"], line["accepted"]) == ("Hook", "webhooks", 1)
    assert "Every event is accounted for." in onward("audit").out
    redis.hincrby(KEYS.tally, f"{one}|accepted", 4)
    redis.xadd(KEYS.journal, {PAGE: pack(Page(accepted={one: 4}))})
    redis.hset(KEYS.tally, "gone|delivered", 1)
    bad = onward("audit")
    assert bad.code == 1
    assert f"{one} (Hook): 4 accepted and nowhere" in bad.out
    assert "gone (unknown integration): 1 counted and not recorded" in bad.out
    assert onward("audit", "--json").json["unaccounted"] == 5


def test_audit_tells_what_is_gone_when_redis_was_emptied(
    onward: Command, make: Callable[..., str], engine: Engine
) -> None:
    one = make()
    tallies = {(one, "accepted"): 5, (one, "delivered"): 3}
    record_rows(engine, 0, None, "1-1", tallies=tallies)
    told = onward("audit")
    assert told.code == 1
    assert f"{one} (Hook): 2 accepted and nowhere" in told.out
    assert f"{one} (Hook): Redis was emptied since; it forgot 5" in told.out


# --- deadletters replay -------------------------------------------------------------------------


def test_replay_shows_first_and_asks(
    onward: Command, engine: Engine, make: Callable[..., str], redis: Redis
) -> None:
    one = make()
    number = letter(engine, integration_id=one)
    letter(engine, integration_id=one, reason="too_large")
    letter(engine, reason="malformed", project_id=None)
    dry = onward("deadletters", "replay", "--all", "--dry-run")
    assert dry.code == 0
    assert "2 to send again" in dry.out
    assert "1 left out: reached no integration" in dry.out
    assert onward("deadletters", "replay").code == 2
    unknown = onward("deadletters", "replay", "--id", number, "--id", 10**9, "--yes")
    assert (unknown.code, unknown.out) == (1, ""), "nothing is sent where an id is mistyped"
    assert "No dead letter with one of these ids: see" in unknown.err
    unasked = onward("deadletters", "replay", "--integration", one)
    assert (unasked.code, "--yes" in unasked.err) == (2, True)
    assert not redis.exists(KEYS.lane(one))
    done = onward("deadletters", "replay", "--id", number, "--yes", "--json")
    assert (done.code, done.json["replayed"]) == (0, 1)
    rest = onward("deadletters", "replay", "--reason", "too_large", "--yes")
    assert "1 of 1 sent again" in rest.out
    assert redis.xlen(KEYS.lane(one)) == 2
    again = onward("deadletters", "replay", "--id", number, "--yes")
    assert "1 left out: was replayed before" in again.out
    assert redis.xlen(KEYS.lane(one)) == 2


def test_replay_is_refused_where_nothing_would_come_of_it(
    onward: Command, engine: Engine, make: Callable[..., str]
) -> None:
    paused, suspended = make(0), make(2)
    letter(engine, integration_id=paused)
    letter(engine, integration_id=suspended)
    ran = onward("deadletters", "replay", "--integration", paused, "--yes")
    assert (ran.code, "is paused" in ran.err) == (1, True)
    assert onward("deadletters", "replay", "--integration", "Zk40QwTe", "--yes").code == 1
    held = onward("deadletters", "replay", "--integration", suspended, "--yes")
    assert (held.code, "is held until it is activated" in held.err) == (0, True)
