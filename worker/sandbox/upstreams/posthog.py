"""PostHog's /batch/, as its capture service refuses."""

import re
from typing import Any

from worker.sandbox.upstream import Call, Reply, Upstream

KEY = "phc_Sandbox0123456789abcdefghijklmnopqrstuvwxyz"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def answer(call: Call) -> Reply:
    """Return the answer; any key but the sandbox's is refused, where the real one drops unseen."""
    if call.method != "POST" or call.path != "/batch/":
        return Reply(404, "not found")
    if len(call.body) > 20 * 2**20:
        return Reply(413, "maximum event size exceeded: 20 MB")
    body = call.json
    if not isinstance(body, dict):
        return Reply(400, "failed to parse request: invalid JSON")
    if not body.get("api_key"):
        return Reply(401, "event submitted without an api_key")
    if body["api_key"] != KEY:
        return Reply(401, "API key is not valid: unknown")
    batch = body.get("batch")
    if not isinstance(batch, list) or not batch:
        return Reply(400, "request holds no event")
    faults = [fault for event in batch if (fault := _fault(event))]
    if faults:
        return Reply(400, faults[0])
    return Reply(200, {"status": 1}, taken=tuple(event["uuid"] for event in batch))


def _fault(event: Any) -> str:
    if not isinstance(event, dict):
        return "failed to parse request: not an event"
    name, user = event.get("event"), event.get("distinct_id")
    properties = event.get("properties")
    if not isinstance(name, str) or not name:
        return "event submitted with an empty event name"
    if not isinstance(user, str) or not 0 < len(user) <= 200:
        return "event submitted without a distinct_id"
    if not UUID.fullmatch(str(event.get("uuid"))):
        return "invalid event could not be processed"
    if not TIMESTAMP.fullmatch(str(event.get("timestamp"))) or not isinstance(properties, dict):
        return "failed to parse request: invalid timestamp or properties"
    return ""


upstream = Upstream(
    slug="posthog",
    hosts=("us.i.posthog.com", "eu.i.posthog.com"),
    answer=answer,
    settings={"project_api_key": KEY, "region": "eu"},
    secret="project_api_key",  # noqa: S106  the name of the setting
    refusal=Reply(401, "API key is not valid: unknown"),
    throttle=Reply(429, "rate limited", {"Retry-After": "2"}),
)
