"""AppMetrica's Post API, as its documentation describes the parameters."""

import csv
import io
import re
from collections.abc import Mapping

import msgspec

from worker.sandbox.upstream import Call, Reply, Upstream

KEY = "3f1c0b52-7a1e-4a3c-9d2b-aaaaaaaaaaaa"
APPLICATION = "4012345"
CONTEXT = {
    *("application_id", "profile_id", "appmetrica_device_id", "event_timestamp", "session_type"),
    *("ios_ifa", "ios_ifv", "google_aid", "windows_aid", "os_name", "os_version"),
    *("device_manufacturer", "device_model", "device_type", "device_locale", "app_version_name"),
    *("app_package_name", "connection_type", "operator_name", "mcc", "mnc", "device_ipv6"),
}
NEEDED = {
    "events": {"event_name"},
    "revenue": {"revenue_event_type", "price", "currency", "product_id"},
}
OPTIONAL = {
    "events": {"event_json"},
    "revenue": {"quantity", "payload", "transaction_id", "order_id"},
}


def _error(status: int, kind: str, message: str) -> Reply:
    errors = [{"error_type": kind, "message": message}]
    return Reply(status, {"errors": errors, "code": status, "message": message})


def answer(call: Call) -> Reply:
    """Return the answer of `/logs/v1/import/` events or revenue, as parameters or as CSV."""
    path = re.fullmatch(r"/logs/v1/import/(events|revenue)(\.csv)?", call.path)
    if call.method != "POST" or not path:
        return _error(404, "not_found", "Not found")
    if len(call.target) > 8192:
        return Reply(414, "Request-URI Too Large")
    query = call.query
    key = query.pop("post_api_key", "")
    rows = (
        list(csv.DictReader(io.StringIO(call.body.decode("utf-8", "replace"))))
        if path[2]
        else [query]
    )
    if key != KEY or any(row.get("application_id", APPLICATION) != APPLICATION for row in rows):
        return _error(403, "access_denied", "Invalid post_api_key")
    for row in rows:
        if fault := _fault(path[1], row):
            return _error(400, "invalid_parameter", fault)
    taken = [_event_id(row) for row in rows] if path[1] == "events" else []
    return Reply(200, "Your data has been uploaded", taken=tuple(taken))


def _fault(kind: str, row: Mapping[str, str]) -> str:
    row = {name: value for name, value in row.items() if value}
    needed = NEEDED[kind] | {"application_id", "event_timestamp"}
    if missing := sorted(needed - row.keys()):
        return f"Required parameter {missing[0]} is not set"
    if unknown := sorted(row.keys() - needed - CONTEXT - OPTIONAL[kind]):
        return f"Unknown parameter {unknown[0]}"
    if ("profile_id" in row) == ("appmetrica_device_id" in row):
        return "Exactly one of profile_id and appmetrica_device_id is required"
    device = row.get("appmetrica_device_id", "1")
    if not device.isdecimal() or not 0 < int(device) < 2**64:
        return "appmetrica_device_id is not an unsigned 64-bit number"
    if not re.fullmatch(r"\d{10}", row["event_timestamp"]):
        return "event_timestamp is not in Unix seconds"
    if not re.fullmatch(r"-?\d+(\.\d+)?", row.get("price", "0")):
        return "price is not a decimal"
    whole = [row.get(name, "0") for name in ("transaction_id", "order_id", "quantity")]
    return "" if all(number.isdecimal() for number in whole) else "an id is not a number"


def _event_id(row: Mapping[str, str]) -> str:
    try:
        return str(msgspec.json.decode(row.get("event_json", ""), type=dict)["event_id"])
    except (msgspec.MsgspecError, KeyError):
        return ""


upstream = Upstream(
    slug="appmetrica",
    hosts=("api.appmetrica.yandex.com", "api.appmetrica.yandex.ru"),
    answer=answer,
    settings={"application_id": int(APPLICATION), "post_api_key": KEY},
    secret="post_api_key",  # noqa: S106  the name of the setting
    refusal=_error(403, "access_denied", "Invalid post_api_key"),
    throttle=Reply(429, "Quota exceeded", {"Retry-After": "2"}),
)
