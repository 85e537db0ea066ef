"""Reading the intake: new entries of all our shards at once, and what a lost answer hid.

The next read is under way while the last is routed: else, where more waits, the loop stands still
for a fifth of its time.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError, ResponseError

from providers.kit.decode import InvalidEvent, decode
from worker.committer import Committer
from worker.router import Looked, Router
from worker.shard import Shard, queued
from worker.state import GROUP, UNSHARDED, shard_of

log = logging.getLogger(__name__)

READ = 256  # entries a read, of all shards together
READ_ON = READ // 2  # so many came that there are more
LEAST_FRUITFUL = 2  # no stream gives more than half of a read, lest all do
BUFFER = 1_024  # fresh deliveries in memory, 8 KB each; up to twice as many if some have little
BLOCK_MS = 500
SOON_MS = 5  # while memory is full
GATHER_SECONDS = 0.003  # from one read to the next: an event that is read by itself costs thrice
LARGEST_REREAD = 20_000
WARY_SECONDS = 120.0  # after trouble: so long a link that was away may hold what was sent into it


class Reader:
    """Reads for one token."""

    def __init__(
        self,
        router: Router,
        committer: Committer,
    ) -> None:
        self.router = router
        self.committer = committer
        self.state = committer.state
        self.token = committer.token
        self.lost = committer.lost
        self.count = router.settings.shards
        self._next = 0.0  # read, at the earliest (monotonic)
        self.reading: Sequence[Shard] = ()  # by the read in flight
        self._ahead: asyncio.Task[Looked] | None = None  # what is routed next
        self._wary_until = 0.0  # (monotonic) of what reads that nobody waits for may take
        self._fruitful = self.count  # streams that had something to read, lately

    async def turn(self, shards: Mapping[int, Shard]) -> None:
        """Route what a read brings of those of our shards that may be read."""
        try:
            if self._ahead is None:
                for shard in _unsure(shards):
                    await self._sure(shard)
                self._ahead = self._begin(shards)
            ahead, self._ahead = self._ahead, None
            looked = await ahead
            if self.router.dispatcher.safe() and not _unsure(shards):
                self._ahead = self._begin(shards)
            await self.router.route(looked)
        except RedisError as error:
            log.warning("The intake could not be read (%s); trying again", error)
            self.beware()
            for shard in shards.values():
                shard.unsure = True
            if "NOGROUP" in str(error) or "WRONGTYPE" in str(error):
                with suppress(RedisError):
                    await self._mend(shards)
            await asyncio.sleep(0.2)

    def beware(self) -> None:
        """Look for a while for what a read that comes late took from between ours.

        Whoever asked is gone or waits no more, so it is found in seconds at the latest; but what
        comes after it would have overtaken it.
        """
        self._wary_until = time.monotonic() + WARY_SECONDS

    async def finish(self, seconds: float) -> None:
        """Take in what was read ahead, if it comes within this time: nothing more is read."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await asyncio.wait([ahead], timeout=seconds)
            if ahead.cancel():
                return
            if error := ahead.exception():  # it does not keep us from handing back
                log.error("What was read last is for the shards' next owners", exc_info=error)
            else:
                await self.router.route(ahead.result())

    def _begin(self, shards: Mapping[int, Shard]) -> "asyncio.Task[Looked]":
        return asyncio.create_task(self._read(shards))

    async def _read(self, held: Mapping[int, Shard]) -> Looked:
        await asyncio.sleep(self._next - time.monotonic())
        shards = self.reading = self._with_room(held)
        names = {shard.intake: shard for shard in shards}
        streams = [*names]
        if any(shard.keys.shard == 0 for shard in shards):
            streams.append(UNSHARDED.encode())
        if not streams:
            await asyncio.sleep(GATHER_SECONDS)
            return []
        count = max(READ // self._fruitful, 1)
        block = SOON_MS if self.router.dispatcher.full else BLOCK_MS
        try:
            arrived, changed = await self.state.read(streams, self.token, count, block)
        finally:
            self.reading = ()
        self.router.changed(changed)
        counts = [len(entries) for entries in arrived.values()]
        more = count in counts  # waits in one of them; all else there waits behind it
        self._next = time.monotonic() + GATHER_SECONDS * (sum(counts) < READ_ON and not more)
        if more:
            self._fruitful = max(len(arrived), self._fruitful // 2, LEAST_FRUITFUL)
        else:  # all was read: soon there may be a burst in every stream
            self._fruitful = min(self._fruitful * 2, self.count)
        wary = time.monotonic() < self._wary_until
        if unsharded := arrived.pop(UNSHARDED.encode(), None):
            await (self.reclaim_unsharded() if wary else self._spread(unsharded))
        kept = [(names[name], entries) for name, entries in arrived.items()]
        if wary and kept:
            await self._fill_gaps(kept)
        for shard, entries in kept:
            shard.read_to = entries[-1][0]
        kept.sort(key=lambda read: len(read[1]))  # who sends much waits for who sends little
        return await self.router.look(
            [(shard, entries) for shard, entries in kept if not shard.lost]
        )

    async def _fill_gaps(self, read: Sequence[tuple[Shard, list[Any]]]) -> None:
        """Put before what was read of each shard what else is there since its last read."""
        # what ends between the question and its answer would seem new
        in_hand = [{*shard.entries, *shard.acked} for shard, _ in read]
        async with self.state.redis.pipeline(transaction=False) as pipe:
            for shard, entries in read:
                pipe.xrange(shard.intake, b"(" + shard.read_to, b"(" + entries[0][0])
            gaps = await pipe.execute()
        for (_, entries), known, gap in zip(read, in_hand, gaps, strict=True):
            entries[:0] = [entry for entry in gap if entry[0] not in known]

    def _with_room(self, held: Mapping[int, Shard]) -> list[Shard]:
        """Return the shards to read: where memory is full, those with less than their share of it.

        So what waits for slow upstreams keeps nobody waiting but in its own shard.
        """
        dispatcher = self.router.dispatcher
        if queued(held.values()) >= BUFFER:
            dispatcher.hurry()
        full = queued(held.values()) >= BUFFER
        room = dispatcher.room = BUFFER // len(held) if full else math.inf
        # not one that could be committed again just now, and has not looked yet
        return [s for s in held.values() if s.reads and not s.unsure and s.queued < room]

    async def _sure(self, shard: Shard) -> None:
        try:
            await self._reread(shard)
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self.committer.stuck(shard, error)  # the other shards go on

    async def _reread(self, shard: Shard) -> None:
        """Take what was read for us in an answer that never came."""
        redis, keys = self.state.redis, shard.keys
        async with self.committer.busy:  # no acknowledgement between the question and its answer
            pending = await redis.xpending_range(
                keys.intake, GROUP, min="-", max="+", count=LARGEST_REREAD, consumername=self.token
            )
            ids = [p["message_id"] for p in pending if not shard.knows(p["message_id"])]
        for start in range(0, len(ids), READ):
            async with redis.pipeline(transaction=False) as pipe:
                for entry_id in ids[start : start + READ]:
                    pipe.xrange(keys.intake, entry_id, entry_id)
                found = await pipe.execute()
            await self.router.hear()
            await self.router.accept([(shard, [entry for entries in found for entry in entries])])
        if keys.shard == 0:
            await self.reclaim_unsharded()
        shard.unsure = False

    async def _mend(self, shards: Mapping[int, Shard]) -> None:
        """See to what reading stumbled over: groups that are gone, a key that is no stream."""
        for shard in list(shards.values()):
            try:
                await self.state.ensure_group(shard.keys.intake)
            except ResponseError:
                await self.state.release(shard.keys, self.token, shard.committed)
                self.lost(shard)
        await self.state.ensure_group(UNSHARDED)

    async def _spread(self, entries: list[Any]) -> None:
        """Move entries of the unsharded intake on to their shards."""
        moves = [(id_, self._shard_of(fields.get(b"event", b""))) for id_, fields in entries]
        await self.state.move(UNSHARDED, moves)

    async def reclaim_unsharded(self) -> None:
        """Move on what somebody read from the unsharded intake and did not move on."""
        cursor: bytes | str = "0-0"
        while True:
            cursor, entries, *_ = await self.state.redis.xautoclaim(
                UNSHARDED, GROUP, self.token, 0, cursor, count=READ
            )
            if entries:
                await self._spread(entries)
            if cursor in (b"0-0", "0-0"):
                return

    def _shard_of(self, raw: bytes) -> int:
        try:
            return shard_of(decode(raw, int(time.time())).project_id, self.count)
        except InvalidEvent:
            return 0


def _unsure(shards: Mapping[int, Shard]) -> list[Shard]:
    return [shard for shard in shards.values() if shard.reads and shard.unsure]
