"""What is read when."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from redis.asyncio import Redis

from worker.reader import Reader
from worker.shard import Shard
from worker.state import GROUP, Keys, State


class Watched(Reader):
    """Asks for what lost answers hid; while it does, the second shard can be committed again."""

    def __init__(self) -> None:
        router: Any = SimpleNamespace(settings=SimpleNamespace(shards=2))
        committer: Any = SimpleNamespace(state=None, token="ours", lost=None)
        super().__init__(router, committer)
        self.shards = {0: Shard(Keys(0)), 1: Shard(Keys(1), stuck=True)}
        self.looked: list[int] = []
        self.read: list[list[int]] = []

    async def _reread(self, shard: Shard) -> None:
        self.looked.append(shard.keys.shard)
        shard.unsure = False
        self.shards[1].stuck = False

    async def _read(self, shards: Sequence[Shard]) -> None:
        self.read.append([shard.keys.shard for shard in shards])


async def test_nothing_new_is_read_before_what_a_lost_answer_hid() -> None:
    """Else later events overtake those that were read, and that nobody knows of."""
    reader = Watched()
    for _ in range(2):
        await reader.turn(reader.shards)
    assert reader.looked == [0, 1]
    assert reader.read == [[0], [0, 1]]


async def test_what_a_lost_answer_hid_comes_after_the_changes_it_hid(
    valkey: str, events_redis: Any
) -> None:
    shard, calls = Shard(Keys(1)), list[str]()

    async def hear() -> None:
        calls.append("hear")

    async def accept(arrived: Any) -> None:
        calls.extend(["accept"] * len(arrived[0][1]))

    async with Redis.from_url(valkey, protocol=2) as client:
        state = State(client)
        await state.ensure_group(shard.keys.intake)
        events_redis.xadd(shard.keys.intake, {"event": "{}"})
        events_redis.xreadgroup(GROUP, "ours", {shard.keys.intake: ">"})
        router: Any = SimpleNamespace(settings=SimpleNamespace(shards=2), hear=hear, accept=accept)
        committer: Any = SimpleNamespace(state=state, token="ours", lost=None, busy=asyncio.Lock())
        await Reader(router, committer)._reread(shard)
    assert calls == ["hear", "accept"]
