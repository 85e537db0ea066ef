"""The scripts on a real server: all or nothing, once, only under the lease, and when it is full."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.state import CHANGES, GROUP, UNSHARDED, Commit, Keys, LeaseLost, State

pytestmark = pytest.mark.processes
KEYS = Keys(3)
LANE = KEYS.lane("a")
NEVER = 2**53  # ms


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Any]:
    client = Redis.from_url(valkey, protocol=2)
    await client.config_set("maxmemory", 0)
    await client.flushall()
    yield client
    await client.config_set("maxmemory", 0)  # others have the same server
    await client.aclose()


@pytest.fixture
async def state(redis: Any) -> State:
    made = State(redis)
    assert await made.take(KEYS, "me", NEVER)
    return made


async def commit(state: State, number: int, what: Commit) -> Any:
    (reply,) = await state.commit("me", [(KEYS, 0, number, what)])
    return reply


async def read_one(redis: Any) -> bytes:
    entry: bytes = await redis.xadd(KEYS.intake, {"event": "{}"})
    await redis.xreadgroup(GROUP, "me", {KEYS.intake: ">"})
    return entry


def moves(entry: bytes) -> Commit:
    """Return the commit that acknowledges an entry, puts it into a lane and counts it."""
    return Commit(
        [entry], [("XADD", LANE, "*", "e", "{}"), ("HINCRBY", KEYS.tally, "a|accepted", 1)]
    )


async def test_a_commit_sent_again_is_written_once(state: State, redis: Any) -> None:
    entry = await read_one(redis)
    first = await commit(state, 7, moves(entry))
    again = await commit(state, 7, moves(entry))
    assert first == again
    assert await redis.xlen(LANE) == 1
    assert await redis.hgetall(KEYS.tally) == {b"a|accepted": b"1"}
    assert await redis.xlen(KEYS.intake) == 0


async def test_a_shard_that_fails_does_not_keep_others(state: State, redis: Any) -> None:
    entry = await read_one(redis)
    await redis.set(Keys(4).journal, "spoilt")
    spoilt = Commit([], [("XADD", Keys(4).journal, "*", "p", "")])
    assert await state.take(Keys(4), "me", NEVER)
    bad, good = await state.commit("me", [(Keys(4), 0, 1, spoilt), (KEYS, 0, 2, moves(entry))])
    assert isinstance(bad, ResponseError)
    assert isinstance(good, list)
    assert await redis.xlen(LANE) == 1


async def test_thousands_are_acknowledged_at_once(state: State, redis: Any) -> None:
    for number in range(2_500):
        await redis.xadd(KEYS.intake, {"event": "{}"}, id=f"1-{number + 1}")
    read = await redis.xreadgroup(GROUP, "me", {KEYS.intake: ">"})
    ids = [entry_id for entry_id, _ in read[0][1]]
    done = Commit(ids, [], {"a|accepted": 2_500, "a|delivered": 2_499})
    assert await commit(state, 1, done) == []
    assert (await redis.xpending(KEYS.intake, GROUP))["pending"] == 0
    assert await redis.xlen(KEYS.intake) == 0
    counted = {b"a|accepted": b"2500", b"a|delivered": b"2499"}
    assert await redis.hgetall(KEYS.tally) == counted


async def test_nothing_is_written_without_the_lease(state: State, redis: Any) -> None:
    entry = await read_one(redis)
    await redis.set(KEYS.lease, "another")
    assert isinstance(await commit(state, 1, moves(entry)), LeaseLost)
    assert await redis.xlen(KEYS.intake) == 1


async def test_a_lapsed_lease_is_ours_until_somebody_takes_it(state: State, redis: Any) -> None:
    entry = await read_one(redis)
    await redis.delete(KEYS.lease)
    assert len(await commit(state, 1, moves(entry))) == 1
    assert await redis.get(KEYS.lease) == b"me"
    await redis.delete(KEYS.lease)
    assert await state.renew([(KEYS, 0)], "me") == [True]
    assert await redis.pttl(KEYS.lease) > 0
    await redis.delete(KEYS.lease)
    assert await state.take(KEYS, "another", NEVER)
    await redis.delete(KEYS.lease)
    assert await state.renew([(KEYS, 0)], "me") == [False]
    assert isinstance(await commit(state, 2, moves(entry)), LeaseLost)
    assert not await redis.exists(KEYS.lease)


@pytest.mark.parametrize("lapsed", [True, False])
async def test_a_lease_is_lost_where_the_store_went_back(
    state: State, redis: Any, lapsed: bool
) -> None:
    entry = await read_one(redis)
    await commit(state, 6, moves(entry))
    if lapsed:
        await redis.delete(KEYS.lease)
    assert await state.renew([(KEYS, 7)], "me") == [False]
    assert isinstance((await state.commit("me", [(KEYS, 7, 8, moves(b""))]))[0], LeaseLost)
    assert await state.renew([(KEYS, 6)], "me") == [True]


async def test_a_lease_of_our_own_is_taken_anew(state: State, redis: Any) -> None:
    await commit(state, 6, moves(await read_one(redis)))
    assert await state.take(KEYS, "me", NEVER)
    assert await state.renew([(KEYS, 7)], "me") == [False], "the commits it stands for are the same"
    assert await state.renew([(KEYS, 6)], "me") == [True]
    assert not await state.take(KEYS, "another", NEVER)


async def test_a_copy_of_a_commit_that_comes_late_is_not_written(state: State, redis: Any) -> None:
    entry = await read_one(redis)
    await commit(state, 1, moves(entry))
    await commit(state, 2, Commit([], [("HINCRBY", KEYS.tally, "a|accepted", 1)]))
    assert await commit(state, 1, moves(entry)) == []
    assert await redis.xlen(LANE) == 1
    assert await redis.hgetall(KEYS.tally) == {b"a|accepted": b"2"}


async def test_what_was_committed_before_a_lease_is_not_written_under_it(redis: Any) -> None:
    state, entry = State(redis), await redis.xadd(KEYS.intake, {"event": "{}"})
    assert await state.take(KEYS, "me", NEVER, 5)
    assert await commit(state, 4, moves(entry)) == []
    assert len(await commit(state, 6, moves(entry))) == 1
    assert await state.take(KEYS, "me", NEVER, 5), "asked again, and late"
    assert await state.renew([(KEYS, 6)], "me") == [True]


async def test_a_question_that_comes_late_takes_no_lease(redis: Any) -> None:
    seconds, _ = await redis.time()
    state = State(redis)
    assert not await state.take(KEYS, "me", seconds * 1000 - 1)
    assert await state.take(KEYS, "me", seconds * 1000 + 60_000)


async def test_a_lease_that_was_given_up_stays_given_up(state: State, redis: Any) -> None:
    await state.release(KEYS, "another", 0)
    assert await redis.get(KEYS.lease) == b"me"
    await state.release(KEYS, "me", 0)
    assert await state.renew([(KEYS, 0)], "me") == [False]
    assert not await redis.exists(KEYS.lease)


@pytest.mark.parametrize("spoilt", [LANE, KEYS.tally, KEYS.committed])
async def test_a_key_of_the_wrong_type_leaves_all_as_it_was(
    state: State, redis: Any, spoilt: str
) -> None:
    entry = await read_one(redis)
    await redis.set(spoilt, "spoilt")
    for _ in range(2):
        assert "WRONGTYPE" in str(await commit(state, 1, moves(entry)))
    await redis.delete(spoilt)
    assert await redis.xlen(LANE) == 0
    assert (await redis.xpending(KEYS.intake, GROUP))["pending"] == 1
    assert len(await commit(state, 1, moves(entry))) == 1


async def test_a_spoilt_intake_is_not_taken(state: State, redis: Any) -> None:
    other = Keys(4)
    await redis.set(other.intake, "spoilt")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await state.take(other, "me", NEVER)
    assert not await redis.exists(other.lease)


async def test_a_full_server_takes_commits_and_gives_leases(state: State, redis: Any) -> None:
    entry = await read_one(redis)
    await redis.config_set("maxmemory", 1)
    with pytest.raises(ResponseError, match="maxmemory"):
        await redis.xadd(KEYS.intake, {"event": "{}"})
    assert len(await commit(state, 1, moves(entry))) == 1
    assert len(await commit(state, 2, Commit([], moves(b"").commands))) == 1
    assert await state.take(Keys(4), "me", NEVER)
    assert await state.repeated([(KEYS, ["p/1"], ["1-0"])], 600, 1_000) == [set()]
    assert await state.renew([(KEYS, 0)], "me") == [True]
    now, owners = await state.owners("me", 1_000)
    assert (now > 0, owners) == (True, ["me"])


async def test_a_full_server_moves_entries_to_their_shards(state: State, redis: Any) -> None:
    """Where only appending is refused, what is not moved on would keep it full for ever."""
    await state.ensure_group(UNSHARDED)
    ids = [await redis.xadd(UNSHARDED, {"event": body}) for body in ("a", "b", "c")]
    await redis.xreadgroup(GROUP, "me", {UNSHARDED: ">"})
    await redis.config_set("maxmemory", 1)
    await state.move(UNSHARDED, [(ids[0], 3), (ids[1], 4), (ids[2], 3)])
    moved = [await redis.xrange(Keys(shard).intake) for shard in (3, 4)]
    assert [[fields[b"event"] for _, fields in one] for one in moved] == [[b"a", b"c"], [b"b"]]
    assert await redis.xlen(UNSHARDED) == 0
    assert (await redis.xpending(UNSHARDED, GROUP))["pending"] == 0

    await state.move(UNSHARDED, [(ids[0], 3)])
    assert await redis.xlen(KEYS.intake) == 2, "it was moved on before"


async def test_what_cannot_be_moved_stays_and_keeps_no_other(state: State, redis: Any) -> None:
    await state.ensure_group(UNSHARDED)
    ids = [await redis.xadd(UNSHARDED, {"event": "{}"}) for _ in range(2)]
    await redis.set(Keys(4).intake, "spoilt")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await state.move(UNSHARDED, [(ids[0], 4), (ids[1], 3)])
    assert [entry_id for entry_id, _ in await redis.xrange(UNSHARDED)] == [ids[0]]
    assert await redis.xlen(KEYS.intake) == 1


async def test_a_repeated_event_id_is_found_however_often_it_is_asked(state: State) -> None:
    read = [
        (KEYS, ["p/1", "p/2", "p/1"], ["1-0", "1-1", "2-0"]),
        (Keys(4), [], []),
        (Keys(5), ["p/1"], ["2-0"]),
    ]
    for _ in range(2):
        assert await state.repeated(read, 600, 1_000) == [{b"2-0"}, set(), set()]
    later = 1_000 + 600_000
    assert await state.repeated([(KEYS, ["p/2"], ["3-0"])], 600, later) == [{b"3-0"}]


async def test_a_change_is_heard_of_with_the_events_after_it(state: State, redis: Any) -> None:
    waits = asyncio.create_task(state.read([KEYS.intake.encode()], "me", 10, 60_000))
    while not (await redis.info("clients"))["blocked_clients"]:  # noqa: ASYNC110  the server's
        await asyncio.sleep(0.01)
    await redis.xadd(CHANGES, {"p": "prj_a"})
    entry = await redis.xadd(KEYS.intake, {"event": "{}"})
    found, changed = await waits
    assert [entry_id for entry_id, _ in found[KEYS.intake.encode()]] == [entry]
    assert changed == ["prj_a"]
    await redis.xadd(CHANGES, {"p": "prj_b"})
    assert await state.changes() == ["prj_b"]
    await redis.xadd(KEYS.intake, {"event": "{}"})
    assert (await state.read([KEYS.intake.encode()], "me", 10, 60_000))[1] == [], "each change once"


async def test_old_changes_are_not_heard_of(state: State, redis: Any) -> None:
    await redis.xadd(CHANGES, {"p": "prj_a"}, id="1000-7")
    await redis.xadd(CHANGES, {"p": "prj_b"}, id="2000-0")
    state.hear_from(1_500.5)
    assert await state.changes() == ["prj_b"]


async def test_spoilt_changes_keep_no_event(state: State, redis: Any) -> None:
    await redis.set(CHANGES, "spoilt")
    await redis.xadd(KEYS.intake, {"event": "{}"})
    found, changed = await state.read([KEYS.intake.encode()], "me", 10, 60_000)
    assert (len(found), changed, await state.changes()) == (1, [], [])


async def test_the_group_counts_what_is_there_already(redis: Any) -> None:
    await redis.xadd(KEYS.intake, {"event": "{}"})
    assert await State(redis).take(KEYS, "me", NEVER)
    reply = await redis.xreadgroup(GROUP, "me", {KEYS.intake: ">"})
    assert len(reply[0][1]) == 1


async def test_a_reader_is_forgotten_only_with_empty_hands(state: State, redis: Any) -> None:
    for name in ("ours", "idle", "busy"):
        await redis.xgroup_createconsumer(KEYS.intake, GROUP, name)
    await redis.xadd(KEYS.intake, {"event": "{}"})
    await redis.xreadgroup(GROUP, "busy", {KEYS.intake: ">"})
    await state.forget_readers(KEYS, "ours")
    left = {who["name"]: who["pending"] for who in await redis.xinfo_consumers(KEYS.intake, GROUP)}
    assert left == {b"ours": 0, b"busy": 1}


async def test_an_emptied_lane_is_due_no_more_but_one_that_grew_is(
    state: State, redis: Any
) -> None:
    emptied = Commit([], [("EMPTIED", LANE, KEYS.due, "a")])
    await redis.zadd(KEYS.due, {"a": 1})
    await redis.xadd(LANE, {"e": "{}"})
    await commit(state, 1, emptied)
    assert await redis.zcard(KEYS.due) == 1
    await redis.delete(LANE)
    await commit(state, 2, emptied)
    assert await redis.zcard(KEYS.due) == 0


async def test_a_spoilt_lease_keeps_no_other(state: State, redis: Any) -> None:
    assert await state.take(Keys(4), "me", NEVER)
    await redis.delete(Keys(4).lease)
    await redis.rpush(Keys(4).lease, "spoilt")
    assert await state.renew([(Keys(4), 0), (KEYS, 0)], "me") == [False, True]
