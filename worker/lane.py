"""What waits: reading a lane in order, letting it go, and dropping what is too old or too much."""

import math
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import msgspec

from providers.kit import Event
from providers.kit.decode import decode
from worker.pipeline import Delivery, Pipeline
from worker.suspension import Health

PAGE = 200  # entries read at a time, if a batch is not larger
LARGEST_PAGE = 2_000
LEAST = 10
_Read: TypeAlias = tuple[bytes, dict[bytes, bytes]]  # an entry of the lane: id, fields


class Tried(msgspec.Struct, array_like=True):
    """What is remembered of a lane entry that was tried: kept beside the lane, by its id."""

    attempts: int = 0
    due: int = 0  # store clock, ms; 0: with the pipeline
    step: int = 0
    note: str = ""
    user: str = ""
    alone: int = 0  # failures while others were taken


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Tried).decode


def pack_tried(delivery: Delivery) -> bytes:
    """Return what to remember of a delivery."""
    return _encode(
        Tried(
            delivery.attempts,
            delivery.due,
            delivery.step,
            delivery.note,
            delivery.user,
            delivery.alone,
        )
    )


async def load(redis: Any, pipeline: Pipeline) -> None:
    """Read from Redis how a pipeline stands that somebody else drained before; write nothing.

    What comes late of it, when another has the shard, must not hide from that one what has grown.
    """
    keys, integration = pipeline.shard.keys, pipeline.integration
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hget(keys.grown, integration.id)
        pipe.xlen(keys.lane(integration.id))
        pipe.hgetall(keys.tries(integration.id))
        pipe.hgetall(keys.pipe(integration.id, integration.epoch))
        pipe.zscore(keys.due, integration.id)
        grown, length, tries, state, due = await pipe.execute()
    pipeline.lane_len = length
    if count := int(grown or 0):  # it is in the length
        pipeline.shard.notice(integration.id.encode(), count)
    pipeline.due = due or 0
    for lane_id, raw in tries.items():
        if lane_id == b"batch":
            last, opened = raw.split(b"|")
            pipeline.batch = (last, int(opened))
        elif (tried := _decode(raw)).due:
            pipeline.wait(lane_id, tried.due, tried.user)
    health = {name.decode(): int(value) for name, value in state.items()}
    if health.get("suspended"):
        pipeline.suspended_epoch = integration.epoch
    pipeline.health = Health(
        failures=health.get("failures", 0),
        refusals=health.get("refusals", 0),
        probation=integration.on_probation and not health.get("delivered"),
    )
    pipeline.probing = bool(pipeline.health.failures or pipeline.health.probation)


async def read(redis: Any, pipeline: Pipeline, now_ms: float, room: int = PAGE) -> None:
    """Fill the pipeline's buffer with the next page of its lane, in order: about `room` entries.

    Entries that wait for themselves, and later ones of their users, are passed over.
    """
    rewinds, growths = pipeline.rewinds, pipeline.growths
    page = min(max(LEAST, min(room, PAGE), pipeline.integration.limits.events), LARGEST_PAGE)
    entries, known = await _page(redis, pipeline, page)
    for (lane_id, fields), raw in known:
        if lane_id in pipeline.waiting:
            due, _ = pipeline.waiting[lane_id]
            if due > now_ms:
                pipeline.passed_over = True
                continue
            pipeline.unwait(lane_id)
        delivery = _delivery(pipeline, lane_id, fields, raw)
        if delivery.due > now_ms:  # a fresh one that was refused by name
            pipeline.wait(lane_id, delivery.due, delivery.user)
            pipeline.passed_over = True
            continue
        if pipeline.comes_later(delivery.user, lane_id):
            pipeline.passed_over = True
            continue
        pipeline.live.add(lane_id)
        pipeline.buffer.append(delivery)
    if pipeline.rewinds != rewinds or pipeline.placing:  # meanwhile: it is read again
        return
    if len(entries) < page and pipeline.growths == growths:
        pipeline.exhausted = True
    if entries:
        pipeline.cursor = b"(" + entries[-1][0]


async def _page(
    redis: Any, pipeline: Pipeline, count: int
) -> tuple[list[_Read], list[tuple[_Read, bytes | None]]]:
    """Return the next entries of the lane, and those not in memory with what is kept of them.

    None of these where some may be in flight: those that were sent and are being put there. What
    was put there from outside is noticed with it: settled first, it would leave the lane, and that
    would seem empty before what stands behind it was read.
    """
    keys, integration = pipeline.shard.keys, pipeline.integration
    until = pipeline.batch[0] if pipeline.batch else b"+"
    with pipeline.looking():
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hget(keys.grown, integration.id)
            pipe.xrange(keys.lane(integration.id), min=pipeline.cursor, max=until, count=count)
            grown, entries = await pipe.execute()
        if pipeline.noticing:  # meanwhile, and perhaps not all of it
            return [], []
        if new := int(grown or 0):
            pipeline.grow_lane(new)
        found = [entry for entry in entries if entry[0] not in pipeline.live]
        if pipeline.placing or not found:
            return entries, []
        ids = [lane_id for lane_id, _ in found]
        kept = await redis.hmget(keys.tries(integration.id), ids)
        read_with = zip(found, kept, strict=True)
        return entries, [(entry, raw) for entry, raw in read_with if entry[0] not in pipeline.live]


def _delivery(
    pipeline: Pipeline, lane_id: bytes, fields: dict[bytes, bytes], tried: bytes | None
) -> Delivery:
    accepted = int(fields[b"t"])
    raw = fields[b"e"]
    known = (
        _decode(tried)
        if tried
        else Tried(
            int(fields.get(b"a", 0)),
            int(fields.get(b"d", 0)),
            int(fields.get(b"s", 0)),
            fields.get(b"n", b"").decode(),
        )
    )
    return Delivery(
        event=event_of(raw, accepted),
        raw=raw,
        pipeline=pipeline,
        accepted=accepted,
        lane_id=lane_id,
        attempts=known.attempts,
        step=known.step,
        note=known.note,
        due=known.due,
        alone=known.alone,
    )


def event_of(raw: bytes, accepted_ms: int) -> Event:
    """Return the event of a lane's entry; it was valid when it was accepted."""
    return decode(raw, accepted_ms // 1000)


async def head(
    redis: Any, pipeline: Pipeline, most: float = math.inf
) -> AsyncIterator[list[Delivery]]:
    """Yield pages of the lane from its head: what to drop when it is let go or too long.

    `most` are about so many of those not in memory: what is just being deleted is none of them.
    It ends where some that were sent are being put there: it is then asked for again.
    """
    lane = pipeline.shard.keys.lane(pipeline.integration.id)
    cursor: bytes = b"-"
    page, left = LEAST, most
    while left > 0:
        with pipeline.looking():
            entries = await redis.xrange(lane, min=cursor, max=b"+", count=int(min(page, left)))
            ours = [entry for entry in entries if entry[0] not in pipeline.live]
        if not entries or pipeline.placing:
            return
        page = PAGE
        left -= len(ours)
        cursor = b"(" + entries[-1][0]
        yield [_delivery(pipeline, lane_id, fields, None) for lane_id, fields in ours]
