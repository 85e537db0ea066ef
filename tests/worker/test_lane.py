"""Reading a lane while it changes: what was put there or let go meanwhile is read again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.worker.test_pipeline import pipeline_of
from worker.lane import event_of, head, read
from worker.pipeline import Delivery, Pipeline
from worker.state import Keys

NOW = 1_767_350_500_000
EVENT = (
    b'{"id":"e","project_id":"p","event_name":"trial_started","platform":"iOS",'
    b'"environment":"production","time":1767350415}'
)


class Changing:
    """A Redis whose lane has one entry, and that lets something happen while it is asked."""

    def __init__(
        self, meanwhile: Callable[[], None], before: Callable[[], None] = lambda: None
    ) -> None:
        self.meanwhile = meanwhile
        self.before = before

    @asynccontextmanager
    async def pipeline(self, **_: Any) -> AsyncIterator["Changing"]:
        yield self

    def hget(self, *_: Any) -> None:
        """Nothing has grown."""

    def xrange(self, *_: Any, **how: Any) -> asyncio.Future[list[Any]]:
        self.before()
        there = [(b"1-0", {b"e": EVENT, b"t": b"1767350431000"})] if how["min"] == b"-" else []
        self.found = asyncio.get_running_loop().create_future()
        self.found.set_result(there)
        return self.found

    async def execute(self) -> list[Any]:
        return [None, await self.found]

    async def hmget(self, *_: Any) -> list[None]:
        self.meanwhile()
        return [None]


def waiting() -> Pipeline:
    pipeline = pipeline_of(limits=_Limits, id="i")
    pipeline.shard = _Shard  # type: ignore[assignment]
    return pipeline


class _Limits:
    events = 1


class _Shard:
    keys = Keys(0)
    noticed: frozenset[bytes] = frozenset()


@pytest.mark.parametrize(
    ("change", "exhausted", "cursor"),
    [
        (lambda _pipeline: None, True, b"(1-0"),
        (Pipeline.grow, False, b"(1-0"),
        (Pipeline.rewind, False, b"-"),
    ],
    ids=["nothing", "grown", "rewound"],
)
async def test_a_change_during_a_reading_is_not_lost(
    change: Callable[[Pipeline], None], exhausted: bool, cursor: bytes
) -> None:
    pipeline = waiting()
    await read(Changing(lambda: change(pipeline)), pipeline, NOW)
    assert (pipeline.exhausted, pipeline.cursor) == (exhausted, cursor)
    assert [delivery.lane_id for delivery in pipeline.buffer] == [b"1-0"]


def leaves(pipeline: Pipeline) -> None:
    """Let the entry leave the lane; the answer that still has it comes later than that."""
    pipeline.live.add(b"1-0")
    pipeline.deleted(b"1-0")


def is_placed(pipeline: Pipeline) -> None:
    """Put a delivery there that is in flight, and whose place is not yet known."""
    pipeline.placing.add(Delivery(event_of(EVENT, NOW), EVENT, pipeline, NOW))


@pytest.mark.parametrize("change", [leaves, is_placed])
async def test_what_was_delivered_meanwhile_or_is_in_flight_is_not_read(
    change: Callable[[Pipeline], None],
) -> None:
    pipeline = waiting()
    store = Changing(lambda: None, lambda: change(pipeline))
    await read(store, pipeline, NOW)
    assert not pipeline.buffer
    assert [delivery async for page in head(store, pipeline, 1) for delivery in page] == []
    assert pipeline.live == set(), "forgotten when the look is over"


async def test_what_expires_during_a_reading_is_not_sent() -> None:
    pipeline = waiting()
    await read(Changing(lambda: pipeline.live.add(b"1-0")), pipeline, NOW)
    assert not pipeline.buffer
