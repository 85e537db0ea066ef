"""`/console`: what operators do. Every form carries its session's token."""

import json
import time
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Response
from fastapi.responses import RedirectResponse

from worker.api import ops
from worker.api.actions import send_test_event
from worker.api.auth import Here, Principal
from worker.api.errors import invalid
from worker.api.v4 import IntegrationId
from worker.console.routes import ACTOR, Number, Text
from worker.console.web import Form, Page, Token, render, signed_in
from worker.registry import provider_of
from worker.replay import Choice, Progress, choose, replay
from worker.store import integrations
from worker.store.database import reading
from worker.store.errors import NotFound

STEP_SECONDS = 2.0  # of a replay in one request; the page goes on with the next
MOST = 2**63 - 1
OPERATOR = Principal(ACTOR, None)
router = APIRouter(prefix="/console", include_in_schema=False, route_class=Page)


@router.post("/integrations/{integration_id:integration_id}/status")
def set_status(integration_id: IntegrationId, here: Here, form: Form) -> Response:
    """Pause or activate, as `onward integrations` does."""
    status = form.get("status", "")
    if status not in ("0", "1"):
        raise invalid("A status is 0 or 1")
    with here.changing() as connection:
        integrations.set_status(connection, integration_id, int(status), ACTOR)
    return RedirectResponse(f"/console/integrations/{integration_id}?did={status}", 303)


@router.post("/integrations/{integration_id:integration_id}/test")
def test_event(integration_id: IntegrationId, here: Here, form: Form) -> Response:
    """Send a test event; return what was sent and answered, without secrets."""
    told = send_test_event(integration_id, OPERATOR, here)
    with reading(here.engine) as connection:
        row = integrations.get(connection, integration_id)
    return render("test.html", token=form["token"], row=row, told=told)


@router.get("/integrations/{integration_id:integration_id}/settings")
def show_settings(integration_id: IntegrationId, token: Token, here: Here) -> Response:
    """Return the settings to edit; of a secret, only that it is set."""
    values = ops.show_settings(integration_id, OPERATOR, here)["settings"] or {}
    with reading(here.engine) as connection:
        row = integrations.get(connection, integration_id)
    provider = provider_of(row.slug)
    schema = provider.settings.model_json_schema()
    return render(
        "settings.html", token=token, row=row, title=provider.title,
        values=json.dumps(values, indent=2, ensure_ascii=False),
        fields=schema.get("properties", {}), required=schema.get("required", []),
        generated=provider.settings.generated if values else None,
    )  # fmt: skip


@router.post("/integrations/{integration_id:integration_id}/settings")
def save_settings(integration_id: IntegrationId, here: Here, form: Form) -> Response:
    """Replace the settings, as `PUT /ops/v1/…/settings` does. What is refused is never shown."""
    try:
        values = msgspec.json.decode(form.get("values", ""), type=dict[str, Any])
    except msgspec.DecodeError:
        raise invalid("The settings must be a JSON object. Go back and correct them") from None
    check = form.get("check") == "yes"
    saved = ops.save_settings(integration_id, OPERATOR, here, values, check=check)
    if "shown_once" in saved:
        return _shown_once(integration_id, form, here, saved)
    return RedirectResponse(f"/console/integrations/{integration_id}?did=settings", 303)


@router.post("/integrations/{integration_id:integration_id}/roll")
def roll_secret(integration_id: IntegrationId, here: Here, form: Form) -> Response:
    """Make the signing secret anew, and show it this once."""
    saved = ops.roll_secret(integration_id, OPERATOR, here, keep_hours=24)
    return _shown_once(integration_id, form, here, saved)


def _shown_once(id_: str, form: Form, here: Here, saved: dict[str, Any]) -> Response:
    with reading(here.engine) as connection:
        row = integrations.get(connection, id_)
    told = {"row": row, "made": saved["shown_once"], "settings": saved["settings"]}
    return render("secret.html", token=form["token"], **told)


# --- replay -------------------------------------------------------------------------------------


@router.get("/replay")
def preview_replay(
    token: Token, here: Here, *, integration: Text = "", reason: Text = "", letter: Number = 0
) -> Response:
    """Return how many would be sent again, of what, and how many would not and why."""
    fields = {"integration": integration, "reason": reason, "letter": letter}
    choice, names = _chosen(here, fields)
    fields["last"] = max(choice.ids, default=0)
    with reading(here.engine) as connection:
        held = {one.id: one.title for one in integrations.list_of(connection) if one.active == 2}
    suspended = [held[one] for one in {kind[0] for kind in choice.kinds} if one in held]
    return render(
        "replay.html", token=token, choice=choice, names=names, fields=fields,
        back=_back(fields), suspended=suspended, progress=None,
    )  # fmt: skip


@router.post("/replay")
def go_on_replaying(here: Here, form: Form) -> Response:
    """Send dead letters again for two seconds; the page goes on until all are."""
    numbers = {name: _number(form, name) for name in ("letter", "after", "last", "done", "refused")}
    fields: dict[str, Any] = {
        "integration": form.get("integration", ""), "reason": form.get("reason", ""), **numbers,
    }  # fmt: skip
    choice, names = _chosen(here, fields)
    # Not beyond the last of the preview: what fails again meanwhile would go round for ever.
    ids = [id_ for id_ in choice.ids if fields["after"] < id_ <= fields["last"]]
    step = _step(here, ids)
    handled = step.replayed + step.refused
    total = fields["done"] + fields["refused"] + len(ids)
    fields["done"] += step.replayed
    fields["refused"] += step.refused
    fields["after"] = ids[handled - 1] if handled else fields["after"]
    progress = {"total": total, "left": len(ids) - handled}
    progress |= {"done": fields["done"], "refused": fields["refused"]}
    return render(
        "replay.html", token=form["token"], choice=choice, names=names, fields=fields,
        back=_back(fields), suspended=[], progress=progress,
    )  # fmt: skip


def _step(here: Here, ids: list[int]) -> Progress:
    """Send some again, the first of these; return how many it were."""
    until, step = time.monotonic() + STEP_SECONDS, Progress(0, 0, len(ids))
    going = replay(here.redis, here.engine, here.settings.shards, ids, actor=ACTOR)
    while time.monotonic() < until and (further := next(going, None)):
        step = further
    return step


def _number(form: dict[str, str], name: str) -> int:
    value = form.get(name, "") or "0"
    if not (value.isascii() and value.isdigit() and int(value[:20]) <= MOST):
        raise invalid("A field of the form is no number")
    return int(value)


def _chosen(here: Here, fields: dict[str, Any]) -> tuple[Choice, Any]:
    with reading(here.engine) as connection:
        choice = choose(
            connection,
            ids=[fields["letter"]] if fields["letter"] else None,
            integration_id=fields["integration"] or None,
            reason=fields["reason"] or None,
        )
        return choice, integrations.titles(connection)


def _back(fields: dict[str, Any]) -> str:
    if fields["letter"]:
        return f"/console/deadletters/{fields['letter']}"
    if fields["integration"]:
        return f"/console/integrations/{fields['integration']}"
    return "/console/deadletters"


@router.get("/{rest:path}", dependencies=[Depends(signed_in)])
def nothing(rest: str) -> Response:
    """Say that there is no such page."""
    raise NotFound(f"The console has no page {rest}")
