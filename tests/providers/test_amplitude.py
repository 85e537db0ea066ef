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
    Retry,
    Skipped,
    Split,
    Verdict,
)
from tests.providers.samples import classified, event, planned, refund, trial

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
        },
    }
    assert (body["events"][1]["revenue"], body["events"][1]["revenueType"]) == (-9.99, "refund")
    assert not {"revenue", "productId", "revenueType", "currency"} & body["events"][2].keys()


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


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"code": 200, "events_ingested": 2}, Delivered()),
        (
            400,
            {"code": 400, "error": "Invalid API key: 012", "missing_field": None},
            Misconfigured("unauthorized", "Invalid API key: 012"),
        ),
        (
            400,
            {
                "code": 400,
                "error": "Invalid field values",
                "events_with_invalid_fields": {"time": [1]},
            },
            Partial(
                {1: Rejected("invalid_event", "Invalid field values: time")},
                Retry("batch_refused", "Invalid field values", AT_ONCE),
            ),
        ),
        (
            400,
            {"code": 400, "error": "Invalid JSON request body"},
            Split("bad_request", "Invalid JSON request body"),
        ),
        (413, {"code": 413, "error": "Payload too large"}, Split("too_large", "Payload too large")),
        (
            429,
            {"code": 429, "error": "Too many requests", "throttled_events": [0]},
            Partial(
                {0: Retry("throttled", "Too many requests", timedelta(seconds=30), throttled=True)},
                Retry("batch_refused", "Too many requests", AT_ONCE),
            ),
        ),
        (403, "<html>denied</html>", Retry("forbidden", "<html>denied</html>")),
        (503, "", Retry("unavailable")),
        (200, {"code": 500, "error": "oops"}, Retry("server_error", "oops")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(), trial()) == verdict
