"""What was given up, for operators to read and to send again."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from worker.store.errors import NotFound
from worker.store.models import DeadLetter

_T = DeadLetter.table()


def list_dead_letters(
    connection: Connection,
    *,
    project_id: str | None = None,
    integration_id: str | None = None,
    event_id: str | None = None,
    reason: str | None = None,
    replayed: bool | None = None,
    since: datetime | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> list[DeadLetter]:
    """Return the newest first; `before_id` goes on from an earlier answer."""
    given = {
        _T.c.project_id: project_id,
        _T.c.integration_id: integration_id,
        _T.c.event_id: event_id,
        _T.c.reason: reason,
    }
    query = select(_T).order_by(_T.c.id.desc()).limit(limit)
    query = query.where(*(column == value for column, value in given.items() if value is not None))
    if replayed is not None:
        query = query.where(
            _T.c.replayed_at.is_not(None) if replayed else _T.c.replayed_at.is_(None)
        )
    if since is not None:
        query = query.where(_T.c.created_at >= since)
    if before_id is not None:
        query = query.where(_T.c.id < before_id)
    return [DeadLetter.of(row) for row in connection.execute(query)]


def get_dead_letter(
    connection: Connection, letter_id: int, project_id: str | None = None
) -> DeadLetter:
    """Return a dead letter; raise NotFound, also for one of another than the given project."""
    query = select(_T).where(_T.c.id == letter_id)
    if project_id is not None:
        query = query.where(_T.c.project_id == project_id)
    row = connection.execute(query).first()
    if row is None:
        raise NotFound("No dead letter with this id")
    return DeadLetter.of(row)


def headings(
    connection: Connection,
    *,
    ids: Sequence[int] | None = None,
    project_id: str | None = None,
    integration_id: str | None = None,
    reason: str | None = None,
    open_only: bool = True,
) -> Sequence[Row[Any]]:
    """Return what dead letters are about, without their bytes, oldest first.

    `open_only`: those that were not replayed yet.
    """
    names = ("id", "project_id", "integration_id", "event_id", "event_name", "reason")
    columns = [_T.c[name] for name in (*names, "created_at", "replayed_at")]
    query = select(*columns).order_by(_T.c.id)
    given = {
        _T.c.project_id: project_id,
        _T.c.integration_id: integration_id,
        _T.c.reason: reason,
    }
    query = query.where(*(column == value for column, value in given.items() if value is not None))
    if ids is not None:
        query = query.where(_T.c.id.in_(ids))
    if open_only:
        query = query.where(_T.c.replayed_at.is_(None))
    return connection.execute(query).all()


def count_open(connection: Connection, integration_id: str) -> int:
    """Return how many of an integration's dead letters were not replayed yet."""
    query = select(func.count()).select_from(_T)
    query = query.where(_T.c.integration_id == integration_id, _T.c.replayed_at.is_(None))
    return int(connection.execute(query).scalar_one())


def lock(connection: Connection, ids: Sequence[int], *, open_only: bool = True) -> list[DeadLetter]:
    """Return these letters, nobody else's until the transaction ends, oldest first."""
    query = select(_T).where(_T.c.id.in_(ids)).order_by(_T.c.id).with_for_update()
    if open_only:
        query = query.where(_T.c.replayed_at.is_(None))
    return [DeadLetter.of(row) for row in connection.execute(query)]


def mark_replayed(connection: Connection, letter_ids: Sequence[int], at: datetime) -> None:
    """Remember that these were put back on their way."""
    connection.execute(update(_T).where(_T.c.id.in_(letter_ids)).values(replayed_at=at))
