"""Tenjin: what is sent, and what each answer means."""

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest

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
from providers.tenjin import provider
from tests.providers.samples import NOW, classified, event, planned, refund, trial

SETTINGS: dict[str, Any] = {
    "ios_sdk_key": "A1B2C3D4E5F6G7H8I9J0K1L2M3N4O5P6",
    "ios_bundle_id": "com.acme.app",
    "android_sdk_key": "a9b8c7d6e5f4g3h2",
}
AIID = {"_q_tenjin_aiid": "7c0e5b7f2a9d4c13b6a1f0d2e3948576"}
ZERO = "00000000-0000-0000-0000-000000000000"
ANDROID = {
    "platform": "Android",
    "advertiser_id": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
    "device_id": "9a4c1e07b2d85f36",
    "properties": AIID,
}
DEVICE = {"app_id": "com.acme.android", "os_version": "14"}


def form(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=True))


def test_sends_a_renewal_as_a_purchase() -> None:
    device = {
        "os_version": "17.2",
        "app_version": "3.4.1+7&beta",
        "limit_ad_tracking": False,
        "att_status": 3,
        "locale": "en_GB",
        "model": "iPhone15,3",
    }
    sample = event(properties=AIID, device=device, ip="8.8.8.8")
    (request,) = planned(provider, SETTINGS, sample).requests
    assert (request.method, request.url) == ("POST", "https://track.tenjin.com/v0/purchase")
    assert dict(request.headers) == {
        "Content-Type": "application/x-www-form-urlencoded",
        "Authorization": "Basic QTFCMkMzRDRFNUY2RzdIOEk5SjBLMUwyTTNONE81UDY6",
    }
    assert b"app_version=3.4.1%2B7%26beta&" in request.body
    assert form(request) == {
        "analytics_installation_id": "7c0e5b7f2a9d4c13b6a1f0d2e3948576",
        "advertising_id": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
        "developer_device_id": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "bundle_id": "com.acme.app",
        "platform": "ios",
        "os_version": "17.2",
        "sdk_version": "server",
        "limit_ad_tracking": "0",
        "tracking_status": "3",
        "app_version": "3.4.1+7&beta",
        "country": "GB",
        "ip_address": "8.8.8.8",
        "locale": "en_GB",
        "device_model": "iPhone15,3",
        "customer_user_id": "acct-40001",
        "product_id": "com.acme.pro.month",
        "price": "9.99",
        "quantity": "1",
        "currency": "USD",
    }


def test_sends_an_android_refund_as_an_event_without_money() -> None:
    (request,) = planned(provider, SETTINGS, refund(device=DEVICE, **ANDROID)).requests
    assert request.url == "https://track.tenjin.com/v0/event"
    assert form(request) == {
        "analytics_installation_id": "7c0e5b7f2a9d4c13b6a1f0d2e3948576",
        "advertising_id": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
        "bundle_id": "com.acme.android",
        "platform": "android",
        "os_version": "34",
        "sdk_version": "server",
        "country": "GB",
        "customer_user_id": "acct-40001",
        "event": "subscription_refunded",
    }


def test_sends_the_zero_id_of_a_user_who_opted_out() -> None:
    sample = trial(**ANDROID, device={**DEVICE, "limit_ad_tracking": True}, identity_id=None)
    settings = {**SETTINGS, "android_package": "com.acme.other"}
    (request,) = planned(provider, settings, sample).requests
    sent = form(request)
    assert (sent["advertising_id"], sent["limit_ad_tracking"]) == (ZERO, "1")
    assert (sent["event"], sent["bundle_id"]) == ("trial_started", "com.acme.other")
    assert "customer_user_id" not in sent, "the platform's id is anonymous"


@pytest.mark.parametrize(
    ("version", "sent"),
    [("14", "34"), ("8.1.0", "27"), ("34", "34"), ("", ""), ("12.0", "31"), ("7.1.2", "25")],
)
def test_sends_androids_api_level(version: str, sent: str) -> None:
    device = {**DEVICE, "os_version": version}
    (request,) = planned(provider, SETTINGS, event(**ANDROID, device=device)).requests
    assert form(request)["os_version"] == sent


def test_sends_what_was_paid_in_local_currency_after_commission() -> None:
    settings = {**SETTINGS, "revenue_basis": "proceeds", "currency_basis": "local"}
    (request,) = planned(provider, settings, event(properties=AIID)).requests
    sent = form(request)
    assert (sent["price"], sent["currency"], sent["postcut"]) == ("6.79", "GBP", "1")


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"revenue": None}, {}),
        ({"revenue": {"value": 0, "value_usd": 0, "currency": "USD"}}, {}),
        (
            {
                "event_name": "subscription_upgraded",
                "revenue": {"value": -5, "value_usd": -5, "currency": "USD"},
            },
            {},
        ),
        ({}, {"send_revenue": False}),
        ({}, {"no_revenue_events": ["subscription_renewed"]}),
    ],
)
def test_sends_an_event_where_there_is_nothing_to_count(
    changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    sample = event(**{"properties": AIID, **changes})
    (request,) = planned(provider, {**SETTINGS, **settings}, sample).requests
    assert request.url == "https://track.tenjin.com/v0/event"
    sent = form(request)
    assert sent["event"] == sample.name
    assert not {"price", "quantity", "currency"} & sent.keys()


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"properties": {}}, {}, "no Tenjin analytics installation id (set _q_tenjin_aiid)"),
        ({"device": None}, {}, "no bundle id configured"),
        ({}, {"android_sdk_key": None}, "no Tenjin SDK key for Android"),
        (
            {"advertiser_id": ZERO},
            {"zero_ad_id": False},
            "no advertising id (IDFA or GAID), and zero_ad_id is off",
        ),
        (
            {"event_name": "in_app_refunded", "revenue": None},
            {"refund_mode": "skip"},
            "refunds are switched off (refund_mode)",
        ),
        ({"time": NOW - 7 * 86_400 - 1}, {}, "older than 7 days, which Tenjin does not take"),
        (
            {"environment": "sandbox"},
            {},
            "sandbox event, and these settings send production events only",
        ),
        ({"platform": "Stripe"}, {}, "Tenjin takes events of iOS and Android only"),
    ],
)
def test_skips(changes: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    sample = event(**{**ANDROID, "device": DEVICE, **changes})
    plan = planned(provider, {**SETTINGS, **settings}, sample)
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ios_sdk_key": None, "android_sdk_key": None}, "ios_sdk_key or android_sdk_key"),
        ({"ios_bundle_id": ""}, "ios_bundle_id is needed"),
        ({"ios_sdk_key": "too-short"}, "must be the app's SDK key"),
        ({"refund_mode": "negative"}, "refund_mode"),
    ],
)
def test_refuses_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read_settings(provider.title, provider.settings, {**SETTINGS, **change})


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"code": 200}, Delivered()),
        (200, {"code": "200", "error": ""}, Delivered()),
        (200, {"code": 400, "error": "no price"}, Rejected("refused", "no price")),
        (200, {"error": {"price": "bad"}}, Rejected("refused", '{"error": {"price": "bad"}}')),
        (200, {"code": 200, "error": "no"}, Rejected("refused", "no")),
        (200, {"code": 401}, Misconfigured("unauthorized", '{"code": 401}')),
        (200, {"code": 403, "message": "off"}, Misconfigured("forbidden", "off")),
        (200, {"code": 503}, Retry("unavailable", '{"code": 503}')),
        (200, {"code": 10**12}, Retry("bad_status", '{"code": 1000000000000}')),
        (200, {"code": -500}, Rejected("refused", '{"code": -500}')),
        (200, {"code": True}, Rejected("refused", '{"code": true}')),
        (200, {"code": [401]}, Rejected("refused", '{"code": [401]}')),
        (200, "", Delivered("empty answer")),
        (200, "<html>ok</html>", Delivered("<html>ok</html>")),
        (200, {}, Delivered("{}")),
        (204, "", Delivered()),
        (302, "", Misconfigured),
        (
            400,
            {"code": 400, "error": "bundle_id is missing"},
            Rejected("bad_request", "bundle_id is missing"),
        ),
        (404, "x" * 400, Rejected("not_found", "x" * 300)),
        (422, "", Rejected("bad_request")),
        (
            401,
            {"code": 401, "error": "unauthorized"},
            Misconfigured("unauthorized", "unauthorized"),
        ),
        (403, "", Misconfigured("forbidden")),
        (413, "", Rejected("too_large")),
        (414, "", Rejected("bad_request")),
        (429, "", Retry("throttled", after=timedelta(seconds=60), throttled=True)),
        (500, "", Retry("server_error")),
        (503, '{"code":', Retry("unavailable", '{"code":')),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict | type[Verdict]) -> None:
    found = classified(provider, SETTINGS, status, body, event(properties=AIID))
    assert (type(found) if isinstance(verdict, type) else found) == verdict


def test_retries_an_unclear_answer_where_asked_to() -> None:
    settings = {**SETTINGS, "strict_ack": True}
    found = classified(provider, settings, 200, "hello", event(properties=AIID))
    assert found == Retry("unexpected_answer", "hello")


def test_waits_as_long_as_it_is_told() -> None:
    sample = event(properties=AIID)
    found = classified(provider, SETTINGS, 429, "", sample, headers={"retry-after": "7"})
    assert found == Retry("throttled", "", timedelta(seconds=7), throttled=True)
