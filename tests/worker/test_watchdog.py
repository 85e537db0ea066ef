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


def loop(*, beat: float = NOW, queued: int = 0, progressed: float = NOW) -> Any:
    return SimpleNamespace(beat=beat, queued=queued, progressed=progressed)


@pytest.mark.parametrize(
    ("found", "stuck"),
    [
        (loop(), False),
        (loop(beat=LONG_AGO), True),  # the event loop itself stands still
        (loop(progressed=LONG_AGO), False),  # and nothing waits
        (loop(queued=1), False),
        (loop(queued=1, progressed=LONG_AGO), True),
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


class Received:
    """The requests a consumer has: what drains, and what is at hand."""

    def __init__(self, found: SimpleNamespace) -> None:
        self.found = found

    def __len__(self) -> int:
        return 1 + int(self.found.at_hand)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A worker of which one child is idle: `now`, how many are `idle`, `broker` there.

    `hints` were published, of which `at_hand` are received and not begun; slices are `ending`, and
    those that were `followed` may end.
    """
    found = SimpleNamespace(
        now=NOW, idle=1, broker=True, hints=0, at_hand=0, ending=[], followed=[]
    )

    def hint() -> None:
        if not found.broker:
            raise ConnectionError
        found.hints += 1

    def end(_code: int) -> None:
        raise Ended

    monkeypatch.setattr(ticker, "time", SimpleNamespace(monotonic=lambda: found.now))
    monkeypatch.setattr(ticker, "hint_drain", hint)
    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr(app, "idle_children", lambda: found.idle)
    monkeypatch.setattr(app, "ending_slices", lambda: found.ending)
    monkeypatch.setattr(app, "let_end", lambda place, end: found.followed.append((place, end)))
    state = SimpleNamespace(active_requests={"one that drains"}, reserved_requests=Received(found))
    monkeypatch.setattr(ticker, "state", state)
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
    clock.idle = 0  # all drain
    steps(made, clock, 3 * STUCK_SECONDS)
    clock.idle, clock.broker = 1, False  # nobody can be hinted
    steps(made, clock, 3 * STUCK_SECONDS)
    clock.broker = True
    steps(made, clock, STUCK_SECONDS - 1)


def test_a_slice_ends_when_the_next_hint_is_at_hand(clock: SimpleNamespace) -> None:
    made = Ticker()
    clock.idle, clock.ending = 0, [(0, 240.0), (1, 241.0)]
    steps(made, clock, 3)
    assert (clock.hints, clock.followed) == (6, []), "published, and not received"
    clock.at_hand = 1
    steps(made, clock, 1)
    assert (clock.hints, clock.followed) == (7, [(0, 240.0)])


def test_what_an_idle_child_takes_is_no_hint_for_a_slice(clock: SimpleNamespace) -> None:
    made = Ticker()
    clock.idle, clock.at_hand, clock.ending = 1, 1, [(1, 240.0)]
    steps(made, clock, 1)
    assert (clock.hints, clock.followed) == (2, [])
    clock.at_hand = 2
    steps(made, clock, 1)
    assert clock.followed == [(1, 240.0)]


def test_a_consumer_that_hangs_ends_no_slice_and_then_its_worker(clock: SimpleNamespace) -> None:
    made = Ticker()
    clock.idle, clock.ending = 0, [(0, 240.0)]
    steps(made, clock, STUCK_SECONDS - 1)
    assert not clock.followed
    with pytest.raises(Ended):
        steps(made, clock, 2)
