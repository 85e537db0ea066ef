"""One delivery loop in a process that dies when it sends a certain event; for tests alone."""

import asyncio
import os
import signal

from providers.kit import Request, Response
from tests.drained import drained
from worker import app
from worker.drain import Drain
from worker.state import State
from worker.transport import Transport, make_transport

KILLS = b"kills its process"
KILLED = 9


class Mortal:
    """A transport that does not survive `KILLS`."""

    def __init__(self, real: Transport) -> None:
        self.real = real

    async def send(self, request: Request, *, pool: str, timeout: float) -> Response:  # noqa: ASYNC109  the contract's
        if KILLS in request.body:
            os._exit(KILLED)
        return await self.real.send(request, pool=pool, timeout=timeout)

    async def close(self) -> None:
        await self.real.close()


async def main() -> None:
    settings, redis = app.settings(), app.async_redis()
    transport = Mortal(make_transport(settings))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    loop = Drain(settings, app.directory(), transport, State(redis), lambda: bool(stopped))
    try:
        await drained(loop, 60)
    finally:
        await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main())
