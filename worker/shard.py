"""One shard while its lease is ours: its unfinished entries and what the next commit writes."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import msgspec

from worker.connection import Command
from worker.journal import PAGE, Page, pack
from worker.pipeline import Delivery
from worker.state import Commit, Keys

_encode = msgspec.msgpack.Encoder().encode
_progress = msgspec.msgpack.Decoder(tuple[list[str], list[str]])
_numbers = count(1)  # of leases and commits: never the same twice under one token


class Entry(msgspec.Struct, eq=False):
    """An intake entry whose targets are not all settled."""

    id: bytes
    targets: list[str]
    accepted: int  # store clock, ms
    done: list[str] = []
    noted: bool = False  # its progress is in Redis


@dataclass(frozen=True, slots=True)
class Written:
    """One commit: what it writes, the deliveries it adds to lanes, what to do once it is there."""

    number: int
    commit: Commit
    adding: list[Delivery]
    after: list[Callable[[], None]]


@dataclass(slots=True, eq=False)
class Shard:
    """Collects what is settled between two commits. Nothing here does I/O."""

    keys: Keys
    entries: dict[bytes, Entry] = field(default_factory=dict)
    acks: list[bytes] = field(default_factory=list)
    touched: dict[bytes, Entry] = field(default_factory=dict)
    adding: list[Delivery] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    page: Page = field(default_factory=Page)
    tallies: Counter[tuple[str, str]] = field(default_factory=Counter)
    after: list[Callable[[], None]] = field(default_factory=list)
    progress: dict[bytes, tuple[list[str], list[str]]] = field(default_factory=dict)
    unwritten: "Written | None" = None  # built, and not yet confirmed
    # number of the last commit that is; before there is one, of our lease
    committed: int = field(default_factory=partial(next, _numbers))
    acked: set[bytes] = field(default_factory=set)  # acknowledged, and not yet committed
    unsure: bool = True  # entries may be ours without our knowing: an answer was lost, or it
    # came for our last lease of this shard, after what was left of that one was taken over
    stuck: bool = False  # the last commit did not go through
    retry_at: float = 0.0  # monotonic: not committed before
    noticed: set[bytes] = field(default_factory=set)  # whose lanes grew: that is not yet noted
    queued: int = 0  # fresh deliveries in memory that are not in flight
    read_to: bytes = b"0-0"  # the last entry that was read
    opening: bool = False  # what its last owner left comes first
    leaving: bool = False
    leaving_since: float = 0.0  # monotonic
    lost: bool = False
    intake: bytes = field(init=False)  # its key: at every read

    def __post_init__(self) -> None:
        self.intake = self.keys.intake.encode()

    @property
    def reads(self) -> bool:
        """Whether new entries are read."""
        return self.sends and not self.opening

    @property
    def sends(self) -> bool:
        """Whether new requests are started: not while their outcomes could not be kept."""
        return not (self.leaving or self.lost or self.stuck)

    @property
    def dirty(self) -> bool:
        """Whether there is anything to commit."""
        return bool(
            self.acks
            or self.touched
            or self.adding
            or self.commands
            or self.page
            or self.tallies
            or self.after
        )

    @property
    def uncommitted(self) -> bool:
        """Whether there is anything to commit, or to commit again."""
        return self.unwritten is not None or self.dirty

    def leave(self, now: float) -> None:
        """Begin to give the shard back."""
        if not self.leaving:
            self.leaving, self.leaving_since = True, now

    def settle(self, entry: Entry, integration_id: str) -> None:
        """Note that one target of an entry is settled; acknowledge the entry after its last."""
        self.settle_all([entry], integration_id)

    def settle_all(self, entries: Sequence[Entry], integration_id: str) -> None:
        """Settle one target of several entries."""
        self.tallies[integration_id, "accepted"] += len(entries)
        for entry in entries:
            entry.done.append(integration_id)
            if len(entry.done) >= len(entry.targets):
                self.finish(entry)
            else:
                self.touched[entry.id] = entry

    def finish(self, entry: Entry) -> None:
        """Acknowledge an entry with the next commit."""
        entry_id = entry.id
        self.ack(entry_id)
        self.entries.pop(entry_id, None)
        self.touched.pop(entry_id, None)
        if entry.noted:
            self.commands.append(("HDEL", self.keys.progress, entry_id))

    def ack(self, entry_id: bytes) -> None:
        """Acknowledge an entry with the next commit, whatever came of it."""
        self.acks.append(entry_id)
        self.acked.add(entry_id)

    def knows(self, entry_id: bytes) -> bool:
        """Whether an entry is in hand: unfinished, or finished and not yet committed."""
        return entry_id in self.entries or entry_id in self.acked

    def to_lane(self, delivery: Delivery) -> None:
        """Put a fresh delivery at its lane's end with the next commit."""
        pipeline = delivery.pipeline
        delivery.lane_id = b""
        pipeline.lane_len += 1
        if delivery in pipeline.flying or delivery.landed is not None:
            pipeline.placing.add(delivery)
        self.adding.append(delivery)
        entry, delivery.entry = delivery.entry, None
        if entry is not None:
            self.settle(entry, pipeline.integration.id)

    def notice(self, integration: bytes, count: int = 0) -> None:
        """Note with the next commit that what was put into a lane from outside is known.

        Without a `count` all of it is: the integration was deleted.
        """
        self.noticed.add(integration)
        grown = self.keys.grown
        known = ("HINCRBY", grown, integration, -count) if count else ("HDEL", grown, integration)
        self.commands.append(known)
        self.after.append(lambda: self.noticed.discard(integration))

    def build(self) -> "Written":
        """Return what to write now, and start collecting anew."""
        counts = {f"{of}|{name}": count for (of, name), count in self.tallies.items()}
        commit = Commit(self.acks, [], counts)
        adding, after = self.adding, self.after
        commands = commit.commands
        for delivery in adding:
            commands.append(self._lane_add(delivery))
        for pipeline in dict.fromkeys(delivery.pipeline for delivery in adding):
            commands.append(
                ("ZADD", self.keys.due, "NX", int(pipeline.due), pipeline.integration.id)
            )
        for entry in self.touched.values():
            entry.noted = True
            state = _encode((entry.targets, entry.done))
            commands.append(("HSET", self.keys.progress, entry.id, state))
        commands += self.commands
        self.page.accepted = {
            integration: count
            for (integration, name), count in self.tallies.items()
            if name == "accepted"
        }
        if self.page:
            commands.append(("XADD", self.keys.journal, "*", PAGE, pack(self.page)))
        self.acks, self.adding, self.after = [], [], []
        self.touched, self.commands = {}, []
        self.page, self.tallies = Page(), Counter()
        return Written(next(_numbers), commit, adding, after)

    def _lane_add(self, delivery: Delivery) -> Command:
        lane = self.keys.lane(delivery.pipeline.integration.id)
        fields: list[str | bytes | int | float] = ["e", delivery.raw, "t", delivery.accepted]
        for name, value in (
            ("a", delivery.attempts),
            ("d", delivery.due),
            ("s", delivery.step),
            ("n", delivery.note),
        ):
            if value:
                fields += [name, value]
        return ("XADD", lane, "*", *fields)


def queued(shards: Iterable[Shard]) -> int:
    """Return the fresh deliveries of shards in memory that are not in flight."""
    return sum(shard.queued for shard in shards)


def read_progress(raw: dict[bytes, bytes]) -> dict[bytes, tuple[list[str], list[str]]]:
    """Return entry → (targets, done) of a shard's progress hash."""
    return {entry: _progress.decode(state) for entry, state in raw.items()}
