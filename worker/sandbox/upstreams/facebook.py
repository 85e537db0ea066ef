"""Meta's Conversions API, as its documentation describes the refusals; one clock-free day."""

import re
from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

DATASET = "1234567890123456"
TOKEN = "EAAXinvented"  # noqa: S105  made up
MEMBERS = {"data", "access_token", "test_event_code", "appsecret_proof", "partner_agent"}
EVENT = {
    *("event_name", "event_time", "action_source", "event_id", "user_data", "custom_data"),
    *("app_data", "opt_out", "event_source_url", "data_processing_options"),
    *("data_processing_options_country", "data_processing_options_state"),
}
SOURCES = {"app", "system_generated", "website", "email", "phone_call", "chat", "other"}
HASHED = {"em", "ph", "fn", "ln", "ct", "st", "zp", "country", "ge", "db", "external_id"}
PLAIN = {"client_ip_address", "client_user_agent", "madid", "anon_id", "fbc", "fbp"}


def _error(status: int, message: str, code: int, subcode: int = 0, title: str = "") -> Reply:
    error = {"message": message, "type": "OAuthException", "code": code, "fbtrace_id": "AX1"}
    if subcode:
        error |= {"error_subcode": subcode, "is_transient": False, "error_user_title": title}
    return Reply(status, {"error": error})


def answer(call: Call) -> Reply:
    """Return the answer of `/{version}/{dataset}/events`."""
    path = re.fullmatch(r"/v\d+\.0/(\d+)/events", call.path)
    body = call.json
    if call.method != "POST" or not path or not isinstance(body, dict):
        return _error(400, "Unsupported post request.", 100)
    if body.get("access_token") != TOKEN:
        return _error(401, "Error validating access token: Session has expired", 190, 463)
    if path[1] != DATASET:
        message = f"Object with ID '{path[1]}' does not exist, cannot be loaded due to missing "
        return _error(400, message + "permissions, or does not support this operation", 100, 33)
    data = body.get("data")
    if not isinstance(data, list) or not 1 <= len(data) <= 1000 or body.keys() - MEMBERS:
        return _error(400, "Invalid parameter", 100)
    for event in data:
        subcode, title = _fault(event)
        if title:
            return _error(400, "Invalid parameter", 100, subcode, title)
    taken = tuple(str(event.get("event_id")) for event in data)
    return Reply(
        200, {"events_received": len(data), "messages": [], "fbtrace_id": "AX1"}, taken=taken
    )


def _fault(event: Any) -> tuple[int, str]:
    if not isinstance(event, dict) or event.keys() - EVENT:
        return 2804008, "Unexpected Key"
    if not isinstance(event.get("event_name"), str) or event.get("action_source") not in SOURCES:
        return 2804008, "Missing Event Name or Action Source"
    time = event.get("event_time")
    if isinstance(time, bool) or not isinstance(time, int) or not 10**9 < time < 10**10:
        return 2804003, "Event Timestamp Too Old"
    custom = event.get("custom_data") or {}
    value = custom.get("value")
    if value is not None and (not isinstance(value, int | float) or value < 0):
        return 2804019, "Invalid Value"
    if event["event_name"] == "Purchase" and not {"value", "currency"} <= custom.keys():
        return 2804009, "Missing Value for Purchase Event"
    return _user_fault(event.get("user_data")) or _app_fault(event) or (0, "")


def _user_fault(user: Any) -> tuple[int, str] | None:
    if not isinstance(user, dict) or not user or user.keys() - HASHED - PLAIN:
        return 2804050, "You Haven't Added Sufficient Customer Information Parameter Data"
    for key in user.keys() & HASHED:
        values = user[key] if isinstance(user[key], list) else [user[key]]
        if not all(isinstance(v, str) and re.fullmatch(r"[0-9a-f]{64}", v) for v in values):
            return 2804010, f"Parameter {key} Is Not Hashed"
    return None


def _app_fault(event: dict[str, Any]) -> tuple[int, str] | None:
    if event["action_source"] != "app":
        return None
    app = event.get("app_data")
    app = app if isinstance(app, dict) else {}
    info = app.get("extinfo")
    if not isinstance(info, list) or len(info) != 16 or info[0] not in ("i2", "a2") or not info[4]:
        return 2804065, "Invalid Extinfo"
    flags = [app.get(f"{kind}_tracking_enabled") for kind in ("advertiser", "application")]
    return None if all(flag in (0, 1) for flag in flags) else (2804065, "Invalid App Data")


upstream = Upstream(
    slug="facebook",
    hosts=("graph.facebook.com",),
    answer=answer,
    settings={"dataset_id": DATASET, "access_token": TOKEN},
    secret="access_token",  # noqa: S106  the name of the setting
    refusal=_error(401, "Error validating access token: Session has expired", 190, 463),
    throttle=_error(400, "(#80004) There have been too many calls to this ad-account.", 80004),
)
