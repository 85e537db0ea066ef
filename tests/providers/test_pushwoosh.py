"""Pushwoosh: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.kit import (
    Delivered,
    Misconfigured,
    Rejected,
    Retry,
    Skipped,
    Verdict,
)
from providers.pushwoosh import provider
from tests.providers.samples import classified, event, fault, planned, refund, trial

SETTINGS = {"application_code": "a1b2c-3d4e5", "api_token": "devTok_example"}
HWID = "9D2F7C31-5B1E-4B63-8D90-2C6E1F7A0B44"
IDS = {"properties": {"_q_pushwoosh_hwid": HWID}, "identity_id": "u-1001"}


def requests(plan: Any) -> list[Any]:
    return [json.loads(request.body)["request"] for request in plan.requests]


def test_sends_a_renewal() -> None:
    (request,) = planned(provider, SETTINGS, event(**IDS)).requests
    assert (request.method, request.url) == (
        "POST",
        "https://api.pushwoosh.com/json/1.3/postEvent",
    )
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "Authorization": "Token devTok_example",
    }
    assert json.loads(request.body) == {
        "request": {
            "application": "A1B2C-3D4E5",
            "hwid": HWID,
            "userId": "u-1001",
            "event": "subscription_renewed",
            "timestampUTC": 1767225600,
            "device_type": 1,
            "attributes": {
                "product_id": "com.acme.pro.month",
                "revenue": 7.99,
                "currency": "GBP",
                "transaction_id": "2000000812345678",
                "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
            },
        }
    }


def test_sends_refunds_as_negative_and_no_money_for_a_trial_start() -> None:
    back, begun = requests(planned(provider, SETTINGS, refund(**IDS), trial(**IDS)))
    assert back["attributes"]["revenue"] == -7.99
    assert "revenue" not in begun["attributes"]
    assert "currency" not in begun["attributes"]


@pytest.mark.parametrize(("platform", "device"), [("Android", 3), ("Stripe", None)])
def test_names_the_device_type(platform: str, device: int | None) -> None:
    (request,) = requests(planned(provider, SETTINGS, event(**IDS, platform=platform)))
    assert request.get("device_type") == device


def test_prefers_the_pushwoosh_user_id() -> None:
    given = event(properties={"_q_pushwoosh_user_id": "pw-7"}, identity_id="u-1001")
    (request,) = requests(planned(provider, SETTINGS, given))
    assert request["userId"] == "pw-7"
    assert "hwid" not in request


def test_sends_tags() -> None:
    given = trial(**IDS, transaction={"expires": 1767830400, "transaction_date": 1767225720})
    (request,) = planned(provider, SETTINGS | {"mode": "tags"}, given).requests
    assert request.url == "https://api.pushwoosh.com/json/1.3/setTags"
    assert json.loads(request.body) == {
        "request": {
            "application": "A1B2C-3D4E5",
            "hwid": HWID,
            "userId": "u-1001",
            "tags": {
                "customer_user_id": "u-1001",
                "profile_id": "QON_5b1f0c9e7a3d4d22",
                "environment": "production",
                "store": "app_store",
                "vendor_product_id": "com.acme.pro.month",
                "subscription_expires_at": "2026-01-08 00:00",
                "last_event_type": "trial_started",
                "purchase_date": "2026-01-01 00:02",
                "active_subscription": True,
                "period_type": "trial",
            },
        }
    }


def test_sends_chosen_tags_first_and_the_event_then() -> None:
    settings = SETTINGS | {"mode": "both", "tag_names": {"Premium": "active_subscription"}}
    expired = event(**IDS, event_name="subscription_expired", revenue=None)
    plan = planned(provider, settings, expired)
    assert [request.step for request in plan.requests] == [0, 1]
    assert requests(plan)[0]["tags"] == {"Premium": False}
    assert requests(plan)[1]["event"] == "subscription_expired"


def test_sandbox_events_go_to_their_own_application() -> None:
    sandbox = {"sandbox_application_code": "FFFFF-00000", "sandbox_api_token": "sandTok"}
    settings = SETTINGS | sandbox | {"api_host": "acme.pushwoosh.com"}
    plan = planned(provider, settings, event(**IDS, environment="sandbox"))
    assert requests(plan)[0]["application"] == "FFFFF-00000"
    assert dict(plan.requests[0].headers)["Authorization"] == "Token sandTok"
    assert plan.requests[0].url.startswith("https://acme.pushwoosh.com/")


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (
            {},
            {"identity_id": None},
            "no Pushwoosh HWID or user id (set _q_pushwoosh_hwid)",
        ),
        ({}, IDS | {"event_name": "a" * 33}, "set event_names"),
        (
            {"mode": "tags", "tag_names": {"Cohort": "properties.cohort"}},
            IDS,
            "subscription_renewed tells nothing of tag_names",
        ),
    ],
)
def test_skips(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    plan = planned(provider, SETTINGS | settings, event(**change))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert message in skipped.message
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"application_code": "A1B2C3D4E5"}, "application_code"),
        ({"api_host": "pushwoosh.com.evil.example"}, "api_host"),
        ({"mode": "all"}, "mode"),
        ({"sandbox_application_code": "FFFFF-00000"}, ""),
        ({"event_names": {"trial_started": "PW_Trial"}}, ""),
        ({"event_names": {"trial_started": "x" * 33}}, ""),
        ({"tag_names": {f"t{n}": "store" for n in range(51)}}, "tag_names"),
    ],
)
def test_names_faults_of_settings(change: dict[str, Any], key: str) -> None:
    where, _ = fault(provider, SETTINGS | change)
    assert where == key


def said(code: Any, message: str = "") -> dict[str, Any]:
    return {"status_code": code, "status_message": message, "response": None}


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, said(200, "OK") | {"response": {"code": "61BC9-84DD0"}}, Delivered()),
        (200, said("200", "OK"), Delivered()),
        (200, said(210, "Event not found"), Rejected("bad_argument", "Event not found")),
        (
            200,
            said(210, "Application not found"),
            Misconfigured("wrong_application", "Application not found"),
        ),
        (
            200,
            said("403", "Token restrictions forbid this operation"),
            Misconfigured("forbidden", "Token restrictions forbid this operation"),
        ),
        (200, said(404, "Device not found"), Rejected("not_found", "Device not found")),
        (200, said(500, "Internal"), Retry("server_error", "Internal")),
        (200, said(True, "OK"), Retry("unexpected_answer", "OK")),
        (200, "", Retry("unexpected_answer", "no status_code in the answer")),
        (200, "<html>", Retry("unexpected_answer", "<html>")),
        (400, said("N/A", "Bad JSON"), Rejected("bad_request", "Bad JSON")),
        (401, "", Misconfigured("unauthorized")),
        (403, said(403, "no"), Misconfigured("forbidden", "no")),
        (404, "", Misconfigured("not_found", "wrong address: check api_host")),
        (429, "", Retry("throttled", "", timedelta(seconds=30), throttled=True)),
        (500, said(500, "Internal"), Retry("server_error", "Internal")),
        (502, "", Retry("bad_gateway")),
        (504, "", Retry("gateway_timeout")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(**IDS)) == verdict
