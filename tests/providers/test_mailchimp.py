"""Mailchimp: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.kit import (
    Delivered,
    Misconfigured,
    Outcome,
    Rejected,
    Response,
    Retry,
    Skipped,
    Verdict,
    read_settings,
)
from providers.mailchimp import provider
from tests.providers.samples import PAGE, classified, context, event, fault, planned, refund, trial

SETTINGS = {"api_key": "0123456789abcdef0123456789abcdef-us21", "list_id": "a1b2c3d4e5"}
EMAIL = {"_q_email": " Mira.Okafor@example.com "}
MEMBER = (
    "https://us21.api.mailchimp.com/3.0/lists/a1b2c3d4e5/members/400dd3dde41de5cbdfa35eacbef0e737"
)
DAY = 86_400


def bodies(plan: Any) -> list[Any]:
    return [json.loads(request.body) for request in plan.requests]


def test_sends_the_member_first_and_the_event_last() -> None:
    mapped = {"merge_field_map": {"SUBSTATUS": "status", "PRODUCT": "product_id"}}
    member, moment = planned(provider, SETTINGS | mapped, event(properties=EMAIL)).requests
    assert (member.method, member.url) == ("PUT", f"{MEMBER}?skip_merge_validation=true")
    assert dict(member.headers) == {
        "Content-Type": "application/json",
        "Authorization": ("Basic a2V5OjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVmLXVzMjE="),
    }
    assert json.loads(member.body) == {
        "email_address": "Mira.Okafor@example.com",
        "status_if_new": "transactional",
        "merge_fields": {"SUBSTATUS": "active", "PRODUCT": "com.acme.pro.month"},
    }
    assert (moment.method, moment.url) == ("POST", f"{MEMBER}/events")
    assert member.step < moment.step
    assert json.loads(moment.body) == {
        "name": "subscription_renewed",
        "occurred_at": "2026-01-01T00:00:00+00:00",
        "is_syncing": False,
        "properties": {
            "product_id": "com.acme.pro.month",
            "revenue": "7.99",
            "currency": "GBP",
            "revenue_usd": "9.99",
            "transaction_id": "2000000812345678",
            "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        },
    }


def test_sends_a_refund_as_a_negative_text() -> None:
    properties = bodies(planned(provider, SETTINGS, refund(properties=EMAIL)))[-1]["properties"]
    assert (properties["revenue"], properties["revenue_usd"]) == ("-7.99", "-9.99")


def test_sends_tags_of_a_trial_start_between_member_and_event() -> None:
    tags = {"trial_started": "+trial -churned", "subscription_expired": {"inactive": ["paid"]}}
    plan = planned(provider, SETTINGS | {"tags": tags}, trial(properties=EMAIL))
    assert [r.url.removeprefix(MEMBER) for r in plan.requests] == [
        "?skip_merge_validation=true",
        "/tags",
        "/events",
    ]
    assert [request.step for request in plan.requests] == [0, 1, 2]
    assert bodies(plan)[1] == {
        "tags": [
            {"name": "trial", "status": "active"},
            {"name": "churned", "status": "inactive"},
        ],
        "is_syncing": False,
    }
    assert "revenue" not in bodies(plan)[2]["properties"]


def test_marks_old_events_as_history() -> None:
    old = event(properties=EMAIL, time=1767225600 - 2 * DAY)
    assert bodies(planned(provider, SETTINGS, old))[-1]["is_syncing"] is True


def test_sends_dates_and_properties_in_merge_fields_and_leaves_out_the_unknown() -> None:
    mapped = {"EXPIRES": "transaction.expires", "COHORT": "properties.cohort", "NAME": "_q_name"}
    given = event(properties=EMAIL | {"cohort": "winter"})
    (member,) = bodies(
        planned(provider, SETTINGS | {"merge_field_map": mapped, "send_events": False}, given)
    )
    assert member["merge_fields"] == {"EXPIRES": "2026-02-01", "COHORT": "winter"}


def test_sandbox_events_go_to_their_own_audience() -> None:
    settings = SETTINGS | {"sandbox_list_id": "ffffffffff", "server": "us7"}
    plan = planned(provider, settings, event(properties=EMAIL, environment="sandbox"))
    assert all(
        request.url.startswith("https://us7.api.mailchimp.com/3.0/lists/ffffffffff/members/")
        for request in plan.requests
    )


def test_puts_an_unknown_member_once_and_then_gives_up() -> None:
    settings = SETTINGS | {"update_member": False}
    given = event(properties=EMAIL)
    first = classified(provider, settings, 404, {"title": "Resource Not Found"}, given)
    assert first == Retry("unknown_member", "Resource Not Found", timedelta(0), note="put_member_2")
    plan = planned(provider, settings, given, notes={given.id: "put_member_2"})
    assert [request.method for request in plan.requests] == ["PUT", "POST"]
    assert [request.step for request in plan.requests] == [2, 2]
    read = read_settings(provider.title, provider.settings, settings)
    assert isinstance(provider.classify(plan.requests[1], Response(404), read), Rejected)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, {}, "no e-mail (_q_email) for this user"),
        ({}, {"properties": EMAIL, "environment": "sandbox"}, "sandbox event"),
        ({}, {"properties": EMAIL, "event_name": "a" * 31}, "set event_names"),
        (
            {"send_events": False, "update_member": False, "tags": {"trial_started": "trial"}},
            {"properties": EMAIL},
            "no tags for subscription_renewed",
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
    "email", ["mira", "mira@", "mira@example", "a b@example.com", "a..b@e.com"]
)
def test_refuses_impossible_addresses_unsent(email: str) -> None:
    (why,) = planned(provider, SETTINGS, event(properties={"_q_email": email})).unsent.values()
    assert why == Rejected("invalid_email", "_q_email is not an e-mail address")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"api_key": "0123456789abcdef0123456789abcdef"}, "api_key"),
        ({"server": "us21.evil.example"}, "server"),
        ({"list_id": "Audience"}, "list_id"),
        ({"status_if_new": "cleaned"}, "status_if_new"),
        ({"merge_field_map": {"TOO_LONG_TAG": "store"}}, "merge_field_map.TOO_LONG_TAG.[key]"),
        ({"event_names": {"trial_started": "x"}}, ""),
        ({"tags": {"trial_started": ["+"]}}, "tags.trial_started.0.0"),
        ({"tags": {"trial_started": ["+" + "x" * 101]}}, "tags.trial_started.0.0"),
        ({"update_member": False, "send_events": False}, ""),
    ],
)
def test_names_faults_of_settings(change: dict[str, Any], key: str) -> None:
    where, _ = fault(provider, SETTINGS | change)
    assert where == key


def test_turns_spaces_of_event_names_into_underscores() -> None:
    settings = SETTINGS | {"event_names": {"trial_started": "Trial Begun"}}
    assert bodies(planned(provider, settings, trial(properties=EMAIL)))[-1]["name"] == "Trial_Begun"


PROBLEM = {"type": "https://mailchimp.com/developer/marketing/docs/errors/", "instance": "1"}


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"id": "400dd3dd", "status": "transactional"}, Delivered()),
        (204, "", Delivered()),
        (200, PAGE, Retry("unexpected_answer", PAGE)),
        (
            200,
            {"title": "API Key Invalid", "status": 401, "detail": "Your API key may be invalid."},
            Misconfigured("unauthorized", "API Key Invalid: Your API key may be invalid."),
        ),
        (
            400,
            PROBLEM
            | {
                "title": "Invalid Resource",
                "detail": "The resource submitted could not be validated.",
                "errors": [{"field": "properties", "message": "Expected string"}],
            },
            Rejected(
                "invalid_resource",
                "Invalid Resource: The resource submitted could not be validated.; "
                "properties Expected string",
            ),
        ),
        (400, {"title": "Member Exists", "detail": "is in"}, Delivered("Member Exists: is in")),
        (
            400,
            {"title": "Forgotten Email Not Subscribed", "detail": "mira@example.com was deleted"},
            Rejected("forgotten", "Forgotten Email Not Subscribed: …@example.com was deleted"),
        ),
        (
            400,
            {"title": "Member In Compliance State", "detail": "cannot be subscribed."},
            Rejected("compliance_state", "Member In Compliance State: cannot be subscribed."),
        ),
        (
            400,
            {"title": "Invalid Resource", "detail": "x looks fake or invalid, please enter"},
            Rejected("invalid_email", "Invalid Resource: x looks fake or invalid, please enter"),
        ),
        (400, {"title": "JSON Parse Error"}, Rejected("bad_request", "JSON Parse Error")),
        (401, {"title": "API Key Missing"}, Misconfigured("unauthorized", "API Key Missing")),
        (403, {"title": "User Disabled"}, Misconfigured("forbidden", "User Disabled")),
        (
            404,
            {"title": "Resource Not Found"},
            Misconfigured("unknown_audience", "Resource Not Found"),
        ),
        (405, {"title": "Method Not Allowed"}, Rejected("bad_request", "Method Not Allowed")),
        (414, "", Rejected("bad_request")),
        (422, "", Rejected("bad_request")),
        (
            429,
            {"title": "Too Many Requests"},
            Retry("throttled", "Too Many Requests", timedelta(seconds=3), throttled=True),
        ),
        (500, "<html>", Retry("server_error", "<html>")),
        (502, "", Retry("bad_gateway")),
        (503, {"title": "Busy"}, Retry("unavailable", "Busy")),
        (504, "", Retry("gateway_timeout")),
        (
            503,
            {"title": "Compliance Related"},
            Misconfigured("account_blocked", "Compliance Related"),
        ),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(properties=EMAIL)) == verdict


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, {"id": "a1b2c3d4e5", "name": "Acme"}, Delivered()),
        (
            200,
            {"title": "API Key Invalid", "status": 401},
            Misconfigured("unauthorized", "API Key Invalid"),
        ),
        (403, {"title": "Wrong Datacenter"}, Misconfigured("forbidden", "Wrong Datacenter")),
        (
            404,
            "",
            Misconfigured("unknown_audience", "unknown audience: check list_id"),
        ),
    ],
)
def test_check_asks_for_the_audience(status: int, body: Any, outcome: Outcome) -> None:
    assert provider.check
    settings = read_settings(provider.title, provider.settings, SETTINGS)
    request = provider.check.request(settings, context())
    assert (request.method, request.url) == (
        "GET",
        "https://us21.api.mailchimp.com/3.0/lists/a1b2c3d4e5?fields=id%2Cname",
    )
    raw = json.dumps(body).encode() if body else b""
    assert provider.check.read(Response(status, {}, raw)) == outcome
