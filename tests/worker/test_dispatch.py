"""How many requests a pipeline may have: one as a probe, then a ramp, a share, its own limit."""

import asyncio
import logging
import math
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from providers.kit import Limits, Retry
from tests.worker.test_pipeline import delivery_of
from worker import incidents, lane
from worker.clock import StoreClock
from worker.dispatch import LAG_MS, PATIENCE_SECONDS, Dispatcher
from worker.pipeline import Landed, Pipeline
from worker.policy import policy_of
from worker.settings import load_settings
from worker.shard import Shard
from worker.state import Keys, fares_of
from worker.suspension import Health, Round

TAKEN = Round(delivered=1)


@pytest.fixture
def dispatcher(monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    nothing: Any = SimpleNamespace(usable=False)
    made = Dispatcher(load_settings({}), nothing, nothing, nothing, StoreClock())
    monkeypatch.setattr(made, "pump", lambda _pipeline: None)
    monkeypatch.setattr(made, "pump_soon", lambda _pipeline: None)
    monkeypatch.setattr(made.rounds, "_fares_well", lambda *_: None)
    return made


def pipeline(concurrency: int = 16, waiting: int = 0) -> Pipeline:
    limits = Limits(concurrency=concurrency)
    integration: Any = SimpleNamespace(id="c9VdLs3H", limits=limits, ordered=True, policy=None)
    made = Pipeline(integration, Shard(Keys(0)))
    made.lane_len = waiting
    return made


def test_what_waited_goes_at_a_ramp_up_to_the_limit(dispatcher: Dispatcher) -> None:
    held = pipeline(concurrency=10, waiting=1_000)
    allowed = [dispatcher._allowed(held)]
    for _ in range(5):
        dispatcher.rounds.went_well(held, TAKEN)
        allowed.append(dispatcher._allowed(held))
    assert allowed == [1, 2, 4, 8, 10, 10]


def test_a_probe_goes_alone(dispatcher: Dispatcher) -> None:
    probed = pipeline()
    probed.probing, probed.ramp = True, 8
    assert dispatcher._allowed(probed) == 1


def test_fresh_events_of_a_pipeline_that_is_well_need_no_ramp(dispatcher: Dispatcher) -> None:
    assert dispatcher._allowed(pipeline(concurrency=10)) == 10


def test_among_others_each_has_a_share_and_one_is_left_for_the_next(
    dispatcher: Dispatcher,
) -> None:
    active = [pipeline(concurrency=1_000) for _ in range(63)]
    dispatcher._active.update(active)
    assert dispatcher._allowed(active[0]) == dispatcher.settings.window // 64


def test_an_event_comes_with_the_configuration_it_was_routed_by(dispatcher: Dispatcher) -> None:
    shard, same = Shard(Keys(0)), {"id": "c9VdLs3H", "on_probation": False}
    paused: Any = SimpleNamespace(active=0, epoch=1, **same)
    active: Any = SimpleNamespace(active=1, epoch=2, **same)
    before = dispatcher.pipeline_of(shard, paused)
    assert dispatcher.pipeline_of(shard, active) is before
    assert before.integration is active, "it would be skipped as one that is paused"


@pytest.mark.parametrize("due", [0, 14_400_000])
def test_what_backs_off_is_tried_at_once_when_an_operator_touches_it(
    dispatcher: Dispatcher, due: int
) -> None:
    same = {"id": "c9VdLs3H", "active": 1, "epoch": 1, "on_probation": False}
    before: Any = SimpleNamespace(updated_at=1, **same)
    touched: Any = SimpleNamespace(updated_at=2, **same)
    shard = Shard(Keys(0))
    waits = dispatcher.pipeline_of(shard, before)
    waits.lane_len, waits.due, waits.health = 5, due, Health(failures=9)
    dispatcher.pipeline_of(shard, touched)
    assert (waits.due, waits.probing, waits.health.failures) == (0, bool(due), 9)
    assert [command[0] for command in shard.commands] == ["ZADD"] * bool(due), "others know it, too"


def test_who_must_wait_has_no_share(dispatcher: Dispatcher) -> None:
    waits = failed(0)
    waits.lane_len, waits.due = 1, dispatcher.clock.now_ms() + 60_000
    waits.closed = False
    dispatcher._active.add(waits)
    Dispatcher.pump(dispatcher, waits)
    assert not dispatcher._active


def test_what_waits_is_not_sent_with_settings_that_will_not_do(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody opens them, say, since the service was started again without their key."""
    suspended: list[Any] = []
    monkeypatch.setattr(dispatcher.rounds, "suspend", lambda *why: suspended.append(why))
    waits = failed(0)
    waits.lane_len, waits.closed = 1, False
    waits.integration.fault = "no key opens its settings"  # type: ignore[misc]
    Dispatcher.pump(dispatcher, waits)
    assert suspended == [(waits, "settings", "no key opens its settings")]


def failed(number: int) -> Pipeline:
    integration: Any = SimpleNamespace(
        id=f"i{number}", project_id=f"p{number}", slug="webhooks", active=1, epoch=0, ordered=True,
        limits=Limits(), policy=policy_of(load_settings({}), None), fault="",
    )  # fmt: skip
    made = Pipeline(integration, Shard(Keys(0)))
    made.closed, made.round = True, Round(failed=True)
    return made


async def test_rounds_that_fail_together_share_a_look_at_the_others(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[list[str]] = []

    async def note(_redis: Any, _slug: str, fares: dict[str, Any], _now: float) -> list[Any]:
        looks.append(list(fares))
        return list(fares.values())

    monkeypatch.setattr(dispatcher.rounds, "state", SimpleNamespace(redis=None))
    monkeypatch.setattr(incidents, "note", note)
    first, *others = [failed(number) for number in range(4)]
    dispatcher.rounds._end_round(first)
    await asyncio.wait(dispatcher.jobs._tasks)
    assert first.health.failures == 1
    for pipeline in others:
        dispatcher.rounds._end_round(pipeline)
    await asyncio.wait(dispatcher.jobs._tasks)
    assert looks == [["i0"], ["i1", "i2", "i3"]]
    assert all(pipeline.health.failures == 1 and pipeline.due for pipeline in others)


def test_what_is_rejected_after_the_last_one_suspends_no_second_time(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was in flight with that one, and would be logged again; only letters are counted."""
    monkeypatch.setattr(dispatcher.rounds, "_tell_if_nearing", lambda *_: None)
    rejecting = failed(1)
    rejecting.integration.mask = str  # type: ignore[misc,assignment]
    with caplog.at_level(logging.WARNING):
        for _ in range(25):
            dispatcher.rounds.went_well(rejecting, Round(rejected=1))
    (told,) = caplog.messages
    assert told.endswith("20 events rejected in a row, none delivered between")
    assert rejecting.held
    assert not rejecting.shard.page.failures


async def test_a_round_ends_though_how_others_fare_cannot_be_read(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = FakeAsyncRedis()
    await redis.hset(fares_of("webhooks"), "other", "spoilt")
    monkeypatch.setattr(dispatcher.rounds, "state", SimpleNamespace(redis=redis))
    pipeline = failed(1)
    dispatcher.rounds._end_round(pipeline)
    await asyncio.wait(dispatcher.jobs._tasks)
    assert not pipeline.closed
    assert pipeline.health.failures == 1
    await redis.aclose()


async def test_a_pipeline_that_fails_us_does_not_keep_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nothing: Any = SimpleNamespace()
    made = Dispatcher(load_settings({}), nothing, nothing, nothing, StoreClock())
    broken, well = pipeline(), pipeline()
    pumped = asyncio.get_running_loop().create_future()

    def pump(one: Pipeline) -> None:
        if one is broken:
            raise ZeroDivisionError
        pumped.set_result(one)

    monkeypatch.setattr(made, "pump", pump)
    made.pump_soon(broken)
    made.pump_soon(well)
    assert await asyncio.wait_for(pumped, 30) is well
    assert "A step of the delivery loop failed" in caplog.text


@pytest.mark.parametrize(("throttled", "left"), [(True, 1), (False, 0)])
def test_an_event_that_is_to_slow_down_is_never_given_up(
    dispatcher: Dispatcher, throttled: bool, left: int
) -> None:
    slowed = failed(0)
    slowed.lane_len = 1
    answer = Landed(Retry("too_many", "slow down", throttled=throttled), alone=True)
    delivery = delivery_of(slowed, "ann", lane_id=b"1-0", landed=answer)
    for _ in range(slowed.integration.policy.event_attempts):
        dispatcher.rounds._wait_alone(delivery)
    assert (slowed.lane_len, bool(delivery.due)) == (left, True)


def queued(since: float, limits: Limits = Limits()) -> Pipeline:  # noqa: B008  frozen
    integration: Any = SimpleNamespace(
        id="c9VdLs3H", active=1, epoch=0, ordered=False, through_lane=False, limits=limits
    )
    made = Pipeline(integration, Shard(Keys(0)))
    made.push(delivery_of(made, since=since))
    return made


@pytest.mark.parametrize(
    ("room", "waited", "lag_ms", "left"),
    [
        (1, 2 * PATIENCE_SECONDS, 0, 0),
        (1, 0, 2 * LAG_MS, 0),  # others' events may be among those that are read late
        (1, 0, 0, 1),  # it gets on
        (2, 2 * PATIENCE_SECONDS, 2 * LAG_MS, 1),  # and keeps nobody from being read
    ],
)
def test_where_memory_is_full_what_keeps_its_shard_from_being_read_goes_to_its_lane(
    dispatcher: Dispatcher, room: int, waited: float, lag_ms: int, left: int
) -> None:
    slow = queued(time.monotonic() - waited)
    slow.shard.read_to = b"%d-0" % (dispatcher.clock.now_ms() - lag_ms)
    dispatcher._active.add(slow)
    dispatcher.room = room
    dispatcher.relieve()
    assert (slow.size, slow.shard.queued, slow.lane_len) == (left, left, 1 - left)


def test_where_memory_is_full_a_batch_waits_for_no_more_events(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None are read: else a hundred pipelines would hold memory until their batches are due."""
    pumped: list[Pipeline] = []
    monkeypatch.setattr(dispatcher, "pump", pumped.append)
    gathers = queued(time.monotonic(), Limits(events=100, linger=timedelta(hours=1)))
    dispatcher._active.add(gathers)
    assert dispatcher._lingers(gathers)
    dispatcher.hurry()
    assert (pumped, dispatcher._lingers(gathers)) == ([gathers], False)
    dispatcher.room = math.inf
    assert dispatcher._lingers(gathers)


async def test_a_lane_in_which_all_wait_keeps_no_fresh_event(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that was gathering in memory would never be sent: its timer is over."""
    pumped: list[Pipeline] = []

    async def read(_redis: Any, pipeline: Pipeline, *_: Any) -> None:
        pipeline.exhausted = True

    monkeypatch.setattr(lane, "read", read)
    monkeypatch.setattr(dispatcher, "pump", pumped.append)
    monkeypatch.setattr(dispatcher, "state", SimpleNamespace(redis=None))
    gathers = queued(time.monotonic())
    await dispatcher._read(gathers)
    assert pumped == [gathers]
    gathers.empty()
    await dispatcher._read(gathers)
    assert pumped == [gathers]


@pytest.mark.parametrize(
    ("status", "note", "kept"),
    [(None, "", "dollars"), (None, "new", "new"), (503, "", ""), (503, "new", "new")],
)
def test_a_note_is_kept_until_another_answer_comes(
    dispatcher: Dispatcher, status: int | None, note: str, kept: str
) -> None:
    one = pipeline()
    delivery = delivery_of(one, "ann", lane_id=b"1-0")
    delivery.note = "dollars"
    dispatcher.rounds.stumbled(one, delivery, Landed(Retry("busy", note=note), status=status))
    assert delivery.note == kept
