"""SplitMetrics Acquire: what is sent, and what each answer means."""

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from providers.kit import (
    Delivered,
    Misconfigured,
    Rejected,
    Request,
    Retry,
    Skipped,
    Verdict,
)
from providers.split_metrics import provider
from tests.providers.samples import classified, event, fault, planned, refund, trial

SETTINGS = {"client_id": "Qx7RkT2mWb9LhVd4YpNc8e", "app_id": "1590000001"}
RECORD = {
    "attributed": True,
    "org_id": "40669111",
    "campaign_id": "542370111",
    "ad_group_id": "542317222",
    "keyword_id": "87675333",
    "ad_id": "542319444",
    "country_or_region": "GB",
    "conversion_type": "Download",
    "click_date": "2025-11-30T23:55Z",
}
ATTRIBUTED = {"asa_attribution": RECORD, "installed_at": 1764547200, "advertiser_id": None}
USER = "QON_5b1f0c9e7a3d4d22"


def query(request: Request) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(request.url).query, strict_parsing=True))


def test_sends_a_renewal_in_the_address() -> None:
    settings = SETTINGS | {"revenue_basis": "gross"}
    (request,) = planned(provider, settings, event(**ATTRIBUTED)).requests
    assert (request.method, request.headers, request.body) == ("GET", (), b"")
    assert request.url == (
        "https://events.searchadshq.com/api/events/Qx7RkT2mWb9LhVd4YpNc8e/custom"
        "?source=Apple%20Search%20Ads&name=subscription_renewed&type=in-app&app_id=1590000001"
        "&user_id=QON_5b1f0c9e7a3d4d22&adaccount_id=40669111&campaign_id=542370111"
        "&adgroup_id=542317222&keyword_id=87675333&ad_id=542319444&country_or_region=GB"
        "&tap_time=1764546900&open_time=1764547200&event_time=1767225600&conversion_type=Download"
        "&event_id=6a6527b6-e423-53db-a794-7a4b9dbea32f&revenue=9.99&currency=USD"
    )


@pytest.mark.parametrize(
    ("settings", "money"),
    [
        ({}, ("8.49", "USD")),
        ({"currency_basis": "local", "revenue_basis": "gross"}, ("7.99", "GBP")),
        ({"send_revenue": False}, (None, None)),
    ],
)
def test_sends_money_as_told(settings: dict[str, Any], money: tuple[Any, Any]) -> None:
    sent = query(planned(provider, SETTINGS | settings, event(**ATTRIBUTED)).requests[0])
    assert (sent.get("revenue"), sent.get("currency")) == money


@pytest.mark.parametrize(("rule", "revenue"), [("none", None), ("negative", "-9.99")])
def test_sends_refunds_by_name(rule: str, revenue: str | None) -> None:
    settings = SETTINGS | {"refund_revenue": rule}
    sent = query(planned(provider, settings, refund(**ATTRIBUTED)).requests[0])
    assert sent["name"] == "subscription_refunded"
    assert sent.get("revenue") == revenue
    assert ("currency" in sent) == (revenue is not None)


def test_never_sends_a_zero() -> None:
    free = {"value": 0, "value_usd": 0, "currency": "USD"}
    sent = query(planned(provider, SETTINGS, event(**ATTRIBUTED, revenue=free)).requests[0])
    assert not {"revenue", "currency"} & sent.keys()


def test_sends_money_of_no_event_but_those_that_move_it() -> None:
    paid = {"value": 1, "value_usd": 1, "currency": "USD"}
    sent = query(planned(provider, SETTINGS, trial(**ATTRIBUTED, revenue=paid)).requests[0])
    assert not {"revenue", "currency"} & sent.keys()


def test_leaves_out_what_is_not_known() -> None:
    record = RECORD | {"keyword_id": None, "ad_id": "-1", "click_date": "soon"}
    given = trial(asa_attribution=record, advertiser_id="00000000-0000-0000-0000-000000000000")
    sent = query(planned(provider, SETTINGS, given).requests[0])
    assert not {"keyword_id", "ad_id", "tap_time", "open_time", "idfa", "revenue"} & sent.keys()


def test_sends_the_advertising_id_where_it_may() -> None:
    idfa = "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11"
    open_to = event(**(ATTRIBUTED | {"advertiser_id": idfa}))
    denied = event(**(ATTRIBUTED | {"advertiser_id": idfa, "device": {"att_status": 2}}))
    first, second = planned(provider, SETTINGS, open_to, denied).requests
    assert query(first)["idfa"] == idfa
    assert "idfa" not in query(second)


@pytest.mark.parametrize(
    ("unit", "kind", "time"),
    [
        ("ms", "in-app", "1767225600000"),
        ("datetime", "trial_started", "2026-01-01 00:00:00"),
    ],
)
def test_writes_times_as_told(unit: str, kind: str, time: str) -> None:
    settings = SETTINGS | {"time_unit": unit}
    sent = query(planned(provider, settings, trial(**ATTRIBUTED)).requests[0])
    assert (sent["type"], sent["event_time"]) == (kind, time)


def test_sends_an_install_before_the_first_event_where_told() -> None:
    settings = SETTINGS | {"send_install": True}
    plan = planned(provider, settings, trial(**ATTRIBUTED), event(**ATTRIBUTED))
    install, first, _renewal = plan.requests
    assert (install.step, first.step) == (0, 1)
    sent = query(install)
    assert (sent["name"], sent["type"]) == ("install", "install")
    assert (sent["open_time"], sent["event_time"]) == ("1764547200", "1764547200")
    assert sent["event_id"] != query(first)["event_id"]


def test_takes_what_the_project_resolved_and_the_id_that_is_chosen() -> None:
    settings = SETTINGS | {
        "user_id_source": "identity_id",
        "endpoint": "https://eu.splitmetrics.com/e/{client_id}",
    }
    plan = planned(provider, settings, event(), attributions={USER: RECORD})
    assert plan.requests[0].url.startswith(
        "https://eu.splitmetrics.com/e/Qx7RkT2mWb9LhVd4YpNc8e?source="
    )
    assert query(plan.requests[0])["user_id"] == "acct-40001"


def test_waits_while_the_attribution_is_awaited() -> None:
    plan = planned(provider, SETTINGS, event(), resolving=frozenset({USER}))
    (waits,) = plan.unsent.values()
    assert isinstance(waits, Retry)
    assert (waits.reason, waits.after) == ("attribution_pending", timedelta(minutes=5))


INCOMPLETE = "incomplete Apple Search Ads attribution"


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, {}, "user not attributed to Apple Search Ads"),
        ({}, {"asa_attribution": {"attributed": False}}, "user not attributed to Apple Search Ads"),
        ({}, {"asa_attribution": RECORD | {"org_id": None}}, INCOMPLETE),
        ({}, {"asa_attribution": RECORD | {"campaign_id": ""}}, INCOMPLETE),
        ({}, {"asa_attribution": RECORD | {"ad_group_id": "-1"}}, INCOMPLETE),
        ({}, {"asa_attribution": RECORD | {"country_or_region": None}}, INCOMPLETE),
        (
            {"require_keyword": True},
            {"asa_attribution": RECORD | {"keyword_id": None}},
            "no keyword in the user's Apple Search Ads attribution",
        ),
        (
            {},
            {"asa_attribution": RECORD | {"campaign_id": "1234567890"}},
            "Apple's test attribution is not forwarded",
        ),
        ({}, ATTRIBUTED | {"user_id": None}, "no user_id for this user"),
        ({}, ATTRIBUTED | {"platform": "Stripe"}, "takes events of iOS only"),
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
        ({"client_id": "short"}, "client_id"),
        ({"app_id": "id1590000001"}, "app_id"),
        ({"endpoint": "https://searchadshq.com.evil.example/"}, "endpoint"),
        ({"endpoint": "http://events.searchadshq.com/"}, "endpoint"),
        ({"time_unit": "iso"}, "time_unit"),
    ],
)
def test_names_faults_of_settings(change: dict[str, Any], key: str) -> None:
    where, _ = fault(provider, SETTINGS | change)
    assert where == key


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, "", Delivered()),
        (204, "", Delivered()),
        (200, "<html>", Delivered()),
        (200, {"error": None, "success": True}, Delivered()),
        (200, {"error": "bad name"}, Rejected("refused", '{"error": "bad name"}')),
        (200, {"errors": ["x"]}, Rejected("refused", '{"errors": ["x"]}')),
        (200, {"success": False}, Rejected("refused", '{"success": false}')),
        (200, {"status": "error"}, Rejected("refused", '{"status": "error"}')),
        (200, {"status": "Error"}, Rejected("refused", '{"status": "Error"}')),
        (200, {"success": "false"}, Rejected("refused", '{"success": "false"}')),
        (200, {"success": None, "status": ["error"]}, Delivered()),
        (302, "", Rejected("redirect", "redirects, which is not followed (see endpoint)")),
        (400, {"error": "bad name"}, Rejected("bad_request", "bad name")),
        (422, {"message": "no"}, Rejected("bad_request", "no")),
        (401, "", Misconfigured("unauthorized", "client id or endpoint unknown")),
        (403, "no", Misconfigured("forbidden", "no")),
        (404, "", Misconfigured("not_found", "client id or endpoint unknown")),
        (414, "", Rejected("bad_request")),
        (429, "", Retry("throttled", "", timedelta(minutes=1), throttled=True)),
        (502, "", Retry("bad_gateway")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(**ATTRIBUTED)) == verdict
