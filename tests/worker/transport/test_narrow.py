"""What the narrow sender does beyond the contract: stale connections, bounds, and its parsing."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from providers.kit import ANSWER_BYTES, Response
from tests.worker.transport.conftest import NO_ROOTS, OK, Dialler, Upstream, framed, post
from worker.transport import TransportError, narrow
from worker.transport.guard import Guard, parse
from worker.transport.narrow import NarrowTransport

ENOUGH = 20.0


@pytest.fixture
async def sender() -> AsyncIterator[NarrowTransport]:
    sender = NarrowTransport(Guard("", allow_private=True, lookup=None), NO_ROOTS)
    yield sender
    await sender.close()


def closing_second(upstream: Upstream, sent: bytes) -> None:
    """Let each connection answer once, and end after `sent` where a second request comes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.take(reader)
        writer.write(OK)
        await upstream.take(reader)
        writer.write(sent)

    upstream.script = script


# --- connections -------------------------------------------------------------------------------


async def test_a_kept_connection_that_breaks_at_once_is_replaced_once(
    sender: NarrowTransport, upstream: Upstream
) -> None:
    closing_second(upstream, b"")
    for _ in range(3):
        response = await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
        assert response.status == 200
    assert (upstream.opened, len(upstream.received)) == (3, 5)


async def test_a_request_is_not_repeated_once_an_answer_has_begun(
    sender: NarrowTransport, upstream: Upstream
) -> None:
    closing_second(upstream, b"H")
    await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    with pytest.raises(TransportError) as caught:
        await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    assert caught.value.reason == "reset"
    assert (upstream.opened, len(upstream.received)) == (1, 2)


async def test_a_request_is_not_repeated_where_the_upstream_thought_it_over(
    sender: NarrowTransport, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing_second(upstream, b"")
    await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    monkeypatch.setattr(narrow, "STALE_SECONDS", 0)
    with pytest.raises(TransportError):
        await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    assert upstream.opened == 1


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokEXTRA", OK + OK])
async def test_what_follows_an_answer_is_never_the_next_answer(
    sender: NarrowTransport, upstream: Upstream, sent: bytes
) -> None:
    upstream.answer = sent
    for _ in range(3):
        response = await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
        assert response.body == b"ok"
    assert upstream.opened == 3


async def test_what_comes_unasked_ends_a_kept_connection(
    sender: NarrowTransport, upstream: Upstream
) -> None:
    speak = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.take(reader)
        writer.write(OK)
        await speak.wait()
        writer.write(framed("HTTP/1.1 408 Request Timeout\nContent-Length: 0"))
        await reader.read()

    upstream.script = script
    await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    speak.set()
    await asyncio.wait_for(upstream.ended.wait(), ENOUGH)
    response = await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    assert (response.status, upstream.opened) == (200, 2)


async def test_an_answer_before_the_request_was_read_ends_the_connection(
    sender: NarrowTransport, upstream: Upstream
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(framed("HTTP/1.1 413 Too Large\nContent-Length: 0"))
        await asyncio.Event().wait()

    upstream.script = script
    for _ in range(2):
        request = post(upstream.url(), b"x" * 20_000_000)
        assert (await sender.send(request, pool="a", timeout=ENOUGH)).status == 413
    assert upstream.opened == 2


@pytest.mark.parametrize("limit", ["IDLE_SECONDS", "AGE_SECONDS"])
async def test_connections_are_recycled(
    sender: NarrowTransport, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    monkeypatch.setattr(narrow, limit, 0)
    monkeypatch.setattr(narrow, "SWEEP_SECONDS", 0)
    if limit == "IDLE_SECONDS":
        await asyncio.wait_for(upstream.ended.wait(), ENOUGH)
    response = await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    assert (response.status, upstream.opened) == (200, 2)


async def test_connections_are_bounded_in_all_and_idle_ones_make_room(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "MAX_CONNECTIONS", 16)
    sender = NarrowTransport(Guard("", allow_private=True, lookup=None), NO_ROOTS)
    most = 0

    async def send(number: int) -> int:
        nonlocal most
        request = post(upstream.url())
        response = await sender.send(request, pool=str(number), timeout=ENOUGH)
        most = max(most, len(sender.open))
        return response.status

    assert await asyncio.gather(*map(send, range(100))) == [200] * 100
    assert await asyncio.gather(*map(send, range(100, 120))) == [200] * 20
    assert most == 16
    await sender.close()


async def test_few_idle_connections_are_kept_of_one_pool(
    sender: NarrowTransport, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "MAX_IDLE", 2)
    send = [sender.send(post(upstream.url()), pool="a", timeout=ENOUGH) for _ in range(8)]
    await asyncio.gather(*send)
    send = [sender.send(post(upstream.url()), pool="a", timeout=ENOUGH) for _ in range(8)]
    await asyncio.gather(*send)
    assert upstream.opened == 14


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_files")
def test_as_many_files_as_may_be_open_are_asked_for() -> None:
    assert narrow.files(200) == 200
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300, "that was enough"
    assert narrow.files(400) == 400
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 400
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert narrow.files(hard + 1) == hard, "no more than the system allows"


async def test_requests_that_fail_to_connect_give_their_place_back(
    upstream: Upstream, dialler: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "MAX_CONNECTIONS", 16)
    sender = NarrowTransport(Guard("", allow_private=True, lookup=None), NO_ROOTS)
    for _ in range(20):
        with pytest.raises(TransportError):
            await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    dialler.port = upstream.port
    response = await sender.send(post(upstream.url()), pool="a", timeout=ENOUGH)
    assert response.status == 200
    await sender.close()


async def test_a_second_address_is_tried(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(host: str) -> Sequence[str]:
        return ["::1", "127.0.0.1"]  # the upstream listens on the second alone

    guard = Guard("", allow_private=True, lookup=look_up)
    sender = NarrowTransport(guard, NO_ROOTS)
    response = await sender.send(post(upstream.url("/", "a.test")), pool="a", timeout=ENOUGH)
    assert response.status == 200
    await sender.close()


async def test_closing_ends_what_is_in_flight(sender: NarrowTransport, upstream: Upstream) -> None:
    taken = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.take(reader)
        taken.set()
        await reader.read()

    upstream.script = script
    task = asyncio.ensure_future(sender.send(post(upstream.url()), pool="a", timeout=ENOUGH))
    await taken.wait()
    await sender.close()
    with pytest.raises(TransportError):
        await task
    await asyncio.wait_for(upstream.ended.wait(), ENOUGH)


# --- the parser, against h11 -------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport that writes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.ended

    def abort(self) -> None:
        self.ended = True


class Elsewhere(TransportError):
    """The request is left to another connection."""

    def __init__(self) -> None:
        super().__init__("reset", "to be asked elsewhere")


async def exchange(
    pieces: Sequence[bytes], *, bare: bool = False, asked: bool = True
) -> Response | TransportError:
    """Return what a connection makes of `pieces`, then the end of the connection.

    Without `asked` they come before the request is written. `Elsewhere` if it is handed back.
    """
    sender = NarrowTransport(Guard("", allow_private=True, lookup=None), NO_ROOTS)
    connection, wire = narrow._Connection(sender, ("a", "b")), Wire()
    await sender._slots.acquire()
    connection.connection_made(wire)
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Response] = loop.create_future()
    origin, _ = parse("http://127.0.0.1/", allow_private=True)
    sender.dial = lambda asked: asked.answer.set_exception(Elsewhere())  # type: ignore[method-assign]
    connection.ask(
        narrow._Asked(answer, (b"", b""), bare, loop.time() + ENOUGH, connection.key, origin)
    )
    if asked:
        await asyncio.sleep(0)  # requests are written together, a turn later
    for piece in pieces:
        for start in range(0, len(piece), narrow.READ_SIZE):
            part = piece[start : start + narrow.READ_SIZE]
            if not wire.ended:
                connection.get_buffer(-1)[: len(part)] = part
                connection.buffer_updated(len(part))
    wire.ended = True
    connection.connection_lost(None)
    try:
        return await answer
    except TransportError as error:
        return error
    finally:
        await sender.close()


async def test_what_comes_before_the_request_is_written_is_no_answer_to_it() -> None:
    found = await exchange([OK], asked=False)
    assert isinstance(found, Elsewhere)


def split(data: bytes, points: Sequence[int]) -> list[bytes]:
    """Return `data` in pieces, cut at `points` (modulo its length)."""
    cuts = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[a:b] for a, b in pairwise(cuts)]


POINTS = st.lists(st.integers(0, 1 << 20), max_size=12)
NAMES = st.from_regex(r"[Xx]-[a-zA-Z0-9_!#$.-]{1,12}", fullmatch=True)
VALUES = st.text(
    st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=30
).filter(
    lambda value: value == value.strip() and not set(value) & {chr(c) for c in range(128, 161)}
)
BODIES = st.lists(st.binary(max_size=400), max_size=6)


def spoken(
    method: bytes,
    status: int,
    headers: Sequence[tuple[str, str]],
    body: Sequence[bytes],
    framing: str,
) -> bytes:
    """Return an answer as h11's server writes it."""
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
    while not isinstance(peer.next_event(), h11.EndOfMessage):
        pass
    head = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    if framing == "length":
        head.append((b"Content-Length", str(sum(map(len, body))).encode()))
    elif framing == "chunked":
        head.append((b"Transfer-Encoding", b"chunked"))
    else:
        head.append((b"Connection", b"close"))
    out = peer.send(h11.InformationalResponse(status_code=103, headers=[(b"X-Early", b"1")])) or b""
    out += peer.send(h11.Response(status_code=status, headers=head, reason=b"R")) or b""
    for piece in body:
        out += peer.send(h11.Data(data=piece)) or b""
    return out + (peer.send(h11.EndOfMessage()) or b"")


STATUSES = st.integers(200, 599).filter(lambda status: status not in {204, 304})
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(
    STATUSES,
    st.lists(st.tuples(NAMES, VALUES), max_size=8),
    BODIES,
    st.sampled_from(["length", "chunked", "close"]),
    POINTS,
)
def test_what_h11_writes_is_read_however_it_is_cut(
    status: int, headers: list[tuple[str, str]], body: list[bytes], framing: str, points: list[int]
) -> None:
    sent = spoken(b"POST", status, headers, body, framing)
    found = asyncio.run(exchange(split(sent, points)))
    assert isinstance(found, Response)
    assert (found.status, found.body) == (status, b"".join(body))
    expected: dict[str, list[str]] = {}
    for name, value in headers:
        expected.setdefault(name.lower(), []).append(value)
    shown = {name: value for name, value in found.headers.items() if name.startswith("x-")}
    assert shown == {name: ", ".join(values) for name, values in expected.items()}


@FUZZ
@given(STATUSES, BODIES, POINTS)
def test_an_answer_cut_off_anywhere_is_never_taken_for_whole(
    status: int, body: list[bytes], points: list[int]
) -> None:
    sent = spoken(b"POST", status, [], body, "length")
    end = sum(points) % len(sent)
    found = asyncio.run(exchange(split(sent[:end], points)))
    assert isinstance(found, TransportError)
    assert found.reason == "reset"


@FUZZ
@given(st.integers(200, 599), BODIES, POINTS)
def test_an_answer_to_head_has_no_body(status: int, body: list[bytes], points: list[int]) -> None:
    sent = spoken(b"HEAD", status, [("Content-Length", "1000")], [], "close")
    found = asyncio.run(exchange([*split(sent, points), *body], bare=True))
    assert isinstance(found, Response)
    assert (found.status, found.body) == (status, b"")


PARTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.0 204 \r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
        b" folded\r\n",
        b"X: " + b"a" * 9000 + b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"0\r\nX-Trailer: ",
        b"ffffffff\r\n",
        b"1;" + b"e" * 9000,
        b"a" * 9000,
        b"\n",
        b"\x00",
    ]
)


@FUZZ
@given(st.lists(PARTS | st.binary(max_size=20), max_size=40), POINTS)
def test_no_bytes_at_all_do_harm(parts: list[bytes], points: list[int]) -> None:
    found = asyncio.run(exchange(split(b"".join(parts), points)))
    if isinstance(found, Response):
        assert 200 <= found.status <= 599
        assert len(found.body) <= ANSWER_BYTES
    else:
        assert found.reason in {"reset", "protocol", "too_large"}
