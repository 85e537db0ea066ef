"""What is stuck goes on."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from redis.exceptions import ResponseError

from worker.committer import Committer
from worker.shard import Shard
from worker.state import Keys


async def test_a_shard_that_could_not_be_read_goes_on_though_it_has_nothing_to_commit() -> None:
    state: Any = SimpleNamespace()
    dispatcher = Mock()
    committer, shard = Committer(state, dispatcher, "ours", Mock()), Shard(Keys(0))
    committer.stuck(shard, ResponseError("WRONGTYPE"))
    assert not shard.reads
    await committer.flush([shard])
    assert shard.reads
    dispatcher.resume.assert_called_once_with()


async def test_a_shard_that_could_not_be_committed_waits_until_it_is() -> None:
    answers: list[Any] = [[ResponseError("WRONGTYPE")], [[]]]

    async def commit(*_: Any) -> Any:
        return answers.pop(0)

    state: Any = SimpleNamespace(commit=commit)
    committer, shard = Committer(state, Mock(), "ours", Mock()), Shard(Keys(0))
    shard.ack(b"1-1")
    await committer.flush([shard])
    assert not shard.reads
    await committer.flush([shard])
    assert shard.reads
