"""Branch's Events API, as its documentation and known error bodies describe the refusals."""

from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

KEY = "key_live_a1B2c3D4e5F6g7H8"
TEST_KEY = "key_test_a1B2c3D4e5F6g7H8"
STANDARD = (
    "ADD_TO_CART ADD_TO_WISHLIST VIEW_CART INITIATE_PURCHASE ADD_PAYMENT_INFO CLICK_AD PURCHASE "
    "RESERVE SPEND_CREDITS VIEW_AD SEARCH VIEW_ITEM VIEW_ITEMS RATE SHARE INITIATE_STREAM "
    "COMPLETE_STREAM COMPLETE_REGISTRATION COMPLETE_TUTORIAL ACHIEVE_LEVEL UNLOCK_ACHIEVEMENT "
    "INVITE LOGIN START_TRIAL SUBSCRIBE"
)
MEMBERS = {"branch_key": str, "name": str, "user_data": dict}
MORE = {"event_data": dict, "custom_data": dict, "content_items": list, "customer_event_alias": str}
NUMBERS = ("revenue", "shipping", "tax")
FLAGS = ("limit_ad_tracking", "dma_eea", "dma_ad_personalization", "dma_ad_user_data")
IDS = {"iOS": ("idfa", "idfv"), "Android": ("aaid", "android_id")}


def _error(error: Any) -> Reply:
    return Reply(400, {"error": error})


def answer(call: Call) -> Reply:
    """Return the answer of `/v2/event/standard` or `/v2/event/custom`."""
    kind = call.path.removeprefix("/v2/event/")
    if call.method != "POST" or kind not in ("standard", "custom"):
        return Reply(404, {"error": {"code": 404, "message": "Not found"}})
    typed = call.headers.get("content-type", "").startswith("application/json")
    body = (call.json if typed else None) or {}
    if not isinstance(body, dict):
        return _error({"code": 400, "message": "Invalid JSON"})
    faults = _faults(body)
    if faults:
        return _error(faults)
    if body["branch_key"] not in (KEY, TEST_KEY):
        return _error({"code": 400, "message": "Invalid or missing app id or Branch key"})
    if (body["name"] in STANDARD.split()) != (kind == "standard"):
        return _error({"name": "not a valid option"})
    if body["name"] in ("open", "install", "reinstall"):
        return _error({"name": "not a valid option"})
    taken = body.get("custom_data", {}).get("event_id")
    return Reply(200, {"branch_view_enabled": False}, taken=(taken,) if taken else ())


def _faults(body: dict[str, Any]) -> dict[str, Any]:
    kinds = {**MEMBERS, **MORE}
    faults: dict[str, Any] = {key: "missing required field" for key in MEMBERS if not body.get(key)}
    for key, value in body.items():
        if not isinstance(value, kinds.get(key, ())) or not value:
            faults.setdefault(key, "wrong field type")
    for key in ("user_data", "event_data", "custom_data"):
        part = body.get(key)
        wrong = _wrong_types(key, part) if isinstance(part, dict) else {}
        if wrong:
            faults.setdefault(key, wrong)
    user = body.get("user_data")
    if isinstance(user, dict) and not _identified(user):
        faults.setdefault("user_data", {"developer_identity": "missing required field"})
    return faults


def _wrong_types(key: str, part: dict[str, Any]) -> dict[str, str]:
    def fits(name: str, value: Any) -> bool:
        if key == "event_data" and name in NUMBERS:
            return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if key == "user_data" and name in FLAGS:
            return isinstance(value, bool)
        return isinstance(value, str) and value != ""

    return {name: "wrong field type" for name, value in part.items() if not fits(name, value)}


def _identified(user: dict[str, Any]) -> bool:
    own = IDS.get(str(user.get("os")), ())
    foreign = {key for keys in IDS.values() for key in keys} - set(own)
    return not foreign & user.keys() and any(key in user for key in ("developer_identity", *own))


upstream = Upstream(
    slug="branch",
    hosts=("api2.branch.io",),
    answer=answer,
    settings={"branch_key": KEY, "test_branch_key": TEST_KEY},
    secret="branch_key",  # noqa: S106  the name of the setting
    refusal=_error({"code": 400, "message": "Invalid or missing app id or Branch key"}),
    throttle=Reply(429, {"error": {"code": 429, "message": "Rate Limit Reached"}}),
)
