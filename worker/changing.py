"""Changing integrations: whoever does it tells the delivery loops, before it answers."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from sqlalchemy import Connection, Engine

from worker.away import told
from worker.servers import connect
from worker.settings import WorkerSettings
from worker.state import CHANGES, MOST_CHANGES

log = logging.getLogger(__name__)

TELL_SECONDS = 0.5  # twice at most: nobody's change waits longer for Redis


@contextmanager
def changing(engine: Engine, settings: WorkerSettings) -> Iterator[Connection]:
    """Give a transaction: it is kept when the block ends, and undone where it fails.

    Then the delivery loops are told whose integrations it changed: every event published from now
    on is treated as they are now. Where Redis does not answer, the loops see it for themselves.
    """
    changed: set[str] = set()
    with engine.begin() as connection:
        yield connection.execution_options(changed=changed)
    if changed:
        _tell(settings.redis_url, changed)


def _tell(redis_url: str, projects: Iterable[str]) -> None:
    retry = Retry(NoBackoff(), 1)
    try:
        with connect(
            redis_url,
            protocol=2,
            socket_timeout=TELL_SECONDS,
            socket_connect_timeout=TELL_SECONDS,
            retry=retry,
        ) as redis:
            for project in projects:
                redis.xadd(CHANGES, {"p": project}, maxlen=MOST_CHANGES)
    except RedisError as error:
        log.warning(
            "Saved, but Redis did not take word of it (%s): running workers see it in 2 seconds",
            told(error),
        )
