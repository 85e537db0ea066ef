"""The database and Redis of the running service, for the commands that look or change."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.settings import WorkerSettings

ACTOR = "cli"
LARGEST = 2**63 - 1  # of a row's id


def settings_here() -> "WorkerSettings":
    """Return the settings of the environment, or of the running `onward up`."""
    from worker.settings import load_settings  # noqa: PLC0415  quick --help

    return load_settings()


@contextmanager
def changing(settings: "WorkerSettings | None" = None) -> Iterator["Connection"]:
    """Give a transaction: it is kept when the block ends, and undone where it fails."""
    from worker import changing as change  # noqa: PLC0415  quick --help
    from worker.store.database import make_engine  # noqa: PLC0415

    settings = settings or settings_here()
    engine = make_engine(settings.database_url)
    try:
        with change.changing(engine, settings) as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def looking(settings: "WorkerSettings | None" = None) -> Iterator["Connection"]:
    """Give a connection that only reads."""
    from worker.store.database import make_engine, reading  # noqa: PLC0415  quick --help

    engine = make_engine((settings or settings_here()).database_url)
    try:
        with reading(engine) as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def redis_of(settings: "WorkerSettings") -> Iterator[Any]:
    """Give a blocking client of the events' Redis."""
    from worker.servers import connect  # noqa: PLC0415  quick --help

    with connect(settings.redis_url) as client:
        yield client
