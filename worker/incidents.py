"""The pipeline or the provider? When many pipelines of a slug fail together, it is the latter.

Every process notes how its pipelines fare; who is about to count a failure looks at all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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


def key(slug: str) -> str:
    """Return the hash of a slug's fares: integration → fare."""
    return f"onward:fares:{slug}"


def pack(fare: Fare) -> str:
    """Return the fare as it is kept."""
    return f"{int(fare.failing)}|{fare.at}|{fare.project_id}"


def unpack(raw: bytes) -> Fare:
    """Return a kept fare."""
    failing, at, project_id = raw.decode().split("|", 2)
    return Fare(project_id, int(at), failing == "1")


async def note(redis: Any, slug: str, integration_id: str, fare: Fare) -> list[Fare]:
    """Note how a pipeline fares; return how all of its slug do, old ones forgotten."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hset(key(slug), integration_id, pack(fare))
        pipe.hgetall(key(slug))
        _, kept = await pipe.execute()
    fares = {name: unpack(raw) for name, raw in kept.items()}
    old = [name for name, other in fares.items() if fare.at - other.at > WINDOW_MS]
    if old:
        await redis.hdel(key(slug), *old)
    return [other for name, other in fares.items() if name not in old]
