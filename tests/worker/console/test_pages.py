"""What operators see: the trouble first, in plain words, escaped; and what they can do about it."""

import html
import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from redis import Redis
from sqlalchemy import Engine, update

from providers.kit import Request, Response
from tests.worker.console.conftest import (
    AT,
    KEYS,
    PROJECT,
    Browser,
    made,
    recorded,
    suspended,
    waits,
)
from tests.worker.store.rows import record_rows
from worker import trial
from worker.incidents import Fare, pack
from worker.state import CHANGES, OWNERS, fares_of
from worker.store import audit, dead_letters, integrations
from worker.store.database import reading
from worker.store.models import Integration
from worker.store.secrets import keyring_of

FORM = re.compile(r'<form method="post" action="/console/replay".*?</form>', re.DOTALL)
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"


def seen(text: str) -> str:
    """Return a page's words, without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def state(engine: Engine, integration_id: str) -> int:
    with reading(engine) as connection:
        return integrations.get(connection, integration_id).active


# --- overview -----------------------------------------------------------------------------------


def test_the_overview_shows_the_suspended_first(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    calm = seen(operator.get("/console").text)
    assert "No pipeline is in trouble" in calm
    assert "No worker reads the intake" in calm
    suspended(empty_database, hook, "401 from Our backend: who are you")
    waits(events_redis, hook, 3)
    events_redis.zadd(OWNERS, {"worker": 2**52})
    page = operator.get("/console").text
    told = seen(page)
    assert "1 suspended" in told
    assert "401 from Our backend: who are you" in told
    assert re.search(r'data-label="Waiting" class="number">3<', page)
    assert told.index("1 suspended") < told.index("Events in")
    assert "No worker reads the intake" not in told


def test_the_overview_tells_the_next_attempt_of_who_fails_or_that_it_is_now(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    with empty_database.begin() as connection:
        connection.execute(update(Integration.table()).values(delivery_error_count=3))

    def told() -> str:
        (cell,) = re.findall(
            r'<td data-label="Next attempt">.*?</td>', operator.get("/console").text
        )
        return seen(cell)

    assert told() == "\N{EN DASH}"
    waits(events_redis, hook, 1)
    assert told() == "now"
    events_redis.zadd(KEYS.due, {hook: int((time.time() + 90.5 * 86_400) * 1000)})
    assert told() == "in 90 d"


def test_a_provider_incident_is_on_top(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    suspended(empty_database, hook, "no")
    now = int(events_redis.time()[0]) * 1000
    for number in range(6):
        events_redis.hset(fares_of("webhooks"), f"i{number}", pack(Fare(f"p{number}", now, True)))
    told = seen(operator.get("/console").text)
    assert "Provider incident: webhooks fails for 6 of 6 pipelines in 6 projects" in told
    assert told.index("Provider incident") < told.index("1 suspended")


def test_traffic_and_lag(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    for _ in range(4):
        events_redis.xadd(KEYS.intake, {"event": b"{}"})
    events_redis.hincrby(KEYS.tally, f"{hook}|delivered", 7)
    end = datetime.now(UTC)
    row: dict[str, Any] = {"integration_id": hook, "project_id": PROJECT, "event_id": "e"}
    row |= {
        "event_name": "n",
        "outcome": "delivered",
        "accepted_at": end - timedelta(seconds=12),
        "finished_at": end,
    }
    record_rows(empty_database, 0, None, "1", deliveries=[row])
    told = seen(operator.get("/console").text)
    assert "Events in 4" in told
    assert "Deliveries out 7" in told
    assert "Backlog 4 4 in the intake, 0 in lanes" in told
    assert "Lag, intake to delivered 12 s" in told


def test_without_redis_the_pages_say_so(operator: Browser, app: FastAPI, hook: str) -> None:
    app.state.services = replace(app.state.services, redis=Redis(port=1))
    answer = operator.get("/console")
    assert answer.status_code == 503
    assert "Redis does not answer" in answer.text
    one = operator.get(f"/console/integrations/{hook}")
    assert one.status_code == 200
    assert "what waits is not known" in one.text


# --- integrations -------------------------------------------------------------------------------


def test_integrations_are_filtered_and_those_in_trouble_come_first(
    operator: Browser, empty_database: Engine, hook: str
) -> None:
    broken = made(empty_database, "Broken", "amplitude")
    off = made(empty_database, "Off", "amplitude", 0)
    suspended(empty_database, broken, "no")

    def listed(**query: str) -> list[str]:
        page = operator.get("/console/integrations", **query).text
        return re.findall(r'id="to-(\w+)"', page)

    assert listed() == [broken, hook, off]
    assert listed(state="suspended") == [broken]
    assert listed(slug="amplitude") == [broken, off]
    assert listed(slug="amplitude", state="paused", project=PROJECT) == [off]
    assert listed(project="prj_other") == []


def test_an_integration_tells_why_and_what_to_do(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    recorded(empty_database, hook)
    suspended(empty_database, hook, "401 from Our backend: no")
    waits(events_redis, hook, 2, datetime.now(UTC) - timedelta(hours=70))
    waits(events_redis, hook, 3, datetime.now(UTC))
    page = operator.get(f"/console/integrations/{hook}").text
    told = seen(page)
    for words in (
        "suspended since 2026-06-01 11:20:36Z",
        "Suspended: events are held for up to 72 h",
        "401 from Our backend: no (unauthorized)",
        "refuses the credentials",
        "Held 5",
        "Expire within 12 h 2",
        "1 delivered",
        "integration.suspend",
        "Replay 1 dead letter …",
    ):
        assert words in told, words
    assert "<svg" in page
    assert "Re-activate" in told


def test_what_fails_can_be_tried_now(operator: Browser, empty_database: Engine, hook: str) -> None:
    page = f"/console/integrations/{hook}"
    assert "Try now" not in operator.get(page).text
    with empty_database.begin() as connection:
        connection.execute(update(Integration).values(delivery_error_count=3))
    assert "Try now" in operator.get(page).text
    assert operator.post(f"{page}/status", status="1").status_code == 303
    assert "integration.try" in operator.get(page).text


def test_an_unknown_integration_is_a_page_too(operator: Browser) -> None:
    for path in ("/console/integrations/nothere1", "/console/deadletters/99", "/console/nothing"):
        answer = operator.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("text/html")
    assert operator.get("/console/deadletters/x").status_code == 400


def test_activating_and_pausing(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    suspended(empty_database, hook, "no")
    answer = operator.post(f"/console/integrations/{hook}/status", status="1")
    assert answer.status_code == 303
    assert state(empty_database, hook) == 1
    assert "It is active" in operator.get(answer.headers["location"]).text
    operator.post(f"/console/integrations/{hook}/status", status="0")
    assert state(empty_database, hook) == 0
    for wrong in ("2", "", "x"):
        answer = operator.post(f"/console/integrations/{hook}/status", status=wrong)
        assert answer.status_code == 400
    assert state(empty_database, hook) == 0
    with reading(empty_database) as connection:
        actors = {row.actor for row in audit.list_rows(connection, integration_id=hook, limit=2)}
    assert actors == {"console"}
    assert events_redis.xlen(CHANGES) == 2, "the delivery loops were told"


def test_a_signing_secret_is_shown_once_and_rolled(operator: Browser, hook: str) -> None:
    path = f"/console/integrations/{hook}"
    values = json.dumps({"url": "https://example.com/hooks"})
    secrets = [
        re.findall(r"whsec_[\w+/=]+", operator.post(f"{path}/{action}", **fields).text)
        for action, fields in (("settings", {"values": values}), ("roll", {}))
    ]
    assert [len(found) for found in secrets] == [1, 1]
    assert secrets[0] != secrets[1]
    page = operator.get(f"{path}/settings").text
    assert "Roll the signing secret" in page
    assert "whsec_" not in page.replace("whsec_…", "")


def test_settings_are_replaced_and_secrets_stay_unseen(operator: Browser, hook: str) -> None:
    path = f"/console/integrations/{hook}/settings"
    secrets = {"auth_token": "s3cr3t-canary", "signing_secret": f"whsec_{'A' * 43}="}
    values = json.dumps({"url": "https://example.com/a", **secrets})
    answer = operator.post(path, values=values)
    assert answer.status_code == 303
    assert "The settings are saved" in operator.get(answer.headers["location"]).text
    page = operator.get(path).text
    kept = re.search(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)
    assert kept
    shown = html.unescape(kept[1])
    assert "https://example.com/a" in shown
    changed = shown.replace("example.com/a", "example.com/b")
    assert operator.post(path, values=changed).status_code == 303
    again = operator.get(path).text
    assert "https://example.com/b" in again
    fingerprint = re.search(r"fingerprint\W+(\w+)", shown)
    assert fingerprint
    assert fingerprint[1] in again
    for wrong in (
        '{"url": 5, "auth_token": "s3cr3t-canary"}',
        '["s3cr3t-canary"]',
        "s3cr3t-canary",
    ):
        refused = operator.post(path, values=wrong)
        assert refused.status_code == 400
        assert "s3cr3t-canary" not in refused.text
    assert "s3cr3t-canary" not in page + again


class Upstream:
    """Answers every request."""

    async def send(self, _request: Request, **_: Any) -> Response:
        return Response(status=401, headers={}, body=b"no: s3cr3t-canary " + HOSTILE.encode())

    async def close(self) -> None:
        """Nothing is open."""


def test_a_test_event_shows_request_and_answer_without_secrets(
    operator: Browser, app: FastAPI, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = app.state.services
    settings = {"url": "https://example.com/hooks", "auth_token": "s3cr3t-canary"}
    with here.engine.begin() as connection:
        integrations.save_settings(
            connection, hook, settings, keyring_of(here.settings), actor="test"
        )
    monkeypatch.setattr(trial, "make_transport", lambda _settings: Upstream())
    answer = operator.post(f"/console/integrations/{hook}/test")
    assert answer.status_code == 200
    assert "Misconfigured (unauthorized)" in seen(answer.text)
    assert "POST https://example.com/" in answer.text
    assert "s3cr3t-canary" not in answer.text
    assert "<script>" not in answer.text
    assert "s3cr3t-canary" not in operator.get(f"/console/integrations/{hook}").text


# --- dead letters -------------------------------------------------------------------------------


def test_dead_letters_are_listed_filtered_and_shown_whole(
    operator: Browser, empty_database: Engine, hook: str
) -> None:
    recorded(empty_database, hook, letters=3)
    listed = operator.get("/console/deadletters").text
    assert re.findall(r"/console/deadletters/(\d+)", listed) == ["3", "2", "1"]
    for query in ({"reason": "other"}, {"integration": "nothere1"}, {"replayed": "yes"}):
        assert "/console/deadletters/3" not in operator.get("/console/deadletters", **query).text
    one = seen(operator.get("/console/deadletters/2").text)
    for words in ("POST https://x/ ***", "400 no", "d1", "not yet"):
        assert words in one, words


def test_a_malformed_event_is_shown_with_its_faults(
    operator: Browser, empty_database: Engine
) -> None:
    faults = [{"path": "event_name", "message": "is required"}, {"path": "", "message": "is odd"}]
    letter: dict[str, Any] = {"reason": "malformed", "project_id": PROJECT, "event_id": "e3"}
    letter |= {"body": b"{}", "faults": json.dumps(faults), "created_at": AT}
    tried = {**letter, "reason": "bad_request", "faults": None, "attempts": 1}
    assert record_rows(empty_database, 0, None, "1", dead_letters=[letter, tried])
    one = seen(operator.get("/console/deadletters/1").text)
    assert "Fault event_name is required Fault event is odd" in one
    assert re.search(r"after 1 attempt\b", seen(operator.get("/console/deadletters/2").text))
    assert "/console/deadletters/1" in operator.get("/console/events", q="e3").text


def test_a_replay_is_previewed_and_then_goes_on_to_the_end(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    recorded(empty_database, hook, letters=250)
    page = operator.get("/console/replay", integration=hook).text
    assert "250 would be sent again" in page
    assert events_redis.xlen(KEYS.lane(hook)) == 0
    done = replay_on(operator, page)
    assert "250 of 250 sent again" in seen(done)
    assert events_redis.xlen(KEYS.lane(hook)) == 250
    assert "0 would be sent again" in operator.get("/console/replay", integration=hook).text


def replay_on(operator: Browser, page: str) -> str:
    """Send the page's form, and that of each page after it; return the last page."""
    while form := FORM.search(page):
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form[0]))
        page = operator("POST", "/console/replay", data=fields).text
    return page


def test_a_replay_shows_how_far_it_is_and_ends_where_it_was_to_end(
    operator: Browser,
    empty_database: Engine,
    events_redis: Any,
    hook: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded(empty_database, hook, letters=250)
    monkeypatch.setattr("worker.console.actions.STEP_SECONDS", 1e-9)
    page = operator.get("/console/replay", integration=hook).text
    form = {"integration": hook, "last": "250", "token": operator.token()}
    first = operator("POST", "/console/replay", data=form).text
    assert "Sending again … 0 of 250" in seen(first)
    monkeypatch.undo()
    letter: dict[str, Any] = {"integration_id": hook, "project_id": PROJECT, "body": b"{}"}
    letter |= {"event_id": "again", "reason": "bad_request", "created_at": datetime.now(UTC)}
    assert record_rows(empty_database, 1, None, "1", dead_letters=[letter])
    assert "250 of 250 sent again" in seen(replay_on(operator, page))
    with reading(empty_database) as connection:
        assert dead_letters.count_open(connection, hook) == 1


def test_one_dead_letter_is_replayed(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    recorded(empty_database, hook, letters=2)
    suspended(empty_database, hook, "no")
    page = operator.get("/console/replay", letter="2").text
    assert "is suspended: what is sent again is held" in page
    assert "1 of 1 sent again" in seen(replay_on(operator, page))
    assert "was replayed before" in operator.get("/console/replay", letter="2").text


@pytest.mark.parametrize("number", ["x", "-1", "9" * 30, "²"])
def test_a_replay_with_a_faulty_number_does_nothing(operator: Browser, number: str) -> None:
    assert operator.post("/console/replay", after=number).status_code == 400


# --- events -------------------------------------------------------------------------------------


def test_an_event_is_found_by_its_id(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    made(empty_database, "Paused", status=0)
    recorded(empty_database, hook)
    waits(events_redis, hook, 1)
    told = seen(operator.get("/console/events", q=" e1 ").text)
    assert "Our backend" in told
    assert "delivered" in told
    assert "Paused" in told
    assert "not sent" in told
    assert "waits" in seen(operator.get("/console/events", q="w0").text)
    assert "bad_request" in seen(operator.get("/console/events", q="d0").text)


def test_a_users_events_that_wait_or_were_given_up(
    operator: Browser, empty_database: Engine, events_redis: Any, hook: str
) -> None:
    recorded(empty_database, hook)
    waits(events_redis, hook, 2)
    events_redis.xadd(KEYS.intake, {"event": b'{"id":"i1","identity_id":"QON_1"}'})
    events_redis.xadd(KEYS.intake, {"event": b"\xff not JSON QON_1"})
    page = operator.get("/console/events", q="QON_1").text
    assert set(re.findall(r"q=(\w+)\"", page)) == {"w0", "w1", "d0", "i1"}
    assert "the record keeps no user" in page


def test_no_trace_says_what_leaves_none(operator: Browser) -> None:
    told = seen(operator.get("/console/events", q="nothing").text)
    assert "No trace" in told
    assert "0 events had no active integration" in told
    assert operator.get("/console/events").status_code == 200
    assert operator.get("/console/events", q="x" * 300).status_code == 400


# --- what others wrote --------------------------------------------------------------------------


def test_nothing_that_others_wrote_is_markup(
    operator: Browser, empty_database: Engine, events_redis: Any
) -> None:
    evil = made(empty_database, HOSTILE)
    faults = [{"path": HOSTILE, "message": HOSTILE}]
    recorded(empty_database, evil, message=HOSTILE, request=HOSTILE, response=HOSTILE,
             faults=faults, reason=HOSTILE, event_name=HOSTILE)  # fmt: skip
    suspended(empty_database, evil, HOSTILE)
    waits(events_redis, evil, 1)
    paths = ("", "/integrations", f"/integrations/{evil}", "/deadletters", "/deadletters/1",
             "/events?q=d0", "/events?q=w0", "/replay?letter=1",
             f"/replay?integration={evil}")  # fmt: skip
    for path in paths:
        page = operator("GET", f"/console{path}")
        assert page.status_code == 200, path
        assert "&lt;script&gt;alert(1)" in page.text, path
        assert "<script>alert" not in page.text, path
        assert "<img src=x" not in page.text, path
    for path in ("/events", "/deadletters", "/integrations"):
        for name in ("q", "integration", "reason", "replayed", "project", "slug", "state"):
            page = operator.get(f"/console{path}", **{name: HOSTILE})
            assert "<script>alert" not in page.text, path
            assert '"><img src=x' not in page.text, path
    assert "<script>alert" not in operator.get(f"/console/{HOSTILE}").text
