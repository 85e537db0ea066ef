"""OneSignal's users and custom events, of one app. Users whose id begins "ghost" do not exist."""

import re
from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

APP = "0b1f3c52-8a4d-4f0e-9d11-5d2c7a6e9f10"
KEY = "os_v2_app_bm7examplekey"
PATH = re.compile(r"/apps/(?P<app>[^/]+)/(?P<call>custom_events|users(/by/[^/]+/(?P<id>[^/]+))?)")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NO_ACCESS = (
    "Access denied.  Please include an 'Authorization: ...' header with a valid API key "
    "(https://documentation.onesignal.com/docs/en/keys-and-ids#api-keys)."
)
DENIED = Reply(403, {"errors": [NO_ACCESS]})
RESERVED = {"message", "notification", "subscription", "user", "template", "app", "org"}


def _refused(status: int, *texts: str) -> Reply:
    return Reply(status, {"errors": list(texts), "success": False})


def answer(call: Call) -> Reply:
    """Return the answer of the custom events and users endpoints."""
    path = PATH.fullmatch(call.path)
    if not path:
        return _refused(404, "Not found")
    if not UUID.fullmatch(path["app"]):
        return _refused(400, "Request is malformed: Failed to parse app_id from request")
    if path["app"] != APP or call.headers.get("authorization") != f"Key {KEY}":
        return DENIED
    if path["id"] and path["id"].startswith(("ghost", "onward-settings-check")):
        return _refused(404, "User not found")
    if call.method == "GET" and path["id"]:
        return Reply(200, {"identity": {"external_id": path["id"]}})
    if not isinstance(call.json, dict):
        return _refused(400, "Request is malformed: body is not JSON")
    if path["call"] == "custom_events" and call.method == "POST":
        return _events(call)
    if path["id"] and call.method == "PATCH":
        return _update(call.json)
    if path["call"] == "users" and call.method == "POST":
        return Reply(201, {"identity": call.json.get("identity")})
    return _refused(405, "Method not allowed")


def _events(call: Call) -> Reply:
    events = call.json.get("events")
    if not isinstance(events, list) or not events or not all(isinstance(e, dict) for e in events):
        return _refused(400, "Request is malformed: events")
    if len(call.body) > 1_000_000:
        return _refused(413, "Request is too large")
    faults = [fault for event in events if (fault := _fault(event))]
    if faults:
        return _refused(400, *faults)
    lost = [event for event in events if str(event.get("external_id")).startswith("ghost")]
    taken = tuple(str(event.get("idempotency_key")) for event in events if event not in lost)
    errors = [
        {
            "event_user_id": event["external_id"],
            "event_id": event.get("idempotency_key"),
            "error": {
                "code": "not found",
                "title": f"failed to find a onesignal_id for user_id {event['external_id']}",
            },
        }
        for event in lost
    ]
    return Reply(202, {"errors": errors} if errors else {}, taken=taken)


def _fault(event: dict[str, Any]) -> str:
    known = {"name", "external_id", "onesignal_id", "timestamp", "idempotency_key", "properties"}
    if event.keys() - known:
        return f"unknown fields {sorted(event.keys() - known)}"
    if not isinstance(event.get("name"), str) or not 0 < len(event["name"]) <= 128:
        return "name is invalid"
    if not (event.get("external_id") or event.get("onesignal_id")):
        return "external_id or onesignal_id is required"
    if "idempotency_key" in event and not UUID.fullmatch(str(event["idempotency_key"])):
        return "idempotency_key must be a UUID"
    return "" if isinstance(event.get("properties", {}), dict) else "properties must be an object"


def _update(body: dict[str, Any]) -> Reply:
    properties = body.get("properties", {})
    tags = properties.get("tags", {}) if isinstance(properties, dict) else None
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        return _refused(400, "tags must be an object of strings")
    if tags.keys() & RESERVED:
        return _refused(400, f"tags {sorted(tags.keys() & RESERVED)} are reserved")
    if len(tags) > 100:
        return _refused(422, "Tags are limited to a maximum of 100 tags")
    deltas = body.get("deltas", {})
    purchases = deltas.get("purchases", []) if isinstance(deltas, dict) else None
    if not isinstance(purchases, list) or not all(map(_is_purchase, purchases)):
        return _refused(400, "deltas.purchases need sku, amount and iso, as strings")
    return Reply(202, {"properties": {"tags": tags}})


def _is_purchase(found: Any) -> bool:
    purchase = found if isinstance(found, dict) else {}
    return all(isinstance(purchase.get(key), str) for key in ("sku", "amount", "iso"))


upstream = Upstream(
    slug="onesignal",
    hosts=("api.onesignal.com",),
    answer=answer,
    settings={"app_id": APP, "api_key": KEY, "mode": "custom_events"},
    secret="api_key",  # noqa: S106  the name of the setting
    refusal=DENIED,
    throttle=Reply(429, {"errors": ["API rate limit exceeded."]}, {"Retry-After": "2"}),
)
