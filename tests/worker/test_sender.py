"""The short way of a request that carries one event: as `Attempt` has it, without its steps."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

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
from worker.sender import Sender, simple
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


def sender(wire: Wire | None = None) -> tuple[Sender, Any]:
    """Return a sender, and a pipeline of the test's provider."""
    provider = bare_provider(encode, classify)
    integration = SimpleNamespace(
        id="c9VdLs3H", project_id="prj_a", slug="webhooks", provider=provider,
        settings=Settings(), timeout=5, mask=lambda text: text,
    )  # fmt: skip
    nothing: Any = SimpleNamespace()
    made = Sender(nothing, wire or Wire(), nothing, StoreClock())
    return made, SimpleNamespace(integration=integration, batch=None)


def deliveries(*ids: str) -> Any:
    return [SimpleNamespace(event=event(id=id_), step=0, note="") for id_ in ids]


@pytest.mark.parametrize(
    ("which", "plain"),
    [("a", True), ("skipped", False), ("twice", False), ("later", False), ("broken", False)],
)
def test_only_what_is_one_request_goes_the_short_way(which: str, *, plain: bool) -> None:
    made, pipeline = sender()
    planned = made.planned(pipeline, *deliveries(which))
    assert (planned is not None and simple(planned)) is plain


async def test_what_is_not_sent_is_planned_once() -> None:
    made, pipeline = sender()
    (skipped,) = deliveries("skipped")
    planned = made.planned(pipeline, skipped)
    pipeline.integration.settings = None  # whoever plans again fails
    report = await made.send(pipeline, [skipped], planned)
    assert report.landed == [Landed(Skipped("no_identity", "nobody"), alone=True)]


async def came(answer: int | TransportError) -> Landed | Report:
    """Return what came of a delivery, as the dispatcher has it done."""
    made, pipeline = sender(wire := Wire(answer))
    (delivery,) = deliveries("a")
    delivery.pipeline = pipeline
    planned = made.planned(pipeline, delivery)
    assert planned is not None
    posted = made.post(pipeline.integration, planned.requests[0])
    await asyncio.wait([posted])
    found = made.read(delivery, planned.requests[0], posted, 0.0)
    if not isinstance(found, Landed | Report):
        found = await made.send(pipeline, [delivery], planned, found)
    assert wire.sent == [b"a"]  # once, whatever came of it
    return found


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
