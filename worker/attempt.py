"""Send a batch once: plan, request, classify. A network failure is an outcome, not an exception."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from time import perf_counter, time_ns
from typing import Any, TypeAlias

from msgspec.structs import replace

from providers.kit import (
    Context,
    Delivered,
    Event,
    Gone,
    Misconfigured,
    Outcome,
    Partial,
    Plan,
    Rejected,
    Request,
    Response,
    Retry,
    Split,
    Verdict,
    plan,
)
from worker import metrics, traces
from worker.clock import time_of
from worker.directory import Integration
from worker.pipeline import Landed
from worker.transport import Transport, TransportError
from worker.verdict import outcomes_of

Came: TypeAlias = tuple[Response | None, Verdict]

AT_ONCE = timedelta(0)
PASSES = 4  # resending "the others, at once" more often is the pipeline's business
SNIPPET = 2_000  # characters of a request or answer that a dead letter keeps


@dataclass(slots=True)
class Report:
    """What came of a batch: one `Landed` per delivery, and how the upstream itself is."""

    landed: list[Landed | None]
    failed: bool = False
    refused: bool = False
    throttled: bool = False
    gone: bool = False
    asked: timedelta | None = None
    message: str = ""
    reason: str = ""

    def blame(self, outcome: Outcome) -> None:
        """Take a whole-request outcome as the upstream's state."""
        match outcome:
            case Retry(after=after) if after == AT_ONCE:
                return
            case Retry(throttled=True, after=after):
                self.throttled = True
                self.asked = max(self.asked or AT_ONCE, after) if after else self.asked
            case Retry(after=after):
                self.failed = True
                self.asked = max(self.asked or AT_ONCE, after) if after else self.asked
            case Misconfigured():
                self.refused = True
            case Gone():
                self.gone = True
            case _:
                return
        self.message, self.reason = outcome.message, outcome.reason

    def join(self, other: "Report") -> None:
        """Take in the report of the batch's other part."""
        self.landed += other.landed
        self.failed |= other.failed
        self.refused |= other.refused
        self.throttled |= other.throttled
        self.gone |= other.gone
        self.asked = max((a for a in (self.asked, other.asked) if a), default=None)
        self.message = self.message or other.message
        self.reason = self.reason or other.reason


@dataclass(slots=True)
class Attempt:
    """One sending of a batch of one integration's events, with all its requests."""

    integration: Integration
    transport: Transport
    context: Context
    events: Sequence[Event]
    steps: list[int]  # first step not yet delivered, by position
    planned: Plan | None = None  # what all of them come to, where that is known
    came: Came | None = None  # of its first request, which was sent already
    report: Report = field(init=False)

    async def run(self) -> Report:
        """Send, and return what came of it; `landed` has no None left."""
        self.report = Report([None] * len(self.events))
        await self._send(list(range(len(self.events))), PASSES)
        return self.report

    async def _send(self, positions: list[int], passes: int) -> None:
        """Plan and send some of the events; what is split or to be resent at once follows."""
        again: list[int] = []  # planned anew at once
        split: list[list[int]] = []
        requests = self._plan(positions)
        simple = len(requests) == 1 and not any(self.steps)
        for request in requests:
            members = [positions[index] for index in request.events]
            ready = members if simple else self._ready(members, request.step, again, *split)
            if len(ready) < len(members):  # its batch has fallen apart: those left go by themselves
                again += ready
                continue
            began = time_ns() if traces.on else 0
            answers = await self._request(request, members)
            if traces.on and began:
                events = [self.events[position] for position in members]
                traces.on.attempt(self.integration, events, answers, began)
            halves = self._taken(members, answers, again, passes)
            if halves:
                middle = (len(halves) + 1) // 2
                split += [half for half in (halves[:middle], halves[middle:]) if half]
        for half in split:
            await self._send(half, passes)
        alike: dict[int, list[int]] = {}  # by step: they share requests
        for position in sorted(again):
            alike.setdefault(self.steps[position], []).append(position)
        for group in alike.values():
            await self._send(group, passes - 1)

    def _taken(
        self, members: list[int], answers: list[Landed], again: list[int], passes: int
    ) -> list[int]:
        """Land what is final; add to `again` what goes at once; return what is to be split."""
        if all_delivered(answers):
            for position, landed in zip(members, answers, strict=True):
                self.report.landed[position] = landed
                self.steps[position] = landed.step + 1
            return []
        halves: list[int] = []
        notes: dict[str, str] = {}
        for position, landed in zip(members, answers, strict=True):
            match landed.outcome:
                case Retry(after=after, note=note) if after == AT_ONCE and passes > 1:
                    if note:
                        notes[self.events[position].id] = note
                    again.append(position)
                case Split() if len(members) > 1:
                    halves.append(position)
                case _:
                    self._land(position, landed)
        if notes:
            self.context = replace(self.context, notes={**self.context.notes, **notes})
        return halves

    def _plan(self, positions: list[int]) -> Sequence[Request]:
        """Return the requests in the order of their steps; note what is settled without one."""
        integration = self.integration
        planned, self.planned = self.planned, None
        planned = planned or plan(
            integration.provider,
            [self.events[position] for position in positions],
            integration.settings,
            self.context,
        )
        for index, unsent in planned.unsent.items():
            self.report.landed[positions[index]] = Landed(unsent, alone=True)
        requests = planned.requests
        return sorted(requests, key=lambda r: r.step) if len(requests) > 1 else requests

    def _ready(self, members: list[int], step: int, *others: list[int]) -> list[int]:
        """Return those of `members` whose `step` may be sent: they are in none of the `others`."""
        held_up = {position for batch in others for position in batch}
        return [p for p in members if p not in held_up and self._due(p, step)]

    def _due(self, position: int, step: int) -> bool:
        """Whether this step of an event is still to be done, and no earlier one has failed."""
        landed = self.report.landed[position]
        stopped = landed is not None and not isinstance(landed.outcome, Delivered)
        return self.steps[position] <= step and not stopped

    def _land(self, position: int, landed: Landed) -> None:
        self.report.landed[position] = landed
        if isinstance(landed.outcome, Delivered):
            self.steps[position] = landed.step + 1

    async def _request(self, request: Request, members: Sequence[int]) -> list[Landed]:
        integration, count = self.integration, len(members)
        came, self.came = self.came, None
        response, verdict = came or await exchange(integration, self.transport, request)
        whole = verdict.rest if isinstance(verdict, Partial) else verdict
        if not request.optional:
            self.report.blame(whole)
        if response is None:
            return [
                self._landed(request, None, self._noted(whole, position), alone=False)
                for position in members
            ]
        if request.optional:
            return [Landed(Delivered(), step=request.step)] * count
        if isinstance(verdict, Delivered) and not verdict.message:
            return [Landed(verdict, step=request.step, status=response.status)] * count
        named: Mapping[int, Any] = verdict.named if isinstance(verdict, Partial) else {}
        return [
            self._landed(request, response, outcome, alone=index in named)
            for index, outcome in enumerate(outcomes_of(request, verdict, integration.mask))
        ]

    def _noted(self, unanswered: Outcome, position: int) -> Outcome:
        """Return what no answer means, with the note that an earlier answer left."""
        note = self.context.notes.get(self.events[position].id, "")
        known = isinstance(unanswered, Retry) and note
        return replace(unanswered, note=note) if known else unanswered

    def _landed(
        self, request: Request, response: Response | None, outcome: Outcome, *, alone: bool
    ) -> Landed:
        if isinstance(outcome, Delivered):
            status = response.status if response else None
            return Landed(outcome, step=request.step, status=status)
        mask = self.integration.mask
        keep = isinstance(outcome, Rejected | Retry)
        return Landed(
            outcome,
            alone=alone,
            step=request.step,
            status=response.status if response else None,
            request=mask(_shown(request)) if keep else None,
            response=mask(response.body[:SNIPPET].decode("utf-8", "replace"))
            if keep and response
            else None,
        )


async def exchange(integration: Integration, transport: Transport, request: Request) -> Came:
    """Send a request once; return its answer, None where none came, and what that means."""
    began = perf_counter()
    sending = transport.send(request, pool=integration.id, timeout=integration.timeout)
    try:
        return came_of(integration, request, await sending, began)
    except TransportError as error:
        return came_of(integration, request, error, began)


def came_of(
    integration: Integration, request: Request, answer: Response | TransportError, began: float
) -> Came:
    """Return an answer, None where none came, and what that means; `began` by `perf_counter`."""
    if isinstance(answer, TransportError):
        came: Came = (None, transport_outcome(answer))
    else:
        verdict = integration.provider.classify(request, answer, integration.settings)
        came = (answer, verdict)
    metrics.attempt(integration.slug, came[1], perf_counter() - began)
    return came


def all_delivered(landed: Sequence[Landed | None]) -> bool:
    """Whether all fared well and alike: the usual case, in which little is left to do."""
    first = landed[0] if landed else None
    return (
        first is not None
        and type(first.outcome) is Delivered
        and landed.count(first) == len(landed)
    )


def transport_outcome(error: TransportError) -> Outcome:
    """Return what a request that got no answer means: the upstream's trouble or the settings'."""
    if error.fault == "settings":
        return Misconfigured(error.reason, error.message)
    return Retry(error.reason, error.message)


def adapter_words(error: Exception) -> str:
    """Return what operators are told of what an adapter raised."""
    return f"{type(error).__name__} in the adapter; see the log"


def _shown(request: Request) -> str:
    body = request.body[:SNIPPET].decode("utf-8", "replace")
    return f"{request.method} {request.url}\n\n{body}"[:SNIPPET]


def context_for(integration: Integration, now_ms: float, **more: Any) -> Context:
    """Return the context of an attempt at the store's clock `now_ms`."""
    return Context(
        now=time_of(now_ms),
        project_id=integration.project_id,
        integration_id=integration.id,
        **more,
    )
