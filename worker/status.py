"""How the service stands, in one look: what needs somebody first, then the whole."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from worker import incidents
from worker.backlog import backlog
from worker.clock import next_attempt, store_ms, time_of
from worker.state import OWNERS, Keys, fares_of, shard_of
from worker.store.database import reading
from worker.store.deliveries import list_tallies
from worker.store.integrations import list_of
from worker.store.models import Integration


@dataclass(frozen=True)
class Trouble:
    """An integration that is suspended or failing.

    `next_attempt` is None where that is now, while it is held, and where nothing waits.
    """

    integration: Integration
    since: datetime | None
    waiting: int
    oldest: datetime | None
    next_attempt: datetime | None


@dataclass(frozen=True)
class Overview:
    """The service at one moment. Counts of outcomes are those recorded since ever."""

    owners: list[str]  # processes that drain
    led: int  # shards with an owner
    shards: int
    backlog: dict[str, int]
    memory: int  # bytes of Redis
    memory_most: int  # 0: no limit
    incidents: dict[str, incidents.Incident]  # by slug
    suspended: list[Trouble]
    failing: list[Trouble]
    states: Counter[int]  # integrations by `active`
    outcomes: Counter[str]


def overview(redis: Any, engine: Engine, shards: int) -> Overview:
    """Return how the service stands; `redis` is a blocking client."""
    with reading(engine) as connection:
        found = list_of(connection)
        tallies = list_tallies(connection)
    now = store_ms(redis)
    memory = redis.info("memory")
    outcomes: Counter[str] = Counter()
    for (_, outcome), count in tallies.items():
        if outcome != "accepted":
            outcomes[outcome] += count
    troubled = [one for one in found if one.active == 2 or one.fails]
    troubles = list(_troubles(redis, troubled, shards, now))
    return Overview(
        owners=[owner.decode() for owner in redis.zrangebyscore(OWNERS, now, "+inf")],
        led=sum(redis.exists(Keys(number).lease) for number in range(shards)),
        shards=shards,
        backlog=backlog(redis, shards),
        memory=memory["used_memory"],
        memory_most=memory.get("maxmemory", 0),
        incidents=dict(_incidents(redis, sorted({one.slug for one in found}), now)),
        suspended=[one for one in troubles if one.integration.active == 2],
        failing=[one for one in troubles if one.integration.active == 1],
        states=Counter(one.active for one in found),
        outcomes=outcomes,
    )


def _troubles(
    redis: Any, troubled: Sequence[Integration], shards: int, now: int
) -> Iterator[Trouble]:
    """Yield each with what waits for it, the longest in trouble first."""
    pipe = redis.pipeline(transaction=False)
    for one in troubled:
        keys = Keys(shard_of(one.project_id, shards))
        pipe.xlen(keys.lane(one.id))
        pipe.xrange(keys.lane(one.id), count=1)
        pipe.zscore(keys.due, one.id)
    replies = iter(pipe.execute())
    found = [
        Trouble(
            integration=one,
            since=one.last_error_at if one.active == 2 else one.first_error_at,
            waiting=waiting,
            oldest=_oldest(head),
            next_attempt=next_attempt(due, now) if waiting and one.active == 1 else None,
        )
        for one, waiting, head, due in zip(troubled, replies, replies, replies, strict=True)
    ]
    yield from sorted(found, key=lambda trouble: trouble.since or datetime.max.replace(tzinfo=UTC))


def _oldest(head: list[tuple[bytes, dict[bytes, bytes]]]) -> datetime | None:
    accepted = float(head[0][1].get(b"t", 0)) if head else 0
    return time_of(accepted) if accepted else None


def _incidents(
    redis: Any, slugs: Sequence[str], now: int
) -> Iterator[tuple[str, incidents.Incident]]:
    for slug in slugs:
        fares = map(incidents.unpack, redis.hvals(fares_of(slug)))
        if found := incidents.incident_of(fares, now):
            yield slug, found
