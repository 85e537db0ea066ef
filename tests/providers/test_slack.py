"""Slack: the messages, and what each answer means."""

import json
from datetime import timedelta
from typing import Any

import pytest

from providers.kit import (
    Delivered,
    InvalidSettings,
    Misconfigured,
    Rejected,
    Response,
    Retry,
    Skipped,
    Verdict,
    read_settings,
)
from providers.slack import SlackSettings, provider
from tests.providers.samples import classified, context, event, planned, refund, trial

URL = "https://hooks.slack.com/services/T0EXAMPLE/B0EXAMPLE/abcdefghijklmnopqrstuvwx"
HOOK = {"webhook_url": URL}
BOT = {"mode": "bot", "bot_token": "xoxb-1-a", "channel": "C0123456789"}
TYPE = {"Content-Type": "application/json; charset=utf-8"}


def message(settings: dict[str, Any], *events: Any) -> dict[str, Any]:
    (request,) = planned(provider, settings, *events).requests
    body: dict[str, Any] = json.loads(request.body)
    return body


def fields(body: dict[str, Any]) -> dict[str, str]:
    section = body["attachments"][0]["blocks"][1]
    return dict(field["text"][1:].split("*\n") for field in section["fields"])


def read(data: dict[str, Any]) -> SlackSettings:
    return read_settings(provider.title, SlackSettings, data)


def test_announces_a_renewal() -> None:
    (request,) = planned(provider, HOOK, event()).requests
    assert (request.method, request.url, dict(request.headers)) == ("POST", URL, TYPE)
    texts = [
        "*Product*\ncom.acme.pro.month",
        "*Revenue*\n£7.99 (≈ $9.99)",
        "*Platform*\niOS",
        "*User*\nacct-40001",
        "*Environment*\nproduction",
        "*Transaction*\n2000000812345678",
    ]
    date = "<!date^1767225600^{date_num} {time_secs}|2026-01-01 00:00:00Z>"
    assert json.loads(request.body) == {
        "text": "Subscription Renewed: com.acme.pro.month, £7.99 (≈ $9.99)",
        "unfurl_links": False,
        "unfurl_media": False,
        "attachments": [
            {
                "color": "#30B296",
                "fallback": "Subscription Renewed",
                "blocks": [
                    {
                        "type": "header",
                        "text": {"type": "plain_text", "text": "Subscription Renewed"},
                    },
                    {
                        "type": "section",
                        "fields": [{"type": "mrkdwn", "text": text} for text in texts],
                    },
                    {
                        "type": "context",
                        "block_id": event().id,
                        "elements": [{"type": "mrkdwn", "text": date}],
                    },
                ],
            }
        ],
    }


def test_a_refund_is_red_and_has_a_minus_sign() -> None:
    body = message(HOOK, refund())
    assert body["text"] == "Subscription Refunded: com.acme.pro.month, −£7.99 (≈ −$9.99)"  # noqa: RUF001
    assert body["attachments"][0]["color"] == "#D64545"


def test_a_bot_says_where_and_who() -> None:
    (request,) = planned(provider, BOT, trial()).requests
    assert request.url == "https://slack.com/api/chat.postMessage"
    assert dict(request.headers) == {**TYPE, "Authorization": "Bearer xoxb-1-a"}
    body = json.loads(request.body)
    assert body["channel"] == "C0123456789"
    assert body["text"] == "Trial Started: com.acme.pro.month"
    assert "Revenue" not in fields(body)


def test_a_webhook_is_told_no_channel() -> None:
    looks = {"username": "Onward", "icon_emoji": ":bell:", "channel": "C0123456789"}
    body = message({**HOOK, **looks}, event())
    assert "channel" not in body
    assert (body["username"], body["icon_emoji"]) == ("Onward", ":bell:")


def test_values_cannot_ping_people() -> None:
    body = message(HOOK, event(identity_id="<!channel> & co", product_id="a<b>" + "&" * 250))
    assert fields(body)["User"] == "&lt;!channel&gt; &amp; co"
    assert "<" not in body["text"]
    assert fields(body)["Product"] == "a&lt;b&gt;" + "&amp;" * 250


def test_a_long_value_fits_its_field() -> None:
    sample = event(identity_id=None, properties={"_q_custom_user_id": "u" * 4096})
    user = fields(message(HOOK, sample))["User"]
    assert 1900 < len(f"*User*\n{user}") <= 2000


def test_a_long_title_fits_its_header_and_breaks_no_entity() -> None:
    body = message({**HOOK, "event_names": {"trial_started": "x" * 147 + "&&"}}, trial())
    header = body["attachments"][0]["blocks"][0]["text"]["text"]
    assert header == "x" * 147
    assert len(header) <= 150


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"event_name": "in_app_purchase"}, "In-App Purchase"),
        ({"event_name": "subscription_billing_retry_entered"}, "Subscription Billing Retry"),
        ({"event_name": "subscription_paused"}, "Subscription Paused"),
        ({"event_name": "trial_expired"}, "My title"),
    ],
)
def test_titles(change: dict[str, Any], title: str) -> None:
    body = message({**HOOK, "event_names": {"trial_expired": "My title"}}, trial(**change))
    assert body["text"] == f"{title}: com.acme.pro.month"


@pytest.mark.parametrize(
    ("money", "shown"),
    [
        ({"value": 9.9, "value_usd": 9.9, "currency": "USD"}, "$9.90"),
        ({"value": 1200, "value_usd": 8.005, "currency": "JPY"}, "¥1200 (≈ $8.00)"),
        ({"value": 1.5, "value_usd": 4.9, "currency": "KWD"}, "KWD 1.500 (≈ $4.90)"),
        (None, None),
    ],
)
def test_amounts(money: Any, shown: str | None) -> None:
    assert fields(message(HOOK, event(revenue=money))).get("Revenue") == shown


def test_the_shown_user_is_the_apps_own() -> None:
    assert fields(message(HOOK, event(identity_id=None, custom_user_id="58213")))["User"] == "58213"
    anonymous = event(identity_id=None)
    assert fields(message(HOOK, anonymous))["User"] == "QON_5b1f0c9e7a3d4d22"
    nobody = event(identity_id=None, user_id=None, properties={"_q_email": "a@b.example"})
    body = message(HOOK, nobody)
    assert "User" not in fields(body)
    assert "a@b.example" not in json.dumps(body)


def test_a_mention_stands_before_the_text() -> None:
    assert message({**HOOK, "mention": "<!channel>"}, trial())["text"] == (
        "<!channel> Trial Started: com.acme.pro.month"
    )


def test_a_digest_holds_ten_events() -> None:
    settings = {**HOOK, "digest": True}
    plan = planned(provider, settings, *(event(id=f"e{n}") for n in range(12)))
    assert [request.events for request in plan.requests] == [tuple(range(10)), (10, 11)]
    body = json.loads(plan.requests[1].body)
    assert body["text"].count("Subscription Renewed: ") == len(body["attachments"]) == 2
    assert provider.limits_of
    assert provider.limits_of(read(settings)).events == 10
    assert provider.limits_of(read(HOOK)).events == 1


def test_sandbox_events_want_the_switch() -> None:
    sandbox = event(environment="sandbox")
    assert isinstance(planned(provider, HOOK, sandbox).unsent[0], Skipped)
    body = message({**HOOK, "include_sandbox": True}, sandbox)
    assert fields(body)["Environment"] == "sandbox"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "needs webhook_url"),
        ({"webhook_url": "https://evil.example/services/T0/B0/abcdefghijklmnopqrstuvwx"}, "hooks"),
        ({"webhook_url": "https://hooks.slack.com/workflows/T0/A0/1/abc"}, "workflow"),
        ({"mode": "bot"}, "needs bot_token and channel"),
        ({**BOT, "bot_token": "xoxp-1"}, "xoxb-"),
        ({**BOT, "channel": "#general"}, "not its name"),
        ({**HOOK, "mention": "everyone!"}, "<!channel>"),
        ({**HOOK, "icon_emoji": "bell"}, ":moneybag:"),
        ({**HOOK, "icon_url": "http://x.example/i.png"}, "https://"),
        ({**HOOK, "mode": "rtm"}, "incoming_webhook"),
    ],
)
def test_settings_faults(data: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        read(data)


def test_the_government_cloud_has_its_own_host() -> None:
    url = URL.replace("slack.com", "slack-gov.com")
    assert planned(provider, {"webhook_url": url}, event()).requests[0].url == url


AFTER_30 = Retry("throttled", "rate_limited", timedelta(seconds=30), throttled=True)


@pytest.mark.parametrize(
    ("status", "body", "headers", "verdict"),
    [
        (200, "ok", {}, Delivered()),
        (200, "<html>hello", {}, Retry("unexpected_answer", "<html>hello")),
        (200, "", {}, Retry("unexpected_answer")),
        (204, "", {}, Retry("unexpected_answer")),
        *(
            (400, word, {}, Rejected("bad_message", word))
            for word in [
                "invalid_payload",
                "no_text",
                "invalid_blocks",
                "invalid_blocks_format",
                "too_many_attachments",
                "missing_text_or_fallback_or_attachments",
                "user_not_found",
            ]
        ),
        (404, "user_not_found", {}, Rejected("bad_message", "user_not_found")),
        *(
            (status, word, {}, Misconfigured("refused", word))
            for status, word in [
                (403, "action_prohibited"),
                (403, "posting_to_general_channel_denied"),
                (403, "team_disabled"),
                (403, "invalid_token"),
                (404, "no_service"),
                (404, "no_active_hooks"),
                (404, "no_team"),
                (404, "no_service_id"),
                (404, "channel_not_found"),
            ]
        ),
        (
            410,
            "channel_is_archived",
            {},
            Misconfigured("refused", "channel archived (channel_is_archived)"),
        ),
        (404, "", {}, Misconfigured("not_found", "no such webhook")),
        (403, "<html>", {}, Misconfigured("forbidden", "<html>")),
        (
            302,
            "",
            {"location": "https://x.example"},
            Misconfigured("redirect", "redirects to https://x.example, which is not followed"),
        ),
        (429, "rate_limited", {"retry-after": "30"}, AFTER_30),
        (429, {"error": "rate_limited", "retry_after": 30}, {}, AFTER_30),
        (429, "", {}, Retry("throttled", throttled=True)),
        (500, "rollup_error", {}, Retry("server_error", "rollup_error")),
        (503, "", {}, Retry("unavailable")),
        (400, "something_new", {}, Rejected("bad_request", "something_new")),
    ],
)
def test_classify_webhook(
    status: int, body: Any, headers: dict[str, str], verdict: Verdict
) -> None:
    assert classified(provider, HOOK, status, body, headers=headers) == verdict


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((e, Retry) for e in ("internal_error", "fatal_error", "service_unavailable")),
        *((e, Retry) for e in ("request_timeout", "team_added_to_org", "org_login_required")),
        ("message_limit_exceeded", Retry),
        *((e, Misconfigured) for e in ("not_authed", "invalid_auth", "account_inactive")),
        *((e, Misconfigured) for e in ("token_revoked", "token_expired", "no_permission")),
        *((e, Misconfigured) for e in ("missing_scope", "not_allowed_token_type")),
        *((e, Misconfigured) for e in ("ekm_access_denied", "access_denied")),
        *((e, Misconfigured) for e in ("channel_not_found", "not_in_channel", "is_archived")),
        *((e, Misconfigured) for e in ("restricted_action", "restricted_action_read_only_channel")),
        ("posting_to_general_channel_denied", Misconfigured),
        *((e, Rejected) for e in ("msg_too_long", "no_text", "invalid_blocks")),
        *((e, Rejected) for e in ("invalid_blocks_format", "too_many_attachments")),
        *((e, Rejected) for e in ("invalid_arguments", "invalid_charset", "invalid_post_type")),
        ("something_new", Rejected),
        ("duplicate_message_not_allowed", Delivered),
    ],
)
def test_classify_errors_of_the_web_api(error: str, kind: type[Any]) -> None:
    verdict = classified(provider, BOT, 200, {"ok": False, "error": error})
    assert isinstance(verdict, kind)
    assert error in verdict.message


@pytest.mark.parametrize(
    ("status", "body", "headers", "verdict"),
    [
        (200, {"ok": True, "ts": "1.2", "warning": "x"}, {}, Delivered()),
        (
            200,
            {"ok": False, "error": "missing_scope", "needed": "chat:write"},
            {},
            Misconfigured("refused", "missing_scope: chat:write"),
        ),
        (
            200,
            {
                "ok": False,
                "error": "invalid_blocks",
                "response_metadata": {"messages": ["[ERROR] x"]},
            },
            {},
            Rejected("bad_message", "invalid_blocks: [ERROR] x"),
        ),
        (
            200,
            {"ok": False, "error": "ratelimited"},
            {"retry-after": "7"},
            Retry("throttled", "ratelimited", timedelta(seconds=7), throttled=True),
        ),
        (
            429,
            "",
            {"retry-after": "7"},
            Retry("throttled", "", timedelta(seconds=7), throttled=True),
        ),
        (200, "<html>", {}, Retry("unexpected_answer", "<html>")),
        (200, [], {}, Retry("unexpected_answer", "[]")),
        (202, "", {}, Retry("unexpected_answer")),
        (
            201,
            {"ok": False, "error": "is_archived"},
            {},
            Misconfigured("refused", "channel archived (is_archived)"),
        ),
        (200, {"ok": "true"}, {}, Retry("unexpected_answer", '{"ok": "true"}')),
        (503, "<html>", {}, Retry("unavailable", "<html>")),
        (401, "", {}, Misconfigured("unauthorized")),
    ],
)
def test_classify_web_api(
    status: int, body: Any, headers: dict[str, str], verdict: Verdict
) -> None:
    assert classified(provider, BOT, status, body, headers=headers) == verdict


@pytest.mark.parametrize(
    ("settings", "status", "fatal"),
    [(BOT, 200, b'{"ok":false,"error":"fatal_error"}'), (HOOK, 500, b"fatal_error")],
)
def test_tries_once_more_what_may_have_been_posted(
    settings: dict[str, Any], status: int, fatal: bytes
) -> None:
    first = classified(provider, settings, status, fatal)
    assert isinstance(first, Retry)
    (again,) = planned(provider, settings, event(), notes={event().id: first.note}).requests
    second = provider.classify(again, Response(status, {}, fatal), read(settings))
    assert second == Rejected("server_error", "fatal_error: may have been posted in part")
    other = provider.classify(again, Response(503), read(settings))
    assert isinstance(other, Retry)
    assert other.note == first.note  # still no third one


def test_check_of_a_webhook_posts_nothing() -> None:
    assert provider.check
    request = provider.check.request(read(HOOK), context())
    assert (request.url, request.body) == (URL, b"{}")
    assert isinstance(provider.check.read(Response(400, {}, b"no_text")), Delivered)
    assert isinstance(provider.check.read(Response(404, {}, b"no_service")), Misconfigured)


def test_check_of_a_bot_asks_who_it_is() -> None:
    assert provider.check
    request = provider.check.request(read(BOT), context())
    assert request.url == "https://slack.com/api/auth.test"
    assert dict(request.headers)["Authorization"] == "Bearer xoxb-1-a"
    assert provider.check.read(Response(200, {}, b'{"ok":true}')) == Delivered()
    refused = provider.check.read(Response(200, {}, b'{"ok":false,"error":"invalid_auth"}'))
    assert refused == Misconfigured("refused", "invalid_auth")
