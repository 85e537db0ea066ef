"""A pipeline in memory keeps the order of each user, however sending and landing mix."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.pipeline import Delivery, Pipeline

USERS = ("", "ann", "bob", "cy")


def pipeline(*, ordered: bool = True) -> Pipeline:
    integration: Any = SimpleNamespace(ordered=ordered)
    return Pipeline(integration, shard=SimpleNamespace())  # type: ignore[arg-type]


def delivery(to: Pipeline, user: str, number: int, lane_id: bytes | None = None) -> Delivery:
    event: Any = SimpleNamespace(user_key=user, id=str(number))
    return Delivery(event, b"x" * 10, to, accepted=number, lane_id=lane_id, since=number)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(USERS)),
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("land"), st.integers(0, 3)),
    ),
    max_size=60,
)


@given(STEPS)
def test_events_of_a_user_are_taken_in_order_one_batch_at_a_time(steps: Any) -> None:
    p = pipeline()
    pushed = 0
    taken: list[Delivery] = []
    flying: list[list[Delivery]] = []
    for step, value in [*steps, *[("land", 0), ("take", 4)] * 70]:
        if step == "push":
            pushed += 1
            p.push(delivery(p, value, pushed))
        elif step == "land" and flying:
            p.land(flying.pop(value % len(flying)))
        elif step == "take" and (batch := p.take(value, 1_000)):
            in_flight = {d.user for other in flying for d in other} - {""}
            assert not in_flight & {d.user for d in batch}
            assert len(batch) <= value
            flying.append(batch)
            taken += batch
    assert len(taken) == pushed
    assert p.size == 0
    for user in USERS[1:]:
        theirs = [d.accepted for d in taken if d.user == user]
        assert theirs == sorted(theirs)


def test_a_user_who_waits_is_passed_over_also_in_what_was_read() -> None:
    p = pipeline()
    for number, user in enumerate(("ann", "bob", "ann")):
        p.buffer.append(delivery(p, user, number, b"%d-0" % number))
        p.live.add(b"%d-0" % number)
    (first,) = p.take(1, 1_000)
    p.land([first])
    p.wait(b"0-0", 99, "ann")
    assert [d.user for d in p.take(4, 1_000)] == ["bob"]
    assert p.passed_over
    assert b"2-0" not in p.live


def test_withdrawn_events_are_not_taken() -> None:
    p = pipeline()
    for number, user in enumerate(("ann", "bob", "ann")):
        p.push(delivery(p, user, number))
    assert [d.accepted for d in p.withdraw("ann")] == [0, 2]
    assert [d.user for d in p.take(4, 1_000)] == ["bob"]
    assert p.size == 0


def test_unordered_events_do_not_wait_for_each_other() -> None:
    p = pipeline(ordered=False)
    for number in range(3):
        p.push(delivery(p, "ann", number))
    assert [len(p.take(1, 1_000)) for _ in range(3)] == [1, 1, 1]
