"""What is done again and again, and processes that are forked meanwhile."""

import os
import threading
from collections.abc import Iterator

import pytest

from worker import repeating
from worker.repeating import Repeating

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


class Stepping(Repeating):
    """Whose step lasts until it may end."""

    def __init__(self) -> None:
        super().__init__("stepping", 60, first=0)
        self.begun, self.may_end = threading.Event(), threading.Event()

    def step(self) -> None:
        self.begun.set()
        self.may_end.wait(60)


@pytest.fixture
def stepping() -> Iterator[Stepping]:
    made = Stepping()
    made.start()
    assert made.begun.wait(30)
    yield made
    made.stop()
    made.may_end.set()
    made.join(30)


def forked(thread: Repeating) -> int:
    """Return the exit status of a forked child: 0 where the thread was between two steps."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if thread.at_it.acquire(blocking=False) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_no_process_is_forked_during_a_step(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeating, "FORK_SECONDS", 60)
    threading.Timer(0.1, stepping.may_end.set).start()
    assert forked(stepping) == 0
    assert stepping.at_it.acquire(timeout=30), "and the parent's goes on"
    stepping.at_it.release()


def test_a_step_that_hangs_is_not_waited_for(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeating, "FORK_SECONDS", 0.05)
    assert forked(stepping) == 1
