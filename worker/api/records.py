"""The shapes of the record under /ops/v1: deliveries, dead letters, the audit log."""

import json
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict

from worker.api.schemas import moment
from worker.preview import text_or_base64
from worker.store.models import Base

Moment: TypeAlias = Annotated[str | None, BeforeValidator(moment)]
Decoded: TypeAlias = Annotated[Any, BeforeValidator(lambda raw: json.loads(raw) if raw else None)]


class _Record(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def of(cls, row: Base) -> Self:
        """Return the object of a row."""
        return cls.model_validate(row)


class DeliveryObject(_Record):
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
    accepted_at: Moment
    finished_at: Moment


class DeadLetterObject(_Record):
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
    created_at: Moment
    replayed_at: Moment


class DeadLetterWhole(DeadLetterObject):
    """A dead letter with all that was kept of it; the body as text, or else in base64."""

    body: str
    body_encoding: str
    request: str | None
    response: str | None

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the object of a row."""
        body, encoding = text_or_base64(row.body)
        return cls.model_validate(vars(row) | {"body": body, "body_encoding": encoding})


class AuditEntry(_Record):
    """Who changed what; secrets are masked."""

    id: int
    at: Moment
    actor: str
    action: str
    project_id: str | None
    integration_id: str | None
    before: Decoded
    after: Decoded
