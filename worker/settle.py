"""What the next commit writes when a delivery ends, waits, or its pipeline changes. No I/O."""

from providers.kit import Delivered, Rejected, dump_text
from worker import lane, metrics
from worker.journal import Failure, Learned, Letter, Row
from worker.pipeline import Delivery, Landed, Pipeline
from worker.state import PIPE_DAYS
from worker.suspension import Health

PIPE_SECONDS = PIPE_DAYS * 86_400


def settle(delivery: Delivery, landed: Landed, now: int, name: str = "") -> None:
    """Write the end of a delivery, as `name` if that is not the outcome's own.

    One whose place in the lane is just being written is settled when that is known.
    """
    pipeline, outcome = delivery.pipeline, landed.outcome
    integration, shard = pipeline.integration, pipeline.shard
    if delivery.lane_id == b"":
        delivery.landed = landed
        shard.after.append(lambda: settle(delivery, landed, now, name))
        return
    if isinstance(outcome, Delivered):
        name, reason, message = name or "delivered", "", outcome.message
    else:
        name = name or type(outcome).__name__.lower()
        reason, message = outcome.reason, outcome.message
    shard.page.rows += _rows([delivery], landed, name, reason, message, now)
    shard.tallies[integration.id, name] += 1
    metrics.ended(integration.slug, name, reason or "ok")
    if isinstance(outcome, Delivered):
        metrics.lags(integration.slug, ((now - delivery.accepted) / 1000,))
        if outcome.learned:
            _learned(delivery, outcome, now)
    elif isinstance(outcome, Rejected):
        event = delivery.event
        shard.page.letters.append(
            Letter(
                integration.project_id, integration.id, event.id, event.name, reason, message,
                None, delivery.raw, landed.request, landed.response, landed.status,
                delivery.attempts, now,
            )
        )  # fmt: skip
    if delivery.entry is not None:
        shard.settle(delivery.entry, integration.id)
    elif delivery.lane_id:
        _leave_lane(pipeline, delivery.lane_id)


def settle_delivered(batch: list[Delivery], landed: Landed, now: int) -> None:
    """Settle a batch that was taken as a whole; in one go where all are fresh."""
    outcome = landed.outcome
    entries = [delivery.entry for delivery in batch if delivery.entry is not None]
    if len(entries) < len(batch) or not isinstance(outcome, Delivered) or outcome.learned:
        for delivery in batch:
            settle(delivery, landed, now)
        return
    pipeline = batch[0].pipeline
    integration, shard = pipeline.integration, pipeline.shard
    shard.page.rows += _rows(batch, landed, "delivered", "", outcome.message, now)
    shard.tallies[integration.id, "delivered"] += len(batch)
    metrics.ended(integration.slug, "delivered", "ok", len(batch))
    metrics.lags(integration.slug, [(now - delivery.accepted) / 1000 for delivery in batch])
    shard.settle_all(entries, integration.id)


def _rows(  # noqa: PLR0917  the columns
    batch: list[Delivery], landed: Landed, name: str, reason: str, message: str, now: int
) -> list[Row]:
    integration, status = batch[0].pipeline.integration, landed.status
    integration_id, project_id = integration.id, integration.project_id
    return [
        Row(
            integration_id, project_id, (event := delivery.event).id, event.name, name, reason,
            message, status, delivery.attempts, delivery.accepted, now,
            (delivery.entry.id if delivery.entry else delivery.lane_id or b"").decode(),
        )
        for delivery in batch
    ]  # fmt: skip


def _leave_lane(pipeline: Pipeline, lane_id: bytes) -> None:
    keys, integration = pipeline.shard.keys, pipeline.integration
    commands = pipeline.shard.commands
    commands.append(("XDEL", keys.lane(integration.id), lane_id))
    # of its tries this process need not know: one that is read while they are written has none
    commands.append(("HDEL", keys.tries(integration.id), lane_id))
    pipeline.unwait(lane_id)
    pipeline.shrink_lane()
    if pipeline.passed_over:
        pipeline.rewind()
    if pipeline.lane_len == 0:
        commands.append(("EMPTIED", keys.lane(integration.id), keys.due, integration.id))
        pipeline.due = 0
        if integration.limits.whole_batches:  # else what comes next waits until that one is over
            commands.append(("HDEL", keys.tries(integration.id), "batch"))
            pipeline.batch = None
    pipeline.live.add(lane_id)  # not to be read again before it is gone there
    pipeline.shard.after.append(lambda: pipeline.deleted(lane_id))


def _learned(delivery: Delivery, outcome: Delivered, now: int) -> None:
    shard, user = delivery.pipeline.shard, delivery.event.user_key
    project = delivery.pipeline.integration.project_id
    record = dump_text(dict(outcome.learned or {}))
    shard.commands.append(("HSET", shard.keys.users(project), user, record))
    shard.page.learned.append(Learned(project, user, record, now))


def remain(delivery: Delivery) -> None:
    """Leave a delivery in the lane, remembering how often it was tried and what it waits for."""
    pipeline, lane_id = delivery.pipeline, delivery.lane_id
    if not lane_id:
        return
    tries = pipeline.shard.keys.tries(pipeline.integration.id)
    pipeline.shard.commands.append(("HSET", tries, lane_id, lane.pack_tried(delivery)))
    pipeline.live.discard(lane_id)
    if delivery.due:
        pipeline.wait(lane_id, delivery.due, delivery.user)


def pause(pipeline: Pipeline, due: float) -> None:
    """Let nothing start before `due` (store clock, ms); then one probe."""
    pipeline.due, pipeline.probing, pipeline.ramp = due, True, 1
    keys = pipeline.shard.keys
    pipeline.shard.commands.append(("ZADD", keys.due, int(due), pipeline.integration.id))


def remember(pipeline: Pipeline, health: Health, *, delivered: bool = False) -> None:
    """Keep the failures in a row for whoever drains the shard next."""
    key = pipeline.shard.keys.pipe(pipeline.integration.id, pipeline.integration.epoch)
    values: list[str | int] = ["failures", health.failures, "refusals", health.refusals]
    if delivered:
        values += ["delivered", 1]
    pipeline.shard.commands += [("HSET", key, *values), ("EXPIRE", key, PIPE_SECONDS)]


def failure(pipeline: Pipeline, now: int) -> None:
    """Tell the record of a failed round."""
    pipeline.shard.page.failures.append(
        Failure(
            pipeline.integration.id, now, pipeline.reason, pipeline.message,
            pipeline.health.failures,
        )
    )  # fmt: skip


def want_suspension(pipeline: Pipeline, now: int) -> None:
    """Ask the database to suspend the pipeline; until it did, this mark says so to all workers."""
    integration, shard = pipeline.integration, pipeline.shard
    wanted = {
        "epoch": integration.epoch,
        "reason": pipeline.reason,
        "message": pipeline.message,
        "at": now,
    }
    shard.commands.append(("HSET", shard.keys.wanted, integration.id, dump_text(wanted)))
    key = shard.keys.pipe(integration.id, integration.epoch)
    shard.commands += [("HSET", key, "suspended", 1), ("EXPIRE", key, PIPE_SECONDS)]
