"""Webhooks: what is sent, how it is signed, and what each answer means."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook

from providers.kit import (
    Delivered,
    Gone,
    InvalidSettings,
    Misconfigured,
    Rejected,
    Request,
    Response,
    Retry,
    Skipped,
    Verdict,
    plan,
    read_settings,
)
from providers.webhooks import OURS, provider
from tests.providers.samples import NOW, classified, context, event, fault, planned, refund, trial
from worker.transport import wire

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
PREVIOUS = "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU="
SETTINGS = {
    "url": "https://api.customer.example/hooks/subs",
    "auth_token": "s3cr3tT0ken",
    "signing_secret": SECRET,
}
ANDROID = {
    "id": "evt-000533",
    "event_name": "in_app_purchase_refunded",
    "platform": "Android",
    "time": 1767225500,
    "created_at": 1767225522,
    "advertiser_id": "",
    "device_id": "9a4c1e07b2d85f36",
    "product_id": "app.lumen.coins.500",
    "revenue": {
        "value": -4.99,
        "value_usd": -5.41,
        "currency": "EUR",
        "is_proceed": 0,
        "proceeds_rate": 85,
    },
    "price": {"value": 4.99, "value_usd": 5.41, "currency": "EUR"},
    "transaction": {
        "transaction_id": "GPA.3317-5540-0912-66120",
        "original_transaction_id": "GPA.3317-5540-0912-66120",
        "transaction_date": 1767000000,
    },
    "properties": {"_q_email": "ines@example.org"},
    "country": None,
}


def sent(settings: dict[str, Any] = SETTINGS, /, **changes: Any) -> Request:
    (request,) = planned(provider, settings, event(**changes)).requests
    return request


def test_sends_the_documented_body_in_its_order() -> None:
    request = sent(**ANDROID)
    assert (request.method, request.url) == ("POST", SETTINGS["url"])
    assert request.body == (
        b'{"event_name":"in_app_refunded","user_id":"QON_5b1f0c9e7a3d4d22","custom_user_id":"",'
        b'"identity_id":"acct-40001","advertiser_id":"","device_id":"9a4c1e07b2d85f36",'
        b'"time":1767225500,"created_at":1767225522,"product_id":"app.lumen.coins.500",'
        b'"revenue":{"value":-4.99,"value_usd":-5.41,"currency":"EUR","is_proceed":0,'
        b'"proceeds_rate":85},"price":{"value":4.99,"value_usd":5.41,"currency":"EUR"},'
        b'"transaction":{"transaction_id":"GPA.3317-5540-0912-66120",'
        b'"original_transaction_id":"GPA.3317-5540-0912-66120","expires":null,'
        b'"grace_period_expires":null,"transaction_date":1767000000},'
        b'"properties":{"_q_email":"ines@example.org"},"environment":"production",'
        b'"platform":"Android","ip":null,"old_product_id":null,"asa_attribution":null,'
        b'"event_id":"evt-000533"}'
    )


def test_signs_the_bytes_it_sends() -> None:
    request = sent(id="evt_01JG")
    headers = dict(request.headers)
    assert headers == {
        "Content-Type": "application/json; charset=utf-8",
        "Accept": "application/json",
        "Authorization": "Basic s3cr3tT0ken",
        "webhook-id": "evt_01JG",
        "webhook-timestamp": str(NOW),
        "webhook-signature": headers["webhook-signature"],
    }
    stamp = datetime.fromtimestamp(NOW, UTC)
    expected = Webhook(SECRET).sign("evt_01JG", stamp, request.body.decode())
    assert headers["webhook-signature"] == expected


@pytest.mark.parametrize(
    ("ends", "signatures"), [(NOW + 1, 2), (NOW, 1), ("2026-01-01T01:05:01+01:00", 2), (None, 2)]
)
def test_signs_with_the_previous_secret_too_until_it_ends(ends: Any, signatures: int) -> None:
    rotating = {"previous_signing_secret": PREVIOUS, "previous_secret_expires_at": ends}
    request = sent({**SETTINGS, **rotating})
    headers = dict(request.headers)
    stamp, text = datetime.fromtimestamp(NOW, UTC), request.body.decode()
    made = [Webhook(s).sign(headers["webhook-id"], stamp, text) for s in (SECRET, PREVIOUS)]
    assert headers["webhook-signature"].split(" ") == made[:signatures]


def test_nothing_goes_out_unsigned() -> None:
    bare = {"url": SETTINGS["url"], "signing_secret": SECRET}
    headers = dict(sent(bare).headers)
    assert "Authorization" not in headers
    assert {"webhook-id", "webhook-timestamp", "webhook-signature"} <= headers.keys()
    with pytest.raises(InvalidSettings, match="signing secret is not set"):
        read_settings(provider.title, provider.settings, {"url": SETTINGS["url"]})


def test_the_form_does_not_ask_for_the_secret_that_is_made() -> None:
    assert provider.settings.model_json_schema()["required"] == ["url"]


def test_a_trial_has_no_revenue_and_unknown_ids_are_empty() -> None:
    nobody = {"user_id": None, "identity_id": None, "advertiser_id": None, "device_id": None}
    made = trial(**nobody, price=None, transaction=None, product_id=None)
    (request,) = planned(provider, SETTINGS, made).requests
    body = json.loads(request.body)
    assert body["revenue"] is None
    assert body["price"] == {}
    assert {body[key] for key in (*nobody, "custom_user_id", "product_id")} == {""}
    assert body["transaction"] == {
        "transaction_id": "",
        "original_transaction_id": "",
        "expires": None,
        "grace_period_expires": None,
        "transaction_date": None,
    }


def test_additions_come_last_and_displace_nothing() -> None:
    body = json.loads(
        sent(
            device={"model": "iPhone15,3", "limit_ad_tracking": False, "att_status": 0},
            installed_at=1764579600,
            sdk_version="6.1",
            entitlements=[{"id": "pro", "rate": 1.5}],
            event_id="other",
            asa_attribution={"attribution": True, "campaignId": 731004512},
        ).body
    )
    assert list(body)[-6:] == [
        "event_id",
        "country",
        "device",
        "installed_at",
        "entitlements",
        "sdk_version",
    ]
    assert body["event_id"] == event().id
    assert body["device"] == {"model": "iPhone15,3", "att_status": 0, "limit_ad_tracking": False}
    assert body["entitlements"] == [{"id": "pro", "rate": 1.5}]
    assert body["asa_attribution"] == {"attributed": True, "campaign_id": "731004512"}
    assert "project_id" not in body


@pytest.mark.parametrize(
    ("name", "sent_as"),
    [
        ("trial_billing_retry", "trial_billing_retry_entered"),
        ("subscription_billing_retry_entered", "subscription_billing_retry_entered"),
        ("subscription_paused", "subscription_paused"),
        ("trial_started", "Trial!"),
    ],
)
def test_names(name: str, sent_as: str) -> None:
    request = sent(
        {**SETTINGS, "event_names": {"trial_started": "Trial!"}}, event_name=name, revenue=None
    )
    assert json.loads(request.body)["event_name"] == sent_as


@pytest.mark.parametrize(
    ("change", "revenue"),
    [
        ({"revenue_basis": "net"}, (6.79, 8.49, 1)),
        ({"revenue_basis": "gross"}, (7.99, 9.99, 0)),
        ({"send_revenue": False}, None),
        ({"no_revenue_events": ["subscription_renewed"]}, None),
    ],
)
def test_revenue_settings(change: dict[str, Any], revenue: Any) -> None:
    body = json.loads(sent({**SETTINGS, **change}).body)
    made = body["revenue"]
    assert (made and (made["value"], made["value_usd"], made["is_proceed"])) == revenue


def test_refunds_are_negative() -> None:
    (request,) = planned(provider, SETTINGS, refund()).requests
    revenue = json.loads(request.body)["revenue"]
    assert (revenue["value"], revenue["value_usd"]) == (-7.99, -9.99)


@pytest.mark.parametrize(
    ("change", "url"),
    [
        ({}, None),
        ({"include_sandbox": True}, SETTINGS["url"]),
        ({"send_sandbox": True}, SETTINGS["url"]),
        ({"sandbox_url": "https://test.customer.example/"}, "https://test.customer.example/"),
        (
            {"sandbox_url": "https://test.customer.example/", "include_sandbox": True},
            "https://test.customer.example/",
        ),
    ],
)
def test_where_sandbox_events_go(change: dict[str, Any], url: str | None) -> None:
    made = planned(provider, {**SETTINGS, **change}, event(), event(environment="sandbox"))
    assert [r.url for r in made.requests] == [SETTINGS["url"], *([url] if url else [])]
    if url is None:
        assert isinstance(made.unsent[1], Skipped)
        assert "no sandbox URL" in made.unsent[1].message


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"url": "http://api.customer.example/"}, "url", "https://"),
        ({"url": "https://user:pw@api.customer.example/"}, "url", "user or password"),
        ({"url": "https://api.customer.example/#top"}, "url", "fragment"),
        ({"url": "https://api.customer.example:6379/"}, "url", "port 443"),
        ({"url": "https://0x7f.1/"}, "url", "host name"),
        ({"url": "https://2130706433/"}, "url", "host name"),
        ({"url": "https://api.customer.example/a\nb"}, "url", "line breaks"),
        ({"url": "https://a.example/" + "a" * 2048}, "url", "at most 2048"),
        ({"url": None}, "url", "not set"),
        ({"auth_token": "two\nlines"}, "auth_token", "line breaks"),
        ({"signing_secret": "whsec_c2hvcnQ="}, "signing_secret", "24 to 64"),
        ({"signing_secret": SECRET[6:]}, "signing_secret", "whsec_"),
        ({"previous_signing_secret": "whsec_%%"}, "previous_signing_secret", "base64"),
        (
            {"previous_secret_expires_at": "2026-01-01T00:00:00"},
            "previous_secret_expires_at",
            "timezone",
        ),
        ({"custom_headers": {"Webhook-Id": "x"}}, "custom_headers", "set by us"),
        ({"custom_headers": {"content-encoding": "x"}}, "custom_headers", "set by us"),
        ({"custom_headers": {"Keep-Alive": "x"}}, "custom_headers", "set by us"),
        ({"custom_headers": {"TE": "x"}}, "custom_headers", "set by us"),
        ({"delivery": {"hold_seconds": 10**30}}, "delivery.hold_seconds", "31622400"),
        ({"delivery": {"hold_events": 10**30}}, "delivery.hold_events", "100000000"),
        ({"delivery": {"retry_threshold": True}}, "delivery.retry_threshold", "not true or false"),
        ({"custom_headers": {"X Y": "x"}}, "custom_headers", "letters, digits"),
        ({"custom_headers": {"X-Y": "x", "x-y": "y"}}, "custom_headers", "letter case"),
        ({"custom_headers": {"X-Y": "a\r\nb"}}, "custom_headers.X-Y", "line breaks"),
        ({"custom_headers": {f"X-{n}": "x" for n in range(21)}}, "custom_headers", "at most 20"),
        ({"timeout_seconds": 31}, "timeout_seconds", "30"),
        ({"timeout_seconds": 14}, "timeout_seconds", "15"),
    ],
)
def test_settings_faults(change: dict[str, Any], key: str, words: str) -> None:
    found, message = fault(provider, {**SETTINGS, **change})
    assert found == key
    assert words in message


def test_an_operator_may_allow_plain_http() -> None:
    data = {**SETTINGS, "url": "http://127.0.0.1:9000/hooks"}
    read = read_settings(provider.title, provider.settings, data, {"allow_http": True})
    (request,) = plan(provider, [event()], read, context()).requests
    assert request.url == data["url"]


def test_custom_headers_and_timeout() -> None:
    settings = {**SETTINGS, "custom_headers": {"X-Tenant": "acme"}, "timeout_seconds": 30}
    assert dict(sent(settings).headers)["X-Tenant"] == "acme"
    assert provider.limits_of
    read = read_settings(provider.title, provider.settings, settings)
    assert provider.limits_of(read).timeout == timedelta(seconds=30)


def test_hosts_are_normalised() -> None:
    request = sent({**SETTINGS, "url": "https://Bücher.Example:443/ä?token=ö"})
    assert request.url == "https://xn--bcher-kva.example/%C3%A4?token=%C3%B6"


def test_a_token_in_the_url_is_masked() -> None:
    settings = {**SETTINGS, "url": "https://api.customer.example/h?key=t0k3n"}
    read = read_settings(provider.title, provider.settings, settings)
    assert "key=t0k3n" in set(read.secrets())
    assert "t0k3n" not in read.model_dump_json() + repr(read)
    assert "https://api.customer.example/h?" in read.model_dump_json()


@pytest.mark.parametrize(
    ("status", "headers", "body", "verdict"),
    [
        (200, {}, "ok", Delivered()),
        (204, {}, "", Delivered()),
        (299, {}, "<html>", Delivered()),
        (
            301,
            {"location": "https://elsewhere.example/"},
            "",
            Retry("redirect", "URL redirects, update it: redirects are not followed"),
        ),
        (
            410,
            {},
            "",
            Gone("gone", "the receiver asks for no more events (410)"),
        ),
        (401, {}, "bad token", Misconfigured("unauthorized", "bad token")),
        (403, {}, "no", Misconfigured("forbidden", "no")),
        (429, {}, "", Retry("throttled", throttled=True)),
        (
            429,
            {"retry-after": "120"},
            "slow",
            Retry("throttled", "slow", timedelta(seconds=120), throttled=True),
        ),
        (
            503,
            {"retry-after": "Thu, 01 Jan 2026 00:07:00 GMT"},
            "",
            Retry("unavailable", "", timedelta(seconds=120), throttled=True),
        ),
        (
            503,
            {"retry-after": "86400"},
            "",
            Retry("unavailable", "", timedelta(hours=1), throttled=True),
        ),
        (503, {}, "<html>\n<b>down", Retry("unavailable", "<html> <b>down")),
        (502, {}, "", Retry("bad_gateway")),
        (504, {}, "", Retry("gateway_timeout")),
        (500, {}, "", Retry("server_error")),
        (408, {}, "", Retry("timeout")),
        (409, {}, "", Retry("bad_request")),
        (425, {}, "", Retry("too_early")),
        (400, {}, "no such field", Retry("bad_request", "no such field")),
        (404, {}, "", Retry("not_found")),
        (405, {}, "", Retry("bad_request")),
        (402, {}, "", Retry("bad_request")),
        (451, {}, "", Retry("bad_request")),
        (501, {}, "", Retry("server_error")),
        (429, {"retry-after": "-5"}, "", Retry("throttled", throttled=True)),
        (502, {"retry-after": "30"}, "", Retry("bad_gateway", "", timedelta(seconds=30))),
        (422, {}, "", Retry("bad_request")),
        (413, {}, "", Rejected("too_large")),
        (100, {}, "", Retry("bad_status")),
    ],
)
def test_classify(status: int, headers: dict[str, str], body: str, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, headers=headers) == verdict


def test_check_sends_a_marked_test_event() -> None:
    assert provider.check
    read = read_settings(provider.title, provider.settings, SETTINGS)
    request = provider.check.request(read, context())
    body = json.loads(request.body)
    assert (body["event_name"], body["environment"]) == ("test", "sandbox")
    assert (request.url, body["event_id"]) == (SETTINGS["url"], f"test_{NOW}")
    assert provider.check.read(Response(201)) == Delivered()
    assert provider.check.read(Response(401)) == Misconfigured("unauthorized")


def test_a_header_that_may_be_set_may_be_sent() -> None:
    names = {*wire._OURS, *wire._REFUSED}
    assert [name for name in names if not OURS.fullmatch(name)] == []
