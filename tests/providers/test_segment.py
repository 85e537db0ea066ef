"""Segment: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.kit import (
    Delivered,
    InvalidSettings,
    Misconfigured,
    Rejected,
    Retry,
    Skipped,
    Split,
    Verdict,
    read_settings,
)
from providers.segment import SegmentSettings, provider
from tests.providers.samples import classified, event, planned, refund, trial

SETTINGS = {"write_key": "InventedWriteKey0123456789", "region": "eu"}
LIBRARY = {"name": "onward", "version": "1.0"}


def messages(settings: dict[str, Any], *events: Any) -> list[dict[str, Any]]:
    (request,) = planned(provider, settings, *events).requests
    batch: list[dict[str, Any]] = json.loads(request.body)["batch"]
    return batch


def test_sends_renewal_refund_and_trial_in_one_batch() -> None:
    (request,) = planned(provider, SETTINGS, event(), refund(), trial(identity_id="")).requests
    assert (request.method, request.url) == ("POST", "https://events.eu1.segmentapis.com/v1/batch")
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "Authorization": "Basic SW52ZW50ZWRXcml0ZUtleTAxMjM0NTY3ODk6",
    }
    body = json.loads(request.body)
    assert body.keys() == {"sentAt", "batch"}
    assert body["sentAt"] == "2026-01-01T00:05:00.000Z"
    assert body["batch"][0] == {
        "type": "track",
        "event": "subscription_renewed",
        "userId": "acct-40001",
        "anonymousId": "QON_5b1f0c9e7a3d4d22",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "context": {
            "library": LIBRARY,
            "device": {
                "type": "ios",
                "advertisingId": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
                "adTrackingEnabled": True,
            },
            "os": {"name": "iOS"},
        },
        "messageId": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        "properties": {
            "revenue": 7.99,
            "currency": "GBP",
            "revenue_usd": 9.99,
            "price": 7.99,
            "product_id": "com.acme.pro.month",
            "product": "com.acme.pro.month",
            "store": "app_store",
            "environment": "production",
            "transaction_id": "2000000812345678",
            "original_transaction_id": "2000000700000001",
            "order_id": "2000000812345678",
        },
    }
    assert body["batch"][1]["properties"]["revenue"] == -7.99
    assert "userId" not in body["batch"][2]
    assert body["batch"][2]["anonymousId"] == "QON_5b1f0c9e7a3d4d22"
    assert "revenue" not in body["batch"][2]["properties"]


def test_dollars_where_wanted() -> None:
    (message,) = messages({**SETTINGS, "region": "us", "revenue_basis": "usd"}, event())
    amounts = {k: message["properties"][k] for k in ("revenue", "currency", "revenue_usd", "price")}
    assert amounts == {"revenue": 9.99, "currency": "USD", "revenue_usd": 9.99, "price": 9.99}
    (request,) = planned(provider, {**SETTINGS, "region": "us"}, event()).requests
    assert request.url == "https://api.segment.io/v1/batch"


@pytest.mark.parametrize(
    "change", [{"send_revenue": False}, {"no_revenue_events": ["subscription_renewed"]}]
)
def test_no_amounts_where_unwanted(change: dict[str, Any]) -> None:
    (message,) = messages({**SETTINGS, **change}, event())
    assert not {"revenue", "currency", "revenue_usd", "price"} & message["properties"].keys()


def test_a_price_of_another_currency_is_left_out() -> None:
    price = {"value": 9.99, "value_usd": 9.99, "currency": "USD"}
    (message,) = messages(SETTINGS, event(price=price))
    assert message["properties"]["currency"] == "GBP"
    assert "price" not in message["properties"]


@pytest.mark.parametrize(
    ("change", "context"),
    [
        (
            {
                "platform": "Android",
                "advertiser_id": "38400000-8cf0-11bd-b23e-10b96e40000d",
                "device": {"limit_ad_tracking": True, "model": "Pixel 8", "brand": "Google"},
            },
            {
                "device": {
                    "type": "android",
                    "advertisingId": "38400000-8cf0-11bd-b23e-10b96e40000d",
                    "adTrackingEnabled": False,
                    "model": "Pixel 8",
                    "manufacturer": "Google",
                },
                "os": {"name": "Android"},
            },
        ),
        (
            {"device": {"att_status": 2, "os_version": "18.2"}},
            {
                "device": {"type": "ios", "adTrackingEnabled": False},
                "os": {"name": "iOS", "version": "18.2"},
            },
        ),
        (
            {"advertiser_id": "00000000-0000-0000-0000-000000000000", "ip": "10.0.0.1"},
            {"device": {"type": "ios"}, "os": {"name": "iOS"}},
        ),
        (
            {
                "platform": "Stripe",
                "ip": "8.8.8.8",
                "device": {
                    "app_version": "5.4.1",
                    "app_id": "app.acme",
                    "locale": "pt_PT",
                    "timezone": "Europe/Lisbon",
                },
            },
            {
                "app": {"version": "5.4.1", "namespace": "app.acme"},
                "ip": "8.8.8.8",
                "locale": "pt-PT",
                "timezone": "Europe/Lisbon",
            },
        ),
    ],
)
def test_context(change: dict[str, Any], context: dict[str, Any]) -> None:
    (message,) = messages(SETTINGS, event(**change))
    assert message["context"] == {"library": LIBRARY, **context}


def test_identify_goes_before_its_track() -> None:
    known = event(properties={"_q_email": "a@b.example", "_q_name": "A"}, id="evt-1")
    settings = {**SETTINGS, "send_identify": True, "integrations": {"All": True, "Mixpanel": False}}
    plan = planned(provider, settings, known, trial())
    assert plan.requests[0].events == (0, 1)
    first, second, third = json.loads(plan.requests[0].body)["batch"]
    assert (first["type"], second["type"], third["type"]) == ("identify", "track", "track")
    assert first["traits"] == {"email": "a@b.example", "name": "A"}
    assert first["messageId"] == f"{second['messageId']}-identify"
    assert first["integrations"] == second["integrations"] == settings["integrations"]
    assert "traits" not in messages(SETTINGS, known)[0]


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, {"identity_id": None, "user_id": None}),
        ({"anonymous_fallback": False}, {"identity_id": "anonymous"}),
    ],
)
def test_skips_nobody(settings: dict[str, Any], change: dict[str, Any]) -> None:
    plan = planned(provider, {**SETTINGS, **settings}, event(**change))
    why = plan.unsent[0]
    assert isinstance(why, Skipped)
    assert why.message.startswith("no Segment userId or anonymousId")


def test_without_the_fallback_there_is_no_anonymous_id() -> None:
    (message,) = messages({**SETTINGS, "anonymous_fallback": False}, event(identity_id=" 42 "))
    assert message["userId"] == "42"
    assert "anonymousId" not in message


def test_sandbox_events_go_to_their_own_source() -> None:
    sandbox = event(environment="sandbox")
    assert isinstance(planned(provider, SETTINGS, sandbox).unsent[0], Skipped)
    plan = planned(provider, {**SETTINGS, "sandbox_write_key": "k"}, event(), sandbox)
    assert [r.events for r in plan.requests] == [(0,), (1,)]
    assert dict(plan.requests[1].headers)["Authorization"] == "Basic azo="


def test_batches_of_a_hundred() -> None:
    plan = planned(provider, SETTINGS, *(event(id=f"e-{n}") for n in range(101)))
    assert [len(r.events) for r in plan.requests] == [100, 1]
    assert all(len(r.body) <= 450_000 for r in plan.requests)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"region": "us"}, "write key is not set"),
        ({"write_key": "k"}, "region is not set"),
        ({**SETTINGS, "region": "ap"}, "'us' or 'eu'"),
        ({**SETTINGS, "write_key": "a\nb"}, "line breaks"),
        ({**SETTINGS, "api_key": "x"}, "not a setting"),
    ],
)
def test_settings_faults(data: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read_settings(provider.title, SegmentSettings, data)


@pytest.mark.parametrize(
    ("status", "headers", "body", "verdict"),
    [
        (200, {}, {"success": True}, Delivered()),
        (200, {}, "", Delivered()),
        (202, {}, "<html>", Delivered()),
        (200, {}, {"success": False, "message": "no"}, Rejected("refused", "no")),
        (
            302,
            {"location": "https://x.example"},
            "",
            Retry("redirect", "unexpected redirect, which is not followed: nothing was taken"),
        ),
        (
            400,
            {},
            {"code": "invalid_request", "message": "malformed JSON"},
            Split("bad_request", "malformed JSON"),
        ),
        (400, {}, "bad", Split("bad_request", "bad")),
        (401, {}, "", Misconfigured("unauthorized")),
        (403, {}, {"message": "no"}, Misconfigured("forbidden", "no")),
        (413, {}, "", Split("too_large")),
        (
            429,
            {"retry-after": "12"},
            "",
            Retry("throttled", "", timedelta(seconds=12), throttled=True),
        ),
        (
            429,
            {"x-ratelimit-reset": "7"},
            "",
            Retry("throttled", "", timedelta(seconds=7), throttled=True),
        ),
        (
            429,
            {"retry-after": "Thu, 01 Jan 2026 01:05:00 GMT"},
            "",
            Retry("throttled", "", timedelta(seconds=300), throttled=True),
        ),
        (429, {"x-ratelimit-reset": "soon"}, "", Retry("throttled", throttled=True)),
        (408, {}, "", Retry("timeout")),
        (500, {}, "<html>", Retry("server_error", "<html>")),
        (501, {}, "", Retry("server_error")),
        (503, {"retry-after": "9"}, "", Retry("unavailable", "", timedelta(seconds=9))),
        (505, {}, "", Retry("server_error")),
        (404, {}, "", Rejected("not_found")),
        (422, {}, [1], Rejected("bad_request", "[1]")),
    ],
)
def test_classify(status: int, headers: dict[str, str], body: Any, verdict: Verdict) -> None:
    assert (
        classified(provider, SETTINGS, status, body, event(), trial(), headers=headers) == verdict
    )
