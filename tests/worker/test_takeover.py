"""Suspects: an entry that was tried is cleared before the next one may kill the process."""

import asyncio
from types import SimpleNamespace
from typing import Any

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
