"""Journal → database, in bulk and once; and the suspensions that are wanted.

Blocking, in a task of its own: while the database is away the journal waits, and delivery goes on.
"""

import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec
from redis.exceptions import ResponseError
from sqlalchemy import Engine

from worker import metrics
from worker.journal import PAGE, Page, unpack
from worker.registry import all_providers
from worker.state import RECORDING, RECORDING_MS, Keys
from worker.store import integrations
from worker.store.database import reading
from worker.store.deliveries import last_recorded, record_rows

log = logging.getLogger(__name__)

PAGES = 200  # journal entries a transaction


class _Wanted(msgspec.Struct):
    epoch: int
    reason: str
    message: str
    at: int


def record(redis: Any, engine: Engine, shards: int) -> int:
    """Move every shard's journal to the database until it is empty; return the rows written."""
    written = 0
    for number in range(shards):
        try:
            written += _record_shard(redis, engine, Keys(number))
        except ResponseError:
            log.exception(
                "The journal of shard %d cannot be recorded; going on with others", number
            )
    return written


def _record_shard(redis: Any, engine: Engine, keys: Keys) -> int:
    written = 0
    while rows := _record_some(redis, engine, keys):
        written += rows
        redis.pexpire(RECORDING, RECORDING_MS)
    _suspend_wanted(redis, engine, keys)
    return written


def _record_some(redis: Any, engine: Engine, keys: Keys) -> int:
    if not redis.exists(keys.journal):
        return 0
    with reading(engine) as connection:
        before = last_recorded(connection, keys.shard)
    entries = redis.xrange(keys.journal, min=f"({before}" if before else "-", count=PAGES)
    if before:
        redis.xtrim(keys.journal, minid=_next(before), approximate=False)
    if not entries:
        return 0
    last = entries[-1][0].decode()
    page = _joined([unpack(fields[PAGE]) for _, fields in entries])
    if not record_rows(
        engine,
        keys.shard,
        before,
        last,
        deliveries=[_delivery(row) for row in page.rows],
        dead_letters=[_letter(letter) for letter in page.letters],
        tallies=tallies_of(page),
        health=_health(page),
        learned=[_learned(item) for item in page.learned],
    ):
        return 0  # another recorder was there first
    redis.xtrim(keys.journal, minid=_next(last), approximate=False)
    metrics.RECORDED.labels("deliveries").inc(len(page.rows))
    metrics.RECORDED.labels("dead_letters").inc(len(page.letters))
    return max(len(page.rows) + len(page.letters), 1)


def _next(entry_id: str) -> str:
    milliseconds, _, number = entry_id.partition("-")
    return f"{milliseconds}-{int(number) + 1}"


def _joined(pages: list[Page]) -> Page:
    accepted: Counter[str] = Counter()
    for page in pages:
        accepted.update(page.accepted)
    return Page(
        [row for page in pages for row in page.rows],
        [letter for page in pages for letter in page.letters],
        [failure for page in pages for failure in page.failures],
        [item for page in pages for item in page.learned],
        dict(accepted),
    )


def tallies_of(page: Page) -> Counter[tuple[str, str]]:
    """Return the page's counts by (integration, outcome or "accepted")."""
    counts = Counter((row.integration_id, row.outcome) for row in page.rows)
    for integration, count in page.accepted.items():
        counts[integration, "accepted"] += count
    return counts


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _delivery(row: Any) -> dict[str, Any]:
    fields = msgspec.structs.asdict(row)
    return fields | {"accepted_at": _time(row.accepted_at), "finished_at": _time(row.finished_at)}


def _letter(letter: Any) -> dict[str, Any]:
    return msgspec.structs.asdict(letter) | {"created_at": _time(letter.created_at)}


def _learned(item: Any) -> dict[str, Any]:
    return {
        "project_id": item.project_id,
        "user_key": item.user_key,
        "record": item.record,
        "state": "resolved",
        "updated_at": _time(item.at),
    }


def _health(page: Page) -> dict[str, dict[str, Any]]:
    """Return the last delivery and the failures since of every integration in the page."""
    health: dict[str, dict[str, Any]] = {}
    for row in page.rows:
        if row.outcome == "delivered":
            seen = health.setdefault(row.integration_id, {"failures": 0, "delivered": True})
            seen["delivered"] = True
            seen["last_delivery_at"] = max(
                _time(row.finished_at), seen.get("last_delivery_at", _time(0))
            )
    letters = ((x.integration_id, x.created_at, x.reason, x.message) for x in page.letters)
    failures = ((f.integration_id, f.at, f.reason, f.message) for f in page.failures)
    for integration_id, at, reason, message in sorted(
        [*letters, *failures], key=lambda failure: failure[1]
    ):
        if integration_id is None:
            continue
        seen = health.setdefault(integration_id, {"failures": 0, "delivered": False})
        if not seen.get("last_delivery_at") or _time(at) >= seen["last_delivery_at"]:
            seen["failures"] += 1
        seen |= {"last_error_at": _time(at), "last_error_reason": reason}
        seen["last_error_message"] = message
    return health


def _suspend_wanted(redis: Any, engine: Engine, keys: Keys) -> None:
    """Carry out the suspensions the delivery loop asked for; of several workers one does it."""
    for raw_id, raw in redis.hgetall(keys.wanted).items():
        wanted = msgspec.json.decode(raw, type=_Wanted)
        integration_id = raw_id.decode()
        with engine.begin() as connection:
            flipped = integrations.suspend(
                connection,
                integration_id,
                wanted.epoch,
                message=wanted.message,
                reason=wanted.reason,
                at=_time(wanted.at),
            )
            slug = integrations.get(connection, integration_id).slug if flipped else ""
        if flipped and slug in all_providers():
            metrics.SUSPENSIONS.labels(slug, wanted.reason).inc()
        if redis.hget(keys.wanted, raw_id) == raw:
            redis.hdel(keys.wanted, raw_id)
