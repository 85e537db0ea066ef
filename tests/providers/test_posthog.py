"""PostHog: what is sent, and what each answer means."""

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
from providers.posthog import PosthogSettings, provider
from tests.providers.samples import PAGE, classified, event, planned, refund, trial

KEY = "phc_InventedKey0123456789abcdefghijklmnopqrstuv"
SETTINGS = {"project_api_key": KEY, "region": "eu"}
DROPPED = Delivered("dropped by PostHog: over its billing quota")


def sent(settings: dict[str, Any], *events: Any) -> list[dict[str, Any]]:
    (request,) = planned(provider, settings, *events).requests
    batch: list[dict[str, Any]] = json.loads(request.body)["batch"]
    return batch


def test_sends_renewal_refund_and_trial_in_one_batch() -> None:
    (request,) = planned(provider, SETTINGS, event(), refund(), trial()).requests
    assert (request.method, request.url) == ("POST", "https://eu.i.posthog.com/batch/")
    assert dict(request.headers) == {"Content-Type": "application/json"}
    body = json.loads(request.body)
    assert body.keys() == {"api_key", "historical_migration", "batch"}
    assert (body["api_key"], body["historical_migration"]) == (KEY, False)
    assert body["batch"][0] == {
        "event": "subscription_renewed",
        "distinct_id": "acct-40001",
        "uuid": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        "timestamp": "2026-01-01T00:00:00Z",
        "properties": {
            "$process_person_profile": True,
            "$geoip_disable": True,
            "$lib": "onward",
            "revenue": 9.99,
            "currency": "USD",
            "revenue_usd": 9.99,
            "product_id": "com.acme.pro.month",
            "store": "app_store",
            "environment": "production",
            "transaction_id": "2000000812345678",
            "original_transaction_id": "2000000700000001",
        },
    }
    assert body["batch"][1]["properties"]["revenue"] == -9.99
    assert not {"revenue", "currency", "revenue_usd"} & body["batch"][2]["properties"].keys()


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"region": "us"}, "https://us.i.posthog.com/batch/"),
        (
            {"region": "custom", "host": "https://ph.acme.example/"},
            "https://ph.acme.example/batch/",
        ),
        (
            {"region": "custom", "host": "https://app.posthog.com"},
            "https://us.i.posthog.com/batch/",
        ),
        ({"region": "custom", "host": "https://eu.posthog.com"}, "https://eu.i.posthog.com/batch/"),
    ],
)
def test_hosts(settings: dict[str, Any], url: str) -> None:
    assert planned(provider, {**SETTINGS, **settings}, event()).requests[0].url == url


@pytest.mark.parametrize(
    ("settings", "money", "amounts"),
    [
        ({"revenue_basis": "local"}, (7.99, 9.99, "GBP"), (7.99, "GBP", 9.99)),
        ({"revenue_in_minor_units": True}, (7.99, 9.99, "GBP"), (999, "USD", 9.99)),
        (
            {"revenue_in_minor_units": True, "revenue_basis": "local"},
            (1200, 8, "JPY"),
            (1200, "JPY", 8),
        ),
        (
            {"revenue_in_minor_units": True, "revenue_basis": "local"},
            (1.5, 4.9, "KWD"),
            (1500, "KWD", 4.9),
        ),
    ],
)
def test_amounts(settings: dict[str, Any], money: Any, amounts: Any) -> None:
    revenue = dict(zip(("value", "value_usd", "currency"), money, strict=True))
    (made,) = sent({**SETTINGS, **settings}, event(revenue=revenue))
    properties = made["properties"]
    assert (properties["revenue"], properties["currency"], properties["revenue_usd"]) == amounts
    if settings.get("revenue_in_minor_units"):
        assert isinstance(properties["revenue"], int)


def test_switches_become_properties() -> None:
    settings = {**SETTINGS, "process_person_profile": False, "disable_geoip": False}
    (made,) = sent(settings, event(ip="8.8.8.8"))
    assert made["properties"]["$process_person_profile"] is False
    assert "$geoip_disable" not in made["properties"]
    assert made["properties"]["$ip"] == "8.8.8.8"
    (private,) = sent(SETTINGS, event(ip="192.168.0.4"))
    assert "$ip" not in private["properties"]


def test_user_properties_do_not_travel() -> None:
    (made,) = sent(SETTINGS, event(properties={"_q_email": "a@b.example", "cohort": "winter"}))
    assert "a@b.example" not in json.dumps(made)
    assert "7D0F1C9E" not in json.dumps(made)


@pytest.mark.parametrize(
    ("change", "distinct_id"),
    [
        ({"properties": {"ph": "p-1"}}, "p-1"),
        ({"identity_id": None, "custom_user_id": "c-1"}, "c-1"),
        ({"identity_id": "[object Object]"}, "QON_5b1f0c9e7a3d4d22"),
        ({"identity_id": "u" * 250}, "u" * 200),
        ({"identity_id": "NaN", "properties": {"_q_custom_user_id": "q-1"}}, "q-1"),
    ],
)
def test_distinct_id(change: dict[str, Any], distinct_id: str) -> None:
    settings = {**SETTINGS, "user_property_for_distinct_id": "ph"}
    assert sent(settings, event(**change))[0]["distinct_id"] == distinct_id


@pytest.mark.parametrize("nobody", ["guest", "0", "not_authenticated", "EMAIL", " "])
def test_skips_nobody(nobody: str) -> None:
    plan = planned(provider, SETTINGS, event(identity_id=nobody, user_id=None))
    why = plan.unsent[0]
    assert isinstance(why, Skipped)
    assert why.message.startswith("no PostHog distinct_id")
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        ({}, ["subscription_renewed", "trial_started", "in_app_purchase", "custom"]),
        ({"trials": False}, ["subscription_renewed", "in_app_purchase", "custom"]),
        (["Trials"], ["trial_started", "custom"]),
        ({"Purchases": None}, ["subscription_renewed", "trial_started", "custom"]),
    ],
)
def test_categories(categories: Any, names: list[str]) -> None:
    some = [
        event(),
        trial(),
        event(event_name="in_app_purchase"),
        event(event_name="custom", revenue=None),
    ]
    made = sent({**SETTINGS, "categories": categories}, *some)
    assert [one["event"] for one in made] == names


def test_sandbox_events_go_to_their_own_project() -> None:
    sandbox = event(environment="sandbox")
    assert isinstance(planned(provider, SETTINGS, sandbox).unsent[0], Skipped)
    plan = planned(provider, {**SETTINGS, "sandbox_project_api_key": "phc_s"}, event(), sandbox)
    assert [json.loads(r.body)["api_key"] for r in plan.requests] == [KEY, "phc_s"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"region": "us"}, "project api key is not set"),
        ({"project_api_key": KEY}, "region is not set"),
        ({**SETTINGS, "project_api_key": "phx_personal"}, "personal key"),
        ({**SETTINGS, "sandbox_project_api_key": "phx_personal"}, "personal key"),
        ({**SETTINGS, "project_api_key": "p" * 65}, "64 characters"),
        ({**SETTINGS, "project_api_key": "phc_ü"}, "printable ASCII"),
        ({**SETTINGS, "region": "custom"}, "host goes with region custom"),
        ({**SETTINGS, "host": "https://ph.acme.example"}, "host goes with region custom"),
        ({**SETTINGS, "region": "custom", "host": "http://ph.acme.example"}, "https://"),
        ({**SETTINGS, "region": "custom", "host": "https://ph.acme.example/x"}, "origin"),
        ({**SETTINGS, "event_names": {"trial_started": "$identify"}}, "not beginning with"),
        ({**SETTINGS, "event_names": {"trial_started": "x" * 201}}, "1 to 200"),
        ({**SETTINGS, "categories": ["Refunds"]}, "trials"),
    ],
)
def test_settings_faults(data: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read_settings(provider.title, PosthogSettings, data)


@pytest.mark.parametrize(
    ("status", "headers", "body", "verdict"),
    [
        (200, {}, {"status": 1}, Delivered()),
        (200, {}, {"status": "Ok"}, Delivered()),
        (200, {}, {"status": 1, "quota_limited": ["events"]}, DROPPED),
        (200, {}, {"status": 1, "quota_limited": ["recordings"]}, Delivered()),
        (204, {}, "", Delivered()),
        (200, {}, PAGE, Retry("unexpected_answer", PAGE)),
        *(
            (400, {}, text, Split("bad_request", text))
            for text in [
                "request holds no event",
                "event submitted with an empty event name",
                "event submitted without a distinct_id",
                "failed to parse request: x",
                "failed to decode request: x",
                "invalid event could not be processed",
            ]
        ),
        (
            400,
            {},
            {"type": "validation_error", "code": "invalid", "detail": "Words."},
            Split("bad_request", "Words."),
        ),
        *(
            (401, {}, text, Misconfigured("unauthorized", text))
            for text in [
                "API key is not valid: personal_api_key",
                "event submitted without an api_key",
                "batch submitted with inconsistent api_key values",
            ]
        ),
        (
            400,
            {},
            {"type": "authentication_error", "detail": "Project API key invalid."},
            Misconfigured("unauthorized", "Project API key invalid."),
        ),
        (
            400,
            {},
            "API key is not valid: empty",
            Misconfigured("unauthorized", "API key is not valid: empty"),
        ),
        (403, {}, "", Misconfigured("forbidden")),
        (
            413,
            {},
            "maximum event size exceeded: x",
            Split("too_large", "maximum event size exceeded: x"),
        ),
        (
            429,
            {"retry-after": "5"},
            "billing limit reached",
            Retry("billing_limit", "billing limit reached", timedelta(hours=1), throttled=True),
        ),
        (
            429,
            {"retry-after": "5"},
            "rate limited",
            Retry("throttled", "rate limited", timedelta(seconds=5), throttled=True),
        ),
        (429, {}, "", Retry("throttled", throttled=True)),
        (408, {}, "", Retry("timeout")),
        (
            503,
            {"retry-after": "Thu, 01 Jan 2026 00:05:09 GMT"},
            "transient error, please retry",
            Retry("unavailable", "transient error, please retry", timedelta(seconds=9)),
        ),
        (500, {}, "<html>", Retry("server_error", "<html>")),
        (402, {}, "pay", Retry("payment_required", "pay", timedelta(hours=1))),
        (404, {}, "", Rejected("not_found")),
        (
            301,
            {"location": "https://x.example"},
            "",
            Misconfigured("redirect", "redirects to https://x.example, which is not followed"),
        ),
    ],
)
def test_classify(status: int, headers: dict[str, str], body: Any, verdict: Verdict) -> None:
    assert (
        classified(provider, SETTINGS, status, body, event(), trial(), headers=headers) == verdict
    )
