"""The narrow sender: HTTP/1.1 for the one job, on asyncio's transports and httptools' parser.

One write a request, one buffer for all reads, one timer for all deadlines, and an exchange that
makes no object it can do without. Measured: see `tests/bench`.
"""

import asyncio
import resource
import ssl
from contextlib import suppress
from typing import cast

import httptools

from providers.kit import Request, Response
from worker.transport.guard import Guard, Origin
from worker.transport.wire import (
    CONNECT_SECONDS,
    MAX_BODY,
    MAX_HEAD,
    HeaderFlood,
    TransportError,
    answer,
    failure_of,
    head_of,
    headers_of,
    timed_out,
    until_close,
)

TICK_SECONDS = 0.05  # how late a deadline may be
IDLE_SECONDS = 30.0  # shorter than what most servers and balancers allow
AGE_SECONDS = 300.0  # then a name is looked up, checked and dialled anew
MAX_IDLE = 64  # kept for one pool and origin
MAX_CONNECTIONS = 4096  # in all; fewer where the process may open fewer files
MAX_TRIES = 3  # addresses of one name
MAX_INTERIM = 16  # 1xx answers before the real one
MAX_RAW = 4 * MAX_BODY  # of a body with its chunk sizes, extensions and trailers
READ_SIZE = 64 * 1024

STALE_SECONDS = 1.0  # a kept connection that closes so soon was closed before we wrote
BODILESS = (204, 304)
FRAMING = frozenset({"content-length", "transfer-encoding"})

_Key = tuple[str, str]  # pool, origin


class _Stale(TransportError):
    """A connection kept from before was closed before it answered anything: send once more."""


class NarrowTransport:
    """A `Transport`. Every connection belongs to one pool and origin and does one thing at a time.

    Answers are read by `_Connection`; here are the pools, the dialling and the deadlines.
    """

    def __init__(self, guard: Guard, context: ssl.SSLContext) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(READ_SIZE))  # read and parsed in one go: one for all
        self._slots = asyncio.Semaphore(max(16, min(MAX_CONNECTIONS, files // 2)))
        self.open: set[_Connection] = set()
        self.busy: set[_Connection] = set()
        self._guard = guard
        self._context = context
        self._idle: dict[_Key, list[_Connection]] = {}
        self._longest_idle: dict[_Connection, None] = {}  # in order of release
        self._waiting = 0  # for a slot
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, request: Request, *, pool: str, timeout: float) -> Response:  # noqa: ASYNC109  one total deadline
        """See `Transport.send`."""
        origin, target = self._guard.route(request.url)
        data = head_of(request, target, origin.authority).encode("latin-1") + request.body
        deadline = self.loop.time() + timeout
        bare = request.method == "HEAD"
        key = (pool, origin.key)
        connection = self._take(key)
        if connection:
            with suppress(_Stale):
                return await connection.exchange(data, bare, deadline)
        connection = await self._dial(key, origin, deadline)
        return await connection.exchange(data, bare, deadline)

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._guard.close()
        while self.open:
            for connection in tuple(self.open):
                connection.fail(TransportError("reset", "the sender was closed"))
            await asyncio.sleep(0)

    # --- the pools ---

    def _take(self, key: _Key) -> "_Connection | None":
        kept = self._idle.get(key)
        oldest = self.loop.time() - AGE_SECONDS
        while kept:
            connection = kept.pop()
            del self._longest_idle[connection]
            if connection.born > oldest and not connection.transport.is_closing():
                return connection
            connection.transport.abort()
        return None

    def release(self, connection: "_Connection") -> None:
        """Keep `connection` for the next request of its pool and origin."""
        kept = self._idle.setdefault(connection.key, [])
        if self._waiting or len(kept) >= MAX_IDLE:
            connection.transport.abort()
            return
        connection.since = self.loop.time()
        kept.append(connection)
        self._longest_idle[connection] = None

    def forget(self, connection: "_Connection") -> None:
        """Take note that `connection` is gone."""
        self.busy.discard(connection)
        self._no_longer_idle(connection)
        if not self._idle.get(connection.key, True):
            del self._idle[connection.key]
        if connection in self.open:
            self.open.remove(connection)
            self._slots.release()

    def _no_longer_idle(self, connection: "_Connection") -> None:
        if connection in self._longest_idle:
            del self._longest_idle[connection]
            self._idle[connection.key].remove(connection)

    # --- dialling ---

    async def _dial(self, key: _Key, origin: Origin, deadline: float) -> "_Connection":
        """Return a new connection to one of the checked addresses of `origin`."""
        deadline = min(deadline, self.loop.time() + CONNECT_SECONDS)
        try:
            async with asyncio.timeout_at(deadline):
                addresses = (await self._guard.addresses(origin))[:MAX_TRIES]
                for left in range(len(addresses), 1, -1):
                    share = (deadline - self.loop.time()) / left
                    with suppress(OSError):  # TimeoutError is one
                        async with asyncio.timeout(share):
                            return await self._connect(key, origin, addresses[-left])
                return await self._connect(key, origin, addresses[-1])
        except OSError as error:
            raise failure_of(error, origin.host) from None

    async def _connect(self, key: _Key, origin: Origin, address: str) -> "_Connection":
        await self._slot()
        connection = _Connection(self, key)
        secure = origin.scheme == "https"
        try:
            await self.loop.create_connection(
                lambda: connection,
                address,
                origin.port,
                ssl=self._context if secure else None,
                server_hostname=origin.host if secure else None,
            )
        except BaseException:
            if connection in self.open:  # made, and cancelled right then: `forget` is still to come
                connection.transport.abort()
            else:
                connection.unwanted = True
                self._slots.release()
            raise
        if self._timer is None:
            self._timer = self.loop.call_later(TICK_SECONDS, self._tick)
        return connection

    async def _slot(self) -> None:
        """Wait until one connection more may be open; an idle one makes room."""
        if self._slots.locked() and self._longest_idle:
            oldest = next(iter(self._longest_idle))
            self._no_longer_idle(oldest)
            oldest.transport.abort()
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1

    def _tick(self) -> None:
        """Cut what is beyond its deadline, and what was idle for too long."""
        now = self.loop.time()
        for connection in [c for c in self.busy if c.deadline <= now]:
            connection.fail(timed_out())
        for connection in self._longest_idle:
            if connection.since > now - IDLE_SECONDS:
                break
            connection.transport.abort()
        self._timer = self.loop.call_later(TICK_SECONDS, self._tick) if self.open else None


class _Connection(asyncio.BufferedProtocol):
    """One connection: writes a request, reads its answer, then goes back to its pool.

    The callbacks named `on_...` are the parser's. What they raise reaches `buffer_updated`.
    """

    __slots__ = (
        "_bare", "_body", "_headers", "_interim", "_parser", "_pools", "_raw", "_ready", "_room",
        "_size", "_status", "_until_close", "_used", "_waiter", "born", "deadline", "key",
        "since", "transport", "unwanted",
    )  # fmt: skip

    def __init__(self, pools: NarrowTransport, key: _Key) -> None:
        self._pools = pools
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Response] | None = None
        self._used = False
        self.key = key
        self.unwanted = False
        self.transport: asyncio.Transport
        self.born = self.since = self.deadline = pools.loop.time()

    async def exchange(self, data: bytes, bare: bool, deadline: float) -> Response:
        """Return the answer to `data`, which has no body if `bare`. Once at a time.

        Raises:
            TransportError: there is none.
        """
        pools = self._pools
        self._bare = bare
        self._raw: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0  # of the body so far
        self._interim = 0
        self._room = MAX_HEAD
        self._until_close = self._ready = False
        self.deadline = deadline
        self.since = pools.loop.time()
        waiter: asyncio.Future[Response] = pools.loop.create_future()
        self._waiter = waiter
        pools.busy.add(self)
        self.transport.write(data)
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiter is waiter:
                self.transport.abort()
            raise

    def fail(self, error: TransportError) -> None:
        """Give `error` to whoever waits, and close."""
        waiter, self._waiter = self._waiter, None
        if waiter and not waiter.done():
            waiter.set_exception(error)
        self._pools.busy.discard(self)
        self.transport.abort()

    def _finish(self, *, whole: bool) -> None:
        """Give the answer; where it is whole and both sides like, keep the connection."""
        waiter, self._waiter = self._waiter, None
        if waiter and not waiter.done():
            waiter.set_result(answer(self._status, self._headers, b"".join(self._body)))
        self._pools.busy.discard(self)
        self._used = True
        written = not self.transport.get_write_buffer_size()
        if whole and written and self._parser.should_keep_alive():
            self._pools.release(self)
        else:
            self.transport.abort()

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        if self.unwanted:
            self.transport.abort()
        else:
            self._pools.open.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  the interface's
        """Lend the buffer all connections share: what is in it is parsed before the next read."""
        return self._pools.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what came."""
        if self._waiter is None:  # nothing was asked
            self.transport.abort()
            return
        self._room -= nbytes
        try:
            self._parser.feed_data(self._pools.buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(_fault(error))
        if self._room < 0 and self._waiter is not None:
            if self._ready:
                self._finish(whole=False)
            else:
                self.fail(HeaderFlood())

    def connection_lost(self, exc: Exception | None) -> None:
        """End: some answers end with the connection; a kept connection may end at any time."""
        self._pools.forget(self)
        if self._waiter is None:
            return
        if self._until_close and exc is None:
            self._finish(whole=False)
            return
        soon = self._pools.loop.time() < self.since + STALE_SECONDS
        stale = self._used and soon and self._room == MAX_HEAD
        kind = _Stale if stale else TransportError
        self.fail(kind("reset", "the upstream closed the connection before its answer was whole"))

    # --- the parser's calls ---

    def on_message_begin(self) -> None:
        """A second answer to one request leaves a connection nobody can trust."""
        if self._waiter is None:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers land here too, and are not looked at."""
        self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        """Skip a few 1xx; of the real answer, see how its body ends."""
        if self._waiter is None:
            return
        status = self._status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            self._raw.clear()
            if self._interim > MAX_INTERIM:
                raise TransportError("protocol", "the upstream sent 1xx answers without an end")
            return
        self._headers = headers_of(self._raw)
        self._until_close = until_close(status, self._headers) and not self._bare
        self._ready = True
        self._room += MAX_RAW
        if self._bare or (status in BODILESS and FRAMING & self._headers.keys()):
            self._finish(whole=False)  # the parser would wait for the body that was announced

    def on_body(self, body: bytes) -> None:
        """Take a piece; beyond the cap, read no further."""
        if self._waiter is None:
            return
        self._body.append(body)
        self._size += len(body)
        if self._size >= MAX_BODY:
            self._finish(whole=False)

    def on_message_complete(self) -> None:
        """The answer is whole, if it was not a 1xx."""
        if self._ready and self._waiter:
            self._finish(whole=True)


def _fault(error: Exception) -> TransportError:
    cause = error.__context__
    if isinstance(cause, TransportError):  # raised in one of the parser's calls
        return cause
    return TransportError("protocol", "the upstream's answer is not HTTP/1.1")
