"""A service under fault: upstreams with a count of their own, load, and the accounts at the end."""

import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import httpx
import psutil
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import func, select, text

from tests.faults.invariants import (
    Accounts,
    accounts_of,
    no_secret_shown,
    nothing_left,
    suspensions,
)
from tests.faults.proxy import Proxy
from tests.stack import PROJECT, Stack, end, eventually, family, free_port
from worker.changing import changing
from worker.sample import events
from worker.state import Keys, shard_of
from worker.store.database import reading
from worker.store.integrations import delete
from worker.store.models import AuditRow, DeadLetter, Delivery, Notification
from worker.store.projects import create_project
from worker.supervisor import Part, onward, valkey, wait_for_redis

Event = dict[str, Any]
FLYING = 256  # in one child, at most
WINDOW = 2 * FLYING + 100  # in flight in two children, and outcomes not yet committed
NOISE = 30  # ms that a percentile may be off, on a machine that others use too
PATIENCE = 1  # s, of a producer; then it appends again


def until_confirmed(append: Callable[[], object], seconds: float = float("inf")) -> None:
    """Append until the store has said yes: an append whose answer is lost may have been taken."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            append()
        except RedisError:
            assert time.monotonic() < deadline, "the store does not come back"
            time.sleep(0.05)
        else:
            return


class Scene(Stack):
    """A `Stack` that remembers what was sent, and to whom it should go."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        database: str = "",
        figures: list[tuple[str, object]] | None = None,
    ) -> None:
        bounded = {"ONWARD_WINDOW": str(FLYING), **(environment or {})}
        super().__init__(folder, bounded, database=database)
        self.figures = [] if figures is None else figures
        self.receivers: dict[str, tuple[str, str, str]] = {}  # integration: (slug, host, project)
        self.sent: dict[str, list[Event]] = defaultdict(list)
        self.checked = False
        self.duplicates = 0

    # --- what there is ----------------------------------------------------------------------

    def hook(self, host: str = "a", project: str = PROJECT, **changes: Any) -> str:
        """Make a webhook to a host of its own; return the integration's id."""
        name = f"{host}.customer.example"
        made = self.integration("webhooks", project, url=f"https://{name}/onward", **changes)
        self.receivers[made] = ("webhooks", name, project)
        return made

    def other(self, slug: str, **changes: Any) -> str:
        """Make an integration of another slug; only one of it."""
        made = self.integration(slug, **changes)
        self.receivers[made] = (slug, "", PROJECT)
        return made

    def project(self, name: str) -> str:
        with self.engine.begin() as connection:
            create_project(connection, name, name)
        return name

    def taken_by(self, integration_id: str) -> Counter[str]:
        """Return how often each event arrived there, in order, by the upstream's own count."""
        slug, host, _ = self.receivers[integration_id]
        return Counter(self.taken(slug, host))

    def arrived(self) -> int:
        """Return how many events x integrations have arrived."""
        return sum(len(self.taken_by(integration_id)) for integration_id in self.receivers)

    def calls(self, status: int | str, slug: str = "webhooks") -> int:
        """Return how many of an upstream's last 200 calls ended so: a status, or a fault's mode."""
        return sum(call["status"] == status for call in self.last_calls(slug))

    def last_calls(self, slug: str) -> list[dict[str, Any]]:
        asked = {"slug": slug, "last": "200"}
        answer = httpx.get(f"{self.sandbox_url}/_sandbox/calls", params=asked).json()
        calls: list[dict[str, Any]] = answer["calls"]
        return calls

    def letters(self) -> list[str]:
        """Return the reasons of the dead letters."""
        with reading(self.engine) as connection:
            return list(connection.execute(select(DeadLetter.table().c.reason)).scalars())

    def leases(self) -> list[bytes | None]:
        """Return the token that holds each shard."""
        redis: Any = self.redis
        held: list[bytes | None] = redis.mget(
            [Keys(number).lease for number in range(self.settings.shards)]
        )
        return held

    def owners(self) -> set[str]:
        """Return the ids of the processes that hold shards."""
        return {token.decode().split(":")[1] if token else "nobody" for token in self.leases()}

    def broker(self, folder: Path) -> tuple[Part, str]:
        """Start a Redis for hints alone; return it and its URL."""
        port = free_port()
        part, url = valkey(folder / "broker", port), f"redis://127.0.0.1:{port}/0"
        self.start(part)
        wait_for_redis(url)
        return part, url

    def take_away(self, *shards: int) -> None:
        """Let leases be lost, as if somebody else had taken them and died."""
        for number in shards:
            keys = Keys(number)
            self.redis.hset(keys.committed, "taker", "another")
            self.redis.delete(keys.lease)

    def now(self) -> datetime:
        """Return the time by the store's clock, as the record has it."""
        redis: Any = self.redis
        seconds, micros = redis.time()
        return datetime.fromtimestamp(seconds + micros / 1e6, UTC)

    def p99(self, integration_ids: Iterable[str], since: datetime, until: datetime) -> float:
        """Return the 99th percentile, in ms, from accepted to delivered of what came between."""
        table = Delivery.table()
        query = select(table.c.accepted_at, table.c.finished_at).where(
            table.c.integration_id.in_(integration_ids),
            table.c.accepted_at.between(since, until),
            table.c.outcome == "delivered",
        )
        with reading(self.engine) as connection:
            rows = connection.execute(query).all()
        took: list[float] = sorted((row[1] - row[0]).total_seconds() * 1000 for row in rows)
        assert len(took) >= 100, "too few to speak of a 99th percentile"
        return took[len(took) * 99 // 100]

    def notices(self, kind: str) -> int:
        """Return how many notices of a kind there are."""
        table = Notification.table()
        query = select(func.count()).where(table.c.kind == kind)
        with reading(self.engine) as connection:
            return connection.execute(query).scalar() or 0

    def api(self, **environment: str) -> "Api":
        """Start the API; it need not be ready."""
        port = free_port()
        part = Part("api", onward("api", "--port", str(port)), {**self.environment, **environment})
        self.start(part)
        api = Api(f"http://127.0.0.1:{port}")
        eventually(api.lives, 60, "the API lives")
        return api

    def flips(self) -> int:
        """Return how many suspensions the audit has."""
        table = AuditRow.table()
        query = select(func.count()).where(table.c.action == "integration.suspend")
        with reading(self.engine) as connection:
            return connection.execute(query).scalar() or 0

    # --- what is sent -----------------------------------------------------------------------

    def events(self, count: int, project: str = PROJECT, users: int = 50) -> list[Event]:
        """Return new events, accounted from now on."""
        seed = sum(len(sent) for sent in self.sent.values()) + 1
        made = list(events(count, seed=seed, project=project, users=users))
        self.sent[project] += made
        return made

    def send(self, count: int, project: str = PROJECT, users: int = 50) -> list[Event]:
        made = self.events(count, project, users)
        self.publish(made)
        return made

    def encoded(self, count: int) -> list[bytes]:
        """Return new events as a producer of any language writes them."""
        return [json.dumps(event).encode() for event in self.events(count)]

    @contextmanager
    def load(self, rate: float = 40, project: str = PROJECT) -> Iterator[None]:
        """Publish all the while, as a producer does: again with the same id until it is taken."""
        over = threading.Event()
        failed: list[BaseException] = []

        def produce() -> None:
            store = Redis.from_url(self.settings.redis_url, socket_timeout=PATIENCE)
            with store:
                while not over.wait(10 / rate):
                    for event in self.events(10, project):
                        self._append(store, event)

        def run() -> None:
            try:
                produce()
            except BaseException as error:  # noqa: BLE001  it is the test's
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert not failed, failed

    def _append(self, store: Redis, event: Event) -> None:
        intake = Keys(shard_of(event["project_id"], self.settings.shards)).intake
        until_confirmed(lambda: store.xadd(intake, {"event": json.dumps(event)}), 60)

    # --- what goes wrong --------------------------------------------------------------------

    def kill(self, part: Part, number: int = SIGKILL) -> None:
        """Signal a worker's parent alone."""
        assert part.process is not None
        part.process.send_signal(number)
        if number == SIGKILL:
            part.process.wait()

    def kill_all(self, part: Part) -> None:
        """Kill a worker with its children at once."""
        assert part.process is not None
        for process in reversed(family(part.process.pid)):
            end(process, SIGKILL)
        part.process.wait()

    @contextmanager
    def frozen(self, processes: Iterable[psutil.Process]) -> Iterator[None]:
        """Stop processes for as long as the block runs."""
        frozen = list(processes)
        for process in frozen:
            end(process, SIGSTOP)
        try:
            yield
        finally:
            for process in frozen:
                end(process, SIGCONT)

    def stop(self, part: Part, seconds: float = 30) -> None:
        """Let a worker leave; fail if it takes longer."""
        assert part.process is not None
        part.process.send_signal(SIGTERM)
        part.process.wait(seconds)

    def again(self, part: Part) -> None:
        """Start a worker again that has ended, and wait until it drains."""
        self.start(part)
        eventually(lambda: self.drains(part), 90, "the worker drains again")

    def keep(self, part: Part, seconds: float = 120) -> None:
        """Start a worker again whenever it has ended, as its supervisor does, until all is done."""

        def done() -> bool:
            if not part.running:
                self.start(part)
            return self.settled()

        eventually(done, seconds, "the worker is started again and goes on")

    def delete(self, integration_id: str) -> None:
        with changing(self.engine, self.settings) as connection:
            delete(connection, integration_id, "test")

    def environ(self) -> dict[str, str]:
        """Return the environment of a process of this service."""
        return {**os.environ, **self.environment}

    def sql(self, statement: str, **values: Any) -> int:
        """Run a statement as an operator would; return how many rows it changed."""
        with self.engine.begin() as connection:
            return connection.execute(text(statement), values).rowcount

    def number(self, query: str) -> int:
        """Return the one number that a query gives."""
        with reading(self.engine) as connection:
            found: int = connection.execute(text(query)).scalar_one()
        return found

    def behind(self, proxy: Proxy) -> dict[str, str]:
        """Return a worker's environment in which the store is reached through `proxy`."""
        base = f"redis://127.0.0.1:{proxy.port}"
        return {"ONWARD_REDIS_URL": f"{base}/0", "ONWARD_BROKER_URL": f"{base}/1"}

    # --- what came of it --------------------------------------------------------------------

    def moving(self, more: int = 1, seconds: float = 60) -> None:
        """Wait until `more` events than now have arrived."""
        before = self.arrived()
        eventually(lambda: self.arrived() >= before + more, seconds, "deliveries go on")

    def reached(self, count: int, seconds: float = 60) -> None:
        """Wait until `count` events have arrived in all."""
        eventually(lambda: self.arrived() >= count, seconds, f"{count} have arrived")

    def published(self, more: int) -> None:
        """Wait until `more` events than now have been published."""
        before = len(self.sent[PROJECT])
        eventually(lambda: len(self.sent[PROJECT]) >= before + more, why="the producer goes on")

    def check(
        self,
        *,
        duplicates: int = 0,
        ordered: bool = False,
        seconds: float = 90,
        flips: int = 0,
        unknown: int = 0,
        absent: int = 0,
    ) -> dict[str, Accounts]:
        """Wait until all is settled, then check every invariant; return the accounts.

        `duplicates` is the bound for all; `flips` how many suspensions there were; `unknown` how
        many may have arrived without our knowing (answers that were cut off); `absent` how many
        were for nobody, because the integration was off when they were read, or were set apart.
        """
        eventually(self.settled, seconds, "settled and recorded")
        found = {one: accounts_of(self, one) for one in self.receivers}
        self.duplicates = sum(accounts.repeated for accounts in found.values())
        self.checked = True
        self.figures += [
            ("accepted", sum(map(len, self.sent.values()))),
            ("lost", sum(len(accounts.lost) for accounts in found.values()) - absent),
            ("duplicates", self.duplicates),
        ]
        lost = {id_ for accounts in found.values() for id_ in accounts.lost}
        apart = f"{self.letters()}, {self.balance().dropped}"
        assert len(lost) == absent, f"{len(lost)} lost, not {absent}: {sorted(lost)[:5]}; {apart}"
        for accounts in found.values():
            accounts.verify(ordered=ordered, unknown=unknown)
        assert self.duplicates <= duplicates, f"{self.duplicates} duplicates, {duplicates} allowed"
        nothing_left(self)
        suspensions(self, flips)
        no_secret_shown(self)
        return found


class Api:
    """A running API, asked how the service is."""

    def __init__(self, url: str) -> None:
        self.url = url

    def lives(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def faults(self) -> set[str]:
        """Return the checks that keep it from being ready."""
        answer = httpx.get(f"{self.url}/readyz", timeout=30)
        faults = {name for name, said in answer.json()["checks"].items() if said != "ok"}
        assert answer.status_code == (503 if faults else 200)
        return faults


Make = Callable[..., Scene]


def ids_of(sent: Iterable[Event]) -> set[str]:
    return {event["id"] for event in sent}


def users_of(sent: Iterable[Event]) -> dict[str, list[str]]:
    """Return the ids of each user's events, in the order they were sent."""
    theirs: dict[str, list[str]] = defaultdict(list)
    for event in sent:
        theirs[event["user_id"]].append(event["id"])
    return theirs


__all__ = ["PROJECT", "WINDOW", "Event", "Make", "Scene", "eventually", "ids_of", "users_of"]
