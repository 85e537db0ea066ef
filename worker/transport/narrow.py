"""The narrow sender: HTTP/1.1 for the one job, on asyncio's transports and httptools' parser.

One write a request, one buffer for all reads, one timer for all deadlines, and an exchange that
makes no object it can do without. Measured: see `tests/bench`.
"""

import asyncio
import resource
import ssl
from contextlib import suppress
from typing import TypeAlias, cast

import httptools
from msgspec import Struct

from providers.kit import ANSWER_BYTES, KB, Request, Response
from worker.transport.guard import Guard, Origin
from worker.transport.wire import (
    CONNECT_SECONDS,
    MAX_HEAD,
    HeaderFlood,
    Headers,
    TransportError,
    answer,
    check_head,
    failure_of,
    head_of,
    timed_out,
)

TICK_SECONDS = 0.2  # how late a deadline may be
SWEEP_SECONDS = 5.0
IDLE_SECONDS = 30.0  # shorter than what most servers and balancers allow
AGE_SECONDS = 300.0  # then a name is looked up, checked and dialled anew
BURST = 32  # requests written at once
STALE_SECONDS = 1.0  # a kept connection that breaks so soon was closed before we wrote
MAX_IDLE = 64  # kept for one pool and origin
MAX_CONNECTIONS = 16_384  # in all; fewer where the process may open fewer files
OTHER_FILES = 256  # of the process: far more than it has
MAX_TRIES = 3  # addresses of one name
MAX_INTERIM = 16  # 1xx answers before the real one
MAX_RAW = 4 * ANSWER_BYTES  # of a body with its chunk sizes, extensions and trailers
READ_SIZE = 64 * KB
FRAMING = {"content-length", "transfer-encoding"}

_Key: TypeAlias = tuple[str, str]  # pool, origin


class _Asked(Struct, gc=False):
    """A request on its way to a connection, and who waits for the answer."""

    answer: "asyncio.Future[Response]"
    data: tuple[bytes, ...]  # head, and body if there is one
    bare: bool  # the answer has no body
    deadline: float
    key: _Key
    origin: Origin


class NarrowTransport:
    """A `Transport`. Every connection belongs to one pool and origin and does one thing at a time.

    Answers are read by `_Connection`; here are the pools, the dialling and the deadlines.
    """

    def __init__(self, guard: Guard, context: ssl.SSLContext) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(READ_SIZE))  # read and parsed in one go: one for all
        self.open: set[_Connection] = set()
        self.busy: set[_Connection] = set()  # those that were asked
        self._slots = asyncio.Semaphore(max(16, files(MAX_CONNECTIONS + OTHER_FILES) - OTHER_FILES))
        self._waiting = 0  # for a slot
        self._guard = guard
        self._context = context
        self._idle: dict[_Key, list[_Connection]] = {}  # none empty; about the longest idle first
        self._dialling: set[asyncio.Task[None]] = set()
        self._outbox: list[_Connection] = []
        self._timer: asyncio.TimerHandle | None = None
        self._swept = self.loop.time()

    def send(self, request: Request, *, pool: str, timeout: float) -> "asyncio.Future[Response]":
        """See `Transport.send`."""
        answer: asyncio.Future[Response] = self.loop.create_future()
        try:
            origin, target = self._guard.route(request.url)
            head = head_of(request, target, origin.authority)
        except TransportError as error:
            answer.set_exception(error)
            return answer
        start = head.encode("latin-1")
        data = (start, request.body) if request.body else (start,)
        now = self.loop.time()
        bare = request.method == "HEAD"
        asked = _Asked(answer, data, bare, now + timeout, (pool, origin.key), origin)
        if connection := self._take(asked.key, now):
            connection.ask(asked)
        else:
            self.dial(asked)
        return answer

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._guard.close()
        while self._dialling:
            for dialling in tuple(self._dialling):
                dialling.cancel()
            await asyncio.sleep(0)
        while self.open:
            for connection in tuple(self.open):
                connection.fail(_closed())
            await asyncio.sleep(0)

    # --- the pools ---

    def _take(self, key: _Key, now: float) -> "_Connection | None":
        kept = self._idle.get(key)
        if kept is None:
            return None
        while kept:
            connection = kept.pop()
            if connection.born + AGE_SECONDS > now and not connection.transport.is_closing():
                break
            connection.transport.abort()
        else:
            connection = None
        if not kept:
            del self._idle[key]
        return connection

    def release(self, connection: "_Connection") -> None:
        """Keep `connection` for the next request of its pool and origin."""
        kept = self._idle.get(connection.key)
        if self._waiting or (kept and len(kept) >= MAX_IDLE):
            connection.transport.abort()
            return
        if kept is None:
            kept = self._idle[connection.key] = []
        connection.since = self.loop.time()
        kept.append(connection)

    def forget(self, connection: "_Connection") -> None:
        """Take note that `connection` is gone."""
        kept = self._idle.get(connection.key)
        if kept and connection in kept:
            kept.remove(connection)
            if not kept:
                del self._idle[connection.key]
        if connection in self.open:
            self.open.remove(connection)
            self._slots.release()

    def post(self, connection: "_Connection") -> None:
        """Write with the others of this turn of the loop.

        One by one, each would wake its receiver; a burst wakes it once. Measured: a tenth of what a
        request costs.
        """
        self._outbox.append(connection)
        if len(self._outbox) == 1:
            self.loop.call_soon(self._write)
        elif len(self._outbox) == BURST:
            self._write()

    def _write(self) -> None:
        outbox, self._outbox = self._outbox, []
        for connection in outbox:
            connection.write()

    # --- dialling ---

    def dial(self, asked: _Asked) -> None:
        """Ask over a new connection."""
        task = self.loop.create_task(self._ask_anew(asked))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        asked.answer.add_done_callback(lambda _: task.cancel())

    async def _ask_anew(self, asked: _Asked) -> None:
        answer = asked.answer
        try:
            connection = await self._dial(asked.key, asked.origin, asked.deadline)
        except (asyncio.CancelledError, Exception) as error:  # noqa: BLE001  whoever asked is told
            if not answer.done():
                cut = isinstance(error, asyncio.CancelledError)
                answer.set_exception(_closed() if cut else error)
            return
        if answer.done():
            self.release(connection)
        else:
            connection.ask(asked)

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
        if self._slots.locked() and self._idle:
            key, kept = next(iter(self._idle.items()))
            kept.pop(0).transport.abort()
            if not kept:
                del self._idle[key]
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1

    def _tick(self) -> None:
        """Cut what is beyond its deadline, and now and then what was idle for too long."""
        now = self.loop.time()
        for connection in [c for c in self.busy if c.overdue(now)]:
            connection.fail(timed_out())
        if self._swept + SWEEP_SECONDS <= now:
            self._swept = now
            for kept in self._idle.values():
                for connection in kept:
                    if connection.since + IDLE_SECONDS <= now:
                        connection.transport.abort()
        self._timer = self.loop.call_later(TICK_SECONDS, self._tick) if self.open else None


class _Connection(asyncio.BufferedProtocol):
    """One connection: writes a request, reads its answer, then goes back to its pool.

    The callbacks named `on_...` are the parser's. What they raise reaches `buffer_updated`.
    """

    __slots__ = (
        "_asked", "_body", "_interim", "_parser", "_pools", "_raw", "_ready", "_room", "_size",
        "_status", "_used", "_written", "born", "key", "since", "transport",
        "unwanted",
    )  # fmt: skip

    def __init__(self, pools: NarrowTransport, key: _Key) -> None:
        self.key = key
        self.unwanted = False
        self.transport: asyncio.Transport
        self.born = self.since = pools.loop.time()
        self._pools = pools
        self._parser = httptools.HttpResponseParser(self)
        self._asked: _Asked | None = None
        self._raw: list[tuple[bytes, bytes]] = []  # headers of its answer
        self._body: list[bytes] = []
        self._used = False

    def ask(self, asked: _Asked) -> None:
        """Write a request, and see to its answer. Once at a time."""
        self._size = 0  # of the body so far
        self._interim = 0
        self._room = MAX_HEAD
        self._ready = False  # the head is read
        self.since = self._pools.loop.time()
        self._asked = asked
        self._written = False
        self._pools.busy.add(self)
        self._pools.post(self)

    def write(self) -> None:
        """Write what is asked, if there is still somebody to ask and to answer."""
        asked = self._asked
        if asked and not asked.answer.done() and not self.transport.is_closing():
            self._written = True
            self.transport.writelines(asked.data)

    def overdue(self, now: float) -> bool:
        """Whether the answer comes too late, or nobody waits for it any more."""
        return self._asked is not None and (
            self._asked.deadline <= now or self._asked.answer.cancelled()
        )

    def _end(self) -> _Asked | None:
        """Return what was asked, if anything: it is over."""
        asked, self._asked = self._asked, None
        self._pools.busy.discard(self)
        return asked

    def fail(self, error: TransportError) -> None:
        """Give `error` to whoever waits, and close."""
        asked = self._end()
        if asked and not asked.answer.done():
            asked.answer.set_exception(error)
        self.transport.abort()

    def _hand_back(self) -> None:
        """Let another connection ask: this one, kept from before, was closed before it could."""
        asked = self._end()
        if asked and not asked.answer.done():
            self._pools.dial(asked)
        self.transport.abort()

    def _finish(self, *, whole: bool) -> None:
        """Give the answer; where it is whole and both sides like, keep the connection."""
        asked = self._end()
        if asked and not asked.answer.done():
            asked.answer.set_result(answer(self._status, self._raw, b"".join(self._body)))
        self._raw, self._body = [], []
        self._used = True
        written = not self.transport.get_write_buffer_size()
        if whole and written and asked and self._parser.should_keep_alive():
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
        if self._asked is None:  # nothing was asked
            self.transport.abort()
            return
        if not self._written:  # nor was this
            self._hand_back()
            return
        self._room -= nbytes
        try:
            self._parser.feed_data(self._pools.buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(_fault(error))
        if self._room < 0 and self._asked is not None:
            if self._ready:
                self._finish(whole=False)
            else:
                self.fail(HeaderFlood())

    def connection_lost(self, exc: Exception | None) -> None:
        """End: some answers end with the connection; a kept connection may end at any time."""
        self._pools.forget(self)
        if self._asked is None:
            return
        if exc is None and self._ready and not FRAMING & Headers(self._raw).keys():
            self._finish(whole=False)
            return
        soon = self._pools.loop.time() < self.since + STALE_SECONDS
        if self._used and soon and self._room == MAX_HEAD:
            self._hand_back()
            return
        message = "the upstream closed the connection before its answer was whole"
        self.fail(TransportError("reset", message))

    # --- the parser's calls ---

    def on_message_begin(self) -> None:
        """A second answer to one request leaves a connection nobody can trust."""
        if self._asked is None:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers are dropped."""
        if not self._ready:
            self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        """Skip a few 1xx; see whether the real answer may have a body."""
        if self._asked is None:
            return
        status = self._status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            self._raw.clear()
            if self._interim > MAX_INTERIM:
                raise TransportError("protocol", "the upstream sent 1xx answers without an end")
            return
        check_head(status, self._raw, small=self._room >= 0)
        self._ready = True
        self._room += MAX_RAW
        bodiless = status in (204, 304) and FRAMING & Headers(self._raw).keys()
        if self._asked.bare or bodiless:
            self._finish(whole=False)  # the parser would wait for the body that is announced

    def on_body(self, body: bytes) -> None:
        """Take a piece; beyond the cap, read no further."""
        if self._asked is None:
            return
        self._body.append(body)
        self._size += len(body)
        if self._size >= ANSWER_BYTES:
            self._finish(whole=False)

    def on_message_complete(self) -> None:
        """The answer is whole, if it was not a 1xx."""
        if self._ready and self._asked:
            self._finish(whole=True)


def files(wanted: int) -> int:
    """Return how many files this process may open, up to `wanted`; first ask for so many.

    Many systems give a process 1,024, and let it have far more if it asks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ValueError, OSError):  # the system allows less than it says
        return soft
    return most


def _closed() -> TransportError:
    return TransportError("reset", "the sender was closed")


def _fault(error: Exception) -> TransportError:
    cause = error.__context__
    if isinstance(cause, TransportError):  # raised in one of the parser's calls
        return cause
    return TransportError("protocol", "the upstream's answer is not HTTP/1.1")
