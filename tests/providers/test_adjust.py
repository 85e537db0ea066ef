"""Adjust: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest

from providers.adjust import provider
from providers.kit import (
    Delivered,
    InvalidSettings,
    Misconfigured,
    Rejected,
    Request,
    Retry,
    Skipped,
    Verdict,
    read_settings,
)
from tests.providers.samples import NOW, classified, event, planned, refund, trial

SETTINGS: dict[str, Any] = {
    "app_token_ios": "k7m2p9x4c1vz",
    "app_token_android": "a8n5d0r3o1id",
    "event_tokens": {
        "subscription_renewed": "rn3w8l",
        "subscription_refunded": "rf5n7d",
        "trial_started": "tr1als",
    },
}
ADID = {"_q_adjust_adid": "5f3c9a1e7b2d4c6e8f0a1b2c3d4e5f60"}
ANDROID = {
    "platform": "Android",
    "advertiser_id": "1B6F7C2E-0D3A-4F5B-8C9D-2E1F0A9B8C7D",
    "device_id": "9A4C1E07-B2D85F36",
}


def form(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=True))


def test_sends_a_renewal() -> None:
    settings = {**SETTINGS, "s2s_token": "q1w2e3r4t5y6u7i8"}
    (request,) = planned(provider, settings, event(properties=ADID)).requests
    assert (request.method, request.url) == ("POST", "https://s2s.adjust.com/event")
    assert dict(request.headers) == {
        "Content-Type": "application/x-www-form-urlencoded",
        "Authorization": "Bearer q1w2e3r4t5y6u7i8",
    }
    sent = form(request)
    callback = json.loads(sent.pop("callback_params"))
    assert sent == {
        "s2s": "1",
        "app_token": "k7m2p9x4c1vz",
        "event_token": "rn3w8l",
        "environment": "production",
        "created_at_unix": "1767225600",
        "adid": "5f3c9a1e7b2d4c6e8f0a1b2c3d4e5f60",
        "idfa": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
        "idfv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "os_name": "ios",
        "revenue": "9.99",
        "currency": "USD",
    }
    assert callback == {
        "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        "product_id": "com.acme.pro.month",
        "transaction_id": "2000000812345678",
        "original_transaction_id": "2000000700000001",
        "user_id": "acct-40001",
        "store": "app_store",
    }


def test_sends_an_android_refund_without_revenue() -> None:
    settings = {**SETTINGS, "callback_fields": []}
    (request,) = planned(provider, settings, refund(**ANDROID)).requests
    assert "Authorization" not in dict(request.headers)
    assert form(request) == {
        "s2s": "1",
        "app_token": "a8n5d0r3o1id",
        "event_token": "rf5n7d",
        "environment": "production",
        "created_at_unix": "1767225600",
        "gps_adid": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
        "android_id": "9a4c1e07b2d85f36",
        "os_name": "android",
        "callback_params": '{"refund_amount":"9.99","refund_currency":"USD"}',
    }


def test_sends_a_sandbox_trial_with_what_is_known_of_the_device() -> None:
    device = {"user_agent": "Acme/5 (iPhone; +x&y)", "att_status": 2}
    sample = trial(environment="sandbox", device=device, ip="8.8.8.8", revenue=None)
    settings = {**SETTINGS, "callback_fields": []}
    (request,) = planned(provider, settings, sample).requests
    assert form(request) == {
        "s2s": "1",
        "app_token": "k7m2p9x4c1vz",
        "event_token": "tr1als",
        "environment": "sandbox",
        "created_at_unix": "1767225600",
        "idfv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "ip_address": "8.8.8.8",
        "user_agent": "Acme/5 (iPhone; +x&y)",
        "os_name": "ios",
        "att_status": "2",
    }


@pytest.mark.parametrize("ip", ["2a00:1450::1", "10.0.0.1", ""])
def test_sends_no_address_but_a_public_ipv4(ip: str) -> None:
    (request,) = planned(provider, SETTINGS, event(ip=ip)).requests
    assert "ip_address" not in form(request)


@pytest.mark.parametrize(
    ("value", "sent"),
    [("9.90", "9.9"), ("0.001", "0.001"), ("12.345678", "12.34568"), ("1000", "1000")],
)
def test_writes_revenue_plainly(value: str, sent: str) -> None:
    money = {"value": float(value), "value_usd": 1, "currency": "EUR"}
    settings = {**SETTINGS, "revenue_basis": "local"}
    (request,) = planned(provider, settings, event(revenue=money)).requests
    assert (form(request)["revenue"], form(request)["currency"]) == (sent, "EUR")


@pytest.mark.parametrize("amount", [0, 0.0009, 0.000999])
def test_leaves_out_revenue_too_small_to_take(amount: float) -> None:
    money = {"value": amount, "value_usd": amount, "currency": "USD"}
    (request,) = planned(provider, SETTINGS, event(revenue=money)).requests
    assert not {"revenue", "currency"} & form(request).keys()


def test_uses_the_tokens_of_the_android_app_alone_where_given() -> None:
    settings = {**SETTINGS, "event_tokens_android": {"trial_cancelled": "ca7cel"}}
    plan = planned(
        provider, settings, event(**ANDROID), event(event_name="trial_canceled", **ANDROID), event()
    )
    assert [form(request)["event_token"] for request in plan.requests] == ["ca7cel", "rn3w8l"]
    assert plan.unsent.keys() == {0}


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"app_token_ios": None}, "no Adjust app token for iOS"),
        (
            {},
            {"event_tokens": {"subscription_renewed": " "}},
            "no Adjust event token for subscription_renewed",
        ),
        (
            {"advertiser_id": "00000000-0000-0000-0000-000000000000", "device_id": "null"},
            {},
            "no Adjust device id (adid, idfa, idfv, gps_adid, android_id)",
        ),
        (
            {"environment": "sandbox"},
            {"send_sandbox": False},
            "sandbox event, and these settings send production events only",
        ),
        (
            {"time": NOW - 58 * 86_400 - 1},
            {},
            "older than 58 days, which Adjust does not take",
        ),
        ({"platform": "Stripe"}, {}, "Adjust takes events of iOS and Android only"),
    ],
)
def test_skips(changes: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    plan = planned(provider, {**SETTINGS, **settings}, event(**changes))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"app_token_ios": "", "app_token_android": None}, "app_token_ios or app_token_android"),
        ({"event_tokens": {"trial_started": "ABC 12"}}, "must be an event token"),
        ({"event_tokens": None}, "Adjust event tokens is not set"),
        ({"callback_fields": ["email"]}, "callback_fields"),
    ],
)
def test_refuses_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read_settings(provider.title, provider.settings, {**SETTINGS, **change})


def failed(words: str) -> dict[str, str]:
    return {"error": f"Event request failed ({words})"}


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, "OK", Delivered()),
        (200, {"status": "OK", "skadn": {"conversion_value": 3}}, Delivered()),
        (200, {"error": None}, Delivered()),
        (202, "", Delivered()),
        (202, "Missing authentication token", Misconfigured),
        (202, failed("wrong Authentication token"), Misconfigured),
        (200, failed("Invalid App Token"), Misconfigured),
        (200, failed("Invalid revenue"), Rejected),
        (400, failed("Invalid app token"), Misconfigured),
        (
            400,
            failed("Invalid event token"),
            Rejected(
                "invalid_event_token",
                "Event request failed (Invalid event token): the event token of "
                "subscription_renewed",
            ),
        ),
        (400, failed("Ignoring event, earlier unique event tracked"), Delivered),
        (
            400,
            failed("Bad event state (event created before install)"),
            Rejected(
                "bad_event_state",
                "Event request failed (Bad event state (event created before install))",
            ),
        ),
        (
            400,
            failed("Invalid callback parameters"),
            Rejected("bad_request", "Event request failed (Invalid callback parameters)"),
        ),
        (
            401,
            failed("Failed to authorize request"),
            Misconfigured("unauthorized", "Event request failed (Failed to authorize request)"),
        ),
        (401, {"error": "Session failed"}, Misconfigured("unauthorized", "Session failed")),
        (403, failed("App is inactive"), Misconfigured),
        (403, failed("Tracking disabled"), Rejected),
        (403, failed("Event token blocklisted"), Rejected),
        (404, failed("App token not found"), Misconfigured),
        (404, failed("Device not found"), Rejected),
        (404, "<html>nothing here</html>", Rejected("not_found", "<html>nothing here</html>")),
        (413, failed("Request size too large"), Rejected),
        (451, failed("Device is opted out"), Rejected),
        (429, "", Retry("throttled", throttled=True)),
        (500, failed("Invalid app token"), Retry),
        (503, '{"error":', Retry("unavailable", '{"error":')),
        (302, "", Misconfigured),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict | type[Verdict]) -> None:
    found = classified(provider, SETTINGS, status, body)
    assert (type(found) if isinstance(verdict, type) else found) == verdict


def test_waits_as_long_as_it_is_told() -> None:
    found = classified(provider, SETTINGS, 429, "slow down", headers={"retry-after": "7"})
    assert found == Retry("throttled", "slow down", timedelta(seconds=7), throttled=True)
