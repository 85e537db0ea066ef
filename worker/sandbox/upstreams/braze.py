"""Braze's /users/track, as its documentation describes the refusals; no profile is kept."""

import re
from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream, find

KEY = "01234567-89ab-cdef-0123-456789abcdef"
INVALID_KEY = Reply(401, {"message": "Invalid API key: 01234567-89ab-cdef-0123-456789abcde0"})
NO_DATA = "Valid data must be provided in the 'attributes', 'events', or 'purchases' fields."
ARRAYS = ("attributes", "events", "purchases")
IDS = ("external_id", "user_alias", "braze_id", "email", "phone")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
RESERVED = {
    "events": {"time", "event_name"},
    "purchases": {"time", "product_id", "quantity", "event_name", "price", "currency"},
    "attributes": set[str](),
}


def answer(call: Call) -> Reply:
    """Return the answer of `/users/track`."""
    if call.headers.get("authorization") != f"Bearer {KEY}":
        return INVALID_KEY
    if call.method != "POST" or call.path != "/users/track":
        return Reply(404, {"message": "Not found"})
    if len(call.body) > 4 * 2**20:
        return Reply(413, {"message": "Request Entity Too Large"})
    body = call.json
    if not isinstance(body, dict):
        return Reply(400, {"message": "The provided JSON is invalid"})
    arrays = {name: body[name] for name in ARRAYS if isinstance(body.get(name), list)}
    if any(len(items) > 75 for items in arrays.values()):
        return Reply(400, {"message": "Max Input Length Exceeded"})
    errors = [
        {"type": fault, "input_array": name, "index": index}
        for name, items in arrays.items()
        for index, item in enumerate(items)
        if (fault := _fault(name, item))
    ]
    processed = {
        f"{name}_processed": len(items) - sum(e["input_array"] == name for e in errors)
        for name, items in arrays.items()
    }
    if not sum(processed.values()):
        return Reply(400, {"message": NO_DATA, "errors": errors})
    bad = {error["index"] for error in errors if error["input_array"] == "events"}
    good = [item for index, item in enumerate(arrays.get("events", [])) if index not in bad]
    taken = tuple(str(found) for found in find(good, "event_id"))
    reply = {"message": "success", **processed, **({"errors": errors} if errors else {})}
    return Reply(201, reply, taken=taken)


def _fault(array: str, item: Any) -> str:
    if not isinstance(item, dict):
        return "Invalid object"
    if sum(key in item for key in IDS) != 1:
        return "'external_id', 'braze_id', 'user_alias', 'email' or 'phone' is required"
    if array != "attributes" and not TIME.fullmatch(str(item.get("time"))):
        return "'time' is not valid"
    properties = item.get("properties", {})
    if not isinstance(properties, dict) or properties.keys() & RESERVED[array]:
        return "Invalid 'properties' field"
    if any(key.startswith("$") or value is None for key, value in properties.items()):
        return "Invalid 'properties' field"
    if array == "events" and not _text(item.get("name")):
        return "'name' is not a string of at most 255 characters"
    return _purchase_fault(item) if array == "purchases" else ""


def _purchase_fault(item: dict[str, Any]) -> str:
    price = item.get("price")
    if not _text(item.get("product_id")):
        return "'product_id' is not a string of at most 255 characters"
    if not re.fullmatch(r"[A-Z]{3}", str(item.get("currency"))):
        return "'currency' is not a valid ISO 4217 code"
    if isinstance(price, bool) or not isinstance(price, int | float):
        return "'price' is not a number"
    return "" if item.get("quantity", 1) in range(1, 101) else "'quantity' is not valid"


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255


upstream = Upstream(
    slug="braze",
    hosts=(".braze.com", ".braze.eu"),
    answer=answer,
    settings={"api_key": KEY, "instance": "EU-01"},
    secret="api_key",  # noqa: S106  the name of the setting
    refusal=INVALID_KEY,
    throttle=Reply(429, {"message": "Rate limit exceeded"}, {"X-Ratelimit-Retry-After": "2"}),
)
