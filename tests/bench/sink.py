"""The upstream of the benchmarks: takes requests as fast as Python can, and says what it saw.

A path's first segment chooses how it answers: `slow` after 50 ms, `hang` never, `dead` with 500,
anything else at once with 200. `GET /_seen` gives counts and latencies, `POST /_reset` forgets.
"""

import asyncio
import json
import ssl
import sys
import time
from array import array
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import uvloop

SLOW_SECONDS = 0.05
MARK = b'"sent_ns":"'  # a property of the event: when it was sent, by the monotonic clock
OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"code":200}'
DEAD = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


class Seen:
    """What came, by the path's first segment."""

    def __init__(self) -> None:
        self.requests: dict[bytes, int] = defaultdict(int)
        self.latencies: dict[bytes, array[int]] = defaultdict(lambda: array("q"))  # ns

    def summary(self) -> dict[str, Any]:
        """Return counts and the percentiles of the latencies, by path."""
        return {
            "requests": {path.decode(): count for path, count in self.requests.items()},
            "ms": {path.decode(): percentiles(ns) for path, ns in self.latencies.items()},
        }


def percentiles(nanoseconds: "array[int]") -> dict[str, float]:
    """Return p50, p99 and the most, in ms."""
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    return {
        name: round(ordered[int(share * last)] / 1e6, 3)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("most", 1.0))
    }


class Exchange(asyncio.BufferedProtocol):
    """One connection; requests one after the other."""

    seen = Seen()

    def __init__(self) -> None:
        self.buffer = bytearray(64 * 1024)
        self.filled = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.filled == len(self.buffer):
            self.buffer += bytes(len(self.buffer))
        return memoryview(self.buffer)[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        while (end := self._request_end()) and end <= self.filled:
            self._answer(bytes(self.buffer[:end]))
            rest = self.buffer[end : self.filled]
            self.filled = len(rest)
            self.buffer[: self.filled] = rest

    def _request_end(self) -> int:
        head = self.buffer.find(b"\r\n\r\n", 0, self.filled)
        if head < 0:
            return 0
        at = self.buffer[:head].lower().find(b"\r\ncontent-length:")
        if at < 0:
            return head + 4
        line_end = self.buffer.find(b"\r\n", at + 2)
        return head + 4 + int(self.buffer[at + 17 : line_end])

    def _answer(self, request: bytes) -> None:
        path = request[request.find(b"/") + 1 : request.find(b" HTTP/")].split(b"/")[0]
        if path.startswith(b"_"):
            self._control(path)
            return
        self.seen.requests[path] += 1
        at = request.find(MARK)
        if at > 0:
            sent = int(request[at + len(MARK) : request.find(b'"', at + len(MARK))])
            self.seen.latencies[path].append(time.monotonic_ns() - sent)
        match path[:4]:
            case b"hang":
                return
            case b"slow":
                asyncio.get_running_loop().call_later(SLOW_SECONDS, self.transport.write, OK)
            case b"dead":
                self.transport.write(DEAD)
            case _:
                self.transport.write(OK)

    def _control(self, path: bytes) -> None:
        body = json.dumps(self.seen.summary()).encode()
        if path == b"_reset":
            Exchange.seen = Seen()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(head % len(body) + body)


async def serve(port: int, tls_port: int, hosts: int, certificate: Path) -> None:
    """Listen on 127.0.0.1 and the next addresses; whoever is answered finds both ports open."""
    loop = asyncio.get_running_loop()
    addresses = [f"127.0.0.{number + 1}" for number in range(hosts)]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    await loop.create_server(Exchange, addresses, tls_port, ssl=context, backlog=4096)
    await loop.create_server(Exchange, addresses, port, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    _, port_, tls_port_, hosts_, certificate_ = sys.argv
    uvloop.run(serve(int(port_), int(tls_port_), int(hosts_), Path(certificate_)))
