"""Alembic's environment: runs on the connection it is given, or on `ONWARD_DATABASE_URL`."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, text

from worker.settings import load_settings
from worker.store.database import make_engine
from worker.store.models import Base, UtcTime

LOCK = 7_361_094  # any number; the same in every program that migrates


def plainly(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write our own column type as the plain one, so that old migrations import nothing of ours."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcTime) else False


def run(connection: Connection) -> None:
    """Run the asked-for migrations in the connection's transaction, one program at a time.

    SQLite's transaction holds the writer's lock from its beginning (see make_engine).
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        compare_server_default=True,
        render_item=plainly,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = make_engine(load_settings().database_url)
    with engine.begin() as own:
        run(own)
    engine.dispose()
