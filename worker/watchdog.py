"""Ends a process whose delivery loop stands still while work waits; it is then started again."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from worker.drain import Drain

log = logging.getLogger(__name__)

STUCK_SECONDS = 60.0
LOOK_SECONDS = 5.0


@contextmanager
def watching(loop: Drain) -> Iterator[None]:
    """Watch `loop` from a thread for as long as the block runs."""
    done = threading.Event()
    threading.Thread(target=_watch, args=(loop, done), name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(loop: Drain, done: threading.Event) -> None:
    while not done.wait(LOOK_SECONDS):
        if is_stuck(loop, time.monotonic()):
            give_up("The delivery loop has not moved for %d s while work waits")


def give_up(why: str) -> NoReturn:
    """End this process at once, saying why: whatever supervises it starts it again."""
    log.critical(why, STUCK_SECONDS)
    logging.shutdown()
    os._exit(70)


def is_stuck(loop: Drain, now: float) -> bool:
    """Whether the loop itself stands still, or work in memory has not moved."""
    if now - loop.beat > STUCK_SECONDS:
        return True
    return bool(loop.queued) and now - loop.progressed > STUCK_SECONDS
