"""The ticker of every worker's parent: hints, and who is told. No beat to run, no single point."""

from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from worker import app, incidents
from worker.registry import all_providers
from worker.repeating import Repeating
from worker.settings import WorkerSettings
from worker.state import TICK, Keys
from worker.store.database import make_engine, now
from worker.store.deliveries import prune
from worker.tasks import hint_drain, notify, record

SECONDS = 0.5
NOTIFY_EVERY = 4  # ticks
INCIDENTS_EVERY = 20
PRUNE_EVERY = 7_200


class Ticker(Repeating):
    """Keeps this worker's children draining; of all workers, one sees to record and notices."""

    def __init__(self, settings: WorkerSettings, redis: Any) -> None:
        super().__init__("ticker", SECONDS, first=SECONDS)
        self.settings = settings
        self.redis = redis
        self._engine: Engine | None = None
        self._ticks = 0

    def step(self) -> None:
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
        if self._ticks % INCIDENTS_EVERY == 0:
            incidents.tell(self.redis, self._database(), list(all_providers()))
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
        counts = pipe.execute(raise_on_error=False)  # a spoilt key must not keep the others
        return any(count for count in counts if isinstance(count, int))
