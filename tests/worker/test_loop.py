"""The delivery loop on a real store: what waits in a lane goes on, whatever happened meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection

from providers.kit import Delivered, Limits, Partial, Retry, TokenSource
from tests.worker.looped import ID, KEYS, Loop, body, until
from worker import lane
from worker.pipeline import Pipeline
from worker.settings import load_settings
from worker.shard import Shard
from worker.state import GROUP, UNSHARDED

pytestmark = pytest.mark.processes
BUCKET = Limits(events=100, linger=timedelta(seconds=1.01), whole_batches=True)
SMALL = Limits(events=10, concurrency=1)
WAIT_LONG = Partial({0: Retry("busy", "later", timedelta(hours=1))}, Delivered())


@pytest.fixture
async def loop(valkey: str) -> AsyncIterator[Loop]:
    redis: Any = Redis.from_url(valkey, protocol=2)
    await redis.flushall()
    environment = {"ONWARD_REDIS_URL": valkey, "ONWARD_SHARDS": "1", "ONWARD_RETRY_SCHEDULE": "0.1"}
    yield Loop(redis, load_settings(environment))
    await redis.aclose()


async def test_what_is_left_of_a_batch_of_too_many_bytes_is_sent_without_waiting_for_more(
    loop: Loop,
) -> None:
    loop.integration(limits=msgspec.structs.replace(BUCKET, bytes=300))
    await loop.publish("a", "b", "c", "d", "e")
    async with loop.draining():
        await until(lambda: loop.upstream.taken == ["a", "b", "c", "d", "e"])
        await until(lambda: loop.waiting_is(0))


async def test_a_batch_that_was_let_go_keeps_no_later_one(loop: Loop) -> None:
    loop.integration(limits=BUCKET)
    loop.upstream.says = lambda _ids: 500
    await loop.publish("a", "b")
    async with loop.draining():
        await until(lambda: loop.upstream.asked == [["a", "b"]] * 2)
        loop.directory.change(active=0)
        await until(lambda: loop.counted_is(skipped=2))
        loop.upstream.says = lambda _ids: 200
        loop.directory.change(active=1)
        await loop.publish("c")
        await until(lambda: loop.upstream.taken == ["c"])


async def test_of_a_batch_that_is_let_go_no_mark_is_left(loop: Loop) -> None:
    loop.integration(limits=BUCKET)
    loop.upstream.says = lambda _ids: 500
    await loop.publish("a", "b")
    async with loop.draining():
        await until(lambda: loop.upstream.asked)
        await until(lambda: loop.pipeline.batch and not loop.pipeline.closed)
        loop.directory.change(active=0)
        await until(lambda: loop.counted_is(skipped=2))
        assert loop.pipeline.batch is None
    assert not await loop.redis.hgetall(KEYS.tries(ID))


async def test_of_a_batch_whose_integration_is_deleted_while_nobody_drains_no_mark_is_left(
    loop: Loop,
) -> None:
    loop.integration(limits=BUCKET)
    loop.upstream.says = lambda _ids: 500
    await loop.publish("a", "b")
    async with loop.draining():
        await until(lambda: loop.upstream.asked)
        await until(lambda: not loop.pipeline.closed)
    assert await loop.redis.hexists(KEYS.tries(ID), "batch")
    loop.directory.delete()
    async with loop.draining():
        await until(lambda: loop.counted_is(expired=2))
    assert not await loop.redis.hgetall(KEYS.tries(ID))


async def test_nobody_waits_for_an_event_that_was_let_go(loop: Loop) -> None:
    loop.integration(limits=SMALL)
    loop.upstream.says = lambda _ids: 500  # so that it is in the lane before it waits for itself
    await loop.publish("a", user="u")
    async with loop.draining():
        await until(lambda: loop.upstream.asked)
        loop.upstream.says = lambda ids: 200 if ids == ["c"] else WAIT_LONG
        await until(lambda: loop.pipeline.waiting)
        loop.directory.change(active=0)
        await until(lambda: loop.counted_is(skipped=1))
        loop.directory.change(active=1)
        await loop.publish("b", user="v")
        await until(lambda: loop.waiting_is(1))
    async with loop.draining():  # as the next process does
        await loop.publish("c", user="u")
        await until(lambda: loop.upstream.taken == ["c"])


async def test_events_that_wait_for_themselves_stay_before_their_users_later_ones(
    loop: Loop,
) -> None:
    loop.integration(limits=SMALL)
    soon = Retry("busy", "later", timedelta(seconds=0.3))
    loop.upstream.says = lambda ids: Partial(dict.fromkeys(range(len(ids)), soon), Delivered())
    loop.upstream.gate.clear()
    await loop.publish("a", "b", user="u")
    async with loop.draining():
        await until(lambda: loop.upstream.asked == [["a", "b"]])
        await loop.publish("c", "d", user="u")
        await until(lambda: loop.pipeline.size == 2)
        loop.upstream.gate.set()
        await until(lambda: loop.waiting_is(4))
        loop.upstream.says = lambda _ids: 200
        await until(lambda: len(loop.upstream.taken) == 4)
        assert loop.upstream.taken == ["a", "b", "c", "d"]


async def test_an_event_that_waits_longer_than_its_users_later_ones_goes_all_the_same(
    loop: Loop,
) -> None:
    loop.integration(limits=SMALL)

    def says(_ids: list[str]) -> Any:
        waits = {1: (0.2, 0.4), 2: (1.0,)}.get(len(loop.upstream.asked), ())
        named = {n: Retry("busy", "later", timedelta(seconds=s)) for n, s in enumerate(waits)}
        return Partial(named, Delivered()) if named else 200

    loop.upstream.says = says
    await loop.publish("a", "b", user="u")
    async with loop.draining():
        await until(lambda: loop.upstream.taken == ["a", "b"])
        assert loop.upstream.asked[:2] == [["a", "b"], ["a"]]


async def test_a_pipeline_whose_events_wait_for_themselves_takes_no_share_of_the_window(
    loop: Loop,
) -> None:
    loop.integration(limits=SMALL)
    loop.upstream.says = lambda _ids: WAIT_LONG
    await loop.publish("a")
    async with loop.draining() as drain:
        await until(lambda: drain.dispatcher.pipelines and loop.pipeline.waiting)
        await until(lambda: loop.pipeline.exhausted and not loop.pipeline.reading)
        assert not drain.dispatcher._active


async def test_what_lands_after_its_shard_was_lost_takes_no_share_of_the_window(
    loop: Loop,
) -> None:
    loop.integration()
    upstream = loop.upstream
    upstream.says = lambda ids: 500 if ids == ["b"] and len(upstream.asked) == 2 else 200
    first, second = asyncio.Event(), asyncio.Event()
    async with loop.draining() as drain:
        upstream.gate = first
        await loop.publish("a")
        await until(lambda: upstream.asked == [["a"]])
        upstream.gate = second
        await loop.publish("b")
        await until(lambda: upstream.asked == [["a"], ["b"]])
        (shard,) = drain.shards.values()
        pipeline = loop.pipeline
        drain._lost(shard)
        first.set()
        await until(lambda: pipeline.requests == 1)
        second.set()
        await until(lambda: pipeline.requests == 0)
        await until(lambda: upstream.taken.count("b") == 1)
        await until(lambda: not drain.dispatcher._active)


async def test_what_is_replayed_is_sent_though_the_word_of_it_got_lost(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.integration()
    lost: list[Any] = []
    async with loop.draining() as drain:
        asks = drain.state.grown

        async def grown(shards: Any) -> Any:
            answer = await asks(shards)
            if any(answer) and not lost:
                lost.append(answer)
                raise LostConnection("the answer never came")
            return answer

        monkeypatch.setattr(drain.state, "grown", grown)
        await loop.replay("a")
        await until(lambda: loop.upstream.taken == ["a"])
        await until(lambda: loop.waiting_is(0))
        await loop.replay("b")
        await until(lambda: loop.upstream.taken == ["a", "b"])
        await until(lambda: loop.waiting_is(0))
        assert lost
        assert loop.pipeline.lane_len == 0


async def test_what_is_replayed_is_sent_though_a_look_at_its_lane_comes_late(loop: Loop) -> None:
    """As of who took the shard over before us, or of our own that was repeated."""
    loop.integration()
    async with loop.draining() as drain:
        await until(lambda: any(shard.reads for shard in drain.shards.values()))
        await loop.replay("a")
        other = Pipeline(loop.directory.known[ID], Shard(KEYS))
        await lane.load(loop.redis, other)
        assert other.lane_len == 1
        await until(lambda: loop.upstream.taken == ["a"])


async def test_what_grew_before_a_shard_is_taken_over_counts_once(loop: Loop) -> None:
    loop.integration()
    await loop.replay("a", "b")
    async with loop.draining():
        await until(lambda: loop.upstream.taken == ["a", "b"])
        await until(lambda: loop.waiting_is(0))
        await loop.replay("c")
        await until(lambda: loop.upstream.taken == ["a", "b", "c"])
        await until(lambda: loop.waiting_is(0))
        assert loop.pipeline.lane_len == 0


async def test_what_was_put_into_a_deleted_ones_lane_is_let_go_once(loop: Loop) -> None:
    async with loop.draining() as drain:
        await until(lambda: any(shard.reads for shard in drain.shards.values()))
        async with drain.committer.busy:
            await loop.replay("a")
            for _ in range(2):
                await drain.takeover.notice([*drain.shards.values()])
        await until(lambda: loop.waiting_is(0))
        assert await loop.counted() == {"accepted": 1, "expired": 1}
        assert await loop.redis.hgetall(KEYS.grown) == {}


async def test_what_is_replayed_just_before_its_integration_is_deleted_ends_once(
    loop: Loop,
) -> None:
    loop.integration(active=2)
    await loop.publish("a", "b")
    async with loop.draining() as drain:
        await until(lambda: loop.waiting_is(2))
        async with drain.committer.busy:
            await loop.replay("c")
            del loop.directory.known[ID]
            drain.dispatcher.reconcile()
            await until(lambda: loop.pipeline.lane_len == 0)
            await drain.takeover.notice([*drain.shards.values()])
        await until(lambda: loop.waiting_is(0))
        assert await loop.counted() == {"accepted": 3, "expired": 3}


async def test_what_is_just_being_deleted_keeps_nothing_from_being_let_go(loop: Loop) -> None:
    loop.integration(active=2)
    await loop.publish("a", "b")
    async with loop.draining() as drain:
        await until(lambda: loop.waiting_is(2))
        async with drain.committer.busy:
            loop.directory.change(active=0)
            await until(lambda: loop.pipeline.lane_len == 0 and not loop.pipeline.dropping)
            await loop.replay("c", "d")
            await drain.takeover.notice([*drain.shards.values()])
            await until(lambda: loop.pipeline.lane_len == 0 and not loop.pipeline.dropping)
        await until(lambda: loop.waiting_is(0))
        assert await loop.counted() == {"accepted": 4, "skipped": 4}


async def test_what_comes_while_others_are_let_go_is_let_go_too(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.integration(active=2)
    await loop.publish("a", "b")
    async with loop.draining() as drain:
        await until(lambda: loop.waiting_is(2))
        reads, goes_on = drain.state.redis.xrange, asyncio.Event()

        async def xrange(*of: Any, **more: Any) -> Any:
            await goes_on.wait()
            return await reads(*of, **more)

        monkeypatch.setattr(drain.state.redis, "xrange", xrange)
        loop.directory.change(active=0)
        await until(lambda: loop.pipeline.dropping)
        await loop.replay("c")
        await drain.takeover.notice([*drain.shards.values()])
        goes_on.set()
        await until(lambda: loop.waiting_is(0))
        assert await loop.counted() == {"accepted": 3, "skipped": 3}


async def test_what_was_replayed_before_others_does_not_stay_in_their_place(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.integration(active=2)
    async with loop.draining() as drain:

        async def nothing(shards: Any) -> Any:
            return [{} for _ in shards]

        with monkeypatch.context() as patched:
            patched.setattr(drain.state, "grown", nothing)
            await until(lambda: drain.shards)
            await loop.replay("r")
            await loop.publish("a")
            await until(lambda: loop.waiting_is(2))
            await until(lambda: loop.pipeline.lane_len == 1)
            loop.directory.change(active=0)
            await until(lambda: loop.waiting_is(0))
        await until(lambda: loop.pipeline.lane_len == 0)
        assert await loop.counted() == {"accepted": 2, "skipped": 2}


async def test_a_lane_that_is_emptied_before_it_is_known_to_have_grown_is_due_no_more(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.integration(limits=Limits(events=10, linger=timedelta(seconds=1.01)))
    async with loop.draining() as drain:

        async def nothing(shards: Any) -> Any:
            return [{} for _ in shards]

        with monkeypatch.context() as patched:
            patched.setattr(drain.state, "grown", nothing)
            await loop.publish("a")
            await until(lambda: loop.waiting_is(1))
            await loop.replay("r")
            await until(lambda: loop.waiting_is(0))
        await until(lambda: loop.pipeline.lane_len == 0)
    assert loop.upstream.taken == ["a", "r"]
    assert not await loop.redis.exists(KEYS.due)


async def test_what_waits_is_sent_in_order_though_replayed_events_were_before_their_word_came(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.integration(limits=SMALL)
    upstream = loop.upstream
    upstream.says = lambda _ids: 500
    async with loop.draining() as drain:

        async def nothing(shards: Any) -> Any:
            return [{} for _ in shards]

        monkeypatch.setattr(drain.state, "grown", nothing)
        await loop.publish("a")
        await until(lambda: upstream.asked)
        await loop.replay("r", "s", "t")
        await until(lambda: loop.waiting_is(4))
        upstream.says = lambda _ids: 200
        await until(lambda: {*upstream.taken} == {"a", "r", "s", "t"})
        await until(lambda: loop.waiting_is(0))
        upstream.gate.clear()
        await loop.publish("b", user="u")
        await until(lambda: upstream.asked[-1] == ["b"])
        await loop.publish("c", user="u")
        await until(lambda: loop.pipeline.size == 1)
        drain.dispatcher.queue_to_lane(loop.pipeline)  # as where memory is full
        await until(lambda: loop.waiting_is(2))
        await loop.publish("d", user="u")
        upstream.gate.set()
        await until(lambda: upstream.taken[4:] == ["b", "c", "d"])


async def test_what_was_let_go_before_its_word_came_does_not_wait_for_the_next_who_drains(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.integration(limits=msgspec.structs.replace(BUCKET, linger=timedelta(hours=1)))
    async with loop.draining() as drain:

        async def nothing(shards: Any) -> Any:
            return [{} for _ in shards]

        monkeypatch.setattr(drain.state, "grown", nothing)
        await loop.publish("a")
        await until(lambda: loop.waiting_is(1))
        await loop.replay("r")
        loop.directory.change(active=0)
        await until(lambda: loop.waiting_is(0))
    async with loop.draining() as drain:
        await until(lambda: any(shard.reads for shard in drain.shards.values()))
        await drain.takeover.notice([*drain.shards.values()])
        assert loop.pipeline.lane_len == 0


async def test_events_of_a_user_who_is_queued_do_not_overtake_in_the_lane(loop: Loop) -> None:
    loop.integration(limits=SMALL)
    upstream = loop.upstream
    soon = Retry("busy", "later", timedelta(seconds=0.3))
    upstream.says = lambda _ids: Partial({0: soon}, Delivered())
    await loop.publish("x", user="v")
    async with loop.draining():
        await until(lambda: upstream.asked)
        await until(lambda: loop.pipeline.waiting)
        upstream.says = lambda ids: upstream.gate.clear() if ids == ["y"] else 200
        upstream.gate.clear()
        await loop.publish("y", user="w")
        await until(lambda: upstream.asked[-1] == ["y"])
        await loop.publish("a", user="u")
        await until(lambda: loop.pipeline.size == 1)
        (due, _) = next(iter(loop.pipeline.waiting.values()))
        await until(lambda: loop.now_ms > due)
        upstream.gate.set()
        await until(lambda: upstream.asked[-1] == ["x"])
        await loop.publish("b", user="u")
        await until(lambda: loop.pipeline.size + loop.pipeline.lane_len == 3)
        upstream.gate.set()
        await until(lambda: {"a", "b"} <= {*upstream.taken})
        assert upstream.taken.index("a") < upstream.taken.index("b")


async def test_a_token_that_cannot_be_asked_for_suspends(loop: Loop) -> None:
    def asks(*_: Any) -> Any:
        raise ValueError("this curve is not supported")

    loop.integration(token=TokenSource(asks, asks, {}))
    await loop.publish("a")
    async with loop.draining() as drain:
        await until(lambda: drain.dispatcher.pipelines)
        await until(lambda: loop.pipeline.held)
        assert loop.pipeline.message == "Test: ValueError in the adapter; see the log"
        assert await loop.waiting() == 1


@pytest.mark.parametrize("intake", [KEYS.intake, UNSHARDED])
async def test_a_read_that_comes_when_nobody_waits_for_it_keeps_nothing(
    loop: Loop, intake: str
) -> None:
    """As one does that a link held while it was away: its entries were ours, and in no hand."""
    loop.integration()
    async with loop.draining() as drain, loop.redis.pipeline(transaction=True) as pipe:
        await until(lambda: drain.shards and not drain.shards[0].unsure)
        pipe.xadd(intake, {"event": body("a")})
        pipe.xreadgroup(GROUP, drain.token, {intake: ">"})
        await pipe.execute()
        await until(lambda: loop.upstream.taken == ["a"])
        await until(lambda: loop.counted_is(delivered=1))


@pytest.mark.parametrize("intake", [KEYS.intake, UNSHARDED])
@pytest.mark.parametrize("ours", [True, False])
async def test_what_a_read_that_comes_late_takes_is_not_overtaken(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, intake: str, ours: bool
) -> None:
    """One of our own whose answer never came, or of the shard's last owner."""
    loop.integration()
    if not ours:
        await loop.redis.hset(KEYS.committed, mapping={"taker": "another", "number": 1})
    async with loop.draining() as drain:
        await until(lambda: drain.shards and not drain.shards[0].unsure)
        failed = AsyncMock(side_effect=LostConnection("the answer never came"))
        with monkeypatch.context() as patched:
            if ours:
                patched.setattr(drain.state, "read", failed)
                await until(lambda: failed.called)
        await until(lambda: not drain.shards[0].unsure)
        async with loop.redis.pipeline(transaction=True) as pipe:
            pipe.xadd(intake, {"event": body("a", "u")})
            pipe.xreadgroup(GROUP, drain.token if ours else "another", {intake: ">"})
            await pipe.execute()
        await loop.redis.xadd(intake, {"event": body("b", "u")})
        await until(lambda: len(loop.upstream.taken) == 2)
        assert loop.upstream.taken == ["a", "b"]
        await until(lambda: loop.counted_is(delivered=2))


async def test_what_ends_while_a_late_read_is_looked_for_is_not_sent_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.integration()
    loop.upstream.gate.clear()
    async with loop.draining() as drain:
        await until(lambda: drain.shards and not drain.shards[0].unsure)
        reads, pipelines = drain.state.read, drain.state.redis.pipeline
        asked = asyncio.Event()

        async def read(*of: Any) -> Any:
            asked.set()
            answer = await reads(*of)
            if answer[0]:
                monkeypatch.setattr(drain.state, "read", reads)
                raise LostConnection("the answer never came")
            return answer

        def pipeline(**more: Any) -> Any:
            pipe = pipelines(**more)
            executes = pipe.execute

            async def execute(**more: Any) -> Any:
                answers = await executes(**more)
                await asyncio.sleep(0.5)
                return answers

            pipe.execute = execute
            return pipe

        monkeypatch.setattr(drain.state, "read", read)
        await asked.wait()
        await loop.publish("a")
        await until(lambda: loop.upstream.asked == [["a"]])
        monkeypatch.setattr(drain.state.redis, "pipeline", pipeline)
        await loop.publish("b")
        await asyncio.sleep(0.2)
        loop.upstream.gate.set()
        await until(lambda: loop.counted_is(delivered=2))
        await until(lambda: "b" in loop.upstream.taken)
        assert loop.upstream.asked == [["a"], ["b"]]


async def test_what_is_committed_late_is_not_what_we_took_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another had the shard meanwhile, and did what the commit says."""
    loop.integration()
    sent: list[Any] = []
    async with loop.draining() as drain:
        commits = drain.state.commit

        async def commit(*of: Any) -> Any:
            sent.append(of)
            raise LostConnection("the answer never came")

        with monkeypatch.context() as patched:
            patched.setattr(drain.state, "commit", commit)
            await loop.publish("a")
            await until(lambda: sent)
            await loop.redis.set(KEYS.lease, "another")
            await until(lambda: not drain.shards)
            await loop.redis.xtrim(KEYS.intake, maxlen=0)
            await loop.redis.hset(KEYS.committed, "taker", "another")
            await loop.redis.delete(KEYS.lease)
            await until(lambda: any(shard.reads for shard in drain.shards.values()))
        await commits(*sent[0])
        assert not await loop.counted()


async def test_what_is_given_up_late_is_not_what_we_took_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.integration()
    async with loop.draining() as drain:
        await until(lambda: any(shard.reads for shard in drain.shards.values()))
        releases, sent = drain.state.release, list[Any]()

        async def release(*of: Any) -> None:
            sent.append(of)
            await releases(*of)

        with monkeypatch.context() as patched:
            patched.setattr(drain.state, "release", release)
            drain.shards[0].leave(0.0)
            await until(lambda: sent and drain.shards)
        await releases(*sent[0])
        assert await loop.redis.get(KEYS.lease) == drain.token.encode()


async def test_what_is_replayed_hides_nothing_that_came_after_it(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left the lane before it was counted there, and later events of a user went first."""
    monkeypatch.setattr("worker.drain.NOTICE_SECONDS", 1_000)
    loop.integration(limits=SMALL)
    loop.upstream.says = lambda _ids: 500
    again = [f"r{number}" for number in range(lane.PAGE + 1)]
    await loop.publish("a", user="u")
    async with loop.draining():
        await until(lambda: loop.waiting_is(1))
        await loop.replay(*again)
        await loop.publish("b", user="u")
        await until(lambda: loop.waiting_is(len(again) + 2))
        loop.upstream.says = lambda _ids: 200
        await until(lambda: again[10] in loop.upstream.taken)
        await loop.publish("c", user="u")
        await until(lambda: "c" in loop.upstream.taken)
        await until(lambda: loop.waiting_is(0))
    assert [id_ for id_ in loop.upstream.taken if id_ in "abc"] == ["a", "b", "c"]
    assert sorted(loop.upstream.taken) == sorted(["a", "b", "c", *again])
