"""Deliveries that each go in one request of their own: many are planned, sent and read together.

One step is done for all of them before the next one: a step that is repeated at once finds the
processor's caches warm (planning a webhook: 8.5 µs; among others 12). See `tests/bench`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from time import perf_counter
from typing import TypeAlias

from providers.kit import Delivered, Plan, Response, Retry, plan
from worker.attempt import Came, Report, came_of, context_for
from worker.clock import StoreClock
from worker.pipeline import Delivery, Landed
from worker.sender import FAILED, adapter_failed
from worker.transport import Transport, TransportError

PLAIN = Delivered()  # nothing was said or learned

log = logging.getLogger(__name__)

_Answered: TypeAlias = tuple[Delivery, Plan, float, "asyncio.Future[Response]"]  # asked when


class Posts:
    """What is to be sent, in flight, or answered. Calls `wake` when there is something to do."""

    def __init__(self, transport: Transport, clock: StoreClock, wake: Callable[[], None]) -> None:
        self.transport = transport
        self.clock = clock
        self.wake = wake
        self._taken: list[Delivery] = []
        self._sent: set[asyncio.Future[Response]] = set()
        self._answered: list[_Answered] = []

    def __bool__(self) -> bool:
        """Whether there is anything to send or to read."""
        return bool(self._taken or self._answered)

    def take(self, deliveries: Iterable[Delivery]) -> None:
        """Send these with the next `send`."""
        self._taken += deliveries
        self.wake()

    def send(self) -> Iterator[tuple[Delivery, Plan | None]]:
        """Send what was taken; yield what one request is not all there is to, with its plan.

        No plan: it could not be made, and whoever makes it again finds out why.
        """
        taken, self._taken = self._taken, []
        plans = [self._planned(delivery) for delivery in taken]
        for delivery, planned in zip(taken, plans, strict=True):
            if planned is None or not _simple(planned):
                yield delivery, planned
                continue
            integration = delivery.pipeline.integration
            sending = self.transport.send(
                planned.requests[0], pool=integration.id, timeout=integration.timeout
            )
            sent = asyncio.ensure_future(sending)
            self._sent.add(sent)
            sent.add_done_callback(partial(self._came, delivery, planned, perf_counter()))

    def answers(self) -> list[tuple[Delivery, Plan, Landed | Report | Came]]:
        """Return how each that was answered has landed, or what there is to go on with."""
        answered, self._answered = self._answered, []
        return [(one[0], one[1], _read(*one)) for one in answered]

    def cut_off(self) -> None:
        """Wait for no answer any more."""
        for sent in self._sent:
            sent.cancel()

    def _planned(self, delivery: Delivery) -> Plan | None:
        integration = delivery.pipeline.integration
        context = context_for(integration, self.clock.now_ms())
        try:
            return plan(integration.provider, [delivery.event], integration.settings, context)
        except Exception:  # noqa: BLE001  whoever plans it again meets it, and tells of it
            return None

    def _came(
        self, delivery: Delivery, planned: Plan, began: float, sent: "asyncio.Future[Response]"
    ) -> None:
        self._sent.discard(sent)
        self._answered.append((delivery, planned, began, sent))
        self.wake()


def _simple(planned: Plan) -> bool:
    """Whether one request is all there is to an event."""
    requests = planned.requests
    return len(requests) == 1 and not (requests[0].step or requests[0].optional)


def _read(
    delivery: Delivery, planned: Plan, began: float, sent: "asyncio.Future[Response]"
) -> Landed | Report | Came:
    integration, request = delivery.pipeline.integration, planned.requests[0]
    if sent.cancelled():
        return interrupted(1)
    try:
        response, verdict = came = came_of(integration, request, sent.result(), began)
    except TransportError as error:
        return came_of(integration, request, error, began)
    except Exception as error:
        log.exception(FAILED, integration.slug, delivery.event.id)
        return adapter_failed(error)
    return _taken(response.status) if response and verdict == PLAIN else came


@cache
def _taken(status: int) -> Landed:
    return Landed(PLAIN, status=status)


def interrupted(count: int) -> Report:
    """Return the report of so many deliveries whose answer nobody waited for."""
    cut = Retry("interrupted", "the worker stopped before the answer came")
    return Report([Landed(cut)] * count, throttled=True)  # nobody's failure
