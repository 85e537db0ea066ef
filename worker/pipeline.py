"""One pipeline in memory: what waits to be sent, what is in flight, and in which order.

No I/O: `sender.py` and `posts.py` send, `lane.py` reads what waits in Redis.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from providers.kit import Event, Outcome, Skipped
from worker.suspension import WELL, Health, Round

if TYPE_CHECKING:
    from worker.directory import Integration
    from worker.shard import Entry, Shard

FIRST_RAMP = 1
APART = 2  # failures while others were taken: then no neighbour is to fail with it


class Delivery(msgspec.Struct, eq=False):
    """The duty to get one event to one integration.

    `entry` is its intake entry until the target is settled there; `lane_id` its place in the lane,
    b"" while that is being written. `step` is the first of its requests not yet delivered.
    """

    event: Event
    raw: bytes
    pipeline: "Pipeline"
    accepted: int  # store clock, ms
    entry: "Entry | None" = None
    lane_id: bytes | None = None
    attempts: int = 0
    step: int = 0
    note: str = ""
    alone: int = 0  # times the upstream took others and not this one
    due: int = 0  # store clock, ms; an event that fails alone waits until then
    since: float = 0.0  # when it came into memory (monotonic)
    landed: "Landed | None" = None  # came back before its place in the lane was known
    user: str = ""  # whose order it is part of; "" where order does not matter

    def __post_init__(self) -> None:
        self.user = self.event.user_key if self.pipeline.ordered else ""


class Landed(msgspec.Struct, frozen=True):
    """What came of sending a delivery, with what people may want to see of it."""

    outcome: Outcome | Skipped
    alone: bool = False  # the upstream named this event; the pipeline is not to blame
    step: int = 0
    status: int | None = None
    request: str | None = None
    response: str | None = None


class _Batch:
    """A batch being filled."""

    def __init__(self, most: int, largest: int) -> None:
        self.members: list[Delivery] = []
        self._most, self._room = most, largest
        self._kind: tuple[int, str, Delivery | None] = 0, "", None

    def takes(self, delivery: Delivery) -> bool:
        """Add the delivery if it may share the batch.

        Those of one step and note do; but for what failed again while others were taken.
        """
        size = len(delivery.raw)
        kind = delivery.step, delivery.note, delivery if delivery.alone >= APART else None
        if not self.members:
            self._kind = kind
        elif kind != self._kind or size > self._room or len(self.members) >= self._most:
            return False
        self.members.append(delivery)
        self._room -= size
        return True


@dataclass(slots=True, eq=False)
class Pipeline:
    """State of one integration while its shard is ours.

    Fresh deliveries stand in `lines`, one a user; `ready` are those whose user has nothing in
    flight. Once something waits in the lane (`lane_len` > 0), fresh ones join its end, and
    `buffer` holds what was read from its head.
    """

    integration: "Integration"
    shard: "Shard"
    lines: "dict[str | Delivery, list[Delivery]]" = field(default_factory=dict)
    ready: "deque[str | Delivery]" = field(default_factory=deque)
    buffer: deque[Delivery] = field(default_factory=deque)
    busy: set[str] = field(default_factory=set)
    flying: dict[Delivery, None] = field(default_factory=dict)
    requests: int = 0  # in flight
    size: int = 0  # deliveries in lines
    health: Health = WELL
    round: Round = field(default_factory=Round)
    stumbled: list[Delivery] = field(default_factory=list)
    message: str = ""
    reason: str = ""
    closed: bool = False  # a round has failed and is landing
    dropping: bool = False  # paused or deleted: what waits is being let go
    probing: bool = False  # one request, until it is delivered
    ramp: int = FIRST_RAMP
    due: float = 0.0  # store clock, ms: nothing is started before
    alarm: float = 0.0  # store clock, ms: when it is looked at again; 0: not by a timer
    suspended_epoch: int = -1
    lane_len: int = 0
    early: int = 0  # replayed events that left the lane before the word came that they were there
    live: set[bytes] = field(default_factory=set)  # lane ids in memory, or not yet deleted there
    gone: set[bytes] = field(default_factory=set)  # deleted, and a look under way may bring them
    looks: int = 0  # at the lane, under way
    placing: set[Delivery] = field(default_factory=set)  # sent, and their lane ids not yet known
    waiting: dict[bytes, tuple[int, str]] = field(default_factory=dict)  # lane id: (due, user)
    blocked: dict[str, list[bytes]] = field(default_factory=dict)  # user: lane ids that wait; b"":
    # one whose place is not known yet
    cursor: bytes = b"-"
    exhausted: bool = False  # nothing more to read until something changes
    passed_over: bool = False  # events behind the cursor wait for others
    rewinds: int = 0  # with `growths`: what a reading that is under way does not know of
    growths: int = 0
    reading: bool = False
    fared: float = 0.0  # store clock, ms: when others were last told that it delivers
    batch: tuple[bytes, int] | None = None  # last lane id and opening time of a whole batch

    @property
    def ordered(self) -> bool:
        """Whether events of one user keep their order."""
        return self.integration.ordered

    @property
    def held(self) -> bool:
        """Whether it is suspended: everything waits in the lane."""
        integration = self.integration
        return integration.active == 2 or self.suspended_epoch == integration.epoch

    @property
    def noticing(self) -> bool:
        """Whether the next commit notes what was put into its lane from outside."""
        return self.integration.id.encode() in self.shard.noticed

    @property
    def idle(self) -> bool:
        """Whether nothing of it is in memory."""
        return not (self.flying or self.size or self.buffer)

    def lane_first(self, user: str) -> bool:
        """Whether a fresh event of `user` must join the lane instead of being sent."""
        if self.held or self.closed:
            return True
        if user in self.lines:  # its earlier ones are not there
            return False
        if self.probing or self.due:
            return True
        if self.integration.through_lane or self.lane_len > len(self.waiting):
            return True
        return bool(user) and user in self.blocked

    def push(self, delivery: Delivery) -> None:
        """Queue a fresh delivery, behind the earlier ones of its user."""
        self.size += 1
        self.shard.queued += 1
        key = delivery.user or delivery
        line = self.lines.get(key)
        if line is None:
            self.lines[key] = [delivery]
            if key not in self.busy:
                self.ready.append(key)
        else:
            line.append(delivery)

    def _shrink(self, count: int) -> None:
        self.size -= count
        self.shard.queued -= count

    def take(self, most: int, largest: int) -> list[Delivery]:
        """Return the next batch: at most `most` deliveries of about `largest` bytes, in order.

        Deliveries of a user with something in flight stay, and those that need requests of their
        own.
        """
        batch = _Batch(most, largest)
        if self.buffer:
            self._take_read(batch)
        else:
            self._take_fresh(batch)
        self.flying.update(dict.fromkeys(batch.members))
        self.busy.update([delivery.user for delivery in batch.members if delivery.user])
        return batch.members

    def take_each(self, most: int) -> list[Delivery]:
        """Return up to `most` fresh deliveries that go in requests of their own: one of a user."""
        taken: list[Delivery] = []
        while self.ready and len(taken) < most:
            key = self.ready.popleft()
            line = self.lines[key]
            delivery = line.pop(0)
            if not line:
                del self.lines[key]
            self.flying[delivery] = None
            if delivery.user:
                self.busy.add(delivery.user)
            taken.append(delivery)
        self._shrink(len(taken))
        return taken

    def _take_read(self, batch: "_Batch") -> None:
        kept: list[Delivery] = []
        passed: set[str] = set()  # users with an earlier event that is kept
        most = self._least_tried() if self.probing else math.inf
        while self.buffer:
            first = self.buffer[0]
            if first.user in self.busy or first.user in passed or first.attempts > most:
                kept.append(self.buffer.popleft())
                if first.user:
                    passed.add(first.user)
            elif batch.takes(first):
                self.buffer.popleft()
                if first.user in self.lines and first.user in self.ready:  # of one that is replayed
                    self.ready.remove(first.user)
            else:
                break
        self.buffer.extendleft(reversed(kept))

    def _least_tried(self) -> int:
        """How often the least tried was sent, of those that are first of their user.

        A probe is none that was sent more often, for that may fail for itself.
        """
        heads: dict[str | Delivery, int] = {}
        for delivery in self.buffer:
            heads.setdefault(delivery.user or delivery, delivery.attempts)
        return min(heads.values(), default=0)

    def _take_fresh(self, batch: "_Batch") -> None:
        while self.ready:
            key = self.ready[0]
            line, taken = self.lines[key], 0
            while taken < len(line) and batch.takes(line[taken]):
                taken += 1
            if not taken:
                return
            self.ready.popleft()
            self._shrink(taken)
            if taken == len(line):
                del self.lines[key]
            else:
                del line[:taken]

    def land(self, batch: list[Delivery]) -> None:
        """Note that a batch is no longer in flight; the next events of its users may go."""
        flying, busy = self.flying, self.busy
        for delivery in batch:
            flying.pop(delivery, None)
            user = delivery.user
            if user in busy:
                busy.discard(user)
                if user in self.lines:
                    self.ready.append(user)

    @property
    def oldest(self) -> float:
        """When the first of what is ready came into memory (monotonic)."""
        return self.lines[self.ready[0]][0].since

    @property
    def first(self) -> Delivery:
        """The first of those that have waited for about the longest, of all that are queued."""
        return next(iter(self.lines.values()))[0]

    def empty(self) -> list[Delivery]:
        """Return every queued fresh delivery in order, and forget them."""
        queued = [delivery for line in self.lines.values() for delivery in line]
        queued.sort(key=lambda delivery: delivery.since)
        self.ready.clear()
        self.lines.clear()
        self._shrink(self.size)
        return queued

    def forget_lane(self) -> None:
        """Drop what was read from the lane but not sent; it is read again."""
        for delivery in self.buffer:
            if delivery.lane_id:
                self.live.discard(delivery.lane_id)
        self.buffer.clear()
        self.rewind()

    def rewind(self) -> None:
        """Read the lane from its head next time."""
        self.cursor, self.exhausted, self.passed_over = b"-", False, False
        self.rewinds += 1

    def shrink_lane(self) -> None:
        """Note that something left the lane."""
        if self.lane_len:
            self.lane_len -= 1
        else:  # it is not to be taken for one that comes later
            self.early += 1

    def grow_lane(self, count: int) -> None:
        """Notice that so many were put into the lane from outside; some may have left already."""
        self.shard.notice(self.integration.id.encode(), count)
        known = min(count, self.early)
        self.early -= known
        self.lane_len += count - known

    def grow(self) -> None:
        """Read on: something was put at the lane's end."""
        self.exhausted = False
        self.growths += 1

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at the lane: what is deleted meanwhile is known until it is over.

        Answers of a busy server may come in another order than they were given.
        """
        self.looks += 1
        try:
            yield
        finally:
            self.looks -= 1
            if not self.looks:
                self.live -= self.gone
                self.gone.clear()

    def deleted(self, lane_id: bytes) -> None:
        """Forget an entry that is no longer in the lane."""
        if self.looks:
            self.gone.add(lane_id)
        else:
            self.live.discard(lane_id)

    def wait(self, lane_id: bytes, due: int, user: str) -> None:
        """Let one lane entry wait for itself; its user's later events wait with it."""
        self.unwait(lane_id)
        self.waiting[lane_id] = (due, user)
        if user:
            self.block(user, lane_id)

    @property
    def next_due(self) -> int:
        """When the first of the lane's entries that wait for themselves may go."""
        return min(due for due, _ in self.waiting.values())

    def block(self, user: str, lane_id: bytes = b"") -> None:
        """Let nothing of a user go that is later; what was read of theirs is read again."""
        self.blocked.setdefault(user, []).append(lane_id)
        for delivery in [d for d in self.buffer if d.user == user and d.lane_id]:
            self.buffer.remove(delivery)
            self.live.discard(delivery.lane_id or b"")
            self.passed_over = True

    def unblock(self, user: str, lane_id: bytes = b"") -> None:
        """End one of a user's waits."""
        self.blocked[user].remove(lane_id)
        if not self.blocked[user]:
            del self.blocked[user]

    def comes_later(self, user: str, lane_id: bytes) -> bool:
        """Whether an earlier event of the user waits."""
        return any(_place(other) < _place(lane_id) for other in self.blocked.get(user, ()))

    def withdraw(self, user: str) -> list[Delivery]:
        """Return a user's queued fresh deliveries in order, and forget them."""
        theirs = [*self.lines.pop(user, ())]
        if theirs and user in self.ready:
            self.ready.remove(user)
        self._shrink(len(theirs))
        return theirs

    def unwait(self, lane_id: bytes) -> None:
        """End the wait of a lane entry, if it had one."""
        _, user = self.waiting.pop(lane_id, (0, ""))
        if user:
            self.unblock(user, lane_id)


def _place(lane_id: bytes) -> tuple[int, ...]:
    """Return what lane ids are in the order of; b"" comes first."""
    return tuple(map(int, lane_id.split(b"-"))) if lane_id else ()
