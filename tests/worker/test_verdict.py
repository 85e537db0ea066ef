"""What becomes of each event of a request, and how the pipeline stands after it."""

from collections.abc import Sequence

import pytest

from providers.kit import (
    Delivered,
    Gone,
    Misconfigured,
    Outcome,
    Partial,
    Rejected,
    Request,
    Retry,
    Split,
    Verdict,
)
from worker.mask import Mask
from worker.verdict import outcomes_of, pipeline_of, worst

SPLIT = Split("bad_request", "no")
REJECTED = Rejected("bad_request", "no")
RETRY = Retry("unavailable")


def request(count: int) -> Request:
    return Request("POST", "https://up.example/", events=tuple(range(10, 10 + count)))


@pytest.mark.parametrize(
    ("count", "verdict", "outcomes"),
    [
        (2, Delivered(), [Delivered(), Delivered()]),
        (2, SPLIT, [SPLIT, SPLIT]),
        (1, SPLIT, [REJECTED]),
        (1, Partial({}, SPLIT), [REJECTED]),
        (3, Partial({1: REJECTED}), [Delivered(), REJECTED, Delivered()]),
        (2, Partial({0: REJECTED}, RETRY), [REJECTED, RETRY]),
        (2, Partial({7: REJECTED}, RETRY), [RETRY, RETRY]),
    ],
)
def test_gives_each_event_its_outcome(
    count: int, verdict: Verdict, outcomes: list[Outcome]
) -> None:
    assert outcomes_of(request(count), verdict) == outcomes


def test_masks_a_message_before_cutting_it() -> None:
    secret = "sk_live_0123456789"
    (outcome,) = outcomes_of(
        request(1), Rejected("bad_request", "x" * 490 + f"\n{secret}"), Mask([secret])
    )
    assert outcome.message == "x" * 490 + " ***"
    (long,) = outcomes_of(request(1), Rejected("bad_request", "y" * 900))
    assert long.message == "y" * 500


@pytest.mark.parametrize(
    ("outcomes", "verdict", "pipeline"),
    [
        ([Delivered()], Delivered(), "ok"),
        ([], Delivered(), "ok"),
        ([RETRY, RETRY], RETRY, "retry"),
        ([REJECTED, RETRY], Partial({0: REJECTED}, RETRY), "ok"),
        ([SPLIT, SPLIT], SPLIT, "ok"),
        ([REJECTED], SPLIT, "ok"),
        ([Misconfigured("unauthorized")], Misconfigured("unauthorized"), "misconfigured"),
        (
            [Misconfigured("unauthorized"), Delivered()],
            Partial({0: Misconfigured("unauthorized")}),
            "ok",
        ),
        ([Gone("gone")], Gone("gone"), "gone"),
        ([Misconfigured("unauthorized"), RETRY], Partial({}, RETRY), "retry"),
    ],
)
def test_says_how_the_pipeline_stands(
    outcomes: Sequence[Outcome], verdict: Verdict, pipeline: str
) -> None:
    assert pipeline_of(outcomes, verdict) == pipeline


def test_an_event_of_several_requests_fares_as_the_worst_of_them() -> None:
    assert worst([Delivered(), RETRY, REJECTED]) == REJECTED
    assert worst([Misconfigured("unauthorized"), REJECTED]) == Misconfigured("unauthorized")
    assert worst([]) == Delivered()
