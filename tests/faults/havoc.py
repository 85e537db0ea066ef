"""Faults for the soak, each a context: from its beginning until it is mended.

`havoc` plays them at random moments from a seed, now and then two at once, of different places.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING

from tests.stack import end, family

if TYPE_CHECKING:
    from tests.faults.soak import Soak
    from worker.supervisor import Part

Play = Callable[["Soak", Random], AbstractContextManager[None]]
READY_SECONDS = 15.0  # until a worker is up: Celery ends if all its children die before
CALM = (0.5, 3.0)  # s between faults
OVERLAP = 0.3  # of the faults have a second one beside them
SETTLES = 2.0  # s after a store or a link is back, until all have noticed
PLACES = {"worker", "store", "link", "database", "upstream"}
AWAY, THERE = (15.0, 90.0), (4.0, 10.0)  # s of a database that is mostly away


@dataclass(frozen=True)
class Fault:
    """`where` it happens; `seconds` it lasts; `repeats`: whether it may bring anything twice."""

    name: str
    where: str
    seconds: tuple[float, float]
    play: Play
    repeats: bool = True


@dataclass
class Played:
    """One fault that was played. `in_hand`: how many deliveries nobody could know the end of."""

    fault: Fault
    began: float
    ended: float = 0.0
    in_hand: int = 0


FAULTS: list[Fault] = []


def fault(
    where: str, name: str, low: float, high: float, *, repeats: bool = True
) -> Callable[[Callable[["Soak", Random], Iterator[None]]], Play]:
    """Add a generator that breaks something, yields, and mends it."""

    def add(generator: Callable[["Soak", Random], Iterator[None]]) -> Play:
        play = contextmanager(generator)
        FAULTS.append(Fault(name, where, (low, high), play, repeats))
        return play

    return add


# --- workers ------------------------------------------------------------------------------------


@contextmanager
def _down(s: "Soak", chance: Random) -> Iterator["Part"]:
    """Give a worker that nobody starts again meanwhile."""
    part = chance.choice(s.workers)
    s.down.add(part.name)
    try:
        yield part
    finally:
        s.leave(part)
        s.down.discard(part.name)
        s.start(part)


@fault("worker", "a worker's children: kill -9", 0, 1)
def _children_killed(s: "Soak", chance: Random) -> Iterator[None]:
    part = chance.choice(s.workers)
    if time.monotonic() - part.started > READY_SECONDS:
        for child in s.children(part):
            end(child, SIGKILL)
    yield


@fault("worker", "a worker's parent: kill -9", 0, 3)
def _parent_killed(s: "Soak", chance: Random) -> Iterator[None]:
    with _down(s, chance) as part:
        s.kill(part)
        yield


@fault("worker", "a worker: kill -9", 0, 3)
def _worker_killed(s: "Soak", chance: Random) -> Iterator[None]:
    with _down(s, chance) as part:
        s.kill_all(part)
        yield


@fault("worker", "a worker: kill -9, away until its leases lapse", 11, 15)
def _worker_away(s: "Soak", chance: Random) -> Iterator[None]:
    with _down(s, chance) as part:
        s.kill_all(part)
        yield


@fault("worker", "a worker: TERM", 0, 5, repeats=False)
def _worker_told(s: "Soak", chance: Random) -> Iterator[None]:
    with _down(s, chance) as part:
        s.kill(part, SIGTERM)
        yield


@fault("worker", "a worker: TERM, then kill -9 while it leaves", 0, 3)
def _worker_cut_short(s: "Soak", chance: Random) -> Iterator[None]:
    with _down(s, chance) as part:
        s.kill(part, SIGTERM)
        time.sleep(chance.uniform(0, 2))
        s.kill_all(part)
        yield


@fault("worker", "a worker: frozen", 1, 16)
def _worker_frozen(s: "Soak", chance: Random) -> Iterator[None]:
    part = chance.choice(s.workers)
    with s.frozen(family(part.process.pid) if part.process else ()):
        yield


@fault("worker", "rolling restart of all workers", 0, 0, repeats=False)
def _rolling(s: "Soak", _chance: Random) -> Iterator[None]:
    for part in s.workers:
        s.down.add(part.name)
        s.kill(part, SIGTERM)
        s.leave(part)
        s.start(part)
        s.down.discard(part.name)
        time.sleep(3)
    yield


# --- the store ----------------------------------------------------------------------------------


def _ended(s: "Soak", number: int) -> None:
    assert s.store.process is not None
    s.store.process.send_signal(number)
    s.store.process.wait()


@fault("store", "store: kill -9", 0, 3)
def _store_killed(s: "Soak", _chance: Random) -> Iterator[None]:
    _ended(s, SIGKILL)
    yield
    s.restart_store()


@fault("store", "store: kill -9, away until leases lapse", 8, 14)
def _store_away(s: "Soak", _chance: Random) -> Iterator[None]:
    _ended(s, SIGKILL)
    yield
    s.restart_store()


@fault("store", "store: kill -9 three times in a row", 0, 1)
def _store_flaps(s: "Soak", chance: Random) -> Iterator[None]:
    for _ in range(3):
        _ended(s, SIGKILL)
        s.restart_store()
        time.sleep(chance.uniform(0, 1))
    yield


@fault("store", "store: TERM", 0, 3)
def _store_stopped(s: "Soak", _chance: Random) -> Iterator[None]:
    _ended(s, SIGTERM)
    yield
    s.restart_store()


@fault("store", "store: frozen", 1, 15)
def _store_frozen(s: "Soak", _chance: Random) -> Iterator[None]:
    assert s.store.process is not None
    with s.frozen(family(s.store.process.pid)):
        yield


@fault("store", "store: every connection killed", 0, 1)
def _connections_killed(s: "Soak", chance: Random) -> Iterator[None]:
    for _ in range(3):
        s.redis.client_kill_filter(_type="normal", skipme=True)
        time.sleep(chance.uniform(0, 0.5))
    yield


# --- links between workers and the store --------------------------------------------------------


@fault("link", "link to the store: half-open", 1, 16)
def _half_open(s: "Soak", chance: Random) -> Iterator[None]:
    link = chance.choice(s.links)
    link.silent = True
    yield
    link.silent = False


@fault("link", "link to the store: reset and refused", 0, 12)
def _refused(s: "Soak", chance: Random) -> Iterator[None]:
    with chance.choice(s.links).refusing():
        yield


@fault("link", "link to the store: answers cut midway", 0, 2)
def _answers_cut(s: "Soak", chance: Random) -> Iterator[None]:
    link = chance.choice(s.links)
    for _ in range(5):
        link.cut_after = chance.randrange(5_000)
        time.sleep(0.2)
    yield
    link.cut_after = None


@fault("link", "link to the store: slow", 1, 6)
def _slow_link(s: "Soak", chance: Random) -> Iterator[None]:
    link = chance.choice(s.links)
    link.delay = chance.uniform(0.02, 0.5)
    yield
    link.delay = 0.0


# --- the database -------------------------------------------------------------------------------


@fault("database", "database: kill -9", 0, 8, repeats=False)
def _database_killed(s: "Soak", _chance: Random) -> Iterator[None]:
    s.database.kill()
    yield
    s.database.start()


@fault("database", "database: stopped", 0, 8, repeats=False)
def _database_stopped(s: "Soak", _chance: Random) -> Iterator[None]:
    s.database.stop()
    yield
    s.database.start()


@fault("database", "database: frozen", 1, 15, repeats=False)
def _database_frozen(s: "Soak", _chance: Random) -> Iterator[None]:
    s.database.freeze()
    yield
    s.database.thaw()


@fault("database", "database: link cut", 1, 8, repeats=False)
def _database_cut(s: "Soak", _chance: Random) -> Iterator[None]:
    with s.to_database.refusing():
        yield


@fault("database", "database: link half-open", 1, 15, repeats=False)
def _database_silent(s: "Soak", _chance: Random) -> Iterator[None]:
    s.to_database.silent = True
    yield
    s.to_database.silent = False


# --- upstreams ----------------------------------------------------------------------------------


def _answers(mode: str, s: "Soak", chance: Random) -> Iterator[None]:
    names = list(s.counter.receivers)
    some = chance.sample(names, chance.randint(1, len(names)))
    for name in some:
        s.counter.receivers[name].mode = mode
    yield
    for name in some:
        s.counter.receivers[name].mode = "take"


for told, mode_, longest in (
    ("upstreams: answer 500", "fail", 6),
    ("upstreams: answer 429", "throttle", 5),
    ("upstreams: refuse the credentials", "refuse", 8),
    ("upstreams: hang", "hang", 8),
    ("upstreams: reset", "reset", 5),
    ("upstreams: take, then reset", "cut", 3),
    ("upstreams: slow", "slow", 10),
):
    fault("upstream", told, 0.5, longest, repeats=False)(partial(_answers, mode_))


@fault("upstream", "upstreams: connections refused", 0.5, 6)
def _nobody_listens(s: "Soak", _chance: Random) -> Iterator[None]:
    with s.to_upstream.refusing():
        yield


# --- all of it ----------------------------------------------------------------------------------


class Havoc:
    """Plays faults; remembers which, when, and how many deliveries were in hand.

    With `database_away` the database is there only for some seconds now and then.
    """

    def __init__(
        self, soak: "Soak", seed: int, places: set[str] = PLACES, *, database_away: bool
    ) -> None:
        self.soak = soak
        self.places = places - ({"database"} if database_away else set())
        self.chance = Random(seed)
        self.played: list[Played] = []
        self._running: list[tuple[Played, ExitStack, float]] = []
        self._away = database_away
        self._next = {"": 0.0, "database": 0.0}  # when a fault may begin (monotonic)

    def run(self, until: float) -> None:
        """Play until then (monotonic); mend everything at the end."""
        self._next["database"] = float("inf") if not self._away else time.monotonic() + 5
        try:
            while time.monotonic() < until:
                self._mend(time.monotonic())
                self._begin(time.monotonic())
                self.soak.tend(
                    reachable=all(one.fault.where != "database" for one, *_ in self._running)
                )
                time.sleep(0.1)
        finally:
            self._mend(float("inf"))

    def _begin(self, now: float) -> None:
        if now >= self._next["database"]:
            self._play(self._pick({"database"}), self.chance.uniform(*AWAY))
            self._next["database"] = float("inf")
        if now < self._next[""]:
            return
        self._next[""] = float("inf")
        first = self._pick(self.places)
        self._play(first, self.chance.uniform(*first.seconds))
        others = self.places - {first.where}
        if others and self.chance.random() < OVERLAP:
            second = self._pick(others)
            self._play(second, self.chance.uniform(*second.seconds))

    def _pick(self, places: set[str]) -> Fault:
        return self.chance.choice([one for one in FAULTS if one.where in places])

    def _play(self, fault: Fault, seconds: float) -> None:
        played = Played(fault, time.monotonic())
        self.played.append(played)
        self.soak.told(f"{fault.name}, {seconds:.1f} s")
        if fault.repeats:
            played.in_hand = self.soak.counter.in_hand()
        stack = ExitStack()
        stack.enter_context(fault.play(self.soak, self.chance))
        self._running.append((played, stack, time.monotonic() + seconds))

    def _mend(self, now: float) -> None:
        for one in [one for one in self._running if one[2] <= now]:
            self._running.remove(one)
            played, stack, _ = one
            stack.close()
            played.ended = time.monotonic()
            if self._away and played.fault.where == "database":
                self._next["database"] = played.ended + self.chance.uniform(*THERE)
        beside = [p for p, *_ in self._running if not (self._away and p.fault.where == "database")]
        if not beside and self._next[""] == float("inf"):
            self._next[""] = time.monotonic() + self.chance.uniform(*CALM)
