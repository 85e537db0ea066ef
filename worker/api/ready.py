"""Whether the service can do its work: what `/readyz` asks, and what it says where it can not."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio import CapacityLimiter
from redis.exceptions import ResponseError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, ProgrammingError

from worker.api.auth import Services
from worker.clock import accepted_at, store_ms
from worker.intake import IntakeFull, check_room
from worker.state import GROUP, OWNERS, UNSHARDED, Keys
from worker.store.database import reading
from worker.store.errors import StoreError, UnknownKey
from worker.store.rotation import check_keys

CHECK_SECONDS = 3  # a check that takes longer has failed
UNREAD_SECONDS = 30  # how long work may wait while nobody reads
THREADS = 8  # for checks; the routes' own are not taken
Check = Callable[[], Any]
log = logging.getLogger(__name__)


class NotReady(Exception):
    """A check failed. The text is shown to anybody: it names no one's data."""


def checks_of(here: Services) -> dict[str, Check]:
    """Return name → a function that raises while the service is not ready."""

    def database() -> None:
        with reading(here.engine) as connection:
            connection.execute(text("SELECT 1"))

    def keys() -> None:
        with reading(here.engine) as connection:
            check_keys(connection, here.keyring)

    return {
        "database": database,
        "redis": here.redis.ping,
        "keys": keys,
        "workers": lambda: check_workers(here.redis),
        "intake": lambda: check_intake(here.redis, here.settings.shards),
        "room": lambda: check_memory(here.redis),
    }


def check_workers(redis: Any) -> None:
    """Raise NotReady where no process drains: each notes every 2 s that it lives 10 s more."""
    if not redis.zcount(OWNERS, f"({store_ms(redis)}", "+inf"):
        raise NotReady("No worker drains: start `onward worker`, or look at its log")


def check_memory(redis: Any) -> None:
    """Raise NotReady where publishing is refused, so that the rest drains what there is."""
    try:
        check_room(redis)
    except IntakeFull as error:
        raise NotReady(str(error)) from None


def check_intake(redis: Any, shards: int) -> None:
    """Raise NotReady where events wait for over 30 s in streams that nobody reads.

    Measured by Redis alone: the oldest entry that was never given out says by its id since when
    work waits; the consumers' idle time says since when nobody asked for any. A stream with a long
    backlog that is being worked off is read all the time, and so is ready.
    """
    streams = [*(Keys(number).intake for number in range(shards)), UNSHARDED]
    pipe = redis.pipeline(transaction=False)
    for stream in streams:
        pipe.xinfo_groups(stream)
    groups = dict(zip(streams, map(_groups, pipe.execute(raise_on_error=False)), strict=True))
    for stream, found in groups.items():
        pipe.xrange(stream, min=f"({_last_given(found)}", count=1)
        if found:
            pipe.xinfo_consumers(stream, GROUP)
    replies, now = iter(pipe.execute()), store_ms(redis)
    unread = []
    for found in groups.values():
        entries, consumers = next(replies), next(replies) if found else []
        asked = min((consumer["idle"] for consumer in consumers), default=math.inf)
        waits = [now - accepted_at(entry_id) for entry_id, _ in entries]
        unread += [waited for waited in waits if min(waited, asked) > UNREAD_SECONDS * 1000]
    if unread:
        raise NotReady(
            f"Events wait unread in {len(unread)} of {len(streams)} intake streams, the oldest for "
            f"{max(unread) // 1000} s: look at the workers' logs"
        )


def _groups(reply: Any) -> list[Mapping[str, Any]]:
    if isinstance(reply, ResponseError):  # no such stream: nobody has published to it
        return []
    if isinstance(reply, Exception):
        raise reply
    return [group for group in reply if group["name"] == GROUP.encode()]


def _last_given(groups: list[Mapping[str, Any]]) -> str:
    given: bytes = groups[0]["last-delivered-id"] if groups else b"0-0"
    return given.decode()


async def reasons_of(checks: Mapping[str, Check]) -> dict[str, str]:
    """Return name → "" where a check passes, else why it does not, fit for anybody's eyes."""
    limiter, reasons = CapacityLimiter(THREADS), dict.fromkeys(checks, "")

    async def ask(name: str, check: Check) -> None:
        reasons[name] = await _failure(name, check, limiter)

    async with anyio.create_task_group() as group:
        for name, check in checks.items():
            group.start_soon(ask, name, check)
    return reasons


async def _failure(name: str, check: Check, limiter: CapacityLimiter) -> str:
    try:
        with anyio.fail_after(CHECK_SECONDS):
            await anyio.to_thread.run_sync(check, abandon_on_cancel=True, limiter=limiter)
    except NotReady as error:
        log.warning("Not ready: %s", error)
        return str(error)
    except UnknownKey as error:
        log.warning("Not ready: %s", error)
        return (
            f"No key opens the settings of {len(error.integrations)} integrations: "
            "see `onward secrets check`"
        )
    except Exception as error:  # noqa: BLE001  whatever it is, it is not ready
        log.warning(
            "Not ready: %s (%s)", name, error if isinstance(error, StoreError) else type(error)
        )
        if _lacks_tables(error):
            return "The database's tables are not these: run `onward migrate`"
        return "It failed or did not answer in time: see the API's log"
    return ""


def _lacks_tables(error: Exception) -> bool:
    return isinstance(error, ProgrammingError) or (
        isinstance(error, OperationalError) and "no such" in str(error.orig)  # SQLite
    )
