"""Amplitude's HTTP V2 and Batch APIs, as its documentation describes their refusals."""

from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

KEY = "0123456789abcdef0123456789abcdef"
MIN_ID_LENGTH = 5
NOBODY = {
    *("anonymous", "nil", "none", "null", "n/a", "na", "undefined", "unknown", "{}", "lmy47d"),
    *("0", "-1", "00000000-0000-0000-0000-000000000000"),
}
KINDS: dict[str, tuple[type, ...]] = {
    "revenue": (int, float),
    "productId": (str,),
    "insert_id": (str,),
    "event_properties": (dict,),
}


def _error(status: int, error: str, **more: Any) -> Reply:
    return Reply(status, {"code": status, "error": error, **more})


def answer(call: Call) -> Reply:
    """Return the answer of `/2/httpapi` or `/batch`."""
    if call.method != "POST" or call.path not in ("/2/httpapi", "/batch"):
        return _error(400, "Invalid request path")
    body = call.json
    if not isinstance(body, dict):
        return _error(400, "Invalid JSON request body")
    if body.get("api_key") != KEY:
        return _error(400, f"Invalid API key: {body.get('api_key')}", missing_field=None)
    events = body.get("events")
    if not isinstance(events, list) or not events:
        return _error(400, "Request missing required field", missing_field="events")
    if len(events) > 2000 or len(call.body) > (20 if call.path == "/batch" else 1) * 2**20:
        return _error(413, "Payload too large")
    options = body.get("options")
    given = options.get("min_id_length") if isinstance(options, dict) else None
    shortest = given if isinstance(given, int) else MIN_ID_LENGTH
    invalid, missing, short = _faults(events, shortest)
    if invalid or missing or short:
        return _error(
            400,
            "Invalid field values on some events",
            missing_field=None,
            events_with_invalid_fields=invalid,
            events_with_missing_fields=missing,
            events_with_invalid_id_lengths=short,
        )
    taken = tuple(str(event.get("insert_id")) for event in events)
    size = len(call.body)
    return Reply(
        200,
        {"code": 200, "events_ingested": len(events), "payload_size_bytes": size},
        taken=taken,
    )


def _faults(events: list[Any], shortest: int) -> tuple[dict[str, list[int]], ...]:
    invalid: dict[str, list[int]] = {}
    missing: dict[str, list[int]] = {}
    short: dict[str, list[int]] = {}
    for position, found in enumerate(events):
        event = found if isinstance(found, dict) else {}
        name, time = event.get("event_type"), event.get("time")
        if not isinstance(name, str) or not name:
            missing.setdefault("event_type", []).append(position)
        elif name.startswith("[Amplitude]"):
            invalid.setdefault("event_type", []).append(position)
        for key in (k for k in KINDS.keys() & event.keys() if type(event[k]) not in KINDS[k]):
            invalid.setdefault(key, []).append(position)
        if isinstance(time, bool) or not isinstance(time, int) or time < 10**12:
            invalid.setdefault("time", []).append(position)
        if not event.get("user_id") and not event.get("device_id"):
            missing.setdefault("user_id", []).append(position)
        for key in ("user_id", "device_id"):
            value = event.get(key, "x" * shortest)
            if not isinstance(value, str) or value.lower() in NOBODY:
                invalid.setdefault(key, []).append(position)
            elif len(value) < shortest:
                short.setdefault(key, []).append(position)
    return invalid, missing, short


upstream = Upstream(
    slug="amplitude",
    hosts=("api2.amplitude.com", "api.eu.amplitude.com"),
    answer=answer,
    settings={"api_key": KEY},
    secret="api_key",  # noqa: S106  the name of the setting
    refusal=_error(400, "Invalid API key: wrong", missing_field=None),
    throttle=Reply(
        429,
        {
            "code": 429,
            "error": "Too many requests for some devices and users",
            "throttled_events": [0],
        },
    ),
)
