"""Every metric, in one place. Labels are slugs and short words, never an id.

Under several processes the values are files in `PROMETHEUS_MULTIPROC_DIR`, added up when scraped.
"""

import os
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

from providers.kit import Delivered, Partial, Skipped, Verdict

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


@cache
def _attempts(slug: str, outcome: str, reason: str) -> Any:
    return ATTEMPTS.labels(slug, outcome, reason)


@cache
def _outcomes(slug: str, outcome: str, reason: str) -> Any:
    return OUTCOMES.labels(slug, outcome, reason)


@cache
def _seconds(slug: str) -> Any:
    return ATTEMPT_SECONDS.labels(slug)


@cache
def _lag(slug: str) -> Any:
    return LAG_SECONDS.labels(slug)


@cache
def _events(kind: str) -> Any:
    return EVENTS.labels(kind)


def attempt(slug: str, verdict: Verdict, seconds: float) -> None:
    """Count a request and its time; a partial answer counts as `partial`."""
    if isinstance(verdict, Partial):
        _attempts(slug, "partial", "partial").inc()
    else:
        reason = getattr(verdict, "reason", "ok")
        _attempts(slug, type(verdict).__name__.lower(), reason).inc()
    _seconds(slug).observe(seconds)


def outcome(slug: str, landed: Any) -> None:
    """Count a terminal outcome of one event x integration."""
    if not isinstance(landed, Delivered | Skipped) and type(landed).__name__ != "Rejected":
        return
    _outcomes(slug, type(landed).__name__.lower(), getattr(landed, "reason", "ok")).inc()


def ended(slug: str, name: str, reason: str) -> None:
    """Count an end that no upstream gave: expired, or dropped with its integration."""
    _outcomes(slug, name, reason).inc()


def lag(slug: str, seconds: float) -> None:
    """Observe the time from intake to delivered."""
    _lag(slug).observe(seconds)


def event(kind: str, count: int = 1) -> None:
    """Count events read: accepted, malformed, duplicate or unrouted."""
    _events(kind).inc(count)


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
