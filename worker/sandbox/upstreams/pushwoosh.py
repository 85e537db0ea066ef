"""Pushwoosh's postEvent and setTags, for one application whose events exist."""

from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

APPLICATION = "A1B2C-3D4E5"
TOKEN = "devTok_example"  # noqa: S105  made up
FIELDS = {
    "postEvent": {
        "application", "auth", "event", "hwid", "userId", "attributes", "timestampUTC",
        "timestampCurrent", "device_type",
    },
    "setTags": {"application", "auth", "hwid", "userId", "tags"},
}  # fmt: skip
DEVICE_TYPES = {1, 3, 7, 8, 9, 10, 11, 12, 17, 18, 19}


def _answer(code: int, message: str, *taken: str, http: int = 200) -> Reply:
    body = {"status_code": code, "status_message": message, "response": None}
    return Reply(http, body, taken=taken)


FORBIDDEN = _answer(403, "Token restrictions forbid this operation")


def answer(call: Call) -> Reply:
    """Return the answer of the two methods; refusals are HTTP 200 with a code."""
    method = call.path.removeprefix("/json/1.3/")
    if call.method != "POST" or method not in FIELDS:
        return Reply(404, "<html>404 Not Found</html>")
    request = call.json.get("request") if isinstance(call.json, dict) else None
    if not isinstance(request, dict):
        return _answer(400, "N/A", http=400)
    if call.headers.get("authorization") != f"Token {TOKEN}":
        return FORBIDDEN
    fault = _fault(method, request)
    if fault:
        return _answer(210, fault)
    taken = str(request.get("attributes", {}).get("event_id", ""))
    return _answer(200, "OK", *filter(None, [taken]))


def _fault(method: str, request: dict[str, Any]) -> str:
    unknown = request.keys() - FIELDS[method]
    if unknown:
        return f"Unexpected arguments: {sorted(unknown)}"
    if request.get("application") != APPLICATION:
        return "Application not found"
    if not any(isinstance(request.get(key), str) and request[key] for key in ("hwid", "userId")):
        return "hwid or userId is required"
    if method == "setTags":
        tags = request.get("tags")
        return "" if isinstance(tags, dict) and len(tags) <= 50 else "tags must be an object"
    event = request.get("event")
    if not isinstance(event, str) or not 0 < len(event) <= 32:
        return "Event not found"
    if not isinstance(request.get("attributes"), dict):
        return "attributes is required"
    if request.get("device_type", 1) not in DEVICE_TYPES:
        return "device_type is invalid"
    return "" if type(request.get("timestampUTC", 0)) is int else "timestampUTC must be a number"


upstream = Upstream(
    slug="pushwoosh",
    hosts=("api.pushwoosh.com", ".pushwoosh.com"),
    answer=answer,
    settings={"application_code": APPLICATION, "api_token": TOKEN},
    secret="api_token",  # noqa: S106  the name of the setting
    refusal=FORBIDDEN,
)
