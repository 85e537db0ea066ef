"""What the pages show beyond status and dossier: traffic, lag, sparklines, what soon expires."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from threading import Lock
from typing import Any

from redis.exceptions import ResponseError

from worker.audit import ENDS
from worker.clock import accepted_at
from worker.state import AT_ONCE, UNSHARDED, Keys, shard_of
from worker.store.models import Delivery, Integration

WINDOW_SECONDS = 60  # of the rates
LAGS = 200  # deliveries the lag is told of
SOON_HOURS = 12  # what expires within them is told
MOST = 20_000  # lane entries looked at
BARS, HEIGHT = 60, 40  # of a sparkline, its own units


# --- traffic ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """Events taken in and deliveries made since ever, and a second (None: not known yet)."""

    taken: int
    delivered: int
    taken_rate: float | None
    delivered_rate: float | None
    unread_seconds: float  # age of the oldest event in the intake


@dataclass
class Meter:
    """Remembers the totals of the last minute, to tell rates from."""

    _seen: deque[tuple[float, int, int]] = field(default_factory=deque)
    _lock: Lock = field(default_factory=Lock)

    def rates(self, taken: int, delivered: int) -> tuple[float | None, float | None]:
        """Note the totals now; return their growth a second since the oldest of the last minute."""
        now = time.monotonic()
        with self._lock:
            while self._seen and now - self._seen[0][0] > WINDOW_SECONDS:
                self._seen.popleft()
            first = self._seen[0] if self._seen else None
            if first is None or now - self._seen[-1][0] >= 1:
                self._seen.append((now, taken, delivered))
        if first is None or now - first[0] < 1:
            return None, None
        passed = now - first[0]
        return max(0, taken - first[1]) / passed, max(0, delivered - first[2]) / passed


def traffic(redis: Any, shards: int, meter: Meter) -> Traffic:
    """Return what goes in and out, as Redis counts it."""
    every = [Keys(number) for number in range(shards)]
    streams = [*(keys.intake for keys in every), UNSHARDED]
    pipe = redis.pipeline(transaction=False)
    for stream in streams:
        pipe.xinfo_stream(stream)
    for keys in every:
        pipe.hgetall(keys.tally)
    pipe.time()
    *replies, (seconds, micros) = pipe.execute(raise_on_error=False)
    infos = [_info(reply) for reply in replies[: len(streams)]]
    taken = sum(int(info["entries-added"]) for info in infos)
    heads = [accepted_at(info["first-entry"][0]) for info in infos if info["first-entry"]]
    delivered = sum(
        int(count)
        for tally in replies[len(streams) :]
        for name, count in tally.items()
        if name.endswith(b"|delivered")
    )
    now = seconds * 1000 + micros // 1000
    unread = (now - min(heads, default=now)) / 1000
    return Traffic(taken, delivered, *meter.rates(taken, delivered), max(0.0, unread))


def _info(reply: Any) -> dict[str, Any]:
    if isinstance(reply, ResponseError):  # no such stream: nobody has published to it
        return {"entries-added": 0, "first-entry": None}
    if isinstance(reply, Exception):
        raise reply
    return {"entries-added": reply.get("entries-added", 0), "first-entry": reply["first-entry"]}


def lag(rows: Sequence[Delivery]) -> tuple[float, float] | None:
    """Return median and 95th percentile of the seconds from intake to delivered."""
    times = sorted(
        (row.finished_at - row.accepted_at).total_seconds() for row in rows if row.accepted_at
    )
    return (median(times), times[int(len(times) * 0.95)]) if times else None


# --- one integration ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A slice of one outcome in a sparkline, in its units."""

    x: int
    y: float
    height: float
    outcome: str


@dataclass(frozen=True)
class Sparkline:
    """How events ended, oldest left; `width` columns share the time from `since` to `until`."""

    bars: list[Bar]
    totals: Counter[str]
    since: datetime
    until: datetime
    width: int = BARS
    height: int = HEIGHT


def sparkline(rows: Sequence[Delivery], until: datetime) -> Sparkline | None:
    """Return the sparkline of these (newest first), from the oldest until now; None of none."""
    if not rows:
        return None
    since = min(row.finished_at for row in rows)
    whole = max((until - since).total_seconds(), 1.0)
    columns: list[Counter[str]] = [Counter() for _ in range(BARS)]
    for row in rows:
        place = (row.finished_at - since).total_seconds() / whole * BARS
        columns[min(max(int(place), 0), BARS - 1)][row.outcome] += 1
    most = max(column.total() for column in columns)
    bars = [bar for x, column in enumerate(columns) for bar in _bars(x, column, most)]
    return Sparkline(bars, Counter(row.outcome for row in rows), since, until)


def _bars(x: int, column: Counter[str], most: int) -> Iterator[Bar]:
    y = float(HEIGHT)
    for outcome in ENDS:
        height = round(column[outcome] / most * HEIGHT, 2)
        if height:
            y = round(y - height, 2)
            yield Bar(x, y, height, outcome)


def tallies_of(redis: Any, shards: int, integration: Integration) -> dict[str, int]:
    """Return how often the integration's events were accepted and ended, by Redis' own count."""
    keys = Keys(shard_of(integration.project_id, shards))
    names = ("accepted", *ENDS)
    found = redis.hmget(keys.tally, [f"{integration.id}|{name}" for name in names])
    return {name: int(count or 0) for name, count in zip(names, found, strict=True)}


def expiring(redis: Any, shards: int, integration: Integration, hold_seconds: int) -> int:
    """Return how many of the held events expire within 12 hours; at most 20,000 are looked at."""
    keys = Keys(shard_of(integration.project_id, shards))
    seconds, _ = redis.time()
    accepted_before = (seconds - hold_seconds + SOON_HOURS * 3600) * 1000
    count, cursor = 0, "-"
    while count < MOST:
        entries = redis.xrange(keys.lane(integration.id), min=cursor, count=AT_ONCE)
        old = sum(int(fields.get(b"t", 0)) < accepted_before for _, fields in entries)
        count += old
        if old < AT_ONCE:
            break
        cursor = f"({entries[-1][0].decode()}"
    return count


def waiting_each(redis: Any, shards: int, found: Sequence[Integration]) -> list[int]:
    """Return how many events wait for each of these."""
    pipe = redis.pipeline(transaction=False)
    for one in found:
        pipe.xlen(Keys(shard_of(one.project_id, shards)).lane(one.id))
    return [int(count) for count in pipe.execute()]
