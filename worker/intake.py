"""Putting events into the intake, from Python: `publish(redis, events)`.

A producer in another language does `XADD onward:intake * event <json>`.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, TypeAlias

import msgspec

from worker.state import Keys, shard_of

AT_ONCE = 500  # events in a pipeline: more gain nothing
FULLEST = 0.7  # of the server's maxmemory: the rest is for what the workers need to drain it

Client: TypeAlias = Any  # redis.Redis, or a Cluster's
_encoder = msgspec.json.Encoder(decimal_format="number")


class IntakeFull(RuntimeError):
    """Redis is too full to take more events."""

    def __init__(self, used: int, maximum: int) -> None:
        super().__init__(
            f"Redis holds {used / 2**20:,.1f} of {maximum / 2**20:,.1f} MiB, and takes no events "
            f"from {FULLEST:.0%} on. Let the workers drain it, or raise its maxmemory, then "
            "publish again: events that were taken already are recognised by their id."
        )


class _Routed(msgspec.Struct):
    project_id: str


def publish(
    redis: Client,
    events: Iterable[Mapping[str, Any] | bytes | str],
    shards: int = 32,
    progress: Callable[[int], None] = lambda _count: None,
) -> int:
    """Append events (mappings, or JSON as it is to be kept) to the intake; return how many.

    They are accepted when it returns, and up to the count that `progress` was told last.
    `shards` must be what the workers have (`ONWARD_SHARDS`). Events are not checked but for their
    project: a faulty one becomes a dead letter.

    Raises:
        IntakeFull: the server is fuller than 70 % of its maxmemory.
        msgspec.ValidationError: an event without the text `project_id`.
    """
    published = 0
    remaining = iter(events)
    while batch := [_encoded(event) for event in islice(remaining, AT_ONCE)]:
        check_room(redis)
        pipeline = redis.pipeline(transaction=False)
        for event in batch:
            project_id = msgspec.json.decode(event, type=_Routed).project_id
            pipeline.xadd(Keys(shard_of(project_id, shards)).intake, {"event": event})
        pipeline.execute()
        published += len(batch)
        progress(published)
    return published


def check_room(redis: Client) -> None:
    """Raise IntakeFull if the server is too full to take more events."""
    memory = redis.info("memory")
    used, maximum = memory["used_memory"], memory.get("maxmemory", 0)
    if maximum and used >= FULLEST * maximum:
        raise IntakeFull(used, maximum)


def _encoded(event: Mapping[str, Any] | bytes | str) -> bytes:
    if isinstance(event, bytes):
        return event
    if isinstance(event, str):
        return event.encode()
    return _encoder.encode(event)
