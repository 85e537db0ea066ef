"""Segment, HTTP Tracking API: batches of track messages.

Source: https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/
Batch:  2,500 messages or 500 KB; 100 and 450 KB are sent.
Dedup:  `messageId`, for about a day.
Errors: 200 for all it can read, wrong write keys too; a 400 names no message.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field

from providers.kit import (
    Context,
    Event,
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
    Secret,
    Settings,
    Skipped,
    Split,
    Verdict,
    advertising_id,
    amount_of,
    at,
    basic,
    by_status,
    dump,
    in_batches,
    iso,
    known,
    name_of,
    property_of,
    public_ip,
    reason_of,
    revenue_of,
    seconds,
    store_of,
    text_at,
    usable,
    user_id,
)

HOSTS = {"us": "api.segment.io", "eu": "events.eu1.segmentapis.com"}
LONGEST_WAIT = timedelta(seconds=300)  # as the official SDK has it
MESSAGE_BYTES = 32_000
LIMITS = Limits(events=100, bytes=450_000, linger=timedelta(seconds=0.5))


class SegmentSettings(Settings):
    """A source's write key; sandbox events need a source of their own."""

    write_key: Secret = Field(
        description="Write key of an HTTP API source; a wrong one goes unseen"
    )
    region: Literal["us", "eu"] = Field(description="The workspace's region")
    revenue_basis: Literal["local", "usd"] = Field("local", description="Currency of `revenue`")
    anonymous_fallback: bool = Field(
        True, description="Send the platform's own user id as anonymousId"
    )
    send_identify: bool = Field(False, description="Send an identify message with traits too")
    sandbox_write_key: Secret | None = Field(None, description="Write key for sandbox events")
    integrations: dict[str, Any] | None = Field(
        None, description='Segment\'s destinations, e.g. {"All": true, "Mixpanel": false}'
    )


def encode(events: Sequence[Event], settings: SegmentSettings, context: Context) -> Plan:
    """Return batches of messages, sandbox apart from production."""
    sent_at = context.now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = b'{"sentAt":%b,"batch":' % dump(sent_at)

    def request(messages: bytes, sandbox: bool) -> Request:
        key = (settings.sandbox_write_key if sandbox else None) or settings.write_key
        return Request.json(
            f"https://{HOSTS[settings.region]}/v1/batch",
            head + messages + b"}",
            headers={"Authorization": basic(key.get_secret_value())},
        )

    return in_batches(
        events,
        LIMITS,
        lambda event: _messages(event, settings),
        request,
        group=lambda event: event.sandbox and settings.sandbox_write_key is not None,
        item_bytes=MESSAGE_BYTES,
    )


def _messages(
    event: Event, settings: SegmentSettings
) -> dict[str, Json] | tuple[dict[str, Json], ...] | Skipped:
    user = user_id(event, anonymous=False)
    anonymous = usable(event.user_id) if settings.anonymous_fallback else ""
    if not user and not anonymous:
        return Skipped("no_identity", "no Segment userId or anonymousId (call identify in the app)")
    shared = {
        **known(userId=user, anonymousId=anonymous),
        "timestamp": iso(event.time, milliseconds=True),
        "context": _context(event),
        **known(integrations=settings.integrations),
    }
    track = {
        "type": "track",
        "event": name_of(event, settings, {}),
        **shared,
        "messageId": event.stable_id,
        "properties": _properties(event, settings),
    }
    traits = known(email=property_of(event, "_q_email"), name=property_of(event, "_q_name"))
    if not settings.send_identify or not traits:
        return track
    identify = {"type": "identify", **shared, "messageId": f"{event.stable_id}-identify"}
    return {**identify, "traits": traits}, track


def _context(event: Event) -> dict[str, Json]:
    device, app = event.device, event.device.app_version
    mobile = event.platform != "Stripe"
    return known(
        library={"name": "onward", "version": "1.0"},
        device=_device(event) if mobile else {},
        os=known(name=event.platform, version=device.os_version) if mobile else {},
        app=known(version=app, namespace=device.app_id),
        ip=public_ip(event),
        locale=device.locale.replace("_", "-"),
        timezone=device.timezone,
    )


def _device(event: Event) -> dict[str, Json]:
    advertising, device = advertising_id(event), event.device
    allowed: bool | None = True if advertising else None
    if device.limit_ad_tracking is not None:
        allowed = not device.limit_ad_tracking
    elif event.platform == "iOS" and device.att_status is not None:
        allowed = device.att_status == 3
    return known(
        type=event.platform.lower(),
        advertisingId=advertising,
        adTrackingEnabled=allowed,
        model=device.model,
        manufacturer=device.brand,
    )


def _properties(event: Event, settings: SegmentSettings) -> dict[str, Json]:
    return known(
        **_amounts(event, settings),
        product_id=event.product_id,
        product=event.product_id,
        old_product_id=event.old_product_id,
        store=store_of(event),
        environment=event.environment,
        transaction_id=event.transaction.transaction_id,
        original_transaction_id=event.transaction.original_transaction_id,
        order_id=event.transaction.transaction_id,
    )


def _amounts(event: Event, settings: SegmentSettings) -> dict[str, Json]:
    """Return revenue and price, both in `currency`."""
    amounts: dict[str, Json] = {}
    revenue = revenue_of(event, settings)
    if revenue:
        amount, currency = amount_of(revenue, settings.revenue_basis)
        amounts = {"revenue": amount, "currency": currency, "revenue_usd": revenue.value_usd}
    if event.price and settings.sends_revenue(event.name):
        price, currency = amount_of(event.price, settings.revenue_basis)
        if amounts.setdefault("currency", currency) == currency:
            amounts["price"] = price
    return amounts


def classify(request: Request, response: Response, settings: SegmentSettings) -> Verdict:
    """Return what the answer means; 200 says received, and no more."""
    return _meaning(response)


def _meaning(response: Response) -> Outcome:
    body, status = response.json, response.status
    message = text_at(body, "message") or text_at(body, "error") or response.text
    if 200 <= status < 300 and at(body, "success") is False:
        return Rejected("refused", message)
    if 300 <= status < 400:
        return Retry("redirect", "unexpected redirect, which is not followed: nothing was taken")
    if status == 400:
        return Split("bad_request", message)
    if status in (401, 403):
        return Misconfigured(reason_of(status), message)
    if status in (408, 429) or status >= 500 or status < 200:
        reset = seconds(response.headers.get("x-ratelimit-reset")) if status == 429 else None
        wait = response.retry_after or reset
        after = min(wait, LONGEST_WAIT) if wait else None
        return Retry(reason_of(status), message, after, throttled=status == 429)
    return by_status(response, message)


provider = Provider(
    slug="segment",
    title="Segment",
    category="Analytics & marketing",
    stores=("iOS", "Android", "Stripe"),
    settings=SegmentSettings,
    encode=encode,
    classify=classify,
    limits=LIMITS,
    identifiers=("any user id: the app's own as userId, the platform's as anonymousId",),
    notes=(
        "Segment answers 200 to a wrong write key too: look at the Source Debugger.",
        "An EU workspace's key at the US host is lost without a word.",
    ),
)
