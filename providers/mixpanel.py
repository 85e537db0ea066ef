"""Mixpanel, /import for server events.

Source: https://developer.mixpanel.com/reference/import-events
Batch:  2,000 events; 2 MB a request, 1 MB an event.
Dedup:  same event, distinct_id, time and `$insert_id`, so a retry counts no event twice.
Errors: a 400 names bad events by index and has stored all others.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal

from msgspec import field
from msgspec.structs import replace
from pydantic import Field, model_validator

from providers.kit import (
    MB,
    Check,
    Context,
    Delivered,
    Event,
    Json,
    Limits,
    Members,
    Misconfigured,
    Outcome,
    Partial,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    Secret,
    Settings,
    Skipped,
    Split,
    Unsent,
    Verdict,
    advertising_id,
    amount_of,
    at,
    basic,
    by_status,
    clipped,
    in_batches,
    matching,
    name_of,
    public_ip,
    revenue_of,
    store_of,
    text_at,
    user_id,
)

HOSTS = {"us": "api.mixpanel.com", "eu": "api-eu.mixpanel.com", "in": "api-in.mixpanel.com"}
REFUSED = frozenset({"anon", "na", "<nil>", "0", "-1", "true", "false", "[]", "{}"})  # nobody's ids
DEVICE = "$device:"  # before the distinct id of a user who is not known yet
TEXT = 255  # bytes of a property
AHEAD = 3540  # seconds: an hour by Mixpanel's clock, which may be a minute behind ours
LIMITS = Limits(events=500, bytes=2 * MB, linger=timedelta(seconds=0.5))

ProjectId = Annotated[int, Field(ge=1)]
AccountName = Annotated[
    str, matching(r"[!-9;-~]+", "must be the service account's username, without blanks and colons")
]


class MixpanelSettings(Settings):
    """A project's token, alone or with a service account of the project."""

    project_token: Secret = Field(description="Project token")
    region: Literal["us", "eu", "in"] = Field(description="The project's data residency")
    service_account_username: AccountName | None = Field(
        None, description="Service account, instead of the token"
    )
    service_account_secret: Secret | None = Field(None, description="Service account's secret")
    project_id: ProjectId | None = Field(None, description="Project id, with a service account")
    id_merge: Literal["simplified", "original"] = Field(
        "simplified", description="The project's identity merge API"
    )
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of `revenue`")
    send_profile_updates: bool = Field(
        False, description="Also append amounts to the profile's transactions"
    )
    sandbox_project_token: Secret | None = Field(
        None, description="Token of a project for sandbox events"
    )
    user_property_for_distinct_id: str | None = Field(
        None, description="Property with Mixpanel's distinct id"
    )

    name_pattern = re.compile(r"(?s)[^$].{0,254}")
    name_rule = "at most 255 characters, and no $ in front: those names are Mixpanel's own"

    @model_validator(mode="after")
    def _service_account_is_whole(self) -> "MixpanelSettings":
        parts = (self.service_account_username, self.service_account_secret)
        if any(parts) and not (all(parts) and self.project_id):
            raise ValueError(
                "a service account needs service_account_username, service_account_secret and "
                "project_id; set all three, or none to use the project token"
            )
        return self

    def token(self, *, sandbox: bool) -> str:
        """The project token for such events."""
        own = self.sandbox_project_token if sandbox else None
        return (own or self.project_token).get_secret_value()


def encode(events: Sequence[Event], settings: MixpanelSettings, context: Context) -> Plan:
    """Return batches of events, sandbox apart; then, if wanted, what to add to the profiles."""
    now = int(context.now.timestamp())
    plan = in_batches(
        events,
        LIMITS,
        lambda event: _event(event, settings, now),
        lambda items, sandbox: _import(items, settings, sandbox=sandbox),
        group=lambda event: event.sandbox and settings.sandbox_project_token is not None,
        item_bytes=1 * MB,
    )
    if not settings.send_profile_updates:
        return plan
    sent = [position for position in range(len(events)) if position not in plan.unsent]
    profiles = tuple(_profiles(events, sent, settings))
    return replace(plan, requests=plan.requests + profiles)


def _import(items: bytes, settings: MixpanelSettings, *, sandbox: bool) -> Request:
    url = f"https://{HOSTS[settings.region]}/import?strict=1"
    user, password = settings.token(sandbox=sandbox), ""
    if settings.service_account_secret and not sandbox:
        user = settings.service_account_username or ""
        password = settings.service_account_secret.get_secret_value()
        url += f"&project_id={settings.project_id}"
    headers = {"Authorization": basic(user, password), "Accept": "application/json"}
    return Request.json(url, items, headers=headers)


class _Properties(Members):
    time: int
    distinct_id: str
    device_id: str = field(name="$device_id", default="")
    user_id: str = field(name="$user_id", default="")
    insert_id: str = field(name="$insert_id", default="")
    ip: str | int | None = None
    revenue: Decimal | None = None
    currency: str = ""
    revenue_usd: Decimal | None = None
    store: str = ""
    environment: str = ""
    ios_ifa: str = field(name="$ios_ifa", default="")
    advertising_id: str = ""
    product_id: str = ""
    old_product_id: str = ""
    transaction_id: str = ""
    original_transaction_id: str = ""


def _event(event: Event, settings: MixpanelSettings, now: int) -> dict[str, Json] | Unsent:
    if event.time > now + AHEAD:  # its time is part of what it is told apart by, so it must stay
        wait = timedelta(seconds=event.time - now - AHEAD)
        return Retry("too_early", "an hour or more ahead of the clock", wait)
    distinct = _distinct_id(event, settings)
    if not distinct:
        return Skipped("no_identity", "no Mixpanel distinct id (call identify in the app)")
    device_id, user = _merge_ids(event, distinct, settings)
    revenue, currency, usd = _money(event, settings)
    made = event.transaction
    properties = _Properties(  # by position: so many names would take 1 µs more
        event.time * 1000,  # epoch, ms
        distinct,
        device_id,
        user,
        event.stable_id,
        public_ip(event) or 0,  # without it Mixpanel locates the sender
        revenue,
        currency,
        usd,
        store_of(event),
        event.environment,
        advertising_id(event) if event.platform == "iOS" else "",
        advertising_id(event) if event.platform == "Android" else "",
        clipped(event.product_id, TEXT),
        clipped(event.old_product_id, TEXT),
        clipped(made.transaction_id, TEXT),
        clipped(made.original_transaction_id, TEXT),
    )
    return {"event": name_of(event, settings, {}), "properties": properties}


def _distinct_id(event: Event, settings: MixpanelSettings) -> str:
    return user_id(event, settings.user_property_for_distinct_id, refused=REFUSED)


def _merge_ids(event: Event, distinct: str, settings: MixpanelSettings) -> tuple[str, str]:
    """Return the ids of the simplified merge: of a device, or of a user the app has identified."""
    if settings.id_merge == "original":
        return "", ""
    if distinct.startswith(DEVICE):
        return distinct.removeprefix(DEVICE), ""
    own = settings.user_property_for_distinct_id
    return "", user_id(event, own, anonymous=False, refused=REFUSED)


def _money(event: Event, settings: MixpanelSettings) -> tuple[Decimal | None, str, Decimal | None]:
    """Return revenue, its currency, and the same in US dollars."""
    money = revenue_of(event, settings)
    if money is None:
        return None, "", None
    amount, currency = amount_of(money, settings.revenue_basis)
    return amount, currency, money.value_usd


def _profiles(
    events: Sequence[Event], positions: Sequence[int], settings: MixpanelSettings
) -> Iterator[Request]:
    """Yield an update per amount: not idempotent, so optional, and after the event is in."""
    for position in positions:
        event = events[position]
        amount, _, _ = _money(event, settings)
        if amount is None:
            continue
        when = datetime.fromtimestamp(event.time, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        update = {
            "$token": settings.token(sandbox=event.sandbox),
            "$distinct_id": _distinct_id(event, settings),
            "$ip": public_ip(event) or 0,
            "$append": {"$transactions": {"$time": when, "$amount": amount}},
        }
        yield Request.json(
            f"https://{HOSTS[settings.region]}/engage?verbose=1",
            [update],
            headers={"Accept": "application/json"},
            events=(position,),
            step=1,
            optional=True,
        )


def classify(request: Request, response: Response, settings: MixpanelSettings) -> Verdict:
    """Return what the answer means; events that a 400 does not name are stored."""
    body = response.json
    error = text_at(body, "error")
    code = at(body, "code")
    if response.status == 200 and type(code) is int and code >= 400:
        response = replace(response, status=code)
    if response.status in (200, 400):
        bad = _failed(body, len(request.events))
        if bad:
            return Partial(bad)
    if response.status == 200:
        return _taken(body, error or response.text)
    if response.status == 400:
        return Split("bad_request", error or response.text)
    return by_status(response, error)


def _taken(body: Json, words: str) -> Outcome:
    """Return what a 200 means by its body: an object, or the bare 0 or 1 of old."""
    said = at(body, "status") if isinstance(body, dict) else body
    if type(said) is int and said in (0, 1):
        return Delivered() if said else Rejected("bad_request", words)
    return Delivered() if isinstance(body, dict) else Retry("unexpected_answer", words)


def _failed(body: Json, count: int) -> dict[int, Outcome]:
    bad: dict[int, Outcome] = {}
    records = at(body, "failed_records")
    for record in records if isinstance(records, list) else ():
        index = at(record, "index")
        if type(index) is int and 0 <= index < count:
            message = f"{text_at(record, 'field')}: {text_at(record, 'message')}"
            bad[index] = Rejected("invalid_event", message)
    return bad


def _check(settings: MixpanelSettings, context: Context) -> Request:
    return _import(b"[]", settings, sandbox=False)


def _checked(response: Response) -> Outcome:
    outcome = by_status(response, text_at(response.json, "error"))
    if isinstance(outcome, Misconfigured):
        return outcome
    return Delivered() if response.status == 400 else outcome  # it took the key, not the empty list


provider = Provider(
    slug="mixpanel",
    title="Mixpanel",
    category="Analytics & marketing",
    stores=("iOS", "Android", "Stripe"),
    settings=MixpanelSettings,
    encode=encode,
    classify=classify,
    limits=LIMITS,
    identifiers=("any user id: the one the app gives to Mixpanel's SDK as distinct id",),
    notes=(
        "If the app tracks purchases with Mixpanel's SDK too, revenue is counted twice.",
        "A project in another region than the one set here takes the events and loses them.",
        "Profile updates cannot be repeated: one that fails is not sent again.",
    ),
    check=Check(_check, _checked),
)
