"""A raw upstream that does what a test scripts, and a dialler that never leaves loopback."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import pytest
import uvloop

from providers.kit import Request
from worker.settings import WorkerSettings
from worker.transport import Transport, guard, make_transport
from worker.transport.resolver import Lookup

Kind = Literal["narrow", "httpx"]
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

NO_ROOTS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the system's take a while to load
OURS = "93.184.215.99"  # a public address of this machine
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Received:
    """A request as it was on the wire."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


async def receive(reader: asyncio.StreamReader) -> Received:
    """Return the next request; raises IncompleteReadError where there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rows = head.removesuffix("\r\n\r\n").split("\r\n")
    headers = [(name, value) for name, _, value in (row.partition(": ") for row in rows)]
    length = [int(value) for name, value in headers if name.lower() == "content-length"]
    return Received(line, headers, await reader.readexactly(*length) if length else b"")


@dataclass
class Upstream:
    """A server on loopback. `received` are its requests, `opened` and `closed` its connections."""

    script: Script | None = None
    answer: bytes = OK
    received: list[Received] = field(default_factory=list)
    opened: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    names: list[str | None] = field(default_factory=list)  # asked for by TLS

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            if self.script:
                await self.script(reader, writer)
            else:
                await self.answer_all(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side has hung up
        finally:
            self.ended.set()
            writer.close()

    async def take(self, reader: asyncio.StreamReader) -> Received:
        received = await receive(reader)
        self.received.append(received)
        return received

    async def answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.take(reader)
            writer.write(self.answer)
            await writer.drain()

    def answer_and_close(self, answer: bytes) -> None:
        """Let every connection end after its first answer."""

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.take(reader)
            writer.write(answer)

        self.script = script

    def repeat(self, piece: bytes, *, start: bytes = b"", pause: float = 0) -> None:
        """Answer with `start` and then `piece` for ever, `pause` seconds apart."""

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.take(reader)
            writer.write(start)
            while not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)

        self.script = script

    def be_silent(self) -> None:
        """Take requests and never answer."""

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await self.take(reader)

        self.script = script


class StartUpstream(Protocol):
    async def __call__(self, context: ssl.SSLContext | None = None) -> Upstream: ...


@pytest.fixture
async def start_upstream() -> AsyncIterator[StartUpstream]:
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def start(context: ssl.SSLContext | None = None) -> Upstream:
        upstream = Upstream()

        def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.create_task(upstream.serve(reader, writer)))

        server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
        servers.append(server)
        upstream.port = server.sockets[0].getsockname()[1]
        return upstream

    yield start
    for server in servers:
        server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def upstream(start_upstream: StartUpstream) -> Upstream:
    return await start_upstream()


@pytest.fixture(params=["narrow", "httpx"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast("Kind", request.param)


class MakeTransport(Protocol):
    def __call__(
        self,
        *,
        resolver: Lookup | None = None,
        ssl_context: ssl.SSLContext | None = None,
        **settings: Any,
    ) -> Transport: ...


@pytest.fixture
async def make(kind: Kind) -> AsyncIterator[MakeTransport]:
    """Transports of each kind, closed after the test."""
    made: list[Transport] = []

    def make_one(
        *,
        resolver: Lookup | None = None,
        ssl_context: ssl.SSLContext | None = None,
        **settings: Any,
    ) -> Transport:
        transport = make_transport(
            WorkerSettings(transport=kind, **settings),
            resolver=resolver,
            ssl_context=ssl_context or NO_ROOTS,
        )
        made.append(transport)
        return transport

    yield make_one
    for transport in made:
        await transport.close()


@pytest.fixture
async def transport(make: MakeTransport) -> Transport:
    """One that may talk to loopback."""
    return make(allow_private_upstreams=True)


@dataclass
class Dialler:
    """Notes what would have been dialled, and dials `port` on loopback instead."""

    port: int = 0
    dialled: list[tuple[str, int]] = field(default_factory=list)


@pytest.fixture
async def dialler(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dialler]:
    loop = asyncio.get_running_loop()
    fake, dial = Dialler(), loop.create_connection
    monkeypatch.setattr(guard, "is_ours", lambda address: address == OURS)

    async def create_connection(factory: Any, host: str, port: int, **options: Any) -> Any:
        fake.dialled.append((host, port))
        if not fake.port:
            raise ConnectionRefusedError
        return await dial(factory, "127.0.0.1", fake.port, **options)

    loop.create_connection = create_connection  # type: ignore[method-assign,assignment]
    yield fake
    del loop.create_connection


def resolving(**names: Sequence[str]) -> Lookup:
    """Return a look-up that knows `names` (with _ for .) and nothing else."""

    async def look_up(host: str) -> Sequence[str]:
        return names.get(host.replace(".", "_").replace("-", "_"), ())

    return look_up


def post(url: str, body: bytes = b"{}", **headers: str) -> Request:
    return Request("POST", url, tuple(headers.items()), body)


def get(url: str) -> Request:
    return Request("GET", url)


def framed(head: str, body: bytes = b"") -> bytes:
    """Return an answer on the wire: `head` with its line ends, then `body`."""
    return head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body
