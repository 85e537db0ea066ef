"""What is read when."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from worker.reader import Reader
from worker.shard import Shard
from worker.state import Keys


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
