"""The ticker of every worker's parent: hints, and the gauges. No beat to run, no single point."""

import logging
import threading
from collections import Counter
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from worker import app, metrics
from worker.settings import WorkerSettings
from worker.state import TICK, UNSHARDED, Keys
from worker.store.database import make_engine, now, reading
from worker.store.deliveries import prune
from worker.store.integrations import config_rows
from worker.tasks import hint_drain, notify, record

log = logging.getLogger(__name__)

SECONDS = 0.5
NOTIFY_EVERY = 4  # ticks
GAUGES_EVERY = 20
PRUNE_EVERY = 7_200


class Ticker(threading.Thread):
    """Keeps this worker's children draining; of all workers, one sees to the record and gauges."""

    def __init__(self, settings: WorkerSettings, redis: Any) -> None:
        super().__init__(name="ticker", daemon=True)
        self.settings = settings
        self.redis = redis
        self._stopped = threading.Event()
        self._engine: Engine | None = None
        self._ticks = 0

    def run(self) -> None:
        """Tick until stopped; trouble is logged once per kind and tried again."""
        trouble = ""
        while not self._stopped.wait(SECONDS):
            try:
                self.tick()
                trouble = ""
            except Exception as error:  # noqa: BLE001  a ticker that ends would stop the service
                if str(error) != trouble:
                    log.warning("A tick failed (%s); trying again", error)
                trouble = str(error)

    def stop(self) -> None:
        """End the ticking."""
        self._stopped.set()

    def tick(self) -> None:
        """Hint what should run."""
        if app.stopping.value:
            return
        for _ in range(app.open_slots()):
            hint_drain()
        if not self.redis.set(TICK, app.NODE, nx=True, px=int(SECONDS * 900)):
            return
        if self._has_journal():
            record.apply_async(expires=30)
        self._ticks += 1
        if self.settings.notify_url and self._ticks % NOTIFY_EVERY == 0:
            notify.apply_async(expires=30)
        if self._ticks % GAUGES_EVERY == 1:
            self._gauges()
        if self._ticks % PRUNE_EVERY == 0:
            oldest = now() - timedelta(days=self.settings.deliveries_days)
            prune(self._database(), oldest, now())

    def _database(self) -> Engine:
        if self._engine is None:
            self._engine = make_engine(self.settings.database_url)
        return self._engine

    def _has_journal(self) -> bool:
        pipe = self.redis.pipeline(transaction=False)
        for number in range(self.settings.shards):
            pipe.xlen(Keys(number).journal)
            pipe.hlen(Keys(number).wanted)
        return any(pipe.execute())

    def _gauges(self) -> None:
        where = backlog(self.redis, self.settings.shards)
        for name, count in where.items():
            metrics.BACKLOG.labels(name).set(count)
        metrics.BACKLOG_BYTES.set(self.redis.info("memory")["used_memory"])
        with reading(self._database()) as connection:
            rows = config_rows(connection)
        names = {0: "off", 1: "on", 2: "suspended"}
        states = Counter((row.slug, names[row.active]) for row in rows)
        for slug in {row.slug for row in rows}:
            for state in names.values():
                metrics.PIPELINES.labels(slug, state).set(states[slug, state])


def backlog(redis: Any, shards: int) -> dict[str, int]:
    """Return how many wait: events in `intake`, deliveries in `lanes`, pages in `journal`."""
    pipe = redis.pipeline(transaction=False)
    for number in range(shards):
        pipe.xlen(Keys(number).intake)
        pipe.xlen(Keys(number).journal)
        pipe.zrange(Keys(number).due, 0, -1)
    pipe.xlen(UNSHARDED)
    *replies, unsharded = pipe.execute()
    lanes = redis.pipeline(transaction=False)
    for number in range(shards):
        for integration in replies[3 * number + 2]:
            lanes.xlen(Keys(number).lane(integration.decode()))
    return {
        "intake": sum(replies[0::3]) + unsharded,
        "journal": sum(replies[1::3]),
        "lanes": sum(lanes.execute()),
    }
