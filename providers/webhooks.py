"""Webhooks: the event itself, POSTed to the customer's URL and signed.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
Batch:  none; one event a request.
Dedup:  `webhook-id` is the event's id, the same on every attempt; the receiver's duty.
Errors: any 2xx is taken; 410 asks never to be called again; all else is sent again, but for 413.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
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
    Check,
    Context,
    Delivered,
    Event,
    Generated,
    Gone,
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
    WebUrl,
    additions,
    dump,
    money_body,
    name_of,
    one_each,
    reason_of,
    revenue_body,
    revenue_of,
    standard_webhook,
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
    return one_each(events, lambda event: _request(event, settings, context))


def _request(event: Event, settings: WebhooksSettings, context: Context) -> Request | Skipped:
    url: str | None = settings.url
    if event.sandbox:
        everywhere = settings.include_sandbox or settings.send_sandbox
        url = settings.sandbox_url or (url if everywhere else None)
    if url is None:
        return Skipped("sandbox", "no sandbox URL (set sandbox_url, or include_sandbox)")
    return _post(url, event, settings, context)


def _post(url: str, event: Event, settings: WebhooksSettings, context: Context) -> Request:
    body = dump(_body(event, settings))
    signature = _signature(event.id, body, settings, context)
    return Request("POST", url, settings.own_headers + signature, body)


def _signature(
    message_id: str, body: bytes, settings: WebhooksSettings, context: Context
) -> tuple[tuple[str, str], ...]:
    timestamp = int(context.now.timestamp())
    secret, previous = settings.signing_secret, settings.previous_signing_secret
    signature = standard_webhook(message_id, timestamp, body, secret.get_secret_value())
    if previous is not None:
        ends = settings.previous_secret_expires_at
        if ends is None or context.now < ends:
            also = standard_webhook(message_id, timestamp, body, previous.get_secret_value())
            signature = f"{signature} {also}"
    return (
        ("webhook-id", message_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", signature),
    )


def _body(event: Event, settings: WebhooksSettings) -> dict[str, Json]:
    own = {
        "event_name": name_of(event, settings, NAMES),
        "user_id": event.user_id,
        "custom_user_id": event.custom_user_id,
        "identity_id": event.identity_id,
        "advertiser_id": event.advertiser_id,
        "device_id": event.device_id,
        "time": event.time,
        "created_at": event.created_at,
        "product_id": event.product_id,
        "revenue": revenue_body(revenue_of(event, settings, settings.revenue_basis)),
        "price": money_body(event.price) or {},
        "transaction": transaction_body(event),
        "properties": event.properties,
        "environment": event.environment,
        "platform": event.platform,
        "ip": event.ip or None,
        "old_product_id": event.old_product_id or None,
        "asa_attribution": event.asa_attribution,
        "event_id": event.id,
    }
    own.update(additions(event, own))
    return own


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
    return _post(settings.url, test, settings, context)


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
