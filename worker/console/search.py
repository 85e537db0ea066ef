"""The events of one user: those that wait, and those that were given up.

What was delivered is found by the event's id: its record keeps no user, as it is nobody's business
for longer than the delivery takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection

from worker.clock import accepted_at, time_of
from worker.state import UNSHARDED, Keys, entries_of
from worker.store.dead_letters import list_dead_letters

MOST = 100_000  # entries of streams that are looked at
LETTERS = 1_000  # newest dead letters that are looked at
SHOWN = 200


class _Seen(msgspec.Struct):
    """What is read of an event."""

    id: str = ""
    event_name: str = ""
    user_id: str | None = None
    identity_id: str | None = None
    custom_user_id: str | None = None

    def of(self, user: str) -> bool:
        return user in (self.user_id, self.identity_id, self.custom_user_id)


@dataclass(frozen=True)
class Trace:
    """An event of the user: waiting for an integration ("" in the intake), or a dead letter."""

    event_id: str
    event_name: str
    integration_id: str
    at: datetime
    letter_id: int | None = None


@dataclass(frozen=True)
class Found:
    """The traces, and whether there may be more than were looked at."""

    traces: list[Trace]
    more: bool


def events_of(redis: Any, connection: Connection, shards: int, user: str) -> Found:
    """Return the events of the user with this id, as the platform or the app names them."""
    traces: list[Trace] = []
    looked = 0
    for integration_id, raw, at_ms in _waiting(redis, shards):
        looked += 1
        seen = _read(raw, user)
        if seen:
            traces.append(Trace(seen.id, seen.event_name, integration_id, time_of(at_ms)))
        if looked >= MOST or len(traces) >= SHOWN:
            break
    letters = list_dead_letters(connection, limit=LETTERS)
    for letter in letters:
        seen = _read(letter.body, user)
        if seen:
            place, at = letter.integration_id or "", letter.created_at
            traces.append(Trace(seen.id, seen.event_name, place, at, letter.id))
    more = looked >= MOST or len(traces) > SHOWN or len(letters) == LETTERS
    return Found(traces[:SHOWN], more)


def _read(raw: bytes, user: str) -> _Seen | None:
    """Return the event if it is the user's."""
    try:
        seen = msgspec.json.decode(raw, type=_Seen)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return seen if seen.of(user) else None


def _waiting(redis: Any, shards: int) -> Iterator[tuple[str, bytes, int]]:
    """Yield what waits: for which integration, its bytes, and since when (ms)."""
    for keys in map(Keys, range(shards)):
        yield from _intake(redis, keys.intake)
        for name in redis.zrange(keys.due, 0, -1):
            integration_id = name.decode()
            for _, fields in entries_of(redis, keys.lane(integration_id)):
                yield integration_id, fields.get(b"e", b""), int(fields.get(b"t", 0))
    yield from _intake(redis, UNSHARDED)


def _intake(redis: Any, stream: str) -> Iterator[tuple[str, bytes, int]]:
    for entry_id, fields in entries_of(redis, stream):
        yield "", fields.get(b"event", b""), accepted_at(entry_id)
