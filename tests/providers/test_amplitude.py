"""Amplitude: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.amplitude import provider
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
from tests.providers.samples import classified, context, event, fault, planned, refund, trial

SETTINGS = {"api_key": "0123456789abcdef0123456789abcdef", "region": "eu"}
AT_ONCE = timedelta(0)


def test_sends_renewal_refund_and_trial_in_one_request() -> None:
    (request,) = planned(provider, SETTINGS, event(), refund(), trial()).requests
    assert request.url == "https://api.eu.amplitude.com/2/httpapi"
    assert dict(request.headers) == {"Content-Type": "application/json", "Accept": "*/*"}
    body = json.loads(request.body)
    assert body["api_key"] == SETTINGS["api_key"]
    assert body["options"] == {"min_id_length": 5}
    assert body["events"][0] == {
        "user_id": "acct-40001",
        "event_type": "subscription_renewed",
        "time": 1767225600000,
        "insert_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        "revenue": 9.99,
        "productId": "com.acme.pro.month",
        "revenueType": "renewal",
        "currency": "USD",
        "platform": "iOS",
        "os_name": "ios",
        "country": "GB",
        "idfa": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
        "idfv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "library": "onward/1.0",
        "session_id": -1,
        "event_properties": {
            "product_id": "com.acme.pro.month",
            "store": "app_store",
            "environment": "production",
            "transaction_id": "2000000812345678",
            "original_transaction_id": "2000000700000001",
            "source_event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
            "revenue_local": 7.99,
            "currency_local": "GBP",
            "revenue_usd": 9.99,
            "currency": "USD",
        },
    }
    assert (body["events"][1]["revenue"], body["events"][1]["revenueType"]) == (-9.99, "refund")
    assert not {"revenue", "productId", "revenueType", "currency"} & body["events"][2].keys()


PLAY = {"platform": "Android", "device_id": "9a4c1e07b2d85f36"}
BY_PROPERTY = {
    "user_property_for_user_id": "amplitude_user_id",
    "user_property_for_device_id": "amplitude_device_id",
}


@pytest.mark.parametrize(
    ("settings", "change", "expected"),
    [
        ({"revenue_basis": "local"}, {}, {"revenue": 7.99, "currency": "GBP"}),
        ({"send_revenue": False}, {}, {"revenue": None, "productId": None, "currency": None}),
        ({}, {"product_id": None}, {"revenue": 9.99, "productId": None}),
        ({}, {"event_name": "in_app_purchase"}, {"revenueType": "purchase"}),
        (
            {},
            {"event_name": "trial_started"},
            {"revenue": None, "productId": None, "revenueType": None, "currency": None},
        ),
        ({}, {"event_name": "subscription_paused"}, {"revenue": 9.99}),
        (
            {},
            PLAY,
            {
                "platform": "Android",
                "os_name": "android",
                "adid": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
                "android_id": "9a4c1e07b2d85f36",
                "idfa": None,
                "idfv": None,
            },
        ),
        (
            {},
            {"platform": "Stripe"},
            {"platform": "Web", "os_name": None, "idfa": None, "adid": None, "android_id": None},
        ),
        ({}, {"device": {"att_status": 1}}, {"idfa": None}),
        ({}, {"ip": "8.8.8.8"}, {"ip": "8.8.8.8"}),
        ({}, {"ip": "127.0.0.1"}, {"ip": None}),
        (
            {},
            {
                "device": {
                    "os_version": "18.2",
                    "model": "iPhone15,3",
                    "app_version": "5.4.1",
                    "locale": "pt_PT",
                }
            },
            {
                "os_version": "18.2",
                "device_model": "iPhone15,3",
                "app_version": "5.4.1",
                "language": "pt",
            },
        ),
        ({}, {"identity_id": "u-1"}, {"user_id": "QON_5b1f0c9e7a3d4d22"}),
        ({}, {"identity_id": "LMY47D"}, {"user_id": "QON_5b1f0c9e7a3d4d22"}),
        (
            BY_PROPERTY,
            {"properties": {"amplitude_user_id": "amp-77", "amplitude_device_id": "dev-99"}},
            {"user_id": "amp-77", "device_id": "dev-99"},
        ),
        (
            BY_PROPERTY,
            {
                "identity_id": None,
                "user_id": None,
                "properties": {"amplitude_device_id": "dev-99"},
            },
            {"user_id": None, "device_id": "dev-99"},
        ),
        (BY_PROPERTY, {"properties": {"amplitude_device_id": "d-1"}}, {"device_id": None}),
        (BY_PROPERTY, {"properties": {"amplitude_device_id": "{}"}}, {"device_id": None}),
    ],
)
def test_members(
    settings: dict[str, Any], change: dict[str, Any], expected: dict[str, Any]
) -> None:
    (request,) = planned(provider, {**SETTINGS, **settings}, event(**change)).requests
    (found,) = json.loads(request.body)["events"]
    assert {key: found.get(key) for key in expected} == expected


def test_the_batch_endpoint_takes_more_at_once() -> None:
    events = [event(id=f"evt-{number}") for number in range(101)]
    settings = {**SETTINGS, "region": "us", "use_batch_endpoint": True, "min_id_length": 3}
    (request,) = planned(provider, settings, *events).requests
    assert request.url == "https://api2.amplitude.com/batch"
    assert json.loads(request.body)["options"] == {"min_id_length": 3}
    assert [len(r.events) for r in planned(provider, SETTINGS, *events).requests] == [100, 1]


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"api_key": None}, "api_key", "Amplitude api key is not set"),
        ({"region": "EU"}, "region", "'us' or 'eu'"),
        ({"min_id_length": 0}, "min_id_length", "greater than or equal to 1"),
        ({"min_id_length": True}, "min_id_length", "not true or false"),
        ({"event_names": {"trial_started": "[Amplitude] Revenue"}}, "", "Amplitude's own"),
        ({"event_names": {"trial_started": "$identify"}}, "", "Amplitude's own"),
        ({"event_names": {"trial_started": "x" * 1025}}, "", "at most 1024"),
    ],
)
def test_settings_faults(change: dict[str, Any], key: str, words: str) -> None:
    where, text = fault(provider, {**SETTINGS, **change})
    assert where == key
    assert words in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity_id": "u-1", "user_id": None}, "user id shorter than 5 characters"),
        (
            {"identity_id": "anonymous", "user_id": ""},
            "no Amplitude user_id or device_id (call identify in the app)",
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


def test_sandbox_events_go_to_their_own_project() -> None:
    settings = {**SETTINGS, "sandbox_api_key": "s" * 32}
    plan = planned(provider, settings, event(), event(environment="sandbox"))
    assert [json.loads(r.body)["api_key"] for r in plan.requests] == [SETTINGS["api_key"], "s" * 32]
    assert [r.events for r in plan.requests] == [(0,), (1,)]


INVALID = "Invalid field values on some events"
AGAIN = Retry("batch_refused", INVALID, AT_ONCE)
BUSY = "Too many requests for some devices and users"
WAIT = Retry("throttled", BUSY, timedelta(seconds=30), throttled=True)
TOMORROW = Retry("throttled", BUSY, timedelta(hours=24), throttled=True)
OTHERS = Retry("batch_refused", BUSY, AT_ONCE)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"code": 200, "events_ingested": 2}, Delivered()),
        (200, "<html></html>", Retry("unexpected_answer", "<html></html>")),
        (
            400,
            {"code": 400, "error": "Invalid API key: 012", "missing_field": None},
            Misconfigured("unauthorized", "Invalid API key: 012"),
        ),
        (
            400,
            {"code": 400, "error": "Request missing required field", "missing_field": "api_key"},
            Misconfigured("unauthorized", "Request missing required field"),
        ),
        (
            400,
            {"code": 400, "error": "Request missing required field", "missing_field": "events"},
            Rejected("bad_request", "Request missing required field: events"),
        ),
        (
            400,
            {"code": 400, "error": INVALID, "events_with_invalid_fields": {"time": [1]}},
            Partial({1: Rejected("invalid_event", f"{INVALID}: time")}, AGAIN),
        ),
        (
            400,
            {"code": 400, "error": INVALID, "events_with_missing_fields": {"event_type": [0]}},
            Partial({0: Rejected("invalid_event", f"{INVALID}: event_type")}, AGAIN),
        ),
        (
            400,
            {"code": 400, "error": INVALID, "events_missing_required_fields": {"time": [0]}},
            Partial({0: Rejected("invalid_event", f"{INVALID}: time")}, AGAIN),
        ),
        (
            400,
            {"code": 400, "error": INVALID, "events_with_invalid_id_lengths": {"user_id": [0]}},
            Partial({0: Rejected("invalid_event", f"{INVALID}: user_id")}, AGAIN),
        ),
        (
            400,
            {"code": 400, "error": INVALID, "silenced_events": [1]},
            Partial({1: Rejected("silenced", f"{INVALID}: silenced event")}, AGAIN),
        ),
        (
            400,
            {"code": 400, "error": INVALID, "events_with_invalid_fields": {"time": [7, True, "1"]}},
            Split("bad_request", INVALID),
        ),
        (
            400,
            {"code": 400, "error": "Invalid JSON request body"},
            Split("bad_request", "Invalid JSON request body"),
        ),
        (400, "<html>bad</html>", Retry("bad_request", "<html>bad</html>")),
        (413, {"code": 413, "error": "Payload too large"}, Split("too_large", "Payload too large")),
        (413, "", Split("too_large")),
        (
            429,
            {"code": 429, "error": BUSY, "throttled_events": [0]},
            Partial({0: WAIT}, OTHERS),
        ),
        (429, {"code": 429, "error": BUSY}, WAIT),
        (
            429,
            {
                "code": 429,
                "error": BUSY,
                "exceeded_daily_quota_users": {"acct-40002": 500001},
                "throttled_events": [0],
            },
            Partial({0: WAIT, 1: TOMORROW}, OTHERS),
        ),
        (401, {"code": 401, "error": "no"}, Misconfigured("unauthorized", "no")),
        (
            403,
            {"code": 403, "error": "Invalid API key: 012"},
            Misconfigured("unauthorized", "Invalid API key: 012"),
        ),
        (403, "<html>denied</html>", Retry("forbidden", "<html>denied</html>")),
        (302, "", Retry("redirect", "redirects to elsewhere, which is not followed")),
        (200, {"code": 302}, Retry("redirect")),
        (404, {"code": 404, "error": "lost"}, Retry("not_found", "lost")),
        (408, "", Retry("timeout")),
        (500, {"code": 500, "error": "oops"}, Retry("server_error", "oops")),
        (502, "", Retry("bad_gateway")),
        (503, "", Retry("unavailable")),
        (504, '{"code":', Retry("gateway_timeout", '{"code":')),
        (200, {"code": 500, "error": "oops"}, Retry("server_error", "oops")),
        (500, {"code": 200}, Delivered()),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    some = event(), trial(identity_id="acct-40002")
    assert classified(provider, SETTINGS, status, body, *some) == verdict


def test_waits_as_long_as_amplitude_says() -> None:
    verdict = classified(provider, SETTINGS, 429, "", headers={"retry-after": "9"})
    assert verdict == Retry("throttled", "", timedelta(seconds=9), throttled=True)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (
            400,
            {"code": 400, "error": "Invalid API key: 012"},
            Misconfigured("unauthorized", "Invalid API key: 012"),
        ),
        (400, {"code": 400, "error": "no events", "missing_field": "events"}, Delivered()),
        (200, {"code": 200}, Delivered()),
        (503, {"error": "Oh"}, Retry("unavailable", "Oh")),
    ],
)
def test_check_posts_no_events(status: int, body: Any, outcome: Verdict) -> None:
    settings = read_settings("Amplitude", provider.settings, SETTINGS)
    assert provider.check is not None
    request = provider.check.request(settings, context())
    assert json.loads(request.body)["events"] == []
    assert provider.check.read(Response(status, {}, json.dumps(body).encode())) == outcome
