"""Webhooks: the event itself, POSTed to the customer's URL and signed.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
Batch:  none; one event a request.
Dedup:  `webhook-id` is the event's id, the same on every attempt; the receiver's duty.
Errors: any 2xx is taken; 410 asks never to be called again; all else is sent again, but for 413.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import (
    AwareDatetime,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
)

from providers.kit import (
    NO_DEVICE,
    Check,
    Context,
    Delivered,
    Device,
    Event,
    Generated,
    Gone,
    Json,
    Limits,
    Members,
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
    WebUrl,
    dump,
    money_body,
    name_of,
    one_each,
    reason_of,
    revenue_body,
    standard_webhook,
    stated_revenue,
    transaction_body,
)

NAMES = {  # as the platform's current SDKs and typed receivers spell them
    "trial_billing_retry": "trial_billing_retry_entered",
    "subscription_billing_retry": "subscription_billing_retry_entered",
}
CONTENT_TYPE = "application/json; charset=utf-8"
LONGEST_WAIT = timedelta(hours=1)
HEADERS = 20  # of the customer's own
HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
OURS = re.compile(
    r"host|content-.*|authorization|accept|accept-encoding|webhook-.*|transfer-encoding|connection"
    r"|proxy-.*|keep-alive|te|trailer|upgrade|expect|user-agent",
    re.IGNORECASE,
)


def _not_asked_for(schema: dict[str, Any]) -> None:
    schema["required"].remove("signing_secret")


class WebhooksSettings(RevenueSettings):
    """Where to, and what proves that it is us: nothing goes out unsigned."""

    model_config = ConfigDict(json_schema_extra=_not_asked_for)
    generated: ClassVar = Generated(
        "signing_secret", "previous_signing_secret", "previous_secret_expires_at"
    )

    url: WebUrl = Field(description="Receives a POST per event", repr=False)
    auth_token: Secret | None = Field(None, description="Text after `Authorization: Basic `")
    signing_secret: Secret = Field(
        description="whsec_…, verifies the signature; made where none is given"
    )
    previous_signing_secret: Secret | None = Field(None, description="Signs too while it is valid")
    previous_secret_expires_at: AwareDatetime | None = Field(
        None, description="End of the previous secret (ISO 8601 with zone, or Unix seconds)"
    )
    custom_headers: dict[str, Secret] = Field(
        default_factory=dict, description="Further headers, at most 20"
    )
    timeout_seconds: int = Field(20, ge=15, le=30, description="Total time of one request")
    sandbox_url: WebUrl | None = Field(
        None, description="Receives sandbox events, and nothing else does", repr=False
    )
    include_sandbox: bool = Field(
        False, description="Without sandbox_url: send sandbox events to url"
    )

    @cached_property
    def own_headers(self) -> tuple[tuple[str, str], ...]:
        """The headers that are the same for every event."""
        headers = [("Content-Type", CONTENT_TYPE), ("Accept", "application/json")]
        if self.auth_token is not None:
            headers.append(("Authorization", f"Basic {self.auth_token.get_secret_value()}"))
        headers += [(k, v.get_secret_value()) for k, v in self.custom_headers.items()]
        return tuple(headers)

    @field_validator("signing_secret", "previous_signing_secret")
    @classmethod
    def _signs(cls, secret: Secret | None) -> Secret | None:
        if secret and not 24 <= _key_length(secret.get_secret_value()) <= 64:
            raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes")
        return secret

    @field_validator("custom_headers")
    @classmethod
    def _headers(cls, headers: dict[str, Secret]) -> dict[str, Secret]:
        if len(headers) > HEADERS:
            raise ValueError(f"must be at most {HEADERS} headers")
        for name in headers:
            if not HEADER_NAME.fullmatch(name):
                raise ValueError("names must be 1 to 64 of letters, digits and -")
            if OURS.fullmatch(name):
                raise ValueError(f"{name} is set by us and cannot be replaced")
        if len({name.lower() for name in headers}) < len(headers):
            raise ValueError("names must differ by more than letter case")
        return headers

    @field_serializer("url", "sandbox_url", mode="wrap", when_used="json-unless-none")
    def _without_query(self, url: str, handler: SerializerFunctionWrapHandler) -> str:
        query = urlsplit(url).query  # may hold a token
        return str(handler(url)).replace(f"?{query}", "?**********") if query else url

    def takes_sandbox(self) -> bool:
        """Always: `encode` says which setting a sandbox event wants."""
        return True

    def secrets(self) -> Iterator[str]:
        """Every secret value, and the queries of the URLs: they may hold tokens."""
        yield from super().secrets()
        queries = (urlsplit(url).query for url in (self.url, self.sandbox_url) if url)
        yield from filter(None, queries)


def _key_length(secret: str) -> int:
    prefix, _, key = secret.partition("_")
    try:
        return len(base64.b64decode(key, validate=True)) if prefix == "whsec" else 0
    except binascii.Error:
        return 0


def encode(events: Sequence[Event], settings: WebhooksSettings, context: Context) -> Plan:
    """Return a signed request per event."""
    at, secrets = int(context.now.timestamp()), _secrets(settings, context.now)
    return one_each(events, lambda event: _request(event, settings, at, secrets))


def _request(
    event: Event, settings: WebhooksSettings, at: int, secrets: Sequence[str]
) -> Request | Skipped:
    url: str | None = settings.url
    if event.sandbox:
        everywhere = settings.include_sandbox or settings.send_sandbox
        url = settings.sandbox_url or (url if everywhere else None)
    if url is None:
        return Skipped("sandbox", "no sandbox URL (set sandbox_url, or include_sandbox)")
    return _post(url, event, settings, at, secrets)


def _post(
    url: str, event: Event, settings: WebhooksSettings, at: int, secrets: Sequence[str]
) -> Request:
    body = _body(event, settings)
    signatures = [standard_webhook(event.id, at, body, secret) for secret in secrets]
    headers = (
        *settings.own_headers,
        ("webhook-id", event.id),
        ("webhook-timestamp", str(at)),
        ("webhook-signature", " ".join(signatures)),
    )
    return Request("POST", url, headers, body)


def _secrets(settings: WebhooksSettings, now: datetime) -> list[str]:
    """Return what signs at `now`: the secret, and the previous one while it is valid."""
    secrets = [settings.signing_secret.get_secret_value()]
    previous, ends = settings.previous_signing_secret, settings.previous_secret_expires_at
    if previous is not None and (ends is None or now < ends):
        secrets.append(previous.get_secret_value())
    return secrets


class _Body(Members):
    event_name: str | None
    user_id: str
    custom_user_id: str
    identity_id: str
    advertiser_id: str
    device_id: str
    time: int
    created_at: int
    product_id: str
    revenue: Json
    price: Json
    transaction: Json
    properties: Mapping[str, str]
    environment: str
    platform: str
    ip: str | None
    old_product_id: str | None
    asa_attribution: Mapping[str, Json] | None
    event_id: str
    country: str = ""  # from here on beyond the platform's contract
    device: Device | None = None
    installed_at: int | None = None


def _body(event: Event, settings: WebhooksSettings) -> bytes:
    body = dump(
        _Body(  # by position: so many names would take 1 µs more
            name_of(event, settings, NAMES),
            event.user_id,
            event.custom_user_id,
            event.identity_id,
            event.advertiser_id,
            event.device_id,
            event.time,
            event.created_at,
            event.product_id,
            revenue_body(stated_revenue(event, settings, settings.revenue_basis)),
            money_body(event.price) or {},
            transaction_body(event),
            event.properties,
            event.environment,
            event.platform,
            event.ip or None,
            event.old_product_id or None,
            event.asa_attribution,
            event.id,
            event.country,
            event.device if event.device != NO_DEVICE else None,
            event.installed_at,
        )
    )
    if not event.extras:
        return body
    extras = {k: event.extras[k] for k in sorted(event.extras) if k not in _Body.__struct_fields__}
    return b"%b,%b" % (body[:-1], dump(extras)[1:]) if extras else body


def classify(request: Request, response: Response, settings: WebhooksSettings) -> Verdict:
    """Return what the answer means; its body is for people only."""
    return _meaning(response)


def _meaning(response: Response) -> Outcome:
    if 200 <= response.status < 300:
        return Delivered()
    status, message = response.status, response.text
    reason = reason_of(status)
    after = min(response.retry_after, LONGEST_WAIT) if response.retry_after else None
    match status:
        case _ if 300 <= status < 400:
            return Retry(reason, "URL redirects, update it: redirects are not followed")
        case 401 | 403:
            return Misconfigured(reason, message)
        case 410:
            return Gone("gone", message or "the receiver asks for no more events (410)")
        case 413:
            return Rejected(reason, message)
        case 429:
            return Retry(reason, message, after, throttled=True)
        case _:
            return Retry(reason, message, after, throttled=status == 503 and after is not None)


def limits_of(settings: WebhooksSettings) -> Limits:
    """Return the limits with the customer's timeout."""
    return Limits(concurrency=5, timeout=timedelta(seconds=settings.timeout_seconds))


def _test_request(settings: WebhooksSettings, context: Context) -> Request:
    now = int(context.now.timestamp())
    test = Event(
        id=f"test_{now}",
        project_id=context.project_id,
        name="test",
        platform="iOS",
        environment="sandbox",
        time=now,
        created_at=now,
    )
    return _post(settings.url, test, settings, now, _secrets(settings, context.now))


provider = Provider(
    slug="webhooks",
    title="Webhooks",
    category="Server",
    stores=("iOS", "Android", "Stripe"),
    settings=WebhooksSettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=5),
    limits_of=limits_of,
    names=NAMES,
    identifiers=("none: every event is sent",),
    notes=(
        "Delivered at least once: dedupe by the header webhook-id (the body's event_id).",
        "Verify webhook-signature over the exact bytes of the body, and refuse old timestamps.",
        "`onward integrations roll ID` makes another signing secret; both sign for a day.",
    ),
    check=Check(_test_request, _meaning),
)
