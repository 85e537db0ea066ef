"""AppMetrica: what is sent, and what each answer means."""

import csv
import io
import json
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from providers.appmetrica import provider
from providers.kit import (
    Delivered,
    Misconfigured,
    Rejected,
    Request,
    Response,
    Retry,
    Skipped,
    Verdict,
    read_settings,
)
from tests.providers.samples import NOW, classified, context, event, fault, planned, refund, trial

KEY = "3f1c0b52-7a1e-4a3c-9d2b-aaaaaaaaaaaa"
DEVICE = "1757762239877245682"
SETTINGS = {"application_id": 4012345, "post_api_key": KEY}
BY_PROFILE = {**SETTINGS, "identifier": "profile_id"}
KNOWN = {"properties": {"_q_appmetrica_device_id": DEVICE}}
PLAY = {
    "platform": "Android",
    "transaction": {"transaction_id": "GPA.3300-1111-2222-33333..2"},
}
EVENTS = "https://api.appmetrica.yandex.com/logs/v1/import/events"
REVENUE = "https://api.appmetrica.yandex.com/logs/v1/import/revenue"


def parameters(request: Request) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(request.url).query, keep_blank_values=True))


def sent(settings: dict[str, Any], some: Any) -> list[dict[str, str]]:
    return [parameters(r) for r in planned(provider, {**SETTINGS, **settings}, some).requests]


def test_sends_a_renewal_in_the_query_alone() -> None:
    (request,) = planned(provider, SETTINGS, event(**KNOWN)).requests
    assert request.method == "POST"
    assert request.url.startswith(f"{EVENTS}?post_api_key={KEY}&application_id=4012345&")
    assert "%7B%22event_id%22%3A%22" in request.url
    assert dict(request.headers) == {"Content-Length": "0"}
    assert request.body == b""
    values = parameters(request)
    assert json.loads(values.pop("event_json")) == {
        "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        "product_id": "com.acme.pro.month",
        "revenue": 7.99,
        "currency": "GBP",
        "revenue_usd": 9.99,
        "environment": "production",
        "store": "app_store",
        "transaction_id": "2000000812345678",
        "original_transaction_id": "2000000700000001",
    }
    assert values == {
        "post_api_key": KEY,
        "application_id": "4012345",
        "appmetrica_device_id": DEVICE,
        "event_name": "subscription_renewed",
        "event_timestamp": "1767225600",
        "session_type": "background",
        "ios_ifa": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
        "ios_ifv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "os_name": "ios",
    }


def test_sends_refund_and_trial_start() -> None:
    (refunded,) = sent({}, refund(**KNOWN))
    assert json.loads(refunded["event_json"])["revenue"] == -7.99
    (started,) = sent({}, trial(**KNOWN))
    assert not {"revenue", "currency"} & json.loads(started["event_json"]).keys()


@pytest.mark.parametrize(
    ("settings", "change", "expected"),
    [
        ({"session_type": "foreground"}, {}, {"session_type": "foreground"}),
        (
            {},
            {"platform": "Android"},
            {
                "google_aid": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
                "ios_ifa": None,
                "ios_ifv": None,
                "os_name": "android",
            },
        ),
        ({}, {"platform": "Stripe"}, {"google_aid": None, "ios_ifa": None, "os_name": None}),
        ({}, {"advertiser_id": "00000000-0000-0000-0000-000000000000"}, {"ios_ifa": None}),
        ({}, {"time": NOW + 60}, {"event_timestamp": str(NOW)}),
        ({}, {"ip": "2a00:1450::1"}, {"device_ipv6": "2a00:1450::1"}),
        ({}, {"ip": "8.8.8.8"}, {"device_ipv6": None}),
        (
            {},
            {
                "device": {
                    "model": "Pixel 9",
                    "brand": "Google",
                    "os_version": "15",
                    "app_version": "5.4",
                    "app_id": "app.lumen",
                    "locale": "pt_PT",
                }
            },
            {
                "device_model": "Pixel 9",
                "device_manufacturer": "Google",
                "os_version": "15",
                "app_version_name": "5.4",
                "app_package_name": "app.lumen",
                "device_locale": "pt_PT",
            },
        ),
        (
            {},
            {"properties": {"_q_appmetrica_user_profile_id": "p-1"}},
            {"profile_id": "p-1", "appmetrica_device_id": None},
        ),
        (
            {"identifier": "profile_id"},
            {
                "properties": {
                    "_q_appmetrica_user_profile_id": "p-1",
                    "_q_appmetrica_device_id": DEVICE,
                }
            },
            {"profile_id": "p-1", "appmetrica_device_id": None},
        ),
        ({"identifier": "profile_id"}, {}, {"profile_id": "acct-40001"}),
        (
            {"identifier": "profile_id"},
            {"identity_id": None},
            {"profile_id": None, "appmetrica_device_id": DEVICE},
        ),
        (
            {},
            {"properties": {"_q_appmetrica_device_id": "18446744073709551615"}},
            {"appmetrica_device_id": "18446744073709551615"},
        ),
        ({"event_names": {"subscription_renewed": "Продление"}}, {}, {"event_name": "Продление"}),
    ],
)
def test_parameters(
    settings: dict[str, Any], change: dict[str, Any], expected: dict[str, Any]
) -> None:
    (values,) = sent(settings, event(**{**KNOWN, **change}))
    assert {key: values.get(key) for key in expected} == expected


def test_amounts_may_be_net_or_left_out() -> None:
    (net,) = sent({"revenue_basis": "net"}, event(**KNOWN))
    assert json.loads(net["event_json"])["revenue"] == 6.79
    (none,) = sent({"no_revenue_events": ["subscription_renewed"]}, event(**KNOWN))
    assert "revenue" not in json.loads(none["event_json"])


def test_revenue_is_a_second_step() -> None:
    settings = {**SETTINGS, "send_revenue": True}
    plan = planned(provider, settings, event(**KNOWN, event_name="in_app_purchase"))
    assert [r.step for r in plan.requests] == [0, 1]
    assert plan.requests[1].url.startswith(f"{REVENUE}?post_api_key={KEY}&")
    values = parameters(plan.requests[1])
    assert values == {
        "post_api_key": KEY,
        "application_id": "4012345",
        "appmetrica_device_id": DEVICE,
        "event_timestamp": "1767225600",
        "session_type": "background",
        "ios_ifa": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
        "ios_ifv": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
        "os_name": "ios",
        "revenue_event_type": "one_time_purchase",
        "price": "7.99",
        "currency": "GBP",
        "product_id": "com.acme.pro.month",
        "quantity": "1",
        "payload": '{"event_id":"6a6527b6-e423-53db-a794-7a4b9dbea32f"}',
        "transaction_id": "2000000812345678",
    }


def test_a_refund_lowers_revenue_and_a_google_id_travels_in_the_payload() -> None:
    _, values = sent({"send_revenue": True}, refund(**KNOWN, **PLAY))
    assert values["price"] == "-7.99"
    assert "transaction_id" not in values
    assert json.loads(values["payload"])["transaction_id"] == "GPA.3300-1111-2222-33333..2"


@pytest.mark.parametrize(
    "change",
    [
        {"revenue": None},
        {"product_id": None},
        {"event_name": "trial_started", "revenue": None},
        {"event_name": "subscription_upgraded"},
    ],
)
def test_no_revenue_step_without_all_it_needs(change: dict[str, Any]) -> None:
    assert len(sent({"send_revenue": True}, event(**{**KNOWN, **change}))) == 1


def test_what_was_too_long_for_a_url_goes_as_a_file() -> None:
    some = event(**KNOWN)
    (request,) = planned(provider, SETTINGS, some, notes={some.id: "csv"}).requests
    assert request.url == f"{EVENTS}.csv?post_api_key={KEY}"
    assert dict(request.headers) == {"Content-Type": "text/csv; charset=utf-8"}
    (row,) = csv.DictReader(io.StringIO(request.body.decode()))
    assert row["appmetrica_device_id"] == DEVICE
    assert json.loads(row["event_json"])["revenue"] == 7.99


def test_sandbox_events_go_to_their_own_application() -> None:
    own = {"sandbox_application_id": 77, "sandbox_post_api_key": "sandbox-key"}
    values = sent(own, event(**KNOWN, environment="sandbox"))
    assert (values[0]["application_id"], values[0]["post_api_key"]) == ("77", "sandbox-key")


def test_the_other_host() -> None:
    settings = {**SETTINGS, "api_host": "api.appmetrica.yandex.ru"}
    (request,) = planned(provider, settings, event(**KNOWN)).requests
    assert request.url.startswith("https://api.appmetrica.yandex.ru/logs/v1/import/events?")
    assert len(parse_qs(urlsplit(request.url).query)["event_json"]) == 1


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (
            SETTINGS,
            {"properties": {}},
            "no AppMetrica device id (user property _q_appmetrica_device_id)",
        ),
        (BY_PROFILE, {"properties": {}, "identity_id": None}, "no AppMetrica profile id"),
        (
            SETTINGS,
            {"properties": {"_q_appmetrica_device_id": "7c0e5b7f2a9d4c13"}},
            "AppMetrica device id is not a number",
        ),
        (
            SETTINGS,
            {"properties": {"_q_appmetrica_device_id": "18446744073709551616"}},
            "AppMetrica device id is not a number",
        ),
        (
            SETTINGS,
            {"properties": {"_q_appmetrica_device_id": "0"}},
            "AppMetrica device id is not a number",
        ),
        (
            SETTINGS,
            {"time": NOW - 14 * 86400 - 1},
            "older than 14 days, which AppMetrica does not take",
        ),
        (
            SETTINGS,
            {"environment": "sandbox"},
            "sandbox event, and these settings send production events only",
        ),
    ],
)
def test_skips(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    plan = planned(provider, settings, event(**{**KNOWN, **change}))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"application_id": None}, "application_id", "AppMetrica application id is not set"),
        ({"application_id": 10**12}, "application_id", "less than or equal to 999999999999"),
        ({"application_id": "acme"}, "application_id", "valid integer"),
        ({"application_id": True}, "application_id", "not true or false"),
        ({"post_api_key": "a b c d e f"}, "post_api_key", "without blanks"),
        ({"post_api_key": "short"}, "post_api_key", "8 to 128"),
        ({"sandbox_application_id": 77}, "", "set both sandbox_application_id"),
        ({"api_host": "example.com"}, "api_host", "api.appmetrica.yandex.com"),
    ],
)
def test_settings_faults(change: dict[str, Any], key: str, words: str) -> None:
    where, text = fault(provider, {**SETTINGS, **change})
    assert where == key
    assert words in text


def refusal(code: int, message: str) -> dict[str, Any]:
    errors = [{"error_type": "invalid_parameter", "message": message}]
    return {"errors": errors, "code": code, "message": message}


MINUTE = timedelta(seconds=60)
NOT_SET = "Required parameter event_timestamp is not set"


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, "Your data has been uploaded", Delivered()),
        (202, "", Delivered()),
        (204, "", Delivered()),
        (400, refusal(400, NOT_SET), Rejected("bad_request", NOT_SET)),
        (400, {"errors": [{"message": "second best"}]}, Rejected("bad_request", "second best")),
        (400, "x" * 300, Rejected("bad_request", "x" * 200)),
        (401, "", Misconfigured("unauthorized")),
        (
            403,
            refusal(403, "Invalid post_api_key"),
            Misconfigured("forbidden", "Invalid post_api_key"),
        ),
        (404, "", Rejected("not_found")),
        (413, "", Rejected("too_large", "event too large")),
        (414, "", Retry("too_large", "URL too long", timedelta(0), note="csv")),
        (420, "", Retry("throttled", "", MINUTE, throttled=True)),
        (429, "quota", Retry("throttled", "quota", MINUTE, throttled=True)),
        (500, "", Retry("server_error")),
        (503, "<html>", Retry("unavailable", "<html>")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(**KNOWN)) == verdict


def test_retry_after_is_kept() -> None:
    headers = {"retry-after": "7"}
    verdict = classified(provider, SETTINGS, 420, "", event(**KNOWN), headers=headers)
    assert verdict == Retry("throttled", "", timedelta(seconds=7), throttled=True)


def test_a_file_that_is_too_large_is_rejected() -> None:
    settings = read_settings("AppMetrica", provider.settings, SETTINGS)
    file = Request("POST", f"{EVENTS}.csv", body=b"application_id\n1\n", events=(0,))
    verdict = provider.classify(file, Response(414), settings)
    assert verdict == Rejected("too_large", "event too large")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Delivered()),
        (403, Misconfigured("forbidden", "Oh")),
        (500, Retry("server_error", "Oh")),
    ],
)
def test_check_lacks_an_event_name(status: int, outcome: Verdict) -> None:
    settings = read_settings("AppMetrica", provider.settings, SETTINGS)
    assert provider.check is not None
    request = provider.check.request(settings, context())
    assert request.url == f"{EVENTS}?post_api_key={KEY}&application_id=4012345"
    assert provider.check.read(Response(status, {}, b'{"message":"Oh"}')) == outcome
