"""A child's delivery loop, kept from slice to slice: nobody waits while Celery's tasks change.

Between two slices it stands still, for milliseconds: the hint for the next one is in the parent's
hands before a slice ends.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import uvloop
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker import app
from worker.drain import Drain
from worker.settings import OVERTIME_SECONDS, SLICE_SECONDS
from worker.state import State
from worker.transport import make_transport
from worker.watchdog import watching

LOOP_SECONDS = 3_600  # then a loop begins anew: what it remembers of Redis might be wrong


class Child:
    """Drains in this process, a slice a call."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._loop: Drain | None = None
        self._opened_at = 0.0  # monotonic
        self._closing = AsyncExitStack()

    def drain(self) -> None:
        """Drain for one slice, or a little longer until the hint for the next one is there.

        Where none comes, the service stops or anything fails, all is given back; and once an hour.
        Raises what opening a loop does where a server is away.
        """
        end = time.monotonic() + SLICE_SECONDS
        with app.slice_until(end) as followed:
            try:
                self._slice(end, followed)
            except BaseException:
                self.leave()
                raise
            if app.stopping.value or not followed() or self._is_old():
                self.leave()
        gc.collect()  # connections that are no more, which nothing else collects before hours pass

    def _is_old(self) -> bool:
        return time.monotonic() > self._opened_at + LOOP_SECONDS

    def _slice(self, end: float, followed: Callable[[], bool]) -> None:
        def over() -> bool:
            now = time.monotonic()
            return now >= end and (followed() or now >= end + OVERTIME_SECONDS)

        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        if self._loop is None:
            self._loop, self._opened_at = self._runner.run(self._opened()), time.monotonic()
        with watching(self._loop):
            self._runner.run(self._loop.slice(over))

    async def _opened(self) -> Drain:
        """Return a loop that runs; whatever it uses ends with `_closing`."""
        settings, closing = app.settings(), self._closing
        redis = await closing.enter_async_context(app.async_redis())
        reader = await closing.enter_async_context(app.async_redis(retry=Retry(NoBackoff(), 0)))
        transport = make_transport(settings)
        closing.push_async_callback(transport.close)
        loop = Drain(
            settings, app.directory(), transport, State(redis, reader),
            lambda: bool(app.stopping.value),
        )  # fmt: skip
        closing.push_async_callback(loop.leave)
        await loop.open()
        return loop

    def leave(self) -> None:
        """Give all back, and end the loop if there is one."""
        if self._runner is None:
            return
        runner, self._runner, self._loop = self._runner, None, None
        try:
            runner.run(self._closing.aclose())
        finally:
            runner.close()
