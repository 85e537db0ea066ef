"""PostHog, capture API: batches of events.

Source: https://posthog.com/docs/api/capture
Batch:  20 MB a request, 1 MB an event; 100 events and 1 MB are sent.
Dedup:  `uuid` with event, distinct_id and day, merged in the background.
Errors: text; a 400 refuses the whole batch for one event and does not say which.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit

from msgspec import field
from pydantic import Field, SecretStr, field_validator, model_validator

from providers.kit import (
    KB,
    Context,
    Delivered,
    Event,
    Json,
    Limits,
    Members,
    Misconfigured,
    Outcome,
    Plan,
    Provider,
    Request,
    Response,
    Retry,
    Secret,
    Settings,
    Skipped,
    Split,
    Verdict,
    WebUrl,
    amount_of,
    at,
    by_status,
    dump,
    in_batches,
    iso,
    minor_digits,
    name_of,
    public_ip,
    revenue_of,
    store_of,
    text_at,
    user_id,
)

HOSTS = {"us": "https://us.i.posthog.com", "eu": "https://eu.i.posthog.com"}
ALIASES = {  # the app's hosts: region
    "app.posthog.com": "us",
    "us.posthog.com": "us",
    "us.i.posthog.com": "us",
    "eu.posthog.com": "eu",
    "eu.i.posthog.com": "eu",
}
REFUSED = frozenset(  # ids that lump users together
    {
        "anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email",
        "undefined", "true", "false", "null", "none", "0", "[object object]", "nan",
    }
)  # fmt: skip
Category: TypeAlias = Literal["trials", "subscriptions", "purchases"]
CATEGORIES: dict[Category, str] = {
    "trials": "trial_",
    "subscriptions": "subscription_",
    "purchases": "in_app_",
}
ID_LENGTH = 200
EVENT_BYTES = 900 * KB
LIMITS = Limits(events=100, bytes=1_000_000, linger=timedelta(seconds=0.5))
HOUR = timedelta(hours=1)
BAD_KEY = re.compile(
    r"API key (is not valid|invalid)|without an api_key|inconsistent api_key", re.IGNORECASE
)


class PosthogSettings(Settings):
    """A project's key; sandbox events need a project of their own."""

    project_api_key: Secret = Field(description="Project API key, phc_…; a wrong one goes unseen")
    region: Literal["us", "eu", "custom"] = Field(description="PostHog Cloud's region, or custom")
    host: WebUrl | None = Field(None, description="Your own instance or proxy; with region custom")
    process_person_profile: bool = Field(True, description="False: anonymous events, cheaper")
    disable_geoip: bool = Field(True, description="Keep PostHog from locating our own address")
    revenue_in_minor_units: bool = Field(False, description="`revenue` in cents")
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of `revenue`")
    sandbox_project_api_key: Secret | None = Field(
        None, description="Project API key for sandbox events"
    )
    categories: dict[Category, bool] = Field(
        default_factory=dict, description='Kinds of events to leave out: {"trials": false}'
    )
    user_property_for_distinct_id: str | None = Field(
        None, description="Property with PostHog's distinct id"
    )

    name_pattern: ClassVar[re.Pattern[str] | None] = re.compile(r"(?!\$).{1,200}")
    name_rule: ClassVar[str] = "1 to 200 characters, not beginning with $"

    @field_validator("project_api_key", "sandbox_project_api_key")
    @classmethod
    def _is_project_key(cls, key: SecretStr | None) -> SecretStr | None:
        value = key.get_secret_value() if key else ""
        if value.startswith("phx_"):
            raise ValueError("is a personal key (phx_…); the project's key begins with phc_")
        if len(value) > 64:
            raise ValueError("must be at most 64 characters: the project's key, phc_…")
        return key

    @field_validator("categories", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Take a list for those to send, and any case."""
        if isinstance(value, list | tuple):
            wanted = {str(name).lower() for name in value}
            return {name: name in wanted for name in {*CATEGORIES, *wanted}}
        if isinstance(value, Mapping):
            return {str(name).lower(): bool(on) for name, on in value.items()}
        return value

    @model_validator(mode="after")
    def _has_host(self) -> "PosthogSettings":
        if (self.region == "custom") != (self.host is not None):
            raise ValueError("host goes with region custom, and only with it")
        parts = urlsplit(self.host or "")
        if parts.query or parts.path.strip("/"):
            raise ValueError("host must be an origin such as https://posthog.acme.example")
        return self

    def origin(self) -> str:
        """Return scheme and host of the capture API."""
        if self.host is None:
            return HOSTS[self.region]
        region = ALIASES.get(urlsplit(self.host).netloc)
        return HOSTS[region] if region else self.host.rstrip("/")


def encode(events: Sequence[Event], settings: PosthogSettings, context: Context) -> Plan:
    """Return batches of events, sandbox apart from production."""
    url = f"{settings.origin()}/batch/"

    def request(items: bytes, sandbox: bool) -> Request:
        key = (settings.sandbox_project_api_key if sandbox else None) or settings.project_api_key
        head = b'{"api_key":%b,"historical_migration":false,"batch":' % dump(key.get_secret_value())
        return Request.json(url, head + items + b"}")

    return in_batches(
        events,
        LIMITS,
        lambda event: _event(event, settings),
        request,
        group=lambda event: event.sandbox and settings.sandbox_project_api_key is not None,
        item_bytes=EVENT_BYTES,
    )


def _event(event: Event, settings: PosthogSettings) -> dict[str, Json] | Skipped:
    for category, sent in settings.categories.items():
        if not sent and event.name.startswith(CATEGORIES[category]):
            return Skipped("switched_off", f"{category} are switched off (see categories)")
    user = user_id(event, settings.user_property_for_distinct_id, refused=REFUSED)
    if not user:
        return Skipped("no_identity", "no PostHog distinct_id (call identify in the app)")
    return {
        "event": name_of(event, settings, {}),
        "distinct_id": user[:ID_LENGTH],
        "uuid": event.stable_id,
        "timestamp": iso(event.time),
        "properties": _properties(event, settings),
    }


class _Properties(Members):
    profile: bool = field(name="$process_person_profile")
    geoip_disable: bool | None = field(name="$geoip_disable", default=None)
    ip: str = field(name="$ip", default="")
    lib: str = field(name="$lib", default="")
    revenue: Decimal | int | None = None
    currency: str = ""
    revenue_usd: Decimal | None = None
    product_id: str = ""
    old_product_id: str = ""
    store: str = ""
    environment: str = ""
    transaction_id: str = ""
    original_transaction_id: str = ""


def _properties(event: Event, settings: PosthogSettings) -> _Properties:
    revenue, currency, usd = _money(event, settings)
    made = event.transaction
    return _Properties(
        settings.process_person_profile,
        settings.disable_geoip or None,
        public_ip(event),
        "onward",
        revenue,
        currency,
        usd,
        event.product_id,
        event.old_product_id,
        store_of(event),
        event.environment,
        made.transaction_id,
        made.original_transaction_id,
    )


def _money(
    event: Event, settings: PosthogSettings
) -> tuple[Decimal | int | None, str, Decimal | None]:
    """Return revenue, its currency, and the same in US dollars."""
    money = revenue_of(event, settings)
    if money is None:
        return None, "", None
    amount, currency = amount_of(money, settings.revenue_basis)
    if settings.revenue_in_minor_units:
        return round(amount.scaleb(minor_digits(currency))), currency, money.value_usd
    return amount, currency, money.value_usd


def classify(request: Request, response: Response, settings: PosthogSettings) -> Verdict:
    """Return what the answer means; 200 says received, and no more."""
    return _meaning(response)


def _meaning(response: Response) -> Outcome:
    body, status = response.json, response.status
    message = text_at(body, "detail") or response.text
    limited = at(body, "quota_limited")
    if 200 <= status < 300 and isinstance(limited, list) and "events" in limited:
        return Delivered("dropped by PostHog: over its billing quota")
    if status in (400, 401) and BAD_KEY.search(message):
        return Misconfigured("unauthorized", message)
    if status == 400:
        return Split("bad_request", message)
    if status == 402:
        return Retry("payment_required", message, response.retry_after or HOUR)
    if status == 429 and "billing limit" in message.lower():
        return Retry("billing_limit", message, HOUR, throttled=True)
    return by_status(response, message, no_pages=True)  # a wrong host's, most likely


provider = Provider(
    slug="posthog",
    title="PostHog",
    category="Analytics & marketing",
    stores=("iOS", "Android", "Stripe"),
    settings=PosthogSettings,
    encode=encode,
    classify=classify,
    limits=LIMITS,
    identifiers=("any user id; use the same in PostHog's SDK",),
    notes=(
        "PostHog answers 200 to a mistyped key and at the wrong region, and drops the events.",
        "With revenue_in_minor_units only `revenue` is in cents; revenue_usd stays in dollars.",
    ),
)
