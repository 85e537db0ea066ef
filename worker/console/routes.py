"""`/console`: what operators look at. Each page is made from what API and commands tell, too."""

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from worker.api.auth import Here
from worker.api.dossier import dossier_of
from worker.api.errors import too_many_requests
from worker.api.records import DeadLetterWhole
from worker.api.v4 import IntegrationId
from worker.clock import time_of
from worker.console import look
from worker.console.search import events_of
from worker.console.session import COOKIE, SECONDS, safe_next
from worker.console.web import (
    ASSETS,
    STATES,
    FirstForm,
    Form,
    Page,
    Token,
    render,
    sessions_of,
    set_cookie,
    sign_in_page,
)
from worker.directory import compile_integration
from worker.registry import all_providers
from worker.status import overview
from worker.store import audit, dead_letters, deliveries, integrations, projects
from worker.store.database import now, reading
from worker.store.errors import NotFound
from worker.store.models import Integration
from worker.why import life_of

ACTOR = "console"
SHOWN = 100  # rows a page
LAST = 15  # deliveries, dead letters and changes on an integration's page
SPARK = 500  # deliveries in a sparkline
FULL = 70  # per cent of Redis' memory, from which the intake takes no more
SAID = {
    "1": "It is active. The first request is a probe; what waits follows in order.",
    "settings": "The settings are saved. If it is suspended: test it, then re-activate it.",
    "0": "It is paused: events that arrive are neither sent nor held.",
}
log = logging.getLogger(__name__)
router = APIRouter(prefix="/console", include_in_schema=False, route_class=Page)
Text = Annotated[str, Query(max_length=256)]
Number = Annotated[int, Query(ge=0, le=2**63 - 1)]


# --- signing in ---------------------------------------------------------------------------------


@router.get("/sign-in")
def show_sign_in(request: Request, here: Here) -> Response:
    """Return the form that asks for the admin key."""
    sessions_of(here)
    return sign_in_page(request)


@router.post("/sign-in")
def sign_in(request: Request, here: Here, form: FirstForm) -> Response:
    """Begin a session for the admin key; go on to the page that was asked for."""
    address = request.client.host if request.client else ""
    desk = request.app.state.console
    if wait := max(desk.each.wait(address), desk.every.wait("")):
        raise too_many_requests(wait)
    sessions = sessions_of(here)
    if not sessions.opens(form.get("key", "")):
        log.warning("A sign-in to the console from %s failed", address)
        wrong = "That is not the admin key."
        return sign_in_page(request, 403, wrong, after=safe_next(form.get("next", "")))
    with here.engine.begin() as connection:
        audit.add(connection, ACTOR, "console.sign_in", after={"address": address})
    answer = RedirectResponse(safe_next(form.get("next", "")), 303)
    set_cookie(request, answer, COOKIE, sessions.new(), SECONDS)
    return answer


@router.post("/sign-out")
def sign_out(request: Request, form: Form) -> Response:  # noqa: ARG001  it is checked
    """End the session in this browser."""
    answer = RedirectResponse("/console/sign-in", 303)
    set_cookie(request, answer, COOKIE, "", 0)
    return answer


@router.get("/static/{name}")
def show_asset(name: str) -> Response:
    """Return a file that the pages name, with its version, so that it may be kept."""
    if name not in ASSETS:
        raise NotFound("No such file")
    content, kind = ASSETS[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "max-age=31536000"})


# --- pages --------------------------------------------------------------------------------------


@router.get("")
@router.get("/")
def show_overview(request: Request, token: Token, here: Here) -> Response:
    """Return what needs somebody first, then the whole."""
    shards = here.settings.shards
    found = overview(here.redis, here.engine, shards)
    with reading(here.engine) as connection:
        last = deliveries.list_deliveries(connection, outcome="delivered", limit=look.LAGS)
    share = 100 * found.memory // found.memory_most if found.memory_most else 0
    return render(
        "overview.html",
        token=token,
        found=found,
        traffic=look.traffic(here.redis, shards, request.app.state.console.meter),
        lag=look.lag(last),
        full=share if share >= FULL else 0,
    )


@router.get("/integrations")
def list_integrations(
    token: Token,
    here: Here,
    *,
    project: Text = "",
    slug: Text = "",
    state: Text = "",
    page: Annotated[int, Query(ge=0, le=100_000)] = 0,
) -> Response:
    """Return the integrations that fit, those in trouble first."""
    with reading(here.engine) as connection:
        found = integrations.list_of(connection)
        known = projects.list_projects(connection)
    fit = [
        one
        for one in found
        if project in ("", one.project_id) and slug in ("", one.slug) and state in ("", _state(one))
    ]
    fit.sort(key=lambda one: ("suspended", "failing", "active", "paused").index(_state(one)))
    first = page * SHOWN
    rows = fit[first : first + SHOWN]
    waiting = look.waiting_each(here.redis, here.settings.shards, rows)
    return render(
        "integrations.html",
        token=token,
        rows=list(zip(rows, waiting, strict=True)),
        total=len(fit),
        all=len(found),
        first=first,
        page=page,
        project=project,
        slug=slug,
        state=state,
        projects=[(one.id, f"{one.name} ({one.id})") for one in known],
        slugs=[(one.slug, one.title) for one in all_providers().values()],
    )


def _state(one: Integration) -> str:
    return "failing" if one.fails else STATES[one.active]


@router.get("/integrations/{integration_id:integration_id}")
def show_integration(
    integration_id: IntegrationId, token: Token, here: Here, did: Text = ""
) -> Response:
    """Return one integration: its state, why, what to do, and what has happened."""
    with reading(here.engine) as connection:
        row = integrations.get(connection, integration_id)
        shown: dict[str, Any] = {
            "row": row,
            "dossier": dossier_of(connection, here, row),
            "letters": dead_letters.list_dead_letters(
                connection, integration_id=row.id, limit=LAST
            ),
            "open_letters": dead_letters.count_open(connection, row.id),
            "changes": audit.list_rows(connection, integration_id=row.id, limit=LAST),
            "names": integrations.titles(connection),
        }
        rows = deliveries.list_deliveries(connection, integration_id=row.id, limit=SPARK)
    policy = compile_integration(row, here.keyring, here.settings).policy
    shown |= {"tallies": {}, "expiring": 0}
    if shown["dossier"]["waiting"] is not None:
        place = (here.redis, here.settings.shards, row)
        shown["tallies"] = look.tallies_of(*place)
        shown["expiring"] = look.expiring(*place, policy.hold_seconds)
    changed = (one.at for one in shown["changes"] if one.action in CHANGES)
    return render(
        "integration.html",
        token=token,
        **shown,
        policy=policy,
        since=row.last_error_at if row.active == 2 else next(changed, None),
        spark=look.sparkline(rows, now()),
        deliveries=rows[:LAST],
        said=SAID.get(did, ""),
    )


CHANGES = ("integration.status", "integration.create")


@router.get("/events")
def find_events(token: Token, here: Here, q: Text = "") -> Response:
    """Return the life of the event with this id, or what waits of the user with it."""
    asked = q.strip()
    shown: dict[str, Any] = {"life": None, "user": None, "names": {}}
    if asked:
        with reading(here.engine) as connection:
            place = (here.redis, connection, here.settings.shards)
            shown["life"] = life_of(*place, asked, None)
            shown["user"] = None if shown["life"].known else events_of(*place, asked)
            shown["names"] = integrations.titles(connection)
    return render("events.html", token=token, asked=asked, time_of=time_of, **shown)


@router.get("/deadletters")
def list_letters(
    token: Token,
    here: Here,
    *,
    integration: Text = "",
    reason: Text = "",
    replayed: Text = "",
    before: Number = 0,
) -> Response:
    """Return dead letters, the newest first."""
    with reading(here.engine) as connection:
        rows = dead_letters.list_dead_letters(
            connection,
            integration_id=integration or None,
            reason=reason or None,
            replayed={"yes": True, "no": False}.get(replayed),
            before_id=before or None,
            limit=SHOWN,
        )
        names = integrations.titles(connection)
    return render(
        "deadletters.html",
        token=token,
        rows=rows,
        names=names,
        integration=integration,
        reason=reason,
        replayed=replayed,
        more=rows[-1].id if len(rows) == SHOWN else 0,
    )


@router.get("/deadletters/{letter_id}")
def show_letter(letter_id: int, token: Token, here: Here) -> Response:
    """Return a dead letter: the exact bytes, what was sent, and what was answered."""
    with reading(here.engine) as connection:
        row = dead_letters.get_dead_letter(connection, min(letter_id, 2**63 - 1))
        names = integrations.titles(connection)
    letter = DeadLetterWhole.of(row)
    return render("deadletter.html", token=token, letter=letter, names=names)
