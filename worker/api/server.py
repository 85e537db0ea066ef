"""uvicorn, with the bounds it lacks: how long and how large a request's head and body may come.

Its parser (llhttp) refuses what smuggling needs: both lengths, two lengths, folded headers, spaces
before a colon. What is refused before there is a request is answered in the API's envelope, too.
"""

import json
import resource
from asyncio import TimerHandle, Transport
from ipaddress import ip_address
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from worker.api.edge import HEADERS
from worker.settings import InvalidEnvironment, WorkerSettings

HEAD_SECONDS = 10  # from the first byte, or from connecting
MESSAGE_SECONDS = 30  # from the end of the head; bodies that are read have 10 s of their own
WRITE_SECONDS = 30  # how long an answer may wait for a client that does not read
MAX_HEAD = 32 * 1024  # bytes
MAX_EXCESS = 1024 * 1024  # bytes of a body that was answered already, before we hang up
MAX_PIPELINED = 20  # requests behind one that is not answered yet; uvicorn keeps any number
CONCURRENT = 1_000  # connections; beyond it requests are answered 503
ADMIN_LENGTH = 20  # characters, outside of loopback
SPARE = 100  # connections beyond that; then they are closed unheard


class Bounded(HttpToolsProtocol):
    """One connection. Its timer runs while a message is expected or unfinished."""

    timer: TimerHandle | None = None
    stuck: TimerHandle | None = None  # runs while the client does not read
    head = 0  # bytes of the present head so far; -1: it is over
    excess = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        limit = self.limit_concurrency
        if limit is not None and len(self.connections) > limit + SPARE:
            transport.abort()
        self._expect(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        if self.stuck:
            self.stuck.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to read what is written already, but not for ever."""
        super().pause_writing()
        self.stuck = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self.stuck:
            self.stuck.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse; give up where a head becomes too large."""
        if self.timer is None and self._idle:  # a kept connection: line ends begin no message
            self._expect(HEAD_SECONDS)
        if self.head >= 0:
            self.head += len(data)
        super().data_received(data)
        if self.head > MAX_HEAD:
            self._refuse(431, "The request's head is too large")

    @property
    def _idle(self) -> bool:
        return getattr(self.cycle, "response_complete", True)  # None before the first request

    def on_message_begin(self) -> None:
        """Wait for the rest of the head."""
        super().on_message_begin()
        self.head = max(self.head, 0)
        self._expect(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        """Hand the request over; wait for the rest of its body."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD or self.parser.get_http_version() not in {"1.0", "1.1"}:
            raise ValueError("the head is too large, or HTTP/0.9")  # the parser's caller says 400
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise ValueError("more requests than answers")
        self.head, self.excess = -1, 0
        self._expect(MESSAGE_SECONDS)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; of one that nobody reads any more, not without end."""
        super().on_body(body)
        if self.cycle.response_complete:
            self.excess += len(body)
            if self.excess > MAX_EXCESS:
                self.transport.abort()

    def on_message_complete(self) -> None:
        """Stop waiting: the message is whole."""
        self.head = 0
        self._stop_timer()
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also one whose client does not read its answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request."""
        self._refuse(400, msg)

    def _expect(self, seconds: float) -> None:
        self._stop_timer()
        self.timer = self.loop.call_later(seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _give_up(self) -> None:
        self.timer = None
        if self._idle and self.head >= 0:
            self._refuse(408, "The request came too slowly")
        else:
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        error = {"type": "request", "code": "invalid_request", "message": message}
        body = json.dumps({"error": error}).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **HEADERS,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[status] + head.encode() + b"\r\n" + body)
        self.transport.close()
        self.loop.call_later(WRITE_SECONDS, self.transport.abort)


def refuse_weak_key(settings: WorkerSettings, host: str) -> None:
    """Raise InvalidEnvironment where an admin key that can be guessed would face a network."""
    if settings.admin_key is None or host == "localhost" or _is_loopback(host):
        return
    if len(settings.admin_key.get_secret_value()) < ADMIN_LENGTH:
        raise InvalidEnvironment(
            f"ONWARD_ADMIN_KEY: at least {ADMIN_LENGTH} characters outside of loopback"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, and so perhaps any address
        return False


def make_server(app: FastAPI, port: int, host: str = "127.0.0.1", **options: Any) -> uvicorn.Server:
    """Return a server of the app, to be run by the caller (`run()`, or `serve()` on a loop)."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "http": Bounded,
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "limit_concurrency": min(CONCURRENT, files // 2),
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": 5,
    }
    return uvicorn.Server(uvicorn.Config(app, **{**settings, **options}))
