"""The ticker of every worker's parent: hints. No beat to run, no single point.

It asks no server but the broker: what does is done in threads of their own.
"""

import time

from worker import app, watchdog
from worker.repeating import Repeating
from worker.tasks import hint_drain

SECONDS = 0.5


class Ticker(Repeating):
    """Keeps this worker's children draining; ends this worker if they take no hint.

    A consumer that hangs or was told to stop looks healthy from outside, and nobody drains.
    """

    def __init__(self) -> None:
        super().__init__("ticker", SECONDS, first=SECONDS)
        self._taken = 0
        self._seen = time.monotonic()  # that hints are taken, or that none need be

    def step(self) -> None:
        """Hint to the children that do not drain, or not much longer."""
        if app.stopping.value:
            return
        unseen, self._seen = self._seen, time.monotonic()  # stays so where the broker is away
        wanted = app.hints_wanted()
        for place, end in wanted.items():
            hint_drain()
            app.hinted(place, end)
        if wanted and app.hints_taken.value == self._taken:
            self._seen = unseen
        self._taken = app.hints_taken.value
        if time.monotonic() - self._seen > watchdog.STUCK_SECONDS:
            watchdog.give_up("This worker's children have taken no hint to drain for %d s")
