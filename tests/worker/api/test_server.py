"""The real server against clients that are slow, greedy, or speak for two (reliability.md, 11)."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import pytest
from fastapi import FastAPI

from tests.worker.api.conftest import Keys
from worker.api import server as bounds
from worker.api.server import make_server, refuse_weak_key
from worker.settings import InvalidEnvironment, WorkerSettings

Connect = Callable[[], socket.socket]
GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
QUICK = 0.2  # s, for a bound that a test waits for
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@contextmanager
def serving(app: FastAPI, *, buffer: int = 0, **options: Any) -> Iterator[Connect]:
    server = make_server(app, 0, **options)
    listener = socket.create_server(("127.0.0.1", 0))
    if buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        made.append(socket.create_connection(listener.getsockname(), timeout=20))
        return made[-1]

    try:
        yield connect
    finally:
        for one in made:
            one.close()
        server.should_exit = True
        thread.join()


@pytest.fixture
def connect(app: FastAPI) -> Iterator[Connect]:
    with serving(app) as connect:
        yield connect


def until_close(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes; a timeout fails the test."""
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionResetError:
        pass
    return got


def said(connect: Connect, request: bytes) -> bytes:
    connection = connect()
    connection.sendall(request)
    return until_close(connection)


# --- smuggling -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 4\r\n" + CHUNKED,
        CHUNKED + b"Content-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: 4, 5\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length : 4\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"X-A: b\r\n Content-Length: 4\r\n",
        b"X-A: b\x00c\r\n",
        b"X-A: b\rContent-Length: 4\r\n",
        b"X A: b\r\n",
        b": b\r\n",
    ],
)
def test_what_two_servers_could_read_differently_is_refused(connect: Connect, head: bytes) -> None:
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = said(
        connect, b"POST /v4/integrations HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n" + smuggled
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b'"code": "invalid_request"' in answer
    assert b"X-Content-Type-Options: nosniff" in answer


@pytest.mark.parametrize(
    "line",
    [b"GET /healthz", b"get /healthz HTTP/1.1", b"GET  HTTP/1.1", b"\x16\x03\x01\x02", b"{}"],
)
def test_what_is_no_request_is_refused(connect: Connect, line: bytes) -> None:
    answer = said(connect, line + b"\r\nHost: a\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))
    assert b"200 OK" not in answer


def test_requests_in_a_row_are_answered_in_a_row(connect: Connect) -> None:
    last = GET + b"Connection: close\r\n\r\n"
    answer = said(connect, (GET + b"\r\n") * 3 + last)
    assert answer.count(b'{"status":"ok"}') == 4


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"])
def test_the_method_is_the_lines_alone(connect: Connect, keys: Keys, name: str) -> None:
    head = f"GET /v4/integrations?_method=DELETE HTTP/1.1\r\nHost: a\r\n{name}: DELETE\r\n"
    auth = f"Authorization: Bearer {keys.live}\r\nConnection: close\r\n\r\n"
    assert said(connect, (head + auth).encode()).startswith(b"HTTP/1.1 200 ")


# --- size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flood",
    [
        b"X-A: " + b"a" * 40_000,
        b"".join(b"X-%d: a\r\n" % number for number in range(8_000)),
    ],
)
def test_a_large_head_is_refused(connect: Connect, flood: bytes) -> None:
    answer = said(connect, GET + flood)
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    whole = said(connect, GET + flood + b"\r\n\r\n")
    assert whole.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


def test_a_large_url_is_refused(connect: Connect) -> None:
    answer = said(connect, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("head", [b"Content-Length: 70000\r\n", CHUNKED])
def test_a_large_body_is_refused_and_hung_up_on(connect: Connect, keys: Keys, head: bytes) -> None:
    connection = connect()
    connection.sendall(
        b"POST /v4/integrations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        + f"Authorization: Bearer {keys.live}\r\n".encode() + head + b"\r\n"
    )  # fmt: skip
    if head == CHUNKED:
        connection.sendall(b"11170\r\n" + b"a" * 70_000)
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_nobody_reads_does_not_go_on_for_ever(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_EXCESS", 100_000)
    connection = connect()
    connection.sendall(GET + b"Content-Length: 900000000\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        connection.sendall(b"a" * 50_000_000)


# --- slowness --------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"GET /heal", GET, GET + b"X-A"])
def test_a_head_that_does_not_come_is_not_waited_for(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(bounds, "HEAD_SECONDS", QUICK)
    with serving(app) as connect:
        connection = connect()
        connection.sendall(begun)
        answer = until_close(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"too slowly" in answer


def test_line_ends_do_not_keep_a_connection(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "HEAD_SECONDS", QUICK)
    with serving(app) as connect:
        connection = connect()
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\r\n")
        assert until_close(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_does_not_come_is_not_waited_for(
    app: FastAPI, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.api.body.READ_SECONDS", QUICK)
    with serving(app) as connect:
        connection = connect()
        connection.sendall(
            b"POST /v4/integrations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {keys.live}\r\nContent-Length: 9\r\n\r\n{{".encode()
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_message_that_never_ends_is_cut(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MESSAGE_SECONDS", QUICK)
    with serving(app) as connect:
        connection = connect()
        connection.sendall(GET + b"Content-Length: 9\r\n\r\na")  # a body that no route reads
        assert until_close(connection).startswith(b"HTTP/1.1 200 ")


def test_requests_do_not_pile_up_behind_answers(connect: Connect) -> None:
    connection = connect()
    with suppress(OSError):
        for _ in range(50):
            connection.sendall((GET + b"\r\n") * 1_000)
    assert until_close(connection).count(b"HTTP/1.1 ") < 1_000


def test_a_client_that_does_not_read_is_not_waited_for(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "WRITE_SECONDS", QUICK)
    with serving(app, buffer=4096) as connect:
        connection = connect()
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
        time.sleep(10 * QUICK)
        assert until_close(connection).count(b"HTTP/1.1 200 ") < 20


def test_an_idle_connection_is_closed(app: FastAPI) -> None:
    with serving(app, timeout_keep_alive=1) as connect:
        connection = connect()
        connection.sendall(GET + b"\r\n")
        assert until_close(connection).count(b"HTTP/1.1 ") == 1


def test_more_connections_than_wanted_are_turned_away(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SPARE", 2)
    with serving(app, limit_concurrency=3) as connect:
        first = connect()
        first.sendall(GET + b"\r\n")
        assert first.recv(65536).startswith(b"HTTP/1.1 200 ")
        crowd = [connect() for _ in range(6)]  # with the first one seven; five may be open
        closed: set[socket.socket] = set()
        while len(closed) < 2:
            closed |= set(select.select(set(crowd) - closed, [], [], 20)[0])
        assert [until_close(one) for one in closed] == [b"", b""]
        kept = [one for one in crowd if one not in closed]
        kept[0].sendall(GET + b"Connection: close\r\n\r\n")
        assert until_close(kept[0]).startswith(b"HTTP/1.1 503 ")
        first.sendall(GET + b"Connection: close\r\n\r\n")
        assert until_close(first).startswith(b"HTTP/1.1 503 ")


# --- who may listen where --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "key", "fits"),
    [
        ("127.0.0.1", "short", True),
        ("::1", "short", True),
        ("localhost", "short", True),
        ("0.0.0.0", "short", False),
        ("::", "short", False),
        ("api.internal", "short", False),
        ("0.0.0.0", "a" * 20, True),
        ("0.0.0.0", None, True),  # nothing opens the routes of all projects
    ],
)
def test_an_admin_key_that_can_be_guessed_faces_no_network(
    host: str, key: str | None, fits: bool
) -> None:
    settings = WorkerSettings.model_validate({"admin_key": key})
    if fits:
        refuse_weak_key(settings, host)
    else:
        with pytest.raises(InvalidEnvironment, match="ONWARD_ADMIN_KEY"):
            refuse_weak_key(settings, host)
