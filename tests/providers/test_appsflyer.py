"""AppsFlyer: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.appsflyer import provider
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
    "app_id_ios": "1234509876",
    "app_id_android": "com.acme.app",
    "s2s_token": "eyJhbGciOi-example-s2s-key",
}
API2 = {**SETTINGS, "s2s_token": None, "dev_key": "dev-key", "dev_key_android": "android-key"}
UID = {"_q_appsflyer_user_id": "1767225000123-4567890123456789012"}
DEVICE = {"os_version": "17.5", "att_status": 3, "app_id": "com.acme.app", "app_version": "5.4.1"}
CUSTOM = {"environment", "store", "original_transaction_id", "event_id"}
ANDROID = {
    "platform": "Android",
    "advertiser_id": "1B6F7C2E-0D3A-4F5B-8C9D-2E1F0A9B8C7D",
    "device_id": "9a4c1e07b2d85f36",
    "properties": UID,
}


def sent(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    body = json.loads(request.body)
    text = body.pop("eventValue")
    assert isinstance(text, str)
    return body, json.loads(text) if text else {}


def test_sends_a_renewal_to_api_3() -> None:
    sample = event(properties=UID, device=DEVICE, ip="8.8.8.8")
    (request,) = planned(provider, SETTINGS, sample).requests
    assert (request.method, request.url) == (
        "POST",
        "https://api3.appsflyer.com/inappevent/id1234509876",
    )
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "authentication": "eyJhbGciOi-example-s2s-key",
    }
    body, value = sent(request)
    assert body == {
        "appsflyer_id": "1767225000123-4567890123456789012",
        "customer_user_id": "acct-40001",
        "eventName": "subscription_renewed",
        "eventTime": "2026-01-01 00:00:00.000",
        "eventCurrency": "USD",
        "af_events_api": "true",
        "idfa": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
        "idfv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "ip": "8.8.8.8",
        "os": "17.5",
        "att": 3,
        "bundleIdentifier": "com.acme.app",
        "app_version_name": "5.4.1",
    }
    assert value == {
        "af_revenue": "9.99",
        "af_currency": "USD",
        "af_content_id": "com.acme.pro.month",
        "af_order_id": "2000000812345678",
        "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        "original_transaction_id": "2000000700000001",
        "store": "app_store",
        "environment": "production",
    }


def test_sends_an_android_refund_as_negative_revenue_to_api_2() -> None:
    settings = {**API2, "revenue_basis": "local", "sharing_filter": ["partner_int"]}
    (request,) = planned(provider, settings, refund(**ANDROID)).requests
    assert request.url == "https://api2.appsflyer.com/inappevent/com.acme.app"
    assert dict(request.headers)["authentication"] == "android-key"
    body, value = sent(request)
    assert body == {
        "appsflyer_id": "1767225000123-4567890123456789012",
        "customer_user_id": "acct-40001",
        "eventName": "subscription_refunded",
        "eventTime": "2026-01-01 00:00:00.000",
        "eventCurrency": "GBP",
        "af_events_api": "true",
        "advertising_id": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
        "sharing_filter": ["partner_int"],
    }
    assert (value["af_revenue"], value["af_currency"]) == ("-7.99", "GBP")


def test_sends_a_trial_start_without_money() -> None:
    (request,) = planned(provider, SETTINGS, trial(properties=UID)).requests
    body, value = sent(request)
    assert "eventCurrency" not in body
    assert not {"af_revenue", "af_currency"} & value.keys()
    assert value["af_content_id"] == "com.acme.pro.month"


@pytest.mark.parametrize(
    ("amount", "written"),
    [(9.9, "9.9"), (1200, "1200"), (12.345678, "12.34568"), (0, None), (0.000001, None)],
)
def test_writes_revenue_plainly(amount: float, written: str | None) -> None:
    money = {"value": amount, "value_usd": amount, "currency": "JPY"}
    settings = {**SETTINGS, "revenue_basis": "local"}
    (request,) = planned(provider, settings, event(properties=UID, revenue=money)).requests
    body, value = sent(request)
    assert value.get("af_revenue") == written
    assert body.get("eventCurrency") == value.get("af_currency") == (written and "JPY")


def test_sends_no_time_that_is_still_to_come() -> None:
    (request,) = planned(provider, SETTINGS, event(properties=UID, time=NOW + 60)).requests
    assert "eventTime" not in sent(request)[0]


def test_sends_sandbox_events_with_their_own_key_to_api_2() -> None:
    settings = {**SETTINGS, "sandbox_dev_key": "sandbox-key"}
    (request,) = planned(provider, settings, event(properties=UID, environment="sandbox")).requests
    assert request.url == "https://api2.appsflyer.com/inappevent/id1234509876"
    assert dict(request.headers)["authentication"] == "sandbox-key"


@pytest.mark.parametrize(
    ("change", "missing_from_value", "missing_from_body"),
    [
        ({"product_id": "p" * 256}, set(), set()),
        ({"product_id": "é" * 225}, {"environment"}, set()),
        ({"product_id": "é" * 256}, {"environment", "store", "original_transaction_id"}, set()),
        ({"identity_id": "é" * 256, "product_id": "é" * 200}, CUSTOM, {"customer_user_id"}),
        ({"identity_id": "é" * 80, "product_id": "é" * 256}, CUSTOM, {"idfv", "idfa"}),
    ],
)
def test_keeps_to_one_kilobyte(
    change: dict[str, str], missing_from_value: set[str], missing_from_body: set[str]
) -> None:
    full, all_members = sent(planned(provider, SETTINGS, event(properties=UID)).requests[0])
    (request,) = planned(provider, SETTINGS, event(properties=UID, **change)).requests
    assert len(request.body) <= 1024
    body, value = sent(request)
    assert all_members.keys() - value.keys() == missing_from_value
    assert full.keys() - body.keys() == missing_from_body


def test_rejects_what_no_dropping_makes_fit() -> None:
    plan = planned(provider, SETTINGS, event(properties=UID, product_id="\U0001f600" * 256))
    assert plan.requests == ()
    (outcome,) = plan.unsent.values()
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "too_large"


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {}, "no AppsFlyer id (set the appsFlyerUserID property)"),
        (
            {"properties": {"_q_appsflyer_user_id": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11"}},
            {},
            "no AppsFlyer id (set the appsFlyerUserID property)",
        ),
        (ANDROID, {"app_id_android": None}, "no AppsFlyer app id for Android"),
        (
            {"properties": UID, "environment": "sandbox"},
            {},
            "sandbox event, and these settings send production events only",
        ),
        ({"platform": "Stripe"}, {}, "AppsFlyer takes events of iOS and Android only"),
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
        ({"app_id_ios": None, "app_id_android": ""}, "app_id_ios or app_id_android"),
        ({"app_id_ios": "com.acme.app"}, "id1234509876"),
        ({"app_id_android": "id1234509876"}, "package name"),
        ({"s2s_token": None}, "dev_key .* or s2s_token is needed for iOS"),
        ({"s2s_token": None, "dev_key_ios": "k"}, "s2s_token is needed for Android"),
        ({"sharing_filter": ["p"] * 51}, "sharing_filter"),
        ({"dev_key": "two\nlines"}, "dev_key"),
    ],
)
def test_refuses_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read_settings(provider.title, provider.settings, {**SETTINGS, **change})


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, "ok", Delivered()),
        (200, "", Delivered()),
        (202, {"anything": 1}, Delivered()),
        (400, "Failed to Authenticate", Misconfigured("unauthorized", "Failed to Authenticate")),
        (400, "devkey does not match", Misconfigured),
        (400, "Invalid token", Misconfigured),
        (400, "wrong app_id for this key", Misconfigured),
        (400, "appsflyer_id is a mandatory field", Rejected),
        (400, "Unexpected token } in JSON at position 3", Rejected),
        (400, "", Rejected("bad_request")),
        (401, "Unauthorized", Misconfigured("unauthorized", "Unauthorized")),
        (
            403,
            "Forbidden",
            Misconfigured("forbidden", "Forbidden: the account's plan takes no such events"),
        ),
        (404, "", Misconfigured("not_found", "app id not found in the account")),
        (413, "x" * 900, Rejected("too_large", "x" * 200)),
        (422, "no", Rejected("bad_request", "no")),
        (429, "", Retry("throttled", after=timedelta(seconds=60), throttled=True)),
        (500, "<html>oops</html>", Retry("server_error", "<html>oops</html>")),
        (408, "", Retry("timeout")),
        (503, b"\xff\x00", Retry),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict | type[Verdict]) -> None:
    found = classified(provider, SETTINGS, status, body, event(properties=UID))
    assert (type(found) if isinstance(verdict, type) else found) == verdict


def test_waits_as_long_as_it_is_told() -> None:
    sample = event(properties=UID)
    found = classified(provider, SETTINGS, 429, "", sample, headers={"retry-after": "7"})
    assert found == Retry("throttled", "", timedelta(seconds=7), throttled=True)
