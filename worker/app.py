"""Composition root: the settings of the environment → Celery, store, directory, transport."""

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import RawArray, RawValue
from typing import Any

from billiard.process import current_process
from celery import Celery, bootsteps
from celery.signals import worker_process_init, worker_shutting_down
from kombu.transport.redis import QoS as RedisQoS
from sqlalchemy import Engine

from worker import logs, servers, traces
from worker.connection import losable
from worker.directory import Directory
from worker.settings import TASK_LIMIT_SECONDS, VISIBILITY_SECONDS, WorkerSettings, load_settings
from worker.store.database import make_engine
from worker.store.secrets import keyring_of


@cache
def settings() -> WorkerSettings:
    """Return the settings of this process."""
    return load_settings()


SOCKET: dict[str, Any] = {
    "socket_timeout": 5,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 5,
    "retry_on_timeout": True,
}
COLLECT_AFTER = 20_000, 20, 50  # new objects; rounds of the youngest; rounds of the middle ones
# Made by the parent before its children fork; no lock may outlive a child that is killed.
# `stopping`: leave your slice. The rest by a child's place in the pool: its pid while it drains,
# when its slice should end (monotonic), and of which slice, by its end, the next is hinted.
stopping = RawValue("b", 0)
_draining: Any = RawArray("i", settings().concurrency)
_ends: Any = RawArray("d", settings().concurrency)
_followed: Any = RawArray("d", settings().concurrency)
hints_taken = RawValue("L", 0)  # by children: it shows that this worker consumes
LEAVE_SECONDS = 15  # a slice needs half of it to hand back what is in flight
NODE = f"{socket.gethostname()}-{os.getpid()}"  # the worker, also in its children


@cache
def engine() -> Engine:
    """Return this process's engine; made after the fork."""
    return make_engine(settings().database_url)


@cache
def redis() -> Any:
    """Return the blocking client of the events' Redis."""
    return servers.connect(settings().redis_url, protocol=2, **SOCKET)


def async_redis(**more: Any) -> Any:
    """Return a client of the events' Redis for the running loop."""
    return losable(servers.connect_async(settings().redis_url, protocol=2, **{**SOCKET, **more}))


@cache
def directory() -> Directory:
    """Return this process's directory, read once and refreshing itself."""
    made = Directory(engine(), keyring_of(settings()), settings())
    made.refresh()
    made.start()
    return made


def make_celery() -> Celery:
    """Return the Celery app: hints only, JSON, no results, no ETA."""
    url, options = servers.broker(settings().broker_url)
    made = Celery("onward", broker=url, include=["worker.tasks"])
    made.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=False,
        task_time_limit=TASK_LIMIT_SECONDS,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=500,
        worker_max_memory_per_child=400_000,  # KiB
        worker_soft_shutdown_timeout=8,
        worker_enable_soft_shutdown_on_idle=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,  # its channel hangs the consumer on a TLS 1.3 ticket
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_SECONDS,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 30,
            **SOCKET,
            **options,
        },
    )
    RedisQoS.restore_at_shutdown = False  # hints: and on a link that is gone it ends the worker
    made.steps["worker"].add(Ticking)
    return made


class Ticking(bootsteps.StartStopStep):
    """The threads of every worker's parent: hints, record, gauges, notices; the word to stop.

    It starts when the pool has forked: a child forked while a thread imports would wait for ever.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:  # noqa: ARG002  the step's signature
        """Start ticking."""
        from worker.gauges import Gauges  # noqa: PLC0415  the children need none of it
        from worker.keeper import Keeper  # noqa: PLC0415
        from worker.recorder import Recorder  # noqa: PLC0415
        from worker.ticker import Ticker  # noqa: PLC0415

        traces.start(settings())
        gauges = Gauges(settings(), redis(), alive)
        keeper = Keeper(settings(), redis(), lambda: gauges.held)
        self.threads = (Ticker(), Recorder(settings(), redis()), gauges, keeper)
        for thread in self.threads:
            thread.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002  as above
        """Tell the children to leave their slices, and stop ticking."""
        stopping.value = 1
        for thread in self.threads:
            thread.stop()

    terminate = stop


@contextmanager
def slice_until(end: float) -> Iterator[Callable[[], bool]]:
    """Note that this child drains until `end` (monotonic); yield whether the next is hinted."""
    place = current_process().index
    hints_taken.value += 1
    _ends[place], _draining[place] = end, os.getpid()
    try:
        yield lambda: bool(_followed[place] == end)
    finally:
        _draining[place] = 0


def idle_children() -> int:
    """Return in how many places of the pool nobody drains."""
    return sum(pid == 0 or not alive(pid) for pid in list(_draining))


def ending_slices() -> list[tuple[int, float]]:
    """Return the place and the end of each slice that should end, once the next has its hint."""
    now = time.monotonic()
    return [
        (place, _ends[place])
        for place, pid in enumerate(_draining)
        if pid and now >= _ends[place] and _followed[place] != _ends[place]
    ]


def let_end(place: int, end: float) -> None:
    """Let the slice end that is over then: the next one has its hint."""
    _followed[place] = end


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # another's: not one of ours
        return False
    return True


def drain_queue() -> str:
    """Return the queue of this worker's own drain hints."""
    return f"onward.drain.{NODE}"


@worker_shutting_down.connect
def _word_to_stop(**_: Any) -> None:
    stopping.value = 1


@worker_process_init.connect
def _after_fork(**_: Any) -> None:
    """Let a child make its own connections; only the parent minds the terminal's interrupt.

    What was imported is no garbage, and little of what the loop makes is cyclic: the collector
    looks seldom, and at that alone.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    for made in (engine, redis, directory):
        made.cache_clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure(settings())
    traces.start(settings())
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    """End this child when its parent is gone, or when it does not leave though it was told to.

    A killed worker leaves no orphan, and one whose database hangs can be stopped.
    """
    told = 0
    while os.getppid() == parent and told < LEAVE_SECONDS:
        time.sleep(1)
        told += bool(stopping.value)
    os._exit(1)


celery = make_celery()
