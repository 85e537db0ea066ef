"""The outbox of what operators are told: written with what it tells of, sent at least once."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select, update

from worker.store.database import now
from worker.store.models import Integration, Notification

_T = Notification.table()


def add(
    connection: Connection,
    kind: str,
    payload: Mapping[str, Any],
    *,
    project_id: str | None = None,
    integration_id: str | None = None,
    at: datetime | None = None,
    unless_within: timedelta | None = None,
) -> None:
    """Put a notice in the outbox, in the caller's transaction.

    Not if this integration had one of its kind within `unless_within`.
    """
    moment = at or now()
    if unless_within is not None:
        same = select(_T.c.id).where(_T.c.integration_id == integration_id, _T.c.kind == kind)
        if connection.execute(same.where(_T.c.at > moment - unless_within).limit(1)).first():
            return
    connection.execute(
        insert(_T).values(
            at=moment,
            kind=kind,
            project_id=project_id,
            integration_id=integration_id,
            payload=json.dumps(payload),
            attempts=0,
        )
    )


def add_of(
    connection: Connection,
    kind: str,
    integration_id: str,
    payload: Mapping[str, Any],
    *,
    at: datetime | None = None,
    unless_within: timedelta | None = None,
) -> None:
    """Put a notice of an integration in the outbox, with its names; of a deleted one, none."""
    t = Integration.table()
    query = select(t.c.project_id, t.c.slug, t.c.title)
    found = connection.execute(
        query.where(t.c.id == integration_id, t.c.deleted_at.is_(None))
    ).first()
    if found is None:
        return
    add(
        connection,
        kind,
        {**payload, "slug": found.slug, "title": found.title},
        project_id=found.project_id,
        integration_id=integration_id,
        at=at,
        unless_within=unless_within,
    )


def unsent(connection: Connection, since: datetime, limit: int = 1_000) -> Sequence[Notification]:
    """Return what is still to be sent, oldest first; what is older than `since` is given up."""
    query = select(_T).where(_T.c.sent_at.is_(None), _T.c.at > since).order_by(_T.c.id)
    return [Notification.of(row) for row in connection.execute(query.limit(limit))]


def tried(
    connection: Connection, notification_id: int, *, sent: bool, next_at: datetime | None = None
) -> None:
    """Count an attempt; a sent one is not given out again, another not before `next_at`."""
    values: dict[str, Any] = {"attempts": _T.c.attempts + 1, "next_at": next_at}
    if sent:
        values["sent_at"] = now()
    connection.execute(update(_T).where(_T.c.id == notification_id).values(values))


def recovered(connection: Connection) -> list[str]:
    """Return the integrations that deliver again since their operator was told of trouble.

    After a suspension that is a delivery later than its end, not one that was still in flight.
    """
    t, later = Integration.table(), _T.alias()
    told_since = select(later.c.id).where(
        later.c.integration_id == _T.c.integration_id, later.c.id > _T.c.id
    )
    query = (
        select(t.c.id)
        .join(_T, _T.c.integration_id == t.c.id)
        .where(
            _T.c.kind != "integration.recovered",
            ~told_since.exists(),
            t.c.active == 1,
            t.c.deleted_at.is_(None),
            t.c.last_delivery_at > _T.c.at,
            t.c.last_delivery_at > t.c.updated_at,
        )
    )
    return list(connection.execute(query.order_by(t.c.id)).scalars())


def forget(engine: Engine, before: datetime) -> int:
    """Delete the notices older than that, sent or not; return how many."""
    with engine.begin() as connection:
        return connection.execute(delete(_T).where(_T.c.at < before)).rowcount
