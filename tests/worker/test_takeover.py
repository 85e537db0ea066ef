"""Taking over: suspects are cleared one by one, and entries that are ours do not wait."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as LostConnection

from worker.shard import Shard
from worker.state import Keys
from worker.takeover import Takeover

ENTRY = (b"1-0", {b"event": b"{}"})


class Marks:
    """The hash of marks, and what was asked of it."""

    def __init__(self) -> None:
        self.kept: dict[bytes, int] = {}

    async def hset(self, _name: str, *, mapping: dict[bytes, int]) -> None:
        self.kept |= mapping

    async def hdel(self, _name: str, *ids: bytes) -> None:
        for entry_id in ids:
            self.kept.pop(entry_id, None)


class Trial:
    """An entry that is tried for the second time, and is done at once."""

    def __init__(self) -> None:
        self.shard, self.marks = Shard(Keys(0), opening=True), Marks()
        self._accepted = asyncio.Event()
        dispatcher = SimpleNamespace(directory=None, clock=None)
        router = SimpleNamespace(accept=self._accept, dispatcher=dispatcher)
        state = SimpleNamespace(redis=self.marks)
        reader: Any = SimpleNamespace(router=router, state=state, token="")
        self._takeover = Takeover(reader, lambda: False)

    async def _accept(self, _arrived: Any) -> None:
        self.shard.ack(ENTRY[0])
        self._accepted.set()

    async def begin(self) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._takeover._try(self.shard, [ENTRY], 1))
        await self._accepted.wait()
        return task


async def test_the_mark_stays_until_what_came_of_it_is_committed() -> None:
    trial = Trial()
    task = await trial.begin()
    await asyncio.wait({task}, timeout=0.05)
    assert trial.marks.kept == {ENTRY[0]: 2}
    assert not task.done()
    trial.shard.acked.clear()
    await task
    assert trial.marks.kept == {}


async def test_who_loses_the_shard_leaves_the_mark_as_it_was() -> None:
    trial = Trial()
    task = await trial.begin()
    trial.shard.lost = True
    await task
    assert trial.marks.kept == {ENTRY[0]: 1}


class Claimed:
    """A store that gives another's entry away, and is gone."""

    async def xpending_range(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return [{"message_id": b"1-1"}]

    async def xclaim(self, *_: Any, **__: Any) -> list[Any]:
        raise LostConnection("gone")


async def pending(shards: list[Keys]) -> list[tuple[bytes, set[str]]]:
    return [(b"1-0", {"another"}) for _ in shards]


async def test_who_does_not_know_what_was_claimed_looks_again() -> None:
    state = SimpleNamespace(redis=Claimed(), pending=pending)
    router = SimpleNamespace(dispatcher=SimpleNamespace(directory=None, clock=None))
    reader: Any = SimpleNamespace(router=router, state=state, token="ours")
    shard = Shard(Keys(1), unsure=False)
    with pytest.raises(LostConnection):
        await Takeover(cast("Any", reader), lambda: False).adopt([shard])
    assert shard.unsure


class Directory:
    """A configuration that is read when somebody asks: then it has an integration more."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.holds_from = 0.0
        self.get = self.known.get

    def ask(self) -> None:
        self.known["young"] = "an integration"
        self.holds_from = float("inf")


async def test_what_was_made_a_moment_ago_was_not_deleted() -> None:
    router = SimpleNamespace(dispatcher=SimpleNamespace(directory=Directory(), clock=None))
    reader: Any = SimpleNamespace(router=router, state=None, token="ours")
    takeover = Takeover(reader, lambda: False)
    assert await takeover._find("young", time.monotonic())
    assert await takeover._find("deleted", time.monotonic()) is None


class Lanes:
    """A store with one lane, of `young`."""

    async def hgetall(self, _name: str) -> dict[bytes, bytes]:
        return {}

    async def zrange(self, *_: Any) -> list[bytes]:
        return [b"young"]

    async def hkeys(self, _name: str) -> list[bytes]:
        return []

    async def xrange(self, *_: Any, **__: Any) -> list[Any]:
        return []


def loading(directory: Any) -> tuple[Takeover, list[Shard]]:
    """Return who takes over a shard with that lane, and the shards for which pipelines are made."""
    made: list[Shard] = []
    dispatcher = SimpleNamespace(
        directory=directory, clock=None, pipeline_of=lambda shard, _: made.append(shard)
    )
    router = SimpleNamespace(dispatcher=dispatcher)

    async def grown(_: Any) -> list[dict[bytes, int]]:
        return [{}]

    state = SimpleNamespace(redis=Lanes(), grown=grown)
    reader: Any = SimpleNamespace(router=router, state=state, token="ours")
    return Takeover(reader, lambda: False), made


async def test_who_loses_the_shard_meanwhile_makes_no_pipeline() -> None:
    """It may be ours again by then, and would have another in its place."""
    shard = Shard(Keys(1), opening=True)

    class Losing(Directory):
        def ask(self) -> None:
            super().ask()
            shard.lost = True

    takeover, made = loading(Losing())
    await takeover._load(shard)
    assert made == []


async def test_while_the_database_is_away_nobody_is_taken_for_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.takeover.CHANGED_SECONDS", 0)
    directory = SimpleNamespace(holds_from=0.0, usable=True, get=lambda _: None, ask=lambda: None)
    takeover, made = loading(directory)
    shard = Shard(Keys(1), opening=True)
    await takeover._load(shard)
    assert (made, shard.commands) == ([], [])


def test_a_shard_begins_with_a_look() -> None:
    """An answer to our last lease's reading may have come after its entries were taken over."""
    assert Shard(Keys(1)).unsure
