"""The gauges of every worker's parent: how the whole service stands, read every ten seconds.

Every worker shows them all, so none is stale while one lives; across workers take the maximum.
In a thread of its own: a database that hangs delays them, and no hint.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from worker import metrics
from worker.audit import balance
from worker.backlog import Lane, Waits, waits
from worker.directory import compile_integration
from worker.policy import Policy
from worker.repeating import Repeating
from worker.settings import WorkerSettings
from worker.state import INCIDENTS
from worker.store.database import make_engine, reading
from worker.store.integrations import config_rows, config_version
from worker.store.secrets import keyring_of

SECONDS = 10.0
AUDIT_EVERY = 60  # steps
AUDITABLE = 5_000  # journal entries: a longer one is not read for a gauge
POLICIES = 10_000  # of integrations with a lane: finding one takes 50 µs
STATES = {0: "off", 1: "on", 2: "suspended"}


@dataclass(frozen=True, slots=True)
class Held:
    """How much of what may be held one integration uses, by `time` or `number`."""

    id: str
    waiting: int
    limit: str
    share: float


class Gauges(Repeating):
    """Keeps this worker's gauges fresh; `alive` tells whether there is a process of an id."""

    def __init__(self, settings: WorkerSettings, redis: Any, alive: Callable[[int], bool]) -> None:
        super().__init__("gauges", SECONDS, first=0.5)
        self.settings = settings
        self.redis = redis
        self._alive = alive
        self._engine = make_engine(settings.database_url)
        keyring = keyring_of(settings)
        self._policy_of = lru_cache(POLICIES)(
            lambda row: compile_integration(row, keyring, settings).policy
        )
        self._version: tuple[Any, ...] = ()
        self._rows: Sequence[Any] = ()  # every integration that is not deleted
        self._slugs: set[str] = set()  # seen so far: what is gone is shown as 0
        self._steps = 0
        self.held: list[Held] = []  # every lane, as it was seen last

    def step(self) -> None:
        """Read and show. What the database does not say stays as it was last."""
        metrics.forget_dead(self._alive)
        found = waits(self.redis, self.settings.shards)
        self._show_store(found)
        failed: SQLAlchemyError | None = None
        try:
            self._read_rows()
        except SQLAlchemyError as error:
            failed = error
        self._show_pipelines(found)
        metrics.REFRESHED.set(found.now / 1000)
        if failed:
            raise failed
        if self._steps % AUDIT_EVERY == 0 and found.journal < AUDITABLE:
            audited = balance(self.redis, self._engine, self.settings.shards)
            metrics.UNACCOUNTED.set(audited.unaccounted)
        self._steps += 1

    def _read_rows(self) -> None:
        """Read the integrations if they have changed, and before an audit in any case."""
        with reading(self._engine) as connection:
            version = config_version(connection)
            if version != self._version or self._steps % AUDIT_EVERY == 0:
                self._rows, self._version = config_rows(connection), version

    def _show_store(self, found: Waits) -> None:
        for where, count in found.counts.items():
            metrics.BACKLOG.labels(where).set(count)
        metrics.INTAKE_AGE.set(found.intake_age)
        metrics.JOURNAL_AGE.set(found.journal_age)
        metrics.BACKLOG_BYTES.set(found.size)
        memory = self.redis.info("memory")
        metrics.REDIS_BYTES.set(memory["used_memory"])
        most = memory.get("maxmemory") or memory.get("total_system_memory")
        metrics.REDIS_RATIO.set(memory["used_memory"] / most if most else 0)

    def _show_pipelines(self, found: Waits) -> None:
        """Show each provider's pipelines, what waits in them and whether it has an incident."""
        opened = {raw.decode() for raw in self.redis.hkeys(INCIDENTS)}
        self._slugs |= {one.slug for one in self._rows} | opened
        states = Counter((one.slug, STATES[one.active]) for one in self._rows)
        count: Counter[tuple[str, str]] = Counter()
        oldest: dict[tuple[str, str], float] = {}
        used: dict[tuple[str, str], float] = {}
        held = []
        for one in self._rows:
            if (lane := found.lanes.get(one.id)) is None:
                continue
            place = one.slug, STATES[one.active]
            count[place] += lane.length
            oldest[place] = max(oldest.get(place, 0), (found.now - lane.accepted) / 1000)
            for limit, share in _hold_used(one.active, self._policy_of(one), lane, found.now):
                used[one.slug, limit] = max(used.get((one.slug, limit), 0), share)
                held.append(Held(one.id, lane.length, limit, share))
        self.held = held
        for slug in (metrics.NOBODY, *self._slugs):
            metrics.DEAD_LETTERS.labels(slug).inc(0)  # there before the first: an increase is seen
        for slug in self._slugs:
            metrics.INCIDENT.labels(slug).set(slug in opened)
            for state in STATES.values():
                metrics.PIPELINES.labels(slug, state).set(states[slug, state])
                metrics.WAITING.labels(slug, state).set(count[slug, state])
                metrics.WAITING_AGE.labels(slug, state).set(oldest.get((slug, state), 0))
            for limit in ("time", "number"):
                metrics.HOLD_USED.labels(slug, limit).set(used.get((slug, limit), 0))


def _hold_used(active: int, policy: Policy, lane: Lane, now: float) -> Iterable[tuple[str, float]]:
    """Yield how much of what may be held is used: by the first event's age, and by their number."""
    yield "time", (now - lane.accepted) / 1000 / policy.hold_seconds
    if active == 2:
        yield "number", lane.length / policy.hold_events
