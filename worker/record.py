"""Journal → database, in bulk and once; and the suspensions that are wanted.

Blocking: while the database is away the journal waits, and delivery goes on.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
from redis.exceptions import ResponseError
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError

from worker import metrics, traces
from worker.clock import time_of
from worker.journal import PAGE, Page, Row, unpack
from worker.registry import all_providers
from worker.state import CARRIED_OUT, Keys
from worker.store import integrations
from worker.store.database import reading
from worker.store.deliveries import last_recorded, record_shards

log = logging.getLogger(__name__)

PAGES = 600  # journal entries a transaction, of all shards together
SPOILT = (ResponseError, msgspec.DecodeError, UnicodeDecodeError, DataError, IntegrityError)


class _Wanted(msgspec.Struct):
    epoch: int
    reason: str
    message: str
    at: int


def record(
    redis: Any, engine: Engine, shards: int, goes_on: Callable[[bool], object] = lambda _: None
) -> int:
    """Move every shard's journal to the database until it is empty; return the rows written.

    `goes_on` is called before each transaction, with whether what is left is that one's.

    All go together, for a transaction costs as much as a hundred rows; where that fails, each goes
    by itself, so that a journal that is spoilt keeps no other back.
    """
    every = [Keys(number) for number in range(shards)]
    try:
        written = _record_all(redis, engine, every, goes_on)
    except SPOILT:
        written = 0
        for keys in every:
            try:
                written += _record_all(redis, engine, [keys], goes_on)
            except SPOILT:
                told = "The journal of shard %d cannot be recorded; going on with others"
                log.exception(told, keys.shard)
    _suspend_wanted(redis, engine, every)
    return written


def _record_all(
    redis: Any, engine: Engine, shards: Sequence[Keys], goes_on: Callable[[bool], object]
) -> int:
    written, more = 0, True
    while more:
        rows, more = _record_some(redis, engine, shards, goes_on)
        written += rows
    return written


def _record_some(
    redis: Any, engine: Engine, shards: Sequence[Keys], goes_on: Callable[[bool], object]
) -> tuple[int, bool]:
    """Record the heads of the journals that hold something.

    Returns how many rows that was, and whether the journals held more than that: what comes
    meanwhile is for the next time, for a few rows by themselves cost many times as much each.
    """
    lengths = _each(redis, shards, lambda pipe, keys: pipe.xlen(keys.journal))
    filled = [keys for keys, length in zip(shards, lengths, strict=True) if length]
    if not filled:
        return 0, False
    with reading(engine) as connection:
        before = last_recorded(connection, [keys.shard for keys in filled])
    more = sum(lengths) > PAGES
    goes_on(not more)
    most = max(PAGES // len(filled), 1) if more else max(lengths)
    after = {keys.journal: before.get(keys.shard, "0") for keys in filled}
    heads = {name.decode(): head for name, head in redis.xread(after, count=most)}
    last = {
        keys.shard: heads[keys.journal][-1][0].decode() for keys in filled if keys.journal in heads
    }
    page = _joined([unpack(fields[PAGE]) for head in heads.values() for _, fields in head])
    if last and not record_shards(
        engine,
        [(shard, before.get(shard), until) for shard, until in last.items()],
        deliveries=_deliveries(page.rows),
        dead_letters=[_letter(letter) for letter in page.letters],
        tallies=tallies_of(page),
        health=_health(page),
        learned=[_learned(item) for item in page.learned],
        nearing=[msgspec.structs.asdict(one) | {"at": _time(one.at)} for one in page.nearing],
    ):
        return 0, False  # another recorder was there first
    _trim(redis, filled, before | last)
    if traces.on:
        traces.on.recorded(page.rows)
    metrics.RECORDED.labels("deliveries").inc(len(page.rows))
    metrics.RECORDED.labels("dead_letters").inc(len(page.letters))
    return len(page.rows) + len(page.letters), more


def _each(redis: Any, shards: Sequence[Keys], ask: Callable[[Any, Keys], Any]) -> list[Any]:
    """Return the answers to a question of each shard, asked all at once."""
    pipe = redis.pipeline(transaction=False)
    for keys in shards:
        ask(pipe, keys)
    return list(pipe.execute())


def _trim(redis: Any, shards: Sequence[Keys], recorded: Mapping[int, str]) -> None:
    """Drop from each journal what is recorded, if anything is."""
    pipe = redis.pipeline(transaction=False)
    for keys in shards:
        if last := recorded.get(keys.shard):
            pipe.xtrim(keys.journal, minid=_next(last), approximate=False)
    pipe.execute()


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
        [one for page in pages for one in page.nearing],
    )


def tallies_of(page: Page) -> Counter[tuple[str, str]]:
    """Return the page's counts by (integration, outcome or "accepted")."""
    counts = Counter(map(attrgetter("integration_id", "outcome"), page.rows))
    for integration, count in page.accepted.items():
        counts[integration, "accepted"] += count
    return counts


_time = lru_cache(4096)(time_of)


def _deliveries(rows: Sequence[Row]) -> list[Sequence[Any]]:
    """Return the columns of the rows; their times, which often come again, as text."""
    columns: list[Sequence[Any]] = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
    if columns:
        times = columns[-3:-1]
        texts = {ms: f"{_second(ms // 1000)}.{ms % 1000:03d}+00:00" for ms in {*chain(*times)}}
        columns[-3:-1] = ([texts[ms] for ms in column] for column in times)
    return columns


@lru_cache(64)
def _second(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


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
    """Return the last delivery and the failures since of every integration in the page.

    A rejected event is one, and so is a failed round, of however many events.
    """
    delivered: dict[str, int] = {}
    for row in page.rows:
        if row.outcome == "delivered" and row.finished_at > delivered.get(row.integration_id, 0):
            delivered[row.integration_id] = row.finished_at
    health: dict[str, dict[str, Any]] = {
        integration_id: {"failures": 0, "delivered": True, "last_delivery_at": _time(at)}
        for integration_id, at in delivered.items()
    }
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


def _suspend_wanted(redis: Any, engine: Engine, shards: Sequence[Keys]) -> None:
    """Carry out the suspensions the delivery loop asked for; of several workers one does it."""
    wishes = _each(redis, shards, lambda pipe, keys: pipe.hgetall(keys.wanted))
    for keys, wanted in zip(shards, wishes, strict=True):
        for raw_id, raw in wanted.items():
            _suspend(redis, engine, keys, raw_id, raw)


def _suspend(redis: Any, engine: Engine, keys: Keys, raw_id: bytes, raw: bytes) -> None:
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
    redis.eval(CARRIED_OUT, 1, keys.wanted, raw_id, raw)
