"""Branch: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.branch import provider
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
from tests.providers.samples import NOW, PAGE, classified, event, planned, refund, trial

SETTINGS: dict[str, Any] = {"branch_key": "key_live_a1B2c3D4e5F6g7H8"}
TEST_KEY = "key_test_z9Y8x7W6"
ANDROID = {
    "platform": "Android",
    "advertiser_id": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
    "device_id": "9a4c1e07b2d85f36",
}
NO_IDS = {"identity_id": None, "user_id": None, "advertiser_id": None, "device_id": None}


def test_sends_a_renewal_as_a_custom_event_with_revenue() -> None:
    (request,) = planned(provider, SETTINGS, event(ip="8.8.8.8")).requests
    assert (request.method, request.url) == ("POST", "https://api2.branch.io/v2/event/custom")
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "Accept": "application/json",
    }
    assert json.loads(request.body) == {
        "branch_key": "key_live_a1B2c3D4e5F6g7H8",
        "name": "subscription_renewed",
        "user_data": {
            "os": "iOS",
            "environment": "FULL_APP",
            "developer_identity": "acct-40001",
            "idfa": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
            "idfv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
            "ip": "8.8.8.8",
            "country": "GB",
        },
        "event_data": {
            "transaction_id": "2000000812345678",
            "revenue": 9.99,
            "currency": "USD",
            "description": "com.acme.pro.month",
        },
        "custom_data": {
            "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
            "product_id": "com.acme.pro.month",
            "original_transaction_id": "2000000700000001",
            "store": "app_store",
            "event_time": "2026-01-01T00:00:00Z",
        },
    }


def test_sends_an_android_refund_without_revenue() -> None:
    device = {
        "os_version": "14",
        "locale": "pt_PT",
        "brand": "Google",
        "model": "Pixel 8",
        "app_version": "5.4.1",
        "user_agent": "Acme/5",
        "limit_ad_tracking": False,
    }
    settings = {**SETTINGS, "revenue_basis": "local"}
    (request,) = planned(provider, settings, refund(device=device, **ANDROID)).requests
    body = json.loads(request.body)
    assert request.url == "https://api2.branch.io/v2/event/custom"
    assert body["name"] == "subscription_refunded"
    assert body["user_data"] == {
        "os": "Android",
        "os_version": "14",
        "environment": "FULL_APP",
        "developer_identity": "acct-40001",
        "aaid": "1b6f7c2e-0d3a-4f5b-8c9d-2e1f0a9b8c7d",
        "android_id": "9a4c1e07b2d85f36",
        "limit_ad_tracking": False,
        "country": "GB",
        "language": "pt",
        "app_version": "5.4.1",
        "brand": "Google",
        "model": "Pixel 8",
        "user_agent": "Acme/5",
    }
    assert not {"revenue", "currency"} & body["event_data"].keys()
    assert body["custom_data"]["refund_amount"] == "7.99"
    assert body["custom_data"]["refund_currency"] == "GBP"


@pytest.mark.parametrize(
    ("name", "settings", "sent"),
    [
        ("trial_started", {}, [("standard", "START_TRIAL")]),
        ("trial_started", {"send_start_trial": True}, [("standard", "START_TRIAL")]),
        ("subscription_started", {}, [("standard", "SUBSCRIBE")]),
        ("trial_converted", {}, [("standard", "SUBSCRIBE")]),
        ("in_app_purchase", {}, [("standard", "PURCHASE")]),
        ("trial_canceled", {}, [("custom", "trial_canceled")]),
        ("trial_expired", {"event_names": {"trial_expired": "SHARE"}}, [("standard", "SHARE")]),
        ("trial_started", {"event_names": {"trial_started": "Trial"}}, [("custom", "Trial")]),
        (
            "trial_started",
            {"event_names": {"trial_started": "Trial"}, "send_start_trial": True},
            [("custom", "Trial"), ("standard", "START_TRIAL")],
        ),
    ],
)
def test_chooses_the_endpoint_by_name(
    name: str, settings: dict[str, Any], sent: list[tuple[str, str]]
) -> None:
    plan = planned(provider, {**SETTINGS, **settings}, event(event_name=name))
    assert [
        (request.url.rpartition("/")[2], json.loads(request.body)["name"])
        for request in plan.requests
    ] == sent
    assert [request.step for request in plan.requests] == list(range(len(sent)))


def test_sends_a_trial_start_without_money() -> None:
    (request,) = planned(provider, SETTINGS, trial()).requests
    assert not {"revenue", "currency"} & json.loads(request.body)["event_data"].keys()


def test_sends_sandbox_events_with_the_test_key() -> None:
    settings = {**SETTINGS, "test_branch_key": TEST_KEY}
    plan = planned(provider, settings, event(environment="sandbox"), event())
    keys = [json.loads(request.body)["branch_key"] for request in plan.requests]
    assert keys == [TEST_KEY, SETTINGS["branch_key"]]


@pytest.mark.parametrize(
    ("source", "identity"),
    [
        ("auto", "acct-40001"),
        ("identity_id", "acct-40001"),
        ("custom_user_id", "40001"),
        ("user_id", "QON_5b1f0c9e7a3d4d22"),
    ],
)
def test_takes_the_identity_from_the_source_chosen(source: str, identity: str) -> None:
    settings = {**SETTINGS, "user_id_source": source}
    sample = event(properties={"_q_custom_user_id": "40001"})
    (request,) = planned(provider, settings, sample).requests
    assert json.loads(request.body)["user_data"]["developer_identity"] == identity


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (NO_IDS, {}, "no Branch identity or device id"),
        (
            {"environment": "sandbox"},
            {},
            "sandbox event, and these settings send production events only",
        ),
        ({"time": NOW - 3 * 86_400 - 1}, {"max_event_age": 3}, "too old for Branch"),
        ({"platform": "Stripe"}, {}, "Branch takes events of iOS and Android only"),
    ],
)
def test_skips(changes: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    plan = planned(provider, {**SETTINGS, **settings}, event(**changes))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message


def test_rejects_a_name_that_branch_keeps_for_itself() -> None:
    plan = planned(provider, SETTINGS, event(event_name="install"))
    assert plan.requests == ()
    assert plan.unsent == {
        0: Rejected("bad_name", "Branch tracks install itself (set event_names)")
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"branch_key": None}, "Branch branch key is not set"),
        ({"branch_key": TEST_KEY}, "must be the live key"),
        ({"test_branch_key": "key_live_abc"}, "must be the test key"),
        ({"event_names": {"trial_expired": "open"}}, "Branch tracks open"),
        ({"user_id_source": "email"}, "user_id_source"),
        ({"max_event_age": 2**70}, "max_event_age"),
    ],
)
def test_refuses_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read_settings(provider.title, provider.settings, {**SETTINGS, **change})


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"branch_view_enabled": False}, Delivered()),
        (200, {"update_conversion_value": 3, "coarse_key": "low"}, Delivered()),
        (200, {}, Delivered()),
        (200, "", Delivered()),
        (200, PAGE, Retry("unexpected_answer", PAGE)),
        (
            400,
            {"error": {"branch_key": "missing required field"}},
            Misconfigured("unauthorized", "branch_key: missing required field"),
        ),
        (
            400,
            {"error": {"code": 400, "message": "Invalid Branch key"}},
            Misconfigured("unauthorized", "Invalid Branch key"),
        ),
        (400, {"error": "The Branch Key is missing"}, Misconfigured),
        (
            400,
            {"error": {"name": "missing required field"}},
            Rejected("bad_request", "name: missing required field"),
        ),
        (
            400,
            {
                "error": {
                    "user_data": {"developer_identity": "wrong field type"},
                    "event_data": {"currency": "not a valid option"},
                }
            },
            Rejected(
                "bad_request",
                "user_data.developer_identity: wrong field type; "
                "event_data.currency: not a valid option",
            ),
        ),
        (
            400,
            {"error": {"code": 400, "message": "Invalid event"}},
            Rejected("bad_request", "Invalid event"),
        ),
        (400, "<html>bad</html>", Rejected("bad_request", "<html>bad</html>")),
        (400, {"error": [1, None, {"a": ["b"]}]}, Rejected("bad_request", "1; a: b")),
        (401, "", Misconfigured("unauthorized")),
        (403, {"error": "no"}, Misconfigured("forbidden", "no")),
        (404, "", Misconfigured("not_found")),
        (413, "", Rejected("too_large")),
        (422, {"error": "x"}, Rejected("bad_request", "x")),
        (
            429,
            {"error": {"code": 429, "message": "Rate Limit Reached"}},
            Retry("throttled", "Rate Limit Reached", timedelta(seconds=10), throttled=True),
        ),
        (500, {"error": {"branch_key": "?"}}, Retry("server_error", "branch_key: ?")),
        (503, b"\xff", Retry),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict | type[Verdict]) -> None:
    found = classified(provider, SETTINGS, status, body)
    assert (type(found) if isinstance(verdict, type) else found) == verdict


def test_waits_as_long_as_it_is_told() -> None:
    found = classified(provider, SETTINGS, 429, "slow", headers={"retry-after": "7"})
    assert found == Retry("throttled", "slow", timedelta(seconds=7), throttled=True)
