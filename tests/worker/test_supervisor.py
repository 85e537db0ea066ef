"""What tells a service to end."""

import signal
from collections.abc import Iterator

import pytest

from worker.supervisor import ending_signals


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_ends_a_service() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert ending_signals() == [signal.SIGTERM, signal.SIGHUP]


def test_under_nohup_it_does_not() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert ending_signals() == [signal.SIGTERM]
