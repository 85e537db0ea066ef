"""Slack's incoming webhooks and chat.postMessage, as their documentation describes refusals."""

from typing import Annotated, Any

import msgspec

from worker.sandbox.upstream import Call, Reply, Upstream, find

SERVICE = "/services/T0EXAMPLE/B0EXAMPLE/abcdefghijklmnopqrstuvwx"
TOKEN = "xoxb-sandbox-0123456789"  # noqa: S105  the sandbox's own
CHANNEL = "C0123456789"


class _Text(msgspec.Struct):
    type: str
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=3000)]


class _Block(msgspec.Struct):
    type: str
    text: _Text | None = None
    fields: list[_Text] = []
    elements: list[_Text] = []
    block_id: Annotated[str, msgspec.Meta(max_length=255)] = ""


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
    attachments = body.get("attachments", [])
    if not isinstance(attachments, list) or len(attachments) > 100:
        return "too_many_attachments"
    try:
        groups = msgspec.convert(list(find(body, "blocks")), list[list[_Block]])
    except msgspec.ValidationError:
        return "invalid_blocks_format"
    blocks = [block for group in groups for block in group]
    ids = [block.block_id for block in blocks if block.block_id]
    fine = len(blocks) <= 50 and len(ids) == len(set(ids)) and all(map(_fits, blocks))
    return "" if fine else "invalid_blocks"


def _fits(block: _Block) -> bool:
    if block.type == "header" and not (block.text and len(block.text.text) <= 150):
        return False
    parts = (block.fields, block.elements)
    return all(len(part) <= 10 and all(len(t.text) <= 2000 for t in part) for part in parts)


def _taken(body: Any) -> tuple[str, ...]:
    return tuple(block_id for block_id in find(body, "block_id") if block_id)


upstream = Upstream(
    slug="slack",
    hosts=("hooks.slack.com", "slack.com"),
    answer=answer,
    settings={"mode": "bot", "bot_token": TOKEN, "channel": CHANNEL},
    secret="bot_token",  # noqa: S106  the name of the setting
    refusal=Reply(200, {"ok": False, "error": "invalid_auth"}),
    throttle=Reply(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "2"}),
)
