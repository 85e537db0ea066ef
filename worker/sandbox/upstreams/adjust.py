"""Adjust's S2S event endpoint, as its error table describes the refusals."""

import re
from typing import Any

import msgspec

from worker.sandbox.upstream import Call, Reply, Upstream

TOKEN = "q1w2e3r4t5y6u7i8o9p0a1s2d3f4g5h6"  # noqa: S105  made up
APPS = ("k7m2p9x4c1vz", "a8n5d0r3o1id")
EVENT_TOKEN = "rn3w8l"  # noqa: S105  made up
IDS = {
    "adid": r"[0-9a-fA-F]{32}",
    "idfa": r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}",
    "idfv": r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}",
    "gps_adid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "android_id": r"[0-9a-f]+",
}


def _error(status: int, words: str) -> Reply:
    return Reply(status, {"error": f"Event request failed ({words})"})


def answer(call: Call) -> Reply:
    """Return the answer of `/event`."""
    if call.method != "POST" or call.path != "/event":
        return Reply(404, {"error": "Not found"})
    if call.headers.get("authorization") != f"Bearer {TOKEN}":
        return _error(401, "Failed to authorize request")
    if len(call.body) > 2**20:
        return _error(413, "Request size too large")
    form = call.form
    fault = _fault(form)
    if fault:
        return fault
    callback = _callback(form)
    taken = callback.get("event_id", "") if isinstance(callback, dict) else ""
    return Reply(200, {"status": "OK"}, taken=(taken,) if taken else ())


def _fault(form: dict[str, str]) -> Reply | None:
    if form.get("s2s") != "1":
        return _error(400, "Invalid s2s flag")
    if form.get("app_token") not in APPS:
        return _error(404, "App token not found")
    if form.get("event_token") != EVENT_TOKEN:
        return _error(400, "Invalid event token")
    ids = {key: form[key] for key in IDS if key in form}
    if not ids or any(not re.fullmatch(IDS[key], value) for key, value in ids.items()):
        return _error(400, "Invalid device identifiers")
    if form.get("environment") not in ("production", "sandbox"):
        return _error(400, "Invalid environment")
    if not re.fullmatch(r"\d{10}", form.get("created_at_unix", "")):
        return _error(400, "Invalid created_at_unix")
    if not _sound_money(form):
        return _error(400, "Invalid revenue")
    if _callback(form) is None:
        return _error(400, "Invalid callback parameters")
    return None


def _sound_money(form: dict[str, str]) -> bool:
    if "revenue" not in form:
        return "currency" not in form
    amount = form["revenue"]
    sound = re.fullmatch(r"\d+(\.\d{1,5})?", amount) and float(amount) >= 0.001
    return bool(sound) and bool(re.fullmatch(r"[A-Z]{3}", form.get("currency", "")))


def _callback(form: dict[str, str]) -> Any:
    try:
        return msgspec.json.decode(form.get("callback_params", "{}"), type=dict[str, str])
    except msgspec.DecodeError:
        return None


upstream = Upstream(
    slug="adjust",
    hosts=("s2s.adjust.com",),
    answer=answer,
    settings={
        "app_token_ios": APPS[0],
        "app_token_android": APPS[1],
        "event_tokens": dict.fromkeys(
            ("subscription_renewed", "trial_started", "subscription_refunded", "in_app_purchase"),
            EVENT_TOKEN,
        ),
        "s2s_token": TOKEN,
    },
    secret="s2s_token",  # noqa: S106  the name of the setting
    refusal=_error(401, "Failed to authorize request"),
)
