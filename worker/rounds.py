"""What a round means for its pipeline: back off, wait for one event, pause, or suspend."""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import RedisError

from providers.kit import NEW_TOKEN, Rejected, Retry, one_line
from worker import incidents
from worker.attempt import Report
from worker.backoff import delay, wait_after
from worker.directory import Integration
from worker.journal import Nearing
from worker.pipeline import Delivery, Landed, Pipeline
from worker.settle import failure, pause, remain, remember, settle, want_suspension
from worker.suspension import WELL, Health, Round, after_round, share_used

if TYPE_CHECKING:
    from worker.dispatch import Dispatcher

log = logging.getLogger(__name__)

FARE_MS = 30_000  # how often a pipeline that delivers says so to other processes
HALF = 0.5  # of a threshold: operators are told
WELL_SECONDS = 1.0
TOGETHER_SECONDS = 0.1  # between looks at how all of a slug fare: each costs 2 µs a pipeline
MESSAGE_LENGTH = 1_000  # characters an operator is shown


class Rounds:
    """Draws the consequences; the dispatcher goes on from there."""

    def __init__(self, dispatcher: "Dispatcher") -> None:
        self.dispatcher = dispatcher
        self.settings = dispatcher.settings
        self.state = dispatcher.state
        self.clock = dispatcher.clock
        self.agenda = dispatcher.agenda
        self.jobs = dispatcher.jobs
        self._well: dict[str, dict[str, incidents.Fare]] = {}  # by slug and integration
        self._failed: list[Pipeline] = []  # their rounds are over, and not yet concluded
        self._looked = float("-inf")  # monotonic

    def went_well(self, pipeline: Pipeline, round_: Round) -> None:
        """Take a round without a failure of the upstream; its events may have been rejected."""
        if round_.delivered and pipeline.health is WELL and not pipeline.probing:
            self._fares_well(pipeline, round_)
            pipeline.ramp = min(pipeline.ramp * 2, self.settings.window)
            self.dispatcher.pump_soon(pipeline)
            return
        health, verdict = after_round(
            pipeline.health, round_, pipeline.integration.policy.thresholds
        )
        self._fares_well(pipeline, round_)
        if round_.delivered and (pipeline.health != Health() or pipeline.probing):
            remember(pipeline, health, delivered=True)
        before, pipeline.health = pipeline.health, health
        if verdict == "suspend":
            told = f"{health.rejections} events rejected in a row, none delivered between"
            if not pipeline.held:  # what was in flight with the last one is rejected, too
                self.suspend(pipeline, "rejected", told, counted=True)
            return
        self._tell_if_nearing(pipeline, before, "")
        if round_.delivered or round_.rejected:
            pipeline.probing = False
        pipeline.ramp = min(pipeline.ramp * 2, self.settings.window)
        self.dispatcher.pump_soon(pipeline)

    def _fares_well(self, pipeline: Pipeline, round_: Round) -> None:
        """Let other processes know now and then that this pipeline delivers."""
        now = self.clock.now_ms()
        if not round_.delivered or now - pipeline.fared < FARE_MS:
            return
        pipeline.fared = now
        integration = pipeline.integration
        fare = incidents.Fare(integration.project_id, int(now), failing=False)
        if not self._well:
            self.jobs.start(self._tell_well())
        self._well.setdefault(integration.slug, {})[integration.id] = fare

    async def _tell_well(self) -> None:
        """Tell of all that deliver, together: of ten thousand each by itself takes seconds."""
        await asyncio.sleep(WELL_SECONDS)
        well, self._well = self._well, {}
        try:
            await incidents.note_well(self.state.redis, well)
        except RedisError as error:
            log.warning("How pipelines fare could not be noted (%s)", error)

    def stumbled(self, pipeline: Pipeline, delivery: Delivery, landed: Landed) -> None:
        """Keep a delivery that is to be tried again, with what is done of it."""
        outcome = landed.outcome
        delivery.step = landed.step
        if isinstance(outcome, Retry):
            answered = landed.status is not None  # else what an earlier answer noted still holds
            delivery.note = outcome.note if answered else outcome.note or delivery.note
            if outcome.note == NEW_TOKEN:
                self.dispatcher.sender.tokens.forget(pipeline.integration.id)
        delivery.landed = landed
        if landed.alone:
            self._wait_alone(delivery)
        else:
            pipeline.stumbled.append(delivery)
            if delivery.lane_id is None:
                pipeline.shard.to_lane(delivery)

    def keep_behind(self, pipeline: Pipeline, batch: Sequence[Delivery]) -> None:
        """Put what is fresh of users behind all of theirs in a batch that wait from now on."""
        for user in dict.fromkeys(delivery.user for delivery in batch):
            if user in pipeline.blocked:
                for follower in pipeline.withdraw(user):
                    pipeline.shard.to_lane(follower)

    def close(self, pipeline: Pipeline) -> None:
        """Let what is in flight land; the rest waits in the lane, in order."""
        if not pipeline.closed:
            pipeline.closed = True
            self.dispatcher.queue_to_lane(pipeline)
        if pipeline.requests == 0:
            pipeline.shard.after.append(lambda: self._end_round(pipeline))

    def _end_round(self, pipeline: Pipeline) -> None:
        """Decide, once everything of a failed round has landed and has its place in the lane."""
        if pipeline.requests or not pipeline.closed:
            return
        if not pipeline.round.failed or pipeline.round.delivered:
            self._conclude(pipeline)
            return
        if not self._failed:
            self.jobs.start(self._end_failed_rounds())
        self._failed.append(pipeline)

    async def _end_failed_rounds(self) -> None:
        """Conclude what failed; many that fail at once share a look at how all of their slug do."""
        await asyncio.sleep(self._looked + TOGETHER_SECONDS - time.monotonic())
        failed, self._failed = self._failed, []
        self._looked = time.monotonic()
        slug_of = attrgetter("integration.slug")
        for slug, some in groupby(sorted(failed, key=slug_of), key=slug_of):
            pipelines = list(some)
            incident = await self._is_down(slug, pipelines)
            for pipeline in pipelines:
                self._conclude(pipeline, incident=incident)

    async def _is_down(self, slug: str, failing: Sequence[Pipeline]) -> bool:
        """Note that these fail; return whether it is the provider that does."""
        now = self.clock.now_ms()
        fares = {
            integration.id: incidents.Fare(integration.project_id, int(now), failing=True)
            for integration in (pipeline.integration for pipeline in failing)
        }
        try:
            fared = await incidents.note(self.state.redis, slug, fares, now)
        except Exception as error:
            known = isinstance(error, RedisError)
            log.warning("How others of %s fare is not known (%s)", slug, error, exc_info=not known)
            return False
        return incidents.incident_of(fared, now) is not None

    def _conclude(self, pipeline: Pipeline, *, incident: bool = False) -> None:
        """Take a failed round's consequences; in a provider's incident nothing is counted."""
        round_, stumbled, policy = pipeline.round, pipeline.stumbled, pipeline.integration.policy
        pipeline.closed, pipeline.round, pipeline.stumbled = False, Round(), []
        pipeline.fared = 0
        pipeline.forget_lane()
        again = min((d.attempts for d in stumbled), default=1) > 1
        again &= not pipeline.integration.limits.whole_batches  # these are never taken apart
        health, verdict = after_round(pipeline.health, round_, policy.thresholds, again=again)
        if incident and not round_.refused and not round_.gone:
            verdict = "back_off"
            health = replace(health, failures=min(health.failures, policy.thresholds.retry - 1))
        before, pipeline.health = pipeline.health, health
        if not incident and verdict != "suspend":
            self._tell_if_nearing(pipeline, before, pipeline.message)
        for delivery in stumbled:
            if verdict == "go_on":
                self._wait_alone(delivery)
            else:
                remain(delivery)
        now = self.clock.now_ms()
        chance = random.random()  # noqa: S311  jitter
        match verdict:
            case "suspend":
                self.suspend(pipeline, pipeline.reason, pipeline.message)
            case "back_off":
                failures = max(pipeline.health.failures, 1)
                wait = wait_after(policy.schedule, failures, round_.asked, chance)
                self._back_off(pipeline, now + wait * 1000)
            case "pause":
                first = delay(policy.schedule, 1, chance)
                wait = round_.asked.total_seconds() if round_.asked else first
                pause(pipeline, now + wait * 1000)
            case "go_on":
                pipeline.due, pipeline.probing = 0, False
        self.dispatcher.pump(pipeline)

    def _back_off(self, pipeline: Pipeline, due: float) -> None:
        pause(pipeline, due)
        remember(pipeline, pipeline.health)
        failure(pipeline, int(self.clock.now_ms()))

    def _tell_if_nearing(self, pipeline: Pipeline, before: Health, message: str) -> None:
        """Tell the record of the round by which half of a threshold was used up."""
        limits = pipeline.integration.policy.thresholds
        (was, _), (used, words) = share_used(before, limits), share_used(pipeline.health, limits)
        if was < HALF <= used:
            now, id_ = int(self.clock.now_ms()), pipeline.integration.id
            pipeline.shard.page.nearing.append(Nearing(id_, now, words, message))

    def _wait_alone(self, delivery: Delivery) -> None:
        """Give an event that fails alone a due time of its own, or give it up."""
        landed, policy = delivery.landed, delivery.pipeline.integration.policy
        assert landed is not None  # noqa: S101  it was sent
        outcome = landed.outcome
        message = getattr(outcome, "message", "")
        throttled = isinstance(outcome, Retry) and outcome.throttled  # no failure
        delivery.alone += not throttled
        asked = outcome.after if isinstance(outcome, Retry) else None
        pending = isinstance(outcome, Retry) and outcome.reason == "attribution_pending"
        if delivery.alone >= policy.event_attempts and not pending:
            told = f"gave up after {delivery.attempts} attempts: {message}"
            given_up = msgspec.structs.replace(landed, outcome=Rejected("exhausted", told))
            settle(delivery, given_up, int(self.clock.now_ms()))
            return
        chance = random.random()  # noqa: S311  jitter
        wait = (
            asked.total_seconds()
            if asked is not None
            else delay(policy.schedule, max(delivery.alone, 1), chance)
        )
        delivery.due = int(self.clock.now_ms() + wait * 1000)
        self.agenda.look(delivery.pipeline, delivery.due)
        if delivery.lane_id:
            remain(delivery)
        else:
            self._wait_in_lane(delivery)

    def _wait_in_lane(self, delivery: Delivery) -> None:
        """Put a fresh delivery into the lane to wait there."""
        pipeline, user = delivery.pipeline, delivery.user
        if delivery.lane_id is None:
            pipeline.shard.to_lane(delivery)
        if user:
            pipeline.block(user)

        def waits() -> None:
            remain(delivery)
            if user:
                pipeline.unblock(user)

        pipeline.shard.after.append(waits)

    def suspend(
        self, pipeline: Pipeline, reason: str, message: str, *, counted: bool = False
    ) -> None:
        """Hold the pipeline from now on; the database follows (`wanted`).

        `counted`: by its dead letters, there is no failed round to tell of.
        """
        integration, now = pipeline.integration, int(self.clock.now_ms())
        pipeline.suspended_epoch = integration.epoch
        pipeline.reason, pipeline.message = reason, integration.mask(message)[:MESSAGE_LENGTH]
        pipeline.due, pipeline.probing = 0, True
        self.dispatcher.queue_to_lane(pipeline)
        pipeline.forget_lane()
        want_suspension(pipeline, now)
        if not counted:
            failure(pipeline, now)
        log.warning("Suspended %s (%s): %s", integration.id, integration.slug, pipeline.message)


def told(integration: Integration, report: Report) -> str:
    """Return what an operator is told of a batch that failed."""
    statuses = [landed.status for landed in report.landed if landed and landed.status]
    status = (
        f"{statuses[0]} from {integration.provider.title}"
        if statuses
        else integration.provider.title
    )
    return f"{status}: {one_line(integration.mask(report.message or report.reason))}"
