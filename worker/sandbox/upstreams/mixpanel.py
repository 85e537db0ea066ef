"""Mixpanel's /import and /engage, as the documentation describes their refusals."""

import re
from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105  made up
BASIC = "Basic MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY6"
NOBODY = frozenset(
    {"anon", "anonymous", "nil", "none", "null", "n/a", "na", "undefined", "unknown", "<nil>"}
    | {"0", "-1", "true", "false", "[]", "{}", "00000000-0000-0000-0000-000000000000"}
)
NAMES = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 413: "Request Entity Too Large"}


def _error(status: int, error: str, **more: Any) -> Reply:
    return Reply(status, {"code": status, "error": error, "status": NAMES[status], **more})


def answer(call: Call) -> Reply:
    """Return the answer of `/import?strict=1` or `/engage?verbose=1`."""
    if call.path == "/engage":
        return _engage(call.json)
    if call.method != "POST" or call.path != "/import":
        return Reply(404, "404 page not found")
    if call.headers.get("authorization") != BASIC:
        return _error(401, "Invalid credentials")
    if len(call.body) > 2_097_152:
        return _error(413, "request exceeds max limit of 2097152 bytes")
    events = call.json
    if not isinstance(events, list):
        return _error(400, "request body is not a valid json array")
    if len(events) > 2000:
        return _error(400, "too many events, the limit is 2000")
    failed: list[dict[str, Any]] = []
    for index, event in enumerate(events):
        field, message = _fault(event)
        if message:
            words = f"'{field}' is invalid: {message}"
            failed.append({"index": index, "field": field, "message": words})
    bad = {record["index"] for record in failed}
    taken = tuple(e["properties"]["$insert_id"] for i, e in enumerate(events) if i not in bad)
    if failed and call.query.get("strict") == "1":
        error = "some data points in the request failed validation"
        refusal = _error(400, error, failed_records=failed, num_records_imported=len(taken))
        return Reply(400, refusal.body, taken=taken)
    return Reply(
        200, {"code": 200, "num_records_imported": len(taken), "status": "OK"}, taken=taken
    )


def _fault(event: Any) -> tuple[str, str]:
    properties = event.get("properties") if isinstance(event, dict) else None
    if not isinstance(properties, dict):
        return "properties", "must be an object"
    name, time = event.get("event"), properties.get("time")
    if not isinstance(name, str) or not 0 < len(name) <= 255:
        return "event", "must be a string of at most 255 characters"
    if isinstance(time, bool) or not isinstance(time, int) or time < 31_536_000:
        return "properties.time", "must be a timestamp after 1971"
    for key in ("distinct_id", "$insert_id"):
        value = properties.get(key)
        if not isinstance(value, str):
            return f"properties.{key}", "is missing"
        if value.lower() in NOBODY:
            return f"properties.{key}", "must not be a known invalid value"
    if not re.fullmatch(r"[A-Za-z0-9-]{1,36}", properties["$insert_id"]):
        return "properties.$insert_id", "must be at most 36 letters, digits and -"
    return "", ""


def _engage(updates: Any) -> Reply:
    keys = {"$token", "$distinct_id", "$ip", "$append"}
    if isinstance(updates, list) and all(
        isinstance(u, dict) and u.keys() <= keys and u.get("$token") == TOKEN for u in updates
    ):
        return Reply(200, {"error": None, "status": 1})
    return Reply(200, {"error": "invalid data", "status": 0})


upstream = Upstream(
    slug="mixpanel",
    hosts=("api.mixpanel.com", "api-eu.mixpanel.com", "api-in.mixpanel.com"),
    answer=answer,
    settings={"project_token": TOKEN, "region": "us"},
    secret="project_token",  # noqa: S106  the name of the setting
    refusal=_error(401, "Invalid credentials"),
    throttle=Reply(
        429,
        {
            "code": 429,
            "error": "Project exceeded rate limits. Please retry the request with exponential "
            "backoff.",
            "status": "Too Many Requests",
        },
    ),
)
