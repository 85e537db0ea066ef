"""What is done now and then with the database: who is told what, and what is forgotten.

In a thread of every worker's parent, of which one acts: a database or a receiver that hangs delays
what is done here, and neither a hint nor a delivery.
"""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from worker import incidents
from worker.gauges import Held
from worker.notify import send_notices
from worker.registry import all_providers
from worker.repeating import Repeating
from worker.settings import WorkerSettings
from worker.state import KEEPING, KEEPING_MS, Keys, shard_of
from worker.store import idempotency, integrations, notifications
from worker.store.database import make_engine, now, reading
from worker.store.deliveries import prune
from worker.turn import Turn

SECONDS = 2.0
LOOK_SECONDS = 10.0
PRUNE_SECONDS = 3_600.0
STATEMENT_SECONDS = 300.0  # PostgreSQL; pruning a large table takes its time
NEAR = 0.8  # of what may be held; as the alert
NEAR_EVERY = timedelta(days=1)


class Keeper(Repeating):
    """Sends notices, looks for what to tell, prunes. `held` are the lanes that fill up."""

    def __init__(
        self,
        settings: WorkerSettings,
        redis: Any,
        held: Callable[[], Sequence[Held]] = list,
    ) -> None:
        super().__init__("keeper", SECONDS, first=SECONDS)
        self.settings = settings
        self.redis = redis
        self.engine: Engine = make_engine(
            settings.database_url, statement_seconds=STATEMENT_SECONDS
        )
        self._turn = Turn(redis, KEEPING, KEEPING_MS)
        self._held = held
        self._looked = 0.0
        self._pruned = time.monotonic()

    def step(self) -> None:
        """Do what is due, if no other worker is at it."""
        if not self._turn.take():
            return
        try:
            if self._due("_looked", LOOK_SECONDS):
                self.look()
            send_notices(self.engine, self.settings, self._turn.keep)
            if self._due("_pruned", PRUNE_SECONDS):
                oldest = now() - timedelta(days=self.settings.deliveries_days)
                prune(self.engine, oldest, now())
                notifications.forget(self.engine, oldest)
                with self.engine.begin() as connection:
                    idempotency.prune(connection)
        finally:
            self._turn.end()

    def _due(self, name: str, seconds: float) -> bool:
        if time.monotonic() - getattr(self, name) < seconds:
            return False
        setattr(self, name, time.monotonic())
        return True

    def look(self) -> None:
        """Put into the outbox what nobody else noticed: begins and ends."""
        incidents.tell(self.redis, self.engine, list(all_providers()))
        held = [one for one in self._held() if one.share >= NEAR]
        with reading(self.engine) as connection:
            if not held and not notifications.recovered(connection):
                return
        with self.engine.begin() as connection:
            for one in held:
                told = {"used": int(one.share * 100), "limit": one.limit, "waiting": one.waiting}
                notifications.add_of(
                    connection, "integration.expiring", one.id, told, unless_within=NEAR_EVERY
                )
            for id_ in notifications.recovered(connection):  # no other keeper was quicker
                project = integrations.get(connection, id_).project_id
                lane = Keys(shard_of(project, self.settings.shards)).lane(id_)
                told = {"waiting": self.redis.xlen(lane)}
                notifications.add_of(connection, "integration.recovered", id_, told)
