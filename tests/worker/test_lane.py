"""Reading a lane while it changes: what was put there or let go meanwhile is read again."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.test_pipeline import pipeline_of
from worker.lane import read
from worker.pipeline import Pipeline
from worker.state import Keys

NOW = 1_767_350_500_000


class Changing:
    """A Redis whose lane has one entry, and that lets something happen while it is asked."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile

    async def xrange(self, *_: Any, **__: Any) -> list[Any]:
        event = (
            b'{"id":"e","project_id":"p","event_name":"trial_started","platform":"iOS",'
            b'"environment":"production","time":1767350415}'
        )
        return [(b"1-0", {b"e": event, b"t": b"1767350431000"})]

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
