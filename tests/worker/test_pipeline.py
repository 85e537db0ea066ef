"""One pipeline in memory: order within a user, nothing twice in flight, nothing lost."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from providers.kit import Event
from worker.pipeline import APART, Delivery, Pipeline
from worker.shard import Shard
from worker.state import Keys

FRESH = ("ann", "bob", "cem", "")  # "" is an event without any user
WAITING = ("lea", "lou", "")  # whose events are in the lane


def pipeline_of(*, ordered: bool = True, **more: Any) -> Pipeline:
    integration = {"ordered": ordered, "active": 1, "epoch": 0, "through_lane": False} | more
    settings: Any = SimpleNamespace(**integration)
    return Pipeline(settings, Shard(Keys(0)))


def delivery_of(pipeline: Pipeline, user: str = "", raw: bytes = b"{}", **more: Any) -> Delivery:
    event = Event(
        id="e",
        project_id="p",
        name="trial_started",
        platform="iOS",
        environment="production",
        time=1,
        created_at=1,
        user_id=user,
    )
    return Delivery(event, raw, pipeline, 1, **more)


class Traffic(RuleBasedStateMachine):
    """Fresh deliveries of some users and lane entries of others, taken and landed at will."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = pipeline_of()
        self.clock = 0.0
        self.numbers: dict[Delivery, int] = {}  # in the order they came
        self.waiting: list[Delivery] = []  # fresh, not yet taken
        self.read: list[Delivery] = []  # of the lane, not yet taken
        self.flying: list[list[Delivery]] = []
        self.over: set[Delivery] = set()  # landed or emptied

    @initialize(ordered=st.booleans())
    def begin(self, ordered: bool) -> None:
        self.ordered = ordered
        self.pipeline = pipeline_of(ordered=ordered)

    def _came(self, delivery: Delivery, among: list[Delivery]) -> Delivery:
        self.numbers[delivery] = len(self.numbers)
        among.append(delivery)
        return delivery

    @rule(user=st.sampled_from(FRESH), size=st.integers(1, 40), later=st.integers(0, 1))
    def push(self, user: str, size: int, later: int) -> None:
        self.clock += later  # several may come in one turn of the loop
        made = delivery_of(self.pipeline, user, b"x" * size, since=self.clock)
        self.pipeline.push(self._came(made, self.waiting))

    @precondition(lambda self: len(self.read) < 3)  # else fresh ones are hardly ever taken
    @rule(
        user=st.sampled_from(WAITING),
        size=st.integers(1, 40),
        step=st.sampled_from([0, 0, 0, 1]),
        note=st.sampled_from(["", "", "", "token"]),
        alone=st.sampled_from([0, 0, 1, APART]),
    )
    def read_from_lane(self, user: str, size: int, **more: Any) -> None:
        lane_id = b"%d-0" % len(self.numbers)
        made = delivery_of(self.pipeline, user, b"x" * size, lane_id=lane_id, **more)
        self.pipeline.live.add(lane_id)
        self.pipeline.buffer.append(self._came(made, self.read))

    @rule(most=st.integers(1, 5), largest=st.integers(1, 100))
    def take(self, most: int, largest: int) -> None:
        fresh = not self.pipeline.buffer
        batch = self.pipeline.take(most, largest)
        source = self.waiting if fresh else self.read
        assert len(batch) <= most
        assert len(batch) == 1 or sum(len(taken.raw) for taken in batch) <= largest
        assert len({(taken.step, taken.note) for taken in batch}) <= 1
        assert len(batch) == 1 or all(taken.alone < APART for taken in batch)
        busy = {taken.user for flight in self.flying for taken in flight} - {""}
        for taken in batch:
            assert taken.user not in busy
            older = [d for d in source if d.user == taken.user]
            assert not self.ordered or not taken.user or older[0] is taken
            source.remove(taken)
        if batch:
            self.flying.append(batch)
        else:
            assert all(left.user in busy for left in source)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        batch = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.pipeline.land(batch)
        self.over.update(batch)

    @rule()
    def empty(self) -> None:
        queued = self.pipeline.empty()
        self._in_order(queued, self.waiting)
        self.over.update(queued)
        self.waiting.clear()

    @precondition(lambda self: self.ordered)
    @rule(user=st.sampled_from(["ann", "bob"]))
    def withdraw(self, user: str) -> None:
        theirs = [delivery for delivery in self.waiting if delivery.user == user]
        assert self.pipeline.withdraw(user) == theirs
        self.over.update(theirs)
        self.waiting = [delivery for delivery in self.waiting if delivery.user != user]

    @rule()
    def forget_lane(self) -> None:
        self.pipeline.forget_lane()
        self.over.update(self.read)
        self.read.clear()

    def _in_order(self, found: list[Delivery], expected: list[Delivery]) -> None:
        assert set(found) == set(expected)
        assert len(found) == len(expected)
        assert [d.since for d in found] == sorted(d.since for d in found)
        for user in {delivery.user for delivery in found} - {""}:
            theirs = [self.numbers[d] for d in found if d.user == user]
            assert theirs == sorted(theirs)

    @invariant()
    def sizes_are_right(self) -> None:
        assert self.pipeline.size == self.pipeline.shard.queued == len(self.waiting)
        assert not self.waiting or self.pipeline.first in self.waiting
        assert list(self.pipeline.buffer) == self.read
        assert set(self.pipeline.flying) == {d for flight in self.flying for d in flight}
        assert self.pipeline.idle == (not (self.flying or self.waiting or self.read))

    @invariant()
    def live_lane_entries_are_those_in_memory(self) -> None:
        gone = {d.lane_id for d in self.over if d in self.numbers and d.lane_id}
        assert {d.lane_id for d in self.read} <= self.pipeline.live
        assert self.pipeline.live <= {d.lane_id for d in self.read} | gone | {
            d.lane_id for flight in self.flying for d in flight
        }

    def teardown(self) -> None:
        """Nothing is lost: what is left can all be sent."""
        for _ in range(len(self.numbers) + 1):
            while self.flying:
                self.pipeline.land(self.flying.pop())
            self.take(5, 100)
        assert not self.waiting
        assert not self.read
        assert not self.flying
        assert self.pipeline.idle


def test_traffic() -> None:
    run_state_machine_as_test(
        Traffic, settings=settings(deadline=None, max_examples=100, stateful_step_count=40)
    )


def test_a_user_without_order_is_nobody() -> None:
    pipeline = pipeline_of(ordered=False)
    assert delivery_of(pipeline, "ann").user == ""
    assert delivery_of(pipeline_of(), "ann").user == "ann"


def test_a_batch_may_hold_several_events_of_one_user() -> None:
    pipeline = pipeline_of()
    first, second = delivery_of(pipeline, "ann"), delivery_of(pipeline, "ann")
    pipeline.push(first)
    pipeline.push(second)
    assert pipeline.take(10, 1000) == [first, second]
    third = delivery_of(pipeline, "ann")
    pipeline.push(third)
    assert pipeline.take(10, 1000) == []
    pipeline.land([first, second])
    assert pipeline.take(10, 1000) == [third]


def test_what_is_queued_is_given_back_in_the_order_it_came() -> None:
    pipeline = pipeline_of()
    queued = [
        delivery_of(pipeline, user, since=float(turn))
        for turn, user in enumerate(["ann", "bob", "", "ann", "bob", "", "cem"])
    ]
    for delivery in queued:
        pipeline.push(delivery)
    assert pipeline.empty() == queued
    assert pipeline.empty() == []


def test_what_is_withdrawn_is_not_sent() -> None:
    pipeline = pipeline_of()
    first, other, last = (delivery_of(pipeline, user) for user in ("ann", "bob", "ann"))
    for delivery in (first, other, last):
        pipeline.push(delivery)
    assert pipeline.withdraw("ann") == [first, last]
    assert pipeline.withdraw("ann") == []
    assert pipeline.take(10, 1000) == [other]
    assert pipeline.take(10, 1000) == []


def test_a_probe_is_what_was_tried_least() -> None:
    """An event that fails for itself must not fail every probe. Each user's order is kept."""
    pipeline = pipeline_of()
    read = [
        delivery_of(pipeline, user, lane_id=b"%d-0" % number, attempts=attempts)
        for number, (user, attempts) in enumerate(
            [("ann", 3), ("bob", 1), ("ann", 0), ("", 2), ("cem", 1), ("bob", 0)]
        )
    ]
    pipeline.buffer.extend(read)
    pipeline.probing = True
    assert pipeline.take(1, 1000) == [read[1]]
    assert list(pipeline.buffer) == [read[0], *read[2:]]
    pipeline.land([read[1]])
    pipeline.probing = False
    assert pipeline.take(1, 1000) == [read[0]]


def test_where_all_were_tried_alike_the_first_is_the_probe() -> None:
    pipeline = pipeline_of()
    read = [delivery_of(pipeline, user, lane_id=b"1-0", attempts=2) for user in ("ann", "bob")]
    pipeline.buffer.extend(read)
    pipeline.probing = True
    assert pipeline.take(1, 1000) == read[:1]


def test_a_batch_that_needs_another_token_stays_one() -> None:
    pipeline = pipeline_of()
    notes = ["new_token", "new_token", "", "new_token"]
    read = [delivery_of(pipeline, lane_id=b"1-0", note=note) for note in notes]
    pipeline.buffer.extend(read)
    assert [pipeline.take(10, 1000) for _ in range(3)] == [read[:2], read[2:3], read[3:]]


def test_a_large_delivery_goes_alone() -> None:
    pipeline = pipeline_of()
    deliveries = [delivery_of(pipeline, raw=b"x" * size) for size in (10, 5000, 10, 10)]
    for delivery in deliveries:
        pipeline.push(delivery)
    batches = [pipeline.take(10, 100) for _ in range(3)]
    assert [[len(d.raw) for d in batch] for batch in batches] == [[10], [5000], [10, 10]]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({}, False),
        ({"closed": True}, True),
        ({"probing": True}, True),
        ({"due": 5.0}, True),
        ({"lane_len": 1}, True),
        ({"lane_len": 1, "waiting": {b"1-0": (9, "bob")}}, False),
        ({"lane_len": 2, "waiting": {b"1-0": (9, "bob")}}, True),
        ({"suspended_epoch": 0}, True),
        ({"suspended_epoch": -1}, False),
    ],
)
def test_who_must_join_the_lane(change: dict[str, Any], first: bool) -> None:
    pipeline = pipeline_of()
    for name, value in change.items():
        setattr(pipeline, name, value)
    assert pipeline.lane_first("ann") is first


def test_what_gathers_and_what_is_held_joins_the_lane() -> None:
    assert pipeline_of(through_lane=True).lane_first("ann")
    assert pipeline_of(active=2).lane_first("ann")
    assert pipeline_of(active=2).held


def test_only_the_user_of_a_waiting_entry_waits() -> None:
    pipeline = pipeline_of()
    pipeline.lane_len = 2
    pipeline.wait(b"1-0", 900, "ann")
    pipeline.wait(b"2-0", 950, "ann")
    assert pipeline.lane_first("ann")
    assert not pipeline.lane_first("bob")
    assert not pipeline.lane_first("")
    pipeline.unwait(b"1-0")
    pipeline.lane_len = 1
    assert pipeline.lane_first("ann")
    pipeline.unwait(b"2-0")
    pipeline.unwait(b"2-0")
    pipeline.lane_len = 0
    assert not pipeline.lane_first("ann")


def test_only_what_is_later_waits_with_an_event() -> None:
    """Of two of a user that wait, the first goes when it is due, though the other is not yet."""
    pipeline = pipeline_of()
    pipeline.wait(b"1-9", 900, "ann")
    pipeline.wait(b"1-10", 950, "ann")
    pipeline.unwait(b"1-9")
    assert not pipeline.comes_later("ann", b"1-9")
    assert pipeline.comes_later("ann", b"1-11")
    assert not pipeline.comes_later("bob", b"1-11")
    assert not pipeline.comes_later("", b"1-11")
    pipeline.block("bob")  # by one that is just being put into the lane
    assert pipeline.comes_later("bob", b"0-1")


def test_an_event_that_waits_again_waits_once() -> None:
    pipeline = pipeline_of()
    for due in (900, 950):
        pipeline.wait(b"1-0", due, "ann")
    pipeline.unwait(b"1-0")
    assert not pipeline.blocked


def test_an_entry_without_user_waits_alone() -> None:
    pipeline = pipeline_of()
    pipeline.lane_len = 1
    pipeline.wait(b"1-0", 900, "")
    assert not pipeline.lane_first("")
    pipeline.unwait(b"1-0")
    assert not pipeline.blocked


def test_what_was_read_of_a_waiting_user_is_read_again() -> None:
    pipeline = pipeline_of()
    ann, bob = (
        delivery_of(pipeline, user, lane_id=lane_id)
        for user, lane_id in (("ann", b"2-0"), ("bob", b"3-0"))
    )
    pipeline.buffer.extend([ann, bob])
    pipeline.live.update([b"2-0", b"3-0"])
    pipeline.wait(b"1-0", 900, "ann")
    assert pipeline.take(10, 1000) == [bob]
    assert pipeline.live == {b"3-0"}
    assert pipeline.passed_over


def test_what_stays_of_the_lane_keeps_its_order() -> None:
    pipeline = pipeline_of()
    first, second, third, fourth = (
        delivery_of(pipeline, user, lane_id=b"%d-0" % number)
        for number, user in enumerate(["ann", "ann", "ann", "bob"])
    )
    pipeline.buffer.append(first)
    assert pipeline.take(1, 1000) == [first]
    pipeline.buffer.extend([second, third, fourth])
    assert pipeline.take(10, 1000) == [fourth]
    assert list(pipeline.buffer) == [second, third]
    pipeline.land([first])
    assert pipeline.take(10, 1000) == [second, third]


def test_a_forgotten_lane_is_read_from_its_head() -> None:
    pipeline = pipeline_of()
    pipeline.buffer.append(delivery_of(pipeline, "ann", lane_id=b"7-0"))
    pipeline.live.add(b"7-0")
    pipeline.cursor, pipeline.exhausted, pipeline.passed_over = b"(7-0", True, True
    pipeline.forget_lane()
    assert (pipeline.cursor, pipeline.exhausted, pipeline.passed_over) == (b"-", False, False)
    assert pipeline.idle
    assert not pipeline.live


def test_a_user_who_is_sent_something_that_was_read_comes_up_once() -> None:
    pipeline = pipeline_of()
    for _ in range(2):
        pipeline.push(delivery_of(pipeline, "ann"))
    replayed = delivery_of(pipeline, "ann", lane_id=b"1-0")
    pipeline.buffer.append(replayed)
    assert pipeline.take(1, 100) == [replayed]
    assert pipeline.take(10, 100) == [], "one at a time"
    pipeline.land([replayed])
    assert len(pipeline.take(10, 100)) == 2
    assert pipeline.take(10, 100) == []


def test_who_is_queued_joins_no_lane() -> None:
    pipeline = pipeline_of()
    pipeline.push(delivery_of(pipeline, "ann"))
    pipeline.lane_len = 1
    assert [pipeline.lane_first(user) for user in ("ann", "bob", "")] == [False, True, True]
