"""The service on trial: Valkey, a database, the sink, a worker; and what they used."""

import json
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import trustme
from redis import Redis
from sqlalchemy import Engine, func, insert, select

from tests.bench.events import Source, fill
from tests.stack import end, free_port, kill
from worker.backlog import backlog
from worker.settings import WorkerSettings, load_settings
from worker.state import OWNERS, Keys
from worker.store.database import make_engine, now, reading
from worker.store.models import Delivery, Integration, Project
from worker.store.schema import upgrade
from worker.store.secrets import keyring_of
from worker.supervisor import Part, onward, valkey, wait_for_redis

T = TypeVar("T")
HOSTS = 51  # addresses the sink listens at
PATIENCE = 120.0  # s without any progress
SECRET = "whsec_b253YXJkLWJlbmNobWFyay1zaWduaW5nLXNlY3JldA=="


@dataclass
class Measured:
    """What a piece of work took. CPU is of all the worker's processes, its record included."""

    deliveries: int
    seconds: float
    cpu: float  # s
    drain_cpu: float = 0.0  # s, of the children that drain
    memory: int = 0  # bytes, the largest draining child's resident set
    seen: Mapping[str, Any] = field(default_factory=dict)  # by the sink

    @property
    def rate(self) -> float:
        """Deliveries a second, until the last was committed."""
        return self.deliveries / self.seconds

    @property
    def microseconds(self) -> float:
        """CPU a delivery."""
        return self.cpu / self.deliveries * 1e6

    @property
    def per_core(self) -> float:
        """Deliveries a second of CPU."""
        return self.deliveries / self.cpu

    def summary(self) -> dict[str, float]:
        """Return the figures that are kept."""
        return {
            "deliveries": self.deliveries,
            "per_second": round(self.rate),
            "per_core": round(self.per_core),
            "cpu_us": round(self.microseconds, 1),
            "drain_us": round(self.drain_cpu / self.deliveries * 1e6, 1),
            "memory_mb": round(self.memory / 2**20),
        }


class Rig:
    """Everything but the worker runs from enter to exit."""

    def __init__(self, folder: Path, database: str = "", **environment: str) -> None:
        self.folder = folder
        self.redis_port, self.sink_port, self.tls_port = free_port(), free_port(), free_port()
        self.certificate = folder / "sink.pem"
        self.roots = folder / "roots.pem"
        self.environment = {
            "ONWARD_DATA_DIR": str(folder),
            "ONWARD_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "ONWARD_DATABASE_URL": database or f"sqlite:///{folder / 'onward.db'}",
            "ONWARD_SECRET_KEYS": "01" * 32,
            "ONWARD_ALLOW_PRIVATE_UPSTREAMS": "1",
            "ONWARD_CONCURRENCY": "1",
            "ONWARD_METRICS_PORT": "0",
            "ONWARD_LOG_LEVEL": "warning",
            "ONWARD_ATTEMPT_TIMEOUT": "5",
            "SSL_CERT_FILE": str(self.roots),
            **environment,
        }
        self.settings: WorkerSettings = load_settings(self.environment)
        self.store = valkey(folder / "redis", self.redis_port)
        self.parts: list[Part] = []
        self.redis: Any = Redis.from_url(self.settings.redis_url, protocol=2)
        self.engine: Engine

    def __enter__(self) -> Self:
        (self.folder / "log").mkdir(parents=True)
        self._certify()
        self.start(self.store)
        sink = [sys.executable, "-m", "tests.bench.sink", str(self.sink_port), str(self.tls_port)]
        self.start(Part("sink", [*sink, str(HOSTS), str(self.certificate)]))
        wait_for_redis(self.settings.redis_url)
        upgrade(self.settings.database_url)
        self.engine = make_engine(self.settings.database_url)
        until(self._sink_answers, "the sink answers")
        return self

    def __exit__(self, *_: object) -> None:
        for part in reversed(self.parts):
            self.stop(part)
        self.redis.close()
        self.engine.dispose()

    def _certify(self) -> None:
        authority = trustme.CA()
        names = [f"127.0.0.{number + 1}" for number in range(HOSTS)]
        authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(self.certificate)
        authority.cert_pem.write_to_path(self.roots)

    def _sink_answers(self) -> bool:
        with suppress(OSError):
            return bool(self.seen())
        return False

    def start(self, part: Part) -> None:
        """Start a process of the rig's."""
        part.start(self.folder / "log" / f"{part.name}.log")
        self.parts.append(part)

    def stop(self, part: Part) -> None:
        """End a process and its children."""
        if part.process is not None:
            kill(part.process)

    def url(self, host: int = 0, path: str = "ok", *, tls: bool = False) -> str:
        """Return a URL at the sink."""
        scheme, port = ("https", self.tls_port) if tls else ("http", self.sink_port)
        return f"{scheme}://127.0.0.{host % HOSTS + 1}:{port}/{path}"

    def seen(self, *, reset: bool = False) -> dict[str, Any]:
        """Return what the sink saw."""
        with urllib.request.urlopen(self.url(0, "_reset" if reset else "_seen")) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def webhooks(
        self,
        prefix: str,
        count: int,
        path: str = "ok",
        *,
        tls: bool = False,
        at_once: int | None = None,
    ) -> list[str]:
        """Make projects with a webhook each, spread over hosts; return the projects."""
        own = {"delivery": {"concurrency": at_once}} if at_once else {}
        urls = [self.url(number % (HOSTS - 1), path, tls=tls) for number in range(count)]
        settings = [{"url": url, "signing_secret": SECRET, **own} for url in urls]
        return self.projects(prefix, "webhooks", settings)

    def projects(self, prefix: str, slug: str, settings: Sequence[Mapping[str, Any]]) -> list[str]:
        """Make a project with one active integration for each of `settings`."""
        keyring, moment = keyring_of(self.settings), now()
        names = [f"{prefix}-{number}" for number in range(len(settings))]
        with self.engine.begin() as connection:
            first = connection.execute(select(func.count(Integration.table().c.id))).scalar() or 0
            ids = [f"i{first + number:07d}" for number in range(len(settings))]
            connection.execute(
                insert(Project.table()),
                [{"id": name, "name": name, "created_at": moment} for name in names],
            )
            connection.execute(
                insert(Integration.table()),
                [
                    {
                        "id": id_, "project_id": name, "slug": slug, "platform": "iOS",
                        "title": name, "active": 1, "epoch": 0, "created_at": moment,
                        "updated_at": moment,
                        "settings": keyring.encrypt(json.dumps(values), id_),
                    }
                    for id_, name, values in zip(ids, names, settings, strict=True)
                ],
            )  # fmt: skip
        return names

    @contextmanager
    def worker(self, **environment: str) -> Iterator["Worker"]:
        """Run a worker, with one child that drains, for the block."""
        metrics = Path(tempfile.mkdtemp(dir=self.folder))
        values = {**self.environment, **environment, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        part = Part(f"worker-{len(self.parts)}", onward("worker"), values)
        self.start(part)
        worker = Worker(self, part)
        try:
            until(worker.draining, "a worker drains")
            yield worker
        finally:
            worker.stop()

    def delivered(self) -> int:
        """Return the deliveries that are committed."""
        pipeline = self.redis.pipeline(transaction=False)
        for number in range(self.settings.shards):
            pipeline.hgetall(Keys(number).tally)
        return sum(
            int(count)
            for tally in pipeline.execute()
            for name, count in tally.items()
            if name.endswith(b"|delivered")
        )

    def unread(self) -> int:
        """Return what is in the intake; cheap to ask for however many integrations there are."""
        pipeline = self.redis.pipeline(transaction=False)
        for number in range(self.settings.shards):
            pipeline.xlen(Keys(number).intake)
        return sum(pipeline.execute())

    def waiting(self) -> dict[str, int]:
        """Return what waits in Redis, by where."""
        return backlog(self.redis, self.settings.shards)

    def recorded(self) -> int:
        """Return the rows the database has."""
        with reading(self.engine) as connection:
            return int(connection.execute(select(func.count(Delivery.table().c.id))).scalar() or 0)

    def memory(self) -> int:
        """Return the bytes Redis uses for data."""
        return int(self.redis.info("memory")["used_memory_dataset"])


class Worker:
    """A worker's processes and what they use."""

    def __init__(self, rig: Rig, part: Part) -> None:
        self.rig = rig
        self.part = part
        assert part.process is not None
        self.process = psutil.Process(part.process.pid)

    def _all(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu(self) -> float:
        """Return the CPU seconds of all its processes."""
        return sum(map(_cpu, self._all()))

    def draining(self) -> list[psutil.Process]:
        """Return its children that drain."""
        owners = self.rig.redis.zrange(OWNERS, 0, -1)
        mine = {process.pid: process for process in self._all()}
        pids = (int(owner.split(b":")[-2]) for owner in owners)
        return [mine[pid] for pid in pids if pid in mine]

    def drain_cpu(self) -> float:
        """Return the CPU seconds of the children that drain."""
        return sum(map(_cpu, self.draining()))

    def memory(self) -> int:
        """Return the resident set of its largest child that drains, in bytes."""
        return max((process.memory_info().rss for process in self.draining()), default=0)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Let it stand still for the block."""
        for process in self._all():
            end(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self._all():
                end(process, signal.SIGCONT)

    def drained(self, source: Source, count: int, *others: "Worker") -> Measured:
        """Fill the intake while all stand still; measure until all is delivered and recorded.

        The CPU is that of `others` too, who share the work.
        """
        rig, workers = self.rig, (self, *others)
        with ExitStack() as standing:
            for worker in workers:
                standing.enter_context(worker.still())
            fill(rig.redis, source, count, rig.settings.shards)
            rig.seen(reset=True)
            before = rig.delivered()
            cpu = sum(worker.cpu() for worker in workers)
            drain = sum(worker.drain_cpu() for worker in workers)
            began = time.monotonic()
        progress(lambda: count - rig.unread(), count)
        progress(lambda: rig.delivered() - before, count)
        seconds = time.monotonic() - began
        drained = sum(worker.drain_cpu() for worker in workers) - drain
        until(lambda: rig.waiting()["journal"] == 0, "all is recorded")
        spent = sum(worker.cpu() for worker in workers) - cpu
        return Measured(count, seconds, spent, drained, self.memory(), rig.seen())

    def learns(self, projects: Sequence[str]) -> None:
        """Wait until it knows new projects: events of those it does not know go nowhere."""
        source = Source([*projects])
        for _ in range(30):
            before = self.rig.delivered()
            fill(self.rig.redis, source, len(projects), self.rig.settings.shards)
            until(lambda: self.rig.unread() == 0, "the intake is read", PATIENCE)
            if self.rig.delivered() - before == len(projects):
                return
            time.sleep(1)
        raise TimeoutError("the worker does not see the new projects")

    def stop(self) -> None:
        """Stop it as an operator would; kill what does not go."""
        assert self.part.process is not None
        self.part.process.terminate()
        with suppress(Exception):
            self.part.process.wait(30)
        self.rig.stop(self.part)


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def until(what: Callable[[], T], why: str, seconds: float = 60.0) -> T:
    """Wait until `what` is true; return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"never came true: {why}")
        time.sleep(0.02)
    return found


def progress(done: Callable[[], int], count: int) -> None:
    """Wait until `done` says `count`; raise TimeoutError where it stands still."""
    last, moved = -1, time.monotonic()
    while (present := done()) < count:
        if present != last:
            last, moved = present, time.monotonic()
        if time.monotonic() - moved > PATIENCE:
            raise TimeoutError(f"{present} of {count}, and no more")
        time.sleep(0.02)
