"""The delivery loop on a real store, with a configuration and upstreams a test changes at will."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from providers.kit import Event, Limits, Plan, Request, Response, Settings, Verdict, by_status, dump
from tests.worker.bare import bare_provider
from worker.connection import losable
from worker.directory import Integration
from worker.drain import Drain
from worker.journal import Page, pack
from worker.mask import Mask
from worker.pipeline import Pipeline
from worker.policy import policy_of
from worker.settings import WorkerSettings
from worker.state import REPLAY, Keys, State, shard_of
from worker.transport import TransportError

KEYS = Keys(0)
ID = "c9VdLs3H"
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def encode(events: Sequence[Event], _settings: Settings, _context: Any) -> Plan:
    """Return a request that names its events."""
    names = dump([event.id for event in events])
    url = "https://upstream.example/"
    return Plan((Request("POST", url, body=names, events=tuple(range(len(events)))),))


def classify(_request: Request, response: Response, _settings: Settings) -> Verdict:
    """Return what the status says."""
    return by_status(response)


class Upstream:
    """Answers with what `says` returns of the ids in a request: a status, or a verdict."""

    def __init__(self) -> None:
        self.says: Callable[[list[str]], Any] = lambda _ids: 200
        self.asked: list[list[str]] = []
        self.taken: list[str] = []
        self.gate = asyncio.Event()  # answers wait for it
        self.gate.set()
        self.verdicts: dict[int, Any] = {}

    async def send(self, request: Request, **_: Any) -> Response:
        ids = json.loads(request.body)
        self.asked.append(ids)
        await self.gate.wait()
        said = self.says(ids)
        if isinstance(said, int) and said < 300:
            self.taken += ids
        return self.answer(said)

    def answer(self, said: Any) -> Response:
        """Return the answer that says a status or a verdict; raise what is no answer."""
        if isinstance(said, TransportError):
            raise said
        if isinstance(said, int):
            return Response(status=said, body=b"")
        self.verdicts[number := len(self.verdicts)] = said
        return Response(status=200, body=str(number).encode())

    def classify(self, request: Request, response: Response, settings: Settings) -> Verdict:
        said = self.verdicts.get(int(response.body)) if response.body else None
        return said if said is not None else classify(request, response, settings)


class Configured:
    """A directory that holds what it was told."""

    def __init__(self) -> None:
        self.known: dict[str, Integration] = {}
        self.usable = True
        self.taken_at = 0.0

    @property
    def holds_from(self) -> float:
        return math.inf

    def get(self, integration_id: str) -> Integration | None:
        return self.known.get(integration_id)

    def targets(self, project: str, _platform: str) -> tuple[Integration, ...]:
        return tuple(one for one in self.known.values() if one.active and one.project_id == project)

    def ask(self) -> None:
        """Know all there is to know already."""

    def set(self, integration: Integration) -> None:
        """Let an integration be as given from now on."""
        self.known[integration.id] = integration
        self.taken_at = time.monotonic()

    def change(self, integration_id: str = ID, **to: Any) -> None:
        """Change an integration, as an operator does."""
        before = self.known[integration_id]
        now = before.updated_at + timedelta(seconds=1)
        self.set(replace(before, **{"updated_at": now, **to}))

    def delete(self, integration_id: str = ID) -> None:
        """Know an integration no more."""
        del self.known[integration_id]
        self.taken_at = time.monotonic()


@dataclass
class Worker:
    """Who drains, in the background."""

    drain: Drain
    state: State
    slice: "asyncio.Task[None]" = field(init=False)
    over: bool = False

    async def begin(self) -> None:
        """Take shards and drain them."""
        await self.drain.open()
        self.slice = asyncio.create_task(self.drain.slice(lambda: self.over))

    async def leave(self) -> None:
        """End as a process does that is told to."""
        self.over = True
        await self.slice
        await self.drain.leave()
        await self.state.redis.aclose()


@dataclass
class Loop:
    """A store, an upstream, a directory, and who drains."""

    redis: Any
    settings: WorkerSettings
    upstream: Upstream = field(default_factory=Upstream)
    directory: Configured = field(default_factory=Configured)
    drain: Drain | None = None

    def integration(self, id_: str = ID, **more: Any) -> None:
        """Make one; `limits` and `policy` are the usual, if not given, and it needs no `token`."""
        provider = replace(
            bare_provider(encode, self.upstream.classify), token=more.pop("token", None)
        )
        limits = more.pop("limits", Limits())
        policy = policy_of(self.settings.model_copy(update=more.pop("policy", {})), None)
        given = {
            "id": id_, "project_id": "p", "slug": "webhooks", "platform": "iOS", "active": 1,
            "epoch": 0, "on_probation": False, "provider": provider, "settings": Settings(),
            "limits": limits, "policy": policy, "timeout": 5.0, "fault": "", "mask": Mask(()),
            "updated_at": FIRST, "version": (),
        }  # fmt: skip
        self.directory.set(Integration(**{**given, **more}))

    async def publish(self, *ids: str, user: str = "", project: str = "p") -> None:
        """Put events into the intake."""
        intake = Keys(shard_of(project, self.settings.shards)).intake
        for id_ in ids:
            await self.redis.xadd(intake, {"event": body(id_, user, project)})

    async def replay(self, *ids: str) -> None:
        """Put events at the end of a lane, as who replays dead letters does."""
        await self.put(ID, *map(body, ids))

    async def put(self, id_: str, *bodies: str | bytes) -> None:
        """Put these at the end of an integration's lane."""
        project = self.directory.known[id_].project_id if id_ in self.directory.known else "p"
        keys = Keys(shard_of(project, self.settings.shards))
        names = [keys.lane(id_), keys.tally, keys.due, keys.grown, keys.journal]
        names.append(keys.replay(uuid4().hex))
        page = pack(Page(accepted={id_: len(bodies)}))
        await self.redis.eval(REPLAY, len(names), *names, id_, page, *bodies)

    def worker(self, **connection: Any) -> Worker:
        """Make one that does not drain yet."""
        directory: Any = self.directory
        upstream: Any = self.upstream
        state = State(losable(Redis.from_url(self.settings.redis_url, protocol=2, **connection)))
        return Worker(Drain(self.settings, directory, upstream, state, lambda: False), state)

    @asynccontextmanager
    async def draining(self) -> AsyncIterator[Drain]:
        """Drain in the background, and leave at the end."""
        worker = self.worker()
        self.drain = worker.drain
        await worker.begin()
        try:
            yield worker.drain
        finally:
            await worker.leave()

    @property
    def pipeline(self) -> Pipeline:
        """The first integration's, in who drains."""
        assert self.drain
        return self.drain.dispatcher.pipelines[ID]

    @property
    def now_ms(self) -> float:
        """The store's time."""
        assert self.drain
        return self.drain.clock.now_ms()

    async def waiting(self, id_: str = ID) -> int:
        """Return how many wait in a lane."""
        return int(await self.redis.xlen(KEYS.lane(id_)))

    async def counted(self, id_: str = ID) -> dict[str, int]:
        """Return how many were accepted, and how they ended."""
        tally = await self.redis.hgetall(KEYS.tally)
        names = {name.decode(): int(count) for name, count in tally.items()}
        return {name.partition("|")[2]: n for name, n in names.items() if name.startswith(id_)}

    async def counted_is(self, **to: int) -> bool:
        """Return whether so many have ended so."""
        return to.items() <= (await self.counted()).items()

    async def waiting_is(self, count: int) -> bool:
        """Return whether so many wait in the lane."""
        return await self.waiting() == count


def body(id_: str, user: str = "", project: str = "p") -> str:
    """Return an event."""
    event = {
        "id": id_, "project_id": project, "event_name": "trial_started", "platform": "iOS",
        "environment": "production", "time": int(time.time()),
    }  # fmt: skip
    return json.dumps(event | ({"user_id": user} if user else {}))


async def until(true: Callable[[], Any], seconds: float = 15.0) -> None:
    """Wait until something is true; it may have to be awaited."""
    async with asyncio.timeout(seconds):
        while True:
            found = true()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)
