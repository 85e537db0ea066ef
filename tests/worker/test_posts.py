"""What goes in one request by itself: as `Attempt` has it, without its steps, and many together."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from providers.kit import (
    Context,
    Delivered,
    Event,
    Misconfigured,
    Plan,
    Rejected,
    Request,
    Response,
    Retry,
    Settings,
    Skipped,
    Verdict,
    by_status,
    one_each,
)
from tests.providers.samples import event
from tests.worker.bare import bare_provider
from worker.attempt import Report
from worker.clock import StoreClock
from worker.pipeline import Landed
from worker.posts import Posts
from worker.sender import Sender
from worker.transport import TransportError

URL = "https://upstream.example/"
DEAD = TransportError("reset", "the line is dead")


def make(one: Event) -> Any:
    """Return what the test's provider makes of an event, as its id says."""
    match one.id:
        case "skipped":
            return Skipped("no_identity", "nobody")
        case "twice":
            return (Request("POST", URL), Request("POST", URL))
        case "later":
            return Request("POST", URL, step=1)
        case "broken":
            raise ZeroDivisionError
    return Request("POST", URL, body=one.id.encode())


def classify(_request: Request, response: Response, _settings: Settings) -> Verdict:
    if response.status == 418:
        raise ZeroDivisionError
    return by_status(response)


def encode(events: Any, _settings: Settings, _context: Context) -> Plan:
    return one_each(events, make)


class Wire:
    """Answers with a status, or fails."""

    def __init__(self, answer: int | TransportError = 200) -> None:
        self.answer = answer
        self.sent: list[bytes] = []

    async def send(self, request: Request, *, pool: str, timeout: float) -> Response:  # noqa: ASYNC109  the protocol
        assert (pool, timeout) == ("c9VdLs3H", 5)
        self.sent.append(request.body)
        if isinstance(self.answer, TransportError):
            raise self.answer
        return Response(self.answer, at=datetime(2026, 1, 1, tzinfo=UTC))

    async def close(self) -> None: ...


class Woken(asyncio.Event):
    """Set when there is something to do."""

    async def again(self) -> None:
        """Wait until there is something more."""
        self.clear()
        async with asyncio.timeout(30):
            await self.wait()


def posts(wire: Wire | None = None) -> tuple[Posts, Any, Woken]:
    """Return posts, a pipeline of the test's provider, and what they wake."""
    provider = bare_provider(encode, classify)
    integration = SimpleNamespace(
        id="c9VdLs3H", project_id="prj_a", slug="webhooks", provider=provider,
        settings=Settings(), timeout=5, mask=lambda text: text,
    )  # fmt: skip
    woken = Woken()
    made = Posts(wire or Wire(), StoreClock(), woken.set)
    return made, SimpleNamespace(integration=integration, batch=None), woken


def deliveries(pipeline: Any, *ids: str) -> list[Any]:
    return [SimpleNamespace(event=event(id=id_), step=0, note="", pipeline=pipeline) for id_ in ids]


async def report_of(made: Posts, pipeline: Any, *more: Any) -> Report:
    """Return the report of a delivery that goes the long way from there."""
    nothing: Any = SimpleNamespace()
    return await Sender(nothing, made.transport, nothing, made.clock).send(pipeline, *more)


async def test_only_what_is_one_request_goes_the_short_way() -> None:
    made, pipeline, woken = posts(wire := Wire())
    made.take(deliveries(pipeline, "a", "skipped", "twice", "later", "broken", "b"))
    left = {delivery.event.id: planned for delivery, planned in made.send()}
    assert left.keys() == {"skipped", "twice", "later", "broken"}
    assert left["broken"] is None
    assert not made, "all of it was taken"
    await woken.again()
    assert wire.sent == [b"a", b"b"]


async def test_all_are_planned_before_the_first_is_sent() -> None:
    made, pipeline, _ = posts(wire := Wire())
    steps: list[str] = []
    plans, sends = pipeline.integration.provider.encode, wire.send

    def planned(events: Any, *more: Any) -> Plan:
        steps.append(f"plan {events[0].id}")
        return cast("Plan", plans(events, *more))

    def sent(request: Request, **more: Any) -> Any:
        steps.append(f"send {request.body.decode()}")
        return sends(request, **more)

    pipeline.integration.provider = bare_provider(planned, classify)
    wire.send = sent  # type: ignore[method-assign]
    made.take(deliveries(pipeline, "a", "b"))
    assert not list(made.send())
    assert steps == ["plan a", "plan b", "send a", "send b"]
    made.cut_off()


async def test_what_is_not_sent_is_planned_once() -> None:
    made, pipeline, _ = posts()
    made.take(deliveries(pipeline, "skipped"))
    ((skipped, planned),) = made.send()
    pipeline.integration.settings = None  # whoever plans again fails
    report = await report_of(made, pipeline, [skipped], planned)
    assert report.landed == [Landed(Skipped("no_identity", "nobody"), alone=True)]


async def came(answer: int | TransportError) -> Landed | Report:
    """Return what came of a delivery, as the dispatcher has it done."""
    made, pipeline, woken = posts(wire := Wire(answer))
    made.take(deliveries(pipeline, "a"))
    assert not list(made.send())
    await woken.again()
    ((delivery, planned, found),) = made.answers()
    if not isinstance(found, Landed | Report):
        found = await report_of(made, pipeline, [delivery], planned, found)
    assert wire.sent == [b"a"]  # once, whatever came of it
    return found


async def test_what_is_cut_off_was_interrupted() -> None:
    made, pipeline, woken = posts()
    made.take(deliveries(pipeline, "a", "b"))
    assert not list(made.send())
    made.cut_off()
    await woken.again()
    found = [came for _, _, came in made.answers()]
    assert [report.throttled for report in found if isinstance(report, Report)] == [True, True]


async def test_what_was_taken_has_landed() -> None:
    assert await came(204) == Landed(Delivered(), status=204)


@pytest.mark.parametrize(
    ("answer", "kind", "failed"),
    [(500, Retry, True), (401, Misconfigured, False), (413, Rejected, False), (DEAD, Retry, True)],
)
async def test_all_else_is_a_report(
    answer: int | TransportError, kind: type[Any], failed: bool
) -> None:
    report = await came(answer)
    assert isinstance(report, Report)
    (landed,) = report.landed
    assert landed is not None
    assert isinstance(landed.outcome, kind)
    assert landed.status == (answer if isinstance(answer, int) else None)
    assert report.failed is failed


async def test_an_adapter_that_fails_on_an_answer_costs_one_event() -> None:
    report = await came(418)
    assert isinstance(report, Report)
    (landed,) = report.landed
    assert landed is not None
    assert landed.outcome == Rejected(
        "adapter_error", "ZeroDivisionError in the adapter; see the log"
    )
