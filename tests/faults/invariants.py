"""The promises, checked from outside: the upstream's own count against the store and the record.

I1 every accepted event has exactly one place for each integration; I2 nothing arrives that was not
accepted; I3 it arrives again only within the bound; I4 counters are what they count; I5 nothing is
left over at rest; I6 states, audit and notices agree; I7 no secret is shown.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import func, select

from worker.audit import ENDS
from worker.sandbox.upstreams import webhooks
from worker.state import GROUP, UNSHARDED, Keys, shard_of
from worker.store.database import reading
from worker.store.models import Delivery, Integration, Notification, Tally

if TYPE_CHECKING:
    from tests.faults.scene import Event, Scene

SECRETS = (webhooks.TOKEN, webhooks.SECRET.removeprefix("whsec_"))


@dataclass
class Accounts:
    """Where the events of one integration are."""

    integration_id: str
    sent: "list[Event]"
    taken: Counter[str]
    rows: dict[str, list[str]] = field(default_factory=dict)  # event: outcomes recorded
    reasons: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    malformed: set[str] = field(default_factory=set)

    @property
    def ids(self) -> set[str]:
        return {event["id"] for event in self.sent}

    @property
    def repeated(self) -> int:
        return self.taken.total() - len(self.taken)

    @property
    def lost(self) -> set[str]:
        """Events of which nothing is known: they neither arrived, nor ended, nor wait."""
        return self.ids - self.taken.keys() - self.rows.keys() - self.held.keys()

    def count(self, outcome: str) -> int:
        return sum(outcomes == [outcome] for outcomes in self.rows.values())

    def verify(self, *, ordered: bool, unknown: int) -> None:
        strange = sorted(self.taken.keys() - self.ids)
        assert not strange, f"{len(strange)} arrived that were never accepted: {strange[:3]}"
        places = {id_: len(self.rows.get(id_, ())) + self.held[id_] for id_ in self.ids - self.lost}
        wrong = {id_: count for id_, count in places.items() if count != 1}
        assert not wrong, f"{len(wrong)} without exactly one place: {list(wrong.items())[:5]}"
        assert self.rows.keys() <= self.ids
        delivered = {id_ for id_, outcomes in self.rows.items() if outcomes == ["delivered"]}
        assert delivered <= self.taken.keys(), "recorded as delivered, and never arrived"
        unaware = self.taken.keys() - delivered
        assert len(unaware) <= unknown, f"{len(unaware)} arrived without being recorded"
        if ordered:
            self._in_order()

    def _in_order(self) -> None:
        from tests.faults.scene import users_of

        arrived = list(self.taken)
        place = {id_: number for number, id_ in enumerate(arrived)}
        for user, theirs in users_of(self.sent).items():
            places = [place[id_] for id_ in theirs if id_ in place]
            assert places == sorted(places), f"the events of {user} overtook each other"


def accounts_of(scene: "Scene", integration_id: str) -> Accounts:
    _, _, project = scene.receivers[integration_id]
    found = Accounts(integration_id, scene.sent[project], scene.taken_by(integration_id))
    table = Delivery.table()
    query = select(table.c.event_id, table.c.outcome, table.c.reason).where(
        table.c.integration_id == integration_id
    )
    with reading(scene.engine) as connection:
        for event_id, outcome, reason in connection.execute(query):
            found.rows.setdefault(event_id, []).append(outcome)
            found.reasons[f"{outcome}/{reason}"] += 1
    keys = Keys(shard_of(project, scene.settings.shards))
    redis: Any = scene.redis
    for _, fields in redis.xrange(keys.lane(integration_id)):
        found.held[msgspec.json.decode(fields[b"e"])["id"]] += 1
    return found


def nothing_left(scene: "Scene") -> None:
    """Nothing is left over, and the counters are what they count (I4, I5)."""
    redis: Any = scene.redis
    assert redis.xlen(UNSHARDED) == 0
    for number in range(scene.settings.shards):
        keys = Keys(number)
        assert redis.xlen(keys.intake) == 0
        if redis.exists(keys.intake):
            assert redis.xpending(keys.intake, GROUP)["pending"] == 0
        for key in (keys.journal, keys.wanted, keys.solo, keys.progress):
            assert not (redis.xlen(key) if key == keys.journal else redis.hlen(key)), key
        for integration in redis.zrange(keys.due, 0, -1):
            assert redis.xlen(keys.lane(integration.decode())), "due, and nothing waits"
    found = scene.balance()
    assert found.unaccounted == 0
    rows = _counted(scene)
    with reading(scene.engine) as connection:
        table = Tally.table()
        columns = (table.c.integration_id, table.c.outcome, table.c.count)
        query = select(*columns).where(table.c.outcome != "accepted")
        tallies = {(row[0], row[1]): row[2] for row in connection.execute(query)}
    assert rows == tallies, "the record's counters are not what it counts"
    for line in found.lines:
        assert line.ended == {o: rows[line.integration_id, o] for o in ENDS if o in line.ended}


def _counted(scene: "Scene") -> dict[tuple[str, str], int]:
    table = Delivery.table()
    query = select(table.c.integration_id, table.c.outcome, func.count()).group_by(
        table.c.integration_id, table.c.outcome
    )
    with reading(scene.engine) as connection:
        return {(row[0], row[1]): row[2] for row in connection.execute(query)}


def suspensions(scene: "Scene", flips: int) -> None:
    """Of each flip there is one audit row and one notice; a suspended one says why (I6)."""
    notices, pipelines = Notification.table(), Integration.table()
    audited = scene.flips()
    with reading(scene.engine) as connection:
        told = connection.execute(
            select(func.count()).where(notices.c.kind == "integration.suspended")
        ).scalar()
        silent = connection.execute(
            select(pipelines.c.id).where(
                pipelines.c.active == 2,
                pipelines.c.last_error_message.is_(None) | pipelines.c.last_error_at.is_(None),
            )
        ).all()
    assert (audited, told) == (flips, flips), "flips, audit rows and notices"
    assert not silent


def no_secret_shown(scene: "Scene") -> None:
    for log in (scene.folder / "log").iterdir():
        text = log.read_text(errors="replace")
        for secret in SECRETS:
            assert secret not in text, f"a secret in {log.name}"
