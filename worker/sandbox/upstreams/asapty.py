"""Asapty's events endpoint, for one app; not documented: the shape is that of its senders."""

import re
from typing import Any

import msgspec

from worker.sandbox.upstream import Call, Reply, Upstream

ID = "a1b2c3d4"
NUMBERS = ("conversiondate", "campaignid", "adgroupid", "keywordid", "ad_id", "install_time")
PARAMETERS = {"source", "asaptyid", "event_name", "claim_type", "app_name", "json", *NUMBERS}


def _error(message: str, status: int = 200) -> Reply:
    return Reply(status, {"result": {"status": "ERROR", "message": message}})


def answer(call: Call) -> Reply:
    """Return the answer of `/_api/mmpEvents/`."""
    if call.path != "/_api/mmpEvents/":
        return Reply(404, "<html>Not Found</html>")
    if call.method != "GET" or call.body:
        return _error("GET only", 405)
    query = call.query
    if query.get("asaptyid") != ID:
        return _error("unknown asaptyid", 403)
    if query.keys() - PARAMETERS:
        return _error(f"unknown parameters {sorted(query.keys() - PARAMETERS)}")
    if not all(query.get(key) for key in ("source", "event_name", "conversiondate", "campaignid")):
        return _error("missing parameters")
    if not all(query[key].isdigit() for key in NUMBERS if key in query):
        return _error("ids and times must be integers")
    if len(query["conversiondate"]) != 13:
        return _error("conversiondate must be milliseconds")
    details = _details(query.get("json", ""))
    if details is None:
        return _error("json is invalid")
    taken = f"{query['event_name']}/{query['conversiondate']}/{details.get('transaction_id', '')}"
    return Reply(200, {"result": {"status": "OK"}}, taken=(taken,))


def _details(text: str) -> dict[str, Any] | None:
    try:
        details = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
    revenue = details.get("af_revenue", "0.00") if isinstance(details, dict) else None
    fine = isinstance(revenue, str) and re.fullmatch(r"-?\d+\.\d\d", revenue)
    return details if fine and ("af_revenue" in details) <= ("af_currency" in details) else None


upstream = Upstream(
    slug="asapty",
    hosts=("asapty.com", ".asapty.com"),
    answer=answer,
    settings={"asapty_id": ID},
    secret="asapty_id",  # noqa: S106  the name of the setting
    refusal=_error("unknown asaptyid", 403),
)
