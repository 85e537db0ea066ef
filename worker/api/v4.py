"""`/v4/integrations`, exactly as the platform documents it; nothing is added here."""

import re
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.convertors import StringConvertor, register_url_convertor

from worker.api.auth import Caller, Here, project_of_request
from worker.api.body import Body
from worker.api.schemas import (
    Catalogue,
    IntegrationList,
    IntegrationObject,
    NewIntegration,
    NewStatus,
    catalogue,
    schema_of,
)
from worker.store import idempotency, integrations
from worker.store.database import reading
from worker.store.errors import Invalid, NotFound

# The key is looked at before the body: who may not enter learns nothing of what is wrong with it.
router = APIRouter(
    prefix="/v4/integrations", tags=["integrations"], dependencies=[Depends(project_of_request)]
)


def all_but(name: str) -> StringConvertor:
    """Return a path's id; `name` is a place of its own, so that its 405 names its own methods."""
    convertor: type[StringConvertor] = type(
        "AllBut", (StringConvertor,), {"regex": rf"(?!{name}(?:/|$))[^/]+"}
    )
    return convertor()


register_url_convertor("integration_id", all_but("meta"))
_ID = re.compile(r"[a-zA-Z0-9._-]{1,256}")
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")


def integration_id_of(integration_id: str) -> str:
    """Return the id in the path; one of no possible form is not found either."""
    if not _ID.fullmatch(integration_id):
        raise NotFound("No integration with this id")
    return integration_id


IntegrationId = Annotated[str, Depends(integration_id_of)]


def _object(row: Any, status: int = 200) -> Response:
    body = IntegrationObject.of(row).model_dump_json()
    return Response(body, status, media_type="application/json")


@router.get("", response_model=IntegrationList)
def list_integrations(caller: Caller, here: Here) -> Response:
    """Return all integrations of the project."""
    with reading(here.engine) as connection:
        rows = integrations.list_of(connection, caller.project_id)
    answer = IntegrationList(data=[IntegrationObject.of(row) for row in rows])
    return Response(answer.model_dump_json(), media_type="application/json")


@router.post(
    "",
    status_code=201,
    response_model=IntegrationObject,
    openapi_extra={
        "requestBody": schema_of(NewIntegration),
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key with the same body gives the same answer for 24 h",
                "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
            }
        ],
    },
)
def create_integration(request: Request, caller: Caller, here: Here, body: Body) -> Response:
    """Create an integration, paused."""
    key, project_id = _idempotency_key(request), caller.project_id or ""
    digest = sha256(msgspec.json.encode(body, order="sorted")).hexdigest()
    with here.engine.begin() as connection:
        if key and (done := idempotency.claim(connection, project_id, key, digest)):
            return Response(done.body, done.status, media_type="application/json")
        row = integrations.create_integration(
            connection,
            project_id,
            title=body.get("title"),
            slug=body.get("integration"),
            platform=body.get("target_platform"),
            actor=caller.actor,
        )
        answer = _object(row, 201)
        if key:
            kept = idempotency.Answer(201, bytes(answer.body).decode())
            idempotency.keep(connection, project_id, key, kept)
    return answer


def _idempotency_key(request: Request) -> str:
    values = request.headers.getlist("idempotency-key")
    if len(values) > 1 or not all(map(_IDEMPOTENCY_KEY.fullmatch, values)):
        raise Invalid([("Idempotency-Key", "Must be 1 to 255 visible ASCII characters, once")])
    return values[0] if values else ""


@router.get("/meta")
def list_providers() -> Catalogue:
    """Return every provider that `create` takes, by category."""
    return catalogue()


@router.get("/{integration_id:integration_id}", response_model=IntegrationObject)
def show_integration(integration_id: IntegrationId, caller: Caller, here: Here) -> Response:
    """Return an integration."""
    with reading(here.engine) as connection:
        return _object(integrations.get(connection, integration_id, caller.project_id))


@router.post(
    "/{integration_id:integration_id}/status",
    response_model=IntegrationObject,
    openapi_extra={"requestBody": schema_of(NewStatus)},
)
def set_status(integration_id: IntegrationId, caller: Caller, here: Here, body: Body) -> Response:
    """Pause (0) or activate (1); from 2, activating resumes with the events that were held.

    One that is active and fails is tried at once, whenever its next attempt would be.
    """
    status = status_of(body)
    with here.changing() as connection:
        return _object(
            integrations.set_status(
                connection, integration_id, status, caller.actor, caller.project_id
            )
        )


def status_of(body: dict[str, Any]) -> int:
    """Return the body's `status`, 0 or 1; raise Invalid."""
    value = body.get("status")
    if isinstance(value, bool) or not isinstance(value, int) or value not in (0, 1):
        raise Invalid([("status", "Must be 0 or 1 (an integer)")])
    return value


@router.delete("/{integration_id:integration_id}", status_code=204, response_class=Response)
def delete_integration(integration_id: IntegrationId, caller: Caller, here: Here) -> Response:
    """Delete for good; events that wait for it are dropped and counted."""
    with here.changing() as connection:
        integrations.delete(connection, integration_id, caller.actor, caller.project_id)
    return Response(status_code=204)
