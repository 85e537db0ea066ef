"""The shapes of the record under /ops/v1: deliveries, dead letters, the audit log."""

import json
from base64 import b64encode
from typing import Any, Self

from pydantic import BaseModel

from worker.api.schemas import moment
from worker.store.models import AuditRow, DeadLetter, Delivery


class DeliveryObject(BaseModel):
    """How an event ended for an integration."""

    id: int
    integration_id: str
    project_id: str
    event_id: str
    event_name: str
    outcome: str
    reason: str | None
    message: str | None
    status: int | None
    attempts: int
    accepted_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, row: Delivery) -> "DeliveryObject":
        """Return the object of a row."""
        return cls(
            id=row.id,
            integration_id=row.integration_id,
            project_id=row.project_id,
            event_id=row.event_id,
            event_name=row.event_name,
            outcome=row.outcome,
            reason=row.reason,
            message=row.message,
            status=row.status,
            attempts=row.attempts,
            accepted_at=moment(row.accepted_at),
            finished_at=moment(row.finished_at),
        )


class DeadLetterObject(BaseModel):
    """What was given up, and why."""

    id: int
    project_id: str | None
    integration_id: str | None
    event_id: str | None
    event_name: str | None
    reason: str
    message: str | None
    faults: Any
    status: int | None
    attempts: int
    created_at: str | None
    replayed_at: str | None

    @classmethod
    def of(cls, row: DeadLetter) -> Self:
        """Return the object of a row."""
        return cls(**_letter(row))


class DeadLetterWhole(DeadLetterObject):
    """A dead letter with all that was kept of it; the body as text, or else in base64."""

    body: str
    body_encoding: str
    request: str | None
    response: str | None

    @classmethod
    def of(cls, row: DeadLetter) -> Self:
        """Return the object of a row."""
        try:
            body, encoding = row.body.decode(), "utf-8"
        except UnicodeDecodeError:
            body, encoding = b64encode(row.body).decode(), "base64"
        return cls(
            **_letter(row),
            body=body,
            body_encoding=encoding,
            request=row.request,
            response=row.response,
        )


def _letter(row: DeadLetter) -> dict[str, Any]:
    same = (
        "id", "project_id", "integration_id", "event_id", "event_name", "reason", "message",
        "faults", "status", "attempts",
    )  # fmt: skip
    times = {name: moment(getattr(row, name)) for name in ("created_at", "replayed_at")}
    return {name: getattr(row, name) for name in same} | times


class AuditEntry(BaseModel):
    """Who changed what; secrets are masked."""

    id: int
    at: str | None
    actor: str
    action: str
    project_id: str | None
    integration_id: str | None
    before: Any
    after: Any

    @classmethod
    def of(cls, row: AuditRow) -> "AuditEntry":
        """Return the object of a row."""
        return cls(
            id=row.id,
            at=moment(row.at),
            actor=row.actor,
            action=row.action,
            project_id=row.project_id,
            integration_id=row.integration_id,
            before=json.loads(row.before) if row.before else None,
            after=json.loads(row.after) if row.after else None,
        )
