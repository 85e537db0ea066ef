"""A whole service of real processes for a test: Valkey, workers, the sandbox as upstream.

Waits are on conditions, with a bound; at its end no process and no file is left.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from sqlalchemy import func, select

from worker.audit import Balance, balance
from worker.backlog import backlog
from worker.changing import changing
from worker.intake import publish
from worker.sample import integration
from worker.servers import connect
from worker.settings import WorkerSettings, load_settings
from worker.store import integrations, projects
from worker.store.database import make_engine, reading
from worker.store.models import Delivery, Integration
from worker.store.schema import upgrade
from worker.supervisor import Part, onward, valkey, wait_for_redis

PROJECT = "prj_test"
QUICK = {
    "ONWARD_RETRY_SCHEDULE": "0.2,0.3,0.5",
    "ONWARD_METRICS_PORT": "0",
    "ONWARD_CONCURRENCY": "2",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(what: Callable[[], Any], seconds: float = 120.0, why: str = "") -> Any:
    """Return what `what` returns once it is true; fail with its last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline, f"never came true: {why or what!r}; last {value!r}"
        time.sleep(0.05)


class Stack:
    """The service; `environment` changes its settings."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, *, database: str = ""
    ) -> None:
        self.folder = folder
        self.redis_port, self.sandbox_port = free_port(), free_port()
        self.sandbox_url = f"http://127.0.0.1:{self.sandbox_port}"
        self.environment = {
            **QUICK,
            "ONWARD_DATA_DIR": str(folder),
            "ONWARD_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "ONWARD_UPSTREAM": self.sandbox_url,
            "ONWARD_DATABASE_URL": database or f"sqlite:///{folder / 'onward.db'}",
            "ONWARD_SECRET_KEYS": "01" * 32,
            **(environment or {}),
        }
        self.settings: WorkerSettings = load_settings(self.environment)
        self.parts: list[Part] = []
        self.workers: list[Part] = []
        self.store = valkey(folder / "redis", self.redis_port)
        self.redis = connect(self.settings.redis_url, protocol=2)

    def __enter__(self) -> Self:
        (self.folder / "log").mkdir(parents=True)
        self.start(self.store)
        wait_for_redis(self.settings.redis_url)
        self.serve()
        upgrade(self.settings.database_url)
        self.engine = make_engine(self.settings.database_url)
        with self.engine.begin() as connection:
            projects.create_project(connection, "Test", PROJECT)
        return self

    def __exit__(self, *_: object) -> None:
        for part in reversed(self.parts):
            if part.process is not None:
                kill(part.process)
        self.redis.close()
        self.engine.dispose()

    def serve(self) -> None:
        """Start the upstreams."""
        self.start(Part("sandbox", onward("sandbox", "--port", str(self.sandbox_port))))
        eventually(self._sandbox_answers)

    def start(self, part: Part) -> None:
        part.start(self.folder / "log" / f"{part.name}.log")
        if part not in self.parts:
            self.parts.append(part)

    def worker(self, *, command: Sequence[str] = (), **environment: str) -> Part:
        """Start a worker and wait until it holds shards."""
        part = self.begin(command=command, **environment)
        eventually(lambda: self.drains(part), 90, "the worker drains")
        return part

    def begin(self, *, command: Sequence[str] = (), **environment: str) -> Part:
        """Start a worker, or what `command` makes of one."""
        values = {**self.environment, **environment}
        metrics = self.folder / f"metrics-{len(self.workers)}"
        metrics.mkdir()
        values["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        part = Part(f"worker-{len(self.workers)}", list(command) or onward("worker"), values)
        self.workers.append(part)
        self.start(part)
        return part

    def log(self, name: str) -> str:
        """Return what a part has said."""
        return (self.folder / "log" / f"{name}.log").read_text(errors="replace")

    def drains(self, part: Part) -> bool:
        """Whether a child of this worker is among the owners of shards."""
        pids = {str(child.pid) for child in self.children(part)}
        redis: Any = self.redis
        owners = redis.zrange("onward:owners", 0, -1)
        return any(owner.decode().split(":")[1] in pids for owner in owners)

    def _sandbox_answers(self) -> bool:
        try:
            return httpx.get(f"{self.sandbox_url}/_sandbox/").status_code == 200
        except httpx.TransportError:
            return False

    # --- what a user does -------------------------------------------------------------------

    def integration(self, slug: str = "webhooks", project: str = PROJECT, **changes: Any) -> str:
        with changing(self.engine, self.settings) as connection:
            return integration(connection, self.settings, project, slug, f"Test {slug}", **changes)

    def settings_of(self, integration_id: str, values: dict[str, Any]) -> None:
        from worker.store.secrets import keyring_of

        with changing(self.engine, self.settings) as connection:
            integrations.save_settings(
                connection, integration_id, values, keyring_of(self.settings), actor="test"
            )

    def activate(self, integration_id: str, status: int = 1) -> None:
        with changing(self.engine, self.settings) as connection:
            integrations.set_status(connection, integration_id, status, "test")

    def state(self, integration_id: str) -> Integration:
        with reading(self.engine) as connection:
            return integrations.get(connection, integration_id)

    def publish(self, events: Iterable[Mapping[str, Any]]) -> int:
        return publish(self.redis, events, self.settings.shards)

    def fault(self, mode: str, **more: Any) -> None:
        httpx.post(
            f"{self.sandbox_url}/_sandbox/faults", json={"mode": mode, **more}
        ).raise_for_status()

    def no_faults(self) -> None:
        httpx.delete(f"{self.sandbox_url}/_sandbox/faults").raise_for_status()

    # --- what came of it --------------------------------------------------------------------

    def taken(self, slug: str = "webhooks", match: str = "") -> dict[str, int]:
        """Return how often each id arrived at an upstream, by the upstream's own count."""
        params = {"slug": slug, "match": match}
        answer = httpx.get(f"{self.sandbox_url}/_sandbox/taken", params=params).json()
        counts: dict[str, int] = answer["ids"]
        return counts

    def recorded(self, integration_id: str) -> dict[str, int]:
        """Return the outcomes the database has of an integration."""
        table = Delivery.table()
        query = (
            select(table.c.outcome, func.count())
            .where(table.c.integration_id == integration_id)
            .group_by(table.c.outcome)
        )
        with reading(self.engine) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def balance(self) -> Balance:
        return balance(self.redis, self.engine, self.settings.shards)

    def settled(self) -> bool:
        """Whether nothing waits but behind suspended pipelines, and all is recorded."""
        found = self.balance()
        if found.intake or found.journal or found.unaccounted:
            return False
        if backlog(self.redis, self.settings.shards)["journal"]:  # recorded, and not yet trimmed
            return False
        with reading(self.engine) as connection:
            states = {row.id: row.active for row in integrations.config_rows(connection)}
        waiting = [line for line in found.lines if line.waiting]
        return all(states.get(line.integration_id) == 2 for line in waiting)

    # --- what goes wrong --------------------------------------------------------------------

    def children(self, part: Part) -> list[psutil.Process]:
        """Return a worker's pool children."""
        assert part.process is not None
        try:
            found: list[psutil.Process] = psutil.Process(part.process.pid).children()
        except psutil.NoSuchProcess:
            return []
        return found

    def restart_store(self) -> None:
        self.start(self.store)
        wait_for_redis(self.settings.redis_url)


def family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def kill(process: "subprocess.Popen[Any]") -> None:
    """Kill a process and all that came of it, and wait until it is gone."""
    for one in family(process.pid):
        end(one, signal.SIGKILL)
    process.wait()


def end(process: psutil.Process, number: int) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return


__all__ = ["PROJECT", "Stack", "end", "eventually", "family", "free_port", "subprocess"]
