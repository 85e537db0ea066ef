"""The life of one event: where it went, where it waits, and why it did not go elsewhere."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection

from worker import lane
from worker.audit import NOBODY
from worker.clock import accepted_at, next_attempt, store_ms, time_of
from worker.journal import PAGE, Row, unpack
from worker.state import UNSHARDED, Keys, entries_of, shard_of
from worker.store import audit
from worker.store.dead_letters import list_dead_letters
from worker.store.deliveries import list_deliveries
from worker.store.integrations import get, list_of
from worker.store.models import DeadLetter, Delivery, Integration

HELD = "held: its pipeline is suspended"


class _Seen(msgspec.Struct):
    """What is read of an event in a stream."""

    id: str
    project_id: str = ""
    platform: str = ""


@dataclass(frozen=True)
class Place:
    """Where the event waits: in an integration's lane, or in the intake (`integration_id` "")."""

    integration_id: str
    project_id: str
    platform: str
    accepted_at: datetime
    why: str


@dataclass
class Life:
    """All that is known of an event. `absent`: integrations it did not go to, and why not."""

    recorded: list[Delivery] = field(default_factory=list)
    on_the_way: list[Row] = field(default_factory=list)  # in the journal
    letters: list[DeadLetter] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)  # events that left no trace, by why

    @property
    def known(self) -> bool:
        """Whether there is any trace of it."""
        return bool(self.recorded or self.on_the_way or self.letters or self.places)

    def integrations(self) -> set[str]:
        """Return the integrations it went to or waits for."""
        ended = {row.integration_id for row in self.recorded}
        ended |= {row.integration_id for row in self.on_the_way}
        return (ended | {place.integration_id for place in self.places}) - {""}


def life_of(
    redis: Any, connection: Connection, shards: int, event_id: str, integration_id: str | None
) -> Life:
    """Return the life of an event, of one integration only if that is given.

    Raises:
        NotFound: there is no such integration.
    """
    only = get(connection, integration_id) if integration_id else None
    project = only.project_id if only else None
    life = Life(
        recorded=list_deliveries(connection, event_id=event_id, project_id=project),
        letters=list_dead_letters(connection, event_id=event_id, project_id=project),
    )
    numbers = range(shards) if project is None else [shard_of(project, shards)]
    for number in numbers:
        _search(redis, Keys(number), event_id, life)
    life.places += _in_intake(redis, UNSHARDED, event_id)
    found = list_of(connection)
    suspended = {one.id for one in found if one.active == 2}
    life.places = [
        replace(place, why=HELD) if place.integration_id in suspended else place
        for place in life.places
    ]
    if life.known:
        others = [only] if only else found
        for other in others:
            if other.id not in life.integrations():
                why = _why_not(connection, life, other)
                if why:
                    life.absent[other.id] = why
    return _narrowed(life, only)


def _narrowed(life: Life, only: Integration | None) -> Life:
    """Leave out what is of other integrations than the one asked for."""
    if only is not None:
        life.recorded = [row for row in life.recorded if row.integration_id == only.id]
        life.on_the_way = [row for row in life.on_the_way if row.integration_id == only.id]
        life.letters = [one for one in life.letters if one.integration_id in (None, only.id)]
        life.places = [one for one in life.places if one.integration_id in ("", only.id)]
    return life


# --- where it is --------------------------------------------------------------------------------


def _search(redis: Any, keys: Keys, event_id: str, life: Life) -> None:
    """Look through one shard: intake, lanes, journal; and what it dropped without a trace."""
    life.places += _in_intake(redis, keys.intake, event_id)
    for raw in redis.zrange(keys.due, 0, -1):
        life.places += _in_lane(redis, keys, raw.decode(), event_id)
    for _, fields in entries_of(redis, keys.journal):
        rows = unpack(fields[PAGE]).rows
        life.on_the_way += [row for row in rows if row.event_id == event_id]
    for name, count in redis.hgetall(keys.tally).items():
        integration, _, what = name.decode().partition("|")
        if integration == NOBODY:
            life.dropped[what] += int(count)


def _in_intake(redis: Any, stream: str, event_id: str) -> Iterator[Place]:
    for entry_id, fields in entries_of(redis, stream):
        seen = _read(fields.get(b"event", b""), event_id)
        if seen:
            at = time_of(accepted_at(entry_id))
            yield Place("", seen.project_id, seen.platform, at, "no worker has read it yet")


def _in_lane(redis: Any, keys: Keys, integration_id: str, event_id: str) -> Iterator[Place]:
    for lane_id, fields in entries_of(redis, keys.lane(integration_id)):
        seen = _read(fields[b"e"], event_id)
        if seen:
            at = time_of(int(fields[b"t"]))
            why = _why_in_lane(redis, keys, integration_id, lane_id)
            yield Place(integration_id, seen.project_id, seen.platform, at, why)


def _why_in_lane(redis: Any, keys: Keys, integration_id: str, lane_id: bytes) -> str:
    now = store_ms(redis)
    kept = redis.hget(keys.tries(integration_id), lane_id)
    tried = msgspec.msgpack.decode(kept, type=lane.Tried) if kept else lane.Tried()
    if until := next_attempt(tried.due, now):
        times = f"{tried.attempts} attempts" if tried.attempts > 1 else "one attempt"
        return f"after {times} it waits by itself until {_clock(until)}; others do not"
    if until := next_attempt(redis.zscore(keys.due, integration_id), now):
        return f"its pipeline waits until {_clock(until)}"
    return f"in its lane, sent in its turn: see onward integrations show {integration_id}"


def _clock(at: datetime) -> str:
    return f"{at:%F %T}Z"


def _read(raw: bytes, event_id: str) -> _Seen | None:
    """Return the event if it is the one; most are passed over without decoding."""
    if event_id.encode() not in raw:
        return None
    try:
        seen = msgspec.json.decode(raw, type=_Seen)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return seen if seen.id == event_id else None


# --- why it is not ------------------------------------------------------------------------------


def _why_not(connection: Connection, life: Life, other: Integration) -> str:
    """Return the rule by which the event did not go to an integration; "" for other projects'."""
    if any(place.integration_id == "" for place in life.places):
        return "not routed yet: it waits in the intake"
    projects = {row.project_id for row in life.recorded}
    projects |= {row.project_id for row in life.on_the_way}
    projects |= {place.project_id for place in life.places}
    projects |= {letter.project_id for letter in life.letters if letter.project_id}
    if other.project_id not in projects:
        return ""
    platform = _platform(connection, life)
    if platform and other.platform != platform:
        return f"it is an event of {platform}, and this integration takes {other.platform}"
    accepted = _accepted(life)
    if accepted is None:
        return "it reached no integration: see its dead letter"
    if other.created_at > accepted:
        return f"the integration was made at {other.created_at:%F %T}Z, after the event came"
    if _active_at(connection, other, accepted) == 0:
        return "the integration was paused when the event came: nothing is forwarded or held"
    return "its record is not there: older than the record is kept, or not written yet"


def _accepted(life: Life) -> datetime | None:
    times = [row.accepted_at for row in life.recorded if row.accepted_at]
    times += [time_of(row.accepted_at) for row in life.on_the_way]
    return min([*times, *(place.accepted_at for place in life.places)], default=None)


def _platform(connection: Connection, life: Life) -> str:
    """Return the event's store: as it says itself, or that of the integrations it went to."""
    said = [place.platform for place in life.places if place.platform]
    went = life.integrations()
    said += [one.platform for one in list_of(connection) if one.id in went]
    return said[0] if said else ""


def _active_at(connection: Connection, integration: Integration, at: datetime) -> int:
    """Return the state an integration had at a time, by the audit log."""
    active = integration.active
    changes: Sequence[Any] = audit.list_rows(connection, integration_id=integration.id, limit=1000)
    for row in changes:  # newest first
        if row.at <= at:
            break
        before = msgspec.json.decode(row.before) if row.before else {}
        active = before.get("active", active if row.action != "integration.create" else 0)
    return active
