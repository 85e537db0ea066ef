"""Where every accepted event x integration is: the balance that `onward audit` prints.

Redis counts what a commit accepts and ends; the database counts what was recorded. They agree, or
something is unaccounted for:

    accepted = delivered + skipped + rejected + expired + waiting in the lane
    ended (Redis) = recorded (database) + on its way in the journal
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine

from worker.journal import PAGE, unpack
from worker.state import UNSHARDED, Keys
from worker.store.database import reading
from worker.store.deliveries import last_recorded, list_tallies

ENDS = ("delivered", "skipped", "rejected", "expired")
NOBODY = "*"  # tallies of events that reach no integration


@dataclass(frozen=True, slots=True)
class Line:
    """The balance of one integration."""

    integration_id: str
    accepted: int
    waiting: int
    ended: dict[str, int]
    recorded: dict[str, int]
    in_journal: dict[str, int]

    @property
    def missing(self) -> int:
        """Accepted and nowhere to be found; negative: ended more often than accepted."""
        return self.accepted - self.waiting - sum(self.ended.values())

    @property
    def unrecorded(self) -> int:
        """Ended by Redis' count, and neither in the database nor on its way."""
        known = sum(self.recorded.values()) + sum(self.in_journal.values())
        return sum(self.ended.values()) - known


@dataclass(slots=True)
class Balance:
    """The whole account. `intake`: events not yet routed to their integrations."""

    intake: int = 0
    journal: int = 0
    lines: list[Line] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)  # duplicates, malformed, unrouted

    @property
    def unaccounted(self) -> int:
        """How many deliveries are not accounted for."""
        return sum(abs(line.missing) + abs(line.unrecorded) for line in self.lines)


def balance(redis: Any, engine: Engine, shards: int) -> Balance:
    """Return the account, read shard by shard; read again while it seems off."""
    found = _read(redis, engine, shards)
    for _ in range(5):
        if not found.unaccounted:
            break
        found = _read(redis, engine, shards)  # commits between two of our readings look like loss
    return found


def _read(redis: Any, engine: Engine, shards: int) -> Balance:
    with reading(engine) as connection:
        recorded = list_tallies(connection)
        marks = {number: last_recorded(connection, number) for number in range(shards)}
    found = Balance(intake=redis.xlen(UNSHARDED))
    for number in range(shards):
        _read_shard(redis, Keys(number), marks[number], recorded, found)
    return found


def _read_shard(
    redis: Any,
    keys: Keys,
    mark: str | None,
    recorded: dict[tuple[str, str], int],
    found: Balance,
) -> None:
    lanes = [raw.decode() for raw in redis.zrange(keys.due, 0, -1)]
    pipe = redis.pipeline(transaction=True)  # one moment of the shard
    pipe.xlen(keys.intake)
    pipe.hgetall(keys.tally)
    pipe.xrange(keys.journal, min=f"({mark}" if mark else "-")
    for integration in lanes:
        pipe.xlen(keys.lane(integration))
    intake, tally, journal, *lengths = pipe.execute()
    waiting = dict(zip(lanes, lengths, strict=True))
    found.intake += intake
    found.journal += len(journal)
    counts: dict[str, dict[str, int]] = {}
    for name, count in tally.items():
        integration, _, what = name.decode().partition("|")
        counts.setdefault(integration, {})[what] = int(count)
    for what, count in counts.pop(NOBODY, {}).items():
        found.dropped[what] = found.dropped.get(what, 0) + count
    rows: Counter[tuple[str, str]] = Counter()
    for _, fields in journal:
        rows.update((row.integration_id, row.outcome) for row in unpack(fields[PAGE]).rows)
    for integration, ended in counts.items():
        found.lines.append(
            Line(
                integration,
                ended.pop("accepted", 0),
                waiting.get(integration, 0),
                ended,
                {what: recorded.get((integration, what), 0) for what in ENDS},
                {what: rows[integration, what] for what in ENDS},
            )
        )
