"""What an upstream's answer means for each event, and for the pipeline: pure functions.

The delivery loop and `onward explain` call the same ones.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

from msgspec.structs import replace

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
    one_line,
)

PipelineState: TypeAlias = Literal["ok", "retry", "misconfigured", "gone"]

_SEVERITY: tuple[type[Outcome], ...] = (Delivered, Retry, Split, Rejected, Misconfigured, Gone)


def outcomes_of(
    request: Request, verdict: Verdict, hide: Callable[[str], str] = str
) -> list[Outcome]:
    """Return the outcome of each event of `request.events`, in their order.

    A batch of one is not split but rejected. Messages go through `hide` (`worker.mask.Mask`) and
    are one line of at most 500 characters.
    """
    count = len(request.events)
    if isinstance(verdict, Partial):
        rest = _finished(verdict.rest, count, hide)
        named = {index: _finished(what, count, hide) for index, what in verdict.named.items()}
        return [named.get(index, rest) for index in range(count)]
    return [_finished(verdict, count, hide)] * count


def _finished(outcome: Outcome, count: int, hide: Callable[[str], str]) -> Outcome:
    if isinstance(outcome, Split) and count == 1:
        outcome = Rejected(outcome.reason, outcome.message)
    if not outcome.message:
        return outcome
    return replace(outcome, message=one_line(hide(outcome.message)))


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return what became of an event that several requests carry; delivered if there are none."""
    return max(outcomes, key=lambda outcome: _SEVERITY.index(type(outcome)), default=Delivered())


def pipeline_of(outcomes: Sequence[Outcome], verdict: Verdict) -> PipelineState:
    """Return how the pipeline stands after a request with this verdict.

    It is misconfigured or gone only if the whole request was answered so; it must retry if nothing
    was settled (delivered, rejected or to be split) and something is to be sent again.
    """
    kinds = {type(outcome) for outcome in outcomes}
    if isinstance(verdict, Gone) or kinds == {Gone}:
        return "gone"
    if isinstance(verdict, Misconfigured) or kinds == {Misconfigured}:
        return "misconfigured"
    if kinds & {Delivered, Rejected, Split} or not kinds:
        return "ok"
    return "retry"
