"""How events ended. `record_rows` is the journal's way into the database.

A shard's rows are written in one transaction together with how far it is recorded, so that a page
is recorded once however often it is tried, and by however many recorders.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Engine,
    Integer,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    null,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.exc import DataError

from worker.store import audit, notifications
from worker.store.database import reading, upserting
from worker.store.models import (
    Attribution,
    DeadLetter,
    Delivery,
    Integration,
    JournalMark,
    Tally,
    UtcTime,
)

Fields = Mapping[str, Any]
Mark: TypeAlias = tuple[int, str | None, str]  # shard, how far it was recorded, how far it is now
NEARING_EVERY = timedelta(hours=1)
PRUNED_AT_ONCE = 5_000  # rows; SQLite's writers wait for as long as that takes
_T = Delivery.table()
_LETTERS = DeadLetter.table()


def record_rows(
    engine: Engine,
    shard: int,
    last_id_before: str | None,
    last_id: str,
    *,
    deliveries: Sequence[Fields] = (),
    dead_letters: Sequence[Fields] = (),
    tallies: Mapping[tuple[str, str], int] | None = None,
    health: Mapping[str, Fields] | None = None,
    learned: Sequence[Fields] = (),
) -> bool:
    """Write what a shard's journal holds after `last_id_before`, up to `last_id`.

    Rows are dicts of the tables' columns; absent ones are null (`attempts`: 0). A dead letter's
    `faults` are JSON, or its text. `tallies` counts by (integration, outcome). `health` is by
    integration: `last_delivery_at`, `last_error_at`, `last_error_message`, `last_error_reason`,
    `failures`, and `delivered` (then `failures` are those since). `learned` are attributions.

    Returns False, and writes nothing, where the mark is elsewhere: another recorder was there.
    """
    return record_shards(
        engine,
        [(shard, last_id_before, last_id)],
        deliveries=_in_order(_T, deliveries),
        dead_letters=dead_letters,
        tallies=tallies,
        health=health,
        learned=learned,
    )


def record_shards(
    engine: Engine,
    marks: Sequence[Mark],
    *,
    deliveries: Sequence[Sequence[Any]] = (),
    dead_letters: Sequence[Fields] = (),
    tallies: Mapping[tuple[str, str], int] | None = None,
    health: Mapping[str, Fields] | None = None,
    learned: Sequence[Fields] = (),
    nearing: Sequence[Fields] = (),
) -> bool:
    """Write what the journals of several shards hold, all of it or nothing; see `record_rows`.

    `deliveries` are in the order of the table's columns after its id, as `journal.Row` is.
    `nearing`: integrations (`integration_id`, `at`, `used`, `message`) that near a suspension; an
    integration's operator is told of it once an hour.
    """
    with engine.connect() as connection, connection.begin() as transaction:
        if not _move_marks(connection, marks):
            transaction.rollback()
            return False
        _write(connection, _T, deliveries)
        _write(connection, _LETTERS, _in_order(_LETTERS, map(_storable, dead_letters)))
        _add_tallies(connection, tallies or {})
        _note_health(connection, health or {})
        _keep_attributions(connection, learned)
        for one in nearing:
            notifications.add_of(
                connection,
                "integration.nearing",
                one["integration_id"],
                {"used": one["used"], "message": one["message"]},
                at=one["at"],
                unless_within=NEARING_EVERY,
            )
    return True


def last_recorded(connection: Connection, shards: Sequence[int]) -> dict[int, str]:
    """Return the journal ids up to which shards are recorded, of those that are at all."""
    mark = JournalMark.table()
    query = select(mark.c.shard, mark.c.last_id).where(mark.c.shard.in_(shards))
    return {row.shard: row.last_id for row in connection.execute(query)}


def _move_marks(connection: Connection, marks: Sequence[Mark]) -> bool:
    """Move the marks of all shards from where they are said to be; False where one is elsewhere."""
    mark = JournalMark.table()
    first = [{"shard": shard, "last_id": to} for shard, before, to in sorted(marks) if not before]
    moving = [(shard, before, to) for shard, before, to in sorted(marks) if before]
    moved = 0
    if first:
        new = upserting(connection, mark).values(first).on_conflict_do_nothing()
        moved += len(connection.execute(new.returning(mark.c.shard)).all())
    if moving:
        places = tuple_(mark.c.shard, mark.c.last_id).in_([(n, before) for n, before, _ in moving])
        to = case({shard: to for shard, _, to in moving}, value=mark.c.shard)
        moved += connection.execute(update(mark).where(places).values(last_id=to)).rowcount
    return moved == len(marks)


def _in_order(table: Table, rows: Iterable[Fields]) -> list[tuple[Any, ...]]:
    """Return rows as tuples of the table's columns after its id; what is absent is null."""
    names = [column.name for column in table.columns if column.name != "id"]
    absent: Fields = dict.fromkeys(names) | {"attempts": 0}
    return [tuple(map({**absent, **row}.__getitem__, names)) for row in rows]


def _write(connection: Connection, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    """Write rows: with COPY, a fraction of what any INSERT costs, or as the driver's own rows."""
    if not rows:
        return
    columns = [column for column in table.columns if column.name != "id"]
    names = ", ".join(column.name for column in columns)
    values = list(
        zip(*map(partial(_stored, connection), columns, zip(*rows, strict=True)), strict=True)
    )
    if connection.dialect.name != "postgresql":
        marks = ", ".join("?" * len(columns))
        head = f"INSERT INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608  our own names
        connection.exec_driver_sql(head, values)
        return
    try:
        _copy(connection, table, f"COPY {table.name} ({names}) FROM STDIN", values)
    except connection.dialect.loaded_dbapi.DataError as error:
        raise DataError("COPY", None, error, hide_parameters=True) from error


def _copy(connection: Connection, table: Table, how: str, rows: Sequence[Sequence[Any]]) -> None:
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(how) as copy:
        if table is _T:
            texts = map(_copied, zip(*rows, strict=True))
            lines = map("\t".join, zip(*texts, strict=True))
            copy.write("".join([f"{line}\n" for line in lines]))
        else:
            for row in rows:
                copy.write_row(row)


def _copied(values: Sequence[Any]) -> list[str]:
    """Return a column's text, numbers or times as COPY reads them: a third of the driver's time.

    https://www.postgresql.org/docs/current/sql-copy.html
    """
    texts = {value: _escaped(str(value)) for value in set(values)} | {None: r"\N"}
    return [texts[value] for value in values]


def _escaped(text: str) -> str:
    if "\\" in text or not text.isprintable():
        for plain, escaped in ("\\", r"\\"), ("\t", r"\t"), ("\n", r"\n"), ("\r", r"\r"):
            text = text.replace(plain, escaped)
    return text


def _stored(connection: Connection, column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """Return a column's values as the driver takes them; the same often come again."""
    if isinstance(column.type, JSON):
        return [None if value is None else json.dumps(value) for value in values]
    convert = column.type.bind_processor(connection.dialect)
    if convert is None:
        return values
    converted = {value: convert(value) for value in set(values)}
    return [converted[value] for value in values]


def _storable(letter: Fields) -> dict[str, Any]:
    """Return a dead letter's fields without what no database holds: NUL, lone surrogates."""
    clean = {k: _text(v) if isinstance(v, str) else v for k, v in letter.items()}
    if isinstance(clean.get("faults"), str):
        clean["faults"] = json.loads(clean["faults"])
    return clean


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode().replace("\0", "?")


def _add_tallies(connection: Connection, tallies: Mapping[tuple[str, str], int]) -> None:
    if not tallies:
        return
    table = Tally.table()
    new = upserting(connection, table)
    more = new.on_conflict_do_update(
        index_elements=[table.c.integration_id, table.c.outcome],
        set_={"count": table.c.count + new.excluded.count},
    )
    rows = [
        {"integration_id": integration, "outcome": outcome, "count": count}
        for (integration, outcome), count in sorted(tallies.items())  # one order: no deadlock
    ]
    connection.execute(more, rows)


def _note_health(connection: Connection, health: Mapping[str, Fields]) -> None:
    """Move what an operator sees of each integration; while suspended its last words stand.

    A delivery since it was activated ends its probation, for whoever drains it next, too.
    """
    if not health:
        return
    t = Integration.table()
    delivered_at, error_at, first = (
        bindparam(name, type_=UtcTime()) for name in ("delivered_at", "error_at", "first")
    )
    failures, delivered = (
        bindparam("failures", type_=Integer),
        bindparam("delivered", type_=Boolean),
    )
    newer = and_(
        error_at.is_not(None),
        t.c.active != 2,
        or_(t.c.last_error_at.is_(None), t.c.last_error_at <= error_at),
    )
    reset = delivered == true()
    statement = (
        update(t)
        .where(t.c.id == bindparam("of"))
        .values(
            last_delivery_at=func.coalesce(delivered_at, t.c.last_delivery_at),
            probation_epoch=case(
                (delivered_at > t.c.updated_at, null()), else_=t.c.probation_epoch
            ),
            last_error_at=case((newer, error_at), else_=t.c.last_error_at),
            last_error_message=_if(newer, "message", t.c.last_error_message),
            last_error_reason=_if(newer, "reason", t.c.last_error_reason),
            delivery_error_count=case((reset, failures), else_=t.c.delivery_error_count + failures),
            first_error_at=case((reset, first), else_=func.coalesce(t.c.first_error_at, first)),
        )
    )
    connection.execute(statement, [_health(id_, seen) for id_, seen in sorted(health.items())])


def _if(condition: Any, name: str, otherwise: Any) -> Any:
    return case((condition, bindparam(name, type_=Text)), else_=otherwise)


def _health(integration_id: str, seen: Fields) -> dict[str, Any]:
    failures = seen.get("failures", 0)
    return {
        "of": integration_id,
        "delivered_at": seen.get("last_delivery_at"),
        "error_at": seen.get("last_error_at"),
        "message": seen.get("last_error_message"),
        "reason": seen.get("last_error_reason"),
        "failures": failures,
        "delivered": bool(seen.get("delivered")),
        "first": seen.get("first_error_at", seen.get("last_error_at")) if failures else None,
    }


def _keep_attributions(connection: Connection, learned: Sequence[Fields]) -> None:
    if not learned:
        return
    table = Attribution.table()
    new = upserting(connection, table)
    names = ("record", "state", "updated_at")
    connection.execute(
        new.on_conflict_do_update(
            index_elements=[table.c.project_id, table.c.user_key],
            set_={name: new.excluded[name] for name in names},
        ),
        [dict(row) for row in learned],
    )


def list_deliveries(
    connection: Connection,
    *,
    project_id: str | None = None,
    integration_id: str | None = None,
    event_id: str | None = None,
    outcome: str | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> list[Delivery]:
    """Return the newest first; `before_id` goes on from an earlier answer."""
    given = {
        _T.c.project_id: project_id,
        _T.c.integration_id: integration_id,
        _T.c.event_id: event_id,
        _T.c.outcome: outcome,
    }
    query = select(_T).order_by(_T.c.id.desc()).limit(limit)
    query = query.where(*(column == value for column, value in given.items() if value is not None))
    if before_id is not None:
        query = query.where(_T.c.id < before_id)
    return [Delivery.of(row) for row in connection.execute(query)]


def list_tallies(connection: Connection) -> dict[tuple[str, str], int]:
    """Return the terminal outcomes recorded, by (integration, outcome)."""
    table = Tally.table()
    rows = connection.execute(select(table.c.integration_id, table.c.outcome, table.c.count))
    return {(integration, outcome): count for integration, outcome, count in rows}


def prune(engine: Engine, ended_before: datetime, moment: datetime) -> int:
    """Delete what ended before a time, deliveries and dead letters; return how many.

    A dead letter with an `expires_at` of its own stays until `moment` is past that; how many of a
    project went is in the audit log.
    """
    deleted = 0
    while last := _last_old(engine, ended_before):
        with engine.begin() as connection:
            old = delete(_T).where(_T.c.id <= last, _T.c.finished_at < ended_before)
            deleted += connection.execute(old).rowcount
    ends = _LETTERS.c.expires_at
    over = or_(ends < moment, and_(ends.is_(None), _LETTERS.c.created_at < ended_before))
    letters: Counter[str | None] = Counter()
    with engine.begin() as connection:
        gone = delete(_LETTERS).where(over).returning(_LETTERS.c.project_id)
        letters.update(connection.execute(gone).scalars())
        for project_id, count in letters.items():
            told = {"count": count}
            audit.add(
                connection, "retention", "deadletters.expire", project_id=project_id, before=told
            )
    return deleted + letters.total()


def _last_old(engine: Engine, finished_before: datetime) -> int:
    """Return the last old id of the first few rows (they are nearly in order of time), or 0."""
    head = select(_T.c.id, _T.c.finished_at).order_by(_T.c.id).limit(PRUNED_AT_ONCE)
    with reading(engine) as connection:
        rows = connection.execute(head).all()
    return max((id_ for id_, finished_at in rows if finished_at < finished_before), default=0)
