"""When to look at which pipeline again, and what runs beside the loop meanwhile."""

import asyncio
import heapq
import logging
from collections.abc import Coroutine
from itertools import count
from typing import Any

from worker.clock import StoreClock
from worker.pipeline import Pipeline

log = logging.getLogger(__name__)


class Agenda:
    """Pipelines by the time (store clock, ms) at which they want a look."""

    def __init__(self, clock: StoreClock) -> None:
        self.clock = clock
        self._timers: list[tuple[float, int, Pipeline]] = []
        self._order = count()

    def look(self, pipeline: Pipeline, due: float) -> None:
        """Look at a pipeline at `due`, or before if that is noted already."""
        if pipeline.alarm and pipeline.alarm <= due:
            return  # then it is seen what else it waits for
        pipeline.alarm = due
        heapq.heappush(self._timers, (due, next(self._order), pipeline))

    def due(self) -> list[Pipeline]:
        """Return the pipelines whose time has come, each once, and forget their times."""
        now = self.clock.now_ms()
        ready: dict[Pipeline, None] = {}
        while self._timers and self._timers[0][0] <= now:
            ready[heapq.heappop(self._timers)[2]] = None
        for pipeline in ready:
            pipeline.alarm = 0.0
        return list(ready)


class Jobs:
    """Tasks nobody waits for; what fails in them is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Run `work` beside the loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("A step of the delivery loop failed", exc_info=error)

    async def cut_off(self) -> None:
        """Cancel all."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)
