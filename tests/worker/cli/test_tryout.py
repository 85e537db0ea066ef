"""`onward preview` and `onward explain`: their output is relied on by other programs."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.worker.cli.run import Ran, run

KEY = "0123456789abcdef0123456789abcdef"
TRIAL = {"event_name": "trial_started", "user_id": "QON_5b1f0c"}
Command = Callable[..., Ran]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run preview or explain on values instead of files."""

    def ran(
        name: str,
        *more: str,
        slug: str = "amplitude",
        settings: Any = None,
        events: Any = None,
        response: Any = None,
    ) -> Ran:
        given = {"settings": settings or {"api_key": KEY}, "events": events or [TRIAL]}
        if response is not None:
            given["response"] = response
        options: list[str] = []
        for option, value in given.items():
            path = tmp_path / option
            path.write_text(value if isinstance(value, str) else json.dumps(value))
            options += [f"--{option}", str(path)]
        return run(capsys, name, slug, *options, *more)

    return ran


def test_preview_fills_in_what_an_event_lacks_and_repeats_itself(command: Command) -> None:
    ran = command("preview", "--show-secrets")
    assert (ran.code, ran.err) == (0, "")
    (request,) = ran.json["requests"]
    assert request.keys() == {"method", "url", "headers", "body", "body_encoding", "events"}
    assert (request["method"], request["url"]) == ("POST", "https://api2.amplitude.com/2/httpapi")
    assert request["headers"]["Content-Type"] == "application/json"
    assert (request["events"], request["body_encoding"]) == (["evt-preview-1"], "utf-8")
    body = json.loads(request["body"])
    assert body["api_key"] == KEY
    assert body["events"][0]["time"] == 1767225600000
    assert body["events"][0]["platform"] == "iOS"
    assert ran.json["skipped"] == []
    assert command("preview", "--show-secrets").out == ran.out


def test_preview_masks_secrets(command: Command) -> None:
    (request,) = command("preview").json["requests"]
    assert json.loads(request["body"])["api_key"] == "***"


def test_preview_takes_the_store_from_the_option_where_an_event_names_none(
    command: Command,
) -> None:
    events = [TRIAL, {**TRIAL, "platform": "iOS"}]
    (request,) = command("preview", "--platform", "Android", events=events).json["requests"]
    assert [e["platform"] for e in json.loads(request["body"])["events"]] == ["Android", "iOS"]


def test_preview_reads_ndjson_and_says_why_an_event_is_skipped(command: Command) -> None:
    lines = [TRIAL, {"id": "evt-9", "event_name": "trial_started"}]
    ran = command("preview", events="\n".join(map(json.dumps, lines)) + "\n\n")
    assert ran.json["requests"][0]["events"] == ["evt-preview-1"]
    assert ran.json["skipped"] == [
        {
            "event": "evt-9",
            "reason": "no Amplitude user_id or device_id (call identify in the app)",
        }
    ]


def test_preview_reads_one_event_on_many_lines(command: Command) -> None:
    ran = command("preview", events=json.dumps(TRIAL, indent=2))
    assert ran.json["requests"][0]["events"] == ["evt-preview-1"]


def test_an_event_with_a_time_is_judged_by_the_clock(command: Command) -> None:
    now = int(datetime.now(UTC).timestamp())
    ran = command("preview", events=[{**TRIAL, "time": now}, TRIAL])
    (request,) = ran.json["requests"]
    times = [e["time"] // 1000 for e in json.loads(request["body"])["events"]]
    assert times[0] == now
    assert now - 600 < times[1] <= now


def test_faulty_settings_are_all_named(command: Command) -> None:
    ran = command("preview", "--json", settings={"api_ky": KEY})
    assert ran.code == 1
    assert ran.json["error"]["details"] == [
        {"field": "api_key", "message": "Amplitude api key is not set"},
        {"field": "api_ky", "message": "is not a setting of this provider"},
    ]
    assert "api_key: Amplitude api key is not set" in ran.err
    assert KEY not in ran.out + ran.err
    assert command("preview", settings={"api_ky": KEY}).out == ""


def test_faulty_events_are_all_named(command: Command) -> None:
    events = [TRIAL, {**TRIAL, "platform": "ios", "time": 1767225600000}]
    ran = command("preview", events=events)
    assert (ran.code, ran.out) == (1, "")
    assert 'event 2: platform: must be one of iOS, Android, Stripe (case-sensitive), got "ios"' in (
        ran.err
    )
    assert "event 2: time: looks like milliseconds; send seconds" in ran.err
    broken = command("explain", events='{"event_name"', response={"status": 200})
    assert broken.code == 1
    assert "event 1: is not JSON" in broken.err
    both = command("preview", events='{"platform": "ios"}\n{"event_name"\n{"platform": "web"}')
    named = [line for line in both.err.splitlines() if line.startswith("  event ")]
    assert [line[:9] for line in named] == [*["  event 1"] * 2, "  event 2", *["  event 3"] * 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["preview", "mixpannel", "--settings", "x", "--events", "y"], "Unknown provider"),
        (["preview", "amplitude", "--settings", "nowhere", "--events", "y"], "Cannot read nowhere"),
        (["preview", "amplitude"], "--settings"),
        (["preview", "amplitude", "--platform", "ios"], "--platform"),
        (["previw"], "No such command"),
    ],
)
def test_wrong_usage_is_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    ran = run(capsys, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_explain_tells_each_event_s_outcome(command: Command) -> None:
    events = [
        {**TRIAL, "id": "a"},
        {**TRIAL, "id": "b"},
        {"id": "c", "event_name": "trial_started"},
    ]
    answer = {"code": 400, "error": "Invalid", "events_with_invalid_fields": {"time": [1]}}
    ran = command("explain", events=events, response={"status": 400, "body": answer})
    assert ran.json == {
        "outcomes": [
            {
                "event": "a",
                "outcome": "retry",
                "reason": "batch_refused",
                "message": "Invalid",
                "retry_after": 0,
            },
            {
                "event": "b",
                "outcome": "rejected",
                "reason": "invalid_event",
                "message": "Invalid: time",
                "retry_after": None,
            },
            {
                "event": "c",
                "outcome": "skipped",
                "reason": "no_identity",
                "message": "no Amplitude user_id or device_id (call identify in the app)",
                "retry_after": None,
            },
        ],
        "pipeline": "ok",
    }


@pytest.mark.parametrize(
    ("response", "outcome", "pipeline"),
    [
        ({"status": 200, "headers": {}, "body": {"code": 200}}, "delivered", "ok"),
        ({"status": 200, "headers": {}, "body": '{"code":200}'}, "delivered", "ok"),
        ({"status": 503, "headers": {}, "body": ""}, "retry", "retry"),
        ({"status": 502, "headers": {}, "body": "<html>Bad Gateway</html>"}, "retry", "retry"),
        (
            {"status": 400, "body": {"code": 400, "error": f"Invalid API key: {KEY}"}},
            "misconfigured",
            "misconfigured",
        ),
        ({"status": 413, "body": {"code": 413, "error": "too large"}}, "rejected", "ok"),
        (
            {"status": 413, "body": "eyJjb2RlIjo0MTN9", "body_encoding": "base64"},
            "rejected",
            "ok",
        ),
    ],
)
def test_explain_reads_any_answer(
    command: Command, response: dict[str, Any], outcome: str, pipeline: str
) -> None:
    ran = command("explain", response=response)
    assert [o["outcome"] for o in ran.json["outcomes"]] == [outcome]
    assert ran.json["pipeline"] == pipeline
    assert KEY not in ran.out


def test_explain_splits_a_batch_refused_whole(command: Command) -> None:
    response = {"status": 413, "body": {"code": 413, "error": "Payload too large"}}
    ran = command("explain", events=[TRIAL, TRIAL], response=response)
    assert [o["outcome"] for o in ran.json["outcomes"]] == ["split", "split"]
    assert ran.json["pipeline"] == "ok"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "7"}, 7),
        ({"retry-after": 7}, 7),
        (
            {
                "Date": "Thu, 01 Jan 2026 00:00:00 GMT",
                "Retry-After": "Thu, 01 Jan 2026 00:02:00 GMT",
            },
            120,
        ),
    ],
)
def test_explain_shows_how_long_to_wait(
    command: Command, headers: dict[str, Any], wait: int
) -> None:
    response = {"status": 429, "headers": headers, "body": {"code": 429, "error": "slow"}}
    ran = command("explain", response=response)
    assert ran.json["outcomes"][0]["retry_after"] == wait
    assert ran.json["pipeline"] == "retry"


def test_explain_refuses_what_is_no_response(command: Command) -> None:
    ran = command("explain", response={"code": 200})
    assert (ran.code, ran.out) == (1, "")
    assert "status" in ran.err
