"""Every metric, in one place. Labels are slugs and short words, never an id.

Under several processes the values are files in `PROMETHEUS_MULTIPROC_DIR`, added up when scraped:
it must be set before this is imported.
"""

import os
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
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
from prometheus_client.mmap_dict import MmapedDict

from providers.kit import Delivered, Partial, Verdict

NOBODY = "none"  # the provider of an event that could not be read
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
DEAD_LETTERS = Counter(
    "onward_dead_letters", "Dead letters; provider `none`: malformed events", ["provider"]
)
SUSPENSIONS = Counter("onward_suspensions", "Pipelines suspended", ["provider", "reason"])
RECORDED = Counter("onward_recorded_rows", "Rows moved from the journal to the database", ["table"])
LEASES = Gauge(
    "onward_shards_held", "Shards this worker's processes drain", multiprocess_mode="livesum"
)


def _gauge(name: str, help_: str, *labels: str) -> Gauge:
    """Return a gauge of the whole service: every worker shows all, the newest value of its own."""
    return Gauge(name, help_, labels, multiprocess_mode="livemostrecent")


BACKLOG = _gauge("onward_backlog_events", "Events that wait, by where", "where")
BACKLOG_BYTES = _gauge(
    "onward_redis_backlog_bytes", "Memory of Redis that what waits takes, outcomes included; about"
)
INTAKE_AGE = _gauge("onward_intake_oldest_seconds", "Age of the oldest event in the intake")
JOURNAL_AGE = _gauge("onward_journal_oldest_seconds", "Age of the oldest outcome to be recorded")
WAITING = _gauge(
    "onward_waiting_events", "Deliveries that wait in lanes, by the pipeline's state",
    "provider", "state",
)  # fmt: skip
WAITING_AGE = _gauge(
    "onward_waiting_oldest_seconds", "Age of the oldest delivery that waits", "provider", "state"
)
HOLD_USED = _gauge(
    "onward_hold_used_ratio", "Used of the time or number events are held for, in the worst lane",
    "provider", "limit",
)  # fmt: skip
REDIS_BYTES = _gauge("onward_redis_used_bytes", "Memory the events' Redis uses")
REDIS_RATIO = _gauge(
    "onward_redis_memory_ratio", "The same as a share of its limit, or of its machine's memory"
)
PIPELINES = _gauge("onward_pipelines", "Integrations by state", "provider", "state")
INCIDENT = _gauge(
    "onward_provider_incident", "1 while a provider fails for many projects, else 0", "provider"
)
UNACCOUNTED = _gauge(
    "onward_unaccounted_events", "Deliveries the audit cannot place; counted every ten minutes"
)
REFRESHED = _gauge(
    "onward_gauges_refreshed_timestamp_seconds", "When the gauges of the whole were last read"
)
ALL = (
    ATTEMPTS, ATTEMPT_SECONDS, OUTCOMES, LAG_SECONDS, EVENTS, DEAD_LETTERS, SUSPENSIONS, RECORDED,
    LEASES, BACKLOG, BACKLOG_BYTES, INTAKE_AGE, JOURNAL_AGE, WAITING, WAITING_AGE, HOLD_USED,
    REDIS_BYTES, REDIS_RATIO, PIPELINES, INCIDENT, UNACCOUNTED, REFRESHED,
)  # fmt: skip

# What the delivery loop counts is added up here, and published with its commits: a value that is
# shared between processes costs two microseconds a time.
_counted: Counts[tuple[str, ...]] = Counts()
_KINDS = {"attempt": ATTEMPTS, "outcome": OUTCOMES, "event": EVENTS, "letter": DEAD_LETTERS}
_attempt_seconds: dict[str, list[float]] = {}
_lag_seconds: dict[str, list[float]] = {}


@cache
def _child(kind: str, *labels: str) -> Any:
    return _KINDS[kind].labels(*labels)


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


def ended(slug: str, name: str, reason: str, count: int = 1) -> None:
    """Count events x integrations that came to their end."""
    _counted["outcome", slug, name, reason] += count
    if name == "rejected":
        _counted["letter", slug] += count


def lags(slug: str, seconds: Iterable[float]) -> None:
    """Observe times from intake to delivered."""
    _lag_seconds.setdefault(slug, []).extend(seconds)


def event(kind: str, count: int = 1) -> None:
    """Count events read: accepted, malformed, duplicate or unrouted."""
    _counted["event", kind] += count
    if kind == "malformed":
        _counted["letter", NOBODY] += count


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


_files = Lock()  # scrapes and the folding of dead processes' files take turns


class _Told(multiprocess.MultiProcessCollector):
    """All processes' values, with the help text that their files do not keep."""

    def collect(self) -> Any:
        """Return the families."""
        help_ = {family.name: family.documentation for one in ALL for family in one.describe()}
        with _files:
            families = super().collect()  # type: ignore[no-untyped-call]
        for family in families:
            family.documentation = help_.get(family.name, family.documentation)
        return families


def registry() -> CollectorRegistry:
    """Return what `/metrics` shows: all processes' values where there are several."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return DEFAULT
    collected = CollectorRegistry()
    _Told(collected)  # type: ignore[no-untyped-call]
    return collected


def exposition() -> bytes:
    """Return the metrics as Prometheus reads them."""
    return generate_latest(registry())


def serve(port: int, host: str) -> None:
    """Serve `/metrics` at `host` and `port`, to whoever asks."""
    start_http_server(port, addr=host, registry=registry())


def process_died(pid: int) -> None:
    """Forget a dead process's gauges."""
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def forget_dead(alive: Callable[[int], bool]) -> None:
    """Forget the gauges of dead processes, and add up their counts in one file of each type.

    Children come and go all day, and each leaves files that every scrape would read.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    with _files:
        for path in list(Path(folder).glob("*.db")) if folder else ():
            pid = path.stem.rpartition("_")[2]
            if not pid.isdecimal() or alive(int(pid)):
                continue
            if path.stem.startswith("gauge"):
                process_died(int(pid))
            else:
                _fold(path, path.with_name(f"{path.stem.partition('_')[0]}_dead.db"))


def _fold(path: Path, sums: Path) -> None:
    """Add the values of one process's file to `sums`, and remove it."""
    values = list(MmapedDict.read_all_values_from_file(str(path)))  # type: ignore[no-untyped-call]
    into = MmapedDict(str(sums))  # type: ignore[no-untyped-call]
    for key, value, timestamp, _ in values:
        before, _ = into.read_value(key)  # type: ignore[no-untyped-call]
        into.write_value(key, before + value, timestamp)  # type: ignore[no-untyped-call]
    into.close()  # type: ignore[no-untyped-call]
    path.unlink()
