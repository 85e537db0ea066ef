"""What every transport promises, against a raw server on loopback."""

import asyncio
import socket
import struct
from datetime import UTC, datetime

import pytest

from providers.kit import ANSWER_BYTES, Request
from tests.worker.transport.conftest import (
    OK,
    MakeTransport,
    StartUpstream,
    Upstream,
    framed,
    get,
    post,
)
from worker.transport import Transport, TransportError
from worker.transport.wire import USER_AGENT

SOON = 0.3  # seconds until a deadline that is meant to pass
ENOUGH = 20.0


async def failing(
    transport: Transport, request: Request, seconds: float = ENOUGH
) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await transport.send(request, pool="int_1", timeout=seconds)
    assert "\n" not in caught.value.message
    return caught.value


# --- what is sent ------------------------------------------------------------------------------


async def test_a_request_is_sent_to_the_byte(transport: Transport, upstream: Upstream) -> None:
    request = Request(
        "PUT",
        upstream.url("/a%2Fb/'x'?q=%0d%0a&r='[1]'|"),
        (("Content-Type", "text/plain"), ("X-Name", "M\xfcller")),
        b"\x00\xffbody",
    )
    await transport.send(request, pool="int_1", timeout=ENOUGH)
    (received,) = upstream.received
    assert received.line == "PUT /a%2Fb/'x'?q=%0d%0a&r='[1]'| HTTP/1.1"
    assert received.body == b"\x00\xffbody"
    assert sorted(received.headers) == [
        ("Accept-Encoding", "identity"),
        ("Content-Length", "6"),
        ("Content-Type", "text/plain"),
        ("Host", f"127.0.0.1:{upstream.port}"),
        ("User-Agent", USER_AGENT),
        ("X-Name", "M\xfcller"),
    ]


@pytest.mark.parametrize(("suffix", "target"), [("", "/"), ("?a=1", "/?a=1"), ("/?", "/?")])
async def test_a_url_without_a_path_asks_for_the_root(
    transport: Transport, upstream: Upstream, suffix: str, target: str
) -> None:
    await transport.send(get(upstream.url(suffix)), pool="int_1", timeout=ENOUGH)
    assert upstream.received[0].line == f"GET {target} HTTP/1.1"


@pytest.mark.parametrize(
    ("method", "lengths"), [("POST", ["0"]), ("PUT", ["0"]), ("GET", []), ("DELETE", [])]
)
async def test_an_empty_body_has_a_length_where_a_body_is_usual(
    transport: Transport, upstream: Upstream, method: str, lengths: list[str]
) -> None:
    await transport.send(Request(method, upstream.url()), pool="int_1", timeout=ENOUGH)
    assert upstream.received[0].values("content-length") == lengths


async def test_a_user_agent_of_the_request_wins(transport: Transport, upstream: Upstream) -> None:
    request = Request("POST", upstream.url(), (("user-agent", "other/2"),))
    await transport.send(request, pool="int_1", timeout=ENOUGH)
    assert upstream.received[0].values("user-agent") == ["other/2"]


@pytest.mark.parametrize("name", ["Host", "content-length", "Accept-Encoding"])
async def test_what_the_transport_decides_is_not_the_requests(
    transport: Transport, upstream: Upstream, name: str
) -> None:
    request = Request("POST", upstream.url(), ((name, "99"),), b"four")
    await transport.send(request, pool="int_1", timeout=ENOUGH)
    (value,) = upstream.received[0].values(name.lower())
    assert value != "99"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "1\r\nX-Evil: 1"),
        ("X-A", "1\nX-Evil: 1"),
        ("X-A", "1\r"),
        ("X-A", "nul\x00"),
        ("X-A", "tab\x0bbed"),
        ("X-A", "\u20ac"),
        ("X-A", "\u0130"),
        ("X-A\r\nX-Evil", "1"),
        ("X-A:", "1"),
        ("X A", "1"),
        ("", "1"),
        ("X-\xc4", "1"),
        ("Transfer-Encoding", "chunked"),
        ("connection", "close"),
        ("Expect", "100-continue"),
        ("Upgrade", "h2c"),
    ],
)
async def test_a_header_that_would_break_out_is_refused_before_dialling(
    transport: Transport, upstream: Upstream, name: str, value: str
) -> None:
    error = await failing(transport, Request("POST", upstream.url(), ((name, value),)))
    assert (error.reason, error.fault) == ("protocol", "settings")
    assert upstream.opened == 0
    assert "Evil: 1" not in error.message


@pytest.mark.parametrize("method", ["", "GET /x HTTP/1.1\r\n", "G T", "CONNECT", "get"])
async def test_an_odd_method_is_refused(
    transport: Transport, upstream: Upstream, method: str
) -> None:
    error = await failing(transport, Request(method, upstream.url()))
    assert (error.reason, error.fault, upstream.opened) == ("protocol", "settings", 0)


async def test_all_traffic_goes_to_the_override(make: MakeTransport, upstream: Upstream) -> None:
    transport = make(upstream=upstream.url("/base/"))
    for url in ("https://api.example.com/2/httpapi?k=1", "http://a.example.com"):
        await transport.send(post(url), pool="int_1", timeout=ENOUGH)
    assert [received.line for received in upstream.received] == [
        "POST /base/api.example.com/2/httpapi?k=1 HTTP/1.1",
        "POST /base/a.example.com/ HTTP/1.1",
    ]
    assert upstream.received[0].values("host") == [f"127.0.0.1:{upstream.port}"]


async def test_the_environments_proxy_is_not_used(
    make: MakeTransport, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    response = await make(allow_private_upstreams=True).send(
        get(upstream.url()), pool="int_1", timeout=ENOUGH
    )
    assert response.status == 200


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 300, 301, 400, 404, 410, 429, 499, 500, 503, 599])
async def test_any_status_is_an_answer(
    transport: Transport, upstream: Upstream, status: int
) -> None:
    upstream.answer = framed(f"HTTP/1.1 {status} \nContent-Length: 4\nRetry-After: 7", b"\xffabc")
    before = datetime.now(UTC)
    response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
    assert (response.status, response.body) == (status, b"\xffabc")
    assert response.headers == {"content-length": "4", "retry-after": "7"}
    assert before <= response.at <= datetime.now(UTC)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(
    transport: Transport, upstream: Upstream, status: int
) -> None:
    place = upstream.url("/elsewhere")
    upstream.answer = framed(f"HTTP/1.1 {status} Moved\nLocation: {place}\nContent-Length: 0")
    response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
    assert (response.status, response.headers["location"]) == (status, place)
    assert len(upstream.received) == 1


async def test_headers_of_one_name_are_joined(transport: Transport, upstream: Upstream) -> None:
    upstream.answer = framed(
        "HTTP/1.1 200 OK\nX-Two: 1\nx-two:  two \nX-Latin: \xfc\nContent-Length: 0"
    ).replace(b"\xc3\xbc", b"\xfc")
    response = await transport.send(get(upstream.url()), pool="int_1", timeout=ENOUGH)
    assert response.headers == {"x-two": "1, two", "x-latin": "\xfc", "content-length": "0"}


async def test_cookies_are_not_kept(transport: Transport, upstream: Upstream) -> None:
    upstream.answer = framed("HTTP/1.1 200 OK\nSet-Cookie: a=b; Path=/\nContent-Length: 0")
    for _ in range(2):
        await transport.send(get(upstream.url()), pool="int_1", timeout=ENOUGH)
    assert upstream.received[1].values("cookie") == []


CHUNKED = b"2;x=y\r\nab\r\n3\r\ncde\r\n0\r\nX-Trailer: t\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "sent", "body"),
    [
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", CHUNKED, b"abcde"),
        ("HTTP/1.1 200 OK\nContent-Length: 0", b"", b""),
        ("HTTP/1.1 204 No Content", b"", b""),
        ("HTTP/1.1 304 Not Modified", b"", b""),
        ("HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: 3", b"\x1f\x8b\x08",
         b"\x1f\x8b\x08"),
        ("HTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 1", b"a",
         b"a"),
    ],
)  # fmt: skip
async def test_a_body_ends_where_it_should_and_the_connection_is_used_again(
    transport: Transport, upstream: Upstream, head: str, sent: bytes, body: bytes
) -> None:
    upstream.answer = framed(head, sent)
    for _ in range(3):
        response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
        assert response.body == body
        assert "x-trailer" not in response.headers
        assert "link" not in response.headers
    assert upstream.opened == 1


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", "HTTP/1.1 200 OK\nContent-Length: 5"),
        ("HEAD", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked"),
        ("HEAD", "HTTP/1.1 200 OK"),
        ("GET", "HTTP/1.1 304 Not Modified\nContent-Length: 5"),
    ],
)
async def test_an_answer_without_a_body_is_not_waited_for(
    transport: Transport, upstream: Upstream, method: str, head: str
) -> None:
    upstream.answer = framed(head)
    for _ in range(2):
        request = Request(method, upstream.url())
        response = await transport.send(request, pool="int_1", timeout=ENOUGH)
        assert response.body == b""


async def test_a_body_of_undeclared_length_ends_with_the_connection(
    transport: Transport, upstream: Upstream
) -> None:
    upstream.answer_and_close(framed("HTTP/1.1 200 OK", b"until the end"))
    for _ in range(2):
        response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
        assert response.body == b"until the end"
    assert upstream.opened == 2


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (framed("HTTP/1.1 200 OK"), b"a" * 5000),
        (framed("HTTP/1.1 200 OK\nContent-Length: 1000000000000"), b"a" * 5000),
        (framed("HTTP/1.1 200 OK\nTransfer-Encoding: chunked"), b"4\r\naaaa\r\n" * 500),
        (framed("HTTP/1.1 200 OK\nContent-Encoding: gzip"), b"a" * 5000),
    ],
)
async def test_an_endless_body_is_cut_and_the_connection_closed(
    transport: Transport, upstream: Upstream, start: bytes, piece: bytes
) -> None:
    upstream.repeat(piece, start=start)
    response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
    assert response.body == b"a" * ANSWER_BYTES
    await asyncio.wait_for(upstream.ended.wait(), ENOUGH)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
        b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 1000 Higher\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
        b"just text\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http_is_an_error(
    transport: Transport, upstream: Upstream, sent: bytes
) -> None:
    upstream.answer_and_close(sent)
    error = await failing(transport, post(upstream.url()))
    assert (error.reason, error.fault) == ("protocol", "upstream")


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-Many: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"Set-Cookie: " + b"a" * 4000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a" * 4000),
        (b"HTTP/1.1 200 ", b"a" * 4000),
    ],
)
async def test_a_flood_of_headers_is_cut(
    transport: Transport, upstream: Upstream, start: bytes, piece: bytes
) -> None:
    upstream.repeat(piece, start=start)
    error = await failing(transport, post(upstream.url()))
    assert (error.reason, error.fault) == ("too_large", "upstream")
    await asyncio.wait_for(upstream.ended.wait(), ENOUGH)


@pytest.mark.parametrize(
    "headers", ["X: 1\n" * 101, "X: " + "a" * 33_000 + "\n", "X: " + "a" * 60_000 + "\n"]
)
async def test_a_whole_head_beyond_the_caps_is_refused(
    transport: Transport, upstream: Upstream, headers: str
) -> None:
    upstream.answer = framed(f"HTTP/1.1 200 OK\n{headers}Content-Length: 0")
    assert (await failing(transport, post(upstream.url()))).reason == "too_large"


async def test_a_head_within_the_caps_is_read(transport: Transport, upstream: Upstream) -> None:
    upstream.answer = framed("HTTP/1.1 200 OK\n" + f"X: {'a' * 300}\n" * 99 + "Content-Length: 0")
    response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
    assert len(response.headers["x"]) == 99 * 302 - 2


async def test_a_flood_of_interim_answers_ends(transport: Transport, upstream: Upstream) -> None:
    upstream.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")
    error = await failing(transport, post(upstream.url()), SOON)
    assert error.reason in {"protocol", "timeout"}
    await asyncio.wait_for(upstream.ended.wait(), ENOUGH)


# --- deadlines and broken connections ----------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
    ],
)
async def test_a_dripped_answer_is_cut_at_the_deadline(
    transport: Transport, upstream: Upstream, start: bytes, piece: bytes
) -> None:
    upstream.repeat(piece, start=start, pause=0.02)
    error = await failing(transport, post(upstream.url()), SOON)
    assert (error.reason, error.fault) == ("timeout", "upstream")
    await asyncio.wait_for(upstream.ended.wait(), ENOUGH)


async def test_a_connection_that_timed_out_is_not_used_again(
    transport: Transport, upstream: Upstream
) -> None:
    upstream.be_silent()
    assert (await failing(transport, post(upstream.url()), SOON)).reason == "timeout"
    upstream.script = None
    response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
    assert (response.status, upstream.opened) == (200, 2)


async def test_a_cancelled_request_leaves_no_usable_connection(
    transport: Transport, upstream: Upstream
) -> None:
    taken = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.take(reader)
        taken.set()
        await reader.read()

    upstream.script = script
    task = asyncio.ensure_future(transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH))
    await taken.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.ended.wait(), ENOUGH)
    upstream.script = None
    response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
    assert (response.status, upstream.opened) == (200, 2)


async def test_a_refused_connection_is_the_upstreams_trouble(transport: Transport) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = await failing(transport, post(f"http://127.0.0.1:{unused.getsockname()[1]}/"))
    assert (error.reason, error.fault) == ("connect", "upstream")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_an_answer_cut_short_is_an_error_and_not_asked_for_again(
    transport: Transport, upstream: Upstream, sent: bytes
) -> None:
    upstream.answer_and_close(sent)
    error = await failing(transport, post(upstream.url()))
    assert (error.reason, error.fault) == ("reset", "upstream")
    assert upstream.opened == 1


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n\r\nsome"])
async def test_a_reset_is_an_error_even_in_a_body_without_length(
    transport: Transport, upstream: Upstream, sent: bytes
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.take(reader)
        writer.write(sent)
        linger = struct.pack("ii", 1, 0)  # closing sends RST
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    upstream.script = script
    error = await failing(transport, post(upstream.url()))
    assert (error.reason, error.fault) == ("reset", "upstream")


# --- connections -------------------------------------------------------------------------------


async def test_connections_are_kept_but_never_shared_between_pools_or_names(
    make: MakeTransport, upstream: Upstream, start_upstream: StartUpstream
) -> None:
    async def look_up(host: str) -> list[str]:
        return ["127.0.0.1"]

    transport = make(allow_private_upstreams=True, resolver=look_up)
    for pool, host in [("a", "one.test"), ("a", "one.test"), ("b", "one.test"), ("a", "two.test")]:
        url = upstream.url("/", host)
        await transport.send(post(url), pool=pool, timeout=ENOUGH)
    assert upstream.opened == 3
    other = await start_upstream()
    await transport.send(post(other.url("/", "one.test")), pool="a", timeout=ENOUGH)
    assert other.opened == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_the_upstream_ends_is_not_used_again(
    transport: Transport, upstream: Upstream, answer: bytes
) -> None:
    upstream.answer = answer
    for _ in range(2):
        response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
        assert response.body == b"ok"
    assert upstream.opened == 2


async def test_a_kept_connection_that_was_closed_meanwhile_does_no_harm(
    transport: Transport, upstream: Upstream
) -> None:
    upstream.answer_and_close(OK)
    for _ in range(5):
        response = await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
        assert response.status == 200
        await asyncio.wait_for(upstream.ended.wait(), ENOUGH)
    assert upstream.opened == 5


async def test_parallel_requests_get_their_own_answers(
    transport: Transport, upstream: Upstream
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = (await upstream.take(reader)).body
            writer.write(framed(f"HTTP/1.1 200 OK\nContent-Length: {len(body)}", body))

    upstream.script = echo

    async def send(number: int) -> bytes:
        body = str(number).encode() * (number * 50)
        request = post(upstream.url(), body)
        return (await transport.send(request, pool=str(number % 3), timeout=ENOUGH)).body

    answers = await asyncio.gather(*map(send, range(60)))
    assert answers == [str(number).encode() * (number * 50) for number in range(60)]


async def test_a_large_body_goes_through(transport: Transport, upstream: Upstream) -> None:
    body = bytes(range(256)) * 40_000
    await transport.send(post(upstream.url(), body), pool="int_1", timeout=ENOUGH)
    assert upstream.received[0].body == body


async def test_closing_ends_every_connection(transport: Transport, upstream: Upstream) -> None:
    await transport.send(post(upstream.url()), pool="int_1", timeout=ENOUGH)
    await transport.close()
    await asyncio.wait_for(upstream.ended.wait(), ENOUGH)
