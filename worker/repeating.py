"""A thread that does the same again and again, whatever happens.

Before a process is forked such threads end their steps, if they do so soon: the child would wait
for ever for the locks they hold.
"""

import logging
import os
import threading
import time
from weakref import WeakSet

from worker.away import AWAY, told

log = logging.getLogger(__name__)

FORK_SECONDS = 1.0  # a step that takes longer, for a server hangs, is not waited for


class Repeating(threading.Thread):
    """Calls `step` after `first` seconds, then every `seconds`, until stopped."""

    def __init__(self, name: str, seconds: float, first: float) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds = seconds
        self._first = first
        self._stopped = threading.Event()
        self.at_it = threading.Lock()  # held during a step
        _threads.add(self)

    def run(self) -> None:
        """Go on until stopped; trouble is logged once per kind and tried again."""
        trouble, pause = "", self._first
        while not self._stopped.wait(pause):
            pause = self._seconds
            try:
                with self.at_it:
                    self.step()
                trouble = ""
            except Exception as error:  # a thread that ends would stop the service
                if str(error) != trouble:
                    known = isinstance(error, AWAY)
                    log.warning(
                        "A step of the %s failed (%s); trying again",
                        self.name, told(error), exc_info=not known,
                    )  # fmt: skip
                trouble = str(error)

    def step(self) -> None:
        """Do it once."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the repeating."""
        self._stopped.set()


_threads: "WeakSet[Repeating]" = WeakSet()
_between_steps: list[threading.Lock] = []  # held while this process forks


def _before_fork() -> None:
    until = time.monotonic() + FORK_SECONDS
    _between_steps.extend(
        thread.at_it
        for thread in list(_threads)
        if thread.at_it.acquire(timeout=max(until - time.monotonic(), 0))
    )


def _after_fork() -> None:
    while _between_steps:
        _between_steps.pop().release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
