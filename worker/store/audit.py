"""Who changed what. Callers give secrets masked already."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from worker.store.database import now
from worker.store.models import AuditRow, Integration


def add(
    connection: Connection,
    actor: str,
    action: str,
    *,
    project_id: str | None = None,
    integration_id: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write a row in the caller's transaction; of an integration, its project is known."""
    owner = select(Integration.project_id).where(Integration.id == integration_id)
    connection.execute(
        insert(AuditRow).values(
            at=now(),
            actor=actor,
            action=action,
            project_id=project_id or owner.scalar_subquery(),
            integration_id=integration_id,
            before=None if before is None else json.dumps(before),
            after=None if after is None else json.dumps(after),
        )
    )


def list_rows(
    connection: Connection,
    *,
    project_id: str | None = None,
    integration_id: str | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> list[AuditRow]:
    """Return the newest rows first; `before_id` goes on from an earlier answer."""
    table = AuditRow.table()
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if project_id is not None:
        query = query.where(table.c.project_id == project_id)
    if integration_id is not None:
        query = query.where(table.c.integration_id == integration_id)
    if before_id is not None:
        query = query.where(table.c.id < before_id)
    return [AuditRow.of(row) for row in connection.execute(query)]
