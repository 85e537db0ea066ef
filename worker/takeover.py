"""Taking over a shard: its lanes, and what others read of it and did not finish."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from redis.exceptions import RedisError

from worker import lane
from worker.directory import Integration
from worker.journal import Row
from worker.reader import READ, Reader
from worker.router import CHANGED_SECONDS, set_apart
from worker.shard import Shard, read_progress
from worker.state import GROUP, UNSHARDED

log = logging.getLogger(__name__)

SOLO_DELIVERIES = 2  # an entry delivered more often is handled alone: it may kill the process
SOLO_DEATHS = 2
SUSPECTS = 64  # of those, so many together at first: all but a few are innocent
SUSPECT_SECONDS = 1.0  # what kills its process does so at once; a slow upstream is not waited for
LOOK_SECONDS = 0.01


class Takeover:
    """Takes over shards for one token."""

    def __init__(self, reader: Reader, stopping: Callable[[], bool]) -> None:
        self.reader = reader
        self.router = reader.router
        self.dispatcher = reader.router.dispatcher
        self.directory = self.dispatcher.directory
        self.clock = self.dispatcher.clock
        self.state = reader.state
        self.token = reader.token
        self.stopping = stopping

    async def run(self, shard: Shard) -> None:
        """Take in the shard's lanes, then what its last owner left unfinished."""
        await self._load(shard)
        await self._reclaim(shard)

    async def adopt(self, shards: Sequence[Shard]) -> None:
        """Take what others read of our shards after they lost them, and will not come back to.

        And what we read without knowing: a link that was away may bring a read when nobody waits
        for its answer any more, after we looked for what that would have hidden.
        """
        found = await self.state.pending([shard.keys for shard in shards])
        for shard, (first, readers) in zip(shards, found, strict=True):
            if self.token in readers and not shard.knows(first):  # or it is on its way to us
                shard.unsure = True
            for other in readers - {self.token}:
                await self._adopt(shard, other)
            if shard.keys.shard == 0:
                await self.reader.reclaim_unsharded()

    async def _adopt(self, shard: Shard, other: str) -> None:
        """Make ours what another has read: the reader takes in hand what it does not have yet."""
        redis, intake = self.state.redis, shard.keys.intake
        while shard.reads and (
            found := await redis.xpending_range(
                intake, GROUP, min="-", max="+", count=READ, consumername=other
            )
        ):
            ids = [p["message_id"] for p in found]
            try:
                await redis.xclaim(intake, GROUP, self.token, 0, ids, justid=True)
            finally:
                shard.unsure = True

    async def notice(self, shards: Sequence[Shard]) -> None:
        """Wake the lanes that grew from outside: replayed dead letters.

        The next commit notes what was noticed: an answer that is lost is asked for again.
        """
        began = time.monotonic()
        asked = [shard for shard in shards if not shard.noticed]  # no answer has it twice
        grown = await self.state.grown([shard.keys for shard in asked])
        for shard, counts in zip(asked, grown, strict=True):
            for raw, count in counts.items():
                integration = await self._find(raw.decode(), began)
                if shard.lost:
                    break
                if raw in shard.noticed:  # meanwhile, with the lane's entries
                    continue
                pipeline = self.dispatcher.pipelines.get(raw.decode())
                if integration is not None:
                    pipeline = self.dispatcher.pipeline_of(shard, integration)
                elif pipeline is None or pipeline.shard is not shard:
                    await self._orphan(shard, raw.decode(), began)
                    continue
                self.dispatcher.grew(pipeline, count)  # one that was deleted lets go what waits

    def _ours(self, shard: Shard) -> bool:
        """Whether to go on taking over: neither the lease is lost, nor must we leave."""
        return not (shard.lost or self.stopping())

    async def _load(self, shard: Shard) -> None:
        """Read what is kept of a shard's unfinished entries and lanes."""
        keys, redis, began = shard.keys, self.state.redis, time.monotonic()
        shard.progress = read_progress(await redis.hgetall(keys.progress))
        due, wanted = await redis.zrange(keys.due, 0, -1), await redis.hkeys(keys.wanted)
        (grown,) = await self.state.grown([keys])  # some may have left before that was noted
        for raw in {*due, *wanted, *grown}:
            integration = await self._find(raw.decode(), began)
            if shard.lost:  # and perhaps ours again, with pipelines of its own
                return
            if integration is None:
                await self._orphan(shard, raw.decode(), began)
                continue
            pipeline = self.dispatcher.pipeline_of(shard, integration)
            await lane.load(redis, pipeline)
        if keys.shard == 0:
            await self.state.ensure_group(UNSHARDED)
            await self.reader.reclaim_unsharded()

    async def _find(self, integration_id: str, began: float) -> Integration | None:
        """Return an integration; None where what was read since `began` (monotonic) has none.

        One that was made a moment ago would seem deleted. None too while the database is away.
        """
        while (found := self.directory.get(integration_id)) is None:
            if self.directory.holds_from > began or time.monotonic() > began + CHANGED_SECONDS:
                break
            self.directory.ask()
            await asyncio.sleep(LOOK_SECONDS)
        return found

    async def _orphan(self, shard: Shard, integration_id: str, began: float) -> None:
        """A lane without an integration: if it was deleted, what waits there has expired.

        Where nothing was read since `began`, nobody says so: it stays for who is next to look.
        """
        if self.directory.holds_from <= began:
            return
        keys, cursor = shard.keys, b"-"
        name = keys.lane(integration_id)
        while entries := await self.state.redis.xrange(name, min=cursor, count=1000):
            cursor = b"(" + entries[-1][0]
            self._expire(shard, integration_id, entries)
        shard.commands.append(("HDEL", keys.tries(integration_id), "batch"))
        shard.commands.append(("EMPTIED", name, keys.due, integration_id))
        shard.commands.append(("HDEL", keys.wanted, integration_id))
        shard.notice(integration_id.encode())

    def _expire(self, shard: Shard, integration_id: str, entries: list[Any]) -> None:
        keys, now = shard.keys, int(self.clock.now_ms())
        for lane_id, fields in entries:
            event = lane.event_of(fields[b"e"], int(fields[b"t"]))
            shard.page.rows.append(
                Row(
                    integration_id, event.project_id, event.id, event.name, "expired", "deleted",
                    "the integration was deleted", None, 0, int(fields[b"t"]), now,
                    lane_id.decode(),
                )
            )  # fmt: skip
            shard.tallies[integration_id, "expired"] += 1
            shard.commands.append(("XDEL", keys.lane(integration_id), lane_id))
            shard.commands.append(("HDEL", keys.tries(integration_id), lane_id))

    async def _reclaim(self, shard: Shard) -> None:
        """Make the pending entries of dead owners ours, oldest first."""
        redis, keys = self.state.redis, shard.keys
        cursor: bytes | str = "0-0"
        while self._ours(shard):
            reply = await redis.xautoclaim(keys.intake, GROUP, self.token, 0, cursor, count=500)
            cursor, entries = reply[0], reply[1]
            if entries:
                await self.router.hear()
                ids = [entry_id for entry_id, _ in entries]
                shard.read_to = ids[-1]
                pending = await redis.xpending_range(
                    keys.intake,
                    GROUP,
                    min=ids[0],
                    max=ids[-1],
                    count=len(ids),
                    consumername=self.token,
                )
                often = {p["message_id"]: p["times_delivered"] for p in pending}
                judged = [(often.get(e[0], 1) > SOLO_DELIVERIES, e) for e in entries]
                for suspect, some in groupby(judged, key=itemgetter(0)):
                    found = [entry for _, entry in some]
                    if suspect:
                        await self._suspects(shard, found)
                    else:
                        await self.router.accept([(shard, found)])
            if cursor in (b"0-0", "0-0"):
                break
        if not self._ours(shard):
            return
        marked = await redis.hkeys(keys.solo)
        if gone := [entry_id for entry_id in marked if not shard.knows(entry_id)]:
            shard.commands.append(("HDEL", keys.solo, *gone))  # finished just before a death
        await self.state.forget_readers(keys, self.token)

    async def _suspects(self, shard: Shard, entries: list[Any]) -> None:
        """Handle entries whose owners died more than once: one of them may be to blame.

        They go in small groups, marked while they are tried. Who was marked when a process died
        goes alone from then on, and is set apart once it did that alone.
        """
        marks = await self.state.redis.hmget(shard.keys.solo, [entry_id for entry_id, _ in entries])
        group: list[Any] = []
        for entry, mark in zip(entries, marks, strict=True):
            if not self._ours(shard):
                return
            if mark is None:
                group.append(entry)
            if group and (mark is not None or len(group) == SUSPECTS):
                await self._try(shard, group, 0)
                group = []
            if mark is not None and int(mark) > SOLO_DEATHS:
                self._poison(shard, *entry)
            elif mark is not None:
                await self._try(shard, [entry], int(mark))
        if group and self._ours(shard):
            await self._try(shard, group, 0)

    async def _try(self, shard: Shard, entries: list[Any], deaths: int) -> None:
        """Accept entries under a mark, for as long as it may take them to kill the process.

        Who lives to see another end of it, a lost lease or a store that is away, has no reason to
        suspect them: the mark says `deaths` again. They are done with once that is committed and
        the mark is gone, or they would be blamed for what the next one does.
        """
        ids = [entry_id for entry_id, _ in entries]
        try:
            await self._mark(shard, ids, deaths + 1)
            await self.router.accept([(shard, entries)])
            until = time.monotonic() + SUSPECT_SECONDS
            while time.monotonic() < until and self._ours(shard):
                if not any(shard.knows(entry_id) for entry_id in ids):
                    break
                await asyncio.sleep(LOOK_SECONDS)
            await self._mark(shard, ids, deaths if shard.lost else 0)
        except RedisError:
            await self._mark(shard, ids, deaths)
            raise

    async def _mark(self, shard: Shard, ids: Sequence[bytes], deaths: int) -> None:
        """Mark entries with a number, not by counting on: the client may send it twice."""
        if deaths:
            await self.state.redis.hset(shard.keys.solo, mapping=dict.fromkeys(ids, deaths))
        else:
            await self.state.redis.hdel(shard.keys.solo, *ids)

    def _poison(self, shard: Shard, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        log.error("Entry %s of shard %d kills its process; set apart", entry_id, shard.keys.shard)
        message = f"its process died {SOLO_DEATHS} times while it was alone in flight"
        set_apart(shard, entry_id, fields.get(b"event", b""), "poison", message)
        shard.progress.pop(entry_id, None)
        shard.commands += [
            ("HDEL", shard.keys.solo, entry_id),
            ("HDEL", shard.keys.progress, entry_id),
        ]
