"""Where every accepted event x integration is: the balance that `onward audit` prints.

The database counts what commits have accepted and ended, once it is recorded; the journal holds
what is on its way. Redis keeps counts of its own. They agree, or something is unaccounted for:

    accepted = delivered + skipped + rejected + expired + waiting in the lane
    accepted, ended (Redis) = recorded (database) + in the journal

Where Redis was emptied, its counts begin anew and the first line still tells what is gone.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from sqlalchemy import Engine

from worker.journal import PAGE, Outcome, unpack
from worker.record import tallies_of
from worker.state import UNSHARDED, Keys
from worker.store.database import reading
from worker.store.deliveries import last_recorded, list_tallies

ENDS: tuple[str, ...] = get_args(Outcome)
COUNTS = ("accepted", *ENDS)
NOBODY = "*"  # tallies of events that reach no integration


@dataclass(frozen=True, slots=True)
class Line:
    """The balance of one integration."""

    integration_id: str
    counted: dict[str, int]  # by Redis since it was last emptied: accepted, and each end
    waiting: int
    recorded: dict[str, int]
    in_journal: dict[str, int]

    def known(self, what: str) -> int:
        """Return how many were accepted, or ended so: recorded or on their way to it."""
        return self.recorded.get(what, 0) + self.in_journal.get(what, 0)

    @property
    def accepted(self) -> int:
        """How many were accepted."""
        return self.known("accepted")

    @property
    def ended(self) -> dict[str, int]:
        """How many ended, by how."""
        return {what: count for what in ENDS if (count := self.known(what))}

    @property
    def missing(self) -> int:
        """Accepted and nowhere to be found; negative: ended more often than accepted."""
        return self.accepted - self.waiting - sum(self.ended.values())

    @property
    def unrecorded(self) -> int:
        """Counted by Redis, and neither in the database nor on its way."""
        return sum(max(self.counted.get(what, 0) - self.known(what), 0) for what in COUNTS)

    @property
    def forgotten(self) -> int:
        """Accepted, and not by Redis' count: how many it had when it was emptied."""
        return max(self.accepted - self.counted.get("accepted", 0), 0)


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
        return sum(abs(line.missing) + line.unrecorded for line in self.lines)


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
        marks = last_recorded(connection, range(shards))
    found = Balance(intake=redis.xlen(UNSHARDED))
    for number in range(shards):
        _read_shard(redis, Keys(number), marks.get(number), recorded, found)
    seen = {line.integration_id for line in found.lines}
    for integration in sorted({name for name, _ in recorded} - seen):  # Redis was emptied
        found.lines.append(Line(integration, {}, 0, _counts(recorded, integration), {}))
    return found


def _counts(counts: Mapping[tuple[str, str], int], integration: str) -> dict[str, int]:
    return {what: counts.get((integration, what), 0) for what in COUNTS}


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
        rows.update(tallies_of(unpack(fields[PAGE])))
    for integration, counted in counts.items():
        found.lines.append(
            Line(
                integration,
                counted,
                waiting.get(integration, 0),
                _counts(recorded, integration),
                _counts(rows, integration),
            )
        )
