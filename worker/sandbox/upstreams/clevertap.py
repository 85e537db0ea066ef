"""CleverTap's /1/upload, as its documentation describes the refusals."""

from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

ACCOUNT = "ABC-1D2-345Z"
PASSCODE = "QWE-RTY-UIOP"
INVALID = Reply(401, {"status": "fail", "error": "Invalid Credentials", "code": 401})
SYSTEM = {"App Launched", "App Installed", "App Uninstalled", "UTM Visited", "Session Concluded"}
IDS = ("identity", "objectId", "FBID", "GPID")


def answer(call: Call) -> Reply:
    """Return the answer of `/1/upload`; with `dryRun=1` nothing is taken."""
    if call.method != "POST" or call.path != "/1/upload":
        return Reply(404, {"status": "fail", "error": "Not Found", "code": 404})
    account = call.headers.get("x-clevertap-account-id")
    if (account, call.headers.get("x-clevertap-passcode")) != (ACCOUNT, PASSCODE):
        return INVALID
    body = call.json
    records = body.get("d") if isinstance(body, dict) else None
    if not isinstance(records, list) or not 1 <= len(records) <= 1000:
        return Reply(400, {"status": "fail", "error": "Bad Request", "code": 400})
    faults = [(record, *_fault(record)) for record in records]
    unprocessed = [
        {"status": "fail", "code": code, "error": error, "record": record}
        for record, code, error in faults
        if code
    ]
    good = [record for record, code, _ in faults if not code]
    status = "success" if not unprocessed else "partial" if good else "fail"
    dry = call.query.get("dryRun") == "1"
    taken = tuple(
        str(record["evtData"].get("event_id"))
        for record in good
        if not dry and record["evtName"] != "Charged"
    )
    return Reply(
        200,
        {"status": status, "processed": len(good), "unprocessed": unprocessed},
        taken=taken,
    )


def _fault(record: Any) -> tuple[int, str]:
    if not isinstance(record, dict) or record.get("type") != "event":
        return 524, "Object is neither event nor profile"
    if sum(key in record for key in IDS) != 1:
        return 523, "Identity is missing"
    name, data, time = record.get("evtName"), record.get("evtData"), record.get("ts")
    if not isinstance(name, str) or not name:
        return 509, "Event name is mandatory"
    if name in SYSTEM or name.startswith("Notification "):
        return 513, "Restricted system event"
    if isinstance(time, bool) or not isinstance(time, int) or not 0 < time < 10**10:
        return 525, "Timestamp not in UNIX epoch format"
    if not isinstance(data, dict) or len(name) > 120:
        return 512, "Invalid event structure"
    if len(data) > 100:
        return 522, "Property limit exceeded"
    if not all(_fits(key, value, name) for key, value in data.items()):
        return 512, "Invalid event structure"
    return 0, ""


def _fits(key: str, value: Any, name: str) -> bool:
    if key == "Items" and name == "Charged":
        return isinstance(value, list) and len(value) <= 50
    flat = isinstance(value, str | int | float) and len(str(value).encode()) <= 512
    return flat and len(key) <= 120


upstream = Upstream(
    slug="clevertap",
    hosts=(".api.clevertap.com", "api.clevertap.com"),
    answer=answer,
    settings={"account_id": ACCOUNT, "passcode": PASSCODE},
    secret="passcode",  # noqa: S106  the name of the setting
    refusal=INVALID,
    throttle=Reply(429, {"status": "fail", "error": "Too many concurrent requests", "code": 429}),
)
