"""One pipeline in memory: what waits to be sent, what is in flight, and in which order.

No I/O: `drain.py` sends and commits, `lane.py` reads what waits in Redis.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from providers.kit import Event, Outcome, Skipped
from worker.suspension import WELL, Health, Round

if TYPE_CHECKING:
    from worker.directory import Integration
    from worker.shard import Entry, Shard

FIRST_RAMP = 1


@dataclass(slots=True, eq=False)
class Delivery:
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
    since: float = 0.0  # loop clock when it came into memory
    landed: "Landed | None" = None  # came back before its place in the lane was known
    user: str = field(init=False)  # whose order it is part of; "" where order does not matter

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


@dataclass(slots=True, eq=False)
class Pipeline:
    """State of one integration while its shard is ours.

    Fresh deliveries go through `queue`. Once something waits in the lane (`lane_len` > 0), fresh
    ones join its end, and `buffer` holds what was read from its head.
    """

    integration: "Integration"
    shard: "Shard"
    queue: deque[Delivery] = field(default_factory=deque)
    buffer: deque[Delivery] = field(default_factory=deque)
    behind: dict[str, deque[Delivery]] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    flying: dict[Delivery, None] = field(default_factory=dict)
    requests: int = 0  # in flight
    size: int = 0  # deliveries in queue and behind
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
    suspended_epoch: int = -1
    lane_len: int = 0
    live: set[bytes] = field(default_factory=set)  # lane ids in memory, or not yet deleted there
    waiting: dict[bytes, tuple[int, str]] = field(default_factory=dict)  # lane id: (due, user)
    blocked: Counter[str] = field(default_factory=Counter)  # users with a waiting event
    cursor: bytes = b"-"
    exhausted: bool = False  # nothing more to read until something changes
    passed_over: bool = False  # events behind the cursor wait for others
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
    def idle(self) -> bool:
        """Whether nothing of it is in memory."""
        return not (self.flying or self.size or self.buffer)

    def lane_first(self, user: str) -> bool:
        """Whether a fresh event of `user` must join the lane instead of being sent."""
        if self.held or self.closed or self.probing or self.due:
            return True
        if self.integration.through_lane or self.lane_len > len(self.waiting):
            return True
        return bool(user) and user in self.blocked

    def push(self, delivery: Delivery) -> None:
        """Queue a fresh delivery, behind an earlier one of its user if that is under way."""
        self.size += 1
        user = delivery.user
        if user and (user in self.busy or user in self.behind):
            self.behind.setdefault(user, deque()).append(delivery)
        else:
            self.queue.append(delivery)

    def take(self, most: int, largest: int) -> list[Delivery]:
        """Return the next batch: at most `most` deliveries of about `largest` bytes, in order.

        Deliveries of a user with something in flight stay; those with steps done or a note go
        alone, for they need requests of their own.
        """
        source = self.buffer or self.queue
        fresh = source is self.queue
        batch: list[Delivery] = []
        mine: set[str] = set()
        kept: list[Delivery] = []
        size = 0
        while source and len(batch) < most:
            delivery = source[0]
            user = delivery.user
            size += len(delivery.raw)
            single = bool(delivery.step or delivery.note)
            if batch and (size > largest or single):
                break
            source.popleft()
            if user and user in self.busy and user not in mine:
                kept.append(delivery)
                continue
            if fresh:
                self.size -= 1
            if user:
                self.busy.add(user)
                mine.add(user)
            batch.append(delivery)
            if single:
                break
        for delivery in reversed(kept):
            if fresh:
                self.behind.setdefault(delivery.user, deque()).appendleft(delivery)
            else:
                self.buffer.appendleft(delivery)
        self.flying.update(dict.fromkeys(batch))
        return batch

    def land(self, batch: list[Delivery]) -> None:
        """Note that a batch is no longer in flight; the next event of its users may go."""
        for delivery in batch:
            self.flying.pop(delivery, None)
            user = delivery.user
            if not user or user not in self.busy:
                continue
            self.busy.discard(user)
            followers = self.behind.get(user)
            if followers:
                self.queue.appendleft(followers.popleft())
                if not followers:
                    del self.behind[user]

    def empty(self) -> list[Delivery]:
        """Return every queued fresh delivery in order, and forget them."""
        queued = [*self.queue]
        queued += [delivery for waiting in self.behind.values() for delivery in waiting]
        queued.sort(key=lambda delivery: delivery.since)
        self.queue.clear()
        self.behind.clear()
        self.size = 0
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

    def wait(self, lane_id: bytes, due: int, user: str) -> None:
        """Let one lane entry wait for itself; its user's later events wait with it."""
        self.waiting[lane_id] = (due, user)
        if user:
            self.block(user)

    def block(self, user: str) -> None:
        """Let nothing of a user go; what was read of theirs is read again."""
        self.blocked[user] += 1
        for delivery in [d for d in self.buffer if d.user == user and d.lane_id]:
            self.buffer.remove(delivery)
            self.live.discard(delivery.lane_id or b"")
            self.passed_over = True

    def unblock(self, user: str) -> None:
        """End one of a user's waits."""
        self.blocked[user] -= 1
        if not self.blocked[user]:
            del self.blocked[user]

    def withdraw(self, user: str) -> list[Delivery]:
        """Return a user's queued fresh deliveries in order, and forget them."""
        theirs = [d for d in self.queue if d.user == user] + [*self.behind.pop(user, ())]
        self.queue = deque(d for d in self.queue if d.user != user)
        self.size -= len(theirs)
        return theirs

    def unwait(self, lane_id: bytes) -> None:
        """End the wait of a lane entry, if it had one."""
        _, user = self.waiting.pop(lane_id, (0, ""))
        if user:
            self.unblock(user)
