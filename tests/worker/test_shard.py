"""What a commit writes: acknowledgements first, progress while it lasts, counts that add up."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.kit import Delivered, Event
from worker.journal import Failure, Page, unpack
from worker.pipeline import Delivery, Landed, Pipeline
from worker.settle import settle
from worker.shard import Entry, Shard, Written, read_progress
from worker.state import Keys

KEYS = Keys(3)


def entry_of(shard: Shard, entry_id: bytes, *targets: str) -> Entry:
    entry = Entry(entry_id, list(targets), 1)
    shard.entries[entry_id] = entry
    return entry


def pipeline_of(shard: Shard, integration_id: str) -> Pipeline:
    integration: Any = SimpleNamespace(
        id=integration_id, ordered=True, project_id="p", slug="amplitude"
    )
    return Pipeline(integration, shard)


def delivery_of(pipeline: Pipeline, entry: Entry | None, **more: Any) -> Delivery:
    event = Event(
        id="e",
        project_id="p",
        name="trial_started",
        platform="iOS",
        environment="production",
        time=1,
        created_at=1,
    )
    return Delivery(event, b"{}", pipeline, 1700, entry, **more)


def commands(written: Written) -> list[tuple[Any, ...]]:
    """Return the script's commands in the order it runs them."""
    commit = written.commit
    acks: list[tuple[Any, ...]] = [
        ("XACK", KEYS.intake, "drain", *commit.acks),
        ("XDEL", KEYS.intake, *commit.acks),
    ]
    counts = [("HINCRBY", KEYS.tally, name, count) for name, count in commit.counts.items()]
    return [*(acks if commit.acks else ()), *commit.commands, *counts]


def named(written: Written, name: str) -> list[tuple[Any, ...]]:
    return [command for command in commands(written) if command[0] == name]


def pages(written: Written) -> list[Page]:
    """Return what the commit puts into the journal."""
    return [unpack(c[4]) for c in named(written, "XADD") if c[1] == KEYS.journal]


def test_an_entry_is_acknowledged_after_its_last_target() -> None:
    shard = Shard(KEYS)
    entry = entry_of(shard, b"1-0", "amp", "adj")
    shard.settle(entry, "adj")
    first = shard.build()
    assert named(first, "XACK") == []
    ((_, key, field, state),) = named(first, "HSET")
    assert (key, read_progress({field: state})) == (
        KEYS.progress,
        {b"1-0": (["amp", "adj"], ["adj"])},
    )
    assert shard.knows(b"1-0")
    shard.settle(entry, "amp")
    second = shard.build()
    assert commands(second)[:2] == [
        ("XACK", KEYS.intake, "drain", b"1-0"),
        ("XDEL", KEYS.intake, b"1-0"),
    ]
    assert named(second, "HDEL") == [("HDEL", KEYS.progress, b"1-0")]
    assert named(second, "HSET") == []
    assert b"1-0" not in shard.entries
    assert shard.knows(b"1-0")  # until the commit is there


def test_what_is_settled_between_two_commits_leaves_no_progress() -> None:
    shard = Shard(KEYS)
    entry = entry_of(shard, b"1-0", "amp", "adj")
    shard.settle(entry, "amp")
    shard.settle(entry, "adj")
    written = shard.build()
    assert named(written, "HSET") == named(written, "HDEL") == []
    assert [command[0] for command in commands(written)][:2] == ["XACK", "XDEL"]


def test_an_entry_nobody_wants_is_acknowledged() -> None:
    shard = Shard(KEYS)
    shard.finish(entry_of(shard, b"1-0"))
    assert [command[0] for command in commands(shard.build())] == ["XACK", "XDEL"]


def test_progress_found_in_redis_is_removed_at_the_end() -> None:
    shard = Shard(KEYS)
    entry = Entry(b"1-0", ["amp", "adj"], 1, done=["amp"], noted=True)
    shard.settle(entry, "adj")
    assert named(shard.build(), "HDEL") == [("HDEL", KEYS.progress, b"1-0")]


def test_a_fresh_delivery_goes_to_the_end_of_its_lane() -> None:
    shard = Shard(KEYS)
    pipeline = pipeline_of(shard, "amp")
    pipeline.due = 1234.5
    entry = entry_of(shard, b"1-0", "amp")
    tried = {"attempts": 2, "due": 99, "step": 1, "note": "new"}
    plain, known = delivery_of(pipeline, entry), delivery_of(pipeline, None, **tried)
    shard.to_lane(plain)
    shard.to_lane(known)
    assert (pipeline.lane_len, plain.entry, plain.lane_id) == (2, None, b"")
    written = shard.build()
    assert written.adding == [plain, known]
    assert [command for command in commands(written) if command[1] != KEYS.journal] == [
        ("XACK", KEYS.intake, "drain", b"1-0"),
        ("XDEL", KEYS.intake, b"1-0"),
        ("XADD", KEYS.lane("amp"), "*", "e", b"{}", "t", 1700),
        ("XADD", KEYS.lane("amp"), "*", "e", b"{}", "t", 1700, "a", 2, "d", 99, "s", 1, "n", "new"),
        ("ZADD", KEYS.due, "NX", 1234, "amp"),
        ("HINCRBY", KEYS.tally, "amp|accepted", 1),
    ]
    assert pages(written)[0].accepted == {"amp": 1}


@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_what_leaves_a_lane_leaves_no_tries(attempts: int) -> None:
    """However often it was tried, as far as is known here: others may have noted more."""
    shard = Shard(KEYS)
    pipeline = pipeline_of(shard, "amp")
    pipeline.lane_len = 2
    delivery = delivery_of(pipeline, None, lane_id=b"7-0", attempts=attempts)
    settle(delivery, Landed(Delivered()), 1800)
    found = commands(shard.build())
    assert ("XDEL", KEYS.lane("amp"), b"7-0") in found
    assert ("HDEL", KEYS.tries("amp"), b"7-0") in found


def test_a_page_is_written_with_the_acknowledgement() -> None:
    shard = Shard(KEYS)
    failure = Failure("amp", 1, "unauthorized", "401", 5)
    shard.page.failures.append(failure)
    shard.finish(entry_of(shard, b"1-0"))
    written = shard.build()
    assert [page.failures for page in pages(written)] == [[failure]]
    assert commands(written)[0][0] == "XACK"


def test_what_is_dropped_is_counted_but_not_as_accepted() -> None:
    shard = Shard(KEYS)
    shard.tallies["*", "duplicate"] += 2
    shard.settle(entry_of(shard, b"1-0", "amp"), "amp")
    written = shard.build()
    assert ("HINCRBY", KEYS.tally, "*|duplicate", 2) in commands(written)
    assert [page.accepted for page in pages(written)] == [{"amp": 1}]


@pytest.mark.parametrize(
    "fill",
    [
        lambda shard: shard.ack(b"1-0"),
        lambda shard: shard.settle(entry_of(shard, b"1-0", "amp", "adj"), "amp"),
        lambda shard: shard.to_lane(delivery_of(pipeline_of(shard, "amp"), None)),
        lambda shard: shard.commands.append(("ZREM", KEYS.due, "amp")),
        lambda shard: shard.page.failures.append(Failure("amp", 1, "", "", 1)),
        lambda shard: shard.tallies.update({("*", "duplicate"): 1}),
        lambda shard: shard.after.append(lambda: None),
    ],
)
def test_whatever_there_is_to_commit_is_taken_once(fill: Any) -> None:
    shard = Shard(KEYS)
    assert not shard.dirty
    fill(shard)
    assert shard.dirty
    first = shard.build()
    assert first.commit or first.after
    assert shard.dirty is False
    second = shard.build()
    assert not second.commit
    assert second.adding == second.after == []
    assert second.number > first.number


@pytest.mark.parametrize(
    ("change", "reads", "sends"),
    [
        ({}, True, True),
        ({"opening": True}, False, True),
        ({"leaving": True}, False, False),
        ({"lost": True}, False, False),
        ({"stuck": True}, False, False),
    ],
)
def test_when_it_reads_and_sends(change: dict[str, bool], reads: bool, sends: bool) -> None:
    shard = Shard(KEYS, **change)  # type: ignore[arg-type]
    assert (shard.reads, shard.sends) == (reads, sends)


def test_it_leaves_since_it_was_first_asked() -> None:
    shard = Shard(KEYS)
    shard.leave(5.0)
    shard.leave(9.0)
    assert (shard.leaving, shard.leaving_since) == (True, 5.0)


class Store:
    """What commits leave in Redis."""

    def __init__(self) -> None:
        self.acked: list[bytes] = []
        self.progress: dict[bytes, bytes] = {}
        self.counted: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.lanes: Counter[str] = Counter()

    def take(self, written: Written) -> None:
        for page in pages(written):
            self.accepted.update(page.accepted)
        for name, key, *rest in commands(written):
            match name:
                case "XACK":
                    self.acked += rest[1:]
                case "HSET":
                    self.progress[rest[0]] = rest[1]
                case "HDEL":
                    del self.progress[rest[0]]
                case "HINCRBY":
                    self.counted[rest[0]] += rest[1]
                case "XADD" if key != KEYS.journal:
                    self.lanes[key] += 1

    def agrees_with(self, entries: list[Entry]) -> None:
        """Acknowledged is what is settled everywhere; of what is settled in part, how far."""
        ended = {entry.id for entry in entries if len(entry.done) == len(entry.targets)}
        begun = {e.id: (e.targets, e.done) for e in entries if e.done and e.id not in ended}
        assert sorted(self.acked) == sorted(ended)  # and each once
        assert read_progress(self.progress) == begun


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True), max_size=6),
    st.randoms(use_true_random=False),
    st.floats(0, 1),
)
def test_any_order_of_settling(entries: list[list[str]], chance: Any, often: float) -> None:
    shard, store, moved = Shard(KEYS), Store(), Counter[str]()
    pipelines = {target: pipeline_of(shard, target) for target in "abcd"}
    made = [entry_of(shard, b"%d-0" % n, *targets) for n, targets in enumerate(entries)]
    duties = [(entry, target) for entry in made for target in entry.targets]
    chance.shuffle(duties)
    for entry, target in duties:
        if chance.random() < 0.3:
            moved[KEYS.lane(target)] += 1
            shard.to_lane(delivery_of(pipelines[target], entry))
        else:
            shard.settle(entry, target)
        if chance.random() < often:
            store.take(shard.build())
            store.agrees_with(made)
    store.take(shard.build())
    store.agrees_with(made)
    assert len(store.acked) == len(made)
    assert shard.entries == {}
    assert store.lanes == moved
    assert all(p.lane_len == moved[KEYS.lane(target)] for target, p in pipelines.items())
    assert store.accepted == Counter(target for _, target in duties)
    assert store.counted == Counter(f"{target}|accepted" for _, target in duties)
