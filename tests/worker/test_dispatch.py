"""How many requests a pipeline may have: one as a probe, then a ramp, a share, its own limit."""

from types import SimpleNamespace
from typing import Any

import pytest

from providers.kit import Limits
from worker.clock import StoreClock
from worker.dispatch import Dispatcher
from worker.pipeline import Pipeline
from worker.settings import load_settings
from worker.shard import Shard
from worker.state import Keys
from worker.suspension import Round

TAKEN = Round(delivered=1)


@pytest.fixture
def dispatcher(monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    nothing: Any = SimpleNamespace()
    made = Dispatcher(load_settings({}), nothing, nothing, nothing, StoreClock())
    monkeypatch.setattr(made, "pump", lambda _pipeline: None)
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
