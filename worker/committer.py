"""Commits: what shards have settled goes to Redis, each shard all or nothing."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from worker import metrics
from worker.dispatch import Dispatcher
from worker.shard import Shard
from worker.state import LeaseLost, State

log = logging.getLogger(__name__)

STUCK_SECONDS = 0.5


class Committer:
    """Writes commits, and says to whom a shard's lease is lost."""

    def __init__(
        self, state: State, dispatcher: Dispatcher, token: str, lost: Callable[[Shard], None]
    ) -> None:
        self.state = state
        self.dispatcher = dispatcher
        self.token = token
        self.lost = lost
        self.busy = asyncio.Lock()  # held while a commit is on its way
        self.progressed = time.monotonic()

    async def flush(self, shards: Sequence[Shard]) -> None:
        """Commit what shards have settled, all in one round trip.

        On trouble it stays, and is sent again unchanged; until then nothing new of that shard is
        started, for its outcomes could not be kept. A shard that has nothing to commit goes on:
        it was reading that failed.
        """
        for shard in shards:
            if shard.stuck and not shard.uncommitted:
                self._go_on(shard)
        if not any(shard.uncommitted for shard in shards):
            return
        metrics.publish()
        async with self.busy:
            due = [shard for shard in shards if shard.uncommitted and not shard.lost]
            for shard in due:
                shard.unwritten = shard.unwritten or shard.build()
            for shard, reply in zip(due, await self._commit(due), strict=True):
                if isinstance(reply, LeaseLost):
                    self.lost(shard)
                elif isinstance(reply, RedisError):
                    self.stuck(shard, reply)
                else:
                    self._written(shard, reply)

    async def _commit(self, shards: Sequence[Shard]) -> list[list[bytes] | RedisError | LeaseLost]:
        written = [(shard, shard.unwritten) for shard in shards if shard.unwritten]
        commits = [(s.keys, s.committed, w.number, w.commit) for s, w in written if w.commit]
        try:
            given = await self.state.commit(self.token, commits) if commits else []
        except RedisError as error:
            given = [error] * len(commits)
        replies = iter(given)
        return [next(replies) if w.commit else [] for _, w in written]

    def stuck(self, shard: Shard, error: RedisError) -> None:
        """Start nothing new of a shard, and commit it again after a while."""
        if not shard.stuck:
            log.error("Shard %d cannot go on: %s", shard.keys.shard, error)
        shard.stuck, shard.retry_at = True, time.monotonic() + STUCK_SECONDS

    def _written(self, shard: Shard, added: list[bytes]) -> None:
        written, shard.unwritten = shard.unwritten, None
        assert written is not None  # noqa: S101  it was just committed
        shard.acked.difference_update(written.commit.acks)
        if written.commit:
            shard.committed = written.number
        self.progressed = time.monotonic()
        for delivery, lane_id in zip(written.adding, added, strict=False):
            delivery.lane_id = lane_id
            if delivery in delivery.pipeline.placing:
                delivery.pipeline.placing.discard(delivery)
                delivery.pipeline.live.add(lane_id)
        for callback in dict.fromkeys(written.after):
            callback()
        for pipeline in dict.fromkeys(delivery.pipeline for delivery in written.adding):
            self.dispatcher.lane_written(pipeline)
        if shard.stuck:
            self._go_on(shard)

    def _go_on(self, shard: Shard) -> None:
        shard.stuck = False
        self.dispatcher.resume()
