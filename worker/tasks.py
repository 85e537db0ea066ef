"""What Celery tells a child: to drain, in hints. Losing, doubling or garbling one is harmless."""

import logging
import os
from typing import Any

from celery.signals import worker_process_shutdown

from worker import app, metrics, traces
from worker.app import celery
from worker.away import AWAY, told
from worker.child import Child

log = logging.getLogger(__name__)

child = Child()


@celery.task(name="onward.drain", ignore_result=True)
def drain() -> None:
    """Take a share of the free shards and drain them for one slice; the ticker hints on."""
    try:
        child.drain()
    except AWAY as error:
        log.warning("No shard can be drained (%s); the ticker has it tried again", told(error))


def hint_drain() -> None:
    """Tell this worker's children that one may drain."""
    drain.apply_async(queue=app.drain_queue(), expires=60)


@worker_process_shutdown.connect
def _last_words(pid: int, **_: Any) -> None:
    try:
        child.leave()
    finally:
        traces.stop()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            metrics.process_died(pid)
