"""The store's clock: due times and holds are measured by one clock, whatever the workers' say."""

import time
from datetime import UTC, datetime
from typing import Any


class StoreClock:
    """Ms since the epoch by the store, carried on by the monotonic clock between settings."""

    def __init__(self) -> None:
        self._offset = time.time() * 1000 - time.monotonic() * 1000

    def set(self, store_ms: float) -> None:
        """Take the store's time as now."""
        self._offset = store_ms - time.monotonic() * 1000

    def now_ms(self) -> float:
        """Return the store's time in ms."""
        return time.monotonic() * 1000 + self._offset


def store_ms(redis: Any) -> int:
    """Return the store's time in ms, as its blocking client is told it."""
    seconds, micros = redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


def accepted_at(entry_id: bytes) -> int:
    """Return when an intake's entry was accepted (store clock, ms): its id says so."""
    return int(entry_id.partition(b"-")[0])


def time_of(ms: float) -> datetime:
    """Return the time of milliseconds of the store's clock."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def next_attempt(due_ms: float | None, now_ms: float) -> datetime | None:
    """Return when a pipeline is tried next, by its due time; None: now, for that has passed."""
    return time_of(due_ms) if due_ms and due_ms > now_ms else None
