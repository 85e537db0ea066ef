"""/ops/v1: settings, dossier and record, for a project's own and for the operator's all."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import fakeredis
import msgspec
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, text

from tests.worker.api.conftest import Client, Keys, Project, on_both
from tests.worker.store.rows import record_rows
from worker import incidents
from worker.incidents import Fare
from worker.state import CHANGES, fares_of, shard_of
from worker.state import Keys as RedisKeys
from worker.store.integrations import suspend

pytestmark = on_both
OPS = "/ops/v1"
AT = datetime(2026, 6, 1, 11, 20, 36, tzinfo=UTC)
SECRET = "canary-s3cr3t"
EVENT = (
    b'{"id":"e7","project_id":"prj_a","event_name":"trial_started","platform":"iOS",'
    b'"environment":"production","time":1780312800,"user_id":"QON_12345"}'
)


def settings_url(integration: Any) -> str:
    return f"{OPS}/integrations/{integration['id']}/settings"


def record(engine: Engine, integration_id: str) -> None:
    ids = {"integration_id": integration_id, "project_id": "prj_a", "event_name": "trial_started"}
    row = {**ids, "outcome": "delivered", "accepted_at": AT, "finished_at": AT, "status": 200}
    letter = {
        **ids,
        "event_id": "e9",
        "reason": "bad_request",
        "message": "no",
        "created_at": AT,
        "status": 400,
    }
    assert record_rows(
        engine, 0, None, "1",
        deliveries=[{**row, "event_id": "e1"}, {**row, "event_id": "e2", "outcome": "skipped"}],
        dead_letters=[
            {**letter, "body": b'{"id":"e9"}', "request": "POST …", "response": "400"},
            {"reason": "malformed", "body": b"\xff", "created_at": AT},
        ],
    )  # fmt: skip


def test_settings_are_written_and_never_read(project: Project) -> None:
    made = project.create()
    assert project("GET", settings_url(made)).json()["settings"] is None
    saved = project("PUT", settings_url(made), {"api_key": SECRET, "region": "eu"})
    assert saved.status_code == 200
    shown = project("GET", settings_url(made))
    assert shown.json() == saved.json()
    assert shown.json()["settings"]["region"] == "eu"
    assert shown.json()["settings"]["api_key"]["set"] is True
    assert SECRET not in shown.text
    kept = project("PUT", settings_url(made), {"api_key": {"set": True}, "region": "us"})
    assert kept.json()["settings"]["api_key"] == shown.json()["settings"]["api_key"]
    given = {"api_key": kept.json()["settings"]["api_key"], "region": "us"}
    assert kept.json()["settings"] == given
    assert project("PUT", settings_url(made), given).json() == kept.json()


def test_the_delivery_loops_are_told_of_every_change(
    app: FastAPI, project: Project, valkey: str, events_redis: Any
) -> None:
    here = app.state.services
    settings = here.settings.model_copy(update={"redis_url": valkey})
    app.state.services = replace(here, settings=settings)
    made = project.create(integration="webhooks")
    ops, v4 = f"{OPS}/integrations/{made['id']}", made["url"]
    for number, (method, path, body) in enumerate(
        [
            ("PUT", f"{ops}/settings", {"url": "https://a.example.org/"}),
            ("POST", f"{ops}/roll", None),
            ("POST", f"{ops}/status", {"status": 1}),
            ("POST", f"{v4}/status", {"status": 0}),
            ("DELETE", v4, None),
        ]
    ):
        assert project(method, path, body).is_success
        told = events_redis.xrange(CHANGES)
        assert [fields for _, fields in told] == [{b"p": b"prj_a"}] * (number + 1)


def test_every_faulty_setting_is_named_without_its_value(project: Project) -> None:
    made = project.create()
    answer = project("PUT", settings_url(made), {"region": SECRET, "colour": SECRET})
    assert answer.status_code == 400
    fields = {row["field"] for row in answer.json()["error"]["details"]}
    assert fields == {"api_key", "region", "colour"}
    assert SECRET not in answer.text


def test_settings_that_no_key_opens_say_so(project: Project, engine: Engine) -> None:
    made = project.create()
    with engine.begin() as connection:
        connection.execute(text("UPDATE integrations SET settings = 'v1.0badkey0.AAAA'"))
    answer = project("GET", settings_url(made))
    assert answer.status_code == 422
    assert "ONWARD_SECRET_KEYS" in answer.json()["error"]["message"]
    project("POST", made["url"] + "/status", {"status": 1})
    told = project("GET", f"{OPS}/integrations/{made['id']}").json()
    assert told["next"] == f"Active, and suspended at its first event: {told['settings_fault']}"


def test_the_dossier_tells_why(project: Project, app: FastAPI, engine: Engine) -> None:
    redis = fakeredis.FakeRedis()
    app.state.services = replace(app.state.services, redis=redis)
    made = project.create()
    url = f"{OPS}/integrations/{made['id']}"
    fresh = project("GET", url).json()
    assert (fresh["error"], fresh["waiting"]["events"]) == (None, 0)
    assert fresh["next"].startswith("Paused")
    project("POST", url + "/status", {"status": 1})
    record(engine, made["id"])
    with engine.begin() as connection:
        suspend(connection, made["id"], 0, message="401: no", reason="unauthorized", at=AT)
    keys = RedisKeys(shard_of("prj_a", app.state.services.settings.shards))
    lane_id = redis.xadd(keys.lane(made["id"]), {"e": EVENT, "t": 1780312836000})
    redis.xadd(keys.lane(made["id"]), {"e": EVENT, "t": 1780312836001})
    redis.hset(keys.tries(made["id"]), lane_id, msgspec.msgpack.encode([3, 0, 0, "", "", 0]))
    project("PUT", settings_url(made), {"api_key": SECRET})
    told = project("GET", url).json()
    assert told["integration"]["active"] == 2
    assert told["settings_fault"] is None
    assert told["waiting"] == {
        "events": 2,
        "oldest_since": "2026-06-01T11:20:36Z",
        "oldest_event_id": "e7",
        "oldest_event_name": "trial_started",
        "oldest_attempts": 3,
        "oldest_expires_at": "2026-06-04T11:20:36Z",
        "failed_rounds": 0,
        "refused_rounds": 0,
        "next_attempt_at": None,
        "provider_incident": None,
    }
    error = told["error"]
    assert (error["class"], error["message"]) == ("unauthorized", "401: no")
    assert (error["dead_letters"], error["affected_events"]) == (1, 3)
    assert error["sample"]["of"] == "oldest waiting event"
    assert error["sample"]["request"].startswith("POST https://api2.amplitude.com/2/httpapi")
    assert (error["sample"]["response"], error["sample"]["attempts"]) == ("401: no", 3)
    assert error["remedy"] == (
        "Amplitude refuses the credentials (api_key). Correct them in the settings, then activate."
    )
    assert told["next"] == (
        "Suspended: events are held for up to 72 h and sent in order once you have put right what "
        "is wrong and activate. The oldest is dropped at 2026-06-04T11:20:36Z."
    )
    assert SECRET not in str(told)


def test_the_dossier_shows_the_last_dead_letter_with_this_error(
    project: Project, engine: Engine
) -> None:
    made = project.create()
    record(engine, made["id"])
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE integrations SET last_error_at = :at, last_error_reason = 'bad_request'"),
            {"at": AT},
        )
    told = project("GET", f"{OPS}/integrations/{made['id']}").json()["error"]
    assert told["sample"] == {
        "of": "dead letter",
        "event_id": "e9",
        "request": "POST …",
        "response": "400",
        "status": 400,
        "attempts": 0,
    }
    assert "replay them" in told["remedy"]
    with engine.begin() as connection:
        connection.execute(text("UPDATE dead_letters SET replayed_at = :at"), {"at": AT})
    told = project("GET", f"{OPS}/integrations/{made['id']}").json()["error"]
    assert told["remedy"] == (
        "Amplitude does not take these events. Correct settings or event names."
    )


def test_of_a_streak_of_rejections_the_dead_letters_tell(project: Project, engine: Engine) -> None:
    """The message is how many they were; what the upstream said stands in the letters."""
    made = project.create()
    record(engine, made["id"])
    project("POST", made["url"] + "/status", {"status": 1})
    with engine.begin() as connection:
        suspend(connection, made["id"], 0, message="20 events rejected", reason="rejected", at=AT)
    told = project("GET", f"{OPS}/integrations/{made['id']}").json()["error"]
    assert told["remedy"] == (
        "Amplitude does not take these events. Look at the dead letters, correct settings or event "
        "names, then activate, then replay them."
    )


def test_for_a_webhook_one_asks_its_receiver(project: Project, engine: Engine) -> None:
    slugs = ("webhooks", "amplitude")
    hook, other = (project.create(integration=slug)["id"] for slug in slugs)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE integrations SET last_error_at = :at, last_error_reason = 'refused'"),
            {"at": AT},
        )
    remedies = [
        project("GET", f"{OPS}/integrations/{one}").json()["error"]["remedy"]
        for one in (hook, other)
    ]
    assert remedies[0].endswith("look at the receiver and its log.")
    assert remedies[1].endswith("ask Amplitude's status page.")


def test_the_dossier_tells_when_it_goes_on(project: Project, app: FastAPI) -> None:
    redis = fakeredis.FakeRedis()
    app.state.services = replace(app.state.services, redis=redis)
    made = project.create()
    project("PUT", settings_url(made), {"api_key": SECRET})
    project("POST", made["url"] + "/status", {"status": 1})
    keys = RedisKeys(shard_of("prj_a", app.state.services.settings.shards))
    redis.xadd(keys.lane(made["id"]), {"e": EVENT, "t": 1780312836000})
    redis.zadd(keys.due, {made["id"]: 4102444800000})
    redis.hset(keys.pipe(made["id"], 0), "failures", 4)
    url = f"{OPS}/integrations/{made['id']}"
    tried = "Waiting events are tried at 2100-01-01T00:00:00Z."
    anew = "it; new settings, or activating it again, try at once."
    assert project("GET", url).json()["next"] == f"{tried} 6 more failed rounds suspend {anew}"
    redis.hset(keys.pipe(made["id"], 0), "refusals", 4)
    assert project("GET", url).json()["next"] == f"{tried} One more failed round suspends {anew}"
    now = redis.time()[0] * 1000
    for n in range(6):
        redis.hset(fares_of("amplitude"), f"i{n}", incidents.pack(Fare(f"p{n}", now, True)))
    told = project("GET", url).json()
    assert told["waiting"]["provider_incident"] == {"failing": 6, "of": 6, "projects": 6}
    assert told["next"] == tried
    redis.zadd(keys.due, {made["id"]: 1780312900000})
    told = project("GET", url).json()
    assert (told["next"], told["waiting"]["next_attempt_at"]) == (
        "Waiting events are tried now.",
        None,
    )


def test_the_dossier_of_a_pipeline_that_delivers_what_waits_tells_what_bounds_it(
    project: Project, app: FastAPI
) -> None:
    redis = fakeredis.FakeRedis()
    app.state.services = replace(app.state.services, redis=redis)
    made = project.create(integration="webhooks")
    settings = {"url": "https://hooks.example.com/in", "delivery": {"concurrency": 7}}
    project("PUT", settings_url(made), settings)
    project("POST", made["url"] + "/status", {"status": 1})
    url = f"{OPS}/integrations/{made['id']}"
    assert project("GET", url).json()["next"] == "Delivering."
    keys = RedisKeys(shard_of("prj_a", app.state.services.settings.shards))
    redis.xadd(keys.lane(made["id"]), {"e": EVENT, "t": 1780312836000})
    assert project("GET", url).json()["next"] == (
        "Delivering what waits, in order, at most 7 requests at once. If it cannot keep up, raise "
        "delivery.concurrency in the settings."
    )


def test_the_dossier_without_redis(project: Project) -> None:
    made = project.create()
    assert project("GET", f"{OPS}/integrations/{made['id']}").json()["waiting"] is None


def test_the_record(project: Project, engine: Engine) -> None:
    made = project.create()
    record(engine, made["id"])
    found = project("GET", f"{OPS}/deliveries").json()
    assert [row["event_id"] for row in found["data"]] == ["e2", "e1"]
    assert found["has_more"] is False
    first = project("GET", f"{OPS}/deliveries?limit=1").json()
    assert first["has_more"] is True
    rest = project("GET", f"{OPS}/deliveries?before={first['next_before']}").json()
    assert first["data"] + rest["data"] == found["data"]
    skipped = project("GET", f"{OPS}/deliveries?outcome=skipped&event=e2").json()["data"]
    assert [row["event_id"] for row in skipped] == ["e2"]
    unknown = project("GET", f"{OPS}/deliveries?outcome=sent")
    assert unknown.status_code == 400
    assert [fault["field"] for fault in unknown.json()["error"]["details"]] == ["outcome"]


def test_dead_letters(project: Project, admin: Project, other: Project, engine: Engine) -> None:
    made = project.create()
    record(engine, made["id"])
    (mine,) = project("GET", f"{OPS}/deadletters?integration={made['id']}").json()["data"]
    assert "body" not in mine
    whole = project("GET", f"{OPS}/deadletters/{mine['id']}").json()
    assert (whole["body"], whole["body_encoding"]) == ('{"id":"e9"}', "utf-8")
    assert other("GET", f"{OPS}/deadletters/{mine['id']}").status_code == 404
    bad = next(
        row
        for row in admin("GET", f"{OPS}/deadletters").json()["data"]
        if row["reason"] == "malformed"
    )
    assert project("GET", f"{OPS}/deadletters/{bad['id']}").status_code == 404
    shown = admin("GET", f"{OPS}/deadletters/{bad['id']}").json()
    assert (shown["body"], shown["body_encoding"]) == ("/w==", "base64")


def test_a_malformed_event_of_its_own_is_seen_and_not_sent_again(
    project: Project, admin: Project, other: Project, engine: Engine
) -> None:
    letter = {"reason": "malformed", "project_id": "prj_a", "event_id": "e3"}
    whole = {**letter, "body": b'{"id":"e3","project_id":"prj_a"}', "created_at": AT}
    assert record_rows(engine, 0, None, "1", dead_letters=[whole])
    (mine,) = project("GET", f"{OPS}/deadletters?event=e3").json()["data"]
    assert other("GET", f"{OPS}/deadletters?event=e3").json()["data"] == []
    assert other("GET", f"{OPS}/deadletters/{mine['id']}").status_code == 404
    again = {"ids": [mine["id"]], "force": True, "dry_run": True}
    refused = project("POST", f"{OPS}/deadletters/replay", again).json()
    assert (refused["chosen"], refused["left_out"][0]["count"]) == (0, 1)
    assert admin("POST", f"{OPS}/deadletters/replay", again).json()["chosen"] == 1


def test_the_audit_log_says_who(project: Project, admin: Project, keys: Keys) -> None:
    made = project.create()
    admin("PUT", settings_url(made), {"api_key": SECRET})
    project("POST", made["url"] + "/status", {"status": 1})
    project("DELETE", made["url"])
    answer = project("GET", f"{OPS}/audit?integration={made['id']}")
    rows = [(row["action"].split(".")[1], row["actor"]) for row in answer.json()["data"]]
    me = f"key {keys.live[:7]}…"
    assert rows == [("delete", me), ("status", me), ("settings", "admin"), ("create", me)]
    assert SECRET not in answer.text
    assert keys.live not in answer.text


def test_a_webhooks_secret_is_shown_once(project: Project, other: Project, engine: Engine) -> None:
    hook = project.create(integration="webhooks")
    url = {"url": "https://a.example.org/"}
    roll = f"{OPS}/integrations/{hook['id']}/roll"
    refused = project("POST", roll)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    first = project("PUT", settings_url(hook), url).json()
    assert list(first["shown_once"]) == ["signing_secret"]
    assert first["settings"]["signing_secret"]["set"] is True
    secrets = [first["shown_once"]["signing_secret"]]
    assert "shown_once" not in project("PUT", settings_url(hook), url).json()
    for query in ("", "?keep_hours=1"):
        rolled = project("POST", roll + query).json()
        secrets.append(rolled["shown_once"]["signing_secret"])
        assert rolled["settings"]["previous_signing_secret"]["set"] is True
        shown = rolled["settings"]
    assert project("GET", settings_url(hook)).json()["settings"] == shown
    assert project("PUT", settings_url(hook), shown).json()["settings"] == shown
    assert other("POST", roll).status_code == 404
    assert project("POST", roll + "?keep_hours=-1").status_code == 400
    told = [project("GET", path).text for path in (settings_url(hook), f"{OPS}/audit", hook["url"])]
    assert not any(secret in text for secret in secrets for text in told)
    assert len(set(secrets)) == 3


def test_the_providers_and_their_forms(project: Project) -> None:
    found = {p["slug"]: p for p in project("GET", f"{OPS}/providers").json()["data"]}
    assert "api_key" in found["amplitude"]["settings"]["properties"]


# --- tenancy ---------------------------------------------------------------------------------


def test_a_projects_key_reaches_its_own_alone(
    project: Project, other: Project, admin: Project, engine: Engine
) -> None:
    theirs = project.create()
    record(engine, theirs["id"])
    url = f"{OPS}/integrations/{theirs['id']}"
    for method, path, body in (
        ("GET", url, None),
        ("GET", url + "/settings", None),
        ("PUT", url + "/settings", {"api_key": "x"}),
        ("POST", url + "/status", {"status": 1}),
    ):
        assert other(method, path, body).status_code == 404
    for path in ("integrations", "deliveries", "deadletters", "audit"):
        for query in ("", "?project=prj_b"):
            rows = other("GET", f"{OPS}/{path}{query}").json()["data"]
            assert all(row["project_id"] == "prj_b" for row in rows)
        refused = other("GET", f"{OPS}/{path}?project=prj_a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
        assert any(
            row["project_id"] == "prj_a" for row in admin("GET", f"{OPS}/{path}").json()["data"]
        )
        only = admin("GET", f"{OPS}/{path}?project=prj_b").json()["data"]
        assert all(row["project_id"] == "prj_b" for row in only)
    assert [p["id"] for p in other("GET", f"{OPS}/projects").json()["data"]] == ["prj_b"]
    assert [p["id"] for p in admin("GET", f"{OPS}/projects").json()["data"]] == ["prj_a", "prj_b"]


@pytest.mark.parametrize(
    "path", ["integrations", "deliveries", "deadletters", "audit", "projects", "providers"]
)
def test_ops_needs_a_key(client: Client, path: str) -> None:
    assert client.get(f"{OPS}/{path}").status_code == 401


def test_the_admin_key_does_not_open_v4(admin: Project) -> None:
    assert admin("GET", "/v4/integrations").status_code == 401


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1000000000",
        "before=0",
        "before=x",
        "outcome=A%00",
        "event=%00",
        "project=a/b",
    ],
)
def test_faulty_parameters_are_named(project: Project, query: str) -> None:
    answer = project("GET", f"{OPS}/deliveries?{query}")
    assert answer.status_code == 400
    assert [row["field"] for row in answer.json()["error"]["details"]] == [query.partition("=")[0]]


@pytest.mark.parametrize("id_", ["0", "-1", "x", "9223372036854775808", "1e3"])
def test_faulty_letter_ids(project: Project, id_: str) -> None:
    assert project("GET", f"{OPS}/deadletters/{id_}").status_code == 400
