"""Tenjin's event and purchase paths; the wording of its refusals is made up, Tenjin shows none."""

import re
from hashlib import sha256

from worker.sandbox.upstream import Call, Reply, Upstream

KEYS = {
    "Basic QTFCMkMzRDRFNUY2RzdIOEk5SjBLMUwyTTNONE81UDY6": "ios",
    "Basic QTlCOEM3RDZFNUY0RzNIMkkxSjBLOUw4TTdONk81UDQ6": "android",
}
REQUIRED = (
    "analytics_installation_id",
    "advertising_id",
    "bundle_id",
    "platform",
    "sdk_version",
)
KNOWN = {
    *REQUIRED,
    *("os_version", "developer_device_id", "limit_ad_tracking", "tracking_status", "app_version"),
    *("country", "ip_address", "locale", "device_model", "customer_user_id"),
}
MONEY = {"product_id", "price", "quantity", "currency", "postcut"}


def _error(status: int, error: str) -> Reply:
    return Reply(status, {"code": status, "error": error})


def answer(call: Call) -> Reply:
    """Return the answer of `/v0/event` or `/v0/purchase`."""
    if call.path not in ("/v0/event", "/v0/purchase"):
        return _error(404, "not found")
    form = call.form if call.method == "POST" else call.query
    platform = KEYS.get(call.headers.get("authorization", ""))
    if platform is None or "api_key" in form:
        return _error(401, "unauthorized")
    if form.get("platform") != platform:
        return _error(401, "key of another platform")
    missing = [key for key in REQUIRED if not form.get(key)]
    if missing or "os_version" not in form:
        return _error(400, f"{missing[0] if missing else 'os_version'} is missing")
    own = MONEY if call.path == "/v0/purchase" else {"event"}
    if form.keys() - KNOWN - own:
        return _error(400, f"{min(form.keys() - KNOWN - own)} is not a parameter")
    fault = _purchase_fault(form) if call.path == "/v0/purchase" else _event_fault(form)
    if fault:
        return _error(400, fault)
    return Reply(200, {"code": 200}, taken=(sha256(call.body).hexdigest(),))


def _event_fault(form: dict[str, str]) -> str:
    return "" if form.get("event") else "event is missing"


def _purchase_fault(form: dict[str, str]) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?", form.get("price", "")) or float(form["price"]) <= 0:
        return "price must be positive"
    if form.get("quantity") != "1":
        return "quantity must be an integer"
    return "" if re.fullmatch(r"[A-Z]{3}", form.get("currency", "")) else "currency is missing"


upstream = Upstream(
    slug="tenjin",
    hosts=("track.tenjin.com",),
    answer=answer,
    settings={
        "ios_sdk_key": "A1B2C3D4E5F6G7H8I9J0K1L2M3N4O5P6",
        "ios_bundle_id": "com.acme.app",
        "android_sdk_key": "A9B8C7D6E5F4G3H2I1J0K9L8M7N6O5P4",
        "android_package": "com.acme.android",
    },
    secret="ios_sdk_key",  # noqa: S106  the name of the setting
    refusal=_error(401, "unauthorized"),
)
