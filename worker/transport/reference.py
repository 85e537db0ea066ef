"""The reference sender: the same contract over httpx; portable, and a fraction of the speed.

Built on httpx's transport, not its client: no redirects, cookies, environment or decoding to turn
off. A request goes to the checked address; name and `Host` stay those of the URL. There is one
transport per pool and origin: httpx keeps connections by address, and two names may share one.
What httpx does not do, the narrow sender alone does: it notices bytes beyond an answer, reads an
answer that comes before the request is written, and sends again where a kept connection broke.
"""

import asyncio
import ssl
from contextlib import aclosing

import httpx

from providers.kit import ANSWER_BYTES, Request, Response
from worker.transport.guard import Guard, Origin
from worker.transport.wire import (
    CONNECT_SECONDS,
    HeaderFlood,
    TransportError,
    answer,
    check_head,
    failure_of,
    head_of,
    timed_out,
)

MAX_POOLS = 256
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30)


class ReferenceTransport:
    """A `Transport`."""

    def __init__(self, guard: Guard, context: ssl.SSLContext) -> None:
        self._guard = guard
        self._context = context
        self._pools: dict[tuple[str, str], httpx.AsyncHTTPTransport] = {}
        self._users: dict[tuple[str, str], int] = {}

    async def send(self, request: Request, *, pool: str, timeout: float) -> Response:  # noqa: ASYNC109  one total deadline
        """See `Transport.send`."""
        origin, target = self._guard.route(request.url)
        _, *lines = head_of(request, target, origin.authority).encode("latin-1").splitlines()[:-1]
        key = (pool, origin.key)
        self._users[key] = self._users.get(key, 0) + 1
        try:
            async with asyncio.timeout(timeout):
                address = await self._address(origin)
                # TCP and TLS have half each: httpcore leaks a handshake cancelled from outside
                outgoing = httpx.Request(
                    request.method,
                    f"{origin.scheme}://{address}:{origin.port}/",
                    headers=[_pair(line) for line in lines],
                    content=request.body,
                    extensions={
                        "target": target.encode(),
                        "sni_hostname": origin.host,
                        "timeout": {"connect": min(CONNECT_SECONDS, timeout / 2)},
                    },
                )
                return await self._exchange(key, outgoing, origin)
        except TimeoutError:
            raise timed_out() from None
        finally:
            await self._leave(key)

    async def close(self) -> None:
        """See `Transport.close`."""
        self._guard.close()
        while self._pools:
            _, pool = self._pools.popitem()
            await pool.aclose()

    async def _address(self, origin: Origin) -> str:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                address = (await self._guard.addresses(origin))[0]
        except OSError as error:
            raise failure_of(error, origin.host) from None
        return f"[{address}]" if ":" in address else address

    async def _exchange(
        self, key: tuple[str, str], outgoing: httpx.Request, origin: Origin
    ) -> Response:
        pool = self._pools.pop(key, None) or httpx.AsyncHTTPTransport(
            verify=self._context, trust_env=False, limits=LIMITS
        )
        self._pools[key] = pool  # the latest used is the last
        try:
            incoming = await pool.handle_async_request(outgoing)
            async with aclosing(incoming):
                return await _read(incoming, bare=outgoing.method == "HEAD")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise failure_of(error, origin.host) from None
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise _broken(error) from None

    async def _leave(self, key: tuple[str, str]) -> None:
        """Close the longest unused pools beyond the bound."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
        for unused in [k for k in self._pools if k not in self._users]:
            if len(self._pools) <= MAX_POOLS:
                break
            await self._pools.pop(unused).aclose()


def _pair(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b": ")
    return name, value


async def _read(incoming: httpx.Response, *, bare: bool) -> Response:
    raw = incoming.headers.raw
    check_head(incoming.status_code, raw)
    if {"transfer-encoding", "content-length"} <= incoming.headers.keys():
        raise TransportError("protocol", "the upstream's answer has two lengths")
    body = b""
    async for piece in incoming.stream:  # type: ignore[union-attr]  # raw: never decoded
        body += piece
        if len(body) >= ANSWER_BYTES:
            break
    return answer(incoming.status_code, raw, b"" if bare else body)


def _broken(error: httpx.TransportError) -> TransportError:
    text = str(error)
    if "too long" in text:
        return HeaderFlood()
    if isinstance(error, httpx.NetworkError) or "disconnected" in text or "closed" in text:
        message = "the upstream closed the connection before its answer was whole"
        return TransportError("reset", message)
    return TransportError("protocol", "the upstream's answer is not HTTP/1.1")
