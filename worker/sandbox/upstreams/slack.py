"""Slack's incoming webhooks and chat.postMessage, as their documentation describes refusals."""

from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream, find

SERVICE = "/services/T0EXAMPLE/B0EXAMPLE/abcdefghijklmnopqrstuvwx"
TOKEN = "xoxb-sandbox-0123456789"  # noqa: S105  the sandbox's own
CHANNEL = "C0123456789"


def answer(call: Call) -> Reply:
    """Return the answer of a webhook (text) or of chat.postMessage (JSON)."""
    if call.host == "slack.com":
        return _api(call)
    if call.path != SERVICE:
        return Reply(404, "no_service")
    fault = _fault(call.json)
    return Reply(400, fault) if fault else Reply(200, "ok", taken=_taken(call.json))


def _api(call: Call) -> Reply:
    if call.headers.get("authorization") != f"Bearer {TOKEN}":
        return Reply(200, {"ok": False, "error": "invalid_auth"})
    if call.path == "/api/auth.test":
        return Reply(200, {"ok": True, "team_id": "T0EXAMPLE"})
    body = call.json
    fault = _fault(body)
    if not fault and body.get("channel") != CHANNEL:
        fault = "channel_not_found"
    if fault:
        return Reply(200, {"ok": False, "error": fault})
    return Reply(200, {"ok": True, "channel": CHANNEL, "ts": "1.000200"}, taken=_taken(body))


def _fault(body: Any) -> str:
    if not isinstance(body, dict):
        return "invalid_payload"
    if not isinstance(body.get("text"), str) or not body["text"]:
        return "no_text"
    if len(body.get("attachments", [])) > 100:
        return "too_many_attachments"
    blocks = [block for group in find(body, "blocks") for block in group]
    headers = [b["text"]["text"] for b in blocks if b.get("type") == "header"]
    fields = [f["text"] for group in find(blocks, "fields") for f in group]
    too_long = [text for text in headers if len(text) > 150]
    too_long += [text for text in fields if len(text) > 2000]
    too_many = [group for group in find(blocks, "fields") if len(group) > 10]
    return "invalid_blocks" if len(blocks) > 50 or too_long or too_many else ""


def _taken(body: Any) -> tuple[str, ...]:
    return tuple(find(body, "block_id"))


upstream = Upstream(
    slug="slack",
    hosts=("hooks.slack.com", "slack.com"),
    answer=answer,
    settings={"mode": "bot", "bot_token": TOKEN, "channel": CHANNEL},
    secret="bot_token",  # noqa: S106  the name of the setting
    refusal=Reply(200, {"ok": False, "error": "invalid_auth"}),
    throttle=Reply(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "2"}),
)
