"""Singular's EVENT endpoint, V1 and V2: every answer is 200, and the body tells."""

import re

import msgspec

from worker.sandbox.upstream import Call, Reply, Upstream

KEYS = ("acme_1a2b3c4d", "acme_sandbox")
IDS = {"iOS": ("idfa", "idfv"), "Android": ("aifa", "andi", "asid")}
KNOWN = {
    *("a", "p", "i", "n", "sdid", "idfa", "idfv", "aifa", "andi", "asid", "ip", "country", "ve"),
    *("att_authorization_status", "utime", "umilisec", "is_revenue_event", "amt", "cur"),
    *("purchase_product_id", "purchase_transaction_id", "custom_user_id", "e"),
    *("data_sharing_options", "partner"),
}


def _error(reason: str) -> Reply:
    return Reply(200, {"status": "error", "reason": reason})


def answer(call: Call) -> Reply:
    """Return the answer of `/api/v1/evt` or `/api/v2/evt`."""
    version = call.path.removeprefix("/api/").removesuffix("/evt")
    if version not in ("v1", "v2"):
        return Reply(404, "Not Found")
    form = call.form if call.method == "POST" else call.query
    for key in ("a", "p", "i", "n"):
        if not form.get(key):
            return _error(f"missing argument: {key}")
    if form["a"] not in KEYS:
        return _error("invalid SDK key")
    if form["p"] not in IDS:
        return _error(f"invalid platform: {form['p']}")
    fault = _identity_fault(form, version) or _fault(form)
    if fault:
        return _error(fault)
    taken = msgspec.json.decode(form.get("e", "{}")).get("event_id")
    return Reply(200, {"status": "ok"}, taken=(taken,) if taken else ())


def _identity_fault(form: dict[str, str], version: str) -> str:
    platform = {key for keys in IDS.values() for key in keys}
    if version == "v2":
        if platform & form.keys():
            return "platform ids do not belong in V2"
        return "" if form.get("sdid") else "missing argument: sdid"
    own = IDS[form["p"]]
    if (platform - set(own)) & form.keys():
        return f"platform: {form['p']} should not have an id of another platform"
    return "" if any(form.get(key) for key in own) else "no device ID supplied"


def _fault(form: dict[str, str]) -> str:
    unknown = form.keys() - KNOWN
    if unknown or not all(form.values()):
        return f"unexpected or empty argument: {min(unknown, default='')}"
    if not re.fullmatch(r"[\x20-\x7e]{1,32}", form["n"]):
        return "invalid argument: n"
    if not re.fullmatch(r"\d{10}", form.get("utime", "1" * 10)) or not re.fullmatch(
        r"\d{13}", form.get("umilisec", "1" * 13)
    ):
        return "invalid argument: utime or umilisec"
    if ("amt" in form) != ("cur" in form) or ("amt" in form) != ("is_revenue_event" in form):
        return "missing argument: amt, cur or is_revenue_event"
    if not re.fullmatch(r"-?\d+(\.\d+)?", form.get("amt", "0")):
        return "invalid argument: amt"
    if form["p"] == "iOS" and form.get("att_authorization_status") not in ("0", "1", "2", "3"):
        return "platform: iOS should have an att_authorization_status param"
    try:
        msgspec.json.decode(form.get("e", "{}"), type=dict[str, str | int | float | bool])
    except msgspec.DecodeError:
        return "invalid argument: e"
    return ""


upstream = Upstream(
    slug="singular",
    hosts=("s2s.singular.net",),
    answer=answer,
    settings={
        "sdk_key": KEYS[0],
        "sandbox_sdk_key": KEYS[1],
        "app_id_ios": "com.acme.app",
        "app_id_android": "com.acme.app",
    },
    secret="sdk_key",  # noqa: S106  the name of the setting
    refusal=_error("invalid SDK key"),
    throttle=Reply(429, ""),
)
