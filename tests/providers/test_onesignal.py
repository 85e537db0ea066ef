"""OneSignal: what is sent, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

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
from providers.onesignal import provider
from tests.providers.samples import classified, event, fault, planned, refund, trial

APP = "0b1f3c52-8a4d-4f0e-9d11-5d2c7a6e9f10"
TAGS = {"app_id": APP, "api_key": "os_v2_app_bm7examplekey"}
EVENTS = TAGS | {"mode": "custom_events"}
BOTH = TAGS | {"mode": "both"}
HEADERS = {
    "Content-Type": "application/json; charset=utf-8",
    "Authorization": "Key os_v2_app_bm7examplekey",
}
REFUND_ID = "f2b1d1d4-5a0e-5d4e-8f30-0c8a8a3f9b21"
AT_ONCE = timedelta(0)


def test_sends_custom_events_of_several_users_in_one_request() -> None:
    (request,) = planned(provider, EVENTS, event(), refund(identity_id="u-2"), trial()).requests
    assert (request.method, request.url) == (
        "POST",
        f"https://api.onesignal.com/apps/{APP}/custom_events",
    )
    assert dict(request.headers) == HEADERS
    events = json.loads(request.body)["events"]
    assert events[0] == {
        "name": "subscription_renewed",
        "external_id": "acct-40001",
        "timestamp": "2026-01-01T00:00:00Z",
        "idempotency_key": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
        "properties": {
            "product_id": "com.acme.pro.month",
            "revenue": 7.99,
            "currency": "GBP",
            "revenue_usd": 9.99,
            "transaction_id": "2000000812345678",
            "store": "app_store",
            "environment": "production",
            "event_time": "2026-01-01T00:00:00Z",
        },
    }
    assert (events[1]["external_id"], events[1]["properties"]["revenue"]) == ("u-2", -7.99)
    assert "revenue" not in events[2]["properties"]


def test_sends_tags_of_a_trial_start() -> None:
    given = trial(identity_id="u/3003", transaction={"expires": 1767830400})
    (request,) = planned(provider, TAGS, given).requests
    assert (request.method, request.url) == (
        "PATCH",
        f"https://api.onesignal.com/apps/{APP}/users/by/external_id/u%2F3003",
    )
    assert dict(request.headers) == HEADERS
    assert json.loads(request.body) == {
        "properties": {
            "tags": {
                "last_event_type": "trial_started",
                "product_id": "com.acme.pro.month",
                "period_type": "trial",
                "active_subscription": "true",
                "subscription_expires_at": "1767830400",
            }
        }
    }


def test_joins_the_events_of_a_user_the_latest_last() -> None:
    later = refund(time=1767225660, product_id="", transaction=None)
    other = trial(identity_id="u-2")
    first, second = planned(provider, TAGS, later, other, event()).requests
    assert (first.events, second.events) == ((0, 2), (1,))
    tags = json.loads(first.body)["properties"]["tags"]
    assert tags["last_event_type"] == "subscription_refunded"
    assert tags["active_subscription"] == "false"
    assert tags["product_id"] == "com.acme.pro.month"  # what is not known deletes nothing


def test_sends_only_the_tags_that_are_named() -> None:
    names = {"active_subscription": "premium", "properties.cohort": "cohort", "product_id": None}
    settings = TAGS | {"tag_names": names}
    plan = planned(provider, settings, event(properties={"cohort": "winter"}))
    assert json.loads(plan.requests[0].body)["properties"]["tags"] == {
        "premium": "true",
        "cohort": "winter",
    }


def test_adds_purchases_for_money_in_alone() -> None:
    settings = TAGS | {"send_purchases": True}
    nameless = event(id="evt-1", product_id="")
    priced = event(id="evt-2", event_name="trial_started")  # with an amount, and of none
    some = event(), refund(), trial(), nameless, priced
    (request,) = planned(provider, settings, *some).requests
    assert json.loads(request.body)["deltas"] == {
        "purchases": [{"sku": "com.acme.pro.month", "amount": "7.99", "iso": "GBP", "count": 1}]
    }


def test_sends_custom_events_first_and_tags_then() -> None:
    moments, tags = planned(provider, BOTH, event(), trial()).requests
    assert (moments.method, moments.step, moments.events) == ("POST", 0, (0, 1))
    assert (tags.method, tags.step, tags.events) == ("PATCH", 1, (0, 1))


def test_shortens_events_that_are_too_large() -> None:
    large = event(product_id="𝄞" * 256, old_product_id="𝄞" * 256)
    (item,) = json.loads(planned(provider, EVENTS, large).requests[0].body)["events"]
    assert "old_product_id" not in item["properties"]
    assert item["properties"]["product_id"] == "𝄞" * 256
    assert item["properties"]["revenue"] == 7.99
    assert len(json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()) <= 2024


def test_sandbox_events_go_to_their_own_app() -> None:
    other = "1" + APP[1:]
    settings = EVENTS | {"sandbox_app_id": other, "sandbox_api_key": "os_v2_sandbox"}
    plan = planned(provider, settings, event(), event(environment="sandbox"))
    assert [request.url.split("/")[4] for request in plan.requests] == [APP, other]
    assert dict(plan.requests[1].headers)["Authorization"] == "Key os_v2_sandbox"


def test_goes_by_onesignal_id_where_told() -> None:
    settings = EVENTS | {"alias_label": "onesignal_id"}
    given = event(properties={"onesignal_id": "7a1e4f0c-2b3d-4c5e-8f9a-0b1c2d3e4f50"})
    (item,) = json.loads(planned(provider, settings, given).requests[0].body)["events"]
    assert item["onesignal_id"] == "7a1e4f0c-2b3d-4c5e-8f9a-0b1c2d3e4f50"
    assert "external_id" not in item


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (
            TAGS,
            {"identity_id": None},
            "no OneSignal external id (call identify in the app, or set _q_custom_user_id)",
        ),
        (
            EVENTS,
            {"identity_id": "Not Set"},
            "no OneSignal external id (call identify in the app, or set _q_custom_user_id)",
        ),
        (
            TAGS,
            {"identity_id": ".."},
            "no OneSignal external id (call identify in the app, or set _q_custom_user_id)",
        ),
        (
            TAGS | {"alias_label": "onesignal_id"},
            {},
            "no OneSignal id (set the user property onesignal_id)",
        ),
        (
            TAGS | {"tag_names": {"cohort": "cohort"}},
            {},
            "subscription_renewed tells nothing of tag_names",
        ),
    ],
)
def test_skips(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    plan = planned(provider, settings, event(**change))
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert skipped.message == message
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"app_id": "my app"}, "app_id"),
        ({"api_key": "two words"}, "api_key"),
        ({"mode": "all"}, "mode"),
        ({"tag_names": {"product_id": "journey"}}, "tag_names.product_id"),
        ({"sandbox_app_id": APP}, ""),
    ],
)
def test_names_faults_of_settings(change: dict[str, Any], key: str) -> None:
    where, _ = fault(provider, TAGS | change)
    assert where == key


def not_found(user: str, key: str | None = None) -> dict[str, Any]:
    title = f"failed to find a onesignal_id for user_id {user}"
    return {"event_user_id": user, "event_id": key, "error": {"code": "not found", "title": title}}


GHOST = Rejected(
    "unknown_user",
    "user unknown to OneSignal: failed to find a onesignal_id for user_id u-2",
)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (202, {}, Delivered()),
        (202, "", Delivered()),
        (202, {"errors": []}, Delivered()),
        (202, {"errors": [not_found("u-2", REFUND_ID)]}, Partial({1: GHOST})),
        (202, {"errors": [not_found("u-2")]}, Partial({1: GHOST})),
        (202, {"errors": ["partly failed"]}, Split("refused", "partly failed")),
        (
            400,
            {"errors": ["Request is malformed: Failed to parse app_id from request"]},
            Misconfigured("wrong_app", "Request is malformed: Failed to parse app_id from request"),
        ),
        (400, {"errors": [{"code": "x-1", "title": "bad"}]}, Split("bad_request", "bad")),
        (401, {"errors": ["Access denied."]}, Misconfigured("unauthorized", "Access denied.")),
        (403, {"errors": ["Access denied."]}, Misconfigured("forbidden", "Access denied.")),
        (404, {"errors": ["app not found"]}, Misconfigured("wrong_app", "app not found")),
        (413, "<html>", Split("too_large", "<html>")),
        (
            429,
            {"errors": ["API rate limit exceeded."]},
            Retry("throttled", "API rate limit exceeded.", timedelta(seconds=2), throttled=True),
        ),
        (
            503,
            "Service temporarily unavailable",
            Retry("unavailable", "Service temporarily unavailable"),
        ),
    ],
)
def test_classify_custom_events(status: int, body: Any, verdict: Verdict) -> None:
    events = event(), refund(identity_id="u-2")
    assert classified(provider, EVENTS, status, body, *events) == verdict


def test_a_batch_is_so_small_that_an_answer_that_names_all_of_it_is_read_whole() -> None:
    events = [event(id=f"evt-{number}", identity_id="u" * 200) for number in range(300)]
    plan = planned(provider, EVENTS, *events)
    request = plan.requests[0]
    sent = json.loads(request.body)["events"]
    errors = [not_found(one["external_id"], one["idempotency_key"]) for one in sent[1:]]
    raw = json.dumps({"errors": errors}).encode()[:ANSWER_BYTES]
    verdict = provider.classify(
        request, Response(202, {}, raw), read_settings("", provider.settings, EVENTS)
    )
    assert isinstance(verdict, Partial)
    assert sorted(verdict.named) == list(range(1, len(request.events)))


def test_the_events_of_an_answer_too_long_to_be_read_go_again_in_halves() -> None:
    raw = b'{"errors":[{"event_id":"'.ljust(ANSWER_BYTES, b"x")
    assert isinstance(classified(provider, EVENTS, 202, raw, event(), trial()), Split)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (202, {"properties": {"tags": {}}}, Delivered()),
        (200, {}, Delivered()),
        (200, {"errors": [{"title": "no"}]}, Rejected("refused", "no")),
        (400, {"errors": ["tags are wrong"]}, Rejected("bad_request", "tags are wrong")),
        (402, {"errors": ["upgrade"]}, Rejected("plan_limit", "upgrade")),
        (
            422,
            {"errors": ["You are limited to a maximum of 2 tags"]},
            Rejected("plan_limit", "You are limited to a maximum of 2 tags"),
        ),
        (
            404,
            {"errors": [{"code": "user-1", "title": "User not found"}]},
            Rejected("unknown_user", "user unknown to OneSignal: User not found"),
        ),
        (
            409,
            {"errors": ["claimed"]},
            Partial({0: Retry("conflict", "claimed", timedelta(seconds=1), note="conflict")}),
        ),
        (500, "", Retry("server_error")),
    ],
)
def test_classify_tags(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, TAGS, status, body) == verdict


def test_waits_as_long_as_it_is_told() -> None:
    verdict = classified(provider, TAGS, 429, {"errors": []}, headers={"retry-after": "12"})
    assert isinstance(verdict, Retry)
    assert verdict.after == timedelta(seconds=12)


@pytest.mark.parametrize(
    ("mode", "failed", "step"), [("tags", 0, 0), ("both", 1, 1), ("both", 0, 0)]
)
def test_creates_a_missing_user_once(mode: str, failed: int, step: int) -> None:
    settings = TAGS | {"mode": mode, "create_missing_users": True}
    body = {"errors": [not_found("acct-40001")]}
    status = 404 if mode == "tags" or failed else 202
    verdict = classified(provider, settings, status, body, request=failed)
    outcome = verdict.named[0] if isinstance(verdict, Partial) else verdict
    assert isinstance(outcome, Retry)
    assert (outcome.after, outcome.note) == (AT_ONCE, f"create_{step}")
    plan = planned(provider, settings, event(), notes={event().id: outcome.note})
    creation = next(r for r in plan.requests if r.url.endswith("/users"))
    assert (creation.method, creation.step) == ("POST", step)
    assert json.loads(creation.body) == {"identity": {"external_id": "acct-40001"}}
    again = plan.requests[plan.requests.index(creation) + 1]
    assert again.step == step
    read = read_settings(provider.title, provider.settings, settings)
    second = provider.classify(again, Response(status, {}, json.dumps(body).encode()), read)
    outcome = second.named[0] if isinstance(second, Partial) else second
    assert isinstance(outcome, Rejected)


def test_a_user_that_cannot_be_created_is_not_created_again() -> None:
    settings = TAGS | {"create_missing_users": True}
    plan = planned(provider, settings, event(), notes={event().id: "create_0"})
    read = read_settings(provider.title, provider.settings, settings)
    creation = plan.requests[0]
    assert creation.method == "POST"
    answer = Response(404, {}, b'{"errors":["app not found"]}')
    assert provider.classify(creation, answer, read) == Misconfigured("wrong_app", "app not found")


def test_gives_up_after_a_second_conflict() -> None:
    plan = planned(provider, TAGS, event(), notes={event().id: "conflict"})
    read = read_settings(provider.title, provider.settings, TAGS)
    assert provider.classify(plan.requests[0], Response(409), read) == Rejected("conflict")
