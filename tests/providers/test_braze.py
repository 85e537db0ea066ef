"""Braze: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.braze import limits_of, provider
from providers.kit import (
    Delivered,
    Misconfigured,
    Partial,
    Plan,
    Rejected,
    Response,
    Retry,
    Skipped,
    Split,
    Verdict,
    read_settings,
)
from tests.providers.samples import NOW, classified, context, event, fault, planned, refund, trial

KEY = "01234567-89ab-cdef-0123-456789abcdef"
OTHER = "fedcba98-89ab-cdef-0123-456789abcdef"
SETTINGS = {"api_key": KEY, "instance": "EU-01"}
NO_DATA = "Valid data must be provided in the 'attributes', 'events', or 'purchases' fields."
NO_ID = {"identity_id": None, "user_id": None}


def body_of(settings: dict[str, Any], *events: Any) -> dict[str, Any]:
    (request,) = planned(provider, {**SETTINGS, **settings}, *events).requests
    body: dict[str, Any] = json.loads(request.body)
    return body


def test_sends_renewal_refund_and_trial_in_one_request() -> None:
    some = [event(), refund(time=1767225660), trial(time=1767225720)]
    (request,) = planned(provider, SETTINGS, *some).requests
    assert request.method == "POST"
    assert request.url == "https://rest.fra-01.braze.eu/users/track"
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {KEY}",
    }
    assert request.refs == {
        "events.0": 0,
        "purchases.0": 0,
        "events.1": 1,
        "purchases.1": 1,
        "events.2": 2,
    }
    body = json.loads(request.body)
    assert body.keys() == {"events", "purchases"}
    assert body["events"][0] == {
        "external_id": "acct-40001",
        "name": "subscription_renewed",
        "time": "2026-01-01T00:00:00Z",
        "properties": {
            "revenue": 7.99,
            "revenue_usd": 9.99,
            "currency": "GBP",
            "revenue_currency": "GBP",
            "product_id": "com.acme.pro.month",
            "product": "com.acme.pro.month",
            "transaction_id": "2000000812345678",
            "original_transaction_id": "2000000700000001",
            "store": "app_store",
            "environment": "production",
            "event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        },
    }
    assert body["purchases"] == [
        {
            "external_id": "acct-40001",
            "product_id": "com.acme.pro.month",
            "currency": "GBP",
            "price": 7.99,
            "quantity": 1,
            "time": "2026-01-01T00:00:00Z",
            "properties": {"event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f"},
        },
        {
            "external_id": "acct-40001",
            "product_id": "com.acme.pro.month",
            "currency": "GBP",
            "price": -7.99,
            "quantity": 1,
            "time": "2026-01-01T00:01:00Z",
            "properties": {"event_id": "f2b1d1d4-5a0e-5d4e-8f30-0c8a8a3f9b21"},
        },
    ]
    assert body["events"][1]["properties"]["revenue"] == -7.99
    assert not {"revenue", "currency", "revenue_usd"} & body["events"][2]["properties"].keys()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"external_id": "acct-40001"}),
        ({"identity_id": None}, {"external_id": "QON_5b1f0c9e7a3d4d22"}),
        ({"identity_id": "null", "custom_user_id": "58213"}, {"external_id": "58213"}),
        (
            {**NO_ID, "properties": {"brazeAliasName": "a-1", "brazeAliasLabel": "crm"}},
            {
                "user_alias": {"alias_name": "a-1", "alias_label": "crm"},
                "_update_existing_only": False,
            },
        ),
        (
            {**NO_ID, "properties": {"brazeAliasName": "a-1"}},
            {
                "user_alias": {"alias_name": "a-1", "alias_label": "qonversion_user_id"},
                "_update_existing_only": False,
            },
        ),
        (
            {**NO_ID, "properties": {"_q_email": "mira@example.com"}},
            {"email": "mira@example.com"},
        ),
    ],
)
def test_identifies_the_user(change: dict[str, Any], expected: dict[str, Any]) -> None:
    body = body_of({"use_email": True}, event(**change))
    for item in (*body["events"], *body["purchases"]):
        keys = ("external_id", "user_alias", "email", "_update_existing_only")
        assert {key: item[key] for key in keys if key in item} == expected


def test_unknown_users_are_created_only_if_wanted() -> None:
    body = body_of({"create_users": False}, event())
    assert body["events"][0]["_update_existing_only"] is True
    assert body["purchases"][0]["_update_existing_only"] is True


@pytest.mark.parametrize(
    ("settings", "change", "path", "expected"),
    [
        ({"revenue_basis": "usd"}, {}, "events.properties.revenue", 9.99),
        ({"revenue_basis": "usd"}, {}, "purchases.currency", "USD"),
        ({"revenue_basis": "usd"}, {}, "purchases.price", 9.99),
        ({"app_id": "x", "app_id_ios": "i"}, {}, "purchases.app_id", "i"),
        ({"app_id": "x", "app_id_ios": "i"}, {"platform": "Android"}, "events.app_id", "x"),
        ({}, {"platform": "Android"}, "events.properties.store", "play_store"),
        ({}, {"product_id": "p" * 256}, "purchases.product_id", "p" * 255),
        ({"event_names": {"subscription_renewed": "Renewal"}}, {}, "events.name", "Renewal"),
    ],
)
def test_members(
    settings: dict[str, Any], change: dict[str, Any], path: str, expected: Any
) -> None:
    array, *steps = path.split(".")
    found = body_of(settings, event(**change))[array][0]
    for step in steps:
        found = found[step]
    assert found == expected


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"send_purchases": False}, {}),
        ({"send_revenue": False}, {}),
        ({}, {"product_id": None}),
        ({}, {"revenue": None}),
        ({}, {"event_name": "subscription_canceled"}),
    ],
)
def test_no_purchase_without_all_it_needs(settings: dict[str, Any], change: dict[str, Any]) -> None:
    assert body_of(settings, event(**change)).keys() == {"events"}


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [({}, [75, 5]), ({"mau_plan": True}, [25, 25, 25, 5])],
)
def test_keeps_to_the_caps_of_the_plan(settings: dict[str, Any], sizes: list[int]) -> None:
    events = [event(id=f"evt-{number}") for number in range(80)]
    plan = planned(provider, {**SETTINGS, **settings}, *events)
    assert [len(r.events) for r in plan.requests] == sizes
    assert [position for r in plan.requests for position in r.events] == list(range(80))


def test_trials_fill_a_request_of_a_mau_plan() -> None:
    trials = [trial(id=f"evt-{number}") for number in range(60)]
    plan = planned(provider, {**SETTINGS, "mau_plan": True}, *trials)
    assert [len(r.events) for r in plan.requests] == [50, 10]


def test_limits_follow_the_plan() -> None:
    mau = read_settings("Braze", provider.settings, {**SETTINGS, "mau_plan": True})
    assert limits_of(mau).events == 50
    assert limits_of(read_settings("Braze", provider.settings, SETTINGS)).events == 75


def test_sandbox_events_go_to_their_own_workspace() -> None:
    settings = {**SETTINGS, "sandbox_api_key": OTHER, "sandbox_instance": "US-08"}
    plan = planned(provider, settings, event(), event(environment="sandbox"))
    assert [(r.url, dict(r.headers)["Authorization"]) for r in plan.requests] == [
        ("https://rest.fra-01.braze.eu/users/track", f"Bearer {KEY}"),
        ("https://rest.iad-08.braze.com/users/track", f"Bearer {OTHER}"),
    ]


def test_a_custom_instance_has_its_own_endpoint() -> None:
    settings = {
        **SETTINGS,
        "instance": "custom",
        "rest_endpoint": "https://rest.us-11.braze.com",
    }
    (request,) = planned(provider, settings, event()).requests
    assert request.url == "https://rest.us-11.braze.com/users/track"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (NO_ID, "no Braze identifier (external_id, alias or e-mail)"),
        (
            {**NO_ID, "properties": {"_q_email": "mira@example.com"}},
            "no Braze identifier (external_id, alias or e-mail)",
        ),
        (
            {"environment": "sandbox"},
            "sandbox event, and these settings send production events only",
        ),
    ],
)
def test_skips(change: dict[str, Any], message: str) -> None:
    plan = planned(provider, SETTINGS, event(**change))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"api_key": None}, "api_key", "Braze api key is not set"),
        ({"api_key": "abc"}, "api_key", "must be a REST API key"),
        ({"instance": None}, "instance", "Braze instance is not set"),
        ({"instance": "eu-01"}, "instance", "'JP-01' or 'custom'"),
        ({"instance": "custom"}, "", "rest_endpoint goes with instance custom"),
        ({"rest_endpoint": "https://rest.us-11.braze.com"}, "", "and only with it"),
        (
            {"instance": "custom", "rest_endpoint": "https://rest.evil.example/"},
            "rest_endpoint",
            "must be a REST endpoint",
        ),
        ({"sandbox_instance": "US-01"}, "", "sandbox_instance needs sandbox_api_key"),
        ({"event_names": {"in_app_purchase": "ecommerce.order_placed"}}, "", "Braze reserves"),
    ],
)
def test_settings_faults(change: dict[str, Any], key: str, words: str) -> None:
    where, text = fault(provider, {**SETTINGS, **change})
    assert where == key
    assert words in text


def error(array: Any, index: Any, kind: str = "'time' is not valid") -> dict[str, Any]:
    return {"type": kind, "input_array": array, "index": index}


BAD_TIME = Rejected("invalid_event", "'time' is not valid")


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (201, {"message": "success", "events_processed": 3}, Delivered()),
        (200, {"message": "success"}, Delivered()),
        (202, {"message": "queued"}, Delivered()),
        (201, {"events_processed": 3}, Delivered()),
        (201, "", Retry("unexpected_answer")),
        (200, "<html>hello</html>", Retry("unexpected_answer", "<html>hello</html>")),
        (201, '{"message":"succ', Retry("unexpected_answer", '{"message":"succ')),
        (201, {"message": "success", "errors": [error("events", 2)]}, Partial({2: BAD_TIME})),
        (201, {"message": "success", "errors": [error("purchases", 1)]}, Partial({1: BAD_TIME})),
        (
            201,
            {"message": "success", "errors": [error("events", 0), error("purchases", 0, "price")]},
            Partial({0: BAD_TIME}),
        ),
        (
            201,
            {"message": "success", "errors": ["odd", error("events", True), error([], 9)]},
            Delivered(),
        ),
        (
            201,
            {"message": "Internal fault", "errors": [error("events", 1)]},
            Partial({1: BAD_TIME}, Split("bad_request", "Internal fault")),
        ),
        (201, {"message": "Internal fault"}, Split("bad_request", "Internal fault")),
        (
            400,
            {"message": NO_DATA, "errors": [error("events", 0), error("events", 1)]},
            Partial({0: BAD_TIME, 1: BAD_TIME}, Rejected("invalid_event", NO_DATA)),
        ),
        (400, {"message": NO_DATA}, Split("bad_request", NO_DATA)),
        (
            400,
            {"message": "Max Input Length Exceeded"},
            Split("bad_request", "Max Input Length Exceeded"),
        ),
        (400, "<html>bad</html>", Split("bad_request", "<html>bad</html>")),
        (
            401,
            {"message": "Invalid API key: 0123"},
            Misconfigured("unauthorized", "Invalid API key: 0123"),
        ),
        (403, {"message": "Inactive"}, Misconfigured("forbidden", "Inactive")),
        (404, "", Misconfigured("not_found")),
        (413, "", Split("too_large")),
        (429, {"message": "slow"}, Retry("throttled", "slow", throttled=True)),
        (500, "", Retry("server_error")),
        (503, '{"message":', Retry("unavailable", '{"message":')),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, SETTINGS, status, body, event(), refund(), trial()) == verdict


BYN = {"revenue": {"value": 32.5, "value_usd": 9.99, "currency": "BYN"}}
NO_CURRENCY = "'currency' is not valid"
IN_DOLLARS = Retry("bad_currency", NO_CURRENCY, timedelta(0), note="dollars")


@pytest.mark.parametrize(
    ("status", "message", "errors", "verdict"),
    [
        (201, "success", [error("purchases", 1, NO_CURRENCY)], Partial({1: IN_DOLLARS})),
        (
            201,
            "success",
            [error("purchases", 1, NO_CURRENCY), error("events", 1)],
            Partial({1: BAD_TIME}),
        ),
        (
            201,
            "success",
            [error("events", 1), error("purchases", 1, NO_CURRENCY)],
            Partial({1: BAD_TIME}),
        ),
        (
            201,
            "success",
            [error("events", 1, NO_CURRENCY)],
            Partial({1: Rejected("invalid_event", NO_CURRENCY)}),
        ),
        (
            201,
            "Internal fault",
            [error("purchases", 1, NO_CURRENCY)],
            Partial(
                {1: Rejected("invalid_event", NO_CURRENCY)}, Split("bad_request", "Internal fault")
            ),
        ),
        (
            400,
            NO_DATA,
            [error("purchases", 1, NO_CURRENCY)],
            Partial(
                {1: Rejected("invalid_event", NO_CURRENCY)}, Rejected("invalid_event", NO_DATA)
            ),
        ),
    ],
)
def test_a_purchase_in_a_currency_unknown_to_braze_goes_again_in_dollars(
    status: int, message: str, errors: list[dict[str, Any]], verdict: Verdict
) -> None:
    body = {"message": message, "errors": errors}
    assert classified(provider, SETTINGS, status, body, event(), event(**BYN)) == verdict


def test_sends_again_in_dollars_the_purchase_alone() -> None:
    paid = event(**BYN)
    notes = {paid.id: "dollars"}
    (request,) = planned(provider, SETTINGS, paid, notes=notes).requests
    assert request.refs == {"purchases.0": 0}
    assert json.loads(request.body) == {
        "purchases": [
            {
                "external_id": "acct-40001",
                "product_id": "com.acme.pro.month",
                "currency": "USD",
                "price": 9.99,
                "quantity": 1,
                "time": "2026-01-01T00:00:00Z",
                "properties": {"event_id": "6a6527b6-e423-53db-a794-7a4b9dbea32f"},
            }
        ]
    }
    read = read_settings("Braze", provider.settings, SETTINGS)
    body = json.dumps({"message": "success", "errors": [error("purchases", 0, NO_CURRENCY)]})
    refused = provider.classify(request, Response(201, {}, body.encode()), read)
    assert refused == Partial({0: Rejected("invalid_event", NO_CURRENCY)})
    busy = provider.classify(request, Response(503, {}, b""), read)
    assert busy == Retry("unavailable", note="dollars")


def test_sends_no_event_twice_where_purchases_were_switched_off_meanwhile() -> None:
    paid = event(**BYN)
    settings = {**SETTINGS, "send_purchases": False}
    plan = planned(provider, settings, paid, notes={paid.id: "dollars"})
    assert plan == Plan(
        (), {0: Skipped("switched_off", "the event is in, and purchases are switched off")}
    )


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({"x-ratelimit-retry-after": "3"}, 3),
        ({"retry-after": "4"}, 4),
        ({"x-ratelimit-reset": str(NOW + 1800), "x-ratelimit-remaining": "0"}, 1800),
        ({"x-ratelimit-retry-after": "3", "x-ratelimit-reset": str(NOW + 1800)}, 3),
    ],
)
def test_waits_as_long_as_braze_says(headers: dict[str, str], after: int) -> None:
    verdict = classified(provider, SETTINGS, 429, "", headers=headers)
    assert verdict == Retry("throttled", "", timedelta(seconds=after), throttled=True)


@pytest.mark.parametrize(
    ("status", "message", "outcome"),
    [
        (400, NO_DATA, Delivered()),
        (401, "Invalid API key", Misconfigured("unauthorized", "Invalid API key")),
        (404, "Not found", Misconfigured("not_found", "Not found")),
        (503, "Oh", Retry("unavailable", "Oh")),
    ],
)
def test_check_posts_an_event_of_nobody(status: int, message: str, outcome: Verdict) -> None:
    settings = read_settings("Braze", provider.settings, SETTINGS)
    assert provider.check is not None
    request = provider.check.request(settings, context())
    assert json.loads(request.body) == {
        "events": [{"name": "settings_check", "time": "2026-01-01T00:05:00Z"}]
    }
    body = json.dumps({"message": message}).encode()
    assert provider.check.read(Response(status, {}, body)) == outcome
