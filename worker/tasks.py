"""Celery tasks: hints, a few lines each. Losing, doubling or garbling one is harmless."""

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import uvloop
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker import app
from worker.app import celery
from worker.away import AWAY, told
from worker.drain import Drain
from worker.record import record as record_journal
from worker.settings import SLICE_SECONDS
from worker.state import RECORDING, RECORDING_MS, State
from worker.transport import make_transport
from worker.watchdog import watching

log = logging.getLogger(__name__)

NICENESS = 5  # a third of what others get where all cores are taken


@celery.task(name="onward.drain", ignore_result=True)
def drain() -> None:
    """Take a share of the free shards and drain them for one slice; then hint on."""
    slot = app.free_slot()
    if slot is None:
        return
    try:
        uvloop.run(_drain(time.monotonic() + SLICE_SECONDS))
    except AWAY as error:
        log.warning("No shard can be drained (%s); the ticker has it tried again", told(error))
        return
    finally:
        app.leave_slot(slot)
        gc.collect()  # a slice and all its connections: else the next one's come on top
    if not app.stopping.value:
        with suppress(*AWAY):  # the ticker hints, too
            hint_drain()


async def _drain(until: float) -> None:
    settings = app.settings()
    redis = app.async_redis()
    reader = app.async_redis(retry=Retry(NoBackoff(), 0))
    transport = make_transport(settings)
    loop = Drain(
        settings, app.directory(), transport, State(redis, reader), lambda: bool(app.stopping.value)
    )
    with watching(loop):
        try:
            await loop.run(until)
        finally:
            await transport.close()
            await reader.aclose()
            await redis.aclose()


def hint_drain() -> None:
    """Tell this worker's children that one may drain."""
    drain.apply_async(queue=app.drain_queue(), expires=60)


@celery.task(name="onward.record", ignore_result=True)
def record() -> None:
    """Move the journals to the database; of several at once, one does it."""
    try:
        with _the_recorder(app.redis()) as ours:
            if ours:
                engine, shards = app.engine(), app.settings().shards
                with ThreadPoolExecutor(1) as aside:
                    aside.submit(record_journal, app.redis(), engine, shards, _stand_back).result()
    except AWAY as error:
        log.warning("The journal waits to be recorded (%s)", told(error))


def _stand_back() -> None:
    """Let delivery go before this thread until it ends: niceness cannot be taken back.

    On Linux alone it is a thread's own; where a sandbox forbids the call, it records as any other.
    """
    if sys.platform == "linux":
        thread = os.PRIO_PROCESS, threading.get_native_id()
        with suppress(PermissionError):
            os.setpriority(*thread, max(os.getpriority(*thread), NICENESS))


@contextmanager
def _the_recorder(redis: Any) -> Iterator[bool]:
    """Say whether nobody else records meanwhile."""
    mine = f"{os.getpid()}:{time.monotonic_ns()}"
    ours = bool(redis.set(RECORDING, mine, nx=True, px=RECORDING_MS))
    try:
        yield ours
    finally:
        if ours and redis.get(RECORDING) == mine.encode():
            redis.delete(RECORDING)
