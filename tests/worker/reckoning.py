"""What must hold once random traffic is over: in the store, in memory, at the upstreams."""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from tests.worker.moody import Moody
from worker.drain import Drain
from worker.journal import PAGE, Page, Row, unpack
from worker.state import Keys

STAYS = ("tally", "committed", "journal", "seen", "replay", "lease", "pipe", "due")
# of `due` a member stays now and then whose lane is empty: it costs its next owner one look
IN_MEMORY = (  # of a pipeline, of a shard
    "lines", "ready", "buffer", "busy", "flying", "placing", "waiting", "blocked", "stumbled",
    "live", "gone", "requests", "size", "lane_len", "early", "looks", "dropping", "closed",
    "reading", "entries", "acked", "noticed", "queued", "progress",
)  # fmt: skip
LATE_SECONDS = 0.5  # after its lease was lost a worker may go on for so long


class Published(NamedTuple):
    """An event, and who should get it: the integrations that were on."""

    user: str
    targets: frozenset[str]


@dataclass
class Played:
    """What was played."""

    upstream: Moody
    published: dict[str, Published] = field(default_factory=dict)  # in this order
    ordered: dict[str, bool] = field(default_factory=dict)  # of all integrations there were
    switched: set[str] = field(default_factory=set)  # integrations that were paused or deleted
    replayed: set[tuple[str, str]] = field(default_factory=set)  # integration, event
    lost: list[float] = field(default_factory=list)  # when workers lost shards (monotonic)


async def pages(redis: Any, shards: Iterable[Keys]) -> AsyncIterator[Page]:
    """Yield what was journalled."""
    for keys in shards:
        for _, fields in await redis.xrange(keys.journal):
            yield unpack(fields[PAGE])


async def left(redis: Any, drains: Sequence[Drain]) -> dict[str, Any]:
    """Return what is left in the store and in memory."""
    found: dict[str, Any] = {}
    async for key in redis.scan_iter("onward:{*"):
        if not key.decode().split(":")[2].startswith(STAYS):
            match await redis.type(key):
                case b"stream":
                    found[key.decode()] = await redis.xlen(key)
                case b"zset":
                    found[key.decode()] = await redis.zrange(key, 0, -1)
                case _:
                    some = (await redis.hgetall(key)).items()
                    found[key.decode()] = {name: value for name, value in some if value != b"0"}
    for drain in drains:
        dispatcher = drain.dispatcher
        for name, one in (*dispatcher.pipelines.items(), *drain.shards.items()):
            has = {what: getattr(one, what, None) for what in IN_MEMORY}
            found[f"of {name}"] = {what: value for what, value in has.items() if value}
        found["active"] = [one.integration.id for one in dispatcher._active]
        found["requests"], found["unrouted"] = dispatcher.requests, drain.router._waiting
    return {what: value for what, value in found.items() if value}


async def faults(played: Played, redis: Any, shards: Sequence[Keys]) -> list[str]:
    """Return what is not accounted for, or not as it should be."""
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)  # integration, event
    told: Counter[str] = Counter()
    async for page in pages(redis, shards):
        for row in page.rows:
            rows[row.integration_id, row.event_id].append(row)
            told[f"{row.integration_id}|{row.outcome}"] += 1
        told.update({f"{id_}|accepted": count for id_, count in page.accepted.items()})
    tally: Counter[str] = Counter()
    for keys in shards:
        for name, count in (await redis.hgetall(keys.tally)).items():
            tally[name.decode()] += int(count)
    nowhere = played.published.keys() - {event for _, event in rows}
    told["*|unrouted"] = len(nowhere)
    found = [*_ends(played, rows)]
    if tally != told:
        found.append(f"tallied {dict(tally - told)}, which is not told; told {dict(told - tally)}")
    for id_, ordered in played.ordered.items():
        accepted = told[f"{id_}|accepted"]
        ended = sum(n for name, n in told.items() if name.startswith(f"{id_}|")) - accepted
        if ended != accepted:
            found.append(f"{id_}: {accepted} were accepted, {ended} ended")
        found += _overtakings(played, id_) if ordered else ()
    return found


def _ends(played: Played, rows: dict[tuple[str, str], list[Row]]) -> Iterator[str]:
    for (id_, event), some in rows.items():
        ends = [row.outcome for row in some]
        if len(ends) != 1 + ((id_, event) in played.replayed):
            yield f"{id_}: {event} ended {len(ends)} times: {ends}"
        took = [one for one, _ in played.upstream.took[id_]].count(event)
        delivered = ends.count("delivered")
        if took < min(delivered, 1) or (took != delivered and not played.lost):
            yield f"{id_}: {event} was taken {took} times, and ended: {ends}"
    for event, (_, targets) in played.published.items():
        for id_ in targets - played.switched:
            if (id_, event) not in rows:
                yield f"{id_}: {event} came to no end"


def _overtakings(played: Played, id_: str) -> Iterator[str]:
    """Yield which event was taken after a later one of its user, and should not have been."""
    first: dict[str, float] = {}
    for event, at in played.upstream.took[id_]:
        first.setdefault(event, at)
    users: dict[str, list[str]] = defaultdict(list)
    for event, (user, _) in played.published.items():
        if user and event in first and (id_, event) not in played.replayed:
            users[user].append(event)
    for user, events in users.items():
        for early, late in combinations(events, 2):
            if late in played.upstream.together[id_, early]:
                continue  # of a batch an upstream takes what it likes
            if first[late] < first[early] and not _excused(played, id_, early, first):
                yield f"{id_}: {user}'s {late} was taken before {early}"


def _excused(played: Played, id_: str, early: str, first: dict[str, float]) -> bool:
    """Whether who had it in hand lost its shard, so that it was tried again."""
    if id_ in played.switched or id_ not in played.published[early].targets:
        return bool(played.lost)
    tried = played.upstream.tried[id_, early]
    return any(tried - LATE_SECONDS < at < first[early] for at in played.lost)
