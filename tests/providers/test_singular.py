"""Singular: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest

from providers.kit import (
    Delivered,
    InvalidSettings,
    Misconfigured,
    Partial,
    Rejected,
    Request,
    Retry,
    Skipped,
    Verdict,
    read_settings,
)
from providers.singular import provider
from tests.providers.samples import classified, event, planned, refund, trial

SETTINGS: dict[str, Any] = {
    "sdk_key": "acme_1a2b3c4d",
    "app_id_ios": "com.acme.app",
    "app_id_android": "com.acme.android",
}
SDID = {"singular_device_id": "3f1d9c2e-7a5b-4c8d-9e0f-1a2b3c4d5e6f"}
ANDROID = {
    "platform": "Android",
    "advertiser_id": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
    "device_id": "9a4c1e07b2d85f36",
}
NO_IDS = {"advertiser_id": None, "device_id": None}


def form(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=True))


def test_sends_a_renewal_by_singular_device_id_to_v2() -> None:
    (request,) = planned(provider, SETTINGS, event(properties=SDID, ip="8.8.8.8")).requests
    assert (request.method, request.url) == ("POST", "https://s2s.singular.net/api/v2/evt")
    assert dict(request.headers) == {"Content-Type": "application/x-www-form-urlencoded"}
    sent = form(request)
    assert json.loads(sent.pop("e")) == {
        "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        "product_id": "com.acme.pro.month",
        "original_transaction_id": "2000000700000001",
        "store": "app_store",
        "environment": "production",
    }
    assert sent == {
        "a": "acme_1a2b3c4d",
        "p": "iOS",
        "i": "com.acme.app",
        "n": "subscription_renewed",
        "sdid": "3f1d9c2e-7a5b-4c8d-9e0f-1a2b3c4d5e6f",
        "ip": "8.8.8.8",
        "umilisec": "1767225600000",
        "att_authorization_status": "0",
        "is_revenue_event": "true",
        "amt": "9.99",
        "cur": "USD",
        "purchase_product_id": "com.acme.pro.month",
        "purchase_transaction_id": "2000000812345678",
        "custom_user_id": "acct-40001",
    }


def test_sends_an_android_refund_as_a_negative_amount_to_v1() -> None:
    sample = refund(
        properties={"_q_app_set_id": "c5e1a2b3-0000-4c8d-9e0f-1a2b3c4d5e6f"},
        device={"os_version": "14", "att_status": 3, "limit_ad_tracking": True},
        **ANDROID,
    )
    settings = {**SETTINGS, "revenue_basis": "local"}
    (request,) = planned(provider, settings, sample).requests
    assert request.url == "https://s2s.singular.net/api/v1/evt"
    sent = form(request)
    del sent["e"]
    assert sent == {
        "a": "acme_1a2b3c4d",
        "p": "Android",
        "i": "com.acme.android",
        "n": "subscription_refunded",
        "aifa": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
        "andi": "9a4c1e07b2d85f36",
        "asid": "c5e1a2b3-0000-4c8d-9e0f-1a2b3c4d5e6f",
        "country": "GB",
        "ve": "14",
        "utime": "1767225600",
        "is_revenue_event": "true",
        "amt": "-7.99",
        "cur": "GBP",
        "purchase_product_id": "com.acme.pro.month",
        "purchase_transaction_id": "2000000812345678",
        "custom_user_id": "acct-40001",
        "data_sharing_options": '{"limit_data_sharing":true}',
    }


def test_sends_a_trial_start_of_a_user_who_denied_tracking() -> None:
    sample = trial(device={"att_status": 2}, ip="2a00:1450::1")
    (request,) = planned(provider, SETTINGS, sample).requests
    sent = form(request)
    del sent["e"]
    assert sent == {
        "a": "acme_1a2b3c4d",
        "p": "iOS",
        "i": "com.acme.app",
        "n": "trial_started",
        "idfv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "country": "GB",
        "att_authorization_status": "2",
        "utime": "1767225600",
        "custom_user_id": "acct-40001",
    }


@pytest.mark.parametrize(
    ("version", "properties", "path"),
    [
        ("auto", SDID, "v2"),
        ("auto", {}, "v1"),
        ("v1", SDID, "v1"),
        ("v2", SDID, "v2"),
    ],
)
def test_chooses_the_version(version: str, properties: dict[str, str], path: str) -> None:
    settings = {**SETTINGS, "api_version": version}
    (request,) = planned(provider, settings, event(properties=properties)).requests
    assert request.url == f"https://s2s.singular.net/api/{path}/evt"
    assert ("sdid" in form(request), "idfv" in form(request)) == (path == "v2", path == "v1")


def test_takes_the_singular_device_id_from_the_property_named() -> None:
    settings = {**SETTINGS, "user_property_for_sdid": "my_sdid"}
    sample = event(properties={"my_sdid": "0aa1", **SDID})
    (request,) = planned(provider, settings, sample).requests
    assert form(request)["sdid"] == "0aa1"


def test_sends_sandbox_events_with_their_own_key() -> None:
    settings = {**SETTINGS, "sandbox_sdk_key": "acme_sandbox"}
    plan = planned(provider, settings, event(environment="sandbox"), event())
    assert [form(request)["a"] for request in plan.requests] == ["acme_sandbox", "acme_1a2b3c4d"]


def test_skips_a_name_that_singular_would_not_take() -> None:
    plan = planned(provider, SETTINGS, event(event_name="a" * 33))
    assert plan.requests == ()
    message = f"{'a' * 33} will not do (names are 1 to 32 ASCII characters): set event_names"
    assert plan.unsent == {0: Skipped("no_mapping", message)}


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (NO_IDS, {}, "no Singular device id (sdid, idfa/idfv, aifa/andi)"),
        ({}, {"api_version": "v2"}, "no Singular device id (sdid, idfa/idfv, aifa/andi)"),
        (
            {"properties": SDID, **NO_IDS},
            {"api_version": "v1"},
            "no Singular device id (sdid, idfa/idfv, aifa/andi)",
        ),
        ({}, {"app_id_ios": None}, "no Singular app id for iOS"),
        (
            {"environment": "sandbox"},
            {},
            "sandbox event, and these settings send production events only",
        ),
        ({"platform": "Stripe"}, {}, "Singular takes events of iOS and Android only"),
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
        ({"sdk_key": " "}, "Singular sdk key is not set"),
        ({"app_id_ios": None, "app_id_android": None}, "app_id_ios or app_id_android"),
        ({"api_version": "v3"}, "api_version"),
        ({"event_names": {"trial_started": "x" * 33}}, "1 to 32 ASCII"),
        ({"event_names": {"trial_started": "début"}}, "1 to 32 ASCII"),
    ],
)
def test_refuses_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read_settings(provider.title, provider.settings, {**SETTINGS, **change})


def failed(reason: str) -> dict[str, str]:
    return {"status": "error", "reason": reason}


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"status": "ok"}, Delivered()),
        (
            200,
            failed("missing argument: a"),
            Misconfigured("unauthorized", "missing argument: a"),
        ),
        (200, failed("Missing argument: a."), Misconfigured),
        (200, failed("Invalid SDK key"), Misconfigured("unauthorized", "Invalid SDK key")),
        (200, failed("api_key not found"), Misconfigured),
        (200, failed("missing argument: aifa"), Rejected("bad_request", "missing argument: aifa")),
        (
            200,
            failed("missing argument: ip"),
            Rejected("no_user_ip", "no user IP (missing argument: ip)"),
        ),
        (200, failed("invalid platform: web"), Rejected("bad_request", "invalid platform: web")),
        (200, failed("no device ID supplied"), Rejected),
        (200, failed("platform: iOS should have an idfv param"), Rejected),
        (200, failed("internal problem"), Partial({0: Retry("refused", "internal problem")})),
        (200, {"status": "error"}, Partial({0: Retry("refused", '{"status": "error"}')})),
        (200, "OK", Retry("unexpected_answer", "OK")),
        (200, {"result": 1}, Retry("unexpected_answer", '{"result": 1}')),
        (200, '{"status":"o', Retry("unexpected_answer", '{"status":"o')),
        (400, "", Rejected("bad_request")),
        (400, failed("missing argument: a"), Misconfigured),
        (404, "", Rejected("not_found")),
        (413, "", Rejected("too_large")),
        (401, "", Misconfigured("unauthorized")),
        (403, "<html>", Misconfigured("forbidden", "<html>")),
        (429, "", Retry("throttled", after=timedelta(seconds=2), throttled=True)),
        (408, "", Retry("timeout")),
        (500, {"status": "ok"}, Retry),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict | type[Verdict]) -> None:
    found = classified(provider, SETTINGS, status, body)
    assert (type(found) if isinstance(verdict, type) else found) == verdict


def test_waits_as_long_as_it_is_told() -> None:
    found = classified(provider, SETTINGS, 429, "slow", headers={"retry-after": "30"})
    assert found == Retry("throttled", "slow", timedelta(seconds=30), throttled=True)
