"""What is read when."""

import asyncio
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from worker.reader import BUFFER, GATHER_SECONDS, READ, Reader
from worker.router import Looked
from worker.shard import Shard
from worker.state import GROUP, Keys, State


class Watched(Reader):
    """Asks for what lost answers hid; while it does, the second shard can be committed again."""

    def __init__(self, *brings: int) -> None:
        """Let a read after the other bring so many entries of the first shard."""
        self.safe = True  # our leases surely hold
        router: Any = SimpleNamespace(
            settings=SimpleNamespace(shards=2),
            route=self._routed,
            dispatcher=SimpleNamespace(safe=lambda: self.safe, hurry=lambda: None),
        )
        committer: Any = SimpleNamespace(state=None, token="ours", lost=None)
        super().__init__(router, committer)
        self.shards = {0: Shard(Keys(0)), 1: Shard(Keys(1), stuck=True)}
        self.looked: list[int] = []
        self.read: list[list[int]] = []
        self.routed: list[int] = []
        self.ahead: list[bool] = []  # whether the next read was under way when one was routed
        self._brings = [*brings]

    async def _reread(self, shard: Shard) -> None:
        self.looked.append(shard.keys.shard)
        shard.unsure = False
        self.shards[1].stuck = False

    async def _read(self, held: Mapping[int, Shard]) -> Looked:
        self.read.append([shard.keys.shard for shard in self._with_room(held)])
        entry: Any = (b"1-0", 1, b"{}", None)
        count = self._brings.pop(0) if self._brings else 0
        return [(self.shards[0], [entry] * count, set())]

    async def _routed(self, looked: Looked) -> None:
        before = len(self.read)
        await asyncio.sleep(0)
        self.ahead.append(len(self.read) > before)
        self.routed += [len(found) for _, found, _ in looked]


async def test_nothing_new_is_read_before_what_a_lost_answer_hid() -> None:
    """Else later events overtake those that were read, and that nobody knows of."""
    reader = Watched()
    for _ in range(2):
        await reader.turn(reader.shards)
    assert reader.looked == [0, 1]
    assert reader.read[:2] == [[0], [0, 1]]


async def test_the_next_read_is_under_way_as_the_last_is_routed() -> None:
    reader = Watched(READ, 1, 0)
    reader.shards[1].stuck = False
    for _ in range(3):
        await reader.turn(reader.shards)
    assert reader.routed == [READ, 1, 0]
    assert reader.ahead == [True, True, True]


@pytest.mark.parametrize(
    ("queued", "read", "full"),
    [
        ((BUFFER - 1, 0), [0, 1], False),
        ((BUFFER, 0), [1], True),  # what waits there may wait for a slow upstream
        ((BUFFER, BUFFER // 2 - 1), [1], True),
        ((BUFFER // 2, BUFFER // 2), [], True),
    ],
)
def test_where_memory_is_full_only_shards_with_little_in_it_are_read(
    queued: tuple[int, int], read: list[int], full: bool
) -> None:
    reader = Watched()
    for shard, count in zip(reader.shards.values(), queued, strict=True):
        shard.stuck, shard.unsure, shard.queued = False, False, count
    assert [shard.keys.shard for shard in reader._with_room(reader.shards)] == read
    assert (reader.router.dispatcher.room < math.inf) is full


SHARDS = 32
SHARE = READ // SHARDS  # of each stream


@pytest.mark.parametrize(
    ("counts", "waits"),
    [
        ([], True),
        ([1, SHARE - 1], True),
        ([1, SHARE], False),  # that stream has more: one project sends more than all others
        ([SHARE - 1] * SHARDS, False),
    ],
)
async def test_the_next_read_waits_for_more_to_come_unless_a_stream_has_more(
    counts: list[int], *, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever shares a stream with a busy project was read later and later."""
    shards = {number: Shard(Keys(number), unsure=False) for number in range(SHARDS)}
    arrived: dict[bytes, Any] = {
        shards[n].intake: [(b"1-0", {})] * count for n, count in enumerate(counts)
    }

    async def read(*_: Any) -> Any:
        return arrived, []

    async def look(_: Any) -> Looked:
        return []

    router: Any = SimpleNamespace(
        settings=SimpleNamespace(shards=SHARDS),
        dispatcher=SimpleNamespace(full=False),
        look=look,
        changed=lambda _: None,
    )
    committer: Any = SimpleNamespace(state=SimpleNamespace(read=read), token="ours", lost=None)
    monkeypatch.setattr("worker.reader.time", SimpleNamespace(monotonic=lambda: 100.0))
    reader = Reader(router, committer)
    reader._next = 100.0
    await reader._read(shards)
    assert reader._next == 100.0 + (GATHER_SECONDS if waits else 0)


async def test_nothing_is_read_ahead_while_our_leases_may_have_lapsed() -> None:
    """Else it would be taken from whoever has them now."""
    reader = Watched(READ, READ)
    reader.shards[1].stuck = reader.safe = False
    await reader.turn(reader.shards)
    assert (reader.routed, reader.ahead) == ([READ], [False])


async def test_a_shard_that_comes_while_more_waits_is_looked_through_at_once() -> None:
    """Else what its last owner left waited until all that waits is read."""
    reader = Watched(READ, READ, READ)
    await reader.turn(reader.shards)
    assert (reader.looked, reader.read) == ([0], [[0]]), "the second can be committed now"
    await reader.turn(reader.shards)
    assert (reader.looked, reader.read) == ([0, 1], [[0], [0, 1], [0, 1]])


async def test_what_was_read_ahead_is_taken_in_at_the_end() -> None:
    reader = Watched(READ, READ, 1)
    reader.shards[1].stuck = False
    await reader.turn(reader.shards)
    await reader.finish(math.inf)
    assert reader.routed == [READ, READ]
    assert len(reader.read) == 2, "and nothing more is read"
    await reader.finish(math.inf)


async def test_a_read_that_fails_at_the_end_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """And whoever leaves goes on to hand back."""
    reader = Watched()

    async def read(held: Mapping[int, Shard]) -> Looked:
        raise ValueError("of our own")

    reader._read = read  # type: ignore[method-assign]
    reader._ahead = reader._begin(reader.shards)
    await reader.finish(math.inf)
    assert not reader.routed
    assert "ValueError: of our own" in caplog.text


async def test_a_read_that_hangs_at_the_end_is_given_up() -> None:
    reader, hangs = Watched(), asyncio.Event()

    async def read(held: Mapping[int, Shard]) -> Looked:
        hangs.set()
        await asyncio.Event().wait()
        return []

    reader._read = read  # type: ignore[method-assign]
    reader._ahead = reader._begin(reader.shards)
    await hangs.wait()
    await reader.finish(0)
    assert not reader.routed


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
