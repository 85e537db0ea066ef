"""One attempt: steps, partial answers, splitting and resending, each event sent what it must."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from providers.kit import (
    Context,
    Delivered,
    Event,
    Misconfigured,
    Outcome,
    Partial,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    Settings,
    Split,
    Verdict,
)
from tests.providers.samples import event
from tests.worker.bare import bare_provider
from worker.attempt import Attempt, Report
from worker.transport import TransportError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Answer = Callable[[list[str], int], Verdict]


def provider(answer: Answer, steps: int = 1, *, optional_last: bool = False) -> Provider[Settings]:
    """A provider that sends all events of a plan in one request a step, and answers by `answer`.

    An event with a note is sent as its id and the note.
    """

    def encode(events: Any, _settings: Settings, context: Context) -> Plan:
        ids = [one.id + context.notes.get(one.id, "") for one in events]
        return Plan(
            tuple(
                Request.json(
                    "https://upstream.example/",
                    {"ids": ids, "step": step},
                    events=tuple(range(len(events))),
                    step=step,
                    optional=optional_last and step == steps - 1,
                )
                for step in range(steps)
            )
        )

    def classify(request: Request, _response: Response, _settings: Settings) -> Verdict:
        body = json.loads(request.body)
        return answer(body["ids"], body["step"])

    return bare_provider(encode, classify)


class Wire:
    """Counts what goes out; answers 200, or fails like a dead line."""

    def __init__(self, error: TransportError | None = None) -> None:
        self.sent: list[tuple[int, tuple[str, ...]]] = []
        self.error = error

    async def send(self, request: Request, *, pool: str, timeout: float) -> Response:  # noqa: ASYNC109  the protocol
        assert (pool, timeout) == ("c9VdLs3H", 5)
        body = json.loads(request.body)
        self.sent.append((body["step"], tuple(body["ids"])))
        if self.error:
            raise self.error
        return Response(200)

    async def close(self) -> None: ...


async def run(
    answer: Answer,
    ids: str,
    *,
    steps: int = 1,
    begin: dict[str, int] | None = None,
    wire: Wire | None = None,
    optional_last: bool = False,
) -> tuple[Report, Wire]:
    used = wire or Wire()
    integration: Any = SimpleNamespace(
        id="c9VdLs3H",
        slug="webhooks",
        provider=provider(answer, steps, optional_last=optional_last),
        settings=Settings(),
        timeout=5,
        mask=lambda text: text,
    )
    events: list[Event] = [event(id=letter) for letter in ids]
    first = [(begin or {}).get(letter, 0) for letter in ids]
    attempt = Attempt(integration, used, Context(now=NOW), events, first)
    return await attempt.run(), used


def outcomes(report: Report) -> list[Outcome | Any]:
    return [landed.outcome if landed else None for landed in report.landed]


async def test_all_delivered_in_one_request() -> None:
    report, wire = await run(lambda _ids, _step: Delivered(), "abc")
    assert outcomes(report) == [Delivered()] * 3
    assert wire.sent == [(0, ("a", "b", "c"))]
    assert not report.failed


async def test_a_batch_refused_whole_is_halved_down_to_the_culprit() -> None:
    def answer(ids: list[str], _step: int) -> Verdict:
        return Split("bad_request", "no") if "c" in ids else Delivered()

    report, _ = await run(answer, "abcd")
    assert outcomes(report) == [
        Delivered(),
        Delivered(),
        Rejected("bad_request", "no"),
        Delivered(),
    ]


async def test_the_rest_of_a_partial_answer_may_be_split() -> None:
    def answer(ids: list[str], _step: int) -> Verdict:
        if "a" in ids and len(ids) == 3:
            return Partial({0: Rejected("bad", "a")}, Split("bad_request", "one of the others"))
        return Split("bad_request", "c") if "c" in ids else Delivered()

    report, _ = await run(answer, "abc")
    assert outcomes(report) == [Rejected("bad", "a"), Delivered(), Rejected("bad_request", "c")]


async def test_the_others_are_resent_at_once_and_only_once() -> None:
    def answer(ids: list[str], _step: int) -> Verdict:
        if "b" in ids:
            return Partial(
                {ids.index("b"): Rejected("bad", "b")}, Retry("again", after=timedelta(0))
            )
        return Delivered()

    report, wire = await run(answer, "abc")
    assert outcomes(report) == [Delivered(), Rejected("bad", "b"), Delivered()]
    assert wire.sent == [(0, ("a", "b", "c")), (0, ("a", "c"))]


async def test_what_is_resent_at_once_is_planned_with_its_notes() -> None:
    def answer(ids: list[str], _step: int) -> Verdict:
        again = Retry("again", after=timedelta(0), note="!")
        return Delivered() if ids == ["a!", "b!"] else again

    report, wire = await run(answer, "ab")
    assert outcomes(report) == [Delivered()] * 2
    assert wire.sent == [(0, ("a", "b")), (0, ("a!", "b!"))]


async def test_what_an_answer_noted_is_not_forgotten_where_the_next_one_never_comes() -> None:
    wire = Wire()

    def answer(_ids: list[str], _step: int) -> Verdict:
        wire.error = TransportError("timeout", fault="upstream", message="no answer in 5 s")
        return Partial({1: Retry("again", after=timedelta(0), note="!")}, Delivered())

    report, _ = await run(answer, "ab", wire=wire)
    assert wire.sent == [(0, ("a", "b")), (0, ("b!",))]
    assert outcomes(report) == [Delivered(), Retry("timeout", "no answer in 5 s", note="!")]


async def test_a_whole_request_resent_at_once_is_not_split_as_well() -> None:
    calls = 0

    def answer(_ids: list[str], _step: int) -> Verdict:
        nonlocal calls
        calls += 1
        return Retry("again", after=timedelta(0)) if calls == 1 else Delivered()

    report, wire = await run(answer, "ab")
    assert outcomes(report) == [Delivered(), Delivered()]
    assert wire.sent == [(0, ("a", "b")), (0, ("a", "b"))]


async def test_a_later_step_waits_for_the_earlier_one_and_is_not_repeated() -> None:
    def answer(ids: list[str], step: int) -> Verdict:
        return Split("bad_request", "x") if step == 0 and len(ids) > 1 else Delivered()

    report, wire = await run(answer, "ab", steps=2)
    assert outcomes(report) == [Delivered(), Delivered()]
    assert [sent for sent in wire.sent if sent[0] == 1] == [(1, ("a",)), (1, ("b",))]


async def test_a_failed_step_stops_the_next_and_is_where_the_retry_begins() -> None:
    def answer(_ids: list[str], step: int) -> Verdict:
        return Retry("unavailable", "down") if step == 1 else Delivered()

    report, wire = await run(answer, "a", steps=3)
    assert [step for step, _ in wire.sent] == [0, 1]
    (landed,) = report.landed
    assert landed is not None
    assert landed.step == 1
    assert report.failed
    _, later = await run(lambda _ids, _step: Delivered(), "a", steps=3, begin={"a": 1})
    assert [step for step, _ in later.sent] == [1, 2]


async def test_a_batch_whose_events_fared_differently_parts_after_the_first_step() -> None:
    def answer(ids: list[str], step: int) -> Verdict:
        if step == 0 and len(ids) > 1:
            return Partial({0: Rejected("bad", "a")})
        return Delivered()

    report, wire = await run(answer, "abc", steps=2)
    assert outcomes(report) == [Rejected("bad", "a"), Delivered(), Delivered()]
    assert wire.sent == [(0, ("a", "b", "c")), (1, ("b", "c"))]


async def test_an_optional_request_never_fails_its_events() -> None:
    def answer(_ids: list[str], step: int) -> Verdict:
        return Misconfigured("forbidden", "no") if step == 1 else Delivered()

    report, _ = await run(answer, "ab", steps=2, optional_last=True)
    assert outcomes(report) == [Delivered(), Delivered()]
    assert not report.refused


async def test_a_dead_line_is_a_retry_and_blocked_addresses_are_the_settings_fault() -> None:
    timeout = TransportError("timeout", fault="upstream", message="no answer in 5 s")
    report, _ = await run(lambda _ids, _step: Delivered(), "a", wire=Wire(timeout))
    assert outcomes(report) == [Retry("timeout", "no answer in 5 s")]
    assert report.failed
    blocked = TransportError("blocked", fault="settings", message="private address")
    report, _ = await run(lambda _ids, _step: Delivered(), "a", wire=Wire(blocked))
    assert outcomes(report) == [Misconfigured("blocked", "private address")]
    assert report.refused
