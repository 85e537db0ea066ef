"""Kochava's post-install endpoint; stricter than the real one, which answers 200 to nearly all."""

import hashlib
import hmac
import re
from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

KEY = "kochava-key-7x2lq"
SECRET = "kochava-secret-9k1vd"  # noqa: S105  made up
APPS = {
    "koacme-ios-7x2lq": ("idfa", "idfv"),
    "koacme-ios-test": ("idfa", "idfv"),
    "koacme-android-9k1vd": ("adid", "android_id"),
    "koacme-android-test": ("adid", "android_id"),
}
REQUIRED = {
    "device_ids": dict,
    "event_name": str,
    "origination_ip": str,
    "device_ua": str,
    "device_ver": str,
}
OPTIONAL = {
    "usertime": int,
    "app_version": str,
    "currency": str,
    "event_data": dict,
    "app_tracking_transparency": dict,
    "device_limit_tracking": bool,
}


def _error(status: int, error: str) -> Reply:
    return Reply(status, {"success": "0", "error": error})


def answer(call: Call) -> Reply:
    """Return the answer of `/track/json` for an app with strict authentication."""
    if call.method != "POST" or call.path != "/track/json":
        return _error(404, "not found")
    signed = SECRET + hashlib.sha1(call.body).hexdigest()  # noqa: S324  Kochava's scheme
    token = hmac.new(KEY.encode(), signed.encode(), hashlib.sha256).hexdigest()
    if (call.headers.get("kochava-api-key"), call.headers.get("kochava-auth-token")) != (
        KEY,
        token,
    ):
        return _error(401, "authentication failed")
    if re.search(rb"(?<!\\)/", call.body):
        return _error(401, "authentication failed: unescaped /")
    body = call.json
    if not isinstance(body, dict) or body.get("action") != "event":
        return _error(400, "invalid action")
    if body.get("kochava_app_id") not in APPS:
        return _error(400, "invalid kochava_app_id")
    fault = _fault(body)
    if fault:
        return _error(400, fault)
    taken = body["data"].get("event_data", {}).get("event_id")
    return Reply(200, {"success": "1"}, taken=(taken,) if taken else ())


def _fault(body: dict[str, Any]) -> str:
    data = body.get("data")
    if not isinstance(body.get("kochava_device_id"), str) or not isinstance(data, dict):
        return "missing kochava_device_id or data"
    missing = [key for key in REQUIRED if key not in data]
    if missing:
        return f"missing {missing[0]}"
    for key, value in data.items():
        kind = {**REQUIRED, **OPTIONAL}.get(key)
        if kind is None or not isinstance(value, kind) or (kind is int and type(value) is bool):
            return f"wrong type or unknown field: {key}"
    ids = data["device_ids"]
    if not ids and not body["kochava_device_id"]:
        return "no device id"
    if ids.keys() - set(APPS[body["kochava_app_id"]]) or not all(ids.values()):
        return "device id of another platform, or empty"
    if data.get("usertime", 0) > 10**11:
        return "usertime must be seconds"
    return _money_fault(data)


def _money_fault(data: dict[str, Any]) -> str:
    value = data.get("event_data", {})
    if any(part in (None, "") for part in value.values()):
        return "empty member in event_data"
    if "sum" in value and (isinstance(value["sum"], bool | str) or "currency" not in data):
        return "sum must be a number with a currency"
    return "" if value.get("currency") == data.get("currency") else "currencies differ"


upstream = Upstream(
    slug="kochava",
    hosts=("control.kochava.com",),
    answer=answer,
    settings={
        "app_guid_ios": "koacme-ios-7x2lq",
        "app_guid_android": "koacme-android-9k1vd",
        "sandbox_app_guid_ios": "koacme-ios-test",
        "sandbox_app_guid_android": "koacme-android-test",
        "api_key": KEY,
        "api_secret": SECRET,
    },
    secret="api_secret",  # noqa: S106  the name of the setting
    refusal=_error(401, "authentication failed"),
)
