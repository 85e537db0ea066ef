"""The sums of `onward plan`."""

from dataclasses import replace

import pytest

from worker.settings import WorkerSettings
from worker.sizing import EVENT_BYTES, LANE_RATIO, ROW_BYTES, WINDOW, Load, plan

LOAD = Load(
    events_per_second=5000, integrations_per_project=5, peak=3, deliveries_per_core=5000,
    held_share=0.01, hold_seconds=72 * 3600,
)  # fmt: skip


def test_processes_carry_the_peak_and_are_not_busy_all_the_time() -> None:
    needed = plan(LOAD)
    assert needed.deliveries_per_second == 25_000
    assert needed.peak_deliveries_per_second == 75_000
    assert needed.processes == 25  # 75,000 / 5,000 / 0.6


def test_batches_need_fewer_processes() -> None:
    batched = replace(LOAD, batched_share=1.0, batched_per_core=50_000)
    assert plan(batched).processes == 3


def test_slow_upstreams_need_processes_for_their_requests_in_flight() -> None:
    slow = replace(LOAD, events_per_second=100, answer_seconds=2.0)
    needed = plan(slow)
    assert needed.requests_in_flight == 3000  # 1,500 a second at the peak
    assert needed.processes == 7  # 3,000 / 768 / 0.6
    assert plan(replace(slow, batched_share=1.0)).requests_in_flight == 30
    assert WorkerSettings.model_fields["window"].default == WINDOW


@pytest.mark.parametrize(("rate", "shards"), [(1, 32), (5000, 128), (50_000, 1024)])
def test_shards_are_a_power_of_two_with_room_for_more_processes(rate: float, shards: int) -> None:
    assert plan(replace(LOAD, events_per_second=rate)).shards == shards


def test_what_is_held_is_the_share_of_the_pipelines_that_are_down() -> None:
    held = plan(LOAD).redis_parts["held"]
    assert held == round(250 * 72 * 3600 * EVENT_BYTES * LANE_RATIO)


def test_held_events_are_bounded_where_the_integrations_are_counted() -> None:
    bounded = plan(replace(LOAD, integrations=1000, hold_events=100_000)).redis_parts["held"]
    assert bounded == round(10 * 100_000 * EVENT_BYTES * LANE_RATIO)


def test_redis_has_room_above_what_it_holds_for_publishing_stops_before_it_is_full() -> None:
    needed = plan(LOAD)
    assert needed.redis_bytes == sum(needed.redis_parts.values())
    assert needed.redis_maxmemory == round(needed.redis_bytes / 0.7)


def test_a_row_for_each_delivery_and_as_many_days_as_are_kept() -> None:
    needed = plan(LOAD)
    assert needed.rows_per_day == 25_000 * 86_400
    assert needed.database_bytes == 30 * 25_000 * 86_400 * ROW_BYTES
