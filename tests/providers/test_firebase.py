"""Firebase: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.firebase import provider
from providers.kit import (
    Delivered,
    Rejected,
    Retry,
    Skipped,
    Verdict,
)
from tests.providers.samples import NOW, classified, event, fault, planned, refund, trial

INSTANCE = "4f1b0c2d3e4f5a6b7c8d9e0f1a2b3c4d"
UPPER = INSTANCE.upper()
IOS = "firebase_app_id=1:1234567890:ios:321abc456def7890&api_secret=Inv3nt3d_Secret-01"
ANDROID = "firebase_app_id=1:1234567890:android:90ab12cd34ef5678&api_secret=Inv3nt3d_Secret-02"
SETTINGS = {
    "ios_firebase_app_id": "1:1234567890:ios:321abc456def7890",
    "ios_api_secret": "Inv3nt3d_Secret-01",
    "android_firebase_app_id": "1:1234567890:android:90ab12cd34ef5678",
    "android_api_secret": "Inv3nt3d_Secret-02",
}
IOS_ONLY = {key: value for key, value in SETTINGS.items() if key.startswith("ios")}
KNOWN = {"properties": {"_q_firebase_instance_id": INSTANCE}}
PLAY = {**KNOWN, "platform": "Android", "identity_id": None}


def sent(settings: dict[str, Any], some: Any) -> dict[str, Any]:
    plan = planned(provider, {**SETTINGS, **settings}, some)
    assert not plan.unsent
    (request,) = plan.requests
    body: dict[str, Any] = json.loads(request.body)
    return body


def test_sends_a_renewal() -> None:
    (request,) = planned(provider, SETTINGS, event(**KNOWN)).requests
    assert request.method == "POST"
    assert request.url == f"https://www.google-analytics.com/mp/collect?{IOS}"
    assert dict(request.headers) == {"Content-Type": "application/json"}
    assert json.loads(request.body) == {
        "app_instance_id": INSTANCE,
        "user_id": "acct-40001",
        "timestamp_micros": 1767225600000000,
        "events": [
            {
                "name": "purchase",
                "params": {
                    "currency": "GBP",
                    "value": 7.99,
                    "transaction_id": "2000000812345678",
                    "event_type": "subscription_renewed",
                    "product_id": "com.acme.pro.month",
                    "original_transaction_id": "2000000700000001",
                    "environment": "production",
                    "source_event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
                    "engagement_time_msec": 1,
                    "items": [
                        {
                            "item_id": "com.acme.pro.month",
                            "item_name": "com.acme.pro.month",
                            "price": 7.99,
                            "quantity": 1,
                            "affiliation": "App Store",
                        }
                    ],
                },
            }
        ],
    }


def test_sends_a_refund_as_a_positive_value() -> None:
    (request,) = planned(provider, {**SETTINGS, "region": "eu"}, refund(**PLAY)).requests
    assert request.url == f"https://region1.google-analytics.com/mp/collect?{ANDROID}"
    body = json.loads(request.body)
    assert "user_id" not in body
    (item,) = body["events"]
    assert item["name"] == "refund"
    assert item["params"]["value"] == 7.99
    assert item["params"]["event_type"] == "subscription_refunded"
    assert item["params"]["items"][0]["price"] == 7.99
    assert item["params"]["items"][0]["affiliation"] == "Google Play"


def test_sends_a_trial_start_without_value() -> None:
    (item,) = sent({}, trial(**KNOWN))["events"]
    assert item == {
        "name": "trial_started",
        "params": {
            "product_id": "com.acme.pro.month",
            "original_transaction_id": "2000000700000001",
            "environment": "production",
            "source_event_id": "0d2f8c7e-5b1b-5f6c-9b6a-2a54f5f1f7aa",
            "engagement_time_msec": 1,
        },
    }


def test_digits_of_amounts_are_kept() -> None:
    money = {"value": 1234567.1, "value_usd": 0, "currency": "JPY"}
    (request,) = planned(provider, SETTINGS, event(**KNOWN, revenue=money)).requests
    assert b'"value":1234567.1,' in request.body


@pytest.mark.parametrize(
    ("settings", "change", "name", "value"),
    [
        ({}, {"event_name": "in_app_purchase"}, "purchase", 7.99),
        ({}, {"event_name": "in_app_purchase", "revenue": None}, "in_app_purchased", None),
        ({}, {"revenue": None}, "subscription_renewed", None),
        ({"send_revenue": False}, {}, "subscription_renewed", None),
        ({"revenue_basis": "net"}, {}, "purchase", 6.79),
        (
            {},
            {
                "event_name": "subscription_upgraded",
                "revenue": {"value": -1, "value_usd": -1, "currency": "USD"},
            },
            "subscription_upgraded",
            None,
        ),
        ({"event_names": {"subscription_renewed": "renewed"}}, {}, "renewed", 7.99),
        ({}, {"event_name": "trial_started"}, "trial_started", None),
        (
            {"event_names": {"trial_started": "purchase"}},
            {"event_name": "trial_started"},
            "trial_started",
            None,
        ),
        ({}, {"event_name": "subscription_paused", "revenue": None}, "subscription_paused", None),
    ],
)
def test_names_and_values(
    settings: dict[str, Any], change: dict[str, Any], name: str, value: Any
) -> None:
    (item,) = sent(settings, event(**{**KNOWN, **change}))["events"]
    assert item["name"] == name
    assert item["params"].get("value") == value
    assert ("currency" in item["params"]) == (value is not None)


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        ({"properties": {"_q_firebase_instance_id": f" {UPPER} "}}, "app_instance_id", UPPER),
        ({"identity_id": None}, "user_id", None),
        ({"identity_id": "mira@example.com"}, "user_id", None),
        ({"time": NOW + 60}, "timestamp_micros", NOW * 1_000_000),
    ],
)
def test_members(change: dict[str, Any], key: str, expected: Any) -> None:
    found = sent({}, event(**{**KNOWN, **change})).get(key)
    assert found == expected


def test_texts_are_cut_and_a_purchase_has_all_it_needs() -> None:
    lone = event(**KNOWN, product_id="p" * 200, transaction=None)
    (item,) = sent({}, lone)["events"]
    assert item["params"]["product_id"] == "p" * 100
    assert item["params"]["transaction_id"] == "6a6527b6-e423-53db-a794-7a4b9dbea32f"
    (bare,) = sent({}, event(**KNOWN, product_id=None))["events"]
    assert bare["params"]["items"][0]["item_id"] == "subscription_renewed"


def test_validation_comes_first() -> None:
    plan = planned(provider, {**SETTINGS, "validate": True}, event(**KNOWN))
    assert [(r.url, r.step) for r in plan.requests] == [
        (f"https://www.google-analytics.com/debug/mp/collect?{IOS}", 0),
        (f"https://www.google-analytics.com/mp/collect?{IOS}", 1),
    ]
    assert plan.requests[0].body == plan.requests[1].body


def test_stripe_and_sandbox_events_go_to_the_streams_set_for_them() -> None:
    own = {
        "stripe_stream": "android",
        "sandbox_ios_firebase_app_id": "1:99:ios:ff",
        "sandbox_ios_api_secret": "sandbox-secret",
    }
    stripe = event(**KNOWN, platform="Stripe")
    sandbox = event(**KNOWN, environment="sandbox")
    other = event(**PLAY, environment="sandbox")
    plan = planned(provider, {**SETTINGS, **own}, stripe, sandbox, other)
    assert [r.url.partition("?")[2] for r in plan.requests] == [
        ANDROID,
        "firebase_app_id=1:99:ios:ff&api_secret=sandbox-secret",
    ]
    assert plan.unsent == {2: Skipped("no_stream", "no Firebase sandbox stream for Android")}
    main = planned(provider, {**SETTINGS, "send_sandbox": True}, sandbox)
    assert main.requests[0].url.endswith(IOS)


def test_late_events_are_sent_if_wanted() -> None:
    late = event(**KNOWN, time=NOW - 300_000)
    assert sent({"send_late_events": True}, late)["timestamp_micros"] == (NOW - 300_000) * 10**6


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (SETTINGS, {"properties": {}}, "user property _q_firebase_instance_id is missing"),
        (
            SETTINGS,
            {"properties": {"_q_firebase_instance_id": "0" * 32}},
            "user property _q_firebase_instance_id is missing",
        ),
        (
            SETTINGS,
            {"properties": {"_q_firebase_instance_id": "d3F:APA91b"}},
            "user property _q_firebase_instance_id is not a 32-hex app instance id",
        ),
        (IOS_ONLY, PLAY, "no Firebase stream for Android"),
        (SETTINGS, {"platform": "Stripe"}, "no Firebase stream for Stripe"),
        (
            SETTINGS,
            {"time": NOW - 72 * 3600 - 1},
            "older than 72 hours (set send_late_events to send it)",
        ),
        (
            SETTINGS,
            {"event_name": "session_start", "revenue": None},
            "event session_start cannot go under its own name (set it in event_names)",
        ),
        (
            SETTINGS,
            {"environment": "sandbox"},
            "sandbox event, and these settings send production events only",
        ),
    ],
)
def test_skips(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    plan = planned(provider, settings, event(**{**KNOWN, **change}))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({}, "", "set ios_firebase_app_id with ios_api_secret, or android"),
        ({"ios_api_secret": "Inv3nt3d_Secret-01"}, "", "set both ios_firebase_app_id"),
        (
            {**SETTINGS, "ios_firebase_app_id": "1:12:android:ff"},
            "ios_firebase_app_id",
            "must be like 1:1234567890:ios:",
        ),
        ({**SETTINGS, "android_api_secret": "short"}, "android_api_secret", "10 to 64 of letters"),
        ({**IOS_ONLY, "stripe_stream": "android"}, "", "that stream is not set"),
        ({**SETTINGS, "sandbox_android_api_secret": "0123456789"}, "", "set both sandbox_android"),
        ({**SETTINGS, "event_names": {"in_app_purchase": "in_app_purchase"}}, "", "not reserved"),
        ({**SETTINGS, "event_names": {"trial_started": "ga_trial"}}, "", "not beginning with"),
        ({**SETTINGS, "event_names": {"trial_started": "x" * 41}}, "", "at most 40"),
        ({**SETTINGS, "event_names": {"trial_started": "trial-start"}}, "", "digits and _"),
    ],
)
def test_settings_faults(settings: dict[str, Any], key: str, words: str) -> None:
    where, text = fault(provider, settings)
    assert where == key
    assert words in text


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (204, "", Delivered()),
        (200, "GIF89a", Delivered()),
        (400, "", Rejected("bad_request")),
        (401, "", Rejected("unauthorized")),
        (403, "<html>no</html>", Rejected("forbidden", "<html>no</html>")),
        (404, "", Rejected("not_found")),
        (411, "", Rejected("bad_request")),
        (413, "", Rejected("too_large")),
        (415, "", Rejected("bad_request")),
        (302, "", Retry("redirect", "redirects to elsewhere, which is not followed")),
        (408, "", Retry("timeout")),
        (429, "", Retry("throttled", "", timedelta(seconds=60), throttled=True)),
        (500, "", Retry("server_error")),
        (503, "<html>", Retry("unavailable", "<html>")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(**KNOWN)) == verdict


def message(code: str) -> dict[str, str]:
    return {
        "fieldPath": "events[0].name",
        "description": "Event name is reserved.",
        "validationCode": code,
    }


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"validationMessages": []}, Delivered()),
        (
            200,
            {"validationMessages": [message("NAME_RESERVED")]},
            Rejected("invalid_event", "events[0].name: Event name is reserved. (NAME_RESERVED)"),
        ),
        (
            200,
            {"validationMessages": [message("INTERNAL_ERROR")]},
            Retry("server_error", "events[0].name: Event name is reserved. (INTERNAL_ERROR)"),
        ),
        (200, {"validationMessages": [7]}, Rejected("invalid_event", ": ()")),
        (200, "<html>", Retry("unexpected_answer", "<html>")),
        (429, "", Retry("throttled", "", timedelta(seconds=60), throttled=True)),
        (503, "", Retry("unavailable")),
    ],
)
def test_classify_validation(status: int, body: Any, verdict: Verdict) -> None:
    settings = {**SETTINGS, "validate": True}
    assert classified(provider, settings, status, body, event(**KNOWN)) == verdict
