"""Break everything at random moments for minutes; then account for every event, from outside.

Real processes: Valkey, PostgreSQL, three workers. The upstream is a counter of its own
(`counter.py`), and what it counted is the truth that all is compared with. Producers publish all
the while, each event again with the same id until the store has confirmed it: from then on it is
accepted. At the end all is mended, everything drains, and a table says what held.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import psutil
from redis import Redis
from rich.console import Console
from rich.table import Table

from tests.faults.counter import Counter, Receiver
from tests.faults.havoc import PLACES, SETTLES, Havoc, Played
from tests.faults.invariants import accounts_of, no_secret_shown, nothing_left, suspensions
from tests.faults.postgres import Postgres
from tests.faults.proxy import Proxy
from tests.faults.scene import Event, Scene, until_confirmed, users_of
from tests.stack import PROJECT, eventually
from worker.intake import publish
from worker.sample import events
from worker.state import UNSHARDED, Keys, shard_of
from worker.supervisor import Part, onward

EXAMPLES = """examples:
  make soak                                        five minutes, and a new seed
  python -m tests.faults.soak --seed 7             the faults of seed 7 again
  python -m tests.faults.soak --database-away      all that while the database is mostly away
  python -m tests.faults.soak --only store,worker  no other faults than theirs
  python -m tests.faults.soak --minutes 60 --rate 200 --keep /tmp/soak
"""
WORKERS = 3
USERS = 20  # of a project: few, so that the events of one are close together
DRAIN_SECONDS = 240
LEAVE_SECONDS = 30
OPERATOR_SECONDS = 3.0  # until somebody activates what was suspended
STEP = 0.1  # s between what a producer publishes
BURST = 0.01  # of the steps
QUICKLY = {
    "ONWARD_CONCURRENCY": "1",
    "ONWARD_ATTEMPT_TIMEOUT": "5",
    "ONWARD_EVENT_ATTEMPTS": "1000",  # a fault may last: nothing is to be given up
}
PROJECTS = {  # how its events are published; who receives them
    PROJECT: ("one", ("a", "b", "amplitude")),
    "prj_batches": ("batches", ("c", "d")),
    "prj_plain": ("unsharded", ("e",)),
}
console = Console(highlight=False, soft_wrap=True)


class Soak(Scene):
    """The service, with links that can be broken between all of its parts."""

    def __init__(self, folder: Path, database: Postgres, counter: Counter, upstream: Proxy) -> None:
        environment = {**QUICKLY, "ONWARD_UPSTREAM": f"http://127.0.0.1:{upstream.port}"}
        super().__init__(folder / "service", environment, database=database.url)
        self.database = database
        self.counter = counter
        self.to_upstream = upstream
        self.to_database: Proxy
        self.links: list[Proxy] = []
        self.down: set[str] = set()  # workers that a fault keeps down
        self.late: list[str] = []  # workers that did not leave in time
        self.revived = 0
        self.began = time.monotonic()
        self._looked = self._shown = 0.0

    def serve(self) -> None:
        """Leave the sandbox out: the counter is there already."""

    def populate(self, stack: ExitStack) -> None:
        """Make projects, integrations, links and workers."""
        self.to_database = stack.enter_context(Proxy(self.database.socket))
        for project, (_, receivers) in PROJECTS.items():
            if project != PROJECT:
                self.project(project)
            for name in receivers:
                made = self.other(name) if name == "amplitude" else self.hook(name, project)
                self.receiver(made)
        for _ in range(WORKERS):
            link = stack.enter_context(Proxy(self.redis_port))
            self.links.append(link)
            through = self.database.through(self.to_database.port)
            self.begin(ONWARD_DATABASE_URL=through, **self.behind(link))
        for part in self.workers:
            eventually(lambda part=part: self.drains(part), 90, f"{part.name} drains")  # type: ignore[misc]

    def receiver(self, integration_id: str) -> Receiver:
        slug, host, _ = self.receivers[integration_id]
        return self.counter.receivers[host or f"api2.{slug}.com"]

    def taken_by(self, integration_id: str) -> "Counts[str]":
        return self.receiver(integration_id).counts()

    # --- while it runs ----------------------------------------------------------------------

    def told(self, line: str) -> None:
        """Say what happens, and where all stands."""
        published = sum(len(sent) for sent in list(self.sent.values()))
        receivers = list(self.counter.receivers.values())
        arrived, again = sum(len(r.first) for r in receivers), sum(len(r.again) for r in receivers)
        duty = sum(len(self.sent[self.receivers[one][2]]) for one in self.receivers)
        console.print(
            f"{time.monotonic() - self.began:6.1f} s  {line:<52} {published:>7,} published "
            f"{duty - arrived:>6,} to go {again:>5,} twice"
        )

    def tend(self, *, reachable: bool = True) -> None:
        """Do what a supervisor and an operator do: start what died, activate what is suspended.

        `reachable`: whether the database is there for the operator.
        """
        for part in self.workers:
            if part.name not in self.down and not part.running:
                self.told(f"{part.name} ended ({part.process and part.process.returncode})")
                self.revived += 1
                self.start(part)
        if reachable and time.monotonic() > self._looked + OPERATOR_SECONDS:
            self._looked = time.monotonic()
            for one in [one for one in self.receivers if self.state(one).active == 2]:
                self.activate(one)

    def leave(self, part: Part) -> None:
        """Wait until a worker has left; kill it, and remember, if it takes too long."""
        assert part.process is not None
        try:
            part.process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.late.append(part.name)
            self.kill_all(part)

    # --- the end ----------------------------------------------------------------------------

    def drain(self) -> bool:
        """Wait until nothing waits anywhere; return whether it came to that."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            self.tend()
            if time.monotonic() - self._shown > 5:
                self._shown = time.monotonic()
                self.told("all is mended; draining")
            if self.settled() and not any(line.waiting for line in self.balance().lines):
                return True
            time.sleep(0.5)
        return False

    def audit(self) -> tuple[int, dict[str, Any]]:
        """Return what `onward audit` says, as an operator runs it."""
        command = [*onward("audit"), "--json"]
        done = subprocess.run(command, env=self.environ(), capture_output=True, check=False)
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            return done.returncode or 1, {}


class Producer(threading.Thread):
    """Publishes the events of one project, in order, until it is stopped."""

    def __init__(self, soak: Soak, project: str, way: str, rate: float, seed: int) -> None:
        super().__init__(name=f"producer of {project}", daemon=True)
        self.soak = soak
        self.project = project
        self.rate = rate
        self.chance = Random(f"{seed}/{project}")
        self.failed: BaseException | None = None
        self.stopped = threading.Event()
        self._append = {"one": self._one, "batches": self._batch, "unsharded": self._unsharded}[way]
        self._redis = Redis(port=soak.redis_port, socket_timeout=2, socket_connect_timeout=2)

    def run(self) -> None:
        due = 0.0
        try:
            while not self.stopped.wait(STEP):
                due += self.rate * STEP * self.chance.uniform(0, 2)
                if self.chance.random() < BURST:
                    due += 3 * self.rate
                some = list(events(int(due), self.chance.randrange(2**60), self.project, USERS))
                due -= len(some)
                self.soak.sent[self.project] += some
                if some:
                    self._append(some)
        except BaseException as error:  # noqa: BLE001  it is told at the end
            self.failed = error
        finally:
            self._redis.close()

    def stop(self) -> None:
        self.stopped.set()
        self.join(60)

    def _one(self, some: list[Event]) -> None:
        intake = Keys(shard_of(self.project, self.soak.settings.shards)).intake
        for event in some:
            until_confirmed(lambda e=event: self._redis.xadd(intake, {"event": json.dumps(e)}))  # type: ignore[misc]

    def _batch(self, some: list[Event]) -> None:
        until_confirmed(lambda: publish(self._redis, some, self.soak.settings.shards))

    def _unsharded(self, some: list[Event]) -> None:
        for event in some:
            until_confirmed(lambda e=event: self._redis.xadd(UNSHARDED, {"event": json.dumps(e)}))  # type: ignore[misc]


# --- what held ----------------------------------------------------------------------------------


class Verdicts:
    """The table at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, bool]] = []
        self.details: list[str] = []

    def add(self, what: str, found: object, allowed: str, *, held: bool) -> None:
        self.rows.append(
            (what, f"{found:,}" if isinstance(found, int) else str(found), allowed, held)
        )

    def holds(self, what: str, check: Callable[[], object]) -> None:
        """Add a row for something that asserts."""
        try:
            check()
        except AssertionError as error:
            self.add(what, "no", "yes", held=False)
            self.details.append(f"{what}: {str(error)[:300]}")
        else:
            self.add(what, "yes", "yes", held=True)

    @property
    def held(self) -> bool:
        return all(held for *_, held in self.rows)

    def show(self) -> None:
        table = Table("", "found", "allowed", "", title="what held", title_justify="left")
        for what, found, allowed, held in self.rows:
            table.add_row(what, found, allowed, "held" if held else "[bold red]FAILED[/]")
        console.print(table)
        for line in self.details:
            console.print(line, markup=False)


def verdicts_of(soak: Soak, havoc: Havoc, *, drained: bool) -> Verdicts:
    """Compare what the counter saw with what was accepted, and with what the service says."""
    found = Verdicts()
    pairs = {one: (soak.receiver(one), soak.sent[soak.receivers[one][2]]) for one in soak.receivers}
    _tell(havoc.played, pairs)
    found.add("all drained once all was mended", "yes" if drained else "no", "yes", held=drained)
    _arrivals(found, soak, havoc.played, pairs)
    _audit(found, soak, pairs)
    flips = soak.flips()
    found.holds("recorded once each, and as it arrived", lambda: _recorded(soak))
    found.holds("nothing left over in the store", lambda: nothing_left(soak))
    found.holds(
        f"one audit row and notice for each of {flips} suspensions",
        lambda: suspensions(soak, flips),
    )
    found.holds("no secret in a log", lambda: no_secret_shown(soak))
    tracebacks = sum(_tracebacks(soak, part.name) for part in soak.workers)
    found.add("tracebacks in the logs", tracebacks, "0", held=not tracebacks)
    return found


Pairs = Mapping[str, tuple[Receiver, list[Event]]]


def _arrivals(found: Verdicts, soak: Soak, played: list[Played], pairs: Pairs) -> None:
    lost = strangers = again = unexplained = out_of_order = 0
    for one, (receiver, sent) in pairs.items():
        ids = {event["id"] for event in sent}
        missing = ids - receiver.first.keys()
        lost += len(missing)
        strangers += len(receiver.first.keys() - ids)
        again += len(receiver.again)
        odd = [(id_, at) for id_, at in receiver.again if not _explained(receiver, id_, played)]
        unexplained += len(odd)
        overtaken = list(overtakings(receiver, sent))
        out_of_order += len(overtaken)
        name = f"{one} ({soak.receivers[one][1] or soak.receivers[one][0]})"
        found.details += [f"{name}: lost {id_}" for id_ in sorted(missing)[:5]]
        found.details += [
            f"{name}: {id_} came at {receiver.first[id_] - soak.began:.2f} s and "
            f"again at {at - soak.began:.2f} s, without a fault"
            for id_, at in odd[:5]
        ]
        found.details += [
            f"{name}: {user}'s {late} came at {receiver.first[late] - soak.began:.2f} s, "
            f"its later {early} at {receiver.first[early] - soak.began:.2f} s"
            for user, late, early in overtaken[:5]
        ]
    found.add("lost", lost, "0", held=not lost)
    found.add("arrived, and never accepted", strangers, "0", held=not strangers)
    allowed = sum(in_hand(one, pairs) for one in played) + sum(
        r.cut.total() for r, _ in pairs.values()
    )
    found.add("duplicates", again, f"{allowed:,} in hand at faults", held=again <= allowed)
    found.add("duplicates without a fault", unexplained, "0", held=not unexplained)
    found.add("overtakings of one user at one receiver", out_of_order, "0", held=not out_of_order)


def in_hand(one: Played, pairs: Pairs) -> int:
    """Return how many deliveries a fault may bring twice: nobody could keep that they arrived.

    Those in hand when it began; where the store could not be told, those that arrived meanwhile.
    """
    if one.fault.where not in {"store", "link"}:
        return one.in_hand
    meanwhile = (
        one.began < at < one.ended + SETTLES
        for receiver, _ in pairs.values()
        for at in receiver.first.values()
    )
    return one.in_hand + sum(meanwhile)


def _explained(receiver: Receiver, id_: str, played: list[Played]) -> bool:
    """Whether a fault was there when an event arrived that came again."""
    at = receiver.first[id_]
    return id_ in receiver.cut or any(may_repeat(one, at) for one in played)


def may_repeat(one: Played, at: float) -> bool:
    """Whether what arrived at `at` (monotonic) may come again because of this fault."""
    return one.fault.repeats and one.began - 1 < at < one.ended + SETTLES


def overtakings(receiver: Receiver, sent: list[Event]) -> Iterator[tuple[str, str, str]]:
    """Yield (user, event, a later one of theirs that arrived before it)."""
    place = {id_: number for number, id_ in enumerate(receiver.first)}
    for user, theirs in users_of(sent).items():
        last, latest = -1, ""
        for id_ in theirs:
            if id_ in place and place[id_] < last:
                yield user, latest, id_
            elif id_ in place:
                last, latest = place[id_], id_


def _audit(found: Verdicts, soak: Soak, pairs: Pairs) -> None:
    code, said = soak.audit()
    found.add("`onward audit` exits with", code, "0", held=code == 0)
    lines = {line["integration"]: line for line in said.get("integrations", ())}
    differences = 0
    for one, (receiver, sent) in pairs.items():
        line = lines.get(one, {})
        same = line.get("accepted") == len(sent) and line.get("delivered") == len(receiver.first)
        differences += not same
        if not same:
            found.details.append(
                f"{one}: {len(sent)} published, {len(receiver.first)} arrived; the audit: {line}"
            )
    found.add(
        "integrations whose audit differs from the count", differences, "0", held=not differences
    )


def _recorded(soak: Soak) -> None:
    for one in soak.receivers:
        accounts_of(soak, one).verify(ordered=False, unknown=0)


def _tracebacks(soak: Soak, name: str) -> int:
    return len(re.findall(r"Traceback \(most recent call last\)", soak.log(name)))


# --- the program --------------------------------------------------------------------------------


def main() -> int:
    """Soak; return 1 if anything did not hold."""
    given = _asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    console.print(
        f"seed {given.seed}, {given.minutes:g} minutes, {given.rate:g} events a second"
        f"{', the database mostly away' if given.database_away else ''}"
    )
    with tempfile.TemporaryDirectory(prefix="onward-soak-") as name:
        try:
            found = _soak(Path(name), given)
        finally:
            if given.keep:
                _keep(Path(name), given.keep)
        left = [p.pid for p in psutil.Process().children(recursive=True)]
        found.add("processes left", len(left), "0", held=not left)
    left_files = Path(name).exists()
    found.add("files left", int(left_files), "0", held=not left_files)
    found.show()
    return 0 if found.held else 1


def _soak(folder: Path, given: argparse.Namespace) -> Verdicts:
    with ExitStack() as stack:
        console.print("starting Valkey, PostgreSQL, the counter and the workers …")
        database = stack.enter_context(Postgres(folder / "pg"))
        counter = stack.enter_context(Counter())
        upstream = stack.enter_context(Proxy(counter.port))
        soak = stack.enter_context(Soak(folder, database, counter, upstream))
        soak.populate(stack)
        producers = [
            Producer(soak, project, way, given.rate / len(PROJECTS), given.seed)
            for project, (way, _) in PROJECTS.items()
        ]
        places = set(given.only.split(",")) if given.only else PLACES
        havoc = Havoc(soak, given.seed, places, database_away=given.database_away)
        for producer in producers:
            producer.start()
        soak.began = time.monotonic()
        try:
            havoc.run(soak.began + given.minutes * 60)
        finally:
            for producer in producers:
                producer.stop()
        assert not any(p.is_alive() or p.failed for p in producers), [p.failed for p in producers]
        drained = soak.drain()
        found = verdicts_of(soak, havoc, drained=drained)
        _leave(found, soak)
    return found


def _leave(found: Verdicts, soak: Soak) -> None:
    for part in soak.workers:
        soak.kill(part, signal.SIGTERM)
    for part in soak.workers:
        soak.leave(part)
    found.add(
        f"workers that took more than {LEAVE_SECONDS} s to leave",
        len(soak.late),
        "0",
        held=not soak.late,
    )
    found.add("workers that died by themselves", soak.revived, "0", held=not soak.revived)


def _tell(played: list[Played], pairs: Pairs) -> None:
    """Print what was played, and what came twice of what was in hand then."""
    again = Counts[int]()
    for receiver, _ in pairs.values():
        for id_, _ in receiver.again:
            at = receiver.first[id_]
            blamed = [n for n, one in enumerate(played) if may_repeat(one, at)]
            again[blamed[-1] if blamed else -1] += 1
    table = Table(
        "fault", "times", "in hand", "twice", title="what was broken", title_justify="left"
    )
    for name in sorted({one.fault.name for one in played}):
        times = [(n, one) for n, one in enumerate(played) if one.fault.name == name]
        hand = sum(in_hand(one, pairs) for _, one in times)
        table.add_row(name, str(len(times)), f"{hand:,}", f"{sum(again[n] for n, _ in times):,}")
    table.add_row(
        "answers cut off",
        "",
        f"{sum(r.cut.total() for r, _ in pairs.values()):,}",
        f"{again[-1]:,}",
    )
    console.print(table)


def _keep(folder: Path, where: Path) -> None:
    where.mkdir(parents=True, exist_ok=True)
    for log in (folder / "service" / "log").glob("*.log"):
        (where / log.name).write_bytes(log.read_bytes())


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.soak",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=5, help="how long (5)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the faults (new)")
    parser.add_argument("--rate", type=float, default=60, help="events a second in all (60)")
    parser.add_argument("--database-away", action="store_true", help="mostly, for 15 to 90 s")
    parser.add_argument(
        "--only", metavar="PLACES", help=f"faults of these alone: {','.join(sorted(PLACES))}"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="put the logs there")
    given = parser.parse_args()
    if unknown := set((given.only or "").split(",")) - PLACES - {""}:
        parser.error(f"no such place: {', '.join(sorted(unknown))}")
    return given


if __name__ == "__main__":
    sys.exit(main())
