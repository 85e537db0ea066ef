"""Asapty: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from providers.asapty import provider
from providers.kit import (
    Delivered,
    Misconfigured,
    Rejected,
    Request,
    Retry,
    Skipped,
    Verdict,
)
from tests.providers.samples import classified, event, fault, planned, refund, trial

SETTINGS = {"asapty_id": "a1b2c3d4"}
GROSS = SETTINGS | {"revenue_basis": "gross"}
RECORD = {
    "attributed": True,
    "org_id": "40669111",
    "campaign_id": "542370111",
    "ad_group_id": "542317222",
    "keyword_id": "87675333",
    "ad_id": "542319444",
    "claim_type": "Click",
}
ATTRIBUTED = {"asa_attribution": RECORD, "installed_at": 1764547200}
USER = "QON_5b1f0c9e7a3d4d22"


def query(request: Request) -> dict[str, Any]:
    values: dict[str, Any] = dict(parse_qsl(urlsplit(request.url).query, strict_parsing=True))
    return values | {"json": json.loads(values["json"])}


def test_sends_a_renewal_in_the_address() -> None:
    (request,) = planned(provider, GROSS, event(**ATTRIBUTED)).requests
    assert (request.method, request.headers, request.body) == ("GET", (), b"")
    assert request.url == (
        "https://asapty.com/_api/mmpEvents/?source=qonversion&asaptyid=a1b2c3d4"
        "&event_name=subscription_renewed&conversiondate=1767225600000&campaignid=542370111"
        "&adgroupid=542317222&keywordid=87675333&ad_id=542319444&claim_type=Click"
        "&install_time=1764547200&json=%7B%22af_revenue%22%3A%229.99%22%2C%22af_currency%22%3A"
        "%22USD%22%2C%22transaction_id%22%3A%222000000812345678%22%2C%22original_transaction_id"
        "%22%3A%222000000700000001%22%2C%22purchase_date%22%3A1767225600000%2C%22environment%22"
        "%3A%22PRODUCTION%22%2C%22vendor_product_id%22%3A%22com.acme.pro.month%22%2C"
        "%22store_country%22%3A%22GB%22%7D"
    )


def test_sends_proceeds_in_dollars_by_default() -> None:
    (request,) = planned(provider, SETTINGS, event(**ATTRIBUTED)).requests
    assert query(request)["json"]["af_revenue"] == "8.49"


@pytest.mark.parametrize(("rule", "amount"), [("negative", "-9.99"), ("zero", "0.00")])
def test_sends_refunds_as_told(rule: str, amount: str) -> None:
    settings = SETTINGS | {"refund_revenue": rule, "revenue_key": "both"}
    (request,) = planned(provider, settings, refund(**ATTRIBUTED)).requests
    details = query(request)["json"]
    assert (details["af_revenue"], details["revenue"]) == (amount, amount)


def test_sends_a_trial_start_without_money_and_what_is_unknown_not_at_all() -> None:
    record = RECORD | {"keyword_id": "-1", "ad_id": None, "claim_type": ""}
    bare = {"transaction": None, "country": None, "product_id": None}
    (request,) = planned(provider, SETTINGS, trial(asa_attribution=record, **bare)).requests
    assert query(request) == {
        "source": "qonversion",
        "asaptyid": "a1b2c3d4",
        "event_name": "trial_started",
        "conversiondate": "1767225600000",
        "campaignid": "542370111",
        "adgroupid": "542317222",
        "json": {"environment": "PRODUCTION"},
    }


def test_sends_money_of_no_event_but_those_that_move_it() -> None:
    paid = {"value": 1, "value_usd": 1, "currency": "USD"}
    (request,) = planned(provider, SETTINGS, trial(**ATTRIBUTED, revenue=paid)).requests
    assert not {"af_revenue", "af_currency"} & query(request)["json"].keys()


def test_takes_apple_s_own_form_and_what_the_project_resolved() -> None:
    settings = SETTINGS | {"install_time_unit": "ms", "source": "onward"}
    apple = {"attribution": True, "campaignId": 542370111, "keywordId": 87675333}
    own, known = (
        planned(provider, settings, event(asa_attribution=apple, installed_at=1764547200)),
        planned(provider, settings, event(), attributions={USER: RECORD}),
    )
    sent = query(own.requests[0])
    assert (sent["campaignid"], sent["keywordid"]) == ("542370111", "87675333")
    assert (sent["install_time"], sent["source"]) == ("1764547200000", "onward")
    assert query(known.requests[0])["campaignid"] == "542370111"


def test_waits_while_the_attribution_is_awaited() -> None:
    plan = planned(provider, SETTINGS, event(), resolving=frozenset({USER}))
    (waits,) = plan.unsent.values()
    assert isinstance(waits, Retry)
    assert (waits.reason, waits.after) == ("attribution_pending", timedelta(minutes=5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "user not attributed to Apple Search Ads"),
        ({"asa_attribution": {"attributed": False}}, "user not attributed to Apple Search Ads"),
        (
            {"asa_attribution": {"attributed": True, "org_id": "1"}},
            "no campaign in the user's Apple Search Ads attribution",
        ),
        (
            {"asa_attribution": RECORD | {"campaign_id": "1234567890"}},
            "Apple's test attribution is not forwarded",
        ),
        (ATTRIBUTED | {"platform": "Android"}, "Asapty takes events of iOS only"),
    ],
)
def test_skips(change: dict[str, Any], message: str) -> None:
    plan = planned(provider, SETTINGS, event(**change))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"asapty_id": "a b"}, "asapty_id"),
        ({"endpoint": "https://asapty.com.evil.example/"}, "endpoint"),
        ({"endpoint": "http://asapty.com/_api/mmpEvents/"}, "endpoint"),
        ({"revenue_basis": "net"}, "revenue_basis"),
    ],
)
def test_names_faults_of_settings(change: dict[str, Any], key: str) -> None:
    where, _ = fault(provider, SETTINGS | change)
    assert where == key


REFUSAL = '{"result":{"status":"ERROR","message":"unknown asaptyid"}}'


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"result": {"status": "OK"}}, Delivered()),
        (200, REFUSAL, Rejected("refused", REFUSAL)),
        (200, {"error": "no"}, Rejected("refused", '{"error": "no"}')),
        (200, {"errors": ["no"]}, Rejected("refused", '{"errors": ["no"]}')),
        (200, {"status": "ERROR"}, Rejected("refused", '{"status": "ERROR"}')),
        (200, {}, Rejected("refused", "{}")),
        (200, "", Delivered("answered without a result")),
        (200, "<html>", Delivered("answered without a result")),
        (202, "", Delivered()),
        (301, "", Rejected("redirect", "redirects, which is not followed (see endpoint)")),
        (400, "bad", Rejected("bad_request", "bad")),
        (422, "bad", Rejected("bad_request", "bad")),
        (401, "", Misconfigured("unauthorized", "unknown Asapty ID or endpoint")),
        (403, "no", Misconfigured("forbidden", "no")),
        (404, "", Misconfigured("not_found", "unknown Asapty ID or endpoint")),
        (414, "", Rejected("bad_request")),
        (429, "", Retry("throttled", "", timedelta(minutes=1), throttled=True)),
        (503, "", Retry("unavailable")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(**ATTRIBUTED)) == verdict


def test_sends_again_without_a_result_where_told() -> None:
    settings = SETTINGS | {"strict_ack": True}
    verdict = classified(provider, settings, 200, "", event(**ATTRIBUTED))
    assert verdict == Retry("no_acknowledgement", "empty answer")
