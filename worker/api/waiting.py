"""What waits for an integration, as Redis has it."""

from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from providers.kit import Event, plan
from providers.kit.decode import InvalidEvent
from worker import incidents, lane
from worker.api.schemas import moment
from worker.attempt import SNIPPET, context_for
from worker.clock import next_attempt, time_of
from worker.directory import Integration
from worker.preview import text_or_base64
from worker.state import Keys, fares_of, shard_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many events wait; the oldest of them; when it goes on, if not now. Times as in the API.

    `request` is what the oldest makes, masked; None where it makes none. `incident`: how many of
    how many pipelines of this provider fail just now, where it is the provider that is down.
    """

    events: int
    oldest_since: str | None
    event_id: str | None
    event_name: str | None
    attempts: int
    expires_at: str | None
    failed_rounds: int
    refused_rounds: int
    next_attempt_at: str | None
    incident: dict[str, int] | None
    request: str | None

    def shown(self) -> dict[str, Any]:
        """Return it for people; the request is told with the error."""
        shown = asdict(self)
        shown.pop("request")
        names = {name: f"oldest_{name}" for name in ("event_id", "event_name", "expires_at")}
        names |= {"attempts": "oldest_attempts", "incident": "provider_incident"}
        return {names.get(name, name): value for name, value in shown.items()}


def waiting_of(redis: Redis, shards: int, integration: Integration) -> Waiting | None:
    """Return what waits; None where Redis does not answer."""
    try:
        return _read(redis, Keys(shard_of(integration.project_id, shards)), integration)
    except RedisError:
        return None


def _read(redis: Any, keys: Keys, integration: Integration) -> Waiting:
    id_ = integration.id
    pipe = redis.pipeline(transaction=False)
    pipe.xlen(keys.lane(id_))
    pipe.xrange(keys.lane(id_), count=1)
    pipe.zscore(keys.due, id_)
    pipe.hmget(keys.pipe(id_, integration.epoch), "failures", "refusals")
    pipe.hvals(fares_of(integration.slug))
    pipe.time()
    events, oldest, due, (failures, refusals), fares, (now, _) = pipe.execute()
    since, event, attempts = 0, None, 0
    if oldest:
        ((lane_id, fields),) = oldest
        since, event = int(fields.get(b"t", 0)), _event(fields)
        attempts = int(fields.get(b"a", 0))
        if tried := redis.hget(keys.tries(id_), lane_id):
            attempts = msgspec.msgpack.decode(tried, type=lane.Tried).attempts
    incident = incidents.incident_of(map(incidents.unpack, fares), now * 1000)
    hold = integration.policy.hold_seconds * 1000
    goes_on = events and integration.active == 1
    return Waiting(
        events=events,
        oldest_since=_time(since),
        event_id=event.id if event else None,
        event_name=event.name if event else None,
        attempts=attempts,
        expires_at=_time(since + hold) if since and integration.active == 2 else None,
        failed_rounds=int(failures or 0),
        refused_rounds=int(refusals or 0),
        next_attempt_at=moment(next_attempt(due, now * 1000)) if goes_on else None,
        incident=asdict(incident) if incident else None,
        request=_request(event, integration, since) if event else None,
    )


def _event(fields: dict[bytes, bytes]) -> Event | None:
    try:
        return lane.event_of(fields[b"e"], int(fields[b"t"]))
    except (InvalidEvent, KeyError):
        return None


def _request(event: Event, integration: Integration, at_ms: int) -> str | None:
    """Return the first request that the event makes, as a dead letter keeps it."""
    if integration.settings is None:
        return None
    source = integration.provider.token
    token = dict(source.sample) if source else {}
    context = context_for(integration, at_ms, token=token, batch_at=time_of(at_ms))
    requests = plan(integration.provider, [event], integration.settings, context).requests
    if not requests:
        return None
    request = integration.mask.request(requests[0])
    body, _ = text_or_base64(request.body)
    return f"{request.method} {request.url}\n\n{body}"[:SNIPPET]


def _time(milliseconds: float) -> str | None:
    """Return a time of the store's clock; None for 0, unknown."""
    return moment(time_of(milliseconds)) if milliseconds else None
