"""GA4's Measurement Protocol: the collector believes everything, the validator names faults."""

import re
from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

APP = "1:1234567890:ios:321abc456def7890"
SECRET = "Inv3nt3d_Secret-01"  # noqa: S105  made up
NAME = re.compile(r"(?!firebase_|ga_|google_)[A-Za-z][A-Za-z0-9_]{0,39}")
RESERVED = {"in_app_purchase", "error", "session_start", "screen_view", "first_open", "app_update"}
NEEDED = {
    "purchase": {"currency", "value", "transaction_id", "items"},
    "refund": {"currency", "value", "transaction_id"},
}


def answer(call: Call) -> Reply:
    """Return the answer of `/mp/collect` or `/debug/mp/collect`."""
    if call.method != "POST" or not call.path.endswith("/mp/collect"):
        return Reply(404, "<html><title>Error 404 (Not Found)!!1</title></html>")
    if len(call.body) >= 130_000:
        return Reply(413, "<html><title>Error 413 (Request Entity Too Large)!!1</title></html>")
    body = call.json
    faults = list(_faults(body)) if isinstance(body, dict) else [("", "VALUE_INVALID", "no JSON")]
    if call.path == "/debug/mp/collect":
        messages = [
            {"fieldPath": path, "description": words, "validationCode": code}
            for path, code, words in faults
        ]
        return Reply(200, {"validationMessages": messages})
    known = call.query == {"firebase_app_id": APP, "api_secret": SECRET}
    if faults or not known:
        return Reply(204)  # taken, and lost
    return Reply(204, taken=tuple(str(e["params"].get("source_event_id")) for e in body["events"]))


def _faults(body: dict[str, Any]) -> list[tuple[str, str, str]]:
    faults = []
    instance, micros = body.get("app_instance_id"), body.get("timestamp_micros")
    if not isinstance(instance, str) or not re.fullmatch(r"[0-9A-Fa-f]{32}", instance):
        faults.append(("app_instance_id", "VALUE_INVALID", "Expected 32 hex digits."))
    if micros is not None and not re.fullmatch(r"\d{16}", str(micros)):
        faults.append(("timestamp_micros", "VALUE_INVALID", "Timestamp must be in microseconds."))
    events = body.get("events")
    if not isinstance(events, list) or not 1 <= len(events) <= 25:
        return [*faults, ("events", "VALUE_REQUIRED", "Between 1 and 25 events are required.")]
    for number, event in enumerate(events):
        faults += [
            (f"events[{number}].{path}", code, words) for path, code, words in _event_faults(event)
        ]
    return faults


def _event_faults(event: Any) -> list[tuple[str, str, str]]:
    event = event if isinstance(event, dict) else {}
    name, params = str(event.get("name")), event.get("params") or {}
    faults = []
    if name in RESERVED:
        faults.append(("name", "NAME_RESERVED", f"Event name [{name}] is reserved."))
    elif not NAME.fullmatch(name):
        faults.append(("name", "NAME_INVALID", f"Event name [{name}] is invalid."))
    needed = NEEDED.get(name, {"currency"} if "value" in params else set())
    faults += [
        (f"params.{key}", "VALUE_REQUIRED", "Parameter is required.")
        for key in sorted(needed - params.keys())
    ]
    if len(params) > 25:
        faults.append(("params", "EXCEEDED_MAX_ENTITIES", "Event has more than 25 parameters."))
    for key, value in params.items():
        plain = isinstance(value, str | int | float) and not isinstance(value, bool)
        if not NAME.fullmatch(key):
            faults.append((f"params.{key}", "NAME_INVALID", "Parameter name is invalid."))
        if key != "items" and (not plain or (isinstance(value, str) and len(value) > 100)):
            faults.append((f"params.{key}", "VALUE_INVALID", "Parameter value is invalid."))
    value = params.get("value", 0)
    if not isinstance(value, int | float) or value < 0:
        faults.append(("params.value", "VALUE_INVALID", "Value must be a positive number."))
    return faults


upstream = Upstream(
    slug="firebase",
    hosts=("www.google-analytics.com", "region1.google-analytics.com"),
    answer=answer,
    settings={"ios_firebase_app_id": APP, "ios_api_secret": SECRET},
    secret="ios_api_secret",  # noqa: S106  the name of the setting
    refusal=Reply(403, "<html><title>Error 403 (Forbidden)!!1</title></html>"),
    throttle=Reply(429, "", {"Retry-After": "2"}),
)
