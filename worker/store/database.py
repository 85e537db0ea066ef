"""Engines for SQLite and PostgreSQL."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url

BUSY_SECONDS = 10  # how long a SQLite writer waits for another; a recorder's turn is far shorter
CONNECT_SECONDS = 5


def make_engine(url: str | URL, *, statement_seconds: float = 0) -> Engine:
    """Return an engine for a SQLAlchemy URL; `postgres://` and `postgresql://` use psycopg 3.

    On SQLite every transaction takes the writer's lock when it begins, so that what it read cannot
    change before it writes; `reading` does without. PostgreSQL cuts statements, and transactions
    left idle, after `statement_seconds` (0: never); SQLite's longest wait is for another writer.
    """
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    engine = create_engine(
        parsed,
        hide_parameters=True,  # no value of a row in an exception's text
        pool_pre_ping=True,
        pool_timeout=CONNECT_SECONDS,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": 10_000,  # ms
        },
    )
    if statement_seconds:
        event.listen(engine, "connect", partial(_bound_statements, int(statement_seconds * 1000)))
    return engine


def _bound_statements(milliseconds: int, connection: Any, _record: Any) -> None:
    """Bound a session by SET: the start-up packet's options are refused by some poolers."""
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(f"SET {name} = {milliseconds}").close()
    connection.commit()


def _sqlite(url: URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin in _begin_sqlite, not in the driver
    _write_ahead(connection)
    for pragma in (
        "synchronous=FULL",  # what was committed survives a power failure, too
        f"busy_timeout={BUSY_SECONDS * 1000}",
        "foreign_keys=ON",
        "cache_size=-4000",  # KiB; for the indexes. Four times as much gave little at 400,000 rows
        "wal_autocheckpoint=4000",  # pages, of which many are then the same
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _write_ahead(connection: Any) -> None:
    """Make it a database with a write-ahead log, which it stays.

    Several that open a new one at once stand in each other's way; SQLite then refuses one of them
    without waiting: https://www.sqlite.org/c3ref/busy_handler.html
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a connection that only reads: on SQLite it waits for no writer."""
    with engine.execution_options(reads=True).connect() as connection:
        yield connection


def note_change(connection: Connection, project_id: str) -> None:
    """Note that a project's integrations change; told of if the transaction is of `changing`."""
    connection.get_execution_options().get("changed", set()).add(project_id)


def upserting(dialect: str, table: Table) -> Any:
    """Return an INSERT that can say ON CONFLICT, in a connection's dialect."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(table)


def now() -> datetime:
    """Return the present time, aware UTC."""
    return datetime.now(UTC)
