"""Every metric, in one place. Labels are slugs and short words, never an id.

Under several processes the values are files in `PROMETHEUS_MULTIPROC_DIR`, added up when scraped.
"""

import os
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY as DEFAULT
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    start_http_server,
)

from providers.kit import Delivered, Partial, Verdict

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LAG = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200, 43200, 259200)

ATTEMPTS = Counter(
    "onward_delivery_attempts", "Requests sent, by outcome", ["provider", "outcome", "reason"]
)
ATTEMPT_SECONDS = Histogram(
    "onward_delivery_attempt_seconds", "Time of one request", ["provider"], buckets=SECONDS
)
OUTCOMES = Counter(
    "onward_deliveries", "Events x integrations that came to their end",
    ["provider", "outcome", "reason"],
)  # fmt: skip
LAG_SECONDS = Histogram(
    "onward_delivery_lag_seconds", "From intake to delivered", ["provider"], buckets=LAG
)
EVENTS = Counter("onward_events", "Events read from the intake, by what they were", ["kind"])
SUSPENSIONS = Counter("onward_suspensions", "Pipelines suspended", ["provider", "reason"])
RECORDED = Counter("onward_recorded_rows", "Rows moved from the journal to the database", ["table"])
LEASES = Gauge(
    "onward_shards_held", "Shards whose lease this process holds", multiprocess_mode="livesum"
)
BACKLOG = Gauge(
    "onward_backlog_events", "Events that wait, by where", ["where"],
    multiprocess_mode="livemostrecent",
)  # fmt: skip
BACKLOG_BYTES = Gauge(
    "onward_redis_backlog_bytes",
    "Memory the events' Redis uses",
    multiprocess_mode="livemostrecent",
)
PIPELINES = Gauge(
    "onward_pipelines", "Integrations by state", ["provider", "state"],
    multiprocess_mode="livemostrecent",
)  # fmt: skip
UNACCOUNTED = Gauge(
    "onward_unaccounted_events", "Event x integration that the audit cannot place",
    multiprocess_mode="livemostrecent",
)  # fmt: skip


# What the delivery loop counts is added up here, and published with its commits: a value that is
# shared between processes costs two microseconds a time.
_counted: Counts[tuple[str, ...]] = Counts()
_attempt_seconds: dict[str, list[float]] = {}
_lag_seconds: dict[str, list[float]] = {}


@cache
def _child(kind: str, *labels: str) -> Any:
    return {"attempt": ATTEMPTS, "outcome": OUTCOMES, "event": EVENTS}[kind].labels(*labels)


@cache
def _histogram(metric: Histogram, slug: str) -> Any:
    return metric.labels(slug)


def attempt(slug: str, verdict: Verdict, seconds: float) -> None:
    """Count a request and its time; a partial answer counts as `partial`."""
    if isinstance(verdict, Delivered):
        _counted["attempt", slug, "delivered", "ok"] += 1
    elif isinstance(verdict, Partial):
        _counted["attempt", slug, "partial", "partial"] += 1
    else:
        _counted["attempt", slug, type(verdict).__name__.lower(), verdict.reason] += 1
    _attempt_seconds.setdefault(slug, []).append(seconds)


def ended(slug: str, name: str, reason: str) -> None:
    """Count an event x integration that came to its end."""
    _counted["outcome", slug, name, reason] += 1


def lag(slug: str, seconds: float) -> None:
    """Observe the time from intake to delivered."""
    _lag_seconds.setdefault(slug, []).append(seconds)


def event(kind: str, count: int = 1) -> None:
    """Count events read: accepted, malformed, duplicate or unrouted."""
    _counted["event", kind] += count


def publish() -> None:
    """Show what was counted since the last time."""
    for key, count in _counted.items():
        _child(*key).inc(count)
    _counted.clear()
    for metric, bounds, observed in (
        (ATTEMPT_SECONDS, SECONDS, _attempt_seconds),
        (LAG_SECONDS, LAG, _lag_seconds),
    ):
        for slug, values in observed.items():
            _observe(_histogram(metric, slug), bounds, values)
        observed.clear()


def _observe(child: Any, bounds: Sequence[float], values: list[float]) -> None:
    """Do what `child.observe` does, for many values at once."""
    child._sum.inc(sum(values))  # noqa: SLF001  it has no such method
    for bucket, count in Counts(bisect_left(bounds, value) for value in values).items():
        child._buckets[bucket].inc(count)  # noqa: SLF001  as above


def registry() -> CollectorRegistry:
    """Return what `/metrics` shows: all processes' values where there are several."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return DEFAULT
    collected = CollectorRegistry()
    multiprocess.MultiProcessCollector(collected)  # type: ignore[no-untyped-call]
    return collected


def exposition() -> bytes:
    """Return the metrics as Prometheus reads them."""
    return generate_latest(registry())


def prepare(folder: Path) -> None:
    """Make `folder` the place of the values; call before any process forks."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def serve(port: int) -> None:
    """Serve `/metrics` on loopback at `port`."""
    start_http_server(port, addr="127.0.0.1", registry=registry())


def process_died(pid: int) -> None:
    """Forget a dead process's gauges."""
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
