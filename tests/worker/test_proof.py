"""What the demo would not let pass."""

import pytest

from worker.proof import record_faults, upstream_faults, users_out_of_order


@pytest.mark.parametrize(
    ("expected", "recorded", "faults"),
    [
        ("ab", "ba", []),
        ("ab", "a", ["x: 1 events have no recorded end: b"]),
        ("a", "aa", ["x: 1 ends too many are recorded: a"]),
        ("a", "ab", ["x: 1 ends too many are recorded: b"]),
        ("abcde", "", ["x: 5 events have no recorded end: a, b, c …"]),
    ],
)
def test_the_record(expected: str, recorded: str, faults: list[str]) -> None:
    assert list(record_faults("x", list(expected), list(recorded))) == faults


@pytest.mark.parametrize(
    ("delivered", "taken", "answered", "faults"),
    [
        ("ab", {"a": 1, "b": 2}, True, []),  # a duplicate is allowed
        ("ab", {"a": 1}, True, ["x: 1 delivered that the upstream has not: b"]),
        ("a", {"a": 1, "c": 1}, True, ["x: the upstream has 1 not so recorded: c"]),
        ("ab", {"hash": 1, "other": 1}, True, []),  # ids of its own
        ("ab", {"hash": 2}, True, []),
        ("ab", {"hash": 1}, True, ["x: 2 delivered, and 1 at the upstream"]),
        ("ab", {}, True, []),  # takes no events
        ("ab", {}, False, ["x: 2 delivered, and the upstream has answered no call"]),
        ("", {}, False, []),
    ],
)
def test_the_upstream(
    delivered: str, taken: dict[str, int], answered: bool, faults: list[str]
) -> None:
    found = upstream_faults("x", "abc", list(delivered), taken, answered=answered)
    assert list(found) == faults


def test_order_is_each_users_own() -> None:
    sent = [("ann", "1"), ("bob", "2"), ("ann", "3"), ("bob", "4"), ("ann", "5")]
    assert users_out_of_order(sent, ["2", "1", "4", "3"]) == []
    assert users_out_of_order(sent, ["3", "1", "2", "4"]) == ["ann"]
