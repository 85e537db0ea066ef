"""Segment's /v1/batch. The real one answers 200 to nearly all; this one says what it would drop."""

import base64
import re
from contextlib import suppress
from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

KEY = "SandboxWriteKey0123456789"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def _invalid(message: str) -> Reply:
    return Reply(400, {"code": "invalid_request", "message": message})


def answer(call: Call) -> Reply:
    """Return the answer; a wrong write key gets 401, where the real one answers 200."""
    if call.method != "POST" or call.path != "/v1/batch":
        return Reply(404, "Not Found")
    if _user(call) != f"{KEY}:":
        return Reply(401, {"code": "unauthorized", "message": "invalid write key"})
    if len(call.body) > 500_000:
        return Reply(413, {"code": "invalid_request", "message": "batch too large"})
    body = call.json
    batch = body.get("batch") if isinstance(body, dict) else None
    if not isinstance(batch, list) or not all(isinstance(m, dict) for m in batch):
        return _invalid("malformed JSON")
    if not TIMESTAMP.fullmatch(str(body.get("sentAt"))) or not 0 < len(batch) <= 2500:
        return _invalid("malformed batch")
    faults = [fault for message in batch for fault in _faults(message)]
    if faults:
        return _invalid(faults[0])
    taken = tuple(m["messageId"] for m in batch if m["type"] == "track")
    return Reply(200, {"success": True}, taken=taken)


def _user(call: Call) -> str:
    scheme, _, value = call.headers.get("authorization", "").partition(" ")
    with suppress(ValueError):
        return base64.b64decode(value).decode() if scheme == "Basic" else ""
    return ""


def _faults(message: dict[str, Any]) -> list[str]:
    texts = (
        "type",
        "messageId",
        "timestamp",
        *(("event",) if message.get("type") == "track" else ()),
    )
    faults = [f"{name} is required" for name in texts if not _text(message.get(name))]
    if message.get("type") not in ("track", "identify"):
        faults.append("unknown type")
    if not _text(message.get("userId")) and not _text(message.get("anonymousId")):
        faults.append("userId or anonymousId is required")
    if not TIMESTAMP.fullmatch(str(message.get("timestamp"))):
        faults.append("timestamp must be ISO 8601 with milliseconds")
    revenue = (message.get("properties") or {}).get("revenue", 0)
    if isinstance(revenue, bool) or not isinstance(revenue, int | float):
        faults.append("revenue must be a number")
    return faults


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


upstream = Upstream(
    slug="segment",
    hosts=("api.segment.io", "events.eu1.segmentapis.com"),
    answer=answer,
    settings={"write_key": KEY, "region": "us"},
    secret="write_key",  # noqa: S106  the name of the setting
    refusal=Reply(401, {"code": "unauthorized", "message": "invalid write key"}),
    throttle=Reply(429, {"code": "too_many_requests", "message": "slow"}, {"Retry-After": "2"}),
)
