"""OneSignal: tags of a user, and custom events.

Source: https://documentation.onesignal.com/reference/create-custom-events
Batch:  1 MB of custom events a request, and 100 here: an answer may name all of them, and 64 KiB
        of it are read; tags: one user a request, its events joined.
Dedup:  `idempotency_key` of a custom event, for 4 hours; tags are states; purchases have none.
Errors: two envelopes; a 202 names events of unknown users by their key.
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

from msgspec.structs import replace
from pydantic import Field

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
    Partial,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    RevenueSettings,
    Secret,
    Skipped,
    Split,
    Unsent,
    Verdict,
    at,
    by_status,
    dump,
    fact_of,
    in_batches,
    iso,
    known,
    matching,
    name_of,
    one_line,
    plain,
    property_of,
    revenue_of,
    store_of,
    text_at,
    usable,
    user_id,
)

HOST = "https://api.onesignal.com"
EVENT_BYTES = 2024
CHANGES = 100  # property changes a request may hold
JUNK = frozenset(  # external ids that OneSignal blocks; the dots would be steps of the path
    {"0", "1", "-1", "na", "nan", "ok", "all", "not set", "unqualified", "[]", "{}", ".", ".."}
)
RESERVED = (
    "message", "notification", "subscription", "user", "template", "app", "org",
    "dynamic_content", "data_feed", "journey", "custom_data",
)  # fmt: skip
TAGS: dict[str, str | None] = {
    "last_event_type": "last_event_type",
    "product_id": "product_id",
    "active_subscription": "active_subscription",
    "period_type": "period_type",
    "subscription_expires_at": "subscription_expires_at",
}
DISPENSABLE = ("old_product_id", "event_time", "environment", "transaction_id", "product_id")
CREATE = "create_"  # note: create the user first, in the step that failed
CONFLICT = "conflict"  # note: was in conflict once
EVENTS = Limits(events=100, bytes=1_000_000, linger=timedelta(seconds=1))
USERS = Limits(events=10, bytes=1_000_000, linger=timedelta(seconds=0.2))
JSON = "application/json; charset=utf-8"

AppId = Annotated[
    str,
    matching(
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "must be the app's id, a lower-case UUID"
    ),
]
ApiKey = Annotated[Secret, matching(r"\S+", "must be an App API key: it has no spaces")]
TagName = Annotated[
    str,
    matching(rf"(?!({'|'.join(RESERVED)})$).{{1,128}}", "is a name that OneSignal reserves"),
]


class OneSignalSettings(RevenueSettings):
    """An app and its API key; sandbox events need an app of their own."""

    app_id: AppId = Field(description="OneSignal App ID")
    api_key: ApiKey = Field(description="App API key (not an organization's)")
    mode: Literal["tags", "custom_events", "both"] = Field("tags", description="What is written")
    alias_label: Literal["external_id", "onesignal_id"] = Field(
        "external_id", description="How users are named"
    )
    tag_names: dict[str, TagName | None] = Field(
        TAGS,
        max_length=CHANGES // 2,
        description="Tags to write: what they hold → their name; null: do not write",
    )
    send_purchases: bool = Field(
        False, description="Add purchases to the user's amount spent; no retry undoes a repeat"
    )
    create_missing_users: bool = Field(False, description="Create users OneSignal does not know")
    sandbox_app_id: AppId | None = Field(None, description="App ID for sandbox events")
    sandbox_api_key: ApiKey | None = Field(None, description="API key for sandbox events")

    name_pattern: ClassVar = re.compile(r".{1,128}")
    name_rule: ClassVar = "at most 128 characters"
    pairs: ClassVar = (("sandbox_app_id", "sandbox_api_key"),)

    def apart(self, event: Event) -> bool:
        """Return whether the event goes to the app for sandbox events."""
        return event.sandbox and self.sandbox_app_id is not None

    def app(self, *, sandbox: bool) -> tuple[str, dict[str, str]]:
        """Return the address of the app for these events, and the headers with its key."""
        app, key = self.app_id, self.api_key
        if sandbox and self.sandbox_app_id and self.sandbox_api_key:
            app, key = self.sandbox_app_id, self.sandbox_api_key
        return f"{HOST}/apps/{app}", {"Authorization": f"Key {key.get_secret_value()}"}


def encode(events: Sequence[Event], settings: OneSignalSettings, context: Context) -> Plan:
    """Return batches of custom events (step 0), then an update of each user."""
    plan = Plan() if settings.mode == "tags" else _custom_events(events, settings, context)
    unsent = dict(plan.unsent)
    users: dict[tuple[bool, str], list[int]] = {}
    for position, event in enumerate(events):
        alias = _alias(event, settings)
        if not alias:
            unsent[position] = _nobody(settings)
        elif settings.mode == "tags" and not _tells(event, settings):
            unsent[position] = Skipped("no_tags", f"{event.name} tells nothing of tag_names")
        elif position not in unsent:
            users.setdefault((settings.apart(event), alias), []).append(position)
    by_user = [
        request
        for (sandbox, alias), positions in users.items()
        for request in _of_user(events, positions, alias, settings, context, sandbox=sandbox)
    ]
    # Creations come first: within a step, requests go out as they are listed.
    requests = (*by_user, *plan.requests)
    return Plan(tuple(sorted(requests, key=lambda r: (r.step, r.method == "PATCH"))), unsent)


def _alias(event: Event, settings: OneSignalSettings) -> str:
    if settings.alias_label == "onesignal_id":
        return usable(property_of(event, "onesignal_id", "_q_onesignal_id"), JUNK)
    return user_id(event, anonymous=False, refused=JUNK)


def _nobody(settings: OneSignalSettings) -> Skipped:
    if settings.alias_label == "onesignal_id":
        return Skipped("no_identity", "no OneSignal id (set the user property onesignal_id)")
    return Skipped(
        "no_identity",
        "no OneSignal external id (call identify in the app, or set _q_custom_user_id)",
    )


def _noted(events: Sequence[Event], positions: Sequence[int], context: Context) -> dict[str, int]:
    """Return the notes on these events, as `refs`: `classify` sees what was tried before."""
    notes = [context.notes.get(events[position].id, "") for position in positions]
    return {note: index for index, note in enumerate(notes) if note}


# --- custom events -----------------------------------------------------------------------------


def _custom_events(events: Sequence[Event], settings: OneSignalSettings, context: Context) -> Plan:
    def request(items: bytes, sandbox: bool) -> Request:
        url, headers = settings.app(sandbox=sandbox)
        body = b'{"events":%b}' % items
        return Request.json(f"{url}/custom_events", body, headers=headers, content_type=JSON)

    plan = in_batches(
        events,
        EVENTS,
        lambda event: _custom_event(event, settings),
        request,
        group=settings.apart,
        item_bytes=EVENT_BYTES,
    )
    return Plan(
        tuple(replace(r, refs=_noted(events, r.events, context)) for r in plan.requests),
        plan.unsent,
    )


def _custom_event(event: Event, settings: OneSignalSettings) -> dict[str, Json] | Unsent:
    alias = _alias(event, settings)
    if not alias:
        return _nobody(settings)
    name = name_of(event, settings, {})
    money = revenue_of(event, settings, settings.revenue_basis)
    amounts = (
        {"revenue": money.value, "currency": money.currency, "revenue_usd": money.value_usd}
        if money
        else {}
    )
    properties = known(
        product_id=event.product_id,
        old_product_id=event.old_product_id,
        **amounts,
        transaction_id=event.transaction.transaction_id,
        store=store_of(event),
        environment=event.environment,
        event_time=iso(event.time),  # `timestamp` may be taken for now where it is past
    )
    item = {
        "name": name,
        settings.alias_label: alias,
        "timestamp": iso(event.time),
        "idempotency_key": event.stable_id,
        "properties": properties,
    }
    for dispensable in DISPENSABLE:
        if len(dump(item)) <= EVENT_BYTES:
            break
        properties.pop(dispensable, None)
    return item


# --- users -------------------------------------------------------------------------------------


def _of_user(
    events: Sequence[Event],
    positions: Sequence[int],
    alias: str,
    settings: OneSignalSettings,
    context: Context,
    *,
    sandbox: bool,
) -> Iterator[Request]:
    """Yield the creation of a user, where an earlier answer asked for it, and the updates."""
    url, headers = settings.app(sandbox=sandbox)
    notes = [context.notes.get(events[position].id, "") for position in positions]
    for note in sorted({note for note in notes if note.startswith(CREATE)}):
        yield Request.json(
            f"{url}/users",
            {"identity": {settings.alias_label: alias}},
            headers=headers,
            content_type=JSON,
            events=tuple(p for p, n in zip(positions, notes, strict=True) if n == note),
            step=int(note.removeprefix(CREATE)),
        )
    told = [
        p for p in positions if settings.mode != "custom_events" and _tells(events[p], settings)
    ]
    for start in range(0, len(told), CHANGES // 2):
        some = told[start : start + CHANGES // 2]
        yield Request.json(
            f"{url}/users/by/{settings.alias_label}/{quote(alias, safe='')}",
            _update([events[position] for position in some], settings),
            headers=headers,
            content_type=JSON,
            method="PATCH",
            events=tuple(some),
            refs=_noted(events, some, context),
            step=0 if settings.mode == "tags" else 1,
        )


def _update(events: Sequence[Event], settings: OneSignalSettings) -> dict[str, Json]:
    tags: dict[str, str] = {}
    purchases = []
    for event in sorted(events, key=lambda event: event.time):  # the latest wins
        tags |= _tags(event, settings)
        purchases += _purchases(event, settings)
    return known(properties=known(tags=tags), deltas=known(purchases=purchases))


def _tells(event: Event, settings: OneSignalSettings) -> bool:
    return bool(_tags(event, settings) or _purchases(event, settings))


def _tags(event: Event, settings: OneSignalSettings) -> dict[str, str]:
    told = {
        tag: _text(fact_of(event, name, settings))
        for name, tag in settings.tag_names.items()
        if tag is not None
    }
    return {tag: text for tag, text in told.items() if text}  # an empty text deletes the tag


def _text(fact: Fact) -> str:
    match fact:
        case None:
            return ""
        case bool():
            return "true" if fact else "false"
        case datetime():
            return str(int(fact.timestamp()))  # Unix seconds, for OneSignal's time operators
        case Decimal():
            return plain(fact)
        case _:
            return fact


def _purchases(event: Event, settings: OneSignalSettings) -> list[dict[str, Json]]:
    money = revenue_of(event, settings, settings.revenue_basis)
    if not (settings.send_purchases and event.product_id and money and money.value > 0):
        return []
    purchase = {"sku": event.product_id, "amount": plain(money.value), "iso": money.currency}
    return [purchase | {"count": 1}]


# --- answers -----------------------------------------------------------------------------------


def classify(request: Request, response: Response, settings: OneSignalSettings) -> Verdict:
    """Return what the answer means; a 2xx with `errors` names events, or refuses the user."""
    message = _message(at(response.json, "errors")) or response.text
    moments = request.url.endswith("/custom_events")
    match response.status:
        case status if 200 <= status < 300 and moments:
            return _received(request, response, settings)
        case status if 200 <= status < 300:
            return Rejected("refused", message) if at(response.json, "errors") else Delivered()
        case 400 | 402 | 422 if response.status == 402 or "limited to a maximum" in message:
            return Rejected("plan_limit", message)
        case 400 if re.search(r"app[_ ]id", message, re.IGNORECASE):
            return Misconfigured("wrong_app", message)
        case 400 if moments and len(request.events) > 1:
            return Split("bad_request", message)  # it names none of them
        case 404 if request.method == "POST":  # to the app itself
            return Misconfigured("wrong_app", message)
        case 404:
            return _unknown(request, message, settings)
        case 409:
            return _conflict(request, message)
        case 429:
            wait = response.retry_after or timedelta(seconds=2)
            return Retry("throttled", message, wait, throttled=True)
        case _:
            return by_status(response, message)


def _received(request: Request, response: Response, settings: OneSignalSettings) -> Verdict:
    if response.json is None and response.is_cut and not response.is_page:
        return Split("long_answer", "the answer is too long to be read")
    errors = at(response.json, "errors")
    return _partly(request, errors, settings) if errors else Delivered()


def _partly(request: Request, errors: Json, settings: OneSignalSettings) -> Verdict:
    sent = json.loads(request.body)["events"]
    named: dict[int, Outcome] = {}
    for error in errors if isinstance(errors, list) else []:
        outcome = _refusal(request, error, settings)
        key, user = text_at(error, "event_id").lower(), text_at(error, "event_user_id")
        hit = [index for index, event in enumerate(sent) if event["idempotency_key"] == key]
        if not hit and user:
            label = settings.alias_label
            hit = [index for index, event in enumerate(sent) if one_line(event[label]) == user]
        named |= dict.fromkeys(hit, outcome)
    return Partial(named) if named else Split("refused", _message(errors))


def _refusal(request: Request, error: Json, settings: OneSignalSettings) -> Outcome:
    title = text_at(error, "error", "title") or text_at(error, "error", "code")
    if text_at(error, "error", "code") == "not found" or "failed to find" in title:
        return _unknown(request, title, settings)
    return Rejected("invalid_event", title or _message([error]))


def _unknown(request: Request, message: str, settings: OneSignalSettings) -> Outcome:
    created = any(note.startswith(CREATE) for note in request.refs)
    if settings.create_missing_users and settings.alias_label == "external_id" and not created:
        return Retry("unknown_user", message, timedelta(0), note=f"{CREATE}{request.step}")
    return Rejected("unknown_user", f"user unknown to OneSignal: {message}")


def _conflict(request: Request, message: str) -> Verdict:
    if CONFLICT in request.refs:
        return Rejected("conflict", message)
    again = Retry("conflict", message, timedelta(seconds=1), note=CONFLICT)
    return Partial(dict.fromkeys(range(len(request.events)), again))


def _message(errors: Json) -> str:
    if not isinstance(errors, list):
        return one_line(errors) if isinstance(errors, str) else text_at(errors, "title")
    told = (
        one_line(error)
        if isinstance(error, str)
        else text_at(error, "title") or text_at(error, "error", "title") or text_at(error, "code")
        for error in errors
    )
    return one_line("; ".join(filter(None, told)))


def _check(settings: OneSignalSettings, context: Context) -> Request:
    url, headers = settings.app(sandbox=False)
    somebody = f"{url}/users/by/external_id/onward-settings-check"
    return Request("GET", somebody, tuple(headers.items()))


def _read_check(response: Response) -> Outcome:
    message = _message(at(response.json, "errors")) or response.text
    if response.status == 404:
        return Delivered("the key works; nobody has the id that was asked for")
    if response.status == 400:
        return Misconfigured("wrong_app", message)
    return by_status(response, message)


def limits_of(settings: OneSignalSettings) -> Limits:
    """Return the limits of the calls chosen: an update holds one user only."""
    return EVENTS if settings.mode == "custom_events" else USERS


provider = Provider(
    slug="onesignal",
    title="OneSignal",
    category="Email & push",
    stores=("iOS", "Android", "Stripe"),
    settings=OneSignalSettings,
    encode=encode,
    classify=classify,
    limits=USERS,
    limits_of=limits_of,
    identifiers=("the external id that the app logs in to OneSignal with",),
    notes=(
        "The app must have logged the user in, else OneSignal drops the event.",
        "A custom event that is sent again after more than 4 hours counts twice.",
        "Purchases (send_purchases) have no key: a repeat after a lost answer counts twice.",
        "Plans limit the number of tags: choose them with tag_names.",
    ),
    check=Check(_check, _read_check),
)
