"""The ticker of every worker's parent: hints. No beat to run, no single point.

It asks no database: what does is the keeper's, in a thread of its own (`keeper.py`).
"""

import time
from typing import Any

from worker import app, watchdog
from worker.repeating import Repeating
from worker.settings import WorkerSettings
from worker.state import TICK, Keys
from worker.tasks import hint_drain, record

SECONDS = 0.5


class Ticker(Repeating):
    """Keeps this worker's children draining; of all workers, one sees to the record."""

    def __init__(self, settings: WorkerSettings, redis: Any) -> None:
        super().__init__("ticker", SECONDS, first=SECONDS)
        self.settings = settings
        self.redis = redis
        self._taken = 0
        self._seen = time.monotonic()  # that hints are taken, or that none need be

    def step(self) -> None:
        """Hint what should run."""
        if app.stopping.value:
            return
        self._hint_drains()
        if not self.redis.set(TICK, app.NODE, nx=True, px=int(SECONDS * 900)):
            return
        if self._has_journal():
            record.apply_async(expires=30)

    def _hint_drains(self) -> None:
        """Hint to the children that do not drain; end this worker if they take no hint.

        A consumer that hangs or was told to stop looks healthy from outside, and nobody drains.
        """
        unseen, self._seen = self._seen, time.monotonic()  # stays so where the broker is away
        slots = app.open_slots()
        for _ in range(slots):
            hint_drain()
        if slots and app.hints_taken.value == self._taken:
            self._seen = unseen
        self._taken = app.hints_taken.value
        if time.monotonic() - self._seen > watchdog.STUCK_SECONDS:
            watchdog.give_up("This worker's children have taken no hint to drain for %d s")

    def _has_journal(self) -> bool:
        pipe = self.redis.pipeline(transaction=False)
        for number in range(self.settings.shards):
            pipe.xlen(Keys(number).journal)
            pipe.hlen(Keys(number).wanted)
        counts = pipe.execute(raise_on_error=False)  # a spoilt key must not keep the others
        return any(count for count in counts if isinstance(count, int))
