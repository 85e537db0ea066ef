"""The way of the schema to its newest form, and back: Alembic, which workers need not carry."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine

import migrations
from worker.store.database import make_engine

_alembic = Lock()  # its environment is global: one thread at a time


def alembic_config() -> Config:
    """Return Alembic's configuration, wherever the program was started."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def upgrade(database: Engine | str, revision: str = "head") -> None:
    """Bring the schema to `revision`; of several programs that start at once, one does it."""
    with _alembic, _engine(database) as engine, engine.begin() as connection:
        command.upgrade(_config_on(connection), revision)


def downgrade(database: Engine | str, revision: str) -> None:
    """Take the schema back to `revision` ("base": nothing is left)."""
    with _alembic, _engine(database) as engine, engine.begin() as connection:
        command.downgrade(_config_on(connection), revision)


def _config_on(connection: Connection) -> Config:
    config = alembic_config()
    config.attributes["connection"] = connection
    return config


@contextmanager
def _engine(database: Engine | str) -> Iterator[Engine]:
    if isinstance(database, Engine):
        yield database
        return
    engine = make_engine(database)
    try:
        yield engine
    finally:
        engine.dispose()
