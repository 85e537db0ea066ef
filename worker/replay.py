"""Dead letters back on their way, at the end of their lanes, accounted like any delivery.

The letter is marked *after* Redis has it, in a transaction that locks the row: two replays at once
send it once, and a crash between the two leaves it unmarked. It is then replayed again, at worst a
duplicate with the same idempotency key; marked first, it could be lost.

Its acceptance is new too (`t` is now): held for as long as any event, not expired at once.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, Engine

from worker.intake import check_room
from worker.journal import Page, pack
from worker.state import REPLAY, Keys, shard_of
from worker.store import audit
from worker.store.database import now
from worker.store.dead_letters import headings, lock, mark_replayed
from worker.store.integrations import list_of
from worker.store.models import DeadLetter

AT_ONCE = 100  # letters a transaction
STEP_SECONDS = 0.1  # how long a paced replay goes without a word
REPLAYED = "was replayed before"
NO_INTEGRATION = "reached no integration (malformed or poison)"
DELETED = "its integration was deleted"
OFF = "its integration is paused"


@dataclass(frozen=True)
class Choice:
    """What would be sent again, oldest first; and how many would not, by why."""

    ids: list[int] = field(default_factory=list)
    kinds: Counter[tuple[str | None, str]] = field(default_factory=Counter)  # integration, reason
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Progress:
    """How far a replay is. `refused`: what has changed since they were chosen, by why."""

    replayed: int
    refused: int
    total: int


class _Addressed(msgspec.Struct):
    project_id: str = ""


def choose(
    connection: Connection,
    *,
    ids: Sequence[int] | None = None,
    project_id: str | None = None,
    integration_id: str | None = None,
    reason: str | None = None,
    force: bool = False,
) -> Choice:
    """Return which dead letters a replay would send again, of those that fit what is given.

    Not those of integrations that are off or deleted: nothing would come of it. With `force` also
    those replayed before, and malformed ones: they go to the intake as they are, and will be
    malformed again unless the decoder is another by now. Not where a project is given: that an
    event is the project's own is but what it says, and it may be poison.
    """
    found = headings(
        connection,
        ids=ids,
        project_id=project_id,
        integration_id=integration_id,
        reason=reason,
        open_only=ids is None and not force,
    )
    states = _states(connection)
    choice = Choice()
    for row in found:
        may_force = force and (project_id is None or row.integration_id is not None)
        why = _refusal(row, states, force=may_force)
        if why:
            choice.refused[why] += 1
        else:
            choice.ids.append(row.id)
            choice.kinds[row.integration_id, row.reason] += 1
    return choice


def _states(connection: Connection) -> dict[str, int]:
    return {integration.id: integration.active for integration in list_of(connection)}


def _refusal(letter: Any, states: Mapping[str, int], *, force: bool) -> str:
    if letter.replayed_at is not None and not force:
        return REPLAYED
    if letter.integration_id is None:
        return "" if force else NO_INTEGRATION
    if letter.integration_id not in states:
        return DELETED
    return "" if states[letter.integration_id] else OFF


def replay(
    redis: Any,
    engine: Engine,
    shards: int,
    letters: Sequence[int],
    rate: float | None = None,
    *,
    force: bool = False,
    actor: str = "cli",
) -> Iterator[Progress]:
    """Send the dead letters with these ids again, at most `rate` a second; yield how far it is.

    Stop iterating to stop: what was counted as replayed is, the rest is untouched.

    Raises:
        IntakeFull: the server is fuller than 70 % of its maxmemory.
    """
    size = max(1, min(AT_ONCE, int(rate * STEP_SECONDS))) if rate else AT_ONCE
    done: Counter[str | None] = Counter()
    refused, began = 0, time.monotonic()
    try:
        for start in range(0, len(letters), size):
            while rate and start > (time.monotonic() - began) * rate:
                time.sleep(STEP_SECONDS)
                yield Progress(done.total(), refused, len(letters))
            check_room(redis)
            batch = letters[start : start + size]
            with engine.begin() as connection:
                sent = _replay_some(redis, connection, shards, batch, force=force)
            done.update(letter.integration_id for letter in sent)
            refused += len(batch) - len(sent)
            yield Progress(done.total(), refused, len(letters))
    finally:
        _note(engine, done, actor)


def _replay_some(
    redis: Any, connection: Connection, shards: int, ids: Sequence[int], *, force: bool
) -> list[DeadLetter]:
    """Send some letters again and mark them; return them."""
    states = _states(connection)
    letters = [
        letter
        for letter in lock(connection, ids, open_only=not force)
        if not _refusal(letter, states, force=force)
    ]
    lanes: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    for letter in letters:
        if letter.integration_id and letter.project_id:
            lanes[letter.project_id, letter.integration_id].append(letter.body)
        else:
            keys = Keys(shard_of(_project(letter.body), shards))
            redis.xadd(keys.intake, {"event": letter.body})
    for (project, integration), bodies in lanes.items():
        keys = Keys(shard_of(project, shards))
        names = [keys.lane(integration), keys.tally, keys.due, keys.grown, keys.journal]
        names.append(keys.replay(uuid4().hex))
        page = pack(Page(accepted={integration: len(bodies)}))
        redis.eval(REPLAY, len(names), *names, integration, page, *bodies)
    if letters:
        mark_replayed(connection, [letter.id for letter in letters], now())
    return letters


def _project(body: bytes) -> str:
    """Return the project of an event that may be none; "" (some shard) where it says none."""
    try:
        return msgspec.json.decode(body, type=_Addressed).project_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _note(engine: Engine, done: Counter[str | None], actor: str) -> None:
    if not done:
        return
    with engine.begin() as connection:
        for integration, count in done.items():
            audit.add(
                connection,
                actor,
                "deadletters.replay",
                integration_id=integration,
                after={"replayed": count},
            )
