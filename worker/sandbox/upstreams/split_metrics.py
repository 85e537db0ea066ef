"""SplitMetrics Acquire's events endpoint; not documented: the shape is that of its senders."""

import re

from worker.sandbox.upstream import Call, Reply, Upstream

CLIENT = "Qx7RkT2mWb9LhVd4YpNc8e"
REQUIRED = {
    "source", "name", "type", "app_id", "user_id", "adaccount_id", "campaign_id", "adgroup_id",
    "country_or_region", "event_time",
}  # fmt: skip
OPTIONAL = {
    "idfa", "keyword_id", "ad_id", "conversion_type", "event_id", "tap_time", "open_time",
    "revenue", "currency",
}  # fmt: skip
TIME = r"(\d{10}|\d{13}|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)"
FORMS = {
    "app_id": r"\d{6,12}",
    "country_or_region": "[A-Z]{2}",
    "event_time": TIME,
    "tap_time": f"{TIME}?",
    "open_time": f"{TIME}?",
    "revenue": r"(-?\d+(\.\d+)?)?",
}


def answer(call: Call) -> Reply:
    """Return the answer of `/api/events/{client_id}/custom`."""
    if call.path != f"/api/events/{CLIENT}/custom":
        return Reply(404, {"error": "client not found"})
    if call.method != "GET" or call.body:
        return Reply(405, {"error": "method not allowed"})
    query = call.query
    fault = _fault(query)
    if fault:
        return Reply(400, {"error": fault})
    taken = () if query["type"] == "install" else (query.get("event_id", ""),)
    return Reply(200, "", taken=taken)


def _fault(query: dict[str, str]) -> str:
    if query.keys() - REQUIRED - OPTIONAL or not all(query.values()):
        return "unknown or empty parameters"
    if REQUIRED - query.keys():
        return f"missing {', '.join(sorted(REQUIRED - query.keys()))}"
    if query["source"] != "Apple Search Ads":
        return "unknown source"
    if ("revenue" in query) != ("currency" in query):
        return "revenue and currency belong together"
    wrong = [key for key, form in FORMS.items() if not re.fullmatch(form, query.get(key, ""))]
    return f"{wrong[0]} is invalid" if wrong else ""


upstream = Upstream(
    slug="split_metrics",
    hosts=("events.searchadshq.com", ".searchadshq.com", ".splitmetrics.com"),
    answer=answer,
    settings={"client_id": CLIENT, "app_id": "1590000001"},
    secret="client_id",  # noqa: S106  the name of the setting
    refusal=Reply(404, {"error": "client not found"}),
)
