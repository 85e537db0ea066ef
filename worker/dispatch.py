"""Who sends what, when: the pipelines of our shards, and the room they share.

`reader.py` reads, `rounds.py` draws a failure's consequences, `committer.py` commits. Runs on one
event loop; nothing here waits for the database.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from providers.kit import (
    Delivered,
    Event,
    Plan,
    Rejected,
    Skipped,
)
from worker import lane, traces
from worker.agenda import Agenda, Jobs
from worker.attempt import Came, Report, all_delivered
from worker.clock import StoreClock, accepted_at
from worker.directory import Directory, Integration
from worker.pipeline import FIRST_RAMP, Delivery, Landed, Pipeline
from worker.posts import Posts, interrupted
from worker.rounds import Rounds, told
from worker.sender import Sender
from worker.settings import WorkerSettings
from worker.settle import settle, settle_delivered
from worker.shard import Entry, Shard
from worker.state import State
from worker.suspension import WELL, Health, Round
from worker.transport import Transport

log = logging.getLogger(__name__)

TAKEN = Round(delivered=1)
BUFFERED = 2_048  # deliveries read from lanes, of all pipelines; each takes 8 KB
AGAIN_MS = 500  # after trouble of our own
MOST_UNCOMMITTED = 256  # outcomes; a kill sends them again
PATIENCE_SECONDS = 0.5  # of a queue, where memory is full and its shard not read for it
LAG_MS = 1_000  # how late that shard's entries may be read


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
        self.sender = Sender(self.directory, self.transport, self.state, self.clock)
        self.requests = 0  # in flight
        self.room = math.inf  # fresh deliveries a shard may have queued; less where memory is full
        self.leaving = False
        self.paused = False  # something was not started because our leases might not hold
        self.safe: Callable[[], bool] = lambda: True  # whether our leases surely hold
        self.landed = 0  # deliveries, since the last commit was built
        self.commit_due = asyncio.Event()  # there are many of them
        self._starved: deque[Pipeline] = deque()
        self.agenda = Agenda(self.clock)
        self.jobs = Jobs()
        self.rounds = Rounds(self)
        self._active: set[Pipeline] = set()
        self._lingering: set[Pipeline] = set()  # a batch fills in memory, and a timer ends that
        self.posts = Posts(self.transport, self.clock, self._step_soon)
        self._to_pump: dict[Pipeline, None] = {}
        self._stepping = False  # under way, or about to be

    # --- events come in ---------------------------------------------------------------------

    def pipeline_of(self, shard: Shard, integration: Integration) -> Pipeline:
        """Return the pipeline of an integration, new if need be."""
        pipeline = self.pipelines.get(integration.id)
        if pipeline is None or pipeline.shard is not shard:
            pipeline = Pipeline(integration, shard)
            pipeline.health = Health(probation=True) if integration.on_probation else WELL
            self.pipelines[integration.id] = pipeline
        elif pipeline.integration is not integration:  # it is paused no more, perhaps
            self._follow(pipeline, integration)
        return pipeline

    def offer(
        self, shard: Shard, entry: Entry, integration: Integration, event: Event, raw: bytes
    ) -> None:
        """Take one target of a fresh entry: queue it, or put it into the lane."""
        pipeline = self.pipeline_of(shard, integration)
        delivery = Delivery(event, raw, pipeline, entry.accepted, entry)
        delivery.since = time.monotonic()
        if integration.active == 0:
            self._settle(delivery, Landed(Skipped("off", "the integration is paused")))
        elif integration.fault and not pipeline.held:
            shard.to_lane(delivery)
            self.rounds.suspend(pipeline, "settings", integration.fault)
        elif pipeline.lane_first(delivery.user):
            self._join_lane(pipeline, delivery)
        else:
            pipeline.push(delivery)
            if pipeline not in self._lingering or pipeline.size >= integration.limits.events:
                self.pump_soon(pipeline)

    def _join_lane(self, pipeline: Pipeline, delivery: Delivery) -> None:
        if pipeline.integration.through_lane and not pipeline.due and not pipeline.held:
            linger = pipeline.integration.limits.linger.total_seconds() * 1000
            pipeline.due = self.clock.now_ms() + linger
            self.agenda.look(pipeline, pipeline.due)
        pipeline.shard.to_lane(delivery)

    def lane_written(self, pipeline: Pipeline) -> None:
        """Read on: what was put at the lane's end is there now."""
        pipeline.grow()
        self.pump(pipeline)

    def hurry(self) -> None:
        """Let no batch wait for more events: there is no room for any."""
        self.room = 0
        for pipeline in list(self._lingering):
            self.pump(pipeline)

    @property
    def full(self) -> bool:
        """Whether memory is full of fresh deliveries."""
        return self.room < math.inf

    def relieve(self) -> None:
        """Move what has kept its shard from being read to lanes: others' events are behind it.

        Not at once, for what waits in a lane takes twice the CPU.
        """
        late, lags = time.monotonic() - PATIENCE_SECONDS, self.clock.now_ms() - LAG_MS
        for pipeline in list(self._active):
            if not pipeline.size or pipeline.shard.queued < self.room:
                continue
            if accepted_at(pipeline.shard.read_to) < lags or pipeline.first.since < late:
                self.queue_to_lane(pipeline)

    def queue_to_lane(self, pipeline: Pipeline) -> None:
        """Everything fresh of a pipeline goes to its lane, what is in flight first."""
        for delivery in pipeline.flying:
            if delivery.lane_id is None:
                pipeline.shard.to_lane(delivery)
        for delivery in pipeline.empty():
            pipeline.shard.to_lane(delivery)

    # --- one step of all, then the next -----------------------------------------------------

    def pump_soon(self, pipeline: Pipeline) -> None:
        """Pump a pipeline together with others."""
        self._to_pump[pipeline] = None
        self._step_soon()

    def _step_soon(self) -> None:
        if not self._stepping:
            self._stepping = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        """Land what was answered, start what may be started: see `Posts` why together."""
        try:
            for answered in self.posts.answers():
                _guarded(self._land, *answered)
            to_pump, self._to_pump = self._to_pump, {}
            for pipeline in to_pump:
                _guarded(self.pump, pipeline)
            self._feed()
            for delivery, planned in self.posts.send():
                self.jobs.start(self._fly(delivery.pipeline, [delivery], planned))
        finally:
            self._stepping = False
            if self.posts or self._to_pump:
                self._step_soon()

    # --- events go out ----------------------------------------------------------------------

    def pump(self, pipeline: Pipeline) -> None:
        """Start what may be started now, and see that the rest is thought of later."""
        self._lingering.discard(pipeline)
        self._note_activity(pipeline)  # one that must wait takes no share of the window
        if not (pipeline.size or pipeline.buffer or pipeline.lane_len > 0):
            return
        if self.leaving or not pipeline.shard.sends:
            return
        if not self.safe():
            self.paused = True
            return
        if pipeline.integration.active == 0 or self._deleted(pipeline):
            self._let_go(pipeline)
            return
        if pipeline.held or pipeline.closed:
            return
        if pipeline.integration.fault:  # and events wait since before it was
            self.rounds.suspend(pipeline, "settings", pipeline.integration.fault)
            return
        now = self.clock.now_ms()
        if pipeline.integration.limits.whole_batches and self._gathering(pipeline, now):
            return
        if pipeline.due > now:
            self.agenda.look(pipeline, pipeline.due)
            return
        self._wake(pipeline, now)
        self._send(pipeline)

    def _send(self, pipeline: Pipeline) -> None:
        """Start requests while there is room and something to send."""
        integration = pipeline.integration
        limits = integration.limits
        self._active.add(pipeline)
        while (room := self._allowed(pipeline) - pipeline.requests) > 0:
            left = self.settings.window - self.requests
            if left <= 0:
                self._starved.append(pipeline)
                return
            if self._unread(pipeline) and (limits.whole_batches or not pipeline.buffer):
                self._read_lane(pipeline)
                return
            if integration.one_each and not (pipeline.buffer or traces.on):
                fresh = pipeline.take_each(min(room, left))
                if not fresh:
                    break
                self._count(pipeline, fresh, len(fresh))
                self.posts.take(fresh)
                continue
            if not pipeline.buffer and self._lingers(pipeline):
                return
            most = 1 if pipeline.probing and not limits.whole_batches else limits.events
            batch = pipeline.take(most, limits.bytes)
            if not batch:
                break
            self._start(pipeline, batch)
        self._note_activity(pipeline)

    def resume(self) -> None:
        """Go on with every pipeline, after a time in which nothing was started."""
        self.paused = False
        for pipeline in list(self.pipelines.values()):
            self.pump(pipeline)

    def _gathering(self, pipeline: Pipeline, now: float) -> bool:
        """Whether a bucket's batch is still filling, or must be fixed before it is sent."""
        limits = pipeline.integration.limits
        if pipeline.lane_len == 0:
            return False
        if pipeline.batch is None:
            if pipeline.due > now and pipeline.lane_len < limits.events:
                self.agenda.look(pipeline, pipeline.due)
                return True
            if not pipeline.reading:
                self.jobs.start(self._fix_batch(pipeline))
            return True
        return pipeline.requests > 0

    async def _fix_batch(self, pipeline: Pipeline) -> None:
        """Fix a batch's members and opening time in Redis, before its first attempt."""
        pipeline.reading = True
        keys, integration = pipeline.shard.keys, pipeline.integration
        try:
            with pipeline.looking():
                entries = await self.state.redis.xrange(
                    keys.lane(integration.id), count=integration.limits.events + len(pipeline.live)
                )
                entries = [entry for entry in entries if entry[0] not in pipeline.live]
        except RedisError as error:
            self._later(pipeline, error)
            return
        finally:
            pipeline.reading = False
        if not entries or pipeline.shard.lost:
            return
        entries = entries[: integration.limits.events]
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
        if len(self._active) > 1:  # one share stays free for whoever comes next
            fair = max(1, min(fair // 4, fair // (len(self._active) + 1)))
        most = min(pipeline.integration.limits.concurrency, fair)
        return min(most, pipeline.ramp) if pipeline.lane_len else most

    def _unread(self, pipeline: Pipeline) -> bool:
        return pipeline.lane_len > 0 and not pipeline.exhausted

    def _wake(self, pipeline: Pipeline, now: float) -> None:
        """Let lane entries whose own wait is over be read again; clear a lane that is empty."""
        if pipeline.lane_len <= 0 and not pipeline.probing:
            pipeline.due, pipeline.ramp = 0, FIRST_RAMP
        if pipeline.waiting:
            first = pipeline.next_due
            if first <= now:
                pipeline.rewind()
            else:
                self.agenda.look(pipeline, first)

    def _lingers(self, pipeline: Pipeline) -> bool:
        """Whether a JSON batch waits in memory for more events, for at most its linger."""
        limits = pipeline.integration.limits
        if limits.events == 1 or not pipeline.ready or pipeline.size >= limits.events or self.full:
            return False
        left = pipeline.oldest + limits.linger.total_seconds() - time.monotonic()
        if left <= 0:
            return False
        self.agenda.look(pipeline, self.clock.now_ms() + left * 1000)
        self._lingering.add(pipeline)
        return True

    def _read_lane(self, pipeline: Pipeline) -> None:
        if pipeline.reading or pipeline.placing:
            return
        if pipeline.noticing:  # until that is there, what is new is not known
            self.agenda.look(pipeline, self.clock.now_ms())
            return
        pipeline.reading = True
        self.jobs.start(self._read(pipeline))

    async def _read(self, pipeline: Pipeline) -> None:
        try:
            room = BUFFERED // max(len(self._active), 1)
            await lane.read(self.state.redis, pipeline, self.clock.now_ms(), room)
        except RedisError as error:
            self._later(pipeline, error)
            return
        finally:
            pipeline.reading = False
        self._note_activity(pipeline)  # none, if all of it waits
        if pipeline.waiting:  # of one user, perhaps none of those whose wait is over may go yet
            self.agenda.look(pipeline, pipeline.next_due)
        if pipeline.buffer or pipeline.size or not pipeline.exhausted:
            self.pump(pipeline)
        elif pipeline.batch and not (pipeline.closed or pipeline.requests):  # all of it was let go
            self._batch_over(pipeline)
        elif pipeline.probing and pipeline.lane_len == 0:
            pipeline.probing = False

    def _later(self, pipeline: Pipeline, error: RedisError) -> None:
        log.warning("Redis did not answer (%s); trying again", error)
        self.agenda.look(pipeline, self.clock.now_ms() + AGAIN_MS)

    def _start(self, pipeline: Pipeline, batch: list[Delivery]) -> None:
        """Send a batch."""
        self._count(pipeline, batch, 1)
        self.jobs.start(self._fly(pipeline, batch))

    def _count(self, pipeline: Pipeline, deliveries: list[Delivery], requests: int) -> None:
        pipeline.requests += requests
        self.requests += requests
        for delivery in deliveries:
            delivery.attempts += 1

    async def _fly(
        self,
        pipeline: Pipeline,
        batch: list[Delivery],
        planned: Plan | None = None,
        came: Came | None = None,
    ) -> None:
        """Send a batch and land it; whatever happens, there is something to say of it."""
        try:
            report = await self.sender.send(pipeline, batch, planned, came)
        except (asyncio.CancelledError, RedisError):
            report = interrupted(len(batch))
        self._landed(pipeline, batch, report)

    async def cut_off(self) -> None:
        """Wait for no answer any more: what is in flight has come to nothing."""
        self.posts.cut_off()
        await self.jobs.cut_off()
        await asyncio.sleep(0)  # what is cut off is answered
        self._step()

    # --- answers come back ------------------------------------------------------------------

    def _land(self, delivery: Delivery, planned: Plan, came: Landed | Report | Came) -> None:
        """Land what was sent by itself."""
        pipeline, batch = delivery.pipeline, [delivery]
        if isinstance(came, Landed | Report):
            self._landed(pipeline, batch, came)
        else:  # there is more to it
            self.jobs.start(self._fly(pipeline, batch, planned, came))

    def _landed(self, pipeline: Pipeline, batch: list[Delivery], came: Landed | Report) -> None:
        pipeline.requests -= 1
        self.requests -= 1
        pipeline.land(batch)
        self.landed += len(batch)
        if self.landed >= MOST_UNCOMMITTED:
            self.commit_due.set()
        now = int(self.clock.now_ms())
        if isinstance(came, Landed):
            settle(batch[0], came, now)
            round_ = TAKEN
        else:
            round_ = self._settled(pipeline, batch, came, now)
        if pipeline.closed or pipeline.stumbled or not round_.well:
            pipeline.round = pipeline.round + round_
            self.rounds.close(pipeline)
        else:
            self.rounds.went_well(pipeline, round_)
        if pipeline.batch and not (pipeline.closed or pipeline.requests or pipeline.buffer):
            self._batch_over(pipeline)
        self._step_soon()  # there is room

    def _settled(
        self, pipeline: Pipeline, batch: list[Delivery], report: Report, now: int
    ) -> Round:
        """Settle what is final of a batch, keep the rest; return what it means for the round."""
        delivered = rejected = 0
        together = report.landed[0] if all_delivered(report.landed) else None
        if together is not None:
            delivered = len(batch)
            settle_delivered(batch, together, now)
        for delivery, landed in () if together else zip(batch, report.landed, strict=True):
            assert landed is not None  # noqa: S101  Attempt.run leaves none
            match landed.outcome:
                case Delivered():
                    delivered += 1
                    settle(delivery, landed, now)
                case Rejected():
                    rejected += 1
                    settle(delivery, landed, now)
                case Skipped():
                    settle(delivery, landed, now)
                case _:
                    self.rounds.stumbled(pipeline, delivery, landed)
        if pipeline.blocked:
            self.rounds.keep_behind(pipeline, batch)
        if report.reason:
            pipeline.reason = report.reason
            pipeline.message = told(pipeline.integration, report)
        return Round(
            delivered, rejected, report.failed, report.refused, report.throttled, report.gone,
            report.asked,
        )  # fmt: skip

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

    def _settle(self, delivery: Delivery, landed: Landed, name: str = "") -> None:
        settle(delivery, landed, int(self.clock.now_ms()), name)

    # --- changes from outside ---------------------------------------------------------------

    def grew(self, pipeline: Pipeline, count: int) -> None:
        """Take in what was put at the lane's end from outside: replayed dead letters."""
        pipeline.grow_lane(count)
        pipeline.grow()
        self.pump(pipeline)

    def reconcile(self) -> None:
        """Follow the directory: settings changed, paused, deleted, re-activated."""
        for pipeline in list(self.pipelines.values()):
            present = self.directory.get(pipeline.integration.id)
            if present is None:
                self.pump(pipeline)
            elif present is not pipeline.integration:
                self._follow(pipeline, present)

    def _follow(self, pipeline: Pipeline, present: Integration) -> None:
        before, pipeline.integration = pipeline.integration, present
        if present.active == 0:
            self.pump(pipeline)
        elif present.active == 1 and not pipeline.held:
            self._released(pipeline, before)
        elif pipeline.held:
            self.queue_to_lane(pipeline)

    def _released(self, pipeline: Pipeline, before: Integration) -> None:
        present = pipeline.integration
        anew = before.epoch != present.epoch or before.active == 2
        if anew:
            pipeline.health = Health(probation=present.on_probation)
        if anew or (pipeline.due and before.updated_at != present.updated_at):  # perhaps mended
            if pipeline.lane_len > 0:  # so for whoever drains the shard next, too
                now, keys = int(self.clock.now_ms()), pipeline.shard.keys
                pipeline.shard.commands.append(("ZADD", keys.due, now, present.id))
            pipeline.due, pipeline.ramp = 0, FIRST_RAMP
            pipeline.probing = pipeline.lane_len > 0
            pipeline.rewind()
        self.pump(pipeline)

    def _deleted(self, pipeline: Pipeline) -> bool:
        return self.directory.usable and self.directory.get(pipeline.integration.id) is None

    def _let_go(self, pipeline: Pipeline) -> None:
        """End what waits in a pipeline that is off or deleted; not what is in flight."""
        if not pipeline.dropping:
            pipeline.dropping = True
            self.jobs.start(self._drop(pipeline))

    async def _drop(self, pipeline: Pipeline) -> None:
        if self._deleted(pipeline):
            name, why = "expired", Skipped("deleted", "the integration was deleted")
        else:
            name, why = "skipped", Skipped("off", "the integration is paused")
        queued, growths = pipeline.empty(), pipeline.growths
        pipeline.forget_lane()
        try:
            for delivery in queued:
                self._settle(delivery, Landed(why), name)
            async for page in lane.head(self.state.redis, pipeline):  # with what is not yet noticed
                for delivery in page:
                    self._settle(delivery, Landed(why), name)
        except RedisError as error:
            self._later(pipeline, error)
        finally:
            pipeline.dropping = False
        if pipeline.growths != growths:  # meanwhile: that is let go, too
            self.pump(pipeline)

    async def expire(self) -> None:
        """Let go what has waited longer than the hold, or is too much for it: expired."""
        for pipeline in list(self.pipelines.values()):
            if pipeline.lane_len > 0 and not pipeline.shard.lost:
                await self._expire(pipeline)

    async def _expire(self, pipeline: Pipeline) -> None:
        policy = pipeline.integration.policy
        oldest = self.clock.now_ms() - policy.hold_seconds * 1000
        surplus = max(pipeline.lane_len - policy.hold_events, 0) if pipeline.held else 0
        async for page in lane.head(self.state.redis, pipeline, max(surplus, lane.PAGE)):
            for delivery in page:
                if delivery.accepted < oldest:
                    why = Skipped("hold_seconds", "waited longer than events are held")
                elif surplus > 0:
                    why = Skipped("hold_events", "more wait than are held; the oldest went")
                else:
                    return
                surplus -= 1
                self._settle(delivery, Landed(why), "expired")

    # --- the machinery ----------------------------------------------------------------------

    def fire(self) -> None:
        """Pump every pipeline whose time has come."""
        for pipeline in self.agenda.due():
            if self.pipelines.get(pipeline.integration.id) is pipeline:
                self.pump(pipeline)

    def _note_activity(self, pipeline: Pipeline) -> None:
        if pipeline.shard.lost or (pipeline.idle and not pipeline.requests):
            self._active.discard(pipeline)
        else:
            self._active.add(pipeline)

    def _feed(self) -> None:
        """Give the room in the window to the pipelines that wait for it, in turn."""
        for _ in range(len(self._starved)):
            if self.requests >= self.settings.window:
                return
            self.pump(self._starved.popleft())

    def forget(self, shard: Shard) -> None:
        """Drop the pipelines of a shard that is no longer ours."""
        for integration_id, pipeline in list(self.pipelines.items()):
            if pipeline.shard is shard:
                del self.pipelines[integration_id]
                self._active.discard(pipeline)
                self._lingering.discard(pipeline)
                pipeline.empty()

    def flying(self, shard: Shard) -> int:
        """Return the requests of a shard in flight."""
        return sum(p.requests for p in self.pipelines.values() if p.shard is shard)

    def into_lanes(self, shard: Shard) -> None:
        """Put what is in flight into its lane: whoever is next sends it if we do not settle it."""
        for pipeline in self.pipelines.values():
            if pipeline.shard is shard and pipeline.requests:
                self.queue_to_lane(pipeline)


def _guarded(step: Callable[..., None], *of: Any) -> None:
    """Take a step; one event's or pipeline's trouble is not the others'."""
    try:
        step(*of)
    except Exception:
        log.exception("A step of the delivery loop failed")
