"""Upstreams in changing moods, and the adapters that send to them: for random traffic."""

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from typing import Any

from providers.kit import (
    KB,
    Context,
    Delivered,
    Event,
    Limits,
    Partial,
    Plan,
    Rejected,
    Request,
    Response,
    Retry,
    Settings,
    Split,
    Unsent,
    dump,
)
from tests.worker.looped import Upstream
from worker.transport import TransportError

SECOND = timedelta(seconds=1.01)  # more than a second goes through the lane
LIMITS = {
    "one": Limits(),
    "in_turn": Limits(concurrency=1),
    "batch": Limits(events=10, concurrency=2, linger=SECOND / 20),
    "small_batch": Limits(events=5, concurrency=1, bytes=KB),
    "steps": Limits(events=4, concurrency=2, linger=SECOND / 50),
    "lane": Limits(events=10, linger=SECOND),
    "bucket": Limits(events=8, linger=SECOND, whole_batches=True),
    "small_bucket": Limits(events=6, linger=SECOND, whole_batches=True, bytes=KB // 2),
}
AFTER = None, timedelta(0), SECOND / 20, SECOND / 3
RETRIES = [
    Retry("busy", "later", after, throttled=throttled, note=note)
    for after in AFTER
    for throttled in (False, False, True)
    for note in ("", "", "noted")
]
NO, AWAY = Rejected("no", "never"), TransportError("timeout", "no answer")
NAMES_SOME, HANGS = "names some", "hangs"
MOODS: dict[str, list[Any]] = {  # what they may answer
    NAMES_SOME: [Delivered(), Delivered(), *RETRIES[:2]],  # of those that are not named
    "rejects": [NO],
    "fails": [500, 502, 503, 408],
    "throttles": [Retry("busy", "later", after, throttled=True) for after in AFTER],
    "is gone": [410],
    "refuses": [401, 403],
    "will not": [400],
    "splits": [Split("which")],
    "is not trusted": [TransportError("tls", "a bad name", "settings")],
    "is away": [AWAY],
    HANGS: [AWAY],  # after all the time that an attempt has
}
WELL, KEEN = "is well", "is keen"  # takes all, or all and at once
ODDS = {WELL: 0.03, KEEN: 0}  # of any mood to show
DELAYS = (0, 0, 0.001, 0.005, 0.03)  # s


class Moody(Upstream):
    """Upstreams whose answers depend on mood, seed and request, and on nothing else."""

    def __init__(self, seed: int, tell: Callable[[str, str], None]) -> None:
        super().__init__()
        self.moods: dict[str, str] = {}  # by integration
        self.took: dict[str, list[tuple[str, float]]] = defaultdict(list)  # event, when (monotonic)
        self.tried: dict[tuple[str, str], float] = {}  # integration, event: first (monotonic)
        self.together: dict[tuple[str, str], set[str]] = defaultdict(set)  # shared a batch
        self.mended = False
        self._seed, self._tell = seed, tell
        self._times: Counter[tuple[str, ...]] = Counter()

    async def send(self, request: Request, **of: Any) -> Response:
        pool, said = of["pool"], json.loads(request.body)
        ids = said["ids"]
        mood, chance = self.moods.get(pool, WELL), self._chance("send", pool, *ids)
        self._tell(pool, f"gets {' '.join(ids)} and {mood}")
        if mood != KEEN:
            await asyncio.sleep(of["timeout"] if mood == HANGS else chance.choice(DELAYS))
        answer: Any = 200
        if mood == HANGS or chance.random() < ODDS.get(mood, 0.8):
            shown = mood if mood in MOODS else chance.choice([*MOODS])
            answer = chance.choice(MOODS[shown])
            if shown == NAMES_SOME:
                outcomes: list[Any] = [*RETRIES, *[NO, Delivered(), Split("which")] * 4]
                named = {
                    n: chance.choice(outcomes) for n in range(len(ids)) if chance.random() < 0.5
                }
                answer = Partial(named, answer)
        taken = [id_ for n, id_ in enumerate(ids) if said["last"] and _takes(answer, n)]
        self.took[pool] += [(id_, time.monotonic()) for id_ in taken]
        self._tell(pool, f"answers {' '.join(ids)}: {answer!r}")
        return self.answer(answer)

    def encode(
        self, events: Sequence[Event], _settings: Settings, context: Context, steps: int = 1
    ) -> Plan:
        """Return a request for all, or a few for each, which arrives with the last of them."""
        unsent = self._unsent(context.integration_id, [event.id for event in events])
        found = [n for n in range(len(events)) if n not in unsent]
        requests = [
            Request(
                "POST",
                "https://upstream.example/",
                body=dump({"ids": [events[n].id for n in group], "last": step == steps - 1}),
                events=tuple(group),
                step=step,
            )
            for group in ([[n] for n in found] if steps > 1 else [found])
            for step in range(steps if group else 0)
        ]
        return Plan(tuple(requests), unsent)

    def _unsent(self, integration: str, ids: list[str]) -> dict[int, Unsent]:
        """Return the places of what cannot be sent, or not yet; raise where one is too odd."""
        unsent: dict[int, Unsent] = {}
        for id_ in ids:
            self.tried.setdefault((integration, id_), time.monotonic())
            self.together[integration, id_].update(ids)
        for n, id_ in enumerate(ids):
            fate = Random(f"{self._seed} {id_}").random()
            if fate < 0.02:
                raise ValueError("an event that this adapter does not expect")
            if fate < 0.05 and not self.mended and self._chance(integration, id_).random() < 0.5:
                unsent[n] = NO if fate < 0.03 else Retry("attribution_pending", "", SECOND / 5)
        return unsent

    def _chance(self, *of: str) -> Random:
        self._times[of] += 1
        return Random(f"{self._seed} {of} {self._times[of]}")


def _takes(answer: Any, place: int) -> bool:
    outcome = answer.named.get(place, answer.rest) if isinstance(answer, Partial) else answer
    return outcome == 200 or isinstance(outcome, Delivered)
