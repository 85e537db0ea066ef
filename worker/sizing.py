"""How much of everything a load needs: sums over measured constants. Pure.

The constants are what `python -m tests.bench single batch sizes record` found on the slowest
machine it ran on; run it on yours, and give `onward plan` what it finds.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

DELIVERIES_PER_CORE = 6_000  # a second, one request an event
EVENTS_PER_CORE = 17_000  # a second, 100 events a request
BATCH = 100  # events a request
WINDOW = 768  # requests in flight in one process, if ONWARD_WINDOW is not set
EVENT_BYTES = 1_500  # JSON of a usual event
INTAKE_RATIO = 1.05  # Redis bytes by an event's JSON, while it is unread
LANE_RATIO = 1.05  # the same of a delivery that waits
JOURNAL_BYTES = 105  # a delivery that is not recorded yet
DEDUPE_BYTES = 75  # an event id that is remembered
ROW_BYTES = 360  # a recorded delivery in PostgreSQL, its indexes included
ROWS_PER_CORE = 100_000  # a second, into PostgreSQL

# of a core, and of its requests in flight, at the peak: the rest is for bursts, and for taking over
# from who died
BUSY = 0.6
FULLEST = 0.7  # of Redis' memory: publishing stops there
SHARDS_PER_PROCESS = 4  # so that shares come out even, and more can be started later
FEWEST_SHARDS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is to be carried. Rates are averages a second; `peak` times that comes at the worst."""

    events_per_second: float
    integrations_per_project: float = 1.0
    hold_seconds: float = 72 * 3600
    hold_events: int = 100_000  # for one integration
    held_share: float = 0.01  # of deliveries, to pipelines that are suspended or backing off
    integrations: int = 0  # in all; 0: not known, and `hold_events` bounds nothing
    batched_share: float = 0.0  # of deliveries, to providers that take 100 a request
    peak: float = 3.0
    answer_seconds: float = 0.1  # that upstreams take, on average
    event_bytes: int = EVENT_BYTES
    outage_seconds: float = 3600  # without workers, or without the database: Redis keeps it all
    dedupe_seconds: float = 600
    days: float = 30  # that the record is kept
    deliveries_per_core: float = DELIVERIES_PER_CORE
    batched_per_core: float = EVENTS_PER_CORE


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What that needs. Bytes are bytes; a process is a worker's child that drains, one a core."""

    deliveries_per_second: float
    peak_deliveries_per_second: float
    requests_in_flight: int  # at the peak
    processes: int
    shards: int
    recorder_cores: float
    redis_bytes: int
    redis_maxmemory: int
    redis_parts: dict[str, int]
    rows_per_day: int
    rows: int
    database_bytes_per_day: int
    database_bytes: int


def plan(load: Load) -> Plan:
    """Return what `load` needs."""
    deliveries = load.events_per_second * load.integrations_per_project
    peak = deliveries * load.peak
    cores = peak * (
        (1 - load.batched_share) / load.deliveries_per_core
        + load.batched_share / load.batched_per_core
    )
    requests = peak * (1 - load.batched_share + load.batched_share / BATCH)
    in_flight = requests * load.answer_seconds
    processes = max(math.ceil(cores / BUSY), math.ceil(in_flight / WINDOW / BUSY), 1)
    parts = _redis(load, deliveries)
    rows = deliveries * 86_400
    return Plan(
        deliveries_per_second=round(deliveries, 1),
        peak_deliveries_per_second=round(peak, 1),
        requests_in_flight=math.ceil(in_flight),
        processes=processes,
        shards=max(_power_of_two(processes * SHARDS_PER_PROCESS), FEWEST_SHARDS),
        recorder_cores=round(peak / ROWS_PER_CORE, 2),
        redis_bytes=sum(parts.values()),
        redis_maxmemory=round(sum(parts.values()) / FULLEST),
        redis_parts=parts,
        rows_per_day=round(rows),
        rows=round(rows * load.days),
        database_bytes_per_day=round(rows * ROW_BYTES),
        database_bytes=round(rows * ROW_BYTES * load.days),
    )


def _redis(load: Load, deliveries: float) -> dict[str, int]:
    """Return the bytes of Redis at the worst: what is held, and an outage of the rest on top."""
    held = deliveries * load.held_share * load.hold_seconds
    if load.integrations:
        suspended = math.ceil(load.integrations * load.held_share)
        held = min(held, suspended * load.hold_events)
    events = load.events_per_second * load.outage_seconds
    ids = load.events_per_second * 2 * load.dedupe_seconds
    return {
        "held": round(held * load.event_bytes * LANE_RATIO),
        "intake": round(events * load.event_bytes * INTAKE_RATIO),
        "journal": round(deliveries * load.outage_seconds * JOURNAL_BYTES),
        "event_ids": round(ids * DEDUPE_BYTES),
    }


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def told(load: Load) -> dict[str, Any]:
    """Return load and plan, for programs."""
    return {"load": asdict(load), "plan": asdict(plan(load))}
