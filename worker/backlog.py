"""What waits, and where, as Redis has it: in the intake, in lanes, in the journal."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from worker.clock import accepted_at, store_ms
from worker.state import UNSHARDED, Keys


@dataclass(frozen=True, slots=True)
class Lane:
    """What waits for one integration: how many, when the first was accepted (ms), in how much."""

    length: int
    accepted: float
    size: int  # bytes of Redis, about


@dataclass(frozen=True, slots=True)
class Waits:
    """What waits, and where. Ages are seconds, 0 where nothing waits; `now` is ms.

    `streams` are the bytes of Redis that intake and journal take, about.
    """

    now: float
    intake: int
    intake_age: float
    journal: int
    journal_age: float
    streams: int
    lanes: dict[str, Lane]

    @property
    def size(self) -> int:
        """Bytes of Redis that all of it takes, about."""
        return self.streams + sum(lane.size for lane in self.lanes.values())

    @property
    def counts(self) -> dict[str, int]:
        """Events in `intake`, deliveries in `lanes`, pages in `journal`."""
        in_lanes = sum(lane.length for lane in self.lanes.values())
        return {"intake": self.intake, "lanes": in_lanes, "journal": self.journal}


def backlog(redis: Any, shards: int) -> dict[str, int]:
    """Return how many wait: events in `intake`, deliveries in `lanes`, pages in `journal`."""
    return waits(redis, shards).counts


def waits(redis: Any, shards: int) -> Waits:
    """Return what waits; three round trips."""
    now = store_ms(redis)
    keys = [Keys(number) for number in range(shards)]
    pipe = redis.pipeline(transaction=False)
    for stream in [UNSHARDED, *(key.intake for key in keys), *(key.journal for key in keys)]:
        _look(pipe, stream)
    for key in keys:
        pipe.zrange(key.due, 0, -1)
    replies = pipe.execute()
    streams, due = replies[: 3 * (1 + 2 * shards)], dict(zip(keys, replies[-shards:], strict=True))
    intakes, journals = streams[: 3 * (1 + shards)], streams[3 * (1 + shards) :]
    return Waits(
        now=now,
        intake=sum(intakes[::3]),
        intake_age=_age(now, intakes[1::3]),
        journal=sum(journals[::3]),
        journal_age=_age(now, journals[1::3]),
        streams=sum(size or 0 for size in streams[2::3]),
        lanes=_lanes(redis, [(key, raw.decode()) for key, ids in due.items() for raw in ids]),
    )


def _look(pipe: Any, stream: str) -> None:
    """Ask for a stream's length, first entry, and bytes: None of one that is not there."""
    pipe.xlen(stream)
    pipe.xrange(stream, count=1)
    pipe.memory_usage(stream)


def _age(now: float, heads: Iterable[list[tuple[bytes, Any]]]) -> float:
    """Return the age of the oldest of these first entries, by the time in its id."""
    times = [accepted_at(entry_id) for head in heads for entry_id, _ in head]
    return max(now - min(times, default=now), 0) / 1000


def _lanes(redis: Any, places: list[tuple[Keys, str]]) -> dict[str, Lane]:
    pipe = redis.pipeline(transaction=False)
    for keys, integration in places:
        _look(pipe, keys.lane(integration))
    replies = pipe.execute()
    found = zip(places, replies[::3], replies[1::3], replies[2::3], strict=True)
    return {
        integration: Lane(length, float(head[0][1][b"t"]), size or 0)
        for (_, integration), length, head, size in found
        if head
    }
