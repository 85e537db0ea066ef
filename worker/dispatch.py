"""Who sends what, when: pipelines, their rounds, back-off, and what is settled.

The delivery loop's decisions, without its reading and committing (`drain.py`). Runs on one event
loop; nothing here waits for the database.
"""

import asyncio
import heapq
import logging
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

from providers.kit import (
    Delivered,
    Event,
    Rejected,
    Retry,
    Skipped,
    dump_text,
)
from worker import lane, metrics
from worker.attempt import Attempt, Report, context_for
from worker.backoff import delay, wait_after
from worker.clock import StoreClock
from worker.directory import Directory, Integration
from worker.journal import Failure, Learned, Letter, Row
from worker.pipeline import FIRST_RAMP, Delivery, Landed, Pipeline
from worker.settings import WorkerSettings
from worker.shard import Entry, Shard
from worker.state import PIPE_DAYS, State
from worker.suspension import Health, Round, Thresholds, after_round
from worker.tokens import Tokens
from worker.transport import Transport

log = logging.getLogger(__name__)

FAIR_SHARE = 16  # requests in flight a pipeline may always have, while others wait
DAY_MS = 86_400_000  # an attribution that has not come by then does not come
PIPE_SECONDS = PIPE_DAYS * 86_400


@dataclass
class Dispatcher:
    """All pipelines of the shards this process holds."""

    settings: WorkerSettings
    directory: Directory
    transport: Transport
    state: State
    clock: StoreClock

    def __post_init__(self) -> None:
        self.pipelines: dict[str, Pipeline] = {}
        self.tokens = Tokens(self.transport)
        self.requests = 0  # in flight
        self.unsent = 0  # fresh deliveries in memory
        self.leaving = False
        self.thresholds = Thresholds(
            self.settings.retry_threshold,
            self.settings.credential_threshold,
            self.settings.reject_threshold,
        )
        self._starved: deque[Pipeline] = deque()
        self._timers: list[tuple[float, int, Pipeline]] = []
        self._order = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._active: set[Pipeline] = set()

    # --- events come in ---------------------------------------------------------------------

    def pipeline_of(self, shard: Shard, integration: Integration) -> Pipeline:
        """Return the pipeline of an integration, new if need be."""
        pipeline = self.pipelines.get(integration.id)
        if pipeline is None:
            pipeline = Pipeline(integration, shard)
            pipeline.health = Health(probation=integration.on_probation)
            self.pipelines[integration.id] = pipeline
        return pipeline

    def offer(
        self, shard: Shard, entry: Entry, integration: Integration, event: Event, raw: bytes
    ) -> None:
        """Take one target of a fresh entry: queue it, or put it into the lane."""
        pipeline = self.pipeline_of(shard, integration)
        accepted = int(entry.id.split(b"-")[0])
        delivery = Delivery(event, raw, pipeline, accepted, entry)
        delivery.since = asyncio.get_running_loop().time()
        if integration.active == 0:
            self.settle(delivery, Landed(Skipped("off", "the integration is paused")))
        elif integration.fault and not pipeline.held:
            shard.to_lane(delivery)
            self._suspend(pipeline, "settings", integration.fault)
        elif pipeline.lane_first(delivery.user):
            self._join_lane(pipeline, delivery)
        else:
            pipeline.push(delivery)
            self.unsent += 1
            self.pump(pipeline)

    def _join_lane(self, pipeline: Pipeline, delivery: Delivery) -> None:
        if pipeline.integration.through_lane and not pipeline.due and not pipeline.held:
            linger = pipeline.integration.limits.linger.total_seconds() * 1000
            pipeline.due = self.clock.now_ms() + linger
            self._timer(pipeline, pipeline.due)
        pipeline.shard.to_lane(delivery)
        pipeline.exhausted = False
        pipeline.shard.after.append(lambda: self.pump(pipeline))

    def overflow(self) -> None:
        """Move the longest queue to its lane: reading must not wait for one pipeline."""
        longest = max(self._active, key=lambda pipeline: pipeline.size, default=None)
        if longest is not None and longest.size:
            self._queue_to_lane(longest)
            longest.shard.after.append(lambda: self.pump(longest))

    @property
    def crowded(self) -> bool:
        """Whether more than one pipeline has something to send."""
        return len(self._active) > 1

    def _queue_to_lane(self, pipeline: Pipeline) -> None:
        """Everything fresh of a pipeline goes to its lane, what is in flight first."""
        for delivery in pipeline.flying:
            if delivery.lane_id is None:
                pipeline.shard.to_lane(delivery)
        queued = pipeline.empty()
        self.unsent -= len(queued)
        for delivery in queued:
            pipeline.shard.to_lane(delivery)
        pipeline.exhausted = False

    # --- events go out ----------------------------------------------------------------------

    def pump(self, pipeline: Pipeline) -> None:
        """Start what may be started now, and see that the rest is thought of later."""
        if pipeline.held or pipeline.closed or self.leaving or pipeline.shard.leaving:
            return
        now = self.clock.now_ms()
        if self._gathering(pipeline, now):
            return
        if pipeline.due > now:
            self._timer(pipeline, pipeline.due)
            return
        self._wake(pipeline, now)
        limits = pipeline.integration.limits
        while pipeline.requests < self._allowed(pipeline):
            if self.requests >= self.settings.window:
                self._starved.append(pipeline)
                return
            if self._unread(pipeline) and (limits.whole_batches or not pipeline.buffer):
                self._read_lane(pipeline)
                return
            if not pipeline.buffer and self._lingers(pipeline):
                return
            batch = pipeline.take(limits.events, limits.bytes)
            if not batch:
                break
            self.unsent -= sum(delivery.lane_id is None for delivery in batch)
            self._start(pipeline, batch)
        self._note_activity(pipeline)

    def _gathering(self, pipeline: Pipeline, now: float) -> bool:
        """Whether a bucket's batch is still filling, or must be fixed before it is sent."""
        limits = pipeline.integration.limits
        if not limits.whole_batches or pipeline.lane_len == 0:
            return False
        if pipeline.batch is None:
            if pipeline.due > now and pipeline.lane_len < limits.events:
                self._timer(pipeline, pipeline.due)
                return True
            if not pipeline.reading:
                self._spawn(self._fix_batch(pipeline))
            return True
        return pipeline.requests > 0

    async def _fix_batch(self, pipeline: Pipeline) -> None:
        """Fix a batch's members and opening time in Redis, before its first attempt."""
        pipeline.reading = True
        keys, integration = pipeline.shard.keys, pipeline.integration
        try:
            entries = await self.state.redis.xrange(
                keys.lane(integration.id), count=integration.limits.events
            )
        finally:
            pipeline.reading = False
        if not entries or pipeline.shard.lost:
            return
        opened = int(self.clock.now_ms())
        pipeline.due = 0
        last = entries[-1][0]
        value = b"%b|%d" % (last, opened)
        pipeline.shard.commands.append(("HSET", keys.tries(integration.id), "batch", value))

        def fixed() -> None:
            pipeline.batch = (last, opened)
            pipeline.rewind()
            self.pump(pipeline)

        pipeline.shard.after.append(fixed)

    def _allowed(self, pipeline: Pipeline) -> int:
        """How many requests this pipeline may have in flight now."""
        if pipeline.probing or pipeline.integration.limits.whole_batches:
            return 1
        fair = self.settings.window
        if len(self._active) > 1:
            fair = max(FAIR_SHARE, self.settings.window // len(self._active))
        most = min(pipeline.integration.limits.concurrency, fair)
        return min(most, pipeline.ramp) if pipeline.lane_len else most

    def _unread(self, pipeline: Pipeline) -> bool:
        return pipeline.lane_len > 0 and not pipeline.exhausted

    def _wake(self, pipeline: Pipeline, now: float) -> None:
        """Let lane entries whose own wait is over be read again; clear a lane that is empty."""
        if pipeline.lane_len <= 0 and not pipeline.probing:
            pipeline.due, pipeline.ramp = 0, FIRST_RAMP
        if pipeline.waiting:
            first = min(due for due, _ in pipeline.waiting.values())
            if first <= now:
                pipeline.rewind()
            else:
                self._timer(pipeline, first)

    def _lingers(self, pipeline: Pipeline) -> bool:
        """Whether a JSON batch waits in memory for more events, for at most its linger."""
        limits = pipeline.integration.limits
        if limits.events == 1 or not pipeline.queue or len(pipeline.queue) >= limits.events:
            return False
        loop = asyncio.get_running_loop()
        left = pipeline.queue[0].since + limits.linger.total_seconds() - loop.time()
        if left <= 0:
            return False
        self._timer(pipeline, self.clock.now_ms() + left * 1000)
        return True

    def _read_lane(self, pipeline: Pipeline) -> None:
        if pipeline.reading:
            return
        pipeline.reading = True
        self._spawn(self._read(pipeline))

    async def _read(self, pipeline: Pipeline) -> None:
        try:
            await lane.read(self.state.redis, pipeline, self.clock.now_ms())
        finally:
            pipeline.reading = False
        if pipeline.buffer or not pipeline.exhausted:
            self.pump(pipeline)
        elif pipeline.probing and pipeline.lane_len == 0:
            pipeline.probing = False

    def _start(self, pipeline: Pipeline, batch: list[Delivery]) -> None:
        pipeline.requests += 1
        self.requests += 1
        self._active.add(pipeline)
        self._spawn(self._fly(pipeline, batch))

    async def _fly(self, pipeline: Pipeline, batch: list[Delivery]) -> None:
        """Send a batch and land it; whatever happens, it lands."""
        integration = pipeline.integration
        for delivery in batch:
            delivery.attempts += 1
        try:
            report = await self._attempt(pipeline, integration, batch)
        except asyncio.CancelledError:
            cut = Retry("interrupted", "the worker stopped before the answer came")
            report = Report([Landed(cut) for _ in batch], message=cut.message, reason=cut.reason)
        self._landed(pipeline, batch, report)

    async def _attempt(
        self, pipeline: Pipeline, integration: Integration, batch: list[Delivery]
    ) -> Report:
        now = self.clock.now_ms()
        token = await self.tokens.values(integration, now)
        if not isinstance(token, Mapping):
            report = Report([Landed(token) for _ in batch])
            report.blame(token)
            return report
        more = await self._knowledge(pipeline, batch)
        context = context_for(
            integration,
            now,
            token=token,
            notes={d.event.id: d.note for d in batch if d.note},
            batch_at=_time(pipeline.batch[1]) if pipeline.batch else None,
            **more,
        )
        try:
            return await Attempt(
                integration,
                self.transport,
                context,
                [delivery.event for delivery in batch],
                [delivery.step for delivery in batch],
            ).run()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if len(batch) > 1:
                return await self._one_by_one(pipeline, integration, batch)
            log.exception("The %s adapter failed on event %s", integration.slug, batch[0].event.id)
            outcome = Rejected(
                "adapter_error", f"{type(error).__name__} in the adapter; see the log"
            )
            return Report([Landed(outcome)])

    async def _one_by_one(
        self, pipeline: Pipeline, integration: Integration, batch: list[Delivery]
    ) -> Report:
        """Find the event that an adapter fails on, and let the others pass."""
        middle = len(batch) // 2
        whole = await self._attempt(pipeline, integration, batch[:middle])
        other = await self._attempt(pipeline, integration, batch[middle:])
        whole.landed += other.landed
        for name in ("failed", "refused", "throttled", "gone"):
            setattr(whole, name, getattr(whole, name) or getattr(other, name))
        whole.message, whole.reason = whole.message or other.message, whole.reason or other.reason
        return whole

    async def _knowledge(self, pipeline: Pipeline, batch: list[Delivery]) -> dict[str, Any]:
        """Return what is known of the users, for providers that resolve or need attribution."""
        provider = pipeline.integration.provider
        if provider.slug != "searchads" and not provider.needs_attribution:
            return {}
        keys = sorted({d.event.user_key for d in batch if d.event.user_key})
        known = await self.state.attributions(
            pipeline.shard.keys, pipeline.integration.project_id, keys
        )
        resolves = any(
            other.slug == "searchads" and other.active
            for other in self.directory.targets(pipeline.integration.project_id, "iOS")
        )
        now = self.clock.now_ms()
        resolving = {
            d.event.user_key
            for d in batch
            if resolves
            and d.event.user_key not in known
            and "_q_asa_token" in d.event.properties
            and now - d.accepted < DAY_MS
        }
        return {"attributions": known, "resolving": frozenset(resolving)}

    # --- answers come back ------------------------------------------------------------------

    def _landed(self, pipeline: Pipeline, batch: list[Delivery], report: Report) -> None:
        pipeline.requests -= 1
        self.requests -= 1
        pipeline.land(batch)
        delivered = rejected = 0
        for delivery, landed in zip(batch, report.landed, strict=True):
            assert landed is not None  # noqa: S101  Attempt.run leaves none
            match landed.outcome:
                case Delivered():
                    delivered += 1
                    self.settle(delivery, landed)
                case Rejected():
                    rejected += 1
                    self.settle(delivery, landed)
                case Skipped():
                    self.settle(delivery, landed)
                case _:
                    self._stumbled(pipeline, delivery, landed)
        round_ = Round(
            delivered, rejected, report.failed, report.refused, report.throttled, report.gone,
            report.asked,
        )  # fmt: skip
        if report.reason:
            pipeline.reason = report.reason
            pipeline.message = self._told(pipeline.integration, report)
        if (
            pipeline.closed
            or pipeline.stumbled
            or report.failed
            or report.refused
            or report.throttled
            or report.gone
        ):
            pipeline.round = _joined(pipeline.round, round_)
            self._close(pipeline)
        else:
            self._went_well(pipeline, round_)
        if pipeline.batch and not pipeline.closed and pipeline.requests == 0:
            self._batch_over(pipeline)
        self._feed()

    def _told(self, integration: Integration, report: Report) -> str:
        statuses = [landed.status for landed in report.landed if landed and landed.status]
        status = (
            f"{statuses[0]} from {integration.provider.title}"
            if statuses
            else integration.provider.title
        )
        return f"{status}: {report.message or report.reason}"

    def _went_well(self, pipeline: Pipeline, round_: Round) -> None:
        health, verdict = after_round(pipeline.health, round_, self.thresholds)
        if round_.delivered and (pipeline.health != Health() or pipeline.probing):
            self._remember(pipeline, health, delivered=True)
        pipeline.health = health
        if verdict == "suspend":
            told = f"{health.rejections} events rejected in a row, none delivered between"
            self._suspend(pipeline, "rejected", told)
            return
        if round_.delivered or round_.rejected:
            pipeline.probing = False
        pipeline.ramp = min(pipeline.ramp * 2, self.settings.window)
        self.pump(pipeline)

    def _batch_over(self, pipeline: Pipeline) -> None:
        """A whole batch is through: the next one gathers."""
        keys, integration = pipeline.shard.keys, pipeline.integration
        pipeline.shard.commands.append(("HDEL", keys.tries(integration.id), "batch"))
        pipeline.batch = None
        pipeline.rewind()
        linger = integration.limits.linger.total_seconds() * 1000
        pipeline.due = self.clock.now_ms() + linger if pipeline.lane_len > 0 else 0
        if pipeline.lane_len > 0:
            pipeline.shard.after.append(lambda: self.pump(pipeline))

    def _stumbled(self, pipeline: Pipeline, delivery: Delivery, landed: Landed) -> None:
        outcome = landed.outcome
        delivery.step = landed.step
        if isinstance(outcome, Retry):
            delivery.note = outcome.note
            if outcome.note == "new_token":
                self.tokens.forget(pipeline.integration.id)
        delivery.landed = landed
        if landed.alone:
            self._wait_alone(delivery)
        else:
            pipeline.stumbled.append(delivery)
            if delivery.lane_id is None:
                pipeline.shard.to_lane(delivery)

    def _close(self, pipeline: Pipeline) -> None:
        """Let what is in flight land; the rest waits in the lane, in order."""
        if not pipeline.closed:
            pipeline.closed = True
            self._queue_to_lane(pipeline)
        if pipeline.requests == 0:
            pipeline.shard.after.append(lambda: self._end_round(pipeline))

    def _end_round(self, pipeline: Pipeline) -> None:
        """Decide, once everything of a failed round has landed and has its place in the lane."""
        if pipeline.requests or not pipeline.closed:
            return
        round_, stumbled = pipeline.round, pipeline.stumbled
        pipeline.closed, pipeline.round, pipeline.stumbled = False, Round(), []
        pipeline.forget_lane()
        pipeline.health, verdict = after_round(pipeline.health, round_, self.thresholds)
        for delivery in stumbled:
            if verdict == "go_on":
                self._wait_alone(delivery)
            else:
                self._remain(delivery)
        now = self.clock.now_ms()
        chance = random.random()  # noqa: S311  jitter
        match verdict:
            case "suspend":
                self._suspend(pipeline, pipeline.reason, pipeline.message)
                return
            case "back_off":
                wait = wait_after(
                    self.settings.retry_schedule, pipeline.health.failures, round_.asked, chance
                )
                self._back_off(pipeline, now + wait * 1000)
            case "pause":
                first = delay(self.settings.retry_schedule, 1, chance)
                wait = round_.asked.total_seconds() if round_.asked else first
                self._pause(pipeline, now + wait * 1000)
            case "go_on":
                pipeline.due, pipeline.probing = 0, False
        self.pump(pipeline)

    def _back_off(self, pipeline: Pipeline, due: float) -> None:
        self._pause(pipeline, due)
        self._remember(pipeline, pipeline.health)
        self._failure(pipeline)

    def _pause(self, pipeline: Pipeline, due: float) -> None:
        pipeline.due, pipeline.probing, pipeline.ramp = due, True, FIRST_RAMP
        keys = pipeline.shard.keys
        pipeline.shard.commands.append(("ZADD", keys.due, int(due), pipeline.integration.id))

    def _failure(self, pipeline: Pipeline) -> None:
        pipeline.shard.page.failures.append(
            Failure(
                pipeline.integration.id,
                int(self.clock.now_ms()),
                pipeline.reason,
                pipeline.message,
                pipeline.health.failures,
            )
        )

    def _remember(self, pipeline: Pipeline, health: Health, *, delivered: bool = False) -> None:
        key = pipeline.shard.keys.pipe(pipeline.integration.id, pipeline.integration.epoch)
        values: list[str | int] = ["failures", health.failures, "refusals", health.refusals]
        if delivered:
            values += ["delivered", 1]
        pipeline.shard.commands += [("HSET", key, *values), ("EXPIRE", key, PIPE_SECONDS)]

    def _wait_alone(self, delivery: Delivery) -> None:
        """Give an event that fails alone a due time of its own, or give it up."""
        landed = delivery.landed
        assert landed is not None  # noqa: S101  it was sent
        outcome = landed.outcome
        message = getattr(outcome, "message", "")
        asked = outcome.after if isinstance(outcome, Retry) else None
        pending = isinstance(outcome, Retry) and outcome.reason == "attribution_pending"
        if delivery.attempts >= self.settings.event_attempts and not pending:
            told = f"gave up after {delivery.attempts} attempts: {message}"
            self.settle(delivery, replace(landed, outcome=Rejected("exhausted", told)))
            return
        chance = random.random()  # noqa: S311  jitter
        wait = (
            asked.total_seconds()
            if asked is not None
            else delay(self.settings.retry_schedule, delivery.attempts, chance)
        )
        delivery.due = int(self.clock.now_ms() + wait * 1000)
        pipeline = delivery.pipeline
        if delivery.lane_id is None:
            pipeline.shard.to_lane(delivery)
        if delivery.lane_id:
            self._remain(delivery)
        else:
            pipeline.shard.after.append(lambda: self._remain(delivery))

    def _remain(self, delivery: Delivery) -> None:
        """Leave a delivery in the lane, remembering how often it was tried."""
        pipeline, lane_id = delivery.pipeline, delivery.lane_id
        if not lane_id:
            return
        keys = pipeline.shard.keys
        tried = lane.pack_tried(delivery)
        pipeline.shard.commands.append(
            ("HSET", keys.tries(pipeline.integration.id), lane_id, tried)
        )
        pipeline.live.discard(lane_id)
        if delivery.due:
            pipeline.wait(lane_id, delivery.due, delivery.user)
            self._timer(pipeline, delivery.due)

    # --- ends -------------------------------------------------------------------------------

    def settle(self, delivery: Delivery, landed: Landed, name: str = "") -> None:
        """Write the end of a delivery with the next commit, as `name` if that is not its own."""
        if delivery.lane_id == b"":
            delivery.landed = landed
            delivery.pipeline.shard.after.append(lambda: self.settle(delivery, landed, name))
            return
        pipeline, outcome = delivery.pipeline, landed.outcome
        integration, shard = pipeline.integration, pipeline.shard
        now = int(self.clock.now_ms())
        name = name or type(outcome).__name__.lower()
        reason = getattr(outcome, "reason", "")
        message = getattr(outcome, "message", "")
        event = delivery.event
        shard.page.rows.append(
            Row(
                integration.id, integration.project_id, event.id, event.name, name, reason, message,
                landed.status, delivery.attempts, delivery.accepted, now,
                (delivery.entry.id if delivery.entry else delivery.lane_id or b"").decode(),
            )
        )  # fmt: skip
        shard.tallies[integration.id, name] += 1
        metrics.ended(integration.slug, name, reason or "ok")
        if isinstance(outcome, Delivered):
            metrics.lag(integration.slug, (now - delivery.accepted) / 1000)
            if outcome.learned:
                self._learned(delivery, outcome, now)
        elif isinstance(outcome, Rejected):
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
            self._leave_lane(delivery)

    def _leave_lane(self, delivery: Delivery) -> None:
        pipeline, lane_id = delivery.pipeline, delivery.lane_id
        keys, integration = pipeline.shard.keys, pipeline.integration
        assert lane_id  # noqa: S101  the caller looked
        commands = pipeline.shard.commands
        commands.append(("XDEL", keys.lane(integration.id), lane_id))
        if delivery.attempts > 1 or delivery.due:
            commands.append(("HDEL", keys.tries(integration.id), lane_id))
        pipeline.unwait(lane_id)
        pipeline.lane_len -= 1
        if pipeline.passed_over:
            pipeline.rewind()
        if pipeline.lane_len == 0:
            commands.append(("ZREM", keys.due, integration.id))
            pipeline.due = 0
        pipeline.shard.after.append(lambda: self._left(pipeline, lane_id))

    def _left(self, pipeline: Pipeline, lane_id: bytes) -> None:
        pipeline.live.discard(lane_id)

    def _learned(self, delivery: Delivery, outcome: Delivered, now: int) -> None:
        shard, event = delivery.pipeline.shard, delivery.event
        project = delivery.pipeline.integration.project_id
        record = dump_text(dict(outcome.learned or {}))
        shard.commands.append(("HSET", shard.keys.users(project), event.user_key, record))
        shard.page.learned.append(Learned(project, event.user_key, record, now))

    def _suspend(self, pipeline: Pipeline, reason: str, message: str) -> None:
        """Hold the pipeline from now on; the database follows (`wanted`)."""
        integration, shard = pipeline.integration, pipeline.shard
        pipeline.suspended_epoch = integration.epoch
        pipeline.reason, pipeline.message = reason, integration.mask(message)[:1000]
        pipeline.due, pipeline.probing = 0, True
        self._queue_to_lane(pipeline)
        pipeline.forget_lane()
        wanted = dump_text(
            {
                "epoch": integration.epoch,
                "reason": reason,
                "message": pipeline.message,
                "at": int(self.clock.now_ms()),
            }
        )
        shard.commands.append(("HSET", shard.keys.wanted, integration.id, wanted))
        key = shard.keys.pipe(integration.id, integration.epoch)
        shard.commands += [("HSET", key, "suspended", 1), ("EXPIRE", key, PIPE_SECONDS)]
        self._failure(pipeline)
        log.warning("Suspended %s (%s): %s", integration.id, integration.slug, pipeline.message)

    # --- changes from outside ---------------------------------------------------------------

    def reconcile(self) -> None:
        """Follow the directory: settings changed, paused, deleted, re-activated."""
        for pipeline in list(self.pipelines.values()):
            present = self.directory.get(pipeline.integration.id)
            if present is pipeline.integration:
                continue
            before = pipeline.integration
            if present is None:
                self._spawn(
                    self._drop(pipeline, "expired", "deleted", "the integration was deleted")
                )
                continue
            pipeline.integration = present
            if present.active == 0 and before.active != 0:
                self._spawn(self._drop(pipeline, "skipped", "off", "the integration is paused"))
            elif present.active == 1 and not pipeline.held:
                self._released(pipeline, before)
            elif pipeline.held:
                self._queue_to_lane(pipeline)

    def _released(self, pipeline: Pipeline, before: Integration) -> None:
        if before.epoch != pipeline.integration.epoch or before.active == 2:
            pipeline.health = Health(probation=pipeline.integration.on_probation)
            pipeline.due, pipeline.ramp = 0, FIRST_RAMP
            pipeline.probing = pipeline.lane_len > 0
            pipeline.rewind()
        self.pump(pipeline)

    async def _drop(self, pipeline: Pipeline, name: str, reason: str, message: str) -> None:
        """End everything that waits in a pipeline that is off or deleted."""
        landed = Landed(Skipped(reason, message))
        queued = pipeline.empty()
        self.unsent -= len(queued)
        for delivery in queued:
            self.settle(delivery, landed, name)
        pipeline.forget_lane()
        async for page in lane.head(self.state.redis, pipeline, pipeline.lane_len):
            for delivery in page:
                self.settle(delivery, landed, name)

    async def expire(self) -> None:
        """Let go what has waited longer than the hold, or is too much for it: expired."""
        oldest = self.clock.now_ms() - self.settings.hold_seconds * 1000
        for pipeline in list(self.pipelines.values()):
            if pipeline.lane_len <= 0:
                continue
            surplus = pipeline.lane_len - self.settings.hold_events if pipeline.held else 0
            most = max(surplus, lane.PAGE)
            async for page in lane.head(self.state.redis, pipeline, most):
                for delivery in page:
                    old = delivery.accepted < oldest
                    if not old and surplus <= 0:
                        break
                    surplus -= 1
                    reason = "hold_seconds" if old else "hold_events"
                    gone = Skipped(
                        reason,
                        "waited longer than events are held" if old else "more than are held",
                    )
                    self.settle(delivery, Landed(gone), "expired")

    # --- the machinery ----------------------------------------------------------------------

    def _note_activity(self, pipeline: Pipeline) -> None:
        if pipeline.idle and not pipeline.requests:
            self._active.discard(pipeline)
        else:
            self._active.add(pipeline)

    def _feed(self) -> None:
        """Give the room in the window to the pipelines that wait for it, in turn."""
        for _ in range(len(self._starved)):
            if self.requests >= self.settings.window:
                return
            self.pump(self._starved.popleft())

    def _timer(self, pipeline: Pipeline, due: float) -> None:
        heapq.heappush(self._timers, (due, next(self._order), pipeline))

    def fire(self) -> float:
        """Pump every pipeline whose time has come; return the ms until the next one's."""
        now = self.clock.now_ms()
        ready: dict[Pipeline, None] = {}
        while self._timers and self._timers[0][0] <= now:
            ready[heapq.heappop(self._timers)[2]] = None
        for pipeline in ready:
            if self.pipelines.get(pipeline.integration.id) is pipeline:
                self.pump(pipeline)
        return self._timers[0][0] - now if self._timers else 1000.0

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("A step of the delivery loop failed", exc_info=error)

    def forget(self, shard: Shard) -> None:
        """Drop the pipelines of a shard that is no longer ours."""
        for integration_id, pipeline in list(self.pipelines.items()):
            if pipeline.shard is shard:
                del self.pipelines[integration_id]
                self._active.discard(pipeline)
                self.unsent -= pipeline.size

    def flying(self, shard: Shard) -> int:
        """Return the requests of a shard in flight."""
        return sum(p.requests for p in self.pipelines.values() if p.shard is shard)

    async def cut_off(self) -> None:
        """Cancel what is still in flight; it is handed back."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)


def _joined(one: Round, other: Round) -> Round:
    asked = max((r.asked for r in (one, other) if r.asked), default=None)
    return Round(
        one.delivered + other.delivered,
        one.rejected + other.rejected,
        one.failed or other.failed,
        one.refused or other.refused,
        one.throttled or other.throttled,
        one.gone or other.gone,
        asked,
    )


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
