"""The outbox of what operators are told: written with what it tells of, sent at least once."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from worker.store.database import now
from worker.store.models import Notification

_T = Notification.table()


def add(
    connection: Connection,
    kind: str,
    payload: Mapping[str, Any],
    *,
    project_id: str | None = None,
    integration_id: str | None = None,
    at: datetime | None = None,
) -> None:
    """Put a notice in the outbox, in the caller's transaction."""
    connection.execute(
        insert(_T).values(
            at=at or now(),
            kind=kind,
            project_id=project_id,
            integration_id=integration_id,
            payload=json.dumps(payload),
            attempts=0,
        )
    )


def unsent(connection: Connection, limit: int = 100) -> Sequence[Notification]:
    """Return what is still to be sent, oldest first."""
    query = select(_T).where(_T.c.sent_at.is_(None)).order_by(_T.c.id).limit(limit)
    return [Notification.of(row) for row in connection.execute(query)]


def tried(connection: Connection, notification_id: int, *, sent: bool) -> None:
    """Count an attempt; a sent one is not given out again."""
    values: dict[str, Any] = {"attempts": _T.c.attempts + 1}
    if sent:
        values["sent_at"] = now()
    connection.execute(update(_T).where(_T.c.id == notification_id).values(values))
