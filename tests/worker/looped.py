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

from redis.asyncio import Redis

from providers.kit import Event, Limits, Plan, Request, Response, Settings, Verdict, by_status, dump
from tests.worker.bare import bare_provider
from worker.directory import Integration
from worker.drain import Drain
from worker.journal import Page, pack
from worker.mask import Mask
from worker.pipeline import Pipeline
from worker.policy import policy_of
from worker.settings import WorkerSettings
from worker.state import REPLAY, Keys, State

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
        if isinstance(said, int):
            if said < 300:
                self.taken += ids
            return Response(status=said, body=b"")
        self.verdicts[number := len(self.asked)] = said
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

    def targets(self, _project: str, _platform: str) -> tuple[Integration, ...]:
        return tuple(one for one in self.known.values() if one.active)

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

    async def publish(self, *ids: str, user: str = "") -> None:
        """Put events into the intake."""
        for id_ in ids:
            await self.redis.xadd(KEYS.intake, {"event": body(id_, user)})

    async def replay(self, *ids: str) -> None:
        """Put events at the end of a lane, as who replays dead letters does."""
        names = KEYS.lane(ID), KEYS.tally, KEYS.due, KEYS.grown, KEYS.journal, KEYS.replay(ids[0])
        page = pack(Page(accepted={ID: len(ids)}))
        await self.redis.eval(REPLAY, len(names), *names, ID, page, *map(body, ids))

    @asynccontextmanager
    async def draining(self) -> AsyncIterator[Drain]:
        """Drain in the background, and leave at the end."""
        directory: Any = self.directory
        upstream: Any = self.upstream
        state = State(Redis.from_url(self.settings.redis_url, protocol=2))
        drain = self.drain = Drain(self.settings, directory, upstream, state, lambda: False)
        over = False
        await drain.open()
        slice_ = asyncio.create_task(drain.slice(lambda: over))
        try:
            yield drain
        finally:
            over = True
            await slice_
            await drain.leave()
            await state.redis.aclose()

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


def body(id_: str, user: str = "") -> str:
    """Return an event."""
    event = {
        "id": id_, "project_id": "p", "event_name": "trial_started", "platform": "iOS",
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
