"""How an integration stands, for people and programs: the v4 object, and what is behind it."""

from datetime import UTC, datetime
from typing import Any

from worker.registry import UnknownProvider, provider_of
from worker.state import Keys, shard_of
from worker.store.models import Integration

STATES = {0: "paused", 1: "active", 2: "suspended"}


def moment(at: datetime | None) -> str | None:
    """Return a time as the API writes it: `2026-03-09T18:40:02Z`."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at else None


def v4_object(integration: Integration) -> dict[str, Any]:
    """Return the integration as the v4 API shows it: no setting, and the provider by its title."""
    return {
        "object": "integration",
        "id": integration.id,
        "url": f"/v4/integrations/{integration.id}",
        "title": integration.title,
        "integration": _provider_title(integration.slug),
        "target_platform": integration.platform,
        "active": integration.active,
        "created_at": moment(integration.created_at),
        "updated_at": moment(integration.updated_at),
        "last_delivery_at": moment(integration.last_delivery_at),
        "last_error_at": moment(integration.last_error_at),
        "last_error_message": integration.last_error_message,
        "delivery_error_count": integration.delivery_error_count,
    }


def _provider_title(slug: str) -> str:
    try:
        return provider_of(slug).title
    except UnknownProvider:
        return slug  # of an adapter that was taken out


def backlog(redis: Any, integration: Integration, shards: int) -> dict[str, Any]:
    """Return how many events wait in the lane, since when, and when the next attempt is due.

    `redis` is a blocking client.
    """
    keys = Keys(shard_of(integration.project_id, shards))
    lane = keys.lane(integration.id)
    pipeline = redis.pipeline(transaction=False)
    pipeline.xlen(lane)
    pipeline.xrange(lane, count=1)
    pipeline.zscore(keys.due, integration.id)
    pipeline.hgetall(keys.pipe(integration.id, integration.epoch))
    waiting, head, due, health = pipeline.execute()
    accepted = int(head[0][1][b"t"]) if head and b"t" in head[0][1] else None
    counts = {name.decode(): int(value) for name, value in health.items() if value.isdigit()}
    return {
        "waiting": waiting,
        "waiting_since": _of_ms(accepted),
        "next_attempt_at": _of_ms(due) if due and integration.active == 1 else None,
        "failed_rounds": counts.get("failures", 0),
        "refused_rounds": counts.get("refusals", 0),
    }


def _of_ms(ms: float | None) -> str | None:
    return moment(datetime.fromtimestamp(ms / 1000, UTC)) if ms else None


def advice(integration: Integration, waiting: int) -> str:
    """Return what to do next; "" where nothing is to be done."""
    if integration.active == 2:
        return (
            f"Mend what the message names (`onward integrations settings {integration.id} --set "
            f"FILE`), then `onward integrations activate {integration.id}`: the {waiting:,} events "
            "that wait follow in order."
        )
    if integration.active == 0:
        return (
            f"Nothing is sent or held. `onward integrations activate {integration.id}` starts it."
        )
    return ""
