"""What tells a service to end, and how long it waits for its store to begin."""

import signal
import socketserver
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from worker.supervisor import Supervisor, ending_signals, wait_for_redis

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


def test_a_signal_ends_it_even_where_the_exception_is_swallowed(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in ENDING]
    keeper = Supervisor(tmp_path, lambda _: None)
    try:
        with pytest.raises(SystemExit):
            keeper.end(signal.SIGHUP, None)
        keeper.watch()  # it would be for ever
    finally:
        for number, handler in zip(ENDING, before, strict=True):
            signal.signal(number, handler)


class Loading(socketserver.ThreadingTCPServer):
    """A Redis that loads its file until it was asked a few times."""

    daemon_threads = True
    left = 3


class Answer(socketserver.BaseRequestHandler):
    server: Loading

    def handle(self) -> None:
        while asked := self.request.recv(65_536):
            for _ in range(asked.count(b"*")):
                self.server.left -= 1
                loads = self.server.left >= 0
                self.request.sendall(b"-LOADING from the disk\r\n" if loads else b"+PONG\r\n")


def test_a_store_that_loads_its_file_is_waited_for() -> None:
    with Loading(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        wait_for_redis(f"redis://127.0.0.1:{server.server_address[1]}/0?protocol=2", seconds=0)
        server.shutdown()
    assert server.left < 0


def test_a_store_that_is_not_there_is_not() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Answer) as gone:
        port = gone.server_address[1]
    with pytest.raises(TimeoutError, match="no Redis answers"):
        wait_for_redis(f"redis://127.0.0.1:{port}/0?protocol=2", seconds=0)
