"""Mailchimp, Marketing API 3.0: audience members, their tags and contact events.

Source: https://mailchimp.com/developer/marketing/api/list-members/
Batch:  none: up to three calls on one member, the contact event last.
Dedup:  the member and the tags are states; a contact event has no key, so it goes out last.
Errors: problem documents, at times inside a 200; `title` tells more than the status.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import md5
from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec.structs import replace
from pydantic import Field, field_validator, model_validator

from providers.kit import (
    ALIASES,
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
    Unsent,
    Verdict,
    at,
    basic,
    by_status,
    fact_of,
    iso,
    known,
    matching,
    name_of,
    one_each,
    plain,
    property_of,
    revenue_of,
    text_at,
)

EMAIL = re.compile(
    r"(?!\.)(?!.*\.\.)[^\s@,;:<>()\[\]\\\"]{1,64}(?<!\.)@(?=.{4,253}$)(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_][\w-]+"
)
HISTORY = timedelta(hours=24)  # what is older shall start no automations
MEMBER, TAGS, EVENT = range(3)  # steps
PUT_MEMBER = "put_member_"  # note: the member was unknown in this step
UNKNOWN_AUDIENCE = "unknown audience: check list_id"
REASONS = {
    "Forgotten Email Not Subscribed": "forgotten",
    "Member In Compliance State": "compliance_state",
    "Invalid Resource": "invalid_resource",
}
ListId = Annotated[
    str, matching(r"[0-9a-f]{8,12}", "must be an audience id: 8 to 12 of 0-9 and a-f")
]
Server = Annotated[str, matching(r"[a-z]{2,3}[0-9]{1,3}", "must be a data center, such as us21")]
MergeTag = Annotated[str, matching(r"[A-Z0-9_]{1,10}", "must be 1 to 10 of A-Z, 0-9 and _")]
ApiKey = Annotated[
    Secret,
    matching(
        r"[0-9a-f]{32}-[a-z]{2,3}[0-9]{1,3}",
        "must be 32 of 0-9 and a-f, a dash and the data center, such as …-us21",
    ),
]
TagName = Annotated[str, matching(r".{1,100}", "must be 1 to 100 characters")]
Tags = tuple[tuple[TagName, Literal["active", "inactive"]], ...]


class MailchimpSettings(RevenueSettings):
    """An API key and an audience; sandbox events need an audience of their own."""

    api_key: ApiKey = Field(description="API key, with its data center")
    server: Server | None = Field(None, description="Data center; default: the key's")
    list_id: ListId = Field(description="Audience id")
    status_if_new: Literal["transactional", "subscribed", "pending"] = Field(
        "transactional",
        description="Status of new members: no consent needed, subscribed, or double opt-in",
    )
    update_member: bool = Field(True, description="Create or update the member")
    send_events: bool = Field(True, description="Post contact events")
    tags: dict[str, Tags] = Field(
        default_factory=dict,
        description='Tags by event, set with "+name" and taken away with "-name"',
    )
    merge_field_map: dict[MergeTag, str] = Field(
        default_factory=dict,
        description="Merge tag → what it holds: product_id, status, expires, a user property …",
    )
    sandbox_list_id: ListId | None = Field(None, description="Audience id for sandbox events")

    name_pattern: ClassVar = re.compile(r"[A-Za-z0-9_-]{2,30}")
    name_rule: ClassVar = "2 to 30 letters, digits, _ and -"

    @field_validator("event_names", mode="before")
    @classmethod
    def _no_spaces(cls, names: Any) -> Any:
        if not isinstance(names, Mapping):
            return names
        return {
            event: re.sub(r"\s+", "_", name.strip()) if isinstance(name, str) else name
            for event, name in names.items()
        }

    @field_validator("tags", mode="before")
    @classmethod
    def _read_tags(cls, tags: Any) -> Any:
        if not isinstance(tags, Mapping):
            return tags
        return {ALIASES.get(str(event), event): _tags(value) for event, value in tags.items()}

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not (self.update_member or self.send_events or self.tags):
            raise ValueError("nothing would be sent: turn on update_member or send_events")
        return self

    @property
    def base(self) -> str:
        """The API's address in the account's data center."""
        server = self.server or self.api_key.get_secret_value().rpartition("-")[2]
        return f"https://{server}.api.mailchimp.com/3.0"

    @property
    def headers(self) -> dict[str, str]:
        """The authorization; any user name does."""
        return {"Authorization": basic("key", self.api_key.get_secret_value())}


def _tags(value: Any) -> Any:
    """Return (name, status) pairs of "+name", "-name" (one or a list) or {"active": […]}."""
    if isinstance(value, Mapping):
        return [(name, status) for status, names in value.items() for name in _listed(names)]
    if isinstance(value, str):
        value = re.split(r"[,\s]+(?=[+-])|,\s*", value)
    if not isinstance(value, list | tuple):
        return value
    return [
        (tag.lstrip("+-").strip(), "inactive" if tag.startswith("-") else "active")
        if isinstance(tag, str)
        else tag
        for tag in value
    ]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def encode(events: Sequence[Event], settings: MailchimpSettings, context: Context) -> Plan:
    """Return up to three steps for each event: the member, its tags, the contact event."""
    return one_each(events, lambda event: _requests(event, settings, context))


def _requests(
    event: Event, settings: MailchimpSettings, context: Context
) -> Sequence[Request] | Unsent:
    email = property_of(event, "_q_email", "email") or _text(event.extras.get("email"))
    if not email:
        return Skipped("no_identity", "no e-mail (_q_email) for this user")
    if not EMAIL.fullmatch(email):
        return Rejected("invalid_email", "_q_email is not an e-mail address")
    name = name_of(event, settings, {}) or ""
    if settings.send_events and not settings.name_pattern.fullmatch(name):
        return Skipped(
            "no_mapping", f"{name} is no contact event name ({settings.name_rule}): set event_names"
        )
    requests = tuple(_steps(event, settings, context, email, name))
    return requests or Skipped("switched_off", f"no tags for {event.name}, and nothing else is on")


def _steps(
    event: Event, settings: MailchimpSettings, context: Context, email: str, name: str
) -> Iterator[Request]:
    audience = (settings.sandbox_list_id if event.sandbox else None) or settings.list_id
    digest = md5(email.lower().encode(), usedforsecurity=False).hexdigest()
    url = f"{settings.base}/lists/{audience}/members/{digest}"
    quiet = context.now.timestamp() - event.time > HISTORY.total_seconds()
    note = context.notes.get(event.id)
    calls: list[tuple[int, str, Json]] = []
    if tags := settings.tags.get(event.name):
        listed = [{"name": tag, "status": status} for tag, status in tags]
        calls.append((TAGS, f"{url}/tags", {"tags": listed, "is_syncing": quiet}))
    if settings.send_events:
        calls.append((EVENT, f"{url}/events", _contact_event(event, settings, name, quiet)))
    member = Request.json(
        f"{url}?skip_merge_validation=true",
        _member(event, settings, email),
        headers=settings.headers,
        method="PUT",
    )
    if settings.update_member:
        yield member
    for step, target, body in calls:
        unknown = note == f"{PUT_MEMBER}{step}"
        if unknown:  # in the step that failed, for those before it are not repeated
            yield Request("PUT", member.url, member.headers, member.body, step=step)
        yield Request.json(
            target,
            body,
            headers=settings.headers,
            step=step,
            refs={PUT_MEMBER: 0} if unknown else {},  # a second 404 is final
        )


def _member(event: Event, settings: MailchimpSettings, email: str) -> Mapping[str, Json]:
    # No `status`: it would subscribe or unsubscribe a person who is known already.
    fields = {
        tag: _field(fact_of(event, name, settings))
        for tag, name in settings.merge_field_map.items()
    }
    return known(
        email_address=email,
        status_if_new=settings.status_if_new,
        merge_fields=known(**fields),
    )


def _field(fact: Fact) -> Json:
    if isinstance(fact, bool):
        return "true" if fact else "false"
    if isinstance(fact, datetime):
        return fact.strftime("%Y-%m-%d")
    return fact[:255] if isinstance(fact, str) else fact


def _contact_event(
    event: Event, settings: MailchimpSettings, name: str, quiet: bool
) -> Mapping[str, Json]:
    money = revenue_of(event, settings, settings.revenue_basis)
    amounts = (
        {
            "revenue": plain(money.value),
            "currency": money.currency,
            "revenue_usd": plain(money.value_usd),
        }
        if money
        else {}
    )
    properties = known(  # texts only, about 1,000 characters in all
        product_id=event.product_id,
        old_product_id=event.old_product_id,
        **amounts,
        transaction_id=event.transaction.transaction_id,
        event_id=event.stable_id,
        environment="sandbox" if event.sandbox else "",
    )
    return {
        "name": name,
        "occurred_at": iso(event.time).replace("Z", "+00:00"),
        "is_syncing": quiet,
        "properties": properties,
    }


def _text(value: Json) -> str:
    return value.strip() if isinstance(value, str) else ""


def classify(request: Request, response: Response, settings: MailchimpSettings) -> Verdict:
    """Return what the answer means; a problem document's own status decides over a 2xx."""
    response = _with_its_own_status(response)
    body, status = response.json, response.status
    title, detail = text_at(body, "title"), text_at(body, "detail")
    message = _message(body, title, detail) or response.text
    if status == 400:
        return _bad_request(title, detail, message)
    if status == 404:
        return _not_found(request, message)
    if status == 429:
        wait = response.retry_after or timedelta(seconds=3)
        return Retry("throttled", message, wait, throttled=True)
    if status == 503 and title == "Compliance Related":
        return Misconfigured("account_blocked", message)
    return by_status(response, message, no_pages=True)


def _with_its_own_status(response: Response) -> Response:
    """Return the answer with the status that a problem document names inside a 2xx."""
    inner = at(response.json, "status")
    problem = response.status // 100 == 2 and type(inner) is int and 400 <= inner <= 599
    return replace(response, status=inner) if problem else response


def _bad_request(title: str, detail: str, message: str) -> Outcome:
    if title == "Member Exists":
        return Delivered(message)
    if "looks fake or invalid" in detail:
        return Rejected("invalid_email", message)
    return Rejected(REASONS.get(title, "bad_request"), message)


def _not_found(request: Request, message: str) -> Outcome:
    if not request.url.endswith(("/tags", "/events")):
        return Misconfigured("unknown_audience", message or UNKNOWN_AUDIENCE)
    if PUT_MEMBER in request.refs:
        return Rejected("unknown_member", message)
    return Retry("unknown_member", message, timedelta(0), note=f"{PUT_MEMBER}{request.step}")


def _message(body: Json, title: str, detail: str) -> str:
    errors = at(body, "errors")
    fields = [
        f"{text_at(error, 'field')} {text_at(error, 'message')}".strip()
        for error in (errors if isinstance(errors, list) else [])
    ]
    said = "; ".join(filter(None, [": ".join(filter(None, [title, detail])), *fields]))
    return re.sub(r"[^\s@\"':<]+@", "…@", said)[:900]  # whose address it is stays unsaid


def _check(settings: MailchimpSettings, context: Context) -> Request:
    return Request.query(
        "GET",
        f"{settings.base}/lists/{settings.list_id}",
        {"fields": "id,name"},
        headers=settings.headers,
    )


def _read_check(response: Response) -> Outcome:
    response = _with_its_own_status(response)
    message = _message(response.json, *(text_at(response.json, k) for k in ("title", "detail")))
    if response.status == 404:
        return Misconfigured("unknown_audience", message or response.text or UNKNOWN_AUDIENCE)
    return by_status(response, message)


provider = Provider(
    slug="mailchimp",
    title="Mailchimp",
    category="Email & push",
    stores=("iOS", "Android", "Stripe"),
    settings=MailchimpSettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=8),  # the API allows 10 connections per key
    identifiers=("an e-mail address in the user property _q_email",),
    notes=(
        "A contact event has no key: one that is sent again after a lost answer counts twice.",
        "Merge fields must exist in the audience; unknown ones are ignored.",
        "Events older than 24 hours are stored as history and start no automations.",
    ),
    check=Check(_check, _read_check),
)
