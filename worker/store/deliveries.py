"""How events ended. `record_shards` is the journals' way into the database.

Rows are written in one transaction together with how far each shard is recorded, so that a page is
recorded once however often it is tried, and by however many recorders.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    FromClause,
    Insert,
    Integer,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import DataError
from sqlalchemy.types import TypeEngine

from providers.kit import dump_text
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
ESCAPES = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}  # in COPY's text
_T = Delivery.table()
_LETTERS = DeadLetter.table()


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
    """Write what the journals of several shards hold, all of it or nothing.

    `deliveries` are the table's columns after its id, in the order of `journal.Row`, each of as
    many values; times are ISO texts in UTC.
    `dead_letters` are dicts of the table's columns; absent ones are null (`attempts`: 0), and
    `faults` are JSON, or its text. `tallies` counts by (integration, outcome).
    `health` is by integration: `last_delivery_at`, `last_error_at`, `last_error_message`,
    `last_error_reason`, `failures`, and `delivered` (then `failures` are those since).
    `learned` are attributions.
    `nearing`: integrations (`integration_id`, `at`, `used`, `message`) that near a suspension; an
    integration's operator is told of it once an hour.

    Returns False, and writes nothing, where a mark is elsewhere: another recorder was there.
    """
    with engine.connect() as connection, connection.begin() as transaction:
        if not _move_marks(connection, marks):
            transaction.rollback()
            return False
        _write(connection, _T, deliveries)
        letters = _columns(engine.dialect, map(_storable, dead_letters))
        _write(connection, _LETTERS, letters)
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
    every = connection.execute(select(mark.c.shard, mark.c.last_id))
    return {shard: last_id for shard, last_id in every if shard in shards}


def _move_marks(connection: Connection, marks: Sequence[Mark]) -> bool:
    """Move the marks of all shards from where they are said to be; False where one is elsewhere."""
    rows = [{"shard": shard, "before": before, "to": to} for shard, before, to in sorted(marks)]
    statements = _moving(connection.dialect.name)
    given = {"given": dump_text(rows)}
    return sum(connection.execute(one, given).rowcount for one in statements) == len(marks)


@cache
def _moving(dialect: str) -> tuple[Insert, Update]:
    mark = JournalMark.table()
    given = _given(dialect, shard=Integer(), before=Text(), to=Text())
    first = select(given.c.shard, given.c.to).where(given.c.before.is_(None))
    new = upserting(dialect, mark).from_select(["shard", "last_id"], first).on_conflict_do_nothing()
    move = update(mark).where(mark.c.shard == given.c.shard, mark.c.last_id == given.c.before)
    return new.execution_options(preserve_rowcount=True), move.values(last_id=given.c.to)


def _given(dialect: str, **types: TypeEngine[Any]) -> FromClause:
    """Return the rows of the parameter `given`, which is JSON, as a table.

    So a statement is sent once for all its rows: for each, it would cost as much as ten deliveries.
    """
    rows = bindparam("given", type_=Text())
    columns = [column(name, type_) for name, type_ in types.items()]
    if dialect == "postgresql":
        read = func.json_to_recordset(cast(rows, JSON))
        return read.table_valued(*columns).render_derived("given", with_types=True)
    value = func.json_each(rows).table_valued("value").c.value
    fields = (func.json_extract(value, f"$.{one.name}", type_=one.type) for one in columns)
    named = (field.label(name) for field, name in zip(fields, types, strict=True))
    return select(*named).subquery("given")


def _columns(dialect: Dialect, letters: Iterable[Fields]) -> list[Sequence[Any]]:
    """Return dead letters as the table's columns after its id, as drivers take them."""
    known = [column for column in _LETTERS.columns if column.name != "id"]
    absent: Fields = {column.name: None for column in known} | {"attempts": 0}
    whole = [{**absent, **letter} for letter in letters]
    return [_stored(dialect, one, [row[one.name] for row in whole]) for one in known]


def _write(connection: Connection, table: Table, columns: Sequence[Sequence[Any]]) -> None:
    """Write columns: with COPY, a fraction of what any INSERT costs, or as the driver's rows."""
    if not columns or not columns[0]:
        return
    names = ", ".join(column.name for column in table.columns if column.name != "id")
    if connection.dialect.name != "postgresql":
        marks = ", ".join("?" * len(columns))
        head = f"INSERT INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608  our own names
        connection.exec_driver_sql(head, list(zip(*columns, strict=True)))
        return
    try:
        _copy(connection, table, f"COPY {table.name} ({names}) FROM STDIN", columns)
    except connection.dialect.loaded_dbapi.DataError as error:
        raise DataError("COPY", None, error, hide_parameters=True) from error


def _copy(connection: Connection, table: Table, how: str, columns: Sequence[Sequence[Any]]) -> None:
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(how) as copy:
        if table is _T:
            lines = map("\t".join, zip(*map(_copied, columns), strict=True))
            copy.write("\n".join([*lines, ""]))
        else:
            for row in zip(*columns, strict=True):
                copy.write_row(row)


def _copied(values: Sequence[Any]) -> Sequence[str]:
    """Return a column's text or numbers as COPY reads them: a third of the driver's time.

    https://www.postgresql.org/docs/current/sql-copy.html
    """
    if {*map(type, values)} == {str}:
        whole = "".join(values)
        if not any(special in whole for special in ESCAPES):
            return values
    texts = {value: _escaped(str(value)) for value in set(values)} | {None: r"\N"}
    return [texts[value] for value in values]


def _escaped(text: str) -> str:
    for plain, escaped in ESCAPES.items():
        if plain in text:
            text = text.replace(plain, escaped)
    return text


def _stored(dialect: Dialect, column: Column[Any], values: list[Any]) -> list[Any]:
    if isinstance(column.type, JSON):
        return [None if value is None else json.dumps(value) for value in values]
    convert = column.type.bind_processor(dialect)
    if convert is None:
        return values
    converted = map(convert, values)
    return list(map(_text_of, converted) if isinstance(column.type, UtcTime) else converted)


def _text_of(at: datetime | None) -> str | None:
    return None if at is None else str(at)


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
    rows = [
        {"integration_id": integration, "outcome": outcome, "count": count}
        for (integration, outcome), count in sorted(tallies.items())  # one order: no deadlock
    ]
    connection.execute(_adding(connection.dialect.name), {"given": dump_text(rows)})


@cache
def _adding(dialect: str) -> Insert:
    table = Tally.table()
    given = _given(dialect, **{one.name: one.type for one in table.columns})
    rows = select(given).where(true())  # without a WHERE, SQLite takes ON for a join's
    new = upserting(dialect, table)
    added: Insert = new.from_select(
        [one.name for one in table.columns], rows
    ).on_conflict_do_update(
        index_elements=[table.c.integration_id, table.c.outcome],
        set_={"count": table.c.count + new.excluded.count},
    )
    return added


def _note_health(connection: Connection, health: Mapping[str, Fields]) -> None:
    """Move what an operator sees of each integration; while suspended its last words stand.

    A delivery since it was activated ends its probation, for whoever drains it next, too.
    """
    written: Any = UtcTime().dialect_impl(connection.dialect).bind_processor(connection.dialect)
    text = cache(lambda at: at and str(written(at)))  # few times, many integrations
    well, failed = list[Fields](), list[Fields]()
    for id_, seen in sorted(health.items()):
        if seen.get("delivered") and "last_error_at" not in seen:
            well.append({"of": id_, "delivered_at": text(seen["last_delivery_at"])})
        else:
            failed.append(_health(id_, seen, text))
    for rows, noting in ((well, _noting_well), (failed, _noting)):
        if rows:
            connection.execute(noting(connection.dialect.name), {"given": dump_text(rows)})


@cache
def _noting_well(dialect: str) -> Update:
    """Return what notes deliveries alone: of nearly all integrations, and in half the time."""
    t = Integration.table()
    given = _given(dialect, of=Text(), delivered_at=UtcTime()).c
    return (
        update(t)
        .where(t.c.id == given.of)
        .values(
            last_delivery_at=given.delivered_at,
            probation_epoch=_probation(given.delivered_at),
            delivery_error_count=0,
            first_error_at=null(),
        )
    )


def _probation(delivered_at: ColumnElement[datetime]) -> ColumnElement[int | None]:
    t = Integration.table()
    return case((delivered_at > t.c.updated_at, null()), else_=t.c.probation_epoch)


@cache
def _noting(dialect: str) -> Update:
    t = Integration.table()
    given = _given(
        dialect,
        of=Text(), delivered_at=UtcTime(), error_at=UtcTime(), message=Text(), reason=Text(),
        failures=Integer(), delivered=Boolean(), first=UtcTime(),
    ).c  # fmt: skip
    newer = and_(
        given.error_at.is_not(None),
        t.c.active != 2,
        or_(t.c.last_error_at.is_(None), t.c.last_error_at <= given.error_at),
    )
    streak = func.coalesce(t.c.first_error_at, given.first)
    more = t.c.delivery_error_count + given.failures
    reset = given.delivered == true()
    return (
        update(t)
        .where(t.c.id == given.of)
        .values(
            last_delivery_at=func.coalesce(given.delivered_at, t.c.last_delivery_at),
            probation_epoch=_probation(given.delivered_at),
            last_error_at=case((newer, given.error_at), else_=t.c.last_error_at),
            last_error_message=case((newer, given.message), else_=t.c.last_error_message),
            last_error_reason=case((newer, given.reason), else_=t.c.last_error_reason),
            delivery_error_count=case((reset, given.failures), else_=more),
            first_error_at=case((reset, given.first), else_=streak),
        )
    )


def _health(integration_id: str, seen: Fields, text: Callable[[Any], Any]) -> dict[str, Any]:
    failures = seen.get("failures", 0)
    first = seen.get("first_error_at", seen.get("last_error_at")) if failures else None
    return {
        "of": integration_id,
        "delivered_at": text(seen.get("last_delivery_at")),
        "error_at": text(seen.get("last_error_at")),
        "message": seen.get("last_error_message"),
        "reason": seen.get("last_error_reason"),
        "failures": failures,
        "delivered": bool(seen.get("delivered")),
        "first": text(first),
    }


def _keep_attributions(connection: Connection, learned: Sequence[Fields]) -> None:
    if not learned:
        return
    table = Attribution.table()
    new = upserting(connection.dialect.name, table)
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
