"""CleverTap: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.clevertap import limits_of, provider
from providers.kit import (
    ANSWER_BYTES,
    Delivered,
    Misconfigured,
    Partial,
    Rejected,
    Response,
    Retry,
    Skipped,
    Split,
    Verdict,
    read_settings,
)
from tests.providers.samples import classified, context, event, fault, planned, refund, trial

SETTINGS = {"account_id": "ABC-1D2-345Z", "passcode": "QWE-RTY-UIOP"}
RENEWAL_ID = "6a6527b6-e423-53db-a794-7a4b9dbea32f"
REFUND_ID = "f2b1d1d4-5a0e-5d4e-8f30-0c8a8a3f9b21"
TRIAL_ID = "0d2f8c7e-5b1b-5f6c-9b6a-2a54f5f1f7aa"


def sent(settings: dict[str, Any], *events: Any) -> list[dict[str, Any]]:
    (request,) = planned(provider, {**SETTINGS, **settings}, *events).requests
    records: list[dict[str, Any]] = json.loads(request.body)["d"]
    return records


def test_sends_renewal_refund_and_trial_in_one_request() -> None:
    (request,) = planned(provider, SETTINGS, event(), refund(), trial()).requests
    assert request.method == "POST"
    assert request.url == "https://eu1.api.clevertap.com/1/upload"
    assert dict(request.headers) == {
        "Content-Type": "application/json; charset=utf-8",
        "X-CleverTap-Account-Id": "ABC-1D2-345Z",
        "X-CleverTap-Passcode": "QWE-RTY-UIOP",
    }
    assert request.refs == {RENEWAL_ID: 0, REFUND_ID: 1, TRIAL_ID: 2}
    renewal, refunded, started = json.loads(request.body)["d"]
    assert renewal == {
        "type": "event",
        "identity": "acct-40001",
        "evtName": "subscription_renewed",
        "ts": 1767225600,
        "evtData": {
            "amount": 7.99,
            "currency": "GBP",
            "amount_usd": 9.99,
            "product_id": "com.acme.pro.month",
            "store": "app_store",
            "environment": "production",
            "transaction_id": "2000000812345678",
            "original_transaction_id": "2000000700000001",
            "event_id": RENEWAL_ID,
        },
    }
    assert (refunded["evtData"]["amount"], refunded["evtData"]["amount_usd"]) == (-7.99, -9.99)
    assert not {"amount", "currency", "amount_usd"} & started["evtData"].keys()


@pytest.mark.parametrize(
    ("settings", "change", "path", "expected"),
    [
        ({"revenue_basis": "usd"}, {}, "evtData.amount", 9.99),
        ({"revenue_basis": "usd"}, {}, "evtData.currency", "USD"),
        ({"send_revenue": False}, {}, "evtData.amount", None),
        ({}, {"event_name": "trial_started"}, "evtData.amount", None),
        ({}, {"event_name": "trial_started"}, "evtData.amount_usd", None),
        ({}, {"platform": "Stripe"}, "evtData.store", "stripe"),
        ({}, {"product_id": "é" * 256}, "evtData.product_id", "é" * 256),
        ({}, {"product_id": "日" * 200}, "evtData.product_id", "日" * 170),
        ({}, {"identity_id": None}, "identity", "QON_5b1f0c9e7a3d4d22"),
        (
            {"identify_by": "objectId"},
            {"properties": {"clevertap_id": "__g1"}},
            "objectId",
            "__g1",
        ),
        (
            {"identify_by": "objectId"},
            {"properties": {"clevertap_id": "__g1"}},
            "identity",
            None,
        ),
        ({"event_names": {"subscription_renewed": "Renewal"}}, {}, "evtName", "Renewal"),
    ],
)
def test_members(
    settings: dict[str, Any], change: dict[str, Any], path: str, expected: Any
) -> None:
    found: Any = sent(settings, event(**change))[0]
    for step in path.split("."):
        found = found.get(step)
    assert found == expected


def test_money_in_is_charged_too_if_wanted() -> None:
    records = sent({"send_charged": True}, event(), refund(), trial())
    names = ["subscription_renewed", "Charged", "subscription_refunded", "trial_started"]
    assert [record["evtName"] for record in records] == names
    assert records[1] == {
        "type": "event",
        "identity": "acct-40001",
        "evtName": "Charged",
        "ts": 1767225600,
        "evtData": {
            "Amount": 7.99,
            "Currency": "GBP",
            "Charged ID": "2000000812345678",
            "Items": [{"product_id": "com.acme.pro.month", "amount": 7.99, "quantity": 1}],
            "event_id": RENEWAL_ID,
        },
    }


@pytest.mark.parametrize(("charged", "sizes"), [(False, [100, 1]), (True, [50, 50, 1])])
def test_a_request_carries_100_records(charged: bool, sizes: list[int]) -> None:
    settings = {**SETTINGS, "send_charged": charged}
    plan = planned(provider, settings, *[event(id=f"evt-{number}") for number in range(101)])
    assert [len(r.events) for r in plan.requests] == sizes
    assert max(len(json.loads(r.body)["d"]) for r in plan.requests) == 100
    assert limits_of(read_settings("", provider.settings, settings)).events == sizes[0]


@pytest.mark.parametrize("region", ["eu1", "in1", "sg1", "us1", "aps3", "mec1"])
def test_regions(region: str) -> None:
    (request,) = planned(provider, {**SETTINGS, "region": region}, event()).requests
    assert request.url == f"https://{region}.api.clevertap.com/1/upload"


def test_sandbox_events_go_to_their_own_project() -> None:
    settings = {**SETTINGS, "sandbox_account_id": "TEST-ABC", "sandbox_passcode": "T"}
    plan = planned(provider, settings, event(), event(environment="sandbox"))
    heads = [dict(r.headers) for r in plan.requests]
    assert [head["X-CleverTap-Account-Id"] for head in heads] == ["ABC-1D2-345Z", "TEST-ABC"]
    assert [head["X-CleverTap-Passcode"] for head in heads] == ["QWE-RTY-UIOP", "T"]


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (
            {},
            {"identity_id": "n/a", "user_id": None},
            "no CleverTap identity (call identify in the app)",
        ),
        (
            {"identify_by": "objectId"},
            {},
            "no CleverTap identity (user property clevertap_id)",
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


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"account_id": None}, "account_id", "CleverTap account id is not set"),
        ({"account_id": "AB C"}, "account_id", "like ABC-1D2-345Z"),
        ({"passcode": ""}, "passcode", "CleverTap passcode is not set"),
        ({"region": "eu"}, "region", "'eu1'"),
        ({"sandbox_passcode": "T"}, "", "set both sandbox_account_id"),
        ({"event_names": {"trial_started": "App Launched"}}, "", "system events"),
        ({"event_names": {"trial_started": "x" * 121}}, "", "at most 120"),
    ],
)
def test_settings_faults(change: dict[str, Any], key: str, words: str) -> None:
    where, text = fault(provider, {**SETTINGS, **change})
    assert where == key
    assert words in text


def test_charged_is_a_name_one_may_choose() -> None:
    (record,) = sent({"event_names": {"subscription_renewed": "Charged"}}, event())
    assert record["evtName"] == "Charged"


def refused(event_id: str, code: Any = 525, error: str = "Bad time") -> dict[str, Any]:
    record = {"type": "event", "evtData": {"event_id": event_id}}
    return {"status": "fail", "code": code, "error": error, "record": record}


BAD_TIME = Rejected("invalid_event", "Bad time (code 525)")
CREDENTIALS = "Invalid Credentials (or the project is not in region eu1)"
SKIPPED = {"status": "fail", "code": 512, "error": "Skipped record number : 2"}


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"status": "success", "processed": 3, "unprocessed": []}, Delivered()),
        (
            200,
            {"status": "partial", "processed": 2, "unprocessed": [refused(TRIAL_ID)]},
            Partial({2: BAD_TIME}),
        ),
        (
            200,
            {"status": "partial", "unprocessed": [refused(RENEWAL_ID, 555, "Misc")]},
            Partial({0: Retry("server_error", "Misc (code 555)")}),
        ),
        (
            200,
            {"status": "partial", "unprocessed": [refused(TRIAL_ID, "555", "Misc")]},
            Partial({2: Retry("server_error", "Misc (code 555)")}),
        ),
        (
            200,
            {"status": "partial", "unprocessed": [refused(RENEWAL_ID), SKIPPED]},
            Partial({0: BAD_TIME}, Split("bad_request", "Skipped record number : 2 (code 512)")),
        ),
        (
            200,
            {
                "status": "fail",
                "processed": 0,
                "unprocessed": [refused(RENEWAL_ID), refused(REFUND_ID), refused(TRIAL_ID)],
                "error": "none",
            },
            Partial({0: BAD_TIME, 1: BAD_TIME, 2: BAD_TIME}, Split("bad_request", "none")),
        ),
        (
            200,
            {"status": "fail", "error": "Oh", "unprocessed": []},
            Split("bad_request", "Oh"),
        ),
        (
            200,
            {"status": "fail", "error": "Invalid Credentials", "code": 401},
            Misconfigured("unauthorized", CREDENTIALS),
        ),
        (
            200,
            {"status": "fail", "error": "Too many", "code": 429},
            Retry("throttled", "Too many", timedelta(seconds=60), throttled=True),
        ),
        (200, {"status": "fail", "error": "Oh", "code": 503}, Retry("unavailable", "Oh")),
        (200, {"status": "fail", "error": "Bad", "code": 400}, Split("bad_request", "Bad")),
        (200, "<html>", Retry("unexpected_answer", "<html>")),
        (200, '{"status":"succ', Retry("unexpected_answer", '{"status":"succ')),
        (
            401,
            {"status": "fail", "error": "Invalid Credentials", "code": 401},
            Misconfigured("unauthorized", CREDENTIALS),
        ),
        (
            403,
            "Forbidden",
            Misconfigured("unauthorized", "Forbidden (or the project is not in region eu1)"),
        ),
        (400, {"error": "Bad Request"}, Split("bad_request", "Bad Request")),
        (413, "", Split("too_large")),
        (404, "", Rejected("not_found")),
        (
            429,
            {"error": "Too many concurrent requests", "code": 429},
            Retry(
                "throttled",
                "Too many concurrent requests",
                timedelta(seconds=60),
                throttled=True,
            ),
        ),
        (500, "", Retry("server_error")),
        (503, "<html>", Retry("unavailable", "<html>")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(), refund(), trial()) == verdict


def test_the_answer_is_read_whole_even_where_all_but_one_are_refused() -> None:
    events = [event(id=f"evt-{number}", product_id="p" * 80) for number in range(300)]
    request = planned(provider, SETTINGS, *events).requests[0]
    entry = {"status": "fail", "code": 528, "error": "Discarded event raised"}
    refused = [{**entry, "record": record} for record in json.loads(request.body)["d"][1:]]
    body = {"status": "partial", "processed": 1, "unprocessed": refused}
    raw = json.dumps(body).encode()[:ANSWER_BYTES]  # as much of an answer is read
    refusal = Rejected("invalid_event", "Discarded event raised (code 528)")
    expected = Partial(dict.fromkeys(range(1, len(request.events)), refusal))
    assert classified(provider, SETTINGS, 200, raw, *events) == expected


@pytest.mark.parametrize(
    ("start", "verdict"),
    [
        (b'{"status":"partial","unprocessed":[{"record":"', Split),
        (b"<!doctype html><html>", Retry),
    ],
)
def test_the_events_of_an_answer_too_long_to_be_read_go_again_in_halves(
    start: bytes, verdict: type[Verdict]
) -> None:
    raw = start.ljust(ANSWER_BYTES, b"x")
    found = classified(provider, SETTINGS, 200, raw, event(), trial())
    assert isinstance(found, verdict)


def test_a_record_that_lost_its_data_is_known_by_user_name_and_time() -> None:
    record = {"identity": "acct-40001", "evtName": "trial_started", "ts": 1767225600}
    entry = {"code": 528, "error": "Discarded", "record": record}
    body = {"status": "partial", "unprocessed": [entry]}
    verdict = classified(provider, SETTINGS, 200, body, event(), trial())
    assert verdict == Partial({1: Rejected("invalid_event", "Discarded (code 528)")})


@pytest.mark.parametrize("code", [509, 512, 513, 514, 520, 522, 523, 524, 525, 526, 528, None, "x"])
def test_codes_of_records_are_final(code: Any) -> None:
    body = {"status": "fail", "unprocessed": [refused("unknown", code, "No")]}
    verdict = classified(provider, SETTINGS, 200, body, event())
    assert isinstance(verdict, Partial)
    assert isinstance(verdict.named[0], Rejected)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, {"status": "success"}, Delivered()),
        (200, {"status": "fail", "code": 401, "error": "No"}, Misconfigured("unauthorized", "No")),
        (401, {"error": "No"}, Misconfigured("unauthorized", "No")),
        (500, "", Retry("server_error", '""')),
    ],
)
def test_check_is_a_dry_run(status: int, body: Any, outcome: Verdict) -> None:
    settings = read_settings("CleverTap", provider.settings, SETTINGS)
    assert provider.check is not None
    request = provider.check.request(settings, context())
    assert request.url == "https://eu1.api.clevertap.com/1/upload?dryRun=1"
    assert json.loads(request.body)["d"][0]["identity"] == "settings-check"
    assert provider.check.read(Response(status, {}, json.dumps(body).encode())) == outcome
