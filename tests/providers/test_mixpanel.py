"""Mixpanel: what is sent, and what each answer means."""

import base64
import json
from datetime import timedelta
from typing import Any

import pytest

from providers.kit import (
    Delivered,
    Misconfigured,
    Partial,
    Rejected,
    Response,
    Retry,
    Skipped,
    Split,
    Verdict,
    read_settings,
)
from providers.mixpanel import provider
from tests.providers.samples import NOW, classified, context, event, fault, planned, refund, trial

TOKEN = "0123456789abcdef0123456789abcdef"
SETTINGS = {"project_token": TOKEN, "region": "eu"}
ACCOUNT = {
    "service_account_username": "acme.5f1c.mp-service-account",
    "service_account_secret": "s3cr3t",
    "project_id": 2718281,
}


def sent(settings: dict[str, Any], *events: Any) -> list[dict[str, Any]]:
    (request,) = planned(provider, settings, *events).requests
    return [item["properties"] for item in json.loads(request.body)]


def test_sends_renewal_refund_and_trial_in_one_request() -> None:
    (request,) = planned(provider, SETTINGS, event(), refund(), trial()).requests
    assert request.method == "POST"
    assert request.url == "https://api-eu.mixpanel.com/import?strict=1"
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "Authorization": "Basic MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY6",
        "Accept": "application/json",
    }
    renewal, refunded, started = json.loads(request.body)
    assert renewal == {
        "event": "subscription_renewed",
        "properties": {
            "time": 1767225600000,
            "distinct_id": "acct-40001",
            "$user_id": "acct-40001",
            "$insert_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
            "ip": 0,
            "revenue": 9.99,
            "currency": "USD",
            "revenue_usd": 9.99,
            "store": "app_store",
            "environment": "production",
            "$ios_ifa": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
            "product_id": "com.acme.pro.month",
            "transaction_id": "2000000812345678",
            "original_transaction_id": "2000000700000001",
        },
    }
    assert refunded["event"] == "subscription_refunded"
    assert refunded["properties"]["revenue"] == -9.99
    assert not {"revenue", "currency", "revenue_usd"} & started["properties"].keys()


@pytest.mark.parametrize(
    ("settings", "change", "expected"),
    [
        ({}, {"ip": "8.8.8.8"}, {"ip": "8.8.8.8"}),
        ({}, {"ip": "10.0.0.1"}, {"ip": 0}),
        ({"revenue_basis": "local"}, {}, {"revenue": 7.99, "currency": "GBP", "revenue_usd": 9.99}),
        (
            {},
            {"platform": "Android"},
            {
                "advertising_id": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
                "$ios_ifa": None,
                "store": "play_store",
            },
        ),
        ({}, {"platform": "Stripe"}, {"advertising_id": None, "$ios_ifa": None, "store": "stripe"}),
        ({}, {"device": {"att_status": 2}}, {"$ios_ifa": None}),
        ({}, {"advertiser_id": "00000000-0000-0000-0000-000000000000"}, {"$ios_ifa": None}),
        ({"id_merge": "original"}, {}, {"$user_id": None, "distinct_id": "acct-40001"}),
        (
            {},
            {"identity_id": None},
            {"distinct_id": "QON_5b1f0c9e7a3d4d22", "$user_id": None, "$device_id": None},
        ),
        ({}, {"identity_id": "True", "custom_user_id": "58213"}, {"distinct_id": "58213"}),
        (
            {"user_property_for_distinct_id": "mixpanel_id"},
            {"properties": {"mixpanel_id": "$device:4F2E"}},
            {"distinct_id": "$device:4F2E", "$device_id": "4F2E", "$user_id": None},
        ),
        ({}, {"product_id": "é" * 200}, {"product_id": "é" * 127}),
        (
            {"no_revenue_events": ["subscription_renewed"]},
            {},
            {"revenue": None, "currency": None, "revenue_usd": None},
        ),
        ({}, {"event_name": "subscription_paused"}, {"revenue": 9.99}),
    ],
)
def test_properties(
    settings: dict[str, Any], change: dict[str, Any], expected: dict[str, Any]
) -> None:
    (properties,) = sent({**SETTINGS, **settings}, event(**change))
    assert {key: properties.get(key) for key in expected} == expected


def test_ids_that_are_no_uuid_become_an_insert_id_mixpanel_takes() -> None:
    (properties,) = sent(SETTINGS, event(id="evt_01JGF3"))
    assert properties["$insert_id"] == "cfa0b5f9-6061-57d3-bc45-1695febf1a0f"


def test_a_service_account_signs_in_with_its_project() -> None:
    (request,) = planned(provider, {**SETTINGS, **ACCOUNT}, event()).requests
    assert request.url == "https://api-eu.mixpanel.com/import?strict=1&project_id=2718281"
    credentials = dict(request.headers)["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(credentials) == b"acme.5f1c.mp-service-account:s3cr3t"


def test_sandbox_events_go_to_their_own_project() -> None:
    settings = {**SETTINGS, **ACCOUNT, "sandbox_project_token": "f" * 32}
    plan = planned(provider, settings, event(), event(environment="sandbox"))
    assert [r.events for r in plan.requests] == [(0,), (1,)]
    assert plan.requests[1].url == "https://api-eu.mixpanel.com/import?strict=1"
    credentials = dict(plan.requests[1].headers)["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(credentials) == b"f" * 32 + b":"


def test_profile_updates_follow_the_event_and_may_fail() -> None:
    settings = {**SETTINGS, "send_profile_updates": True}
    priced = event(event_name="trial_canceled")
    plan = planned(provider, settings, event(), priced, refund())
    profiles = plan.requests[1:]
    assert [(r.events, r.step, r.optional) for r in profiles] == [((0,), 1, True), ((2,), 1, True)]
    assert {r.url for r in profiles} == {"https://api-eu.mixpanel.com/engage?verbose=1"}
    assert json.loads(profiles[0].body) == [
        {
            "$token": TOKEN,
            "$distinct_id": "acct-40001",
            "$ip": 0,
            "$append": {"$transactions": {"$time": "2026-01-01T00:00:00", "$amount": 9.99}},
        }
    ]
    assert json.loads(profiles[1].body)[0]["$append"]["$transactions"]["$amount"] == -9.99


def test_a_request_carries_500_events() -> None:
    events = [event(id=f"evt-{number}") for number in range(501)]
    assert [len(r.events) for r in planned(provider, SETTINGS, *events).requests] == [500, 1]


def test_an_event_far_ahead_of_the_clock_waits() -> None:
    plan = planned(provider, SETTINGS, event(time=NOW + 3600), event(time=NOW + 3540))
    words = "an hour or more ahead of the clock"
    assert plan.unsent == {0: Retry("too_early", words, timedelta(minutes=1))}
    assert [r.events for r in plan.requests] == [(1,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"identity_id": "<nil>", "user_id": "unknown"},
            "no Mixpanel distinct id (call identify in the app)",
        ),
        (
            {"environment": "sandbox"},
            "sandbox event, and these settings send production events only",
        ),
    ],
)
def test_skips(change: dict[str, Any], message: str) -> None:
    plan = planned(provider, SETTINGS, event(**change))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"project_token": " "}, "project_token", "Mixpanel project token is not set"),
        ({"region": None}, "region", "Mixpanel region is not set"),
        ({"region": "EU"}, "region", "Input should be 'us', 'eu' or 'in'"),
        ({"service_account_username": "acme"}, "", "set all three, or none"),
        ({**ACCOUNT, "project_id": None}, "", "set all three, or none"),
        ({**ACCOUNT, "project_id": True}, "project_id", "not true or false"),
        (
            {**ACCOUNT, "service_account_username": "a:b"},
            "service_account_username",
            "without blanks and colons",
        ),
        ({"event_names": {"trial_started": "$identify"}}, "", "no $ in front"),
    ],
)
def test_settings_faults(change: dict[str, Any], key: str, words: str) -> None:
    where, text = fault(provider, {**SETTINGS, **change})
    assert where == key
    assert words in text


VALIDATION = "some data points in the request failed validation"
INVALID_ID = "'properties.distinct_id' is invalid: must not be a known invalid value"


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"code": 200, "num_records_imported": 3, "status": "OK"}, Delivered()),
        (
            400,
            {
                "code": 400,
                "error": VALIDATION,
                "failed_records": [
                    {
                        "index": 1,
                        "$insert_id": "f2b1d1d4-5a0e-5d4e-8f30-0c8a8a3f9b21",
                        "field": "properties.distinct_id",
                        "message": INVALID_ID,
                    }
                ],
                "num_records_imported": 2,
                "status": "Bad Request",
            },
            Partial({1: Rejected("invalid_event", f"properties.distinct_id: {INVALID_ID}")}),
        ),
        (
            200,
            {"code": 200, "failed_records": [{"index": 0, "field": "event", "message": "is bad"}]},
            Partial({0: Rejected("invalid_event", "event: is bad")}),
        ),
        (
            400,
            {"code": 400, "error": VALIDATION, "failed_records": [{"index": 9}, {"index": True}]},
            Split("bad_request", VALIDATION),
        ),
        (400, {"error": "bad", "failed_records": {}}, Split("bad_request", "bad")),
        (400, "unexpected end of JSON input", Split("bad_request", "unexpected end of JSON input")),
        (400, "", Split("bad_request")),
        (
            401,
            {"code": 401, "error": "Invalid credentials", "status": "Unauthorized"},
            Misconfigured("unauthorized", "Invalid credentials"),
        ),
        (403, "<html>no</html>", Misconfigured("forbidden", "<html>no</html>")),
        (
            413,
            {"code": 413, "error": "request exceeds max limit of 2097152 bytes"},
            Split("too_large", "request exceeds max limit of 2097152 bytes"),
        ),
        (
            429,
            {"code": 429, "error": "Project exceeded rate limits."},
            Retry("throttled", "Project exceeded rate limits.", throttled=True),
        ),
        (404, "404 page not found", Rejected("not_found", "404 page not found")),
        (418, "", Rejected("bad_request")),
        (500, "", Retry("server_error")),
        (502, "<html>bad gateway</html>", Retry("bad_gateway", "<html>bad gateway</html>")),
        (503, '{"code":', Retry("unavailable", '{"code":')),
        (504, "", Retry("gateway_timeout")),
        (200, {"status": 0, "error": "no token"}, Rejected("bad_request", "no token")),
        (200, "1", Delivered()),
        (200, "0", Rejected("bad_request", "0")),
        (200, "true", Retry("unexpected_answer", "true")),
        (200, "", Retry("unexpected_answer")),
        (200, "<html>hello</html>", Retry("unexpected_answer", "<html>hello</html>")),
        (200, '{"code":200', Retry("unexpected_answer", '{"code":200')),
        (200, {"code": 400, "error": "bad"}, Split("bad_request", "bad")),
        (200, {"code": 401, "error": "no"}, Misconfigured("unauthorized", "no")),
        (200, {"code": 429, "error": "slow"}, Retry("throttled", "slow", throttled=True)),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(), refund(), trial()) == verdict


def test_retry_after_is_kept() -> None:
    verdict = classified(provider, SETTINGS, 429, "", headers={"retry-after": "17"})
    assert verdict == Retry("throttled", "", timedelta(seconds=17), throttled=True)


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ({"error": None, "status": 1}, Delivered()),
        ("1", Delivered()),
        (
            {"error": "data, missing distinct_id", "status": 0},
            Rejected("bad_request", "data, missing distinct_id"),
        ),
    ],
)
def test_classify_profile_updates(body: Any, verdict: Verdict) -> None:
    settings = {**SETTINGS, "send_profile_updates": True}
    assert classified(provider, settings, 200, body, request=1) == verdict


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Delivered()),
        (400, Delivered()),
        (401, Misconfigured("unauthorized", "Invalid credentials")),
        (503, Retry("unavailable", "Invalid credentials")),
    ],
)
def test_check_posts_an_empty_list(status: int, outcome: Verdict) -> None:
    settings = read_settings("Mixpanel", provider.settings, SETTINGS)
    assert provider.check is not None
    request = provider.check.request(settings, context())
    assert (request.url, request.body) == (
        "https://api-eu.mixpanel.com/import?strict=1",
        b"[]",
    )
    body = b'{"error": "Invalid credentials"}'
    assert provider.check.read(Response(status, {}, body)) == outcome
