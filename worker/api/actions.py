"""`/ops/v1`: what sends. Test events, checks of settings, dead letters once more.

Each takes a thread of its own for as long as it lasts, of which there are few (`Busy`): an upstream
that hangs costs the other routes nothing.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator

from worker import replay, trial
from worker.api.auth import Here, Operator, Principal, Services, principal_of_request
from worker.api.body import Body, read_model
from worker.api.errors import invalid
from worker.api.schemas import ID, LARGEST, WORD, schema_of
from worker.api.v4 import IntegrationId
from worker.directory import Integration, compile_integration
from worker.store import audit, integrations
from worker.store.database import reading
from worker.store.errors import NotFound

REPLAY_SECONDS = 20  # of sending again in one request; what is left is for the next

router = APIRouter(
    prefix="/ops/v1", tags=["operations"], dependencies=[Depends(principal_of_request)]
)
LetterId = Annotated[int, Field(ge=1, le=LARGEST)]


def _sent(send: trial.Send, integration: Integration, here: Services) -> trial.Trial | None:
    with here.busy.place(integration.project_id):
        return trial.tried(send, integration, here.settings)


def prove(
    integration_id: str, settings: Mapping[str, Any], who: Principal, here: Services
) -> dict[str, Any] | None:
    """Return what the provider's check says of settings not saved yet; None where it has none.

    Raises:
        ApiError: 400, the provider refuses them. That it could not be asked is no refusal.
    """
    with reading(here.engine) as connection:
        would = integrations.with_settings(
            connection,
            integration_id,
            settings,
            here.keyring,
            allow_private=here.settings.allow_private_upstreams,
            project_id=who.project_id,
        )
    integration = compile_integration(would.integration, here.keyring, here.settings)
    done = _sent(trial.send_check, integration, here)
    if done is None:
        return None
    shown = trial.trial_shown(done)
    if done.refused:
        said = shown["message"] or shown["reason"]
        raise invalid("The provider refuses these settings", details=[("settings", said)])
    return {name: shown[name] for name in ("outcome", "reason", "message")}


def _tried(send: trial.Send, action: str, id_: str, who: Principal, here: Services) -> Any:
    """Try a stored integration; return what is shown of it, None where there is no such check."""
    with reading(here.engine) as connection:
        row = integrations.get(connection, id_, who.project_id)
    integration = compile_integration(row, here.keyring, here.settings)
    done = _sent(send, integration, here)
    if done is None:
        return None
    shown = trial.trial_shown(done)
    with here.engine.begin() as connection:
        told = {name: shown[name] for name in ("outcome", "reason", "message")}
        audit.add(connection, who.actor, action, integration_id=id_, after=told)
    return shown


@router.post("/integrations/{integration_id}/test")
def send_test_event(integration_id: IntegrationId, who: Operator, here: Here) -> dict[str, Any]:
    """Send a marked test event now, whatever the integration's state.

    Returns the requests and their answers, masked, and what they mean.
    """
    shown = _tried(trial.send_test, "integration.test", integration_id, who, here)
    return {"object": "test", "integration_id": integration_id, **shown}


@router.post("/integrations/{integration_id}/check")
def check_settings(integration_id: IntegrationId, who: Operator, here: Here) -> dict[str, Any]:
    """Prove the saved settings by a call that leaves nothing at the provider.

    Some providers have no such call: 404; send a test event.
    """
    shown = _tried(trial.send_check, "integration.check", integration_id, who, here)
    if shown is None:
        raise NotFound(
            "This provider has no harmless call to check settings by. Send a test event."
        )
    return {"object": "check", "integration_id": integration_id, **shown}


def _needs(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": [name], "properties": {name: schema}}


_REPLAY_SCHEMA: dict[str, Any] = {
    "examples": [{"integration": "c9VdLs3H", "dry_run": True}],
    "anyOf": [
        _needs("integration", {"type": "string"}),
        _needs("reason", {"type": "string"}),
        _needs("ids", {"type": "array"}),
        _needs("all", {"const": True}),
    ],
}


class Replay(BaseModel):
    """Which dead letters to send again; at least one of integration, reason, ids or all."""

    model_config = ConfigDict(strict=True, json_schema_extra=_REPLAY_SCHEMA)

    integration: str | None = Field(None, pattern=ID)
    project: str | None = Field(None, pattern=ID, description="For the admin key")
    reason: str | None = Field(None, pattern=WORD)
    ids: list[LetterId] | None = Field(None, min_length=1, max_length=1000)
    all: bool = False
    after: int = Field(0, ge=0, le=LARGEST, description="Go on after this id")
    force: bool = Field(False, description="Also those replayed before; malformed to the intake")
    dry_run: bool = Field(False, description="Only say how many would be sent again")
    rate: float | None = Field(None, ge=0.1, le=100_000, description="At most so many a second")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.integration or self.reason or self.ids or self.all):
            raise ValueError("Say which: integration, reason, ids, or all")
        return self


@router.post("/deadletters/replay", openapi_extra={"requestBody": schema_of(Replay)})
def replay_dead_letters(who: Operator, here: Here, body: Body) -> dict[str, Any]:
    """Send dead letters again, oldest first: each goes to the end of its integration's lane.

    Returns how many of what were chosen and left out. It lasts at most 20 s: while there is more,
    `has_more` is true, and the same body with `after` set to `next_after` goes on.
    """
    wanted = read_model(Replay, body)
    project_id = who.reach(wanted.project)
    with reading(here.engine) as connection:
        if wanted.integration:
            integrations.get(connection, wanted.integration, who.project_id)
        choice = replay.choose(
            connection,
            ids=wanted.ids,
            project_id=project_id,
            integration_id=wanted.integration,
            reason=wanted.reason,
            force=wanted.force,
        )
    if wanted.ids and len(choice.ids) + choice.refused.total() < len(set(wanted.ids)):
        raise NotFound("No dead letter with one of these ids")
    ids = [id_ for id_ in choice.ids if id_ > wanted.after]
    with here.busy.place(project_id or ""):
        done = None if wanted.dry_run else _replay(ids, wanted, who, here)
    return _replay_shown(choice, ids, done)


def _replay(
    ids: list[int], wanted: Replay, who: Principal, here: Services
) -> replay.Progress | None:
    """Send again until all are, or time is up; return how far it is."""
    until, progress = time.monotonic() + REPLAY_SECONDS, None
    going = replay.replay(
        here.redis,
        here.engine,
        here.settings.shards,
        ids,
        wanted.rate,
        force=wanted.force,
        actor=who.actor,
    )
    for progress in going:
        if time.monotonic() > until:
            return progress
    return progress


def _replay_shown(
    choice: replay.Choice, ids: list[int], done: replay.Progress | None
) -> dict[str, Any]:
    handled = done.replayed + done.refused if done else 0
    more = done is not None and handled < len(ids)
    return {
        "object": "replay",
        "chosen": len(ids),
        "kinds": [
            {"integration_id": integration_id, "reason": reason, "count": count}
            for (integration_id, reason), count in choice.kinds.items()
        ],
        "left_out": [{"why": why, "count": count} for why, count in choice.refused.items()],
        "replayed": done.replayed if done else 0,
        "has_more": more,
    } | ({"next_after": ids[handled - 1] if handled else 0} if more else {})
