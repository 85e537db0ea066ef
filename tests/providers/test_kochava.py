"""Kochava: what is sent, and what each answer means."""

import hashlib
import hmac
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
    Verdict,
    read_settings,
)
from providers.kochava import provider
from tests.providers.samples import classified, event, planned, refund, trial

SETTINGS: dict[str, Any] = {
    "app_guid_ios": "koacme-ios-7x2lq",
    "app_guid_android": "koacme-android-9k1vd",
}
KOCHAVA_ID = "KI1767225000t3c9a1e7b2d4c6e8f0a1b2c3d4e5f60"
ANDROID = {
    "platform": "Android",
    "advertiser_id": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
    "device_id": "9a4c1e07b2d85f36",
}
NO_IDS = {"advertiser_id": None, "device_id": None}


def test_sends_a_renewal() -> None:
    sample = event(
        properties={"_q_kochava_device_id": KOCHAVA_ID}, device={"att_status": 3}, ip="8.8.8.8"
    )
    (request,) = planned(provider, SETTINGS, sample).requests
    assert (request.method, request.url) == ("POST", "https://control.kochava.com/track/json")
    assert dict(request.headers) == {"Content-Type": "application/json"}
    assert json.loads(request.body) == {
        "action": "event",
        "kochava_app_id": "koacme-ios-7x2lq",
        "kochava_device_id": KOCHAVA_ID,
        "data": {
            "device_ids": {
                "idfa": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
                "idfv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
            },
            "device_ua": "",
            "device_ver": "",
            "origination_ip": "8.8.8.8",
            "usertime": 1767225600,
            "app_tracking_transparency": {"att": True},
            "event_name": "subscription_renewed",
            "currency": "USD",
            "event_data": {
                "sum": 9.99,
                "price": 9.99,
                "currency": "USD",
                "name": "com.acme.pro.month",
                "content_id": "com.acme.pro.month",
                "order_id": "2000000812345678",
                "original_transaction_id": "2000000700000001",
                "user_id": "acct-40001",
                "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
                "store": "app_store",
                "environment": "production",
            },
        },
    }


def test_sends_an_android_refund_as_a_negative_sum() -> None:
    device = {
        "model": "Pixel 8",
        "os_version": "14",
        "app_version": "5.4.1",
        "user_agent": "Acme/5 (Linux)",
        "limit_ad_tracking": False,
        "att_status": 3,
    }
    settings = {**SETTINGS, "revenue_basis": "local"}
    (request,) = planned(provider, settings, refund(device=device, **ANDROID)).requests
    body = json.loads(request.body)
    value = body["data"].pop("event_data")
    assert body == {
        "action": "event",
        "kochava_app_id": "koacme-android-9k1vd",
        "kochava_device_id": "",
        "data": {
            "device_ids": {
                "adid": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
                "android_id": "9a4c1e07b2d85f36",
            },
            "device_ua": "Acme%2F5%20%28Linux%29",
            "device_ver": "Pixel 8-Android-14",
            "origination_ip": "",
            "usertime": 1767225600,
            "app_version": "5.4.1",
            "device_limit_tracking": False,
            "event_name": "subscription_refunded",
            "currency": "GBP",
        },
    }
    assert (value["sum"], value["price"], value["currency"]) == (-7.99, -7.99, "GBP")


def test_sends_a_trial_start_without_money() -> None:
    (request,) = planned(provider, SETTINGS, trial(device={"att_status": 2})).requests
    data = json.loads(request.body)["data"]
    assert "currency" not in data
    assert not {"sum", "price", "currency"} & data["event_data"].keys()
    assert data["app_tracking_transparency"] == {"att": False}
    assert data["device_ids"] == {"idfv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F"}


def test_sends_with_a_kochava_id_alone() -> None:
    sample = event(properties={"_q_kochava_device_id": KOCHAVA_ID}, **NO_IDS)
    (request,) = planned(provider, SETTINGS, sample).requests
    body = json.loads(request.body)
    assert (body["kochava_device_id"], body["data"]["device_ids"]) == (KOCHAVA_ID, {})


def test_signs_exactly_the_bytes_it_sends() -> None:
    settings = {**SETTINGS, "api_key": "the-key", "api_secret": "the-secret"}
    sample = event(product_id="a/b\\/é")
    (request,) = planned(provider, settings, sample).requests
    assert b"a\\/b" in request.body
    assert b"/" not in request.body.replace(b"\\/", b"")
    assert json.loads(request.body)["data"]["event_data"]["content_id"] == "a/b\\/é"
    signed = "the-secret" + hashlib.sha1(request.body).hexdigest()
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "Kochava-Api-Key": "the-key",
        "Kochava-Auth-Token": hmac.new(b"the-key", signed.encode(), "sha256").hexdigest(),
    }


def test_sends_sandbox_events_to_their_own_app() -> None:
    settings = {**SETTINGS, "sandbox_app_guid_ios": "koacme-test"}
    sandbox = {"environment": "sandbox"}
    plan = planned(provider, settings, event(**sandbox), event(**sandbox, **ANDROID))
    (request,) = plan.requests
    assert json.loads(request.body)["kochava_app_id"] == "koacme-test"
    assert plan.unsent == {1: Skipped("not_configured", "no Kochava sandbox app GUID for Android")}


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (NO_IDS, {}, "no Kochava device id and no advertising id"),
        (ANDROID, {"app_guid_android": None}, "no Kochava app GUID for Android"),
        (
            {"environment": "sandbox"},
            {},
            "sandbox event, and these settings send production events only",
        ),
        ({"platform": "Stripe"}, {}, "Kochava takes events of iOS and Android only"),
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
        ({"app_guid_ios": None, "app_guid_android": " "}, "app_guid_ios or app_guid_android"),
        ({"api_key": "k"}, "set both api_key and api_secret"),
        ({"api_secret": "s"}, "set both api_key and api_secret"),
        ({"revenue_basis": "eur"}, "revenue_basis"),
    ],
)
def test_refuses_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read_settings(provider.title, provider.settings, {**SETTINGS, **change})


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"success": "1"}, Delivered()),
        (200, {"success": 1}, Delivered()),
        (200, {"success": True, "error": ""}, Delivered()),
        (200, {}, Delivered()),
        (200, "", Delivered()),
        (200, "<html>thanks</html>", Delivered("<html>thanks</html>")),
        (200, {"success": "0", "error": "bad event"}, Rejected("refused", "bad event")),
        (200, {"success": "0"}, Rejected("refused", '{"success": "0"}')),
        (200, {"error": True}, Rejected("refused", '{"error": true}')),
        (200, {"error": ["a", None, "b"]}, Rejected("refused", "a; b")),
        (200, {"success": "0", "error": "unknown App ID"}, Misconfigured),
        (
            400,
            {"success": "0", "error": "invalid kochava_app_id"},
            Misconfigured("unknown_app", "invalid kochava_app_id"),
        ),
        (400, {"error": {"event_name": "missing"}}, Rejected("bad_request", "event_name: missing")),
        (422, "app GUID not found", Misconfigured("unknown_app", "app GUID not found")),
        (422, "", Rejected("bad_request")),
        (404, "", Misconfigured("unknown_app")),
        (401, {"error": "no"}, Misconfigured("unauthorized", "no")),
        (403, "", Misconfigured("forbidden")),
        (413, "", Rejected("too_large")),
        (429, "", Retry("throttled", after=timedelta(seconds=7), throttled=True)),
        (408, "", Retry("timeout")),
        (503, '{"success":', Retry("unavailable", '{"success":')),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict | type[Verdict]) -> None:
    found = classified(provider, SETTINGS, status, body)
    assert (type(found) if isinstance(verdict, type) else found) == verdict


def test_waits_as_long_as_it_is_told() -> None:
    found = classified(provider, SETTINGS, 429, "slow", headers={"retry-after": "30"})
    assert found == Retry("throttled", "slow", timedelta(seconds=30), throttled=True)
