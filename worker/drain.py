"""The loop under leases: whose shard is whose, what is done how often, and leaving.

One event loop per process. It is kept from slice to slice, so that nobody waits while they change.
When it leaves, what is still in flight gets a short grace and is handed back through the lane.
"""

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError, ResponseError

from worker import metrics
from worker.away import AWAY
from worker.clock import StoreClock
from worker.committer import Committer
from worker.directory import USABLE_SECONDS, Directory
from worker.dispatch import Dispatcher
from worker.reader import Reader
from worker.router import Router
from worker.settings import WorkerSettings
from worker.shard import Shard, queued
from worker.state import GROUP, LEASE_MS, Keys, State
from worker.takeover import Takeover
from worker.transport import Transport

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.02
BREATH_SECONDS = 0.005
BUSY = 0.7  # of a core: where others want it, too, it may not get more
FLUSH_SECONDS = 0.05
REST_SECONDS = 0.09  # where nothing is under way: each look costs a quarter of a millisecond
TIMERS_SECONDS = 0.1
RENEW_SECONDS = 2.0
BALANCE_SECONDS = 0.5
LEASE_SAFE_SECONDS = 5.0  # not renewed for so long: start nothing new
TAKE_MS = 3_000  # by the store's clock: then the question is too old
GRACE_SECONDS = 5.0
EXPIRE_SECONDS = 10.0
ADOPT_SECONDS = 5.0
NOTICE_SECONDS = 2.0


class Drain:
    """Drains its share of the free shards, a slice at a time, from `open` to `leave`."""

    def __init__(
        self,
        settings: WorkerSettings,
        directory: Directory,
        transport: Transport,
        state: State,
        stopping: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.state = state
        self.clock = StoreClock()
        self.dispatcher = Dispatcher(settings, directory, transport, state, self.clock)
        self.dispatcher.safe = self._safe
        self.stopping = stopping
        self.token = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.shards: dict[int, Shard] = {}
        self.owners: list[str] = []
        self.renewed = time.monotonic()
        self.takes_at = 0.0  # free shards, at the earliest (monotonic)
        self.beat = time.monotonic()  # for the watchdog
        self._used = self.beat, time.process_time()  # when our CPU was looked at, and what it was
        self.leaving = False
        self._openings: set[asyncio.Task[None]] = set()
        self._jobs: list[asyncio.Task[None]] = []
        self._taking = asyncio.Lock()  # held while shards are taken
        self._directory_seen = 0.0
        self.router = Router(self.dispatcher)
        self.committer = Committer(state, self.dispatcher, self.token, self._lost)
        self.reader = Reader(self.router, self.committer)
        self.takeover = Takeover(self.reader, stopping)

    async def open(self) -> None:
        """Take the store's time, and begin what is done again and again."""
        await self._renew()
        # what was told of before is known, or nothing is routed
        self.state.hear_from(self.clock.now_ms() - 1000 * USABLE_SECONDS)
        self._jobs = [
            asyncio.create_task(self._every(seconds, work))
            for seconds, work in (
                (0, self._flush),
                (TIMERS_SECONDS, self._fire),
                (BALANCE_SECONDS, self._balance),
                (NOTICE_SECONDS, partial(self._tend, self.takeover.notice)),
                (RENEW_SECONDS, self._renew),
                (ADOPT_SECONDS, partial(self._tend, self.takeover.adopt)),
                (EXPIRE_SECONDS, self.dispatcher.expire),
            )
        ]

    async def slice(self, over: Callable[[], bool]) -> None:
        """Read and deliver until `over()` or `stopping()`; raise RuntimeError if a job has ended.

        What is in flight stays so: the next slice is to follow at once, or `leave`.
        """
        while not (over() or self.stopping() or self.leaving):
            if any(job.done() for job in self._jobs):
                raise RuntimeError("what is done again and again in the delivery loop has ended")
            if self._may_read():
                await self.reader.turn(self.shards)
            else:
                await asyncio.sleep(IDLE_SECONDS)

    async def _every(self, seconds: float, work: Callable[[], Any]) -> None:
        while True:
            try:
                await work()
            except RedisError as error:
                log.warning("Redis did not answer (%s); trying again", error)
                await asyncio.sleep(0.5)
            except Exception:
                log.exception("A step of the delivery loop failed; it is tried again")
                await asyncio.sleep(0.5)
            await asyncio.sleep(seconds)

    async def _tend(self, work: Callable[[Sequence[Shard]], Awaitable[None]]) -> None:
        """Do `work` on the shards we read, while we may start anything new."""
        shards = [shard for shard in self.shards.values() if shard.reads]
        if shards and self.directory.usable and self._safe():
            await work(shards)

    async def _fire(self) -> None:
        self.beat = time.monotonic()
        if self.directory.taken_at != self._directory_seen:
            self._directory_seen = self.directory.taken_at
            self.dispatcher.reconcile()
        self.router.route_late()
        self.dispatcher.fire()
        busy = self._busy()
        if self.dispatcher.full and not busy:
            self.dispatcher.relieve()

    async def _renew(self) -> None:
        """Keep our leases, and take the store's time."""
        held = list(self.shards.values())
        kept, (now_ms, self.owners) = await asyncio.gather(
            self.state.renew([(shard.keys, shard.committed) for shard in held], self.token),
            self.state.owners(self.token, 0 if self.leaving else LEASE_MS),
        )
        for shard, ours in zip(held, kept, strict=True):
            if not ours and not shard.lost:  # given back meanwhile
                self._lost(shard)
        self.clock.set(now_ms)
        if not self._safe():  # the store was away: others keep their shards as we do ours
            self.takes_at = time.monotonic() + LEASE_MS / 1000
        self.renewed = time.monotonic()
        metrics.LEASES.set(len(self.shards))
        if self.dispatcher.paused:
            self.dispatcher.resume()

    @property
    def progressed(self) -> float:
        """When something was last read or written (monotonic)."""
        return max(self.router.progressed, self.committer.progressed)

    def _safe(self) -> bool:
        """Whether our leases surely hold: else nothing new is started."""
        return time.monotonic() - self.renewed < LEASE_SAFE_SECONDS

    async def _balance(self) -> None:
        """Take free shards up to our share, give surplus ones back."""
        if self.leaving:
            return
        share = math.ceil(self.settings.shards / max(len(self.owners), 1))
        if self._takes():
            async with self._taking:
                await self._take_up_to(share)
        for shard in list(self.shards.values())[share:]:
            shard.leave(time.monotonic())
        for shard in [s for s in self.shards.values() if s.leaving]:
            if shard not in self.reader.reading:  # what that brings must not come too late
                await self._give_back(shard)

    async def _take_up_to(self, share: int) -> None:
        for number in self._candidates():
            if self.leaving or len(self.shards) >= share:
                return
            shard = Shard(Keys(number), opening=True)
            if taken := await self._take(shard):
                if taken == "lapsed":  # its last owner may be there yet
                    self.reader.beware()
                self.shards[number] = shard
                self._openings.add(opening := asyncio.create_task(self._open(shard)))
                opening.add_done_callback(self._openings.discard)

    def _takes(self) -> bool:
        """Whether free shards are free: after the store was away their owners come first."""
        return self._safe() and time.monotonic() >= self.takes_at

    async def _take(self, shard: Shard) -> str:
        keys, until = shard.keys, self.clock.now_ms() + TAKE_MS
        try:
            return await self.state.take(keys, self.token, until, shard.committed)
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            log.error("Shard %d cannot be drained: %s", keys.shard, error)  # noqa: TRY400  no bug
            return ""

    def _candidates(self) -> list[int]:
        start = hash(self.token) % self.settings.shards
        numbers = [(start + step) % self.settings.shards for step in range(self.settings.shards)]
        return [number for number in numbers if number not in self.shards]

    def _lost(self, shard: Shard) -> None:
        if shard.lost:
            return
        log.warning(
            "Lost the lease of shard %d; what was in flight may be sent again", shard.keys.shard
        )
        shard.lost = True
        self.shards.pop(shard.keys.shard, None)
        self.dispatcher.forget(shard)

    async def _open(self, shard: Shard) -> None:
        """Take over a shard: its lanes, what its last owner left unfinished, then new entries."""
        try:
            await self.takeover.run(shard)
        except Exception as error:
            known = isinstance(error, RedisError)
            log.warning(
                "Shard %d could not be taken over (%s); giving it back",
                shard.keys.shard, error, exc_info=not known,
            )  # fmt: skip
            with suppress(RedisError):
                await self.state.release(shard.keys, self.token, shard.committed)
            self._lost(shard)  # not before: it could be taken again, and that lease be released
            return
        shard.opening = False
        for pipeline in list(self.dispatcher.pipelines.values()):
            if pipeline.shard is shard:
                self.dispatcher.pump(pipeline)

    def _may_read(self) -> bool:
        """Whether we may start anything new: leases fresh, configuration known."""
        return bool(self.shards) and self.directory.usable and self._safe()

    def _busy(self) -> bool:
        """Whether it was this process that was too slow since the last look, and not upstreams."""
        (began, used), self._used = self._used, (time.monotonic(), time.process_time())
        return self._used[1] - used > BUSY * (self._used[0] - began)

    @property
    def queued(self) -> int:
        """Fresh deliveries in memory that are not in flight."""
        return queued(self.shards.values())

    async def _flush(self) -> None:
        """Commit what has settled; then rest, until there is much again."""
        now, dispatcher = time.monotonic(), self.dispatcher
        dispatcher.landed = 0
        dispatcher.commit_due.clear()
        await self.committer.flush(
            [shard for shard in self.shards.values() if shard.retry_at <= now]
        )
        idle = not (dispatcher.requests or any(shard.dirty for shard in self.shards.values()))
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS + REST_SECONDS * idle):
                await dispatcher.commit_due.wait()

    async def leave(self) -> None:
        """Stop reading, let what is in flight land, hand the rest back, release the leases."""
        try:
            await self._hand_back()
        finally:
            while self._jobs:  # the client of Redis loses a cancellation now and then
                for job in self._jobs:
                    job.cancel()
                self._jobs = list((await asyncio.wait(self._jobs, timeout=1))[1])
            metrics.publish()

    async def _hand_back(self) -> None:
        self.leaving = self.dispatcher.leaving = True
        with suppress(RedisError):
            await self.state.owners(self.token, 0)
        deadline = time.monotonic() + GRACE_SECONDS
        await self.reader.finish(GRACE_SECONDS)
        while self._unfinished() and time.monotonic() < deadline:  # noqa: ASYNC110  rare
            await asyncio.sleep(BREATH_SECONDS)
        await self.dispatcher.cut_off()
        for shard in list(self.shards.values()):
            try:
                await self._give_back(shard, wait=False)
            except AWAY as error:
                log.warning("Shards could not be given back (%s); their leases will lapse", error)
                return
            except RedisError as error:
                why = "Shard %d could not be given back (%s); its lease will lapse"
                log.warning(why, shard.keys.shard, error)

    def _unfinished(self) -> bool:
        """Whether anything is in flight, a lease that is to be given back among it."""
        return self.dispatcher.requests > 0 or self._taking.locked()

    async def _give_back(self, shard: Shard, *, wait: bool = True) -> None:
        """Release a shard; its unsent entries are as if unread.

        What is in flight gets a short grace, then goes to its lane: a hanging upstream must not
        keep the shard's other projects waiting.
        """
        if wait and self.dispatcher.flying(shard):
            if time.monotonic() < shard.leaving_since + GRACE_SECONDS:
                return
            self.dispatcher.into_lanes(shard)
        while shard.uncommitted and not shard.lost:
            await self.committer.flush([shard])
            if shard.stuck:
                raise RedisError("what came of its last deliveries could not be written")
        if shard.lost:
            return
        unread = list(shard.entries)
        keys, redis = shard.keys, self.state.redis
        for start in range(0, len(unread), 500):
            await redis.xclaim(
                keys.intake,
                GROUP,
                self.token,
                0,
                unread[start : start + 500],
                retrycount=0,
                justid=True,
            )
        shard.lost = True
        self.shards.pop(keys.shard, None)
        self.dispatcher.forget(shard)
        await self.state.release(keys, self.token, shard.committed)
