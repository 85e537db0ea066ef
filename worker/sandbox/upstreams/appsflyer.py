"""AppsFlyer's in-app event APIs; stricter than the real ones, which drop faulty events with 200."""

import re
from typing import Any

import msgspec

from worker.sandbox.upstream import Call, Reply, Upstream

S2S_KEY = "s2s-key-0123456789"
DEV_KEY = "dvK3yAbCdEfGhIjKlMnOpQ"
APPS = ("id1234509876", "com.acme.app")
TYPES: dict[str, tuple[type, ...]] = {
    "appsflyer_id": (str,),
    "eventName": (str,),
    "eventValue": (str,),
    "eventTime": (str,),
    "eventCurrency": (str,),
    "af_events_api": (str,),
    "customer_user_id": (str,),
    "idfa": (str,),
    "idfv": (str,),
    "advertising_id": (str,),
    "ip": (str,),
    "os": (str,),
    "att": (int,),
    "bundleIdentifier": (str,),
    "app_version_name": (str,),
    "sharing_filter": (str, list),
}


def answer(call: Call) -> Reply:
    """Return the answer of `/inappevent/{app_id}`."""
    app = call.path.removeprefix("/inappevent/")
    if call.method != "POST" or app not in APPS:
        return Reply(404, "Not Found")
    if call.headers.get("authentication") != (S2S_KEY if call.host.startswith("api3") else DEV_KEY):
        return Reply(401, "Unauthorized")
    if len(call.body) > 1024:
        return Reply(400, "Payload too big")
    body = call.json
    if not isinstance(body, dict):
        return Reply(400, "Malformed JSON")
    fault = _fault(body)
    if fault:
        return Reply(400, fault)
    value = msgspec.json.decode(body["eventValue"]) if body["eventValue"] else {}
    return Reply(200, "ok", taken=(value["event_id"],) if "event_id" in value else ())


def _fault(body: dict[str, Any]) -> str:
    for key, value in body.items():
        if not isinstance(value, TYPES.get(key, ())) or isinstance(value, bool):
            return f"wrong type or unknown field: {key}"
    if not re.fullmatch(r"[0-9]{10,16}-[0-9]{5,25}", body.get("appsflyer_id", "")):
        return "appsflyer_id is missing or malformed"
    if not body.get("eventName"):
        return "eventName is missing"
    if not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", body.get("eventTime", "")):
        return "eventTime is malformed"
    return _value_fault(body.get("eventValue"), body.get("eventCurrency"))


def _value_fault(text: str | None, currency: str | None) -> str:
    if text is None:
        return "eventValue is missing"
    try:
        value = msgspec.json.decode(text or "null")
    except msgspec.DecodeError:
        return "eventValue is not JSON"
    if not text:
        return ""
    if not isinstance(value, dict) or not value:
        return "eventValue must be a JSON object or empty"
    if "af_revenue" in value and not re.fullmatch(r"-?\d+(\.\d{1,5})?", str(value["af_revenue"])):
        return "af_revenue is not a number"
    return "" if value.get("af_currency") == currency else "currencies differ"


upstream = Upstream(
    slug="appsflyer",
    hosts=("api2.appsflyer.com", "api3.appsflyer.com"),
    answer=answer,
    settings={
        "app_id_ios": APPS[0],
        "app_id_android": APPS[1],
        "s2s_token": S2S_KEY,
        "sandbox_dev_key": DEV_KEY,
    },
    secret="s2s_token",  # noqa: S106  the name of the setting
    refusal=Reply(401, "Unauthorized"),
)
