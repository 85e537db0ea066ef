"""The sandbox: every fake upstream behind one port, at `/<host of the real one>/<path>`.

`/_sandbox/` tells it to fail and asks what has arrived. It listens on loopback by default.
"""

import asyncio
import pkgutil
import socket
import struct
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

from starlette.types import Receive, Scope, Send

from worker.sandbox import upstreams
from worker.sandbox.control import control
from worker.sandbox.faults import Fault, Faults
from worker.sandbox.log import Log
from worker.sandbox.upstream import Call, Reply, Upstream

Message: TypeAlias = MutableMapping[str, Any]
CONTROL = "/_sandbox"
FALLBACK = "webhooks"  # a customer's host may have any name


@cache
def all_upstreams() -> Mapping[str, Upstream]:
    """Return every fake upstream found, by slug."""
    names = sorted(module.name for module in pkgutil.iter_modules(upstreams.__path__))
    return {name: import_module(f"{upstreams.__name__}.{name}").upstream for name in names}


class Sandbox:
    """An ASGI application; `faults` and `log` may be used directly in the same process."""

    def __init__(self, played: Mapping[str, Upstream] | None = None) -> None:
        self.upstreams = all_upstreams() if played is None else played
        self.faults = Faults()
        self.log = Log()
        self._by_host: dict[str, Upstream | None] = {}
        self._control = control(self.faults, self.log, list(self.upstreams))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"].startswith(CONTROL):
            await self._control(scope, receive, send)
            return
        call = await _read(scope, receive)
        upstream = self.upstream_of(call.host)
        if upstream is None:
            await _answer(send, Reply(502, f"the sandbox plays no upstream at {call.host}\n"))
            return
        fault = self.faults.of(upstream.slug, call)
        if fault is None:
            await _answer(send, self._usual(upstream, call))
        else:
            await self._play(fault, upstream, call, receive, send)

    def upstream_of(self, host: str) -> Upstream | None:
        """Return who plays this host: any host that is nobody's is a customer's webhook."""
        if host not in self._by_host:
            name = host.partition(":")[0]
            served = (u for u in self.upstreams.values() if u.serves(name))
            fallback = self.upstreams.get(FALLBACK) if "." in name else None
            self._by_host[host] = next(served, fallback)
        return self._by_host[host]

    def _usual(self, upstream: Upstream, call: Call) -> Reply:
        reply = upstream.answer(call)
        self.log.taken(upstream.slug, call, reply)
        self.log.called(upstream.slug, call, reply.status)
        return reply

    async def _play(
        self, fault: Fault, upstream: Upstream, call: Call, receive: Receive, send: Send
    ) -> None:
        match fault.mode:
            case "slow":
                await asyncio.sleep(1 if fault.seconds is None else fault.seconds)
                await _answer(send, self._usual(upstream, call))
            case "cut":
                await _answer(send, self._usual(upstream, call), cut=True)
                await _hang_up(receive, send)
            case "hang" | "reset":
                self.log.called(upstream.slug, call, fault.mode)
                if fault.mode == "hang":
                    with suppress(TimeoutError):
                        async with asyncio.timeout(fault.seconds):
                            await receive()  # returns when the other side hangs up
                await _hang_up(receive, send)
            case _:
                reply = _failure(fault, upstream)
                self.log.called(upstream.slug, call, reply.status)
                await _answer(send, reply)


def _failure(fault: Fault, upstream: Upstream) -> Reply:
    if fault.mode == "refuse":
        return upstream.refusal
    if fault.mode == "throttle":
        reply = upstream.throttle
        if fault.seconds is None:
            return reply
        return Reply(
            reply.status, reply.body, {**reply.headers, "Retry-After": f"{fault.seconds:g}"}
        )
    return Reply(fault.status, "told to fail by the sandbox\n")


async def _read(scope: Scope, receive: Receive) -> Call:
    """Return the request as the real upstream would see it."""
    body = bytearray()
    while True:
        message: Message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    raw = scope.get("raw_path") or scope["path"].encode()
    host, _, rest = raw.decode("latin-1").lstrip("/").partition("/")
    query = scope["query_string"].decode("latin-1")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    target = f"/{rest}?{query}" if query else f"/{rest}"
    return Call(scope["method"], host.lower(), target, headers, bytes(body))


async def _answer(send: Send, reply: Reply, *, cut: bool = False) -> None:
    body, kind = reply.payload()
    headers = {"content-type": kind, **{k.lower(): v for k, v in reply.headers.items()}}
    status = 200 if cut else reply.status  # a cut answer promises a byte more than it sends
    if status == 204:
        body = b""
    else:
        headers["content-length"] = str(len(body) + cut)
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": cut})


async def _hang_up(receive: Receive, send: Send) -> None:
    """Break the connection off with a reset; the server's transport is behind `send`."""
    transport = send.__self__.transport  # type: ignore[attr-defined]
    with suppress(OSError):
        no_linger = struct.pack("ii", 1, 0)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    transport.abort()
    await receive()  # the server has noticed


def serve(
    port: int,
    ready: Callable[[int, Sandbox], None] = lambda _port, _sandbox: None,
    host: str = "127.0.0.1",
) -> None:
    """Serve until told to stop, on the loopback address by default; `ready` is told the port.

    Raises:
        OSError: the port is taken.
    """
    import uvicorn  # noqa: PLC0415  not needed by those who only want the upstreams

    listener = socket.create_server((host, port), backlog=1024)
    sandbox = Sandbox()
    config = uvicorn.Config(
        sandbox,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    ready(listener.getsockname()[1], sandbox)
    with suppress(KeyboardInterrupt):  # raised again by the server once it has stopped
        uvicorn.Server(config).run(sockets=[listener])
