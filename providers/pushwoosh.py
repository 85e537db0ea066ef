"""Pushwoosh, JSON API 1.3: postEvent and setTags.

Source: https://docs.pushwoosh.com/developer/api-reference/events-api/
Batch:  none: one event a request.
Dedup:  none, so a retry after a lost answer may count an event twice; `event_id` tells.
Errors: the `status_code` in the body decides, for HTTP is 200 for most refusals.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from providers.kit import (
    Check,
    Context,
    Delivered,
    Event,
    Fact,
    Json,
    Limits,
    Misconfigured,
    Outcome,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    RevenueSettings,
    Secret,
    Skipped,
    Verdict,
    by_status,
    fact_of,
    known,
    matching,
    name_of,
    one_each,
    property_of,
    reason_of,
    revenue_of,
    text_at,
    user_id,
)

DEVICES = {"iOS": 1, "Android": 3}
TAGS = {
    "customer_user_id": "customer_user_id",
    "profile_id": "profile_id",
    "environment": "environment",
    "store": "store",
    "vendor_product_id": "product_id",
    "subscription_expires_at": "expires",
    "last_event_type": "event_name",
    "purchase_date": "transaction_date",
    "active_subscription": "active_subscription",
    "period_type": "period_type",
}
NAMED = re.compile(r"\bapplication|\btoken", re.IGNORECASE)
OF_EVENT = re.compile(r"\bevent|\battribute|\btag", re.IGNORECASE)

Code = Annotated[
    str,
    matching(r"(?i)[0-9A-F]{5}-[0-9A-F]{5}", "must be an application code, such as A1B2C-3D4E5"),
    AfterValidator(str.upper),
]
Host = Annotated[
    str,
    matching(
        r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+pushwoosh\.com", "must be a host of pushwoosh.com"
    ),
]
TagName = Annotated[str, matching(r".{1,64}", "must be 1 to 64 characters")]


class PushwooshSettings(RevenueSettings):
    """An application and its Device API token; sandbox events need an application of their own."""

    application_code: Code = Field(description="Application code")
    api_token: Secret = Field(description="Device API token (not the Server API token)")
    mode: Literal["events", "tags", "both"] = Field("events", description="What is written")
    tag_names: dict[TagName, str] = Field(
        TAGS,
        max_length=50,
        description="Tag → what it holds; the tags must exist in Pushwoosh with a fitting type",
    )
    api_host: Host = Field("api.pushwoosh.com", description="Host of an enterprise account")
    sandbox_application_code: Code | None = Field(None, description="Code for sandbox events")
    sandbox_api_token: Secret | None = Field(None, description="Token for sandbox events")

    name_pattern: ClassVar = re.compile(r"(?!PW_).{1,32}")
    name_rule: ClassVar = "at most 32 characters, and not beginning PW_ (Pushwoosh's own)"
    pairs: ClassVar = (("sandbox_application_code", "sandbox_api_token"),)


def encode(events: Sequence[Event], settings: PushwooshSettings, context: Context) -> Plan:
    """Return for each event its tags, its event, or first the tags and then the event."""
    return one_each(events, lambda event: _requests(event, settings))


def _requests(event: Event, settings: PushwooshSettings) -> Sequence[Request] | Skipped:
    who = known(
        hwid=property_of(event, "_q_pushwoosh_hwid"),
        userId=user_id(event, "_q_pushwoosh_user_id", anonymous=False),
    )
    if not who:
        return Skipped("no_identity", "no Pushwoosh HWID or user id (set _q_pushwoosh_hwid)")
    name = name_of(event, settings, {}) or ""
    if settings.mode != "tags" and not settings.name_pattern.fullmatch(name):
        return Skipped("no_mapping", f"{name} will not do ({settings.name_rule}): set event_names")
    tags = _tags(event, settings) if settings.mode != "events" else {}
    requests = []
    if tags:
        requests.append(_call("setTags", who | {"tags": tags}, event.sandbox, settings))
    if settings.mode != "tags":
        body = who | known(
            event=name,
            timestampUTC=event.time,  # Unix seconds
            device_type=DEVICES.get(event.platform),
        )
        body["attributes"] = _attributes(event, settings)
        requests.append(_call("postEvent", body, event.sandbox, settings, step=len(requests)))
    return requests or Skipped("no_tags", f"{event.name} tells nothing of tag_names")


def _call(
    method: str, body: dict[str, Json], sandbox: bool, settings: PushwooshSettings, step: int = 0
) -> Request:
    code, token = settings.application_code, settings.api_token
    if sandbox and settings.sandbox_application_code and settings.sandbox_api_token:
        code, token = settings.sandbox_application_code, settings.sandbox_api_token
    return Request.json(
        f"https://{settings.api_host}/json/1.3/{method}",
        {"request": {"application": code, **body}},
        headers={"Authorization": f"Token {token.get_secret_value()}"},
        step=step,
    )


def _attributes(event: Event, settings: PushwooshSettings) -> dict[str, Json]:
    money = revenue_of(event, settings, settings.revenue_basis)
    return known(
        product_id=event.product_id,
        old_product_id=event.old_product_id,
        revenue=money.value if money else None,
        currency=money.currency if money else "",
        transaction_id=event.transaction.transaction_id,
        event_id=event.stable_id,
    )


def _tags(event: Event, settings: PushwooshSettings) -> dict[str, Json]:
    return known(
        **{tag: _value(fact_of(event, name, settings)) for tag, name in settings.tag_names.items()}
    )


def _value(fact: Fact) -> Json:
    return fact.strftime("%Y-%m-%d %H:%M") if isinstance(fact, datetime) else fact  # UTC


def classify(request: Request, response: Response, settings: PushwooshSettings) -> Verdict:
    """Return what the answer means: by HTTP status where it refuses, else by the inner code."""
    return _outcome(response)


def _outcome(response: Response) -> Outcome:
    message = text_at(response.json, "status_message") or response.text
    match response.status:
        case status if 200 <= status < 300:
            return _by_code(_code(response.json), message)
        case 404:
            return Misconfigured("not_found", message or "wrong address: check api_host")
        case 429:
            return by_status(response, message, throttle=timedelta(seconds=30))
        case _:
            return by_status(response, message)


def _by_code(code: int | None, message: str) -> Outcome:
    match code:
        case None:
            return Retry("unexpected_answer", message or "no status_code in the answer")
        case 200:
            return Delivered()
        case 401 | 403:
            return Misconfigured(reason_of(code), message)
        case 210 if NAMED.search(message) and not OF_EVENT.search(message):
            return Misconfigured("wrong_application", message)
        case 210:
            return Rejected("bad_argument", message)
        case 429:
            return Retry("throttled", message, timedelta(seconds=30), throttled=True)
        case _ if code >= 500:
            return Retry("server_error", message)
        case _:
            return Rejected(reason_of(code) if code >= 400 else "refused", message)


def _code(body: Json) -> int | None:
    """Return `status_code`, which comes as a number or as text."""
    code = re.fullmatch(r"([0-9]{1,4})(\.0+)?", text_at(body, "status_code"))
    return int(code[1]) if code else None


def _check(settings: PushwooshSettings, context: Context) -> Request:
    body = {"hwid": "onward-settings-check", "tags": {}}
    return _call("setTags", body, False, settings)


provider = Provider(
    slug="pushwoosh",
    title="Pushwoosh",
    category="Email & push",
    stores=("iOS", "Android", "Stripe"),
    settings=PushwooshSettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=20),
    identifiers=("the Pushwoosh hardware id in _q_pushwoosh_hwid, or a user id",),
    notes=(
        "Create the events in Pushwoosh first, with exactly these names and attributes.",
        "With a user id alone, device-bound journeys do not start.",
        "An event has no key: one that is sent again after a lost answer counts twice.",
    ),
    check=Check(_check, _outcome),
)
