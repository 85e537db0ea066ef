"""Entries that are ours without our knowing: they must not wait for the next owner."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as LostConnection

from worker.shard import Shard
from worker.state import Keys
from worker.takeover import Takeover


class Claimed:
    """A store that gives another's entry away, and is gone."""

    async def xpending_range(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return [{"message_id": b"1-1"}]

    async def xclaim(self, *_: Any) -> list[Any]:
        raise LostConnection("gone")


async def pending(shards: list[Keys]) -> list[dict[str, int]]:
    return [{"another": 1} for _ in shards]


async def test_who_does_not_know_what_was_claimed_looks_again() -> None:
    state = SimpleNamespace(redis=Claimed(), pending=pending)
    router = SimpleNamespace(dispatcher=SimpleNamespace(directory=None, clock=None))
    reader: Any = SimpleNamespace(router=router, state=state, token="ours")
    shard = Shard(Keys(1), unsure=False)
    with pytest.raises(LostConnection):
        await Takeover(cast("Any", reader), lambda: False).adopt([shard])
    assert shard.unsure


def test_a_shard_begins_with_a_look() -> None:
    """An answer to our last lease's reading may have come after its entries were taken over."""
    assert Shard(Keys(1)).unsure
