"""Mailchimp's Marketing API 3.0: members, tags and contact events of one audience."""

import re
from typing import Any

from providers.kit import basic
from worker.sandbox.upstream import Call, Reply, Upstream

KEY = "0123456789abcdef0123456789abcdef-us21"
LIST = "a1b2c3d4e5"
ERRORS = "https://mailchimp.com/developer/marketing/docs/errors/"
MEMBER = re.compile(
    r"/3\.0/lists/(?P<list>[^/]+)(/members/(?P<hash>[^/]+)(?P<part>/tags|/events)?)?"
)
INVALID = "The resource submitted could not be validated. For field-specific details, see errors."


def _problem(status: int, title: str, detail: str, **fields: str) -> Reply:
    problem = {"type": ERRORS, "title": title, "status": status, "detail": detail}
    errors = [{"field": field, "message": message} for field, message in fields.items()]
    return Reply(status, {**problem, "instance": "995c5cb0", "errors": errors})


WRONG_KEY = _problem(
    401,
    "API Key Invalid",
    "Your API key may be invalid, or you've attempted to access the wrong datacenter.",
)


def answer(call: Call) -> Reply:
    """Return the answer of the member, tags and events endpoints."""
    if call.headers.get("authorization") not in (basic("key", KEY), f"Bearer {KEY}"):
        return WRONG_KEY
    if not call.host.startswith("us21."):
        return _problem(403, "Wrong Datacenter", "Use the data center of your API key.")
    found = MEMBER.fullmatch(call.path)
    if not found or found["list"] != LIST:
        return _problem(404, "Resource Not Found", "The requested resource could not be found.")
    if call.method == "GET":
        return Reply(200, {"id": LIST, "name": "Acme"})
    if call.method != ("POST" if found["part"] else "PUT"):
        return _problem(405, "Method Not Allowed", "The method is not allowed here.")
    if not isinstance(call.json, dict):
        return _problem(
            400, "JSON Parse Error", "We encountered an unspecified JSON parsing error."
        )
    if found["part"] == "/tags":
        return _tags(call.json)
    if found["part"] == "/events":
        return _event(call.json)
    return _member(call.json, found["hash"])


def _member(body: dict[str, Any], digest: str) -> Reply:
    email = body.get("email_address")
    if not isinstance(email, str) or "@" not in email:
        return _problem(
            400, "Invalid Resource", "Please provide a valid email address.", email_address="Blank"
        )
    if email.endswith(".invalid"):
        detail = f"{email} looks fake or invalid, please enter a real email address."
        return _problem(400, "Invalid Resource", detail)
    if body.get("status_if_new") not in ("transactional", "subscribed", "pending"):
        return _problem(400, "Invalid Resource", INVALID, status_if_new="Data did not match")
    return Reply(200, {"id": digest, "email_address": email, "status": body["status_if_new"]})


def _tags(body: dict[str, Any]) -> Reply:
    tags = body.get("tags")
    fine = isinstance(tags, list) and all(
        isinstance(tag, dict) and tag.get("name") and tag.get("status") in ("active", "inactive")
        for tag in tags
    )
    return Reply(204) if fine else _problem(400, "Invalid Resource", INVALID, tags="Wrong type")


def _event(body: dict[str, Any]) -> Reply:
    name, properties = body.get("name"), body.get("properties", {})
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{2,30}", name):
        return _problem(400, "Invalid Resource", INVALID, name="Wrong format")
    if not isinstance(properties, dict) or not all(isinstance(v, str) for v in properties.values()):
        return _problem(400, "Invalid Resource", INVALID, properties="Expected string values")
    if not re.fullmatch(r"[-\d]{10}T[:\d]{8}[+-]\d\d:\d\d", str(body.get("occurred_at"))):
        return _problem(400, "Invalid Resource", INVALID, occurred_at="Wrong format")
    return Reply(204, taken=(str(properties.get("event_id")),))


upstream = Upstream(
    slug="mailchimp",
    hosts=(".api.mailchimp.com",),
    answer=answer,
    settings={"api_key": KEY, "list_id": LIST, "tags": {"trial_started": ["+trial"]}},
    secret="api_key",  # noqa: S106  the name of the setting
    refusal=WRONG_KEY,
    throttle=_problem(
        429, "Too Many Requests", "You have exceeded the limit of 10 simultaneous connections."
    ),
)
