"""One look tells why: what is wrong with an integration, since when, how much waits, what to do."""

from datetime import UTC, datetime
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, func, select

from worker.api.auth import Services
from worker.api.schemas import IntegrationObject, moment
from worker.state import Keys, shard_of
from worker.store.models import DeadLetter, Integration

REMEDIES = {
    "unauthorized": "The upstream refuses the credentials. Correct them in the settings, then "
    "activate.",
    "forbidden": "The credentials are known but may not do this. Give them the permission at the "
    "provider, or use others, then activate.",
    "settings": "Correct the settings, then activate.",
    "not_found": "The upstream does not know this address or account. Check ids and URL in the "
    "settings, then activate.",
    "gone": "The receiver asks never to be called again. Give it a new URL, then activate.",
    "redirect": "The URL redirects, which is not followed. Set the final URL, then activate.",
    "blocked": "The address may not be called (private, or a refused port). Set a public one.",
    "tls": "The upstream's certificate is not valid. Its owner must renew it.",
    "throttled": "The upstream asks to slow down. Nothing to do; sending goes on at its pace.",
    "bad_request": "The upstream does not take these events. Look at the dead letters, correct "
    "settings or event names, then replay them.",
}
AS_NAMED = "Put right what the message names, in the settings or at the provider, then activate."
WAIT = "Nothing to do while it is tried again; if it stays, ask the provider's status page."


def dossier_of(connection: Connection, here: Services, row: Integration) -> dict[str, Any]:
    """Return what an operator needs to know; `waiting` is null where Redis does not answer."""
    waiting = _waiting(here.redis, Keys(shard_of(row.project_id, here.settings.shards)), row)
    return {
        "object": "dossier",
        "integration": IntegrationObject.of(row).model_dump(),
        "project_id": row.project_id,
        "slug": row.slug,
        "settings_saved": row.settings is not None,
        "epoch": row.epoch,
        "on_probation": row.active == 1 and row.probation_epoch == row.epoch,
        "error": _error(connection, row),
        "waiting": waiting,
        "next": _next(row, waiting, here.settings.hold_seconds),
    }


def _error(connection: Connection, row: Integration) -> dict[str, Any] | None:
    if row.last_error_at is None:
        return None
    table = DeadLetter.table()
    mine = table.c.integration_id == row.id
    open_letters = connection.execute(
        select(func.count()).select_from(table).where(mine, table.c.replayed_at.is_(None))
    ).scalar_one()
    sample = connection.execute(
        select(table.c.request, table.c.response, table.c.status)
        .where(mine, table.c.response.is_not(None))
        .order_by(table.c.id.desc())
        .limit(1)
    ).first()
    return {
        "class": row.last_error_reason,
        "message": row.last_error_message,
        "first_at": moment(row.first_error_at),
        "last_at": moment(row.last_error_at),
        "failures_since_delivery": row.delivery_error_count,
        "dead_letters": open_letters,
        "sample": sample._asdict() if sample else None,
        "remedy": REMEDIES.get(row.last_error_reason or "", AS_NAMED if row.active == 2 else WAIT),
    }


def _waiting(redis: Redis, keys: Keys, row: Integration) -> dict[str, Any] | None:
    pipe = redis.pipeline(transaction=False)
    pipe.xlen(keys.lane(row.id))
    pipe.xrange(keys.lane(row.id), count=1)
    pipe.zscore(keys.due, row.id)
    pipe.hget(keys.pipe(row.id, row.epoch), "failures")
    try:
        events, oldest, due, failures = pipe.execute()
    except RedisError:
        return None
    return {
        "events": events,
        "oldest_since": _time(int(oldest[0][1].get(b"t", 0))) if oldest else None,
        "failed_rounds": int(failures or 0),
        "next_attempt_at": _time(due) if due and events and row.active == 1 else None,
    }


def _time(milliseconds: float) -> str | None:
    """Return a time of the store's clock as the API writes it; None for 0, unknown."""
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment(at) if milliseconds else None


def _next(row: Integration, waiting: dict[str, Any] | None, hold_seconds: int) -> str:
    if row.active == 0:
        return "Paused: events that arrive are neither sent nor held. Activate to send again."
    if row.active == 2:
        return (
            f"Suspended: events are held for up to {hold_seconds // 3600} h and sent in order "
            "once you have put right what is wrong and activate."
        )
    if waiting and waiting["next_attempt_at"]:
        return f"Waiting events are tried at {waiting['next_attempt_at']}."
    if row.settings is None:
        return "Active without settings: it is suspended at its first event. Save the settings."
    return "Delivering."
