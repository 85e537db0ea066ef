"""The ticker of every worker's parent: hints. No beat to run, no single point.

It asks no server but the broker: what does is done in threads of their own.
"""

import time

from celery.worker import state

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
        """Hint to the children that do not drain, or not much longer.

        A slice may end once the next one's hint is in this parent's hands: neither the broker nor a
        consumer that hangs can then keep its child standing still.
        """
        if app.stopping.value:
            return
        unseen, self._seen = self._seen, time.monotonic()  # stays so where the broker is away
        idle, ending = app.idle_children(), app.ending_slices()
        waiting = len(state.reserved_requests) - len(state.active_requests)
        at_hand = max(waiting - idle, 0)
        for place, end in ending[:at_hand]:
            app.let_end(place, end)
        for _ in range(idle + len(ending[at_hand:])):
            hint_drain()
        if (idle or ending) and app.hints_taken.value == self._taken:
            self._seen = unseen
        self._taken = app.hints_taken.value
        if time.monotonic() - self._seen > watchdog.STUCK_SECONDS:
            watchdog.give_up("This worker's children have taken no hint to drain for %d s")
