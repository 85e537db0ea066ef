"""From a batch to a report: token, what is known of the users, the attempt itself."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from providers.kit import Plan, Rejected
from worker.attempt import Attempt, Came, Report, adapter_words, context_for
from worker.clock import StoreClock, time_of
from worker.directory import Directory, Integration
from worker.pipeline import Delivery, Landed, Pipeline
from worker.state import State
from worker.tokens import Tokens
from worker.transport import Transport

log = logging.getLogger(__name__)

FAILED = "The %s adapter failed on event %s"
DAY_MS = 86_400_000  # an attribution that has not come by then does not come


@dataclass
class Sender:
    """Sends batches; knows nothing of queues or rounds."""

    directory: Directory
    transport: Transport
    state: State
    clock: StoreClock
    tokens: Tokens = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = Tokens(self.transport)

    async def send(
        self,
        pipeline: Pipeline,
        batch: list[Delivery],
        planned: Plan | None = None,
        came: Came | None = None,
    ) -> Report:
        """Send a batch once and return what came of it; an adapter's fault costs one event only.

        `planned` is what it comes to, and `came` the answer to its first request, if known.
        """
        integration = pipeline.integration
        now = self.clock.now_ms()
        known: dict[str, Any] = {}
        if integration.provider.token is not None:
            token = await self.tokens.values(integration, now)
            if not isinstance(token, Mapping):
                report = Report([Landed(token) for _ in batch])
                report.blame(token)
                return report
            known["token"] = token
        if notes := {d.event.id: d.note for d in batch if d.note}:
            known["notes"] = notes
        if pipeline.batch:
            known["batch_at"] = time_of(pipeline.batch[1])
        if integration.slug == "searchads" or integration.provider.needs_attribution:
            known |= await self._knowledge(pipeline, batch)
        context = context_for(integration, now, **known)
        events = [delivery.event for delivery in batch]
        steps = [delivery.step for delivery in batch]
        try:
            return await Attempt(
                integration, self.transport, context, events, steps, planned, came
            ).run()
        except Exception as error:
            if len(batch) > 1:
                return await self._halves(pipeline, batch)
            log.exception(FAILED, integration.slug, events[0].id)
            return adapter_failed(error)

    async def _halves(self, pipeline: Pipeline, batch: list[Delivery]) -> Report:
        """Find the event that an adapter fails on, and let the others pass."""
        middle = len(batch) // 2
        report = await self.send(pipeline, batch[:middle])
        report.join(await self.send(pipeline, batch[middle:]))
        return report

    async def _knowledge(self, pipeline: Pipeline, batch: list[Delivery]) -> dict[str, Any]:
        """Return what is known of the users, for providers that resolve or need attribution."""
        integration = pipeline.integration
        users = sorted({d.event.user_key for d in batch if d.event.user_key})
        known = await self.state.attributions(pipeline.shard.keys, integration.project_id, users)
        now = self.clock.now_ms()
        resolving = {
            delivery.event.user_key
            for delivery in batch
            if delivery.event.user_key not in known
            and "_q_asa_token" in delivery.event.properties
            and now - delivery.accepted < DAY_MS
            and self._resolves(integration)
        }
        return {"attributions": known, "resolving": frozenset(resolving)}

    def _resolves(self, integration: Integration) -> bool:
        others = self.directory.targets(integration.project_id, integration.platform)
        return any(other.slug == "searchads" for other in others)


def adapter_failed(error: Exception) -> Report:
    """Return what comes of an event on which the adapter raised `error`."""
    return Report([Landed(Rejected("adapter_error", adapter_words(error)))])
