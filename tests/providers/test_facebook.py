"""Facebook: what is sent, and what each answer means."""

import hashlib
import hmac
import json
from datetime import timedelta
from typing import Any

import pytest

from providers.facebook import provider
from providers.kit import (
    Delivered,
    Misconfigured,
    Rejected,
    Response,
    Retry,
    Skipped,
    Split,
    Verdict,
    read_settings,
)
from tests.providers.samples import NOW, classified, context, event, fault, planned, refund, trial

SETTINGS = {
    "dataset_id": "1234567890123456",
    "access_token": "EAAXinvented",
    "revenue_basis": "usd",
    "app_package_ios": "com.acme.app",
    "app_package_android": "com.acme.app",
    "app_version": "4.2",
}
ANDROID = {
    "platform": "Android",
    "advertiser_id": "38400000-8cf0-11bd-b23e-10b96e40000d",
    "device_id": "9a4c1e07b2d85f36",
    "device": {"os_version": "14"},
}
NOBODY = {"advertiser_id": None}
FIVE_MINUTES = timedelta(minutes=5)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sent(settings: dict[str, Any], *events: Any) -> list[dict[str, Any]]:
    plan = planned(provider, {**SETTINGS, **settings}, *events)
    assert not plan.unsent
    return [item for request in plan.requests for item in json.loads(request.body)["data"]]


def test_sends_a_renewal() -> None:
    device = {"os_version": "17.5", "locale": "en-GB", "timezone": "Europe/London"}
    (request,) = planned(provider, SETTINGS, event(device=device)).requests
    assert request.method == "POST"
    assert request.url == "https://graph.facebook.com/v25.0/1234567890123456/events"
    assert dict(request.headers) == {"Content-Type": "application/json"}
    assert json.loads(request.body) == {
        "access_token": "EAAXinvented",
        "data": [
            {
                "event_name": "Subscribe",
                "event_time": 1767225600,
                "action_source": "app",
                "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
                "user_data": {
                    "country": [sha("gb")],
                    "external_id": [sha("acct-40001")],
                    "madid": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
                },
                "custom_data": {
                    "value": 9.99,
                    "currency": "USD",
                    "content_type": "product",
                    "content_ids": ["com.acme.pro.month"],
                    "contents": [{"id": "com.acme.pro.month", "quantity": 1, "item_price": 9.99}],
                    "order_id": "2000000812345678",
                },
                "app_data": {
                    "advertiser_tracking_enabled": 1,
                    "application_tracking_enabled": 1,
                    "extinfo": [
                        *("i2", "com.acme.app", "4.2", "", "17.5", "", "en_GB", ""),
                        *("", "", "", "", "", "", "", "Europe/London"),
                    ],
                    "vendor_id": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
                },
            }
        ],
    }


def test_sends_a_trial_start_and_a_refund_from_android() -> None:
    events = sent({"refunds": "custom_event"}, trial(**ANDROID), refund(**ANDROID))
    started, refunded = events
    assert started["event_name"] == "StartTrial"
    assert started["custom_data"] == {
        "value": 0,
        "currency": "USD",
        "content_type": "product",
        "content_ids": ["com.acme.pro.month"],
    }
    assert started["app_data"] == {
        "advertiser_tracking_enabled": 1,
        "application_tracking_enabled": 1,
        "extinfo": ["a2", "com.acme.app", "4.2", "", "14", *[""] * 11],
    }
    assert started["user_data"]["madid"] == "38400000-8cf0-11bd-b23e-10b96e40000d"
    assert refunded["event_name"] == "SubscriptionRefunded"
    assert refunded["custom_data"] == {
        "currency": "USD",
        "refund_amount": 9.99,
        "order_id": "2000000812345678",
    }


@pytest.mark.parametrize(
    ("settings", "change", "path", "expected"),
    [
        ({"revenue_basis": "local"}, {}, "custom_data.currency", "GBP"),
        ({"revenue_basis": "local"}, {}, "custom_data.value", 7.99),
        ({"send_revenue": False}, {}, "custom_data.value", None),
        ({}, {"event_name": "in_app_purchase"}, "event_name", "Purchase"),
        (
            {"event_names": {"subscription_canceled": "Churned"}},
            {"event_name": "subscription_canceled", "revenue": None},
            "event_name",
            "Churned",
        ),
        (
            {"revenue_basis": "local"},
            {"event_name": "trial_started", "revenue": None},
            "custom_data.currency",
            "GBP",
        ),
        (
            {"no_revenue_events": ["trial_started"]},
            {"event_name": "trial_started", "revenue": None},
            "custom_data.value",
            None,
        ),
        ({}, {"event_name": "trial_started"}, "custom_data.value", 0),
        (
            {"event_names": {"subscription_canceled": "Churned"}},
            {"event_name": "subscription_canceled"},
            "custom_data.value",
            None,
        ),
        (
            {},
            {
                "event_name": "subscription_upgraded",
                "revenue": {"value": -3, "value_usd": -4, "currency": "GBP"},
            },
            "custom_data.value",
            None,
        ),
        ({}, {"properties": {"_q_email": " Mira@Example.COM "}}, "user_data.em", ["mira"]),
        ({}, {"properties": {"_q_email": sha("x")}}, "user_data.em", [sha("x")]),
        ({}, {"properties": {"_q_email": "not an address"}}, "user_data.em", None),
        ({}, {"properties": {"_q_email": "mira@example"}}, "user_data.em", None),
        ({}, {"properties": {"_q_email": "mira@example."}}, "user_data.em", None),
        (
            {},
            {"properties": {"_q_email": "mira@mail.co.uk"}},
            "user_data.em",
            [sha("mira@mail.co.uk")],
        ),
        ({}, {"properties": {"_q_name": "Mira O'Kafor-Lee"}}, "user_data.fn", [sha("mira")]),
        ({}, {"properties": {"_q_name": "Mira O'Kafor-Lee"}}, "user_data.ln", [sha("okaforlee")]),
        ({}, {"properties": {"_q_fb_anon_id": "XZ1"}}, "user_data.anon_id", "XZ1"),
        (
            {"user_property_for_anon_id": "fbAnonId"},
            {"properties": {"fbAnonId": "XZ2"}},
            "user_data.anon_id",
            "XZ2",
        ),
        ({}, {"ip": "8.8.8.8"}, "user_data.client_ip_address", "8.8.8.8"),
        ({}, {"ip": "192.168.0.4"}, "user_data.client_ip_address", None),
        ({}, {"device": {"user_agent": "UA"}}, "user_data.client_user_agent", "UA"),
        ({}, {"device": {"att_status": 3}}, "app_data.advertiser_tracking_enabled", 1),
        (
            {},
            {"device": {"limit_ad_tracking": True}, "ip": "8.8.8.8"},
            "app_data.advertiser_tracking_enabled",
            0,
        ),
        (
            {},
            {**ANDROID, "device": {"limit_ad_tracking": True}},
            "app_data.advertiser_tracking_enabled",
            0,
        ),
        ({}, {"time": NOW + 600}, "event_time", NOW),
        ({"default_os_version": "17"}, {}, "app_data.extinfo.4", "17"),
        ({}, {}, "app_data.extinfo.4", "0"),
        ({}, {"device": {"app_id": "com.acme.lite"}}, "app_data.extinfo.1", "com.acme.lite"),
        ({"data_processing_options": ["LDU"]}, {}, "data_processing_options", ["LDU"]),
        ({"data_processing_options": ["LDU"]}, {}, "data_processing_options_country", 0),
        (
            {"data_processing_options": ["LDU"], "data_processing_options_state": 1000},
            {},
            "data_processing_options_state",
            1000,
        ),
        ({}, {}, "data_processing_options_country", None),
    ],
)
def test_fields(settings: dict[str, Any], change: dict[str, Any], path: str, expected: Any) -> None:
    found: Any = sent(settings, event(**change))[0]
    for step in path.split("."):
        found = found[int(step)] if step.isdigit() else found.get(step)
    assert found == ([sha("mira@example.com")] if expected == ["mira"] else expected)


def test_without_tracking_permission_the_idfa_stays_here() -> None:
    denied = event(device={"att_status": 2}, properties={"_q_email": "mira@example.com"})
    (item,) = sent({}, denied)
    assert "madid" not in item["user_data"]
    assert item["app_data"]["advertiser_tracking_enabled"] == 0


def test_a_stripe_event_is_of_the_system_and_carries_no_device() -> None:
    (item,) = sent({}, event(platform="Stripe", properties={"_q_fb_anon_id": "XZ1"}))
    assert item["action_source"] == "system_generated"
    assert "app_data" not in item
    assert item["user_data"].keys() == {"external_id", "country"}


def test_a_token_is_signed_with_the_app_secret() -> None:
    settings = {**SETTINGS, "app_secret": "shh", "test_event_code": "TEST123"}
    (request,) = planned(provider, settings, event()).requests
    body = json.loads(request.body)
    proof = hmac.new(b"shh", b"EAAXinvented", hashlib.sha256).hexdigest()
    assert (body["appsecret_proof"], body["test_event_code"]) == (proof, "TEST123")


def test_sandbox_events_go_to_their_own_dataset() -> None:
    own = {"sandbox_dataset_id": "99999999", "sandbox_access_token": "EAAtest"}
    plan = planned(provider, {**SETTINGS, **own}, event(), event(environment="sandbox"))
    assert [r.url.split("/")[4] for r in plan.requests] == ["1234567890123456", "99999999"]
    assert json.loads(plan.requests[1].body)["access_token"] == "EAAtest"


def test_with_a_test_event_code_sandbox_events_go_along() -> None:
    settings = {**SETTINGS, "test_event_code": "TEST1"}
    (request,) = planned(provider, settings, event(), event(environment="sandbox")).requests
    assert request.events == (0, 1)


def test_a_request_carries_50_events() -> None:
    plan = planned(provider, SETTINGS, *[event(id=f"evt-{number}") for number in range(51)])
    assert [len(r.events) for r in plan.requests] == [50, 1]


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, NOBODY, "no advertising id, anonymous id or e-mail for Meta"),
        (
            {},
            {"advertiser_id": "00000000-0000-0000-0000-000000000000"},
            "no advertising id, anonymous id or e-mail for Meta",
        ),
        (
            {},
            {"platform": "Stripe", "identity_id": None, "user_id": None},
            "no advertising id, anonymous id or e-mail for Meta",
        ),
        (
            {"send_without_att": False},
            {"device": {"att_status": 0}},
            "no tracking permission (ATT), and send_without_att is off",
        ),
        (
            {},
            {"event_name": "in_app_refunded", "revenue": None},
            "Meta takes no refunds (set refunds to custom_event to send them)",
        ),
        (
            {},
            {"event_name": "in_app_purchase", "revenue": None},
            "Meta's Purchase needs an amount, and the event has none",
        ),
        ({}, {"time": NOW - 604801}, "older than 7 days, which Facebook does not take"),
        (
            {},
            {"event_name": "subscription_expired", "revenue": None},
            "event subscription_expired is switched off (set event_names to send it)",
        ),
        (
            {},
            {"event_name": "subscription_paused", "revenue": None},
            "no mapping for event subscription_paused (set it in event_names)",
        ),
        (
            {},
            {"environment": "sandbox"},
            "sandbox event, and these settings send production events only",
        ),
    ],
)
def test_skips(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    plan = planned(provider, {**SETTINGS, **settings}, event(**change))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message
    assert plan.requests == ()


def test_an_external_id_with_an_address_is_enough() -> None:
    (item,) = sent({}, event(**NOBODY, ip="8.8.8.8"))
    assert item["user_data"].keys() == {"country", "external_id", "client_ip_address"}


def test_an_event_just_seven_days_old_is_sent() -> None:
    assert sent({}, event(time=NOW - 604800))[0]["event_time"] == NOW - 604800


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"dataset_id": None}, "dataset_id", "Facebook dataset id is not set"),
        ({"dataset_id": "12 34"}, "dataset_id", "6 to 20 digits"),
        ({"access_token": ""}, "access_token", "Facebook access token is not set"),
        ({"api_version": "25"}, "api_version", "like v25.0"),
        ({"test_event_code": "T1"}, "test_event_code", "like TEST12345"),
        ({"sandbox_dataset_id": "99999999"}, "", "set both"),
        ({"refunds": "always"}, "refunds", "'skip' or 'custom_event'"),
        ({"event_names": {"trial_started": "x" * 51}}, "", "at most 50 characters"),
    ],
)
def test_settings_faults(change: dict[str, Any], key: str, words: str) -> None:
    where, text = fault(provider, {**SETTINGS, **change})
    assert where == key
    assert words in text


def error(code: Any, subcode: int | None = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": "Oh", "code": code, "error_subcode": subcode, **more}}


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"events_received": 2, "messages": [], "fbtrace_id": "A"}, Delivered()),
        (200, {"events_received": 2, "messages": ["low match"]}, Delivered("low match")),
        (200, {"events_received": 1}, Retry("unexpected_answer", '{"events_received": 1}')),
        (200, "<html></html>", Retry("unexpected_answer", "<html></html>")),
        (200, error(190), Misconfigured("unauthorized", "Oh (code 190)")),
        (
            401,
            error(190, 463, fbtrace_id="AX2"),
            Misconfigured("unauthorized", "Oh (code 190, subcode 463, trace AX2)"),
        ),
        (400, error(100, 33), Misconfigured("unauthorized", "Oh (code 100, subcode 33)")),
        (403, error(10), Misconfigured("unauthorized", "Oh (code 10)")),
        (403, error(200), Misconfigured("unauthorized", "Oh (code 200)")),
        (500, error(299), Misconfigured("unauthorized", "Oh (code 299)")),
        (400, error(3), Misconfigured("unauthorized", "Oh (code 3)")),
        (
            400,
            error(100, message="Invalid appsecret_proof provided in the API argument"),
            Misconfigured(
                "unauthorized", "Invalid appsecret_proof provided in the API argument (code 100)"
            ),
        ),
        (
            400,
            error(100, 2804003, is_transient=False, error_user_msg="Too old"),
            Split("too_old", "Too old (code 100, subcode 2804003)"),
        ),
        (
            400,
            error(100, 2804009, error_user_title="Missing Value"),
            Split("no_amount", "Oh: Missing Value (code 100, subcode 2804009)"),
        ),
        (400, error(100), Split("invalid_event", "Oh (code 100)")),
        (400, error(100, is_transient=True), Retry("server_error", "Oh (code 100)")),
        (500, error(1), Retry("server_error", "Oh (code 1)")),
        (400, error(2), Retry("server_error", "Oh (code 2)")),
        (400, error(4), Retry("throttled", "Oh (code 4)", FIVE_MINUTES, throttled=True)),
        (403, error(17), Retry("throttled", "Oh (code 17)", FIVE_MINUTES, throttled=True)),
        (400, error(32), Retry("throttled", "Oh (code 32)", FIVE_MINUTES, throttled=True)),
        (400, error(613), Retry("throttled", "Oh (code 613)", FIVE_MINUTES, throttled=True)),
        (400, error(80003), Retry("throttled", "Oh (code 80003)", FIVE_MINUTES, throttled=True)),
        (429, error(None), Retry("throttled", "Oh", FIVE_MINUTES, throttled=True)),
        (429, "", Retry("throttled", "", FIVE_MINUTES, throttled=True)),
        (400, error(368), Retry("unknown_error", "Oh (code 368)")),
        (400, error("100"), Retry("unknown_error", "Oh (code 100)")),
        (400, {"error": {}}, Retry("unknown_error", "")),
        (400, {"error": "no"}, Rejected("bad_request", '{"error": "no"}')),
        (404, [], Rejected("not_found", "[]")),
        (403, "<html>denied</html>", Retry("forbidden", "<html>denied</html>")),
        (400, '{"error":', Retry("bad_request", '{"error":')),
        (413, "", Split("too_large")),
        (500, "", Retry("server_error")),
        (503, "{}", Retry("unavailable", "{}")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(), trial()) == verdict


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({"retry-after": "90"}, timedelta(seconds=90)),
        (
            {
                "x-business-use-case-usage": '{"1":[{"estimated_time_to_regain_access":19}],'
                '"2":[{"estimated_time_to_regain_access":0},7]}'
            },
            timedelta(minutes=19),
        ),
        ({"x-business-use-case-usage": "{"}, FIVE_MINUTES),
        ({"x-business-use-case-usage": '{"1":{}}'}, FIVE_MINUTES),
    ],
)
def test_waits_as_long_as_meta_says(headers: dict[str, str], after: timedelta) -> None:
    verdict = classified(provider, SETTINGS, 400, error(80004), headers=headers)
    assert verdict == Retry("throttled", "Oh (code 80004)", after, throttled=True)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b'{"id":"1","name":"App"}', Delivered()),
        (400, b'{"error":{"code":190}}', Misconfigured("unauthorized", "(code 190)")),
    ],
)
def test_check_reads_the_dataset(status: int, body: bytes, outcome: Verdict) -> None:
    settings = read_settings("Facebook", provider.settings, SETTINGS)
    assert provider.check is not None
    request = provider.check.request(settings, context())
    assert request.method == "GET"
    assert request.url == (
        "https://graph.facebook.com/v25.0/1234567890123456"
        "?fields=id%2Cname&access_token=EAAXinvented"
    )
    assert provider.check.read(Response(status, {}, body)) == outcome
