"""Who lives and does not work ends itself, to be started again."""

from types import SimpleNamespace
from typing import Any

import pytest

from worker import app, ticker, watchdog
from worker.ticker import Ticker
from worker.watchdog import STUCK_SECONDS, is_stuck, watching

NOW = 1_000.0
LONG_AGO = NOW - STUCK_SECONDS - 1


class Ended(Exception):
    """The process would have ended."""


def loop(*, beat: float = NOW, unsent: int = 0, progressed: float = NOW) -> Any:
    return SimpleNamespace(
        beat=beat, dispatcher=SimpleNamespace(unsent=unsent), progressed=progressed
    )


@pytest.mark.parametrize(
    ("found", "stuck"),
    [
        (loop(), False),
        (loop(beat=LONG_AGO), True),  # the event loop itself stands still
        (loop(progressed=LONG_AGO), False),  # and nothing waits
        (loop(unsent=1), False),
        (loop(unsent=1, progressed=LONG_AGO), True),
    ],
)
def test_a_loop_is_stuck_where_work_waits(found: Any, stuck: bool) -> None:
    assert is_stuck(found, NOW) is stuck


def test_a_stuck_loop_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    done = SimpleNamespace(wait=lambda _seconds: bool(codes))
    monkeypatch.setattr("os._exit", codes.append)
    watchdog._watch(loop(beat=-STUCK_SECONDS), done)  # type: ignore[arg-type]
    assert codes == [70]


def test_nobody_watches_a_loop_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    with watching(loop(beat=float("inf"))):
        pass
    assert codes == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A worker of which one child should drain: `now`, places that are `wanted`, `broker` there."""
    found = SimpleNamespace(now=NOW, wanted={0: 0.0}, broker=True)

    def hint() -> None:
        if not found.broker:
            raise ConnectionError

    def end(_code: int) -> None:
        raise Ended

    monkeypatch.setattr(ticker, "time", SimpleNamespace(monotonic=lambda: found.now))
    monkeypatch.setattr(ticker, "hint_drain", hint)
    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr(app, "hints_wanted", lambda: found.wanted)
    monkeypatch.setattr(app, "hints_taken", SimpleNamespace(value=0))
    return found


def steps(made: Ticker, clock: SimpleNamespace, seconds: float) -> None:
    for _ in range(int(seconds)):
        clock.now += 1
        try:
            made.step()
        except ConnectionError:
            continue


def test_a_worker_whose_hints_nobody_takes_ends(clock: SimpleNamespace) -> None:
    made = Ticker()
    steps(made, clock, STUCK_SECONDS - 1)
    with pytest.raises(Ended):
        steps(made, clock, 2)


def test_a_worker_that_consumes_goes_on(clock: SimpleNamespace) -> None:
    made = Ticker()
    for _ in range(3):  # its slices fail at once: no reason to end
        steps(made, clock, STUCK_SECONDS - 1)
        app.hints_taken.value += 1
    steps(made, clock, 1)
    clock.wanted = {}  # all drain
    steps(made, clock, 3 * STUCK_SECONDS)
    clock.wanted, clock.broker = {0: 0.0}, False  # nobody can be hinted
    steps(made, clock, 3 * STUCK_SECONDS)
    clock.broker = True
    steps(made, clock, STUCK_SECONDS - 1)
