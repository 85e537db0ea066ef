"""The pipeline or the provider? When many pipelines of a slug fail together, it is the latter.

Every process notes how its pipelines fare; who is about to count a failure looks at all of them.
Operators are told once when an incident begins, and once when it is over.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from sqlalchemy import Engine

from worker.clock import store_ms
from worker.state import INCIDENTS, fares_of
from worker.store import notifications

OVER_MS = 120_000  # without one, until it is taken to be over
WINDOW_MS = 300_000  # traffic that counts
SHARE = 0.3  # of the pipelines with traffic
PROJECTS = 5


@dataclass(frozen=True, slots=True)
class Fare:
    """How one pipeline last fared, and when (store clock, ms)."""

    project_id: str
    at: int
    failing: bool


@dataclass(frozen=True, slots=True)
class Incident:
    """A provider that fails for many: how many of how many pipelines, in how many projects."""

    failing: int
    of: int
    projects: int


def incident_of(fares: Iterable[Fare], now_ms: float) -> Incident | None:
    """Return the incident that these fares amount to, or None."""
    recent = [fare for fare in fares if now_ms - fare.at <= WINDOW_MS]
    failing = [fare for fare in recent if fare.failing]
    projects = len({fare.project_id for fare in failing})
    if projects < PROJECTS or len(failing) < SHARE * len(recent):
        return None
    return Incident(len(failing), len(recent), projects)


def pack(fare: Fare) -> str:
    """Return the fare as it is kept."""
    return f"{int(fare.failing)}|{fare.at}|{fare.project_id}"


def unpack(raw: bytes) -> Fare:
    """Return a kept fare."""
    failing, at, project_id = raw.decode().split("|", 2)
    return Fare(project_id, int(at), failing == "1")


async def note(redis: Any, slug: str, fares: Mapping[str, Fare], now_ms: float) -> Iterable[Fare]:
    """Note how some pipelines fare; return how all of their slug do, old ones forgotten."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hset(fares_of(slug), mapping={name: pack(fare) for name, fare in fares.items()})
        pipe.hgetall(fares_of(slug))
        _, kept = await pipe.execute()
    known = {name: unpack(raw) for name, raw in kept.items()}
    if old := [name for name, fare in known.items() if now_ms - fare.at > WINDOW_MS]:
        await redis.hdel(fares_of(slug), *old)
        for name in old:
            del known[name]
    return known.values()


async def note_well(redis: Any, fares: Mapping[str, Mapping[str, Fare]]) -> None:
    """Note how many pipelines fare, by slug and integration, and ask nothing."""
    async with redis.pipeline(transaction=False) as pipe:
        for slug, theirs in fares.items():
            pipe.hset(fares_of(slug), mapping={name: pack(fare) for name, fare in theirs.items()})
        await pipe.execute()


def tell(redis: Any, engine: Engine, slugs: Sequence[str]) -> None:
    """Open and close incidents, each with a notice; keepers do it in turn.

    Needs the database for a change: without it nothing changes, and the next look tells.
    """
    now_ms = store_ms(redis)
    pipe = redis.pipeline(transaction=False)
    for slug in slugs:
        pipe.hvals(fares_of(slug))
    pipe.hgetall(INCIDENTS)
    *fares, opened = pipe.execute()
    for slug, raw in zip(slugs, fares, strict=True):
        incident = incident_of(map(unpack, raw), now_ms)
        seen = opened.get(slug.encode())
        if incident and seen:
            redis.hset(INCIDENTS, slug, now_ms)
        elif incident:
            told = {"slug": slug, **asdict(incident)}
            _notice(engine, "provider.incident", told, partial(redis.hset, INCIDENTS, slug, now_ms))
        elif seen and now_ms - int(seen) > OVER_MS:
            _notice(
                engine, "provider.recovered", {"slug": slug}, partial(redis.hdel, INCIDENTS, slug)
            )


def _notice(engine: Engine, kind: str, payload: dict[str, Any], change: Callable[[], int]) -> None:
    """Write a notice, then make the change it tells of: where that fails, it is told once more."""
    with engine.begin() as connection:
        notifications.add(connection, kind, payload)
    change()
