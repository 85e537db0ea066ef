"""Projects, integrations, deliveries and dead letters, on a database and a Redis of their own."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import insert, text

from tests.worker.cli.run import Ran, run
from worker.sandbox.upstreams.amplitude import KEY
from worker.settings import load_settings
from worker.state import CHANGES, Keys, shard_of
from worker.store.database import make_engine
from worker.store.integrations import suspend
from worker.store.models import DeadLetter, Delivery
from worker.store.schema import upgrade

Command = Callable[..., Ran]
WRONG = "f" * 32


@pytest.fixture
def onward(redis: Redis, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run commands on an empty database with its tables."""
    upgrade(load_settings().database_url)
    return lambda *arguments: run(capsys, *arguments)


@pytest.fixture
def settings_file(tmp_path: Path) -> Callable[..., str]:
    def write(**values: Any) -> str:
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(values))
        return str(path)

    return write


@pytest.fixture
def made(onward: Command, settings_file: Callable[..., str]) -> dict[str, Any]:
    """An active integration with Amplitude, as v4 shows it."""
    assert onward("projects", "create", "Lumen", "--id", "prj_lumen").code == 0
    ran = onward(*CREATE, "--settings", settings_file(api_key=KEY), "--activate", "--json")
    assert ran.code == 0, ran.err
    integration: dict[str, Any] = ran.json
    return integration


CREATE = (
    "integrations", "create", "--project", "prj_lumen", "--slug", "amplitude",
    "--platform", "iOS", "--title", "Analytics",
)  # fmt: skip


def test_a_webhooks_secret_is_shown_once(
    onward: Command, settings_file: Callable[..., str]
) -> None:
    onward("projects", "create", "Lumen", "--id", "prj_lumen")
    file = settings_file(url="https://a.example.org/")
    ran = onward(*CREATE, "--slug", "webhooks", "--settings", file, "--json")
    assert "whsec_" not in ran.out
    id_, secret = ran.json["id"], re.findall(r"whsec_\S+", ran.err)
    assert len(secret) == 1
    assert "whsec_" not in onward("integrations", "settings", id_, "--set", file).err
    rolled = onward("integrations", "roll", id_, "--keep-hours", "1", "--json").json
    assert rolled["signing_secret"] not in secret
    assert "whsec_" in onward("integrations", "roll", id_).err
    assert "whsec_" not in onward("integrations", "settings", id_).out


def test_a_project_is_made_and_its_key_shown_once(onward: Command) -> None:
    made = onward("projects", "create", "Lumen", "--id", "prj_lumen", "--json").json
    assert (made["id"], made["name"]) == ("prj_lumen", "Lumen")
    assert made["secret_key"].startswith("sk_")
    listed = onward("projects", "list", "--json")
    assert [p["id"] for p in listed.json] == ["prj_lumen"]
    assert made["secret_key"] not in listed.out
    again = onward("projects", "create", "Other", "--id", "prj_lumen", "--json")
    assert again.code == 1
    assert "prj_lumen already" in again.json["error"]["message"]
    assert "prj_lumen" in onward("projects", "list").out


def test_an_integration_is_made_paused_and_printed_as_v4_does(onward: Command) -> None:
    onward("projects", "create", "Lumen", "--id", "prj_lumen")
    ran = onward(*CREATE, "--json")
    assert ran.json.keys() == {
        "object", "id", "url", "title", "integration", "target_platform", "active", "created_at",
        "updated_at", "last_delivery_at", "last_error_at", "last_error_message",
        "delivery_error_count",
    }  # fmt: skip
    assert (ran.json["integration"], ran.json["active"]) == ("Amplitude", 0)
    assert ran.json["created_at"].endswith("Z")
    assert "settings are not set" in onward(*CREATE).err
    listed = onward("integrations", "list", "--json").json
    assert [one["project_id"] for one in listed] == ["prj_lumen"] * 2
    onward("projects", "create", "Other", "--id", "prj_other")
    assert onward("integrations", "list", "--project", "prj_other", "--json").json == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"--slug": "amplitud"}, "integration"),
        ({"--title": " "}, "title"),
        ({"--slug": "adjust", "--platform": "Stripe"}, "target_platform"),
    ],
)
def test_a_faulty_integration_is_refused_by_field(
    onward: Command, change: dict[str, str], field: str
) -> None:
    onward("projects", "create", "Lumen", "--id", "prj_lumen")
    options = [*CREATE]
    for name, value in change.items():
        options[options.index(name) + 1] = value
    ran = onward(*options, "--json")
    assert ran.code == 1
    assert [d["field"] for d in ran.json["error"]["details"]] == [field]
    assert onward("integrations", "list", "--json").json == []


def test_nothing_is_made_when_the_settings_will_not_do(
    onward: Command, settings_file: Callable[..., str]
) -> None:
    onward("projects", "create", "Lumen", "--id", "prj_lumen")
    ran = onward(*CREATE, "--settings", settings_file(api_ky="x"), "--json")
    assert ran.code == 1
    assert {d["field"] for d in ran.json["error"]["details"]} == {"api_key", "api_ky"}
    assert onward("integrations", "list", "--json").json == []


def test_an_unknown_project_or_integration_is_said_to_be_unknown(onward: Command) -> None:
    assert "No project prj_lumen" in onward(*CREATE).err
    for name in ("show", "settings", "activate", "pause", "delete", "test"):
        ran = onward("integrations", name, "Zk40QwTe")
        assert (ran.code, "No integration with this id" in ran.err) == (1, True)
        assert "see `onward integrations list`" in ran.err
    for noun in ("integrations", "deliveries", "deadletters"):
        ran = onward(noun, "list", "--project", "prj_lumen")
        assert (ran.code, ran.out) == (1, ""), "not: there are none"
        assert "No project prj_lumen: see `onward projects list`" in ran.err


@pytest.mark.parametrize(
    "command",
    [
        "deadletters show {}",
        "deadletters list --before {}",
        "deadletters replay --id {}",
        "deliveries list --before {}",
        "projects keys revoke prj_a {}",
    ],
)
def test_a_number_that_no_row_can_have_is_refused_as_one(onward: Command, command: str) -> None:
    for number in ("0", "9" * 23):
        ran = onward(*command.format(number).split())
        assert (ran.code, ran.out) == (2, ""), number


def test_what_is_not_utf8_is_told_in_a_line(onward: Command) -> None:
    for command in (["integrations", "show"], ["why"], ["deliveries", "list", "--event"]):
        ran = onward(*command, "a\udcff")  # as Python reads a byte that is none
        assert ran.code == 1
        assert ran.err.startswith("onward: what was typed is not UTF-8")


def test_settings_are_shown_without_secrets_and_may_be_set_again(
    onward: Command, made: dict[str, Any], settings_file: Callable[..., str]
) -> None:
    shown = onward("integrations", "settings", made["id"])
    assert KEY not in shown.out
    assert shown.json["api_key"]["set"] is True
    edited = {**shown.json, "region": "eu"}
    assert (
        onward("integrations", "settings", made["id"], "--set", settings_file(**edited)).code == 0
    )
    again = onward("integrations", "settings", made["id"]).json
    assert again == {**shown.json, "region": "eu"}
    bad = onward("integrations", "settings", made["id"], "--set", settings_file(region="mars"))
    assert bad.code == 1
    assert "api_key" in bad.err


def test_show_tells_of_settings_that_no_key_opens(
    onward: Command, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that they are set, and that it delivers."""
    monkeypatch.setenv("ONWARD_SECRET_KEYS", "another")
    told = onward("integrations", "show", made["id"]).out
    assert re.search("(?m)^settings +set, and of no use: No key .*ONWARD_SECRET_KEYS", told)
    assert re.search("(?m)^next +Active, and suspended at its first event: No key", told)


def test_is_paused_activated_and_deleted(
    onward: Command, made: dict[str, Any], redis: Redis
) -> None:
    assert made["active"] == 1
    assert onward("integrations", "pause", made["id"], "--json").json["active"] == 0
    assert onward("integrations", "activate", made["id"]).out.endswith("Analytics: active\n")
    assert onward("integrations", "delete", made["id"], "--yes").code == 0
    assert onward("integrations", "list", "--json").json == []
    assert onward("integrations", "list").out.startswith("No integrations.")
    gone = onward("deliveries", "list", "--integration", made["id"])
    assert gone.out == "No deliveries recorded.\n", "it was known, and may have a record"
    assert redis.xlen(CHANGES) == 4, "the delivery loops were told"


def test_activating_what_fails_says_that_it_is_tried_now(
    onward: Command, made: dict[str, Any]
) -> None:
    assert "tried now" not in onward("integrations", "activate", made["id"]).err
    with make_engine(load_settings().database_url).begin() as connection:
        connection.execute(text("UPDATE integrations SET delivery_error_count = 3"))
    ran = onward("integrations", "activate", made["id"])
    assert (ran.code, ran.out.endswith("Analytics: active\n")) == (0, True)
    assert "tried now" in ran.err
    onward("integrations", "pause", made["id"])
    assert "tried now" not in onward("integrations", "activate", made["id"]).err, "nothing waits"


def test_show_tells_why_it_is_suspended_what_waits_and_what_to_do(
    onward: Command, made: dict[str, Any], redis: Redis
) -> None:
    with make_engine(load_settings().database_url).begin() as connection:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        words = "400 from Amplitude: Invalid API key"
        assert suspend(connection, made["id"], 0, message=words, reason="unauthorized", at=at)
        counted = text("UPDATE integrations SET delivery_error_count = 29")
        connection.execute(counted)
    lane = Keys(shard_of("prj_lumen", 32)).lane(made["id"])
    for accepted in (1767225600000, 1767225660000):
        redis.xadd(lane, {"e": "{}", "t": accepted}, id=f"{accepted}-0")
    told = onward("integrations", "show", made["id"], "--json").json
    assert made.keys() < told.keys()
    assert (told["active"], told["last_error_message"]) == (2, words)
    waiting = told["dossier"]["waiting"]
    assert (waiting["events"], waiting["oldest_since"]) == (2, "2026-01-01T00:00:00Z")
    ran = onward("integrations", "show", made["id"])
    shown = " ".join((ran.out + ran.err).split())
    for part in ("suspended", words, "2 events", f"onward integrations activate {made['id']}"):
        assert part in shown
    assert "29 rejected events and failed rounds since the last delivery" in shown
    assert words in onward("integrations", "list").out


def test_deliveries_and_dead_letters_are_listed_and_shown(onward: Command) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    shared = {
        "integration_id": "c9VdLs3H",
        "project_id": "prj_lumen",
        "event_name": "trial_started",
    }
    ends = [
        {**shared, "event_id": "evt-1", "outcome": "delivered", "finished_at": at},
        {**shared, "event_id": "evt-2", "outcome": "rejected", "reason": "bad", "finished_at": at},
    ]
    letter = {
        "project_id": "prj_lumen",
        "reason": "invalid_event",
        "faults": [{"path": "time", "message": "is required"}],
        "body": b'{"id":\xff}',
        "created_at": at,
    }
    with make_engine(load_settings().database_url).begin() as connection:
        for end in ends:
            connection.execute(insert(Delivery).values(**end))
        connection.execute(insert(DeadLetter).values(**letter))

    listed = onward("deliveries", "list", "--json").json
    assert [one["event_id"] for one in listed] == ["evt-2", "evt-1"]
    assert listed[0]["finished_at"] == "2026-01-01T00:00:00Z"
    one = onward("deliveries", "list", "--outcome", "delivered", "--event", "evt-1", "--json").json
    assert [d["event_id"] for d in one] == ["evt-1"]
    for noun in ("deliveries", "deadletters"):
        unknown = onward(noun, "list", "--integration", "none")
        assert (unknown.code, "`onward integrations list`" in unknown.err) == (1, True)
    assert "evt-2" in onward("deliveries", "list").out

    (dead,) = onward("deadletters", "list", "--json").json
    assert (dead["reason"], dead["faults"][0]["path"]) == ("invalid_event", "time")
    assert "invalid_event" in onward("deadletters", "list").out
    shown = onward("deadletters", "show", dead["id"]).out
    assert "time is required" in shown
    assert re.search("(?m)^body_encoding +base64$", shown), "or its body is taken for the event's"
    whole = onward("deadletters", "show", dead["id"], "--json").json
    assert (whole["body"], whole["body_encoding"]) == ("eyJpZCI6/30=", "base64")
    assert onward("deadletters", "show", "999").code == 1


def test_a_test_event_shows_request_answer_and_verdict(
    onward: Command,
    made: dict[str, Any],
    sandbox: str,
    settings_file: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONWARD_UPSTREAM", sandbox)
    good = onward("integrations", "test", made["id"], "--json")
    assert (good.code, good.json["outcome"]) == (0, "delivered"), good
    assert good.json["event"].startswith("test-")
    (request,) = good.json["requests"]
    assert request["response"]["status"] == 200
    assert KEY not in good.out
    assert f"Sent to {sandbox}, which plays all upstreams" in good.err

    onward("integrations", "settings", made["id"], "--set", settings_file(api_key=WRONG))
    bad = onward("integrations", "test", made["id"])
    assert bad.code == 1
    assert "> POST https://api2.amplitude.com/2/httpapi" in bad.out
    assert "misconfigured (unauthorized) Invalid API key: ***" in bad.out
    assert WRONG not in bad.out + bad.err


def test_a_test_event_tells_of_settings_that_are_not_set_and_of_no_answer(
    onward: Command, monkeypatch: pytest.MonkeyPatch, settings_file: Callable[..., str]
) -> None:
    monkeypatch.setenv("ONWARD_UPSTREAM", "http://127.0.0.1:1")
    onward("projects", "create", "Lumen", "--id", "prj_lumen")
    bare = onward(*CREATE, "--json").json["id"]
    unset = onward("integrations", "test", bare, "--json")
    assert (unset.code, unset.json["outcome"]) == (1, "misconfigured")
    assert "api_key" in unset.json["message"]
    assert "Sent to" not in unset.err
    assert "api_key" in onward("integrations", "settings", bare).err
    onward("integrations", "settings", bare, "--set", settings_file(api_key=KEY))
    down = onward("integrations", "test", bare, "--json").json
    assert (down["outcome"], down["requests"][0]["response"]) == ("retry", None)


def test_a_database_without_tables_is_told_to_be_migrated(
    redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "projects", "list", "--json")
    assert ran.code == 1
    assert "onward migrate" in ran.json["error"]["message"]
    assert "Traceback" not in ran.err


def test_keys_of_a_project_are_added_listed_and_revoked(onward: Command) -> None:
    onward("projects", "create", "Lumen", "--id", "prj_lumen")
    made = onward("projects", "keys", "add", "prj_lumen", "--test", "--json").json
    assert made["key"].startswith("test_sk_")
    listed = onward("projects", "keys", "list", "prj_lumen", "--json")
    assert [(row["kind"], row["mode"], row["revoked_at"]) for row in listed.json] == [
        ("secret", "live", None), ("secret", "test", None), ("secret", "test", None)
    ]  # fmt: skip
    assert made["key"] not in listed.out
    gone = onward("projects", "keys", "revoke", "prj_lumen", made["id"], "--json")
    assert gone.json == {"id": made["id"], "project_id": "prj_lumen", "revoked": True}
    assert onward("projects", "keys", "list", "prj_lumen", "--json").json[-1]["revoked_at"]
    assert onward("projects", "keys", "revoke", "prj_lumen", made["id"]).code == 1
    assert "sk_" in onward("projects", "keys", "add", "prj_lumen").out
    assert "sdk_" in onward("projects", "keys", "add", "prj_lumen", "--sdk").out
    assert "No project prj_x" in onward("projects", "keys", "list", "prj_x").err


def test_settings_come_to_the_newest_key_and_lost_ones_are_named(
    onward: Command, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = (tmp_path / "secret.key").read_text()
    assert onward("secrets", "check").code == 0
    monkeypatch.setenv("ONWARD_SECRET_KEYS", "02" * 32)
    lost = onward("secrets", "check", "--json")
    assert lost.code == 1
    assert [row["integrations"] for row in lost.json["lost"]] == [[made["id"]]]
    assert made["id"] in onward("secrets", "check").err
    refused = onward("secrets", "rotate")
    assert refused.code == 1
    assert made["id"] in refused.err
    monkeypatch.setenv("ONWARD_SECRET_KEYS", "02" * 32 + "," + old)
    assert onward("secrets", "rotate", "--json").json == {"rotated": 1, "damaged": []}
    monkeypatch.setenv("ONWARD_SECRET_KEYS", "02" * 32)
    assert "newest" in onward("secrets", "check").out
    assert onward("integrations", "settings", made["id"]).json["api_key"]["set"] is True


def test_who_is_told_of_a_project(onward: Command) -> None:
    onward("projects", "create", "Lumen", "--id", "prj_lumen")
    assert "ONWARD_NOTIFY_URL" in onward("projects", "notify", "prj_lumen").out

    url = "http://127.0.0.1:1/hook?key=hidden"
    chosen = onward("projects", "notify", "prj_lumen", "--url", url, "--json")
    assert chosen.json["host"] == "127.0.0.1"
    assert chosen.json["secret"].startswith("whsec_")
    assert chosen.json["test_taken"] is False, "nobody listens there"
    shown = onward("projects", "notify", "prj_lumen")
    assert "go to 127.0.0.1" in shown.out
    assert "whsec_" not in shown.out
    assert "hidden" not in shown.out

    assert "ONWARD_NOTIFY_URL" in onward("projects", "notify", "prj_lumen", "--off").out
    assert onward("projects", "notify", "prj_none").code == 1
    assert onward("projects", "notify", "prj_lumen", "--url", "ftp://x").code == 2
