"""Events of about 1.5 KB, made fast: one template, ids and users put in."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec

from worker.sample import events as samples
from worker.state import Keys, shard_of

FILLER = "a property that pads the event to one and a half kilobytes"
SIZE = 1_500
AT_ONCE = 500


def template(project: str) -> bytes:
    """Return the JSON of an event with `%b` for id, user and sending time."""
    event = next(iter(samples(1, project=project)))
    event |= {"id": "@ID@", "user_id": "@USER@", "event_name": "subscription_renewed"}
    event["properties"]["sent_ns"] = "@NS@"
    number = 0
    while len(msgspec.json.encode(event)) < SIZE:
        event["properties"][f"filler_{number}"] = FILLER
        number += 1
    raw = msgspec.json.encode(event).replace(b"%", b"%%")
    return raw.replace(b"@ID@", b"%b").replace(b"@USER@", b"%b").replace(b"@NS@", b"%b")


class Source:
    """Events of some projects in turn, each of its own user of `users`."""

    def __init__(self, projects: list[str], users: int = 20_000) -> None:
        self.projects = projects
        self._templates = [_ordered(template(project)) for project in projects]
        self._users = users
        self._run = uuid4().hex[:12]
        self._number = 0

    def next(self, which: int | None = None) -> tuple[int, bytes]:
        """Return an event's project (as an index) and its JSON."""
        number = self._number = self._number + 1
        index = number % len(self._templates) if which is None else which
        values = {
            b"id": b"%s-%d" % (self._run.encode(), number),
            b"user": b"user-%d" % (number % self._users),
            b"ns": b"%d" % time.monotonic_ns(),
        }
        return index, self._templates[index] % values

    def take(self, count: int) -> Iterator[bytes]:
        """Yield the JSON of `count` events."""
        return (self.next()[1] for _ in range(count))


def _ordered(raw: bytes) -> bytes:
    """Name the three places, which stand in the order of the event's members."""
    for name in (b"id", b"user", b"ns"):
        raw = raw.replace(b"%b", b"%(" + name + b")b", 1)
    return raw


def fill(redis: Any, source: Source, count: int, shards: int, which: int | None = None) -> int:
    """Put `count` events into the intake; return their bytes."""
    intakes = [Keys(shard_of(project, shards)).intake for project in source.projects]
    size = 0
    for start in range(0, count, AT_ONCE):
        pipeline = redis.pipeline(transaction=False)
        for _ in range(min(AT_ONCE, count - start)):
            index, raw = source.next(which)
            size += len(raw)
            pipeline.xadd(intakes[index], {"event": raw})
        pipeline.execute()
    return size
