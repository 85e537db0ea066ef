"""`/ops/v1`: what operators need beyond v4. A project's key reaches its own; the admin key all."""

import json
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from starlette.convertors import register_url_convertor

from providers.kit import read_settings
from worker.api.actions import prove
from worker.api.auth import Here, Operator, principal_of_request
from worker.api.body import Body
from worker.api.dossier import dossier_of
from worker.api.records import AuditEntry, DeadLetterObject, DeadLetterWhole, DeliveryObject
from worker.api.schemas import ID, LARGEST, WORD, IntegrationObject, NewStatus, schema_of
from worker.api.v4 import IntegrationId, all_but, status_of
from worker.journal import Outcome
from worker.registry import all_providers, provider_of
from worker.store import audit, dead_letters, deliveries, integrations, projects
from worker.store.checks import shown_settings
from worker.store.database import reading
from worker.store.models import Integration

router = APIRouter(
    prefix="/ops/v1", tags=["operations"], dependencies=[Depends(principal_of_request)]
)
Id = Annotated[str | None, Query(pattern=ID)]
Word = Annotated[str | None, Query(pattern=WORD)]
Before = Annotated[int | None, Query(ge=1, le=LARGEST, description="Go on from this id")]
Limit = Annotated[int, Query(ge=1, le=1000)]
KeepHours = Annotated[int, Query(ge=0, le=24 * 30)]
register_url_convertor("letter_id", all_but("replay"))
LetterId = Annotated[int, Path(ge=1, le=LARGEST)]


def _listed(url: str, rows: list[Any], limit: int) -> dict[str, Any]:
    """Return a list; `next_before` is there while there may be more."""
    answer = {
        "object": "list",
        "url": url,
        "data": [row.model_dump() for row in rows],
        "has_more": len(rows) == limit,
    }
    return answer | ({"next_before": rows[-1].id} if len(rows) == limit else {})


@router.get("/providers")
def list_providers() -> dict[str, Any]:
    """Return every provider with the form of its settings, as JSON schema."""
    data = [
        {
            "slug": provider.slug,
            "title": provider.title,
            "category": provider.category,
            "stores": provider.stores,
            "settings": provider.settings.model_json_schema(),
            "identifiers": provider.identifiers,
            "notes": provider.notes,
        }
        for provider in all_providers().values()
    ]
    return {"object": "list", "url": "/ops/v1/providers", "data": data, "has_more": False}


@router.get("/projects")
def list_projects(who: Operator, here: Here) -> dict[str, Any]:
    """Return the projects that the key reaches."""
    with reading(here.engine) as connection:
        found = projects.list_projects(connection)
    data = [
        {"id": project.id, "name": project.name}
        for project in found
        if who.project_id in (None, project.id)
    ]
    return {"object": "list", "url": "/ops/v1/projects", "data": data, "has_more": False}


@router.get("/integrations")
def list_integrations(who: Operator, here: Here, project: Id = None) -> dict[str, Any]:
    """Return integrations as in v4, each with its project and slug."""
    with reading(here.engine) as connection:
        rows = integrations.list_of(connection, who.reach(project))
    data = [_beyond_v4(row) for row in rows]
    return {"object": "list", "url": "/ops/v1/integrations", "data": data, "has_more": False}


def _beyond_v4(row: Integration) -> dict[str, Any]:
    shown = IntegrationObject.of(row).model_dump()
    return shown | {"project_id": row.project_id, "slug": row.slug}


@router.get("/integrations/{integration_id}")
def show_dossier(integration_id: IntegrationId, who: Operator, here: Here) -> dict[str, Any]:
    """Return the dossier: what is wrong, since when, how many wait, what happens next."""
    with reading(here.engine) as connection:
        row = integrations.get(connection, integration_id, who.project_id)
        return dossier_of(connection, here, row)


@router.get("/integrations/{integration_id}/settings")
def show_settings(integration_id: IntegrationId, who: Operator, here: Here) -> dict[str, Any]:
    """Return the settings; a secret only as set, with a fingerprint."""
    with reading(here.engine) as connection:
        row = integrations.get(connection, integration_id, who.project_id)
    return _settings(row, here)


@router.put(
    "/integrations/{integration_id}/settings",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object"},
                    "example": {"api_key": "…", "region": "eu"},
                }
            },
        }
    },
)
def save_settings(
    integration_id: IntegrationId, who: Operator, here: Here, body: Body, *, check: bool = False
) -> dict[str, Any]:
    """Replace the settings. A secret given as it is shown (`{"set": true}`) keeps its value.

    A webhook's `signing_secret` that is not given keeps its value too; the first one is made, and
    `shown_once` in the answer is its only sight.

    With `check` they are saved only if the provider does not refuse them; `check` in the answer
    says what it said, null where it has no harmless call to ask by.
    """
    proof = prove(integration_id, body, who, here) if check else None
    with here.changing() as connection:
        saved = integrations.save_settings(
            connection,
            integration_id,
            body,
            here.keyring,
            actor=who.actor,
            allow_private=here.settings.allow_private_upstreams,
            project_id=who.project_id,
        )
    return _saved(saved, here) | ({"check": proof} if check else {})


@router.post("/integrations/{integration_id}/roll")
def roll_secret(
    integration_id: IntegrationId, who: Operator, here: Here, *, keep_hours: KeepHours = 24
) -> dict[str, Any]:
    """Make a webhook's signing secret anew; `shown_once` in the answer is its only sight.

    The one before signs too for `keep_hours`: a receiver may change over in that time.
    """
    with here.changing() as connection:
        saved = integrations.roll_secret(
            connection,
            integration_id,
            here.keyring,
            keep=timedelta(hours=keep_hours),
            actor=who.actor,
            project_id=who.project_id,
        )
    return _saved(saved, here)


def _saved(saved: integrations.Saved, here: Here) -> dict[str, Any]:
    shown = _settings(saved.integration, here)
    return shown | ({"shown_once": saved.made} if saved.made else {})


def _settings(row: Integration, here: Here) -> dict[str, Any]:
    shown: dict[str, Any] | None = None
    if row.settings is not None:
        provider = provider_of(row.slug)
        data = json.loads(here.keyring.decrypt(row.settings, row.id))
        shown = shown_settings(
            read_settings(provider.title, provider.settings, data, {"allow_http": True})
        )
    return {"object": "settings", "integration_id": row.id, "slug": row.slug, "settings": shown}


@router.post(
    "/integrations/{integration_id}/status",
    openapi_extra={"requestBody": schema_of(NewStatus)},
)
def set_status(
    integration_id: IntegrationId, who: Operator, here: Here, body: Body
) -> dict[str, Any]:
    """Pause (0) or activate (1), as in v4."""
    status = status_of(body)
    with here.changing() as connection:
        return _beyond_v4(
            integrations.set_status(connection, integration_id, status, who.actor, who.project_id)
        )


@router.get("/deliveries")
def list_deliveries(
    who: Operator,
    here: Here,
    *,
    project: Id = None,
    integration: Id = None,
    event: Id = None,
    outcome: Outcome | None = None,
    before: Before = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """Return how events ended, newest first."""
    with reading(here.engine) as connection:
        rows = deliveries.list_deliveries(
            connection,
            project_id=who.reach(project),
            integration_id=integration,
            event_id=event,
            outcome=outcome,
            before_id=before,
            limit=limit,
        )
    return _listed("/ops/v1/deliveries", [DeliveryObject.of(row) for row in rows], limit)


@router.get("/deadletters")
def list_dead_letters(
    who: Operator,
    here: Here,
    *,
    project: Id = None,
    integration: Id = None,
    event: Id = None,
    reason: Word = None,
    replayed: bool | None = None,
    before: Before = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """Return what was given up, newest first, without the bytes."""
    with reading(here.engine) as connection:
        rows = dead_letters.list_dead_letters(
            connection,
            project_id=who.reach(project),
            integration_id=integration,
            event_id=event,
            reason=reason,
            replayed=replayed,
            before_id=before,
            limit=limit,
        )
    return _listed("/ops/v1/deadletters", [DeadLetterObject.of(row) for row in rows], limit)


@router.get("/deadletters/{letter_id:letter_id}")
def show_dead_letter(letter_id: LetterId, who: Operator, here: Here) -> DeadLetterWhole:
    """Return a dead letter with the event's exact bytes, and what was sent and answered."""
    with reading(here.engine) as connection:
        return DeadLetterWhole.of(
            dead_letters.get_dead_letter(connection, letter_id, who.project_id)
        )


@router.get("/audit")
def list_audit(
    who: Operator,
    here: Here,
    *,
    project: Id = None,
    integration: Id = None,
    before: Before = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """Return who changed what, newest first."""
    with reading(here.engine) as connection:
        rows = audit.list_rows(
            connection,
            project_id=who.reach(project),
            integration_id=integration,
            before_id=before,
            limit=limit,
        )
    return _listed("/ops/v1/audit", [AuditEntry.of(row) for row in rows], limit)
